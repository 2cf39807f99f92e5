"""Images of any height and width: how a size is written, and what each part makes of it."""
import json
import os

from absl import flags
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import autoaugment
from common.errors import UserError
from common.image_sizes import ImageSize
from common.image_sizes import is_written
from config import checks
from config import command_line
from config import run_config
import efficientnet_builder
from export import frozen_graph
from export import images as export_images
import imagenet_input
from inspect_model_architecture import inspect
import model_builder_factory

B0 = 'efficientnet-b0'
CONDCONV = 'efficientnet-condconv-b0-4e'
SMALL = {'num_classes': 7, 'width_coefficient': 0.25, 'depth_coefficient': 0.25}


def make(**values):
    return run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': '/tmp/never_made', 'train_steps': 9, **values})


@pytest.fixture
def from_flags(monkeypatch):
    """from_flags(flag, ...) -> the `Config` of a command line."""
    def parse(*arguments):
        holder = flags.FlagValues()
        run_config.define_flags(holder)
        holder(['main.py', '--data_dir=synthetic', '--train_steps=9', *arguments])
        monkeypatch.setattr(flags, 'FLAGS', holder)
        return command_line.from_flags()

    return parse


@pytest.mark.parametrize('size, expected, written', [
    (224, (224, 224), 224), ('224', (224, 224), 224), ('64x64', (64, 64), 64),
    ('224x288', (224, 288), '224x288'), ((48, 32), (48, 32), '48x32')])
def test_every_spelling_of_a_size_is_height_then_width(size, expected, written):
    found = ImageSize.of(size)
    assert found == expected == (found.height, found.width)
    assert found.written == written and type(found.written) is type(written)
    assert f'{found}' == str(written) and ImageSize.of(found.written) == found
    assert is_written(found.written)


@pytest.mark.parametrize('text', [
    '64x', 'x64', '64X96', '64,96', '64x96x3', '6.4x96', '', 'x', '64 x 96', '٦٤x96', 'nan'])
def test_what_is_no_size_is_told_in_a_sentence(from_flags, text):
    assert not is_written(text)
    with pytest.raises(flags.IllegalFlagValueError, match=(
            f'--input_image_size={text}: neither a number nor HEIGHTxWIDTH; write it like')):
        from_flags(f'--input_image_size={text}')


@pytest.mark.parametrize('text', [
    '7', '7x64', '64x7', '4097x64', '64x4097', '-64x64', '64x' + 20 * '9'])
def test_each_side_has_the_limits(from_flags, text):
    with pytest.raises(flags.IllegalFlagValueError, match=(
            f'--input_image_size={text}: a side must be from 8 to 4096 pixels')):
        from_flags(f'--input_image_size={text}')
    with pytest.raises(UserError, match=f'--input_image_size={text}: must be at'):
        make(input_image_size=text)


def test_config_json_has_a_square_as_a_number_and_others_as_text(from_flags, tmp_path):
    for text, saved in (('64x64', 64), ('64', 64), ('64x96', '64x96')):
        config = from_flags(f'--model_dir={tmp_path}', f'--input_image_size={text}')
        config.continued(None, 0).save()
        content = json.loads((tmp_path / 'config.json').read_text())
        assert content['optimization']['input_image_size'] == saved
        assert content['segments'][0]['optimization']['input_image_size'] == saved
        loaded = run_config.load(str(tmp_path))
        assert loaded.optimization == config.optimization
        assert loaded.image_size == ImageSize.of(text)
    for odd in ('64x', '7x64', 7.0, True, [64, 96]):
        content['optimization']['input_image_size'] = odd
        (tmp_path / 'config.json').write_text(json.dumps(content))
        with pytest.raises(UserError, match='config.json: corrupt .*input_image_size'):
            run_config.load(str(tmp_path))


def test_a_run_goes_on_with_another_size(tmp_path):
    make(model_dir=str(tmp_path), input_image_size=32).continued(None, 0).save()
    now = make(model_dir=str(tmp_path), input_image_size='32x48').continued(
        run_config.load(str(tmp_path)), 5)
    assert now.changes_at(5) == {'input_image_size': (32, '32x48')}
    now.save()
    again = run_config.load(str(tmp_path))
    assert [segment.step for segment in again.segments] == [0, 5] and again == now


