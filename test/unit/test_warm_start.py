"""A checkpoint of another training, under the names it may have, starts a network off."""
import json
import os
import re

import golden_weights
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints import warm_start
from common.errors import UserError
from config import freeze
from config import run_config
import model_builder_factory
from training import optimization
from training import trainer

CONDCONV = 'efficientnet-condconv-b0-4e'
SMALL = {'width_coefficient': 0.5, 'depth_coefficient': 0.25}
IMAGE_SIZE = 32


def build(model_name=CONDCONV, num_classes=10):
    """Builds a small network in the current graph; returns its variables."""
    model_builder_factory.get_model_builder(model_name).build_model(
        tf.zeros([1, IMAGE_SIZE, IMAGE_SIZE, 3]), model_name, training=False,
        override_params={**SMALL, 'num_classes': num_classes})
    return restore.ema_variables()


def save(folder, tensors):
    """Writes a checkpoint of name -> array; returns its path prefix."""
    checkpoint = os.path.join(str(folder), 'model.ckpt')
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.raw_ops.SaveV2(
            prefix=checkpoint, tensor_names=list(tensors), shape_and_slices=[''] * len(tensors),
            tensors=list(tensors.values())))
    tf.train.update_checkpoint_state(str(folder), checkpoint)
    return checkpoint


def start(checkpoint, folder, **network):
    """Starts a network off; returns its weights and their averages by name, and the report."""
    with tf.Graph().as_default(), tf.Session() as session:
        variables = build(**network)
        optimization.MovingAverage(variables, 0.9)
        warm_start.initialize(checkpoint, variables, str(folder))
        session.run(tf.global_variables_initializer())
        session.run(tf.local_variables_initializer())
        weights = session.run({variable.op.name: variable for variable in variables})
        saved = tf.train.load_checkpoint(
            tf.train.Saver().save(session, os.path.join(str(folder), 'started')))
        averages = {name: saved.get_tensor(f'{name}/ExponentialMovingAverage') for name in weights}
    with open(os.path.join(str(folder), warm_start.REPORT_FILE)) as file:
        return weights, averages, json.load(file)


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], name)


@pytest.fixture(scope='module')
def variables():
    """The variables of a small network."""
    with tf.Graph().as_default():
        return build()


@pytest.fixture(scope='module')
def weights(variables):
    """The weights of a training: name -> array."""
    return {variable.op.name: golden_weights.weight(variable.op.name, variable.shape.as_list())
            for variable in variables}


def without_prefix(names):
    return [name.replace('/model/', '/') for name in names]


def numbered_by_block(names):
    """As layers are that count anew in each block: cond_conv2d, then cond_conv2d_1."""
    seen = []
    for name in names:
        layer = re.sub(r'cond_conv2d(_\d+)?/', 'cond_conv2d/', name)
        number = seen.count(layer)
        seen.append(layer)
        yield layer.replace('cond_conv2d/', f'cond_conv2d_{number}/') if number else layer


def numbered_without_gaps(names):
    """As the layers would be if none but those in use took a number."""
    count = 0
    for name in names:
        if re.search('/cond_conv2d', name):
            yield re.sub(r'/cond_conv2d_\d+/', f'/cond_conv2d_{count}/'.replace('_0/', '/'), name)
            count += 1
        else:
            yield name


def without_scope(names):
    return [name[len(CONDCONV) + 1:] for name in names]


@pytest.mark.parametrize('renamings, num_renamed', [
    ([], 0), ([without_prefix], 9), ([numbered_by_block], 8), ([numbered_without_gaps], 6),
    ([without_prefix, numbered_by_block], 9), ([without_scope], 0),
    ([without_scope, numbered_without_gaps], 6)])
def test_weights_are_found_under_other_names(
        tmp_path, variables, weights, renamings, num_renamed):
    names = list(weights)
    for rename in renamings:
        names = list(rename(names))
    match = warm_start.match(save(tmp_path, dict(zip(names, weights.values()))), variables)
    assert match.loaded == dict(zip(weights, names))
    assert len(match.renamed) == num_renamed
    assert not match.skipped and not match.missing


