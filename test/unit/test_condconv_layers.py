"""The batched CondConv layers against a convolution of each example with its own mixed kernel."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import condconv_layers
import efficientnet_cpu

BATCH, CHANNELS, FILTERS, EXPERTS = 3, 4, 5, 2


def make_layer(is_depthwise, kernel_size, strides, padding, data_format='channels_last',
               use_bias=True, is_for_cpu=False, **options):
    options = dict(strides=strides, padding=padding, data_format=data_format, num_experts=EXPERTS,
                   use_bias=use_bias, bias_initializer=tf.random_normal_initializer(seed=3),
                   **options)
    if is_depthwise:
        layer_class = (efficientnet_cpu.CpuDepthwiseCondConv2D if is_for_cpu
                       else condconv_layers.DepthwiseCondConv2D)
        return layer_class(kernel_size, **{'depth_multiplier': 2, **options})
    layer_class = efficientnet_cpu.CpuCondConv2D if is_for_cpu else condconv_layers.CondConv2D
    return layer_class(FILTERS, kernel_size, **options)


def loop_over_examples(
        layer, is_depthwise, inputs, routing, kernel_size, strides, padding, batch=BATCH):
    """The definition, equation by equation: mix the kernels of one example, convolve it alone."""
    outputs = []
    for index in range(batch):
        mixed = tf.reduce_sum(routing[index][:, None] * layer.expert_kernels, 0)
        convolve = tf.nn.depthwise_conv2d if is_depthwise else tf.nn.conv2d
        kernel = tf.reshape(mixed, [kernel_size, kernel_size, CHANNELS,
                                    2 if is_depthwise else FILTERS])
        output = convolve(inputs[index:index + 1], kernel, [1, strides, strides, 1],
                          padding.upper())
        outputs.append(output + tf.reduce_sum(routing[index][:, None] * layer.expert_biases, 0))
    return tf.concat(outputs, 0)


@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('kernel_size, strides', [(1, 1), (1, 2), (3, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize('is_depthwise', [False, True])
@pytest.mark.parametrize('size', [(5, 6), (9, 8)])
@pytest.mark.parametrize('batch, is_for_cpu', [
    (1, False), (1, True), (BATCH, False), (None, False)])
def test_outputs_and_gradients_equal_the_loop(
        is_depthwise, kernel_size, strides, padding, size, batch, is_for_cpu):
    """Of one example, of more, and of shapes that are not known beforehand."""
    random = np.random.RandomState(0)
    images = random.normal(size=[batch or BATCH, *size, CHANNELS]).astype(np.float32)
    routing_values = random.uniform(size=[batch or BATCH, EXPERTS]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        shape = [batch, *size, CHANNELS] if batch else [None, None, None, CHANNELS]
        inputs = tf.placeholder(tf.float32, shape)
        routing = tf.placeholder(tf.float32, [batch, EXPERTS])
        layer = make_layer(is_depthwise, kernel_size, strides, padding, is_for_cpu=is_for_cpu)
        ours = layer.apply(inputs, routing)
        expected = loop_over_examples(
            layer, is_depthwise, inputs, routing, kernel_size, strides, padding, batch or BATCH)
        session.run(tf.global_variables_initializer())
        wanted = [inputs, routing, layer.expert_kernels, layer.expert_biases]
        values = session.run(
            [[output, tf.gradients(tf.reduce_sum(output ** 2), wanted)]
             for output in (ours, expected)], {inputs: images, routing: routing_values})
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-4, atol=1e-4)
    for gradient, expected_gradient in zip(values[0][1], values[1][1]):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('kernel_size, strides', [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize('size', [(5, 6), (9, 8)])
@pytest.mark.parametrize('batch', [1, 3, 11, None])
def test_depthwise_implementations_are_equal(kernel_size, strides, size, batch):
    """Of batches below, at and above the number of groups on a CPU."""
    random = np.random.RandomState(0)
    images = random.normal(size=[batch or 3, *size, CHANNELS]).astype(np.float32)
    routing_values = random.uniform(size=[batch or 3, EXPERTS]).astype(np.float32)
    results = {}
    for implementation, is_for_cpu in (
            ('fold', False), ('fold', True), ('loop', False), ('loop', True),
            ('experts_depthwise', False), ('experts', False)):
        with tf.Graph().as_default(), tf.Session() as session:
            inputs = tf.placeholder(tf.float32, [batch, *size, CHANNELS])
            routing = tf.placeholder(tf.float32, [batch, EXPERTS])
            layer = make_layer(True, kernel_size, strides, 'same', use_bias=False,
                               depth_multiplier=1, implementation=implementation,
                               is_for_cpu=is_for_cpu)
            layer.kernel_initializer = tf.random_normal_initializer(seed=2)
            if batch is None and implementation == 'loop':
                with pytest.raises(ValueError, match='fold'):
                    layer.apply(inputs, routing)
                continue
            outputs = layer.apply(inputs, routing)
            gradients = tf.gradients(outputs ** 2, [inputs, routing, layer.expert_kernels])
            session.run(tf.global_variables_initializer())
            results[implementation, is_for_cpu] = session.run(
                [outputs, *gradients], {inputs: images, routing: routing_values})
    for result in results.values():
        for value, expected in zip(result, results['fold', False]):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('batch, channels, sizes', [
    (128, 480, [128]), (128, 672, [64] * 2), (128, 1152, [32] * 4), (256, 1152, [32] * 8),
    (32, 1152, [32]), (None, 1152, [None]), (1, 70000, [1]),
    # 59 is prime: the least number of parts, whose sizes differ by one.
    (59, 1152, [30, 29]), (127, 1152, [43, 42, 42]),
    (130, 672, [65] * 2), (96, 672, [96])])
def test_a_fold_stays_within_what_a_device_takes(batch, channels, sizes):
    assert condconv_layers.fold_sizes(batch, channels) == sizes
    if batch and batch > 1:
        assert max(sizes) * channels <= condconv_layers.MAX_DEPTHWISE_CHANNELS


@pytest.mark.parametrize('largest', [2 * CHANNELS, 3 * CHANNELS + 1])
@pytest.mark.parametrize('batch', [6, 7])
@pytest.mark.parametrize('is_for_cpu', [False, True])
def test_a_fold_in_parts_is_bit_equal_to_one(monkeypatch, largest, batch, is_for_cpu):
    random = np.random.RandomState(0)
    images = random.normal(size=[batch, 6, 5, CHANNELS]).astype(np.float32)
    weights = random.uniform(size=[batch, EXPERTS]).astype(np.float32)
    results = []
    for limit in (condconv_layers.MAX_DEPTHWISE_CHANNELS, largest):
        monkeypatch.setattr(condconv_layers, 'MAX_DEPTHWISE_CHANNELS', limit)
        with tf.Graph().as_default() as graph, tf.Session() as session:
            layer = make_layer(True, 3, 2, 'same', use_bias=False, depth_multiplier=1,
                               is_for_cpu=is_for_cpu)
            layer.kernel_initializer = tf.random_normal_initializer(seed=2)
            inputs, routing = tf.constant(images), tf.constant(weights)
            outputs = layer.apply(inputs, routing)
            gradients = tf.gradients(outputs ** 2, [inputs, routing, layer.expert_kernels])
            folded = [operation.inputs[0].shape[3].value for operation in graph.get_operations()
                      if operation.type == 'DepthwiseConv2dNative']
            session.run(tf.global_variables_initializer())
            results.append(session.run([outputs, *gradients]))
        assert is_for_cpu or max(folded) <= limit
    for one, in_parts in zip(*results):
        np.testing.assert_array_equal(in_parts, one)


@pytest.mark.parametrize('is_depthwise', [False, True])
def test_experts_that_convolve_equal_the_loop(is_depthwise):
    """What exported models do, at an unknown batch."""
    random = np.random.RandomState(0)
    images = random.normal(size=[BATCH, 6, 5, CHANNELS]).astype(np.float32)
    routing_values = random.uniform(size=[BATCH, EXPERTS]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        inputs = tf.placeholder(tf.float32, [None, 6, 5, CHANNELS])
        routing = tf.placeholder(tf.float32, [None, EXPERTS])
        layer = make_layer(is_depthwise, 3, 2, 'same', implementation='experts')
        outputs = layer.apply(inputs, routing)
        expected = loop_over_examples(layer, is_depthwise, inputs, routing, 3, 2, 'same')
        session.run(tf.global_variables_initializer())
        ours, theirs = session.run(
            [outputs, expected], {inputs: images, routing: routing_values})
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('implementation, data_format', [
    ('fold', 'channels_last'), ('fold', 'channels_first'), ('experts', 'channels_last')])
@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('dilation_rate', [2, (1, 3)])
def test_a_dilated_kernel_equals_one_with_zeros_between_its_weights(
        implementation, dilation_rate, padding, data_format):
    """With a bias; of a batch that is not known beforehand."""
    is_first = data_format == condconv_layers.CHANNELS_FIRST
    rows, columns = (dilation_rate,) * 2 if dilation_rate == 2 else dilation_rate
    random = np.random.RandomState(0)
    images = random.normal(size=[BATCH, 9, 8, CHANNELS]).astype(np.float32)
    weights = random.uniform(size=[BATCH, EXPERTS]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        inputs = tf.placeholder(tf.float32, [None, 9, 8, CHANNELS])
        routing = tf.placeholder(tf.float32, [None, EXPERTS])
        layer = make_layer(False, 3, 1, padding, data_format, dilation_rate=dilation_rate,
                           implementation=implementation)
        ours = layer.apply(tf.transpose(inputs, [0, 3, 1, 2]) if is_first else inputs, routing)
        if is_first:
            ours = tf.transpose(ours, [0, 2, 3, 1])
        session.run(tf.global_variables_initializer())
        wanted = [layer.expert_kernels, layer.expert_biases, ours,
                  tf.gradients(ours ** 2, layer.expert_kernels)[0]]
        experts, biases, outputs, gradient = session.run(
            wanted, {inputs: images, routing: weights})

    spread = np.zeros([EXPERTS, 2 * rows + 1, 2 * columns + 1, CHANNELS, FILTERS], np.float32)
    spread[:, ::rows, ::columns] = experts.reshape([EXPERTS, 3, 3, CHANNELS, FILTERS])
    mixed = np.einsum('be,ehwio->bhwio', weights, spread)
    if padding == 'same':
        images = np.pad(images, [(0, 0), (rows, rows), (columns, columns), (0, 0)])
    height, width = outputs.shape[1:3]
    windows = np.stack([[images[:, i:i + 2 * rows + 1, j:j + 2 * columns + 1]
                         for j in range(width)] for i in range(height)])
    expected = np.einsum('yxbhwi,bhwio->byxo', windows, mixed)
    expected += (weights @ biases)[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    of_spread = np.einsum('be,byxo,yxbhwi->ehwio', weights, 2 * expected, windows)
    np.testing.assert_allclose(gradient, of_spread[:, ::rows, ::columns].reshape(gradient.shape),
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('size', [2, 4, 6])
def test_mixing_inputs_equals_mixing_kernels(size, monkeypatch):
    """Both ways to compute the 1x1 layer, on either side of the size where they change over."""
    random = np.random.RandomState(0)
    images = random.normal(size=[BATCH, size, size, CHANNELS]).astype(np.float32)
    outputs = []
    for mixes_inputs in (True, False):
        monkeypatch.setattr(condconv_layers.CondConv2D, '_mixes_inputs',
                            lambda *_, choice=mixes_inputs: choice)
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(1)
            layer = make_layer(False, 1, 1, 'same', use_bias=False)
            layer.kernel_initializer = tf.random_normal_initializer(seed=2)
            output = layer.apply(tf.constant(images), tf.constant([[0.2, 0.9]] * BATCH))
            session.run(tf.global_variables_initializer())
            outputs.append(session.run(output))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


def test_channels_first_equals_channels_last():
    random = np.random.RandomState(0)
    images = random.normal(size=[BATCH, 6, 7, CHANNELS]).astype(np.float32)
    outputs = {}
    for data_format in ('channels_last', 'channels_first'):
        is_first = data_format == 'channels_first'
        with tf.Graph().as_default(), tf.Session() as session:
            layer = make_layer(False, 3, 1, 'same', data_format)
            layer.kernel_initializer = tf.random_normal_initializer(seed=2)
            output = layer.apply(tf.constant(images.transpose(0, 3, 1, 2) if is_first else images),
                                 tf.constant([[0.2, 0.9]] * BATCH))
            session.run(tf.global_variables_initializer())
            value = session.run(output)
            outputs[data_format] = value.transpose(0, 2, 3, 1) if is_first else value
    np.testing.assert_allclose(outputs['channels_first'], outputs['channels_last'], rtol=1e-4,
                               atol=1e-5)


def test_routing_weights_are_sigmoids_of_the_pooled_input():
    images = np.random.RandomState(0).normal(size=[2, 3, 3, CHANNELS]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        weights = condconv_layers.routing(tf.constant(images), EXPERTS)
        session.run(tf.global_variables_initializer())
        kernel, bias = session.run(['dense/kernel:0', 'dense/bias:0'])
        logits = images.mean((1, 2)) @ kernel + bias
        np.testing.assert_allclose(session.run(weights), 1 / (1 + np.exp(-logits)), rtol=1e-5)


@pytest.mark.parametrize('kernel_size', [1, 3])
def test_experts_are_initialised_as_kernels_of_their_own(kernel_size):
    """The scale is that of one kernel, and no two experts are alike."""
    with tf.Graph().as_default(), tf.Session() as session:
        layer = condconv_layers.CondConv2D(64, kernel_size, num_experts=8)
        layer.build([None, 8, 8, 32])
        session.run(tf.global_variables_initializer())
        experts = session.run(layer.expert_kernels)
        one = session.run(tf.glorot_uniform_initializer()([kernel_size, kernel_size, 32, 64]))
    assert experts.shape == (8, one.size)
    for expert in experts:
        assert expert.std() == pytest.approx(one.std(), rel=0.1)
        assert np.abs(expert).max() == pytest.approx(np.abs(one).max(), rel=0.05)
    assert len({expert[0] for expert in experts}) == 8


@pytest.mark.parametrize('options, message', [
    (dict(num_experts=0), 'num_experts'), (dict(padding='full'), 'full'),
    (dict(data_format='nhwc'), 'nhwc'), (dict(strides=0), 'strides'),
    (dict(kernel_size=(1, 2, 3)), 'kernel_size'), (dict(dilation_rate=0), 'dilation_rate'),
    (dict(strides=2, dilation_rate=2), 'dilation_rate')])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        condconv_layers.CondConv2D(FILTERS, **{'kernel_size': 1, **options})
    with pytest.raises(ValueError, match='equal strides'):
        condconv_layers.DepthwiseCondConv2D(3, strides=(1, 2))
    with pytest.raises(ValueError, match="'unfold'.*fold, loop"):
        condconv_layers.DepthwiseCondConv2D(3, implementation='unfold')