def test_limits_of_other_settings_still_hold():
    """They are checked number by number, as those of a size are."""
    with pytest.raises(UserError, match='--batch_size=0: must be at least 1'):
        checks.check_ranges(run_config.without_data({
            'data_dir': 'x', 'model_dir': 'y', 'batch_size': 0}))


@pytest.mark.parametrize('is_training, fields', [
    (False, {}), (False, {'transpose_input': True}),
    (True, {'mixup_alpha': 0.2, 'augment': autoaugment.augmentation('autoaugment', 2, 10)}),
    (True, {'transpose_input': True, 'augment': autoaugment.augmentation(
        'randaugment', 2, 10, autoaugment.RELATIVE)})])
def test_batches_have_the_size(digits_dir, is_training, fields):
    found = {}
    for data_dir in (digits_dir, 'synthetic'):
        images = imagenet_input.ImageNetInput(
            data_dir, is_training=is_training, image_size=ImageSize(24, 40), batch_size=5,
            num_classes=10, seed=1, **fields)
        with tf.Graph().as_default(), tf.Session() as session:
            iterator = tf.data.make_initializable_iterator(images.dataset())
            batch, _ = iterator.get_next()
            session.run(iterator.initializer)
            found[data_dir] = session.run(batch)
        shape = (24, 40, 3, 5) if images.transpose_input else (5, 24, 40, 3)
        assert found[data_dir].shape == tuple(batch.shape.as_list()) == shape
    # Digits fill their pictures: neither side was cut off or padded.
    if not fields and not is_training:
        lit = found[digits_dir] > 64
        assert lit.any(axis=(0, 2, 3))[4:-4].all() and lit.any(axis=(0, 1, 3))[6:-6].all()


def test_relative_distances_are_those_of_the_shorter_side():
    reach = autoaugment.RANDAUGMENT_REACH
    found = [autoaugment._scaled(reach, tf.zeros([*size, 3]), autoaugment.RELATIVE)
             for size in ((56, 56), (56, 224), (224, 56))]
    assert found[0] == found[1] == found[2] == {'cutout': 10, 'translate': 25}


def test_costs_and_shapes_are_those_of_the_network():
    report = inspect(CONDCONV, image_size='33x64', num_classes=7).content
    assert report['image_size'] == '33x64'
    assert inspect(CONDCONV, image_size='64x64', num_classes=7) == inspect(
        CONDCONV, image_size=64, num_classes=7)
    with tf.Graph().as_default():
        _, endpoints = model_builder_factory.get_model_builder(CONDCONV).build_model(
            tf.zeros([2, 33, 64, 3]), CONDCONV, training=False, override_params={'num_classes': 7})
    for part in report['parts']:
        assert endpoints[part['part']].shape.as_list() == [2, *part['output_shape']]