def test_the_order_in_a_block_counts_where_a_name_means_another_kernel(
        tmp_path, variables, weights):
    names = dict(zip(weights, numbered_by_block(weights)))
    first, second = (f'{CONDCONV}/model/blocks_4/cond_conv2d_{number}/condconv_kernel'
                     for number in (1, 2))
    assert names[second] == first
    # Two kernels of the same size: by its name, one would silently be taken for the other.
    tensors = {names[name]: value for name, value in weights.items()}
    tensors[names[first]] = tensors[first] = np.zeros([4, 6], np.float32)
    match = warm_start.match(save(tmp_path, tensors), variables)
    assert set(match.skipped) == {first, second}
    assert second not in match.loaded


def trained(weights):
    """What a training leaves: weights, their averages, an optimizer's slots, a step."""
    tensors = {'global_step': np.int64(7)}
    for name, value in weights.items():
        tensors[name] = value + 1
        tensors[name + warm_start.AVERAGED] = value
        tensors[f'{name}/RMSProp'] = tensors[f'{name}/RMSProp_1'] = value + 2
    return tensors


@pytest.mark.slow
def test_averages_are_preferred_and_nothing_else_is_loaded(tmp_path, weights):
    renamed = dict(zip(without_prefix(numbered_by_block(weights)), weights.values()))
    place = tmp_path / 'no [pattern]*?'
    place.mkdir()
    loaded, averages, report = start(save(place, trained(renamed)), tmp_path)
    assert_equal(loaded, weights)
    assert_equal(averages, weights)
    assert report['loaded'] == {
        name: tensor + warm_start.AVERAGED for name, tensor in zip(weights, renamed)}
    assert len(report['renamed']) == 9


def test_savers_find_renamed_weights(tmp_path, weights):
    renamed = dict(zip(without_prefix(numbered_by_block(weights)), weights.values()))
    checkpoint = save(tmp_path, trained(renamed))
    with tf.Graph().as_default(), tf.Session() as session:
        by_name = {variable.op.name: variable for variable in build()}
        step = tf.train.get_or_create_global_step()
        for kind, offset in ((restore.EMA, 0), (restore.RAW, 1)):
            restore.weights_saver(kind, checkpoint).restore(session, checkpoint)
            assert_equal(session.run(by_name),
                         {name: value + offset for name, value in weights.items()})
        assert session.run(step) == 7


def test_savers_want_every_weight(tmp_path, weights):
    checkpoint = save(tmp_path, weights)
    with tf.Graph().as_default():
        build()
        with pytest.raises(UserError, match='not the ema weights'):
            restore.weights_saver(restore.EMA, checkpoint)
        tf.train.get_or_create_global_step()
        with pytest.raises(UserError, match='global_step is missing'):
            restore.weights_saver(restore.RAW, checkpoint)
    assert store.step_of(checkpoint) == 0


@pytest.mark.slow
def test_a_classifier_of_another_size_is_left_out(tmp_path, weights):
    loaded, averages, report = start(save(tmp_path, weights), tmp_path, num_classes=3)
    bias, kernel = (f'{CONDCONV}/head/dense/{leaf}' for leaf in ('bias', 'kernel'))
    assert set(report['skipped']) == {bias, kernel}
    assert report['skipped'][bias] == [[10], [3]]
    body = {name: value for name, value in weights.items() if name not in (bias, kernel)}
    assert_equal({name: loaded[name] for name in body}, body)
    np.testing.assert_array_equal(loaded[bias], np.zeros(3))
    assert_equal(averages, loaded)


def test_another_member_of_the_family_gives_what_fits(tmp_path, weights):
    other = 'efficientnet-b0'
    with tf.Graph().as_default():
        match = warm_start.match(save(tmp_path, weights), build(other))
    assert match.scopes == (f'{CONDCONV}/', f'{other}/')
    assert match.loaded[f'{other}/stem/conv2d/kernel'] == f'{CONDCONV}/stem/conv2d/kernel'
    assert set(match.missing) == {f'{other}/blocks_{index}/{layer}' for index in (4, 5, 6)
                                  for layer in ('conv2d/kernel', 'conv2d_1/kernel',
                                                'depthwise_conv2d/depthwise_kernel')}
    assert not match.renamed and not match.skipped


