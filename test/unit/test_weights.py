"""Weights of PyTorch and of Google become checkpoints, and the other way round, bit for bit."""
import json
import os

import golden_weights
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints import warm_start
from config import network as networks
import model_builder_factory
from weights import conversion
from weights import origin
from weights import safetensors_file
from weights import timm_names

# One of each family, the smallest; classes as few as there can be of a published network's body.
FAMILIES = ('efficientnet-b0', 'efficientnet-condconv-b0-4e', 'efficientnet-lite0',
            'efficientnet-edgetpu-S')
B0, CONDCONV, LITE0, EDGETPU = FAMILIES
NUM_CLASSES = 3


def state_dict(model_name, num_classes=NUM_CLASSES, style=timm_names.TIMM):
    """Seeded weights under PyTorch's names."""
    tensors = {}
    for row in timm_names.tensors(model_name, num_classes, style):
        tensors[row.theirs] = row.to_theirs(golden_weights.weight(row.ours, row.our_shape))
        if row.theirs.endswith('running_var'):
            tensors[row.theirs.replace('running_var', timm_names.COUNTER)] = np.int64(0)
    return tensors


def save(folder, name, tensors, **metadata):
    path = str(folder / name)
    safetensors_file.write(path, {key: np.asarray(value) for key, value in tensors.items()},
                           metadata)
    return path


def weights_of(folder):
    checkpoint = store.latest(str(folder))
    return {name: tensor for name, tensor in store.tensors(checkpoint)}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], name)


@pytest.mark.parametrize('model_name', model_builder_factory.MODEL_NAMES)
def test_the_table_has_every_variable_once_with_its_shape(model_name, golden_dir):
    with open(os.path.join(golden_dir, 'variables', f'{model_name}.json')) as file:
        variables = {name[len(model_name) + 1:]: tuple(shape)
                     for name, shape, _ in json.load(file)['variables']}
    for style in timm_names.STYLES:
        rows = timm_names.tensors(model_name, variables['head/dense/bias'][0], style)
        assert {row.ours: row.our_shape for row in rows} == variables
        assert len({row.theirs for row in rows}) == len(rows) == len(variables)


@pytest.mark.parametrize('model_name', FAMILIES)
def test_a_round_trip_changes_no_bit(model_name, tmp_path):
    tensors = state_dict(model_name)
    path = save(tmp_path, f'{origin.timm_name(model_name)}.safetensors', tensors)
    folder = conversion.as_checkpoint(path, 'checkpoint')
    weights = conversion.read(folder, 'input')
    written = conversion.write(weights, conversion.TIMM, str(tmp_path / 'o'))
    assert os.path.basename(written) == os.path.basename(path)
    assert_equal(safetensors_file.read(written)[0], tensors)


