"""What a file system refuses, and files that are there as a whole or not at all."""
import errno
import os

import pytest
import tensorflow.compat.v1 as tf

from common.errors import DiskFullError
from common.errors import UserError
from common.files import check_room
from common.files import described
from common.files import held
from common.files import readable_errors
from common.files import renamed_when_whole
from common.files import whole_file
from config import run_config
from run_log import event_log
from runtime.stock import StockRuntime
from training import restart
from training import summaries


def test_what_is_refused_of_a_file_that_has_no_name_any_more_is_a_sentence():
    with pytest.raises(UserError, match='^No space left on device; make room'):
        with readable_errors():
            with open('/dev/full', 'w') as file:
                file.write('x')


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(tmp_path):
    path = tmp_path / 'file'
    path.write_text('earlier')
    with pytest.raises(KeyboardInterrupt):
        with whole_file(str(path)) as file:
            file.write('half of it')
            raise KeyboardInterrupt
    assert path.read_text() == 'earlier' and os.listdir(tmp_path) == ['file']
    with whole_file(str(path)) as file:
        file.write('Käse')
        assert path.read_text() == 'earlier'
    assert path.read_bytes() == 'Käse'.encode() and os.listdir(tmp_path) == ['file']


def test_a_temporary_file_may_lie_in_another_folder(tmp_path):
    (tmp_path / 'work').mkdir()
    path = tmp_path / 'file'
    with pytest.raises(KeyboardInterrupt):
        with renamed_when_whole(str(path), str(tmp_path / 'work')) as partial_path:
            with open(partial_path, 'w') as file:
                file.write('half of it')
            assert os.listdir(tmp_path / 'work') == ['file.tmp']
            raise KeyboardInterrupt
    assert not os.listdir(tmp_path / 'work') and not path.exists()
    with renamed_when_whole(str(path), str(tmp_path / 'work')) as partial_path:
        with open(partial_path, 'w') as file:
            file.write('whole')
    assert not os.listdir(tmp_path / 'work') and path.read_text() == 'whole'


def test_a_shard_that_is_removed_while_it_is_needed_is_named(tmp_path):
    for name in ('first', 'second'):
        with tf.python_io.TFRecordWriter(str(tmp_path / name)) as writer:
            writer.write(b'record')
    with tf.Graph().as_default(), tf.Session() as session:
        paths = tf.data.Dataset.from_tensor_slices(
            [str(tmp_path / 'first'), str(tmp_path / 'second')])
        record = tf.data.make_one_shot_iterator(
            paths.flat_map(tf.data.TFRecordDataset).repeat()).get_next()
        assert session.run(record) == b'record'
        os.remove(tmp_path / 'second')
        with pytest.raises(UserError, match=f'^{tmp_path}/second; No such file .*; restore what'):
            with readable_errors():
                session.run(record)


def test_a_link_in_the_way_is_not_followed(tmp_path):
    for name in ('victim', 'other'):
        (tmp_path / name).write_text('mine')
    (tmp_path / 'file').symlink_to(tmp_path / 'victim')
    (tmp_path / 'file.tmp').symlink_to(tmp_path / 'other')
    with whole_file(str(tmp_path / 'file')) as file:
        file.write('new')
    assert (tmp_path / 'file').read_text() == 'new' and not (tmp_path / 'file').is_symlink()
    assert {(tmp_path / name).read_text() for name in ('victim', 'other')} == {'mine'}


@pytest.mark.parametrize('name', ['results.jsonl', 'train.lock', 'archive', 'eval_raw', 'damaged'])
def test_a_run_does_not_write_through_links(tmp_path, name):
    elsewhere = tmp_path / 'elsewhere'
    (tmp_path / 'run').mkdir()
    if '.' in name:
        elsewhere.write_text('mine')
    else:
        elsewhere.mkdir()
    (tmp_path / 'run' / name).symlink_to(elsewhere)
    config = run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': str(tmp_path / 'run'), 'train_steps': 1})
    with pytest.raises(UserError, match=f'{tmp_path}/run/{name}: a symbolic link'):
        restart.check_model_dir(config, StockRuntime(config))
        with held(config.run.model_dir):
            pass
    assert elsewhere.read_text() == 'mine' if '.' in name else not os.listdir(elsewhere)


def test_room_is_looked_for_before_a_checkpoint_is_written(tmp_path):
    check_room(str(tmp_path), 1)
    check_room('obs://bucket/run', 10 ** 18)
    with pytest.raises(DiskFullError, match=f'{tmp_path}: No space left on device; make room .1e'):
        check_room(str(tmp_path), 10 ** 18)


@pytest.mark.parametrize('achieves', [False, True])
@pytest.mark.parametrize('number, is_full', [
    (errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_start_on_a_full_disk_leaves_no_events(tmp_path, achieves, number, is_full):
    model_dir = str(tmp_path)
    (tmp_path / 'events.out.tfevents.1.earlier').write_text('earlier')
    with tf.Graph().as_default(), pytest.raises(tf.errors.OpError):
        with restart.undone_on_full_disk(model_dir):
            summaries.SummaryWriter(model_dir, 1).write(1, {'loss': 1.0}, {})
            assert len(os.listdir(tmp_path)) == 2
            if achieves:
                event_log.append(model_dir, 'eval', step=1, weights='raw', top_1=0.5)
            raise tf.errors.UnknownError(None, None, f'x; {os.strerror(number)}')
    remaining = [name for name in os.listdir(tmp_path) if 'tfevents' in name]
    assert len(remaining) == 1 + (achieves or not is_full)


@pytest.mark.parametrize('error', [
    OSError(errno.EROFS, os.strerror(errno.EROFS), '/data/x'),
    tf.errors.UnknownError(None, None, f'/data/x; {os.strerror(errno.EROFS)}')])
def test_the_file_that_is_refused_is_named(error):
    assert str(described(error)).startswith(
        '/data/x; Read-only file system; correct the permissions')