def test_experts_of_another_number_are_left_out(tmp_path, weights):
    with tf.Graph().as_default():
        match = warm_start.match(save(tmp_path, weights), build('efficientnet-condconv-b0-8e'))
    assert len(match.skipped) == 3 * (3 + 2) and not match.missing


def test_nothing_in_common_is_an_error(tmp_path, variables):
    checkpoint = save(tmp_path, {'layer/kernel': np.float32([1, 2])})
    with pytest.raises(UserError, match='no weight in common'):
        warm_start.initialize(checkpoint, variables, str(tmp_path))


@pytest.mark.parametrize('frozen, name', [
    ('head', 'head/dense/'), ('stem,blocks_1', None), ('all_but_classifier', None),
    ('blocks_0', 'blocks_0/depthwise_conv2d/')])
def test_what_is_frozen_has_to_be_in_the_checkpoint(tmp_path, weights, frozen, name):
    """A classifier of another size starts anew, which frozen it must not."""
    lacking = {tensor: value for tensor, value in weights.items()
               if '/blocks_0/depthwise' not in tensor}
    checkpoint = save(tmp_path, weights if frozen == 'all_but_classifier' else lacking)
    with tf.Graph().as_default():
        arguments = (checkpoint, build(num_classes=7), str(tmp_path), freeze.parse(frozen, 7))
        if name is None:
            warm_start.initialize(*arguments)
        else:
            with pytest.raises(UserError, match=f'--freeze: .*{name}.* random'):
                warm_start.initialize(*arguments)


@pytest.mark.parametrize('suffix, message', [
    ('.index', 'not a readable checkpoint'), ('.data-00000-of-00001', 'model.ckpt: corrupt')])
def test_damage_is_found_before_training(tmp_path, suffix, message):
    checkpoint = save(tmp_path, {'kernel': np.ones([100], np.float32)})
    store.verify(checkpoint)
    with open(checkpoint + suffix, 'r+b') as file:
        file.truncate(50)
    with pytest.raises(UserError, match=message):
        store.verify(checkpoint)
    with pytest.raises(UserError, match='no checkpoint found; check --init_checkpoint'):
        store.find(str(tmp_path / '..'), 'init_checkpoint')


@pytest.mark.slow
def test_a_run_starts_with_the_weights_and_goes_on_with_its_own(tmp_path, weights, digits_dir):
    checkpoint = save(tmp_path, trained(weights))
    settings = dict(
        data_dir=digits_dir, model_dir=str(tmp_path / 'run'), model_name=CONDCONV, mode='train',
        input_image_size=IMAGE_SIZE, batch_size=4, init_checkpoint=str(tmp_path), **SMALL)
    trainer.run(run_config.from_values(dict(settings, train_steps=1)))
    first = tf.train.load_checkpoint(os.path.join(settings['model_dir'], 'model.ckpt-0'))
    for name, value in weights.items():
        np.testing.assert_array_equal(first.get_tensor(name), value)
        np.testing.assert_array_equal(first.get_tensor(name + warm_start.AVERAGED), value)
    report = os.path.join(settings['model_dir'], warm_start.REPORT_FILE)
    os.remove(report)

    # Started again, it needs that checkpoint no more.
    for path in tmp_path.glob('model.ckpt*'):
        path.unlink()
    trainer.run(run_config.from_values(dict(settings, train_steps=2)))
    assert store.step_of(store.latest(settings['model_dir'])) == 2
    assert not os.path.exists(report)

    settings.update(init_checkpoint=checkpoint, model_dir=str(tmp_path / 'another'))
    with pytest.raises(UserError, match='not a readable checkpoint'):
        trainer.run(run_config.from_values(dict(settings, train_steps=1)))
