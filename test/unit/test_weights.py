"""Weights of PyTorch and of Google become checkpoints, and the other way round, bit for bit."""
import json
import multiprocessing.pool
import os
import shutil
import sys
import tarfile

from absl import flags
import golden_weights
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints import warm_start
from common.errors import UserError
from config import command_line
from config import network as networks
from config import run_config
from export import trained_model
import model_builder_factory
from weights import comparison
from weights import conversion
from weights import origin
from weights import safetensors_file
from weights import timm_names
from weights import torch_file

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


# What a file says, and what is refused ------------------------------------------------------------

def arrays(model_name, num_classes=NUM_CLASSES, style=timm_names.TIMM):
    """Zeros under PyTorch's names: for what is refused, or not looked at."""
    return {row.theirs: np.zeros(row.their_shape, np.float32)
            for row in timm_names.tensors(model_name, num_classes, style)}


@pytest.mark.parametrize('path, metadata, timm_name, expected', [
    ('tf_efficientnet_b0.in1k.safetensors', {}, '', (B0, True, False)),
    ('tf_efficientnet_b0_aa-827b6e33.pth', {}, '', (B0, True, False)),
    ('tf_efficientnet_b8_ap-00e169fa.pth', {}, '', ('efficientnet-b8', True, True)),
    ('tf_efficientnet_b7.ap_in1k.safetensors', {}, '', ('efficientnet-b7', True, True)),
    ('tf_efficientnet_l2.ns_jft_in1k_475.pth', {}, '', ('efficientnet-l2', True, False)),
    ('tf_efficientnet_cc_b1_8e-f7c79ae1.pth', {}, '',
     ('efficientnet-condconv-b0-8e-depth', True, False)),
    ('tf_efficientnet_em.bin', {}, '', ('efficientnet-edgetpu-M', True, False)),
    ('efficientnet_b0_ra-3dd342df.pth', {}, '', (B0, False, False)),
    ('adv-efficientnet-b3-cdd7c0f4.pth', {}, '', ('efficientnet-b3', False, True)),
    ('models--timm--tf_efficientnet_lite0.in1k/snapshots/0a1b/model.safetensors', {}, '',
     (LITE0, True, False)),
    ('efficientnet_b0/tf_efficientnet_b1.pth', {}, '', ('efficientnet-b1', True, False)),
    ('model.safetensors', {'architecture': 'tf_efficientnet_b0.ap_in1k'}, '', (B0, True, True)),
    ('efficientnet_b0.pth', {}, 'tf_efficientnet_b0', (B0, True, False)),
    ('efficientnet_b0.safetensors', {'architecture': 'tf_efficientnet_b0'}, '', (B0, True, False)),
    ('tf_efficientnet_b0.ap_in1k/tf_efficientnet_b0.safetensors', {}, '', (B0, True, True)),
    ('model.safetensors', {}, '', None), ('tf_efficientnetv2_s.pth', {}, '', None),
    ('tf_efficientnet_b01.pth', {}, '', None), ('tf_mobilenetv3_large_100.pth', {}, '', None)])
def test_names_say_which_network_and_whose(tmp_path, path, metadata, timm_name, expected):
    said = origin.find(str(tmp_path / path), metadata, timm_name)
    assert (said and said[:3]) == expected


def test_the_config_json_of_timms_hub_says_it_too(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(
        {'architecture': 'tf_efficientnet_b0', 'pretrained_cfg': {'tag': 'ap_in1k'}}))
    path = save(tmp_path, 'model.safetensors', state_dict(B0))
    renamed = save(tmp_path, 'efficientnet_b0.safetensors', state_dict(B0))
    with pytest.raises(UserError, match='not a tf_ network according to its name'):
        conversion.read(renamed, 'input')
    os.rename(renamed, f'{tmp_path}/tf_efficientnet_b0.safetensors')
    renamed = f'{tmp_path}/tf_efficientnet_b0.safetensors'
    assert conversion.read(renamed, 'input').normalization == 'advprop'
    os.remove(renamed)
    read = conversion.read(path, 'input')
    assert read.model_name == B0 and read.normalization == 'advprop'
    # The folder stands for the file of weights in it, and its twin for torch is not looked at.
    (tmp_path / 'pytorch_model.bin').write_bytes(b'')
    assert conversion.as_checkpoint(str(tmp_path), 'checkpoint') == (
        conversion.as_checkpoint(path, 'checkpoint'))


