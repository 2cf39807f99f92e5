"""Settings: defaults, what the data set decides, what is refused."""
import dataclasses
import json
import os
import time

from absl import flags
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies
import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from config import command_line
from config import run_config
from config.settings import GROUPS
from config.settings import by_group
from tfrecords import schema


@pytest.fixture
def data_dir(tmp_path):
    """A data set of 7 classes with labels from 0; configurations look at no more than its info."""
    schema.DatasetInfo(name='birds', num_classes=7, class_names=tuple('abcdefg'), label_base=0,
                       num_images={'train': 1000, 'validation': 100}).save(str(tmp_path))
    return str(tmp_path)


def make(data_dir, **values):
    return run_config.from_values({'data_dir': data_dir, 'model_dir': '/tmp/never_made', **values})


def test_the_data_set_decides_what_is_not_given(data_dir):
    config = make(data_dir)
    assert config.model.num_label_classes == 7
    assert config.data.label_base == 0
    assert config.data.num_train_images == 1000
    assert config.class_names == tuple('abcdefg')
    assert config.data.eval_batch_size == config.data.batch_size == 128
    assert config.optimization.input_image_size == 224


def test_without_a_description_it_is_imagenet(tmp_path):
    config = make(str(tmp_path))
    assert (config.model.num_label_classes, config.data.label_base) == (1000, 1)
    assert config.data.num_train_images == 1281167
    assert make(str(tmp_path), num_label_classes=1001).model.num_label_classes == 1001


def test_what_is_given_stays_whatever_is_derived(tmp_path):
    given = dict(label_base=0, eval_batch_size=7, num_train_images=5, train_epochs=2.0,
                 save_checkpoints_steps=3, input_image_size=40, dump_dir='/tmp/dump')
    config = make(str(tmp_path), **given)
    groups = [getattr(config, group) for group in ('data', 'optimization', 'run', 'runtime')]
    found = {name: getattr(group, name) for group in groups for name in given
             if hasattr(group, name)}
    assert found == given
    # An empty name is none.
    assert make(str(tmp_path), dump_dir='').runtime.dump_dir == '/tmp/never_made/dump'


def test_a_background_class_has_a_name_too(tmp_path):
    schema.DatasetInfo(name='birds', num_classes=2, class_names=('robin', 'wren'), label_base=1,
                       num_images={'train': 10, 'validation': 10}).save(str(tmp_path))
    assert make(str(tmp_path)).class_names == ('robin', 'wren')
    config = make(str(tmp_path), num_label_classes=3)
    assert config.class_names == ('background', 'robin', 'wren')


def test_derived_values(data_dir):
    config = make(data_dir, batch_size=64, train_epochs=3.0)
    assert config.steps_per_epoch == 1000 / 64
    assert config.total_steps == 47
    assert config.steps_per_eval == 78
    assert config.learning_rate == pytest.approx(0.016 / 4)
    assert make(data_dir, train_steps=5).total_steps == 5
    assert make(data_dir).total_steps == round(350 * 1000 / 128)
    two_devices = dataclasses.replace(config, num_ranks=2)
    assert two_devices.global_batch_size == 128
    assert two_devices.learning_rate == pytest.approx(0.008)


