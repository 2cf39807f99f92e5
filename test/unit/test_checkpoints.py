"""Which weights are restored, which checkpoint is refused, which is archived."""
import glob
import json
import os
import re

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import repair
from checkpoints import restore
from checkpoints import store
from checkpoints.best import archive_if_best
from checkpoints.best import best_evaluation
from common.errors import UserError
from config import run_config
from training import ending
from training import optimization


def save_checkpoint(folder, step, value=1.0, model_name='efficientnet-b0', num_classes=10,
                    write_state=True):
    """A checkpoint with one averaged weight, and a classifier's bias to know its model by."""
    with tf.Graph().as_default(), tf.Session() as session:
        global_step = tf.train.get_or_create_global_step()
        weight = tf.get_variable('weight', initializer=value)
        tf.get_variable(f'{model_name}/head/dense/bias', [num_classes],
                        initializer=tf.zeros_initializer())
        average = optimization.MovingAverage(restore.ema_variables(), 0.5).apply()
        session.run(tf.global_variables_initializer())
        session.run(tf.local_variables_initializer())
        session.run(tf.assign(weight, value + 1))
        session.run([average, tf.assign(global_step, step)])
        return tf.train.Saver().save(
            session, os.path.join(folder, 'model.ckpt'), step, write_state=write_state)


@pytest.mark.parametrize('name', ['run', '[r]un *?', 'r\\un'])
def test_ema_and_raw_weights_are_told_apart(tmp_path, name):
    checkpoint = save_checkpoint(str(tmp_path / name), 7, value=1.0)
    assert store.latest(str(tmp_path / name)) == checkpoint
    values = {}
    for weights in (restore.RAW, restore.EMA):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.train.get_or_create_global_step()
            weight = tf.get_variable('weight', [])
            restore.weights_saver(weights, checkpoint).restore(session, checkpoint)
            values[weights] = session.run(weight)
    assert values == {restore.RAW: 2.0, restore.EMA: 1.5}
    assert restore.has_ema(checkpoint)
    assert store.step_of(checkpoint) == 7
    assert store.step_of(None) == 0


def test_a_slash_too_many_hides_nothing(tmp_path):
    save_checkpoint(str(tmp_path), 4)
    checkpoint = store.latest(f'{tmp_path}//')
    assert store.step_of(checkpoint) == 4
    assert archive_if_best(f'{tmp_path}//', checkpoint, {'step': 4, 'top_1': 0.5})
    store.verify(store.latest(str(tmp_path / 'archive')))


@pytest.mark.parametrize('name', ['checkpoint', 'archive/best_eval.json'])
@pytest.mark.parametrize('make, words', [
    (os.mkdir, 'is a directory'), (os.mkfifo, 'not a regular file')])
def test_what_is_no_file_is_told(tmp_path, name, make, words):
    model_dir = saved(tmp_path, 1)
    (tmp_path / 'archive').mkdir()
    if os.path.exists(tmp_path / name):
        os.remove(tmp_path / name)
    make(tmp_path / name)
    with pytest.raises(UserError, match=f'{name}: {words}'):
        repair.repair(model_dir)


@pytest.mark.parametrize('text', ['{', '5', '[1]', '{"a": 1}', '{"checkpoint": 1, "step": 2}',
                                  '{"checkpoint": "c", "step": 2, "top_1": null}'])
def test_a_damaged_note_of_the_best_is_told(tmp_path, text):
    (tmp_path / 'archive').mkdir()
    (tmp_path / 'archive' / 'best_eval.json').write_text(text)
    with pytest.raises(UserError, match='best_eval.json: .*; remove the file'):
        repair.repair(str(tmp_path))


@pytest.mark.parametrize('model_name, num_classes, message', [
    ('efficientnet-b1', 10, 'efficientnet-b0, not efficientnet-b1'),
    ('efficientnet-b0', 11, '10 classes, not 11')])