@pytest.mark.parametrize('name, model_name, timm_name, message', [
    ('model.safetensors', B0, '', "unknown whether .* uses TensorFlow's padding .* --timm_name"),
    ('efficientnet_b0.safetensors', B0, '', 'not a tf_ network according to its name; .*padding'),
    ('tf_efficientnet_b0.safetensors', B0, 'efficientnet_b0',
     'according to --timm_name=efficientnet_b0;'),
    ('model.safetensors', B0, 'resnet50', '--timm_name=resnet50: not the name'),
    ('tf_efficientnet_b1.safetensors', B0, '', 'contains efficientnet-b0, not efficientnet-b1'),
    ('efficientnet_cc_b0_4e.safetensors', CONDCONV, '', 'not a tf_ network')])
def test_a_file_of_another_or_of_an_unknown_origin_is_refused(
        tmp_path, name, model_name, timm_name, message):
    path = save(tmp_path, name, arrays(model_name))
    with pytest.raises(UserError, match=message):
        conversion.read(path, 'input', timm_name)


def test_a_file_of_another_shape_or_architecture_is_refused(tmp_path):
    name, tensors = 'tf_efficientnet_b0.safetensors', arrays(B0)
    key = 'blocks.1.0.conv_dw.weight'
    lacking = {other: tensor for other, tensor in tensors.items() if other != key}
    for spoiled, message in (
            ({**tensors, key: np.zeros([96, 1, 5, 5], np.float32)},
             f'not {B0}: {key} is 96x1x5x5 instead of 96x1x3x3'),
            (lacking, f'{key} is absent instead of 96x1x3x3'),
            ({**tensors, 'extra.weight': np.zeros(3, np.float32)},
             'extra.weight is 3 instead of absent'),
            ({**tensors, key: np.zeros([96, 1, 3, 3], np.int64)}, 'are integers'),
            ({'features.0.weight': np.zeros([8, 3, 3, 3], np.float32)}, 'another architecture'),
            ({}, 'another architecture')):
        path = save(tmp_path, name, spoiled)
        with pytest.raises(UserError, match=message):
            conversion.read(path, 'input')
    # --model_name contradicts the weights.
    path = save(tmp_path, name, tensors)
    with pytest.raises(UserError, match=f'contains {B0}, not {LITE0} as in --model_name={LITE0}'):
        conversion.read(path, 'input', model_name=LITE0)


def test_a_torch_file_has_the_hash_in_its_name(tmp_path):
    path = tmp_path / 'tf_efficientnet_b0-01234567.pth'
    path.write_bytes(b'abc')
    with pytest.raises(UserError, match='its SHA-256 begins with ba7816bf and not with 01234567'):
        conversion.read(str(path), 'input')
    path = tmp_path / 'tf_efficientnet_b0-ba7816bf.pth'
    path.write_bytes(b'abc')
    with pytest.raises(UserError, match='not a readable torch file'):
        conversion.read(str(path), 'input')


@pytest.mark.parametrize('key', ['state_dict', 'model', 'state_dict_ema', None])
def test_weights_are_found_in_what_training_programs_save(tmp_path, monkeypatch, key):
    tensors = state_dict(LITE0)
    wrapped = {f'module.{name}': tensor for name, tensor in tensors.items()}
    saved = {key: wrapped, 'epoch': 3, 'arch': 'tf_efficientnet_lite0'} if key else wrapped
    monkeypatch.setattr(torch_file, 'read', lambda path: saved)
    path = tmp_path / 'tf_efficientnet_lite0.pth'
    path.write_bytes(b'')
    read = conversion.read(str(path), 'input')
    assert read.model_name == LITE0 and read.averages is None
    expected = conversion.read(save(tmp_path, f'{path.stem}.safetensors', tensors), 'input')
    assert_equal(read.values, expected.values)


def test_weights_and_averages_are_both_kept_and_averages_are_taken(tmp_path, monkeypatch):
    tensors = state_dict(LITE0)
    averages = {name: tensor + 1 for name, tensor in tensors.items()}
    monkeypatch.setattr(torch_file, 'read', lambda path: {
        'state_dict': tensors, 'state_dict_ema': averages})
    path = tmp_path / 'tf_efficientnet_lite0.pth'
    path.write_bytes(b'')
    read = conversion.read(str(path), 'input')
    folder = conversion.as_checkpoint(str(path), 'checkpoint')
    assert restore.held_weights(store.latest(folder)) == [restore.RAW, restore.EMA]
    assert run_config.load(folder).optimization.moving_average_decay > 0
    for enable_ema, expected in ((True, averages), (False, tensors)):
        written = conversion.write(read, conversion.TIMM, str(tmp_path / 'out'), enable_ema)
        found = safetensors_file.read(written)[0]
        assert_equal({name: found[name] for name in ('bn1.bias', 'classifier.weight')},
                     {name: expected[name] for name in ('bn1.bias', 'classifier.weight')})