@pytest.mark.parametrize('model_name', [B0, CONDCONV])
def test_cpu_layers_give_the_same_logits(model_name):
    """Where the halvings of height and of width round in different ways."""
    images = np.random.RandomState(0).uniform(-1, 1, [3, 33, 58, 3]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        images = tf.constant(images)
        overrides = {**SMALL, 'dropout_rate': 0.0, 'survival_prob': 1.0}
        build = model_builder_factory.get_model_builder(model_name).build_model
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            logits = [build(images, model_name, training=True, override_params=overrides,
                            uses_cpu_layers=is_on_cpu)[0] for is_on_cpu in (False, True)]
        session.run(tf.global_variables_initializer())
        plain, on_cpu = session.run(logits)
    scale = np.abs(plain).max()
    assert np.ptp(plain, axis=0).max() > 0.1 * scale > 1e-4
    np.testing.assert_allclose(on_cpu, plain, rtol=0, atol=1e-3 * scale)


def test_channels_first_has_the_transposed_shapes():
    with tf.Graph().as_default():
        logits, endpoints = model_builder_factory.get_model_builder(CONDCONV).build_model(
            tf.zeros([2, 3, 33, 58]), CONDCONV, training=True,
            override_params={**SMALL, 'data_format': 'channels_first'})
    assert logits.shape.as_list() == [2, 7]
    assert endpoints['stem'].shape.as_list()[2:] == [17, 29]


def test_generated_images_have_the_size():
    images = export_images.generated(2, ImageSize(16, 24))
    assert images.shape == (2, 16, 24, 3) and np.ptp(images) > 100
    np.testing.assert_array_equal(export_images.generated(2, (16, 16)),
                                  export_images.generated(2, 16))


def test_convert_sh_has_height_before_width(tmp_path):
    path = frozen_graph.write_convert_script(
        str(tmp_path), [('m_bs2.pb', 2)], ImageSize(32, 48), 'Ascend310P3', 'force_fp16', True)
    script = open(path).read()
    assert '--input_shape="image:2,32,48,3"' in script
    assert '--insert_op_conf="aipp_32x48.cfg"' in script
    aipp = (tmp_path / 'aipp_32x48.cfg').read_text()
    assert 'src_image_size_w: 48\n' in aipp and 'src_image_size_h: 32\n' in aipp


ADVPROP = efficientnet_builder.ADVPROP


@pytest.mark.parametrize('arguments, expected', [
    ([], None), (['--advprop_preprocessing'], ADVPROP), (['--advprop_preprocessing=true'], ADVPROP),
    (['--advprop_preprocessing', '--normalization=advprop'], ADVPROP),
    (['--noadvprop_preprocessing'], None), (['--advprop_preprocessing=false'], None)])
def test_googles_name_of_advprops_normalization(from_flags, tmp_path, arguments, expected):
    config = from_flags(f'--model_dir={tmp_path}', *arguments)
    assert config.model.normalization == expected
    assert ('normalization' in config.changed_settings) == bool(expected)
    config.save()
    assert run_config.load(str(tmp_path)).model.normalization == expected


def test_the_two_names_must_not_contradict_each_other(from_flags, tmp_path):
    with pytest.raises(UserError, match='--normalization=advprop: contradicts '
                                        '--noadvprop_preprocessing; keep one of them'):
        from_flags(f'--model_dir={tmp_path}', '--normalization=advprop',
                   '--advprop_preprocessing=false')


def test_a_run_starts_and_is_evaluated_with_what_either_name_says(from_flags, tmp_path):
    """A given name wins over what the run, or the checkpoint that it starts from, has stored."""
    run = make(model_dir=str(tmp_path), normalization=ADVPROP, model_name=B0)
    run.continued(None, 0).save()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable(f'{B0}/head/dense/bias', initializer=tf.zeros([1000]))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, os.path.join(str(tmp_path), 'model.ckpt'), 3)
    evaluation = ('--mode=eval', '--eval_once', f'--model_dir={tmp_path}')
    start = (f'--model_dir={tmp_path}/new', f'--init_checkpoint={tmp_path}')
    for flag, expected in ((None, ADVPROP), ('--advprop_preprocessing', ADVPROP),
                           ('--noadvprop_preprocessing', None)):
        for arguments in (evaluation, start):
            config = from_flags(*arguments, *filter(None, [flag]))
            assert config.model.normalization == expected


@pytest.mark.parametrize('model_name', [B0, CONDCONV])
def test_advprop_is_googles_formula(model_name):
    """Every gray level, as uint8 and as float32, and as a resized image overshoots."""
    levels = np.linspace(-40, 300, 1000).astype(np.float32)
    for values in (np.arange(256, dtype=np.uint8), levels):
        images = np.repeat(values.reshape(1, -1, 1, 1), 3, axis=3)
        with tf.Session() as session:
            found = session.run(model_builder_factory.get_model_builder(
                model_name, ADVPROP).normalize(images))
        expected = images.astype(np.float32) * np.float32(2.0) / np.float32(255) - np.float32(1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
