"""The segments of a run: what counts as another setting, and what is kept of a run's own."""
import json
import os
import threading
import time

from absl import flags
import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from config import command_line
from config import run_config
from config import segments
from tfrecords import schema


def make(**values):
    return run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': '/tmp/never_made', 'train_steps': 9, **values})


def went_on(earlier, now, step=5):
    """The configuration of a run that goes on, after what was saved of it is read again."""
    earlier.continued(None, 0).save()
    return now.continued(run_config.load(earlier.run.model_dir), step)


def test_micro_batches_count_as_images(tmp_path):
    """In the learning rate, in epochs, and in the images that earlier segments saw."""
    values = {'model_dir': str(tmp_path), 'batch_size': 8, 'num_train_images': 320}
    earlier = make(**values)
    now = went_on(earlier, make(gradient_accumulation_steps=4, **values))
    assert (earlier.global_batch_size, now.global_batch_size) == (8, 32)
    assert now.learning_rate == 4 * earlier.learning_rate
    assert now.steps_per_epoch == 10
    assert now.epoch_at(7) == pytest.approx((5 * 8 + 2 * 32) / 320)


@pytest.mark.parametrize('values, expected', [
    ({}, {}), ({'label_smoothing': 0.2}, {'label_smoothing': (0.1, 0.2)}),
    ({'input_image_size': 96}, {})])
def test_a_setting_that_an_earlier_version_lacked_was_its_default(values, expected):
    """One that is derived from others is not known."""
    before, now = make().settings, make(**values).settings
    del before['optimization']['label_smoothing'], before['optimization']['input_image_size']
    assert segments.changes(before, now) == expected
    earlier = segments.Segment(0, before)
    assert len(segments.continued([earlier], 5, now)) == 1 + bool(expected)


def test_a_segment_of_an_earlier_version_is_read(tmp_path):
    config = make(model_dir=str(tmp_path))
    config.continued(None, 0).save()
    path = tmp_path / 'config.json'
    saved = json.loads(path.read_text())
    for settings in (saved, *saved['segments']):
        del settings['optimization']['label_smoothing']
    path.write_text(json.dumps(saved))
    for values, num_segments in (({}, 1), ({'label_smoothing': 0.2}, 2)):
        now = make(model_dir=str(tmp_path), **values).continued(
            run_config.load(str(tmp_path)), 5)
        assert len(now.segments) == num_segments
        assert set(now.changes_at(5)) == set(values)


def test_a_folder_that_is_spelled_otherwise_is_no_other_setting(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'link').symlink_to('data')
    monkeypatch.chdir(tmp_path)
    values = {'model_dir': str(tmp_path), 'num_label_classes': 10}
    earlier = make(data_dir=str(tmp_path / 'data'), **values)
    for data_dir in ('data', './data/', 'link', f'{tmp_path}/../{tmp_path.name}/data'):
        assert went_on(earlier, make(data_dir=data_dir, **values)).changes_at(5) == {}
    (tmp_path / 'other').mkdir()
    now = went_on(earlier, make(data_dir='other', **values))
    assert now.changes_at(5) == {'data_dir': (str(tmp_path / 'data'), 'other')}


def test_a_run_whose_configuration_is_lost_counts_from_its_beginning(tmp_path):
    """The settings that it goes on with are the likeliest of the steps before."""
    config = make(model_dir=str(tmp_path), batch_size=48).continued(
        run_config.load(str(tmp_path)), 6)
    assert [segment.step for segment in config.segments] == [0]
    assert config.position(6) == 6 and config.changes_at(6) == {}


@pytest.fixture
def from_flags(monkeypatch):
    """from_flags(flag, ...) -> the `Config` of a command line."""
    def parse(*arguments):
        holder = flags.FlagValues()
        run_config.define_flags(holder)
        holder(['main.py', *arguments])
        monkeypatch.setattr(flags, 'FLAGS', holder)
        return command_line.from_flags()

    return parse


def save_checkpoint(model_dir, step):
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable('efficientnet-b0/head/dense/bias', initializer=tf.zeros([7]))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, os.path.join(str(model_dir), 'model.ckpt'), step)


def test_an_evaluation_that_begins_before_its_run_has_the_runs_settings(tmp_path, from_flags):
    run = make(model_dir=str(tmp_path / 'run'), input_image_size=64, batch_size=24,
               num_label_classes=7)

    def train():
        time.sleep(0.3)
        os.mkdir(run.run.model_dir)
        run.continued(None, 0).save()
        save_checkpoint(run.run.model_dir, 3)

    training = threading.Thread(target=train)
    training.start()
    config = from_flags('--mode=eval', f'--model_dir={run.run.model_dir}', '--eval_timeout=60')
    training.join()
    assert (config.optimization.input_image_size, config.data.batch_size,
            config.model.num_label_classes) == (64, 24, 7)


def test_an_evaluation_of_a_run_that_never_begins_ends(tmp_path, from_flags):
    with pytest.raises(UserError, match='no checkpoint within 1 seconds; check the path'):
        from_flags('--mode=eval', f'--model_dir={tmp_path}', '--eval_timeout=1')


def test_names_to_show_do_not_become_those_of_the_run(tmp_path, from_flags):
    """The file is named in the first start only, or in the second."""
    names, shown = tuple('abcdefg'), tuple('tuvwxyz')
    data_dir, model_dir = tmp_path / 'data', tmp_path / 'run'
    data_dir.mkdir()
    model_dir.mkdir()
    schema.DatasetInfo(name='birds', num_classes=7, class_names=names, label_base=0,
                       num_images={'train': 1000, 'validation': 100}).save(str(data_dir))
    (tmp_path / 'names.txt').write_text('\n'.join(shown))
    file_flag = f'--class_names={tmp_path}/names.txt'
    training = (f'--data_dir={data_dir}', f'--model_dir={model_dir}', '--mode=train')
    begun = from_flags(*training, file_flag).continued(None, 0)
    assert (begun.class_names, begun.shown_class_names) == (names, shown)
    begun.save()
    save_checkpoint(model_dir, 3)
    for more, expected in (((), names), ((file_flag,), shown)):
        config = from_flags(*training, *more).continued(run_config.load(str(model_dir)), 3)
        assert (config.class_names, config.shown_class_names) == (names, expected)