def test_the_other_port_to_pytorch_needs_no_name(tmp_path):
    port = save(tmp_path, 'efficientnet-lite0.safetensors',
                state_dict(LITE0, style=timm_names.PORT))
    timm = save(tmp_path, 'tf_efficientnet_lite0.safetensors', state_dict(LITE0))
    assert_equal(conversion.read(port, 'input').values, conversion.read(timm, 'input').values)


def test_the_background_class_is_left_out_for_timm(tmp_path):
    tensors = state_dict(EDGETPU, 1001)
    read = conversion.read(save(tmp_path, 'tf_efficientnet_es.safetensors', tensors), 'input')
    assert read.num_classes == 1001
    written = conversion.write(read, conversion.TIMM, str(tmp_path / 'out'))
    found = safetensors_file.read(written)[0]
    assert_equal(found, {**tensors, **{name: tensors[name][1:] for name in (
        'classifier.weight', 'classifier.bias')}})


def test_names_of_classes_are_given_and_kept(tmp_path):
    read = conversion.read(save(tmp_path, 'model.safetensors', arrays(CONDCONV)), 'input')
    names = tmp_path / 'names.txt'
    names.write_text('a\nb\n')
    with pytest.raises(UserError, match=r'contains 2 names, but the network has 3 classes'):
        conversion.named(read, str(names))
    names.write_text('a\nb\nc\n')
    folder = str(tmp_path / 'out')
    conversion.write(conversion.named(read, str(names)), conversion.CHECKPOINT, folder)
    assert (tmp_path / 'out' / 'labels.txt').read_text() == 'a\nb\nc\n'
    assert run_config.load(folder).class_names == ('a', 'b', 'c')
    assert conversion.read(folder, 'input').class_names == ('a', 'b', 'c')


# TensorFlow's checkpoints -------------------------------------------------------------------------

def google_checkpoint(folder, kinds):
    """Lite0 as Google's archives have it; returns the values of each kind, by variable's name."""
    values = {kind: {} for kind in kinds}
    for row in timm_names.tensors(LITE0, NUM_CLASSES):
        for kind in kinds:
            values[kind][row.ours] = golden_weights.weight(row.ours, row.our_shape) + (
                kind == warm_start.AVERAGED)
    tensors = {f'{LITE0}/{name}{kind}': value for kind in kinds
               for name, value in values[kind].items()}
    with tf.Graph().as_default(), tf.Session() as session:
        fed = {tf.placeholder(value.dtype, value.shape): value for value in tensors.values()}
        session.run(tf.raw_ops.SaveV2(
            prefix=f'{folder}/model.ckpt', tensor_names=[*tensors, 'global_step'],
            shape_and_slices=[''] * (len(tensors) + 1),
            tensors=[*fed, tf.constant(437898, tf.int64)]), fed)
    return values


