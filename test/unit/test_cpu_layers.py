"""The CPU implementations of layers against the plain ops that they replace."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import cpu_layers

RANDOM = np.random.RandomState(0)


def assert_equal(ours, plain, *shapes):
    """Compares outputs and gradients of two functions of tensors of the given shapes."""
    values = [RANDOM.normal(size=shape).astype(np.float32) for shape in shapes]
    with tf.Graph().as_default(), tf.Session() as session:
        results = []
        for function in (ours, plain):
            operands = [tf.constant(value) for value in values]
            outputs = function(*operands)
            # Another weight for each output: a sum would hide what batch norm cancels.
            weights = np.random.RandomState(1).normal(size=outputs.shape.as_list())
            results.append([outputs, *tf.gradients(outputs * weights.astype(np.float32), operands)])
        results = session.run(results)
    for value, expected in zip(*results):
        np.testing.assert_allclose(value, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def test_swish():
    assert_equal(cpu_layers.swish, tf.nn.swish, [4, 1000])


def test_swish_of_large_values_is_finite():
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.constant([-1e4, -100.0, 0.0, 100.0, 1e4])
        y = cpu_layers.swish(x)
        outputs, gradients = session.run([y, tf.gradients(y, x)[0]])
    np.testing.assert_allclose(outputs, [0, 0, 0, 100, 1e4], atol=1e-6)
    np.testing.assert_allclose(gradients, [0, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize('kernel_size, stride', [(3, 1), (5, 1), (3, 2), (5, 2), (1, 1)])
@pytest.mark.parametrize('batch, channels, num_groups', [
    (2, 10, 1), (2, 1000, 1), (1, 10, 1), (1, 370, 3), (1, 1000, 8)])
def test_depthwise_conv2d(kernel_size, stride, batch, channels, num_groups):
    """The channels of a lone image are dealt among groups."""
    num_ops = []

    def convolve(x, w):
        num_before = len(x.graph.get_operations())
        outputs = cpu_layers.depthwise_conv2d(x, w, stride)
        num_ops.append(sum('Depthwise' in op.type
                           for op in x.graph.get_operations()[num_before:]))
        return outputs

    assert_equal(
        convolve, lambda x, w: tf.nn.depthwise_conv2d(x, w, [1, stride, stride, 1], 'SAME'),
        [batch, 7, 8, channels], [kernel_size, kernel_size, channels, 1])
    assert num_ops == [num_groups]


@pytest.mark.parametrize('stride', [1, 2])
def test_swish_depthwise_conv2d(stride):
    assert_equal(
        lambda x, w: cpu_layers.swish_depthwise_conv2d(x, w, stride),
        lambda x, w: tf.nn.depthwise_conv2d(tf.nn.swish(x), w, [1, stride, stride, 1], 'SAME'),
        [2, 7, 8, 10], [5, 5, 10, 1])


def test_backward_pass_begins_with_its_gradient():
    """What does not need the gradient from above would be made in the forward pass, and kept."""
    with tf.Graph().as_default() as graph:
        x, w = tf.ones([2, 7, 8, 10]), tf.ones([5, 5, 10, 1])
        y = cpu_layers.swish_depthwise_conv2d(cpu_layers.swish(x), w)
        forward = set(graph.get_operations())
        dy = tf.placeholder(tf.float32, y.shape)
        backward = set().union(*(
            _sources(gradient.op) for gradient in tf.gradients(y, [x, w], dy))) - forward
    assert not [op for op in backward - {dy.op}
                if dy.op not in _sources(op) and _num_values(op) >= 1000]


def _sources(op):
    found, queue = set(), [op]
    while queue:
        op = queue.pop()
        new = {*(tensor.op for tensor in op.inputs), *op.control_inputs} - found
        found |= new
        queue += new
    return found


def _num_values(op):
    return max((tensor.shape.num_elements() or 0 for tensor in op.outputs), default=0)


@pytest.mark.parametrize('known_batch', [True, False])
@pytest.mark.parametrize('ours, axes', [(cpu_layers.batch_inward, [1, 2, 0, 3]),
                                        (cpu_layers.batch_outward, [2, 0, 1, 3])])
def test_the_batch_moves_inward_and_outward(ours, axes, known_batch):
    images = RANDOM.normal(size=[3, 4, 2, 5]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [size if known_batch else None for size in (3, 4, 2)] + [5])
        outputs = ours(x)
        weights = RANDOM.normal(size=images.transpose(axes).shape).astype(np.float32)
        actual, gradient = session.run(
            [outputs, tf.gradients(outputs * weights, x)[0]], {x: images})
    np.testing.assert_array_equal(actual, images.transpose(axes))
    np.testing.assert_array_equal(gradient, weights.transpose(np.argsort(axes)))


def test_a_lone_image_is_not_copied():
    with tf.Graph().as_default() as graph:
        inward = cpu_layers.batch_inward(tf.ones([1, 4, 2, 5]))
        outward = cpu_layers.batch_outward(inward)
    assert (inward.shape, outward.shape) == ([4, 2, 1, 5], [1, 4, 2, 5])
    assert not [op for op in graph.get_operations() if op.type in ('GatherV2', 'Transpose')]


def test_pointwise_conv2d():
    assert_equal(cpu_layers.pointwise_conv2d,
                 lambda x, w: tf.nn.conv2d(x, w, 1, 'SAME'), [2, 5, 6, 3], [1, 1, 3, 7])


def test_gated_pointwise_conv2d():
    assert_equal(cpu_layers.gated_pointwise_conv2d,
                 lambda x, gate, w: tf.nn.conv2d(gate * x, w, 1, 'SAME'),
                 [2, 5, 6, 8], [2, 1, 1, 8], [1, 1, 8, 3])


def test_pointwise_conv2d_batch_norm():
    def plain(x, w, gamma, beta):
        return tf.nn.fused_batch_norm(
            tf.nn.conv2d(x, w, 1, 'SAME'), gamma, beta, epsilon=1e-3)[0]

    assert_equal(
        lambda *operands: cpu_layers.pointwise_conv2d_batch_norm(*operands, epsilon=1e-3)[0],
        plain, [3, 5, 6, 4], [1, 1, 4, 12], [12], [12])


def test_batch_norm():
    assert_equal(
        lambda *operands: cpu_layers.batch_norm(*operands, epsilon=1e-3)[0],
        lambda *operands: tf.nn.fused_batch_norm(*operands, epsilon=1e-3)[0],
        [3, 5, 6, 12], [12], [12])


@pytest.mark.parametrize('offset', [0.0, 100.0])
def test_batch_norm_far_from_zero(offset):
    """A difference of mean squares would lose the variance."""
    images = (offset + RANDOM.normal(size=[16, 50, 50, 6])).astype(np.float32)
    expected = images.astype(np.float64).reshape([-1, 6])
    with tf.Graph().as_default(), tf.Session() as session:
        outputs, mean, variance = session.run(cpu_layers.batch_norm(
            tf.constant(images), tf.ones([6]), tf.zeros([6]), 0.0))
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, expected.var(0), rtol=1e-5)
    np.testing.assert_allclose(
        outputs.reshape([-1, 6]), (expected - expected.mean(0)) / expected.std(0), atol=1e-4)


@pytest.mark.parametrize('offset', [0.0, 100.0])
def test_statistics_are_those_of_the_outputs(offset):
    """Of inputs far from zero, too, where a difference of mean squares would lose the variance."""
    images = (offset + RANDOM.normal(size=[4, 8, 8, 6])).astype(np.float32)
    kernel = RANDOM.normal(size=[1, 1, 6, 24]).astype(np.float32)
    expected = images.astype(np.float64).reshape([-1, 6]) @ kernel[0, 0]
    with tf.Graph().as_default(), tf.Session() as session:
        outputs, mean, variance = session.run(cpu_layers.pointwise_conv2d_batch_norm(
            tf.constant(images), tf.constant(kernel), tf.ones([24]), tf.zeros([24]), 0.0))
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance, expected.var(0), rtol=1e-4)
    np.testing.assert_allclose(
        outputs.reshape([-1, 24]), (expected - expected.mean(0)) / expected.std(0),
        rtol=1e-3, atol=1e-3)


def test_the_batch_may_be_unknown():
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 5, 6, 4])
        outputs, _, _ = cpu_layers.pointwise_conv2d_batch_norm(
            x, tf.ones([1, 1, 4, 8]), tf.ones([8]), tf.zeros([8]), 1e-3)
        outputs = cpu_layers.depthwise_conv2d(outputs, tf.ones([3, 3, 8, 1]), 2)
        gate = tf.reduce_mean(outputs, [1, 2], keepdims=True)
        outputs = cpu_layers.gated_pointwise_conv2d(outputs, gate, tf.ones([1, 1, 8, 2]))
        assert outputs.shape.as_list() == [None, 3, 3, 2]
        values = session.run(outputs, {x: np.ones([3, 5, 6, 4])})
        assert values.shape == (3, 3, 3, 2)