def test_another_model_is_refused(tmp_path, model_name, num_classes, message):
    checkpoint = save_checkpoint(str(tmp_path), 1)
    restore.check_model(checkpoint, 'efficientnet-b0', 10)
    with pytest.raises(UserError, match=message):
        restore.check_model(checkpoint, model_name, num_classes)


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoint = save_checkpoint(str(tmp_path), 1)
    with open(checkpoint + '.index', 'w') as file:
        file.write('no index')
    with pytest.raises(UserError, match='model.ckpt-1: not a readable checkpoint'):
        restore.check_model(checkpoint, 'efficientnet-b0', 10)


def test_the_archive_holds_the_best_checkpoint(tmp_path):
    model_dir = str(tmp_path)
    top_1_by_step = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.5}
    archived = [archive_if_best(
        model_dir, save_checkpoint(model_dir, step, value=float(step)),
        {'step': step, 'top_1': top_1}) for step, top_1 in top_1_by_step.items()]
    assert archived == [True, True, False, False]
    assert best_evaluation(model_dir)['step'] == 2
    archive = os.path.join(model_dir, store.ARCHIVE_DIR)
    best = tf.train.latest_checkpoint(archive)
    assert os.path.basename(best) == 'model.ckpt-2'
    np.testing.assert_equal(tf.train.load_variable(best, 'weight'), 3.0)
    assert not [name for name in os.listdir(archive) if 'ckpt-1' in name or name.endswith('.tmp')]


@pytest.mark.parametrize('first, second, is_better', [
    (dict(num_images=1000), dict(num_images=3), False),
    (dict(num_images=3), dict(num_images=1000, top_1=0.1), True),
    (dict(num_images=1000), dict(num_images=1000, name='other'), False),
    (dict(num_images=1000, name='other'), dict(num_images=1000, name=None, top_1=0.1), True),
    (dict(num_images=1000, name='other'), dict(num_images=1000, name='other'), True),
    (dict(num_images=1000), dict(num_images=1000, top_1=0.5), False)])
def test_a_quick_look_displaces_no_whole_evaluation(
        tmp_path, caplog, first, second, is_better):
    model_dir = str(tmp_path)
    caplog.set_level('INFO', 'absl')
    assert archive_if_best(
        model_dir, save_checkpoint(model_dir, 1), {'step': 1, 'top_1': 0.5, **first})
    assert archive_if_best(
        model_dir, save_checkpoint(model_dir, 2), {'step': 2, 'top_1': 0.9, **second}) == is_better
    assert best_evaluation(model_dir)['step'] == 1 + is_better
    # Who asked for the second one learns why it is not archived, if its top-1 is no reason.
    assert ('Not archived' in caplog.text) == (not is_better and second.get('top_1') != 0.5)


def test_a_copy_that_fails_leaves_the_old_best_whole(tmp_path, monkeypatch):
    model_dir = str(tmp_path)
    archive_if_best(model_dir, save_checkpoint(model_dir, 1), {'step': 1, 'top_1': 0.1})
    second = save_checkpoint(model_dir, 2)

    def full_disk(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device')

    monkeypatch.setattr(tf.gfile, 'Copy', full_disk)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        archive_if_best(model_dir, second, {'step': 2, 'top_1': 0.9})
    archive = os.path.join(model_dir, store.ARCHIVE_DIR)
    assert best_evaluation(model_dir)['step'] == 1
    assert store.step_of(tf.train.latest_checkpoint(archive)) == 1
    with open(os.path.join(archive, 'best_eval.json')) as file:
        assert json.load(file)['checkpoint'] == 'model.ckpt-1'


def test_a_rank_goes_on_from_the_checkpoint_of_rank_0(tmp_path):
    leader, follower = str(tmp_path / 'run'), str(tmp_path / 'run_rank_1')
    for folder, steps in ((leader, (1, 2)), (follower, (1, 2, 3))):
        os.mkdir(folder)
        for step in steps:
            save_checkpoint(folder, step, value=10.0 if folder == leader else 20.0)
    repair.sync_from_rank_0(leader, follower)
    assert store.step_of(store.latest(follower)) == 2
    assert tf.train.load_variable(store.latest(follower), 'weight') == 11.0
    assert {name.split('.')[1] for name in os.listdir(follower) if '.' in name} == {'ckpt-2'}


def test_a_rank_begins_where_rank_0_has_no_checkpoint(tmp_path):
    os.mkdir(tmp_path / 'run')
    repair.sync_from_rank_0(str(tmp_path / 'run'), str(tmp_path / 'new'))
    (tmp_path / 'run_rank_1').mkdir()
    save_checkpoint(str(tmp_path / 'run_rank_1'), 3)
    repair.sync_from_rank_0(str(tmp_path / 'run'), str(tmp_path / 'run_rank_1'))
    assert store.latest(str(tmp_path / 'run_rank_1')) is None
    assert os.listdir(tmp_path / 'run_rank_1') == []


def test_a_rank_that_cannot_see_rank_0_does_not_guess(tmp_path):
    repair.sync_from_rank_0(str(tmp_path / 'elsewhere'), str(tmp_path))
    save_checkpoint(str(tmp_path), 3)
    with pytest.raises(UserError, match='elsewhere of rank 0 is not visible'):
        repair.sync_from_rank_0(str(tmp_path / 'elsewhere'), str(tmp_path))
    assert store.step_of(store.latest(str(tmp_path))) == 3


def damage(path):
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b'damaged!')