def test_googles_archives_are_read_averages_first(tmp_path):
    inside = tmp_path / 'efficientnet-lite0'
    inside.mkdir()
    path = str(tmp_path / 'efficientnet-lite0.tar.gz')
    for kinds in ([warm_start.AVERAGED], [warm_start.UNAVERAGED, warm_start.AVERAGED]):
        values = google_checkpoint(str(inside), kinds)
        with tarfile.open(path, 'w:gz', compresslevel=1) as archive:
            archive.add(str(inside), 'efficientnet-lite0')
        read = conversion.read(path, 'input')
        assert (read.model_name, read.step) == (LITE0, 437898)
        assert_equal(read.values, values[kinds[0]])
        if len(kinds) == 1:
            assert read.averages is None
        else:
            assert_equal(read.averages, values[kinds[1]])
    content = open(path, 'rb').read()
    for size in (0, 10, len(content) // 2, len(content) - 9):
        with open(path, 'wb') as file:
            file.write(content[:size])
        with pytest.raises(UserError, match='efficientnet-lite0.tar.gz: '):
            conversion.read(path, 'input')


@pytest.mark.parametrize('name, kind', [
    ('../model.ckpt.index', tarfile.REGTYPE), ('/tmp/model.ckpt.index', tarfile.REGTYPE),
    ('a/../../model.ckpt.index', tarfile.REGTYPE), ('model.ckpt.index', tarfile.SYMTYPE),
    ('model.ckpt.index', tarfile.LNKTYPE), ('model.ckpt.index', tarfile.FIFOTYPE)])
def test_an_archive_that_writes_outside_its_folder_is_refused(tmp_path, name, kind):
    path = tmp_path / 'b0.tar'
    with tarfile.open(str(path), 'w') as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, '/etc/passwd'
        archive.addfile(member)
    with pytest.raises(UserError, match='b0.tar: its member .* would be written outside'):
        conversion.read(str(path), 'input')
    assert os.listdir(str(tmp_path)) == ['b0.tar']


# On the way ---------------------------------------------------------------------------------------

def test_a_file_is_converted_once_and_keyed_by_its_content(tmp_path):
    path = save(tmp_path, 'tf_efficientnet_lite0.safetensors', arrays(LITE0))
    with multiprocessing.pool.ThreadPool(4) as pool:
        folders = set(pool.map(
            lambda flag: conversion.as_checkpoint(path, flag), ['init_checkpoint'] * 4))
    folder, = folders
    digits = origin.file_sha256(path)[:16]
    assert folder == f'{path}.converted/{digits}' and os.listdir(f'{path}.converted') == [digits]
    made = os.stat(folder).st_mtime_ns
    assert conversion.as_checkpoint(path, 'checkpoint') == folder
    assert os.stat(folder).st_mtime_ns == made
    save(tmp_path, 'tf_efficientnet_lite0.safetensors', {
        **arrays(LITE0), 'bn1.bias': np.ones(32, np.float32)})
    assert conversion.as_checkpoint(path, 'checkpoint') != folder


def test_nothing_stays_of_a_file_that_is_refused(tmp_path):
    path = save(tmp_path, 'model.safetensors', arrays(LITE0))
    with pytest.raises(UserError, match='unknown whether'):
        conversion.as_checkpoint(path, 'checkpoint')
    assert os.listdir(str(tmp_path)) == ['model.safetensors']


def test_a_folder_that_cannot_be_written_to_is_not(tmp_path, monkeypatch):
    """root, who runs tests, may write everywhere."""
    path = save(tmp_path, 'tf_efficientnet_lite0.safetensors', arrays(LITE0))
    monkeypatch.setattr(os, 'access', lambda place, mode: place != str(tmp_path))
    with pytest.raises(UserError, match='is not writable; convert it with'):
        conversion.as_checkpoint(path, 'checkpoint')
    with pytest.raises(UserError, match='--checkpoint=obs://x.pth: not a local file'):
        conversion.as_checkpoint('obs://x.pth', 'checkpoint')
    beside = str(tmp_path / 'runs')
    folder = conversion.as_checkpoint(path, 'init_checkpoint', beside)
    assert folder.startswith(f'{beside}/tf_efficientnet_lite0.safetensors.converted/')


def test_a_run_takes_its_network_and_normalization_from_a_file(tmp_path, monkeypatch):
    path = save(tmp_path, 'tf_efficientnet_b0.ap_in1k.safetensors', arrays(B0))

    def config_of(*arguments):
        holder = flags.FlagValues()
        run_config.define_flags(holder)
        holder(['main.py', '--data_dir=synthetic', f'--model_dir={tmp_path}/run', *arguments])
        monkeypatch.setattr(flags, 'FLAGS', holder)
        return command_line.from_flags(conversion.as_checkpoint)

    config = config_of(f'--init_checkpoint={path}')
    folder = conversion.as_checkpoint(path, 'checkpoint')
    assert config.run.init_checkpoint == folder
    assert (config.model.model_name, config.model.num_label_classes) == (B0, 1000)
    exported = trained_model.from_checkpoint(store.latest(folder))
    assert config.builder.MEAN_RGB == exported.builder.MEAN_RGB == [127.5] * 3
    assert config.builder.STDDEV_RGB == exported.builder.STDDEV_RGB == [127.5] * 3
    # Once model_dir has a checkpoint, the file is not looked at.
    shutil.copytree(folder, str(tmp_path / 'run'))
    os.remove(path)
    again = config_of(f'--init_checkpoint={path}', '--num_label_classes=3')
    assert again.model.normalization == 'advprop'


def test_an_interpreter_without_timm_is_one_sentence():
    with pytest.raises(UserError, match="timm failed .*No module named 'timm'.*check that torch"):
        comparison.random_weights(LITE0, sys.executable)