def test_googles_layout_has_moving_averages_of_all_variables(tmp_path):
    path = save(tmp_path, 'model.safetensors', state_dict(CONDCONV))
    google = str(tmp_path / 'google')
    conversion.write(conversion.read(path, 'input'), conversion.TENSORFLOW, google)
    names = set(weights_of(google)) - {'global_step'}
    assert {name for name in names if name.endswith(warm_start.AVERAGED)} == {
        name + warm_start.AVERAGED for name in names if not name.endswith(warm_start.AVERAGED)}
    assert sorted(os.listdir(google)) == [
        'checkpoint', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index']
    again = conversion.read(google, 'input')
    assert_equal(again.averages, again.values)
    assert_equal(again.values, conversion.read(path, 'input').values)


# A reference of its own ---------------------------------------------------------------------------

def reference_logits(tensors, images):
    """The logits of timm's condconv-b0-4e by NumPy, from timm's names and layouts alone."""
    def same(inputs, size, stride):
        sides = inputs.shape[2:]
        pads = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in sides]
        return np.pad(inputs, [(0, 0), (0, 0), *((pad // 2, pad - pad // 2) for pad in pads)],
                      'constant')

    def convolve(inputs, kernels, stride=1):
        """`kernels` [batch, out, in or 1, h, w]: one for each example."""
        size = kernels.shape[-1]
        padded = same(inputs, size, stride)
        height, width = ((side - size) // stride + 1 for side in padded.shape[2:])
        outputs = 0
        for row in range(size):
            for column in range(size):
                taps = padded[:, :, row:row + stride * height:stride,
                              column:column + stride * width:stride][:, :, :height, :width]
                weights = kernels[..., row, column]
                outputs = outputs + (
                    taps * weights[:, :, 0, None, None] if weights.shape[2] == 1 < taps.shape[1]
                    else np.einsum('bihw,boi->bohw', taps, weights))
        return outputs

    def normalize(inputs, name):
        gamma, beta, mean, variance = (
            tensors[f'{name}.{leaf}'][:, None, None].astype(np.float64)
            for leaf in ('weight', 'bias', 'running_mean', 'running_var'))
        return (inputs - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def sigmoid(values):
        return 1 / (1 + np.exp(-values))

    def swish(values):
        return values * sigmoid(values)

    def kernels(name, routing, dims, batch_size):
        weight = tensors[f'{name}.weight'].astype(np.float64)
        if routing is None:
            return np.broadcast_to(weight, [batch_size, *weight.shape])
        return (routing @ weight).reshape([batch_size, *dims])

    def block(inputs, prefix, kernel_size, stride, channels):
        batch_size, num_inputs = inputs.shape[:2]
        routing = None
        if f'{prefix}routing_fn.weight' in tensors:
            routing = sigmoid(inputs.mean((2, 3)) @ tensors[f'{prefix}routing_fn.weight'].T
                              + tensors[f'{prefix}routing_fn.bias'])
        outputs, wide, norm = inputs, num_inputs, 1
        expands = f'{prefix}bn3.weight' in tensors
        if expands:
            wide = 6 * num_inputs
            outputs = convolve(outputs, kernels(
                f'{prefix}conv_pw', routing, (wide, num_inputs, 1, 1), batch_size))
            outputs, norm = swish(normalize(outputs, f'{prefix}bn1')), 2
        outputs = convolve(outputs, kernels(
            f'{prefix}conv_dw', routing, (wide, 1, kernel_size, kernel_size), batch_size), stride)
        outputs = swish(normalize(outputs, f'{prefix}bn{norm}'))
        squeezed = outputs.mean((2, 3))
        for layer, activation in (('reduce', swish), ('expand', sigmoid)):
            name = f'{prefix}se.conv_{layer}'
            squeezed = activation(
                squeezed @ tensors[f'{name}.weight'][:, :, 0, 0].T + tensors[f'{name}.bias'])
        projection = 'conv_pwl' if expands else 'conv_pw'
        outputs = convolve(outputs * squeezed[:, :, None, None], kernels(
            f'{prefix}{projection}', routing, (channels, wide, 1, 1), batch_size))
        outputs = normalize(outputs, f'{prefix}bn{norm + 1}')
        return outputs + inputs if stride == 1 and channels == num_inputs else outputs

    batch_size = len(images)
    outputs = convolve(images.transpose(0, 3, 1, 2).astype(np.float64),
                       kernels('conv_stem', None, None, batch_size), 2)
    outputs = swish(normalize(outputs, 'bn1'))
    # Repeats, kernel size, stride and channels of each stage: table 1 of arXiv:1905.11946.
    for stage, (repeats, size, stride, channels) in enumerate((
            (1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112),
            (4, 5, 2, 192), (1, 3, 1, 320))):
        for number in range(repeats):
            outputs = block(outputs, f'blocks.{stage}.{number}.', size,
                            1 if number else stride, channels)
    outputs = convolve(outputs, kernels('conv_head', None, None, batch_size))
    outputs = swish(normalize(outputs, 'bn2')).mean((2, 3))
    return outputs @ tensors['classifier.weight'].T + tensors['classifier.bias']


def logits(checkpoint, images):
    """Those of this program, which finds out by itself what network the checkpoint has."""
    network = networks.of_checkpoint(checkpoint)
    with tf.Graph().as_default(), tf.Session() as session:
        outputs, _ = model_builder_factory.get_model_builder(network.model_name).build_model(
            tf.constant(images), network.model_name, training=False,
            override_params=network.overrides)
        restore.weights_saver(restore.RAW, checkpoint).restore(session, checkpoint)
        return session.run(outputs)


def test_experts_are_permuted_and_not_only_of_the_right_size(tmp_path):
    """All experts' matrices fit without it, and the logits are others."""
    tensors = state_dict(CONDCONV)
    images = golden_weights.patch_images(2, 56) / 128 - 1
    path = save(tmp_path, 'model.safetensors', tensors)
    expected = reference_logits(tensors, images)
    actual = logits(store.latest(conversion.as_checkpoint(path, 'checkpoint')), images)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    for layer in ('conv_pw', 'conv_dw', 'conv_pwl'):
        name = f'blocks.5.1.{layer}.weight'
        row, = (row for row in timm_names.tensors(CONDCONV, NUM_CLASSES) if row.theirs == name)
        forgotten = {**tensors, name: row.to_theirs(tensors[name].reshape(row.our_shape))}
        wrong = reference_logits(forgotten, images)
        assert np.abs(wrong - expected).max() > 1e-2 * np.abs(expected).max(), layer