def saved(folder, *steps):
    """The folder, with a checkpoint of each step, which the file `checkpoint` lists."""
    os.makedirs(str(folder), exist_ok=True)
    for step in steps:
        save_checkpoint(str(folder), step)
    tf.train.update_checkpoint_state(
        str(folder), f'model.ckpt-{steps[-1]}', [f'model.ckpt-{step}' for step in steps])
    return str(folder)


def test_what_cannot_be_read_is_not_the_latest(tmp_path):
    model_dir = saved(tmp_path, 5, 10, 20)
    data = os.path.join(model_dir, 'model.ckpt-{}.data-00000-of-00001')
    damage(data.format(20))
    # The bytes are all there, only wrong.
    assert store.step_of(store.latest(model_dir)) == 20
    assert store.step_of(store.latest_intact(model_dir)) == 10
    os.truncate(data.format(20), 10)
    os.remove(data.format(10))
    assert store.step_of(store.latest(model_dir)) == 5
    damage(os.path.join(model_dir, 'model.ckpt-5.index'))
    assert store.latest(model_dir) is None
    with pytest.raises(UserError, match='model.ckpt-20: corrupt, and no earlier checkpoint exists'):
        repair.repair(model_dir)


@pytest.mark.parametrize('state', ['', 'no such text', b'\xff\x00', None])
def test_the_list_of_checkpoints_may_be_damaged(tmp_path, state):
    model_dir = saved(tmp_path, 9, 10)
    path = tmp_path / 'checkpoint'
    if state is None:
        path.unlink()
    else:
        path.write_bytes(state if isinstance(state, bytes) else state.encode())
    repair.repair(model_dir)
    assert tf.train.latest_checkpoint(model_dir) == store.latest(model_dir)
    assert store.step_of(store.latest(model_dir)) == 10


def test_repair_keeps_what_is_whole_and_removes_what_was_not_finished(tmp_path):
    model_dir = saved(tmp_path, 5, 10, 20)
    archive_if_best(model_dir, store.latest(model_dir),
                                {'step': 20, 'top_1': 0.5})
    os.truncate(os.path.join(model_dir, 'model.ckpt-20.data-00000-of-00001'), 1)
    for name in ('model.ckpt-30.data-00000-of-00001.tempstate123', 'checkpoint.tmp0a1b',
                 'config.json.tmp', 'model.ckpt-10.meta.tmp0123456789abcdef'):
        (tmp_path / name).write_text('')
    (tmp_path / 'model.ckpt-30_temp_ab' / 'part').mkdir(parents=True)
    (tmp_path / 'model.ckpt-30_temp_cd').symlink_to(tmp_path / 'notes.tmp')
    of_the_user = {'notes.tmp', 'build.tmp', 'model.tmpcafe', 'checkpoint.tmp.txt'}
    for name in of_the_user:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_text('years of work')
    # Killed between the copy of the best and the file that TensorFlow reads.
    tf.train.update_checkpoint_state(str(tmp_path / 'archive'), 'model.ckpt-5')
    repair.repair(model_dir)
    state = tf.train.get_checkpoint_state(model_dir)
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == [
        'model.ckpt-5', 'model.ckpt-10']
    assert tf.train.latest_checkpoint(model_dir) == os.path.join(model_dir, 'model.ckpt-10')
    assert {name.split('.')[1] for name in os.listdir(tmp_path / 'damaged')} == {'ckpt-20'}
    assert {name for name in os.listdir(tmp_path)
            if 'temp' in name or '.tmp' in name} == of_the_user
    store.verify(tf.train.latest_checkpoint(str(tmp_path / 'archive')))