@pytest.mark.parametrize('values, message', [
    (dict(train_steps=5, train_epochs=1.0), '--train_steps and --train_epochs'),
    (dict(save_checkpoints_steps=5, save_checkpoints_secs=1.0), '--save_checkpoints_steps and'),
    (dict(stop_at='tomorrow'), '--stop_at=tomorrow: not a date'),
    (dict(stop_at='2020-02-30T10:00'), '--stop_at=2020-02-30T10:00: not a date'),
    (dict(stop_at='2020-02-03T10:00'), '--stop_at=2020-02-03T10:00: already in the past'),
    (dict(max_hours=0.0), '--max_hours=0.0: must be above 0'),
    (dict(num_label_classes=9), '--num_label_classes=9: contradicts'),
    (dict(label_base=1), '--label_base=1: contradicts'),
    (dict(num_train_images=999), '--num_train_images=999: contradicts'),
    (dict(num_eval_images=101), '--num_eval_images=101: more than the 100'),
    (dict(freeze='blocks_3-16'), "'blocks_3-16' is not a part.*blocks_0 to blocks_15"),
    (dict(freeze='stem,blocks_0-15,head'), 'no part is left to train'),
    (dict(head_learning_rate_multiplier=0.0), 'head_learning_rate_multiplier=0.0: must be above'),
    (dict(batch_size=0), '--batch_size=0: must be at least 1'),
    (dict(survival_prob=0.0), '--survival_prob=0.0: must be above 0'),
    (dict(dropout_rate=1.0), '--dropout_rate=1.0: must be below 1'),
    (dict(min_crop_area=1.5), '--min_crop_area=1.5: must be at most 1'),
    (dict(base_learning_rate=float('nan')), '--base_learning_rate=nan: must be a finite number'),
    (dict(model_dir=''), '--model_dir: not given'),
    (dict(model_dir='gs://runs/[1]'), 'finds no checkpoints in a directory with'),
    (dict(eval_name='x' * 201), '--eval_name=.* at most 200 bytes'),
    (dict(eval_name='\u00e9' * 101), '--eval_name=.* at most 200 bytes'),
    (dict(eval_name='\udcff'), '--eval_name=.* without slashes'),
    (dict(eval_name='a/b'), '--eval_name=.* without slashes'),
    (dict(lr_decay_epoch=1e-40), '--lr_decay_epoch=1e-40: must be at least 0.001'),
    (dict(loss_scale='1e39'), '--loss_scale=1e39: must be none'),
    (dict(transpose_input=True, data_format='channels_first'), '--transpose_input')])
def test_contradictions_and_ranges_are_one_sentence(data_dir, values, message):
    with pytest.raises(UserError, match=message):
        make(data_dir, **values)


def test_the_deadline_is_the_earlier_of_two(data_dir):
    assert make(data_dir).deadline(1e9) is None
    assert make(data_dir, max_hours=0.5).deadline(1e9) == 1e9 + 1800
    # 4102444800 is the first second of 2100 in UTC.
    for text in ('2100-01-01T00:00Z', '2100-01-01T08:00:00+08:00', '2099-12-31T16:30:00-07:30'):
        assert make(data_dir, stop_at=text).deadline(1e9) == 4102444800
        assert make(data_dir, stop_at=text, max_hours=0.5).deadline(1e9) == 1e9 + 1800
    local = time.mktime(time.strptime('2100-06-01T18:00', '%Y-%m-%dT%H:%M'))
    assert make(data_dir, stop_at='2100-06-01T18:00').deadline(0) == local


def test_checkpoints_come_by_steps_or_by_the_clock(data_dir):
    assert make(data_dir).run.save_checkpoints_steps == 1000
    run = make(data_dir, save_checkpoints_secs=5.0).run
    assert (run.save_checkpoints_steps, run.save_checkpoints_secs) == (None, 5.0)


def test_the_accelerator_of_an_earlier_version_is_the_same_by_another_name(data_dir, tmp_path):
    config = make(data_dir, model_dir=str(tmp_path), accelerator='host').continued(None, 0)
    config.save()
    path = tmp_path / 'config.json'
    path.write_text(path.read_text().replace('"stock"', '"host"'))
    stored = run_config.load(str(tmp_path))
    assert stored.runtime.accelerator == 'stock'
    assert len(config.continued(stored, 5).segments) == 1


def test_an_unknown_setting_is_an_error(data_dir):
    with pytest.raises(KeyError):
        make(data_dir, batchsize=3)


def test_a_saved_configuration_comes_back(data_dir, tmp_path):
    config = make(data_dir, model_dir=str(tmp_path), label_smoothing=0.2)
    assert run_config.load(str(tmp_path)) is None
    config.save()
    assert run_config.load(str(tmp_path)) == config
    # What the data set, the model and other settings decide is not the user's.
    assert config.changed_settings == ('data_dir', 'label_smoothing', 'model_dir')
    with open(tmp_path / run_config.CONFIG_FILE, 'r+') as file:
        saved = json.load(file)
        saved['model']['depth'] = 3
        file.seek(0)
        json.dump(saved, file)
        file.truncate()
    with pytest.raises(UserError, match='config.json: corrupt'):
        run_config.load(str(tmp_path))