UNFINISHED = ('model.ckpt-10.meta.tmp0123456789abcdef',
              'model.ckpt-10.data-00000-of-00001.tempstate12')


def test_what_a_kill_has_left_is_not_archived(tmp_path):
    model_dir = saved(tmp_path, 10)
    for name in UNFINISHED:
        (tmp_path / name).write_text('half')
    archive_if_best(model_dir, store.latest(model_dir), {'step': 10, 'top_1': 0.5})
    assert sorted(os.listdir(tmp_path / 'archive')) == [
        'best_eval.json', 'checkpoint', 'model.ckpt-10.data-00000-of-00001', 'model.ckpt-10.index',
        'model.ckpt-10.meta']


def test_what_a_kill_has_left_is_not_copied_to_object_storage(tmp_path):
    model_dir = saved(tmp_path / 'run', 10)
    (tmp_path / 'run' / 'archive').mkdir()
    for name in (*UNFINISHED, 'archive/best_eval.json.tmp', 'archive/model.ckpt-8-again.index.tmp'):
        (tmp_path / 'run' / name).write_text('half')
    (tmp_path / 'run' / 'model.ckpt-30_temp_ab').mkdir()
    (tmp_path / 'run' / 'model.ckpt-30_temp_ab' / 'part').write_text('half')
    (tmp_path / 'run' / 'notes.tmp').write_text('years of work')
    config = run_config.from_values({'data_dir': 'synthetic', 'model_dir': model_dir,
                                     'obs_dir': str(tmp_path / 'copy')})
    ending.copy_results(config, 0, model_dir)
    assert sorted(os.listdir(tmp_path / 'copy')) == [
        'archive', 'checkpoint', 'model.ckpt-10.data-00000-of-00001', 'model.ckpt-10.index',
        'model.ckpt-10.meta', 'notes.tmp']
    assert not os.listdir(tmp_path / 'copy' / 'archive')


def test_a_checkpoint_that_is_gone_becomes_no_best(tmp_path):
    """A training that goes on removes old ones while an evaluation beside it copies them."""
    model_dir = saved(tmp_path, 1, 2)
    first, second = (str(tmp_path / f'model.ckpt-{step}') for step in (1, 2))
    archive_if_best(model_dir, first, {'step': 1, 'top_1': 0.1})
    store.remove(second)
    with pytest.raises(UserError, match='model.ckpt-2: .* has been removed; .*keep_checkpoint'):
        archive_if_best(model_dir, second, {'step': 2, 'top_1': 0.9})
    assert best_evaluation(model_dir)['step'] == 1
    store.verify(store.latest(str(tmp_path / 'archive')))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable('weight', [])
        saver = restore.weights_saver(restore.RAW, first)
        store.remove(first)
        with pytest.raises(UserError, match='model.ckpt-1: .* has been removed'):
            saver.restore(session, first)


def test_half_a_copy_does_not_stay(tmp_path, monkeypatch):
    checkpoint, copied = save_checkpoint(str(tmp_path), 1), []
    copy = tf.gfile.Copy

    def full_disk(source, target, overwrite):
        if copied:
            raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device')
        copied.append(target)
        copy(source, target, overwrite)

    monkeypatch.setattr(tf.gfile, 'Copy', full_disk)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        store.copy(checkpoint, str(tmp_path / 'archive'), 'best')
    assert copied and not os.listdir(tmp_path / 'archive')