@pytest.mark.parametrize('group, name, value', [
    ('optimization', 'input_image_size', 'abc'), ('optimization', 'input_image_size', 7),
    ('model', 'num_label_classes', 'x'), ('model', 'model_name', 'nope'),
    ('model', 'width_coefficient', 'w'), ('data', 'num_train_images', 0), ('data', 'data_dir', 5),
    ('data', 'batch_size', True), ('data', 'batch_size', None), ('run', 'eval_once', 1),
    (None, 'num_ranks', 'x'), (None, 'num_ranks', 0), (None, 'class_names', ['only']),
    (None, 'class_names', [1] * 10), (None, 'changed_settings', 'x')])
def test_a_saved_value_that_no_flag_has_made_is_told(data_dir, tmp_path, group, name, value):
    make(data_dir, model_dir=str(tmp_path)).save()
    path = tmp_path / run_config.CONFIG_FILE
    saved = json.loads(path.read_text())
    (saved[group] if group else saved)[name] = value
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=f'config.json: .*{name}.*; remove the file'):
        run_config.load(str(tmp_path))


def test_no_saved_value_is_a_traceback(data_dir, tmp_path):
    """Each value of config.json, also of its segments, replaced by one of another kind."""
    config = make(data_dir, model_dir=str(tmp_path))
    config.continued(None, 0).save()
    path, num_refused = tmp_path / run_config.CONFIG_FILE, 0
    saved = json.loads(path.read_text())
    places = [saved, *(saved[group] for group in GROUPS), saved['segments'][0],
              saved['segments'][0]['data']]
    for place in places:
        for key, value in list(place.items()):
            for odd in (None, True, -1, 'x', [[]], {'x': []}):
                place[key] = odd
                path.write_text(json.dumps(saved))
                try:
                    run_config.load(str(tmp_path))
                except UserError as error:
                    num_refused += 1
                    assert str(path) in str(error) and '\n' not in str(error)
            place[key] = value
    assert num_refused > 400


@pytest.mark.parametrize('fields, message', [
    (dict(num_classes=10 ** 9), '--num_label_classes=1000000000: must be at most 1000000'),
    (dict(num_images={'train': 0, 'validation': 1}), '--num_train_images=0: must be at least 1'),
    (dict(num_images={'train': 10 ** 17, 'validation': 1}), '--num_train_images=1000.* at most')])
def test_what_the_data_set_says_has_the_limits_of_flags(data_dir, fields, message):
    path = os.path.join(data_dir, schema.DATASET_INFO_NAME)
    with open(path) as file:
        info = json.load(file)
    with open(path, 'w') as file:
        json.dump({**info, 'class_names': [], **fields}, file)
    with pytest.raises(UserError, match=f'{message}.*comes from dataset_info.json'):
        make(data_dir)


def test_an_epoch_has_not_the_images_that_are_held_out(data_dir):
    for index in range(8):
        open(os.path.join(data_dir, schema.shard_name(schema.TRAIN, index, 8)), 'w').close()
    values = dict(holdout_shards=6, max_bad_records=1, batch_size=50)
    config = make(data_dir, train_epochs=2.0, **values)
    assert config.data.num_train_images == 250 and config.total_steps == 10
    assert make(data_dir, num_train_images=300, **values).data.num_train_images == 300
    with pytest.raises(UserError, match='no file matches train'):
        make(os.path.dirname(__file__), holdout_shards=1)