def test_whoever_waits_for_checkpoints_learns_that_their_folder_is_gone(tmp_path):
    model_dir = saved(tmp_path / 'run', 1)
    found = store.arriving(model_dir, None, lambda last: 'more')
    assert next(found) == os.path.join(model_dir, 'model.ckpt-1')
    os.rename(model_dir, tmp_path / 'elsewhere')
    with pytest.raises(UserError, match=f'{model_dir}: removed or renamed while'):
        next(found)
    with pytest.raises(UserError, match=f'{model_dir}: removed or renamed while'):
        repair.wait_for_checkpoint(model_dir, 2)


def test_a_damaged_newest_checkpoint_has_the_step_of_its_name(tmp_path):
    """Until it is repaired, by whoever begins to train."""
    model_dir = saved(tmp_path, 10, 20)
    checkpoint = os.path.join(model_dir, 'model.ckpt-20')
    damage(f'{checkpoint}.data-00000-of-00001')
    assert store.latest(model_dir) == checkpoint and store.step_of(checkpoint) == 20
    damage(f'{checkpoint}.index')
    assert store.step_of(checkpoint) == 20
    os.remove(f'{checkpoint}.index')
    assert store.step_of(checkpoint) == 20
    repair.repair(model_dir)
    assert store.step_of(store.latest(model_dir)) == 10


def test_a_folder_that_was_moved_has_its_checkpoints(tmp_path):
    (tmp_path / 'old').mkdir()
    checkpoint = save_checkpoint(str(tmp_path / 'old'), 3)
    tf.train.update_checkpoint_state(str(tmp_path / 'old'), checkpoint)
    os.rename(tmp_path / 'old', tmp_path / 'new one')
    model_dir = str(tmp_path / 'new one')
    repair.repair(model_dir)
    assert store.step_of(tf.train.latest_checkpoint(model_dir)) == 3


def test_the_same_step_once_more_does_not_touch_the_archived_files(tmp_path, monkeypatch):
    model_dir = saved(tmp_path, 4)
    checkpoint = store.latest(model_dir)
    archive_if_best(model_dir, checkpoint, {'step': 4, 'top_1': 0.1})
    archive = os.path.join(model_dir, store.ARCHIVE_DIR)
    first = tf.train.latest_checkpoint(archive)
    archive_if_best(model_dir, checkpoint, {'step': 4, 'top_1': 0.2})
    assert tf.train.latest_checkpoint(archive) != first and not os.path.exists(first + '.index')
    store.verify(tf.train.latest_checkpoint(archive))


@pytest.mark.parametrize('folder', ['run', 'a/../run/', '{tmp_path}/run'])
def test_a_checkpoint_is_named_whatever_the_path_of_its_folder(tmp_path, monkeypatch, folder):
    """After a save, a best evaluation and a repair; the file holds bare names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'run').mkdir()
    folder = folder.format(tmp_path=tmp_path)

    def named(path):
        state = (tmp_path / path / 'checkpoint').read_text()
        assert '/' not in state
        assert tf.train.latest_checkpoint(os.path.join(folder, '..', path)) is not None
        return re.findall(r'all_model_checkpoint_paths: "(.*)"', state)

    def save(step):
        return save_checkpoint(os.path.join(folder, ''), step, write_state=False)
    for step in (5, 10, 20, 30):
        store.add_newest(save(step), keep_max=3)
    assert named('run') == ['model.ckpt-10', 'model.ckpt-20', 'model.ckpt-30']
    assert not glob.glob('run/model.ckpt-5.*')
    # A file of a later step, left by a kill before it was named, is not taken for the newest.
    save(40)
    archive_if_best(folder, store.latest(folder), {'step': 30, 'top_1': 0.5})
    assert named('run/archive') == ['model.ckpt-30']
    damage(str(tmp_path / 'run' / 'model.ckpt-30.data-00000-of-00001'))
    repair.repair(folder)
    assert named('run') == ['model.ckpt-10', 'model.ckpt-20']
    store.add_newest(save(25), keep_max=2)
    assert named('run') == ['model.ckpt-20', 'model.ckpt-25']