FIELDS = [field for fields in by_group().values() for field in fields]
# Whatever an argument of a process can be: any bytes but 0. Half of the numbers are in their range.
VALUES = strategies.one_of(
    strategies.binary(max_size=6).map(lambda data: os.fsdecode(data.replace(b'\0', b' '))),
    strategies.integers().map(str), strategies.floats().map(str),
    strategies.integers(0, 9).map(str), strategies.floats(0, 1).map(str),
    strategies.sampled_from([
        'none', 'dynamic', 'true', '0x10', '1_000', '\u0663', '0|5|10-20', '|', 'stem,blocks_0-1',
        'blocks_1-0', 'all_but_head', '9999-12-31T23:59', '2026-11-24T18:00+99:00', '0001-01-01']))


def flags_of(field):
    values = VALUES
    if field.metadata['choices']:
        values |= strategies.sampled_from(field.metadata['choices'])
    return values.map(lambda value: f'--{field.name}={value}')


@settings(max_examples=500, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))
@given(strategies.lists(strategies.one_of(*map(flags_of, FIELDS)), min_size=1, max_size=3))
def test_any_flags_give_a_whole_configuration_or_one_sentence(arguments):
    holder = flags.FlagValues()
    run_config.define_flags(holder)
    try:
        holder(['main.py', '--data_dir=synthetic', '--model_dir=/tmp/never_made', *arguments])
        config = run_config.from_values({field.name: holder[field.name].value for field in FIELDS})
    except (flags.Error, UserError) as error:
        assert str(error)
        return
    assert config.total_steps >= 1 and config.steps_per_eval >= 1 and config.learning_rate > 0
    assert config.runtime.dump_steps and config.frozen_parts is not None
    assert (config.deadline(0.0) is None) == (not config.run.max_hours and not config.run.stop_at)


def test_the_configuration_of_an_archive_is_that_of_its_run(tmp_path):
    model_dir = str(tmp_path)
    made = run_config.from_values({'data_dir': 'synthetic', 'model_dir': model_dir})
    assert run_config.of_folder(model_dir) is None
    made.save()
    (tmp_path / 'archive').mkdir()
    for path in (model_dir, f'{model_dir}/', f'{model_dir}/archive', f'{model_dir}/archive//'):
        assert run_config.of_folder(path) == made
    assert run_config.of_folder(f'{model_dir}/export') is None


def test_an_evaluation_computes_as_its_run_unless_it_is_told_otherwise(data_dir, monkeypatch):
    """The ways to ask for a precision exclude each other: who gives one gives all."""
    run_config.from_values({'data_dir': data_dir, 'model_dir': data_dir,
                            'precision_mode': 'force_fp32', 'input_image_size': 32}).save()
    for arguments, expected in ([], ('force_fp32', None)), (
            ['--precision_mode_v2=mixed_float16'], (None, 'mixed_float16')):
        holder = flags.FlagValues()
        run_config.define_flags(holder)
        holder(['main.py', '--mode=eval', '--eval_once', f'--model_dir={data_dir}', *arguments])
        monkeypatch.setattr(flags, 'FLAGS', holder)
        config = command_line.from_flags()
        assert (config.runtime.precision_mode, config.runtime.precision_mode_v2) == expected
        assert config.optimization.input_image_size == 32


@pytest.mark.parametrize('arguments, expected', [
    ([], 1e-4), (['--lars_weight_decay=1e-3'], 1e-3), (['--lars_weight_decay=1e-5'], 1e-5)])
def test_a_run_that_goes_on_keeps_the_weight_decay_of_lars(
        tmp_path, monkeypatch, arguments, expected):
    """Its default was 1e-4 in earlier versions."""
    holder = flags.FlagValues()
    run_config.define_flags(holder)
    monkeypatch.setattr(flags, 'FLAGS', holder)
    holder(['main.py', '--data_dir=synthetic', f'--model_dir={tmp_path}', *arguments])
    if not arguments:
        assert command_line.from_flags().optimization.lars_weight_decay == 1e-5
    run_config.from_values({'data_dir': 'synthetic', 'model_dir': str(tmp_path),
                            'lars_weight_decay': 1e-4}).save()
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.train.get_or_create_global_step()
        session.run(step.initializer)
        tf.train.Saver().save(session, f'{tmp_path}/model.ckpt', step)
    assert command_line.from_flags().optimization.lars_weight_decay == expected
