"""What befalls a run: signals, kills, damaged files, full disks, a second process, NaN.

Each of them happens to a real process, and what it leaves must do for the next one.
"""
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

from conftest import LITE
from conftest import ROOT
from conftest import TINY
import numpy as np
import psutil
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from checkpoints.best import best_evaluation
from common.paths import LOCK_FILE
from run_log import event_log

pytestmark = pytest.mark.slow

FAKES = os.path.join(ROOT, 'test', 'fakes')
NETWORK = (*LITE, '--eval_batch_size=250', '--moving_average_decay=0', '--accelerator=stock')
LONG = ('--train_steps=5000', '--steps_per_eval=5000', '--save_checkpoints_steps=1000')


@pytest.fixture
def main(digits_dir, tmp_path):
    """main(flag, ..., limit=None, VARIABLE=value) -> running process, trains in tmp_path/run."""
    processes = []

    def start(*flags, model_dir=None, limit=None, **environment):
        def prepare():
            # Where the tests run in the background SIGINT is ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        process = subprocess.Popen(
            [sys.executable, 'main.py', f'--data_dir={digits_dir}',
             f"--model_dir={model_dir or tmp_path / 'run'}", *NETWORK, *flags],
            cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, universal_newlines=True, preexec_fn=prepare)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def output_until(process, pattern):
    """What the process says up to a line with the pattern."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return ''.join(lines)
    raise AssertionError(f'{pattern} did not come:\n' + ''.join(lines))


def finish(process, exit_code=0):
    """Waits for the end; returns what the process said since."""
    output = process.communicate(timeout=300)[0]
    assert process.returncode == exit_code, output
    assert 'Traceback' not in output, output
    return output


def error_line(process):
    line, = [line for line in finish(process, 1).splitlines() if 'error:' in line]
    return line


def saved_step(model_dir):
    return store.step_of(store.latest(str(model_dir)))


def events(model_dir, name):
    """The events of a results.jsonl in which every line is whole."""
    with open(os.path.join(str(model_dir), event_log.RESULTS_FILE)) as file:
        return [event for event in map(json.loads, file) if event['event'] == name]


def assert_usable(model_dir):
    """Every checkpoint that TensorFlow would take can be read to its end, the best one as well."""
    for folder in (str(model_dir), os.path.join(str(model_dir), store.ARCHIVE_DIR)):
        checkpoint = tf.train.latest_checkpoint(folder)
        if checkpoint:
            store.verify(checkpoint)
    best = best_evaluation(str(model_dir))
    if best:
        store.verify(
            os.path.join(str(model_dir), store.ARCHIVE_DIR, best['checkpoint']))


# Interruption ------------------------------------------------------------------------------------

@pytest.mark.parametrize('number, exit_code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_at_the_end_of_the_step(main, tmp_path, number, exit_code):
    process = main(*LONG, '--log_step_count_steps=1')
    output_until(process, ' step 3/')
    process.send_signal(number)
    assert 'The same command resumes' in finish(process, exit_code)
    stop, = events(tmp_path / 'run', 'run_stop')
    assert stop['status'] == 'interrupted'
    # Of the steps that were reported none is lost.
    assert saved_step(tmp_path / 'run') == stop['step'] >= events(
        tmp_path / 'run', 'train')[-1]['step'] >= 3


def test_a_second_signal_ends_the_process_in_the_middle_of_a_step(main, tmp_path):
    """A step of many seconds, in which Python sees no signal."""
    process = main(*LONG, '--batch_size=4096', '--log_step_count_steps=1')
    while not os.path.exists(tmp_path / 'run' / 'model.ckpt-0.index'):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output_until(process, 'A second signal ends it at once')
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    signalled_secs = time.monotonic()
    finish(process, 143)
    assert time.monotonic() - signalled_secs < 2
    assert not events(tmp_path / 'run', 'run_stop') and saved_step(tmp_path / 'run') == 0


def test_a_signal_leaves_an_evaluation_and_the_next_run_makes_up_for_it(main, tmp_path):
    flags = ('--train_steps=4', '--steps_per_eval=2', '--log_step_count_steps=1')
    process = main(*flags, '--eval_batch_size=1')
    output_until(process, ' step 2/4')
    while not os.path.exists(tmp_path / 'run' / 'model.ckpt-2.index'):
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    stop, = events(tmp_path / 'run', 'run_stop')
    assert (stop['status'], stop['step']) == ('interrupted', 2)
    assert len(events(tmp_path / 'run', 'train_stop')) == 1
    assert not events(tmp_path / 'run', 'eval')
    assert 'Resuming from step 2 of 4' in finish(main(*flags))
    assert [event['step'] for event in events(tmp_path / 'run', 'eval')] == [2, 4]


def test_the_time_is_up(main, tmp_path):
    """Checkpoints come by the clock as well."""
    process = main('--mode=train', '--train_steps=100000', '--max_hours=0.005',
                   '--save_checkpoints_secs=0.5', '--log_step_count_steps=10')
    assert '(out_of_time)' in finish(process)
    stop, = events(tmp_path / 'run', 'run_stop')
    assert stop['status'] == 'out_of_time' and saved_step(tmp_path / 'run') == stop['step']
    state = tf.train.get_checkpoint_state(str(tmp_path / 'run'))
    assert len(state.all_model_checkpoint_paths) > 1


def test_an_npu_stops_between_two_loops(main, tmp_path):
    process = main('--mode=train', *LONG, '--accelerator=npu', '--iterations_per_loop=4',
                   '--log_step_count_steps=4', PYTHONPATH=FAKES, FAKE_NPU_BRIDGE_RELEASE='r1.8.0',
                   FAKE_NPU_RECORD=str(tmp_path / 'record'))
    output_until(process, ' step 4/')
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    step = saved_step(tmp_path / 'run')
    assert step >= 4 and step % 4 == 0
    # No second session, for the steps that are left, was begun.
    assert len(events(tmp_path / 'run', 'train_stop')) == 1


@contextlib.contextmanager
def two_workers(digits_dir, output_dir, *flags):
    """The process of a script, which has said that step 2 is over, and those of its two ranks."""
    process = subprocess.Popen(
        ['bash', os.path.join(ROOT, 'test', 'train_full_8p.sh'), f'--data_path={digits_dir}',
         f'--output_path={output_dir}', '--rank_size=2', '--', *NETWORK, *LONG,
         '--log_step_count_steps=1', *flags],
        env={**os.environ, 'PYTHON37': sys.executable}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, universal_newlines=True)
    try:
        output_until(process, ' step 2/')
        children = psutil.Process(process.pid).children(recursive=True)
        workers = {int(child.environ()['RANK_ID']): child for child in children
                   if 'main.py' in ' '.join(child.cmdline()) and 'RANK_ID' in child.environ()}
        yield process, workers
    finally:
        process.terminate()


def test_one_of_two_workers_is_told_to_end(digits_dir, tmp_path):
    """Both end after the same step, and the script gives them the time to save it."""
    with two_workers(digits_dir, tmp_path) as (process, workers):
        workers[1].send_signal(signal.SIGTERM)
        finish(process, 143)
    stop, = events(tmp_path / '0' / 'ckpt', 'run_stop')
    assert stop['status'] == 'interrupted'
    assert saved_step(tmp_path / '0' / 'ckpt') == stop['step'] >= 2
    assert f"Stopped at step {stop['step']} of" in (tmp_path / '1' / 'train_1.log').read_text()


@pytest.mark.parametrize('rank', [0, 1])
def test_one_of_two_workers_is_told_to_end_between_their_steps(digits_dir, tmp_path, rank):
    """Rank 0 evaluates and rank 1 waits for it: neither may leave the other to wait for ever."""
    model_dir = tmp_path / '0' / 'ckpt'
    # An evaluation of some seconds.
    flags = ('--steps_per_eval=2', '--eval_batch_size=1', '--input_image_size=160')
    with two_workers(digits_dir, tmp_path, *flags) as (process, workers):
        while not os.path.exists(model_dir / 'model.ckpt-2.index'):
            time.sleep(0.05)
        time.sleep(2)
        workers[rank].send_signal(signal.SIGTERM)
        finish(process, 143)
    # Rank 0 leaves its evaluation, for which the next run makes up.
    logs = (tmp_path / '0' / 'train_0.log').read_text()
    assert ('this evaluation is aborted' in logs) == (rank == 0)
    assert [event['step'] for event in events(model_dir, 'eval')][:1] == [2] * rank
    stop, = events(model_dir, 'run_stop')
    assert stop['status'] == 'interrupted' and saved_step(model_dir) == stop['step'] > 2
    assert f"Stopped at step {stop['step']} of" in (tmp_path / '1' / 'train_1.log').read_text()


# kill -9 -----------------------------------------------------------------------------------------

# What is there at the moment of the kill: paths below the model_dir.
MOMENTS = {'save': r'run/.*(tempstate|_temp_)', 'saved': r'run/model\.ckpt-4\.index',
           'eval': r'run/eval_raw', 'archive': r'run/archive/.*\.tmp',
           'export': r'export/.*partial'}


def kill_at(process, folder, moment):
    """Kills the process at a moment; or returns its exit code, if it ends without that."""
    pattern = re.compile(MOMENTS.get(moment, 'nothing'))
    delay = random.Random(moment).uniform(2, 6) if moment not in MOMENTS else 300
    deadline = time.monotonic() + delay
    while process.poll() is None:
        paths = [os.path.relpath(os.path.join(place, name), str(folder))
                 for place, folders, names in os.walk(str(folder)) for name in folders + names]
        if time.monotonic() > deadline or any(map(pattern.search, paths)):
            process.kill()
            break
        time.sleep(0.0005)
    process.communicate()
    return process.returncode


def test_kills_at_any_moment_change_nothing(main, run, tmp_path):
    """A seed: the killed run has the batches of one that ended at step 4 and went on from there."""
    flags = ('--train_steps=8', '--steps_per_eval=4', '--save_checkpoints_steps=4',
             '--random_seed=3', '--log_step_count_steps=1', '--base_learning_rate=0.1')
    for steps in (4, 8):
        finish(main(*flags, f'--train_steps={steps}', model_dir=tmp_path / 'whole'))
    model_dir = tmp_path / 'run'
    for moment in ('save', 'at random', 'saved', 'eval', 'archive', 'export'):
        process = main(*flags, f'--export_dir={tmp_path}/export')
        kill_at(process, tmp_path, moment)
        assert_usable(model_dir)
    with open(model_dir / event_log.RESULTS_FILE, 'a') as file:
        file.write('{"event": "train", "st')
    finish(main(*flags, f'--export_dir={tmp_path}/export'))
    assert saved_step(model_dir) == saved_step(tmp_path / 'whole') == 8
    assert os.listdir(tmp_path / 'export') == ['8']
    best, expected = (best_evaluation(str(folder))
                      for folder in (model_dir, tmp_path / 'whole'))
    assert best == expected
    assert events(model_dir, 'run_stop')[-1]['status'] in ('finished', 'already_finished')
    assert not [name for name in os.listdir(model_dir) if 'temp' in name or name.endswith('.tmp')]


# Damaged checkpoints -----------------------------------------------------------------------------

def truncate(model_dir):
    with open(model_dir / 'model.ckpt-6.data-00000-of-00001', 'r+b') as file:
        file.truncate(os.path.getsize(file.name) - 1)


def flip(model_dir):
    with open(model_dir / 'model.ckpt-6.data-00000-of-00001', 'r+b') as file:
        file.seek(os.path.getsize(file.name) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 255]))


def remove_index(model_dir):
    os.remove(model_dir / 'model.ckpt-6.index')


@pytest.mark.parametrize('damage, command', [
    (truncate, ['main.py', '--mode=train', '--train_steps=6']),
    (flip, ['export_model.py']),
    (remove_index, ['main.py', '--mode=eval', '--eval_once', '--train_steps=6'])])
def test_the_checkpoint_before_a_damaged_one_is_used(
        run, digits_dir, trained_dir, tmp_path, damage, command):
    model_dir = tmp_path / 'run'
    shutil.copytree(trained_dir, model_dir)
    damage(model_dir)
    flags = [f'--ckpt_dir={model_dir}', f'--output_saved_model_dir={tmp_path}/export']
    if command[0] == 'main.py':
        flags = [f'--data_dir={digits_dir}', f'--model_dir={model_dir}', *TINY,
                 '--moving_average_decay=0.5']
    completed = run(*command, *flags)
    assert completed.returncode == 0, completed.stderr
    line, = [line for line in completed.stderr.splitlines() if 'corrupt' in line]
    assert f'{model_dir}/model.ckpt-6 ' in line and f'{model_dir}/model.ckpt-3,' in line
    if damage is truncate:
        assert 'Resuming from step 3 of 6' in completed.stderr
        assert_usable(model_dir)
        assert saved_step(model_dir) == 6 and os.listdir(model_dir / 'damaged')
    elif damage is remove_index:
        assert events(model_dir, 'eval')[-1]['step'] == 3


# Two processes -----------------------------------------------------------------------------------

def test_a_second_process_is_refused_and_the_lock_of_a_dead_one_is_not(main, tmp_path):
    first = main('--mode=train', *LONG, '--log_step_count_steps=1')
    output_until(first, ' step 1/')
    before = event_log.read(str(tmp_path / 'run'))
    line = error_line(main('--mode=train', *LONG))
    assert f'process {first.pid} on {socket.gethostname()}' in line
    assert event_log.read(str(tmp_path / 'run'))[:len(before)] == before
    assert len(events(tmp_path / 'run', 'run_start')) == 1
    finish(main('--mode=eval', '--eval_once', *LONG))
    assert first.poll() is None
    first.kill()
    first.wait()
    output = finish(main('--mode=train', '--train_steps=1'))
    assert f'stale lock of process {first.pid}' in output
    assert (tmp_path / 'run' / LOCK_FILE).read_text() == ''


# Disks -------------------------------------------------------------------------------------------

@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A file system of its own in `folder`, whose options can be changed; needs to be root."""
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs',
                              str(folder)], stderr=subprocess.DEVNULL)
    if mounted.returncode:
        pytest.skip('mounting is not permitted; the limit of file sizes is tested all the same')
    try:
        yield lambda options: subprocess.run(
            ['mount', '-o', f'remount,{options}', str(folder)], check=True)
    finally:
        subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_a_full_disk_and_a_read_only_one(main, tmp_path):
    flags = ('--train_steps=9', '--steps_per_eval=9', '--save_checkpoints_steps=2',
             '--keep_checkpoint_max=20', '--log_step_count_steps=1')
    model_dir = tmp_path / 'disk' / 'run'
    with small_disk(tmp_path / 'disk', 18) as remount:
        line = error_line(main(*flags, model_dir=model_dir))
        assert 'No space left on device; make room' in line
        assert_usable(model_dir)
        step = saved_step(model_dir)
        assert step >= 2
        # A start that fails leaves no second event file in the room that was made.
        before = sorted(os.listdir(model_dir))
        remount('size=19m')
        assert 'No space left on device; make room' in error_line(main(*flags, model_dir=model_dir))
        assert sorted(os.listdir(model_dir)) == before and saved_step(model_dir) == step
        remount('size=100m,ro')
        assert 'permission denied' in error_line(main(*flags, model_dir=model_dir))
        assert saved_step(model_dir) == step
        remount('size=100m,rw')
        output = finish(main(*flags, model_dir=model_dir))
        assert f'Resuming from step {step} of 9' in output
        assert saved_step(model_dir) == 9 and events(model_dir, 'run_stop')[-1]['step'] == 9
        assert_usable(model_dir)


@pytest.mark.parametrize('flags', [[], ['--use_async_checkpointing']])
def test_a_file_that_may_not_grow_is_no_end_of_the_data(main, tmp_path, flags):
    """TensorFlow reports it as OutOfRangeError, which ends its sessions without a word."""
    process = main('--mode=train', '--train_steps=20', '--save_checkpoints_steps=5', *flags,
                   limit=200000)
    assert 'File too large; raise the limit' in error_line(process)


def test_a_full_disk_under_archive_and_export(main, trained_dir, tmp_path):
    flags = (*TINY, '--train_steps=6', '--steps_per_eval=3', '--moving_average_decay=0.5')
    model_dir = tmp_path / 'run'
    shutil.copytree(trained_dir, model_dir)
    shutil.rmtree(model_dir / 'archive')
    kept = [event for event in event_log.read(str(model_dir))
            if not (event['event'] == 'eval' and event['step'] == 6)]
    (model_dir / event_log.RESULTS_FILE).write_text(
        ''.join(json.dumps(event) + '\n' for event in kept))
    with small_disk(model_dir / 'archive', 1) as remount:
        assert 'No space left on device' in error_line(main(*flags))
        remount('size=100m')
        finish(main(*flags))
        assert best_evaluation(str(model_dir))['step'] == 6
        assert_usable(model_dir)
        used = shutil.disk_usage(str(model_dir / 'archive')).used
        remount(f'size={used // 1024 + 200}k')
        line = error_line(main(*flags, f'--export_dir={model_dir}/archive/export'))
        assert f'{model_dir}/archive/export/6: cannot be written' in line
        assert os.listdir(model_dir / 'archive' / 'export') == []
        remount('size=100m')
        finish(main(*flags, f'--export_dir={model_dir}/archive/export'))
        assert os.listdir(model_dir / 'archive' / 'export') == ['6']


# Numbers that are not finite ---------------------------------------------------------------------

def make_huge(checkpoint, ending):
    """Makes the variable of that name as large as float32 can be, in its checkpoint."""
    reader = tf.train.load_checkpoint(checkpoint)
    with tf.Graph().as_default(), tf.Session() as session:
        for name in reader.get_variable_to_shape_map():
            value = reader.get_tensor(name)
            tf.Variable(np.full_like(value, 3e38) if name.endswith(ending) else value, name=name)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, checkpoint, write_meta_graph=False, write_state=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(main, tmp_path):
    # The ReLU6 of Lite would bound what becomes huge.
    flags = (*TINY, '--mode=train', '--optimizer=sgd', '--save_checkpoints_steps=1')
    finish(main(*flags, '--train_steps=2'))
    # Of weights that merely grow, chance decides whether the loss overflows first or a gradient.
    make_huge(store.latest(str(tmp_path / 'run')), 'head/tpu_batch_normalization/gamma')
    line = error_line(main(*flags, '--train_steps=20'))
    assert re.search(r'after step \d+: the loss is (nan|inf)', line)
    for words in ('cross_entropy', 'head/dense/bias', '--base_learning_rate', '--loss_scale'):
        assert words in line
    good = store.latest(str(tmp_path / 'run'))
    assert f'{good} is the last good checkpoint' in line
    reader = tf.train.load_checkpoint(good)
    assert all(np.isfinite(reader.get_tensor(name)).all()
               for name in reader.get_variable_to_shape_map())
    assert events(tmp_path / 'run', 'run_stop')[-1]['status'] == 'failed'


def test_skipped_steps_are_counted_and_too_many_are_an_error(main, tmp_path):
    def run_npu(*flags, overflows):
        return main('--mode=train', '--accelerator=npu', *flags, PYTHONPATH=FAKES,
                    FAKE_NPU_BRIDGE_RELEASE='r1.8.0', FAKE_NPU_RECORD=str(tmp_path / 'record'),
                    FAKE_NPU_OVERFLOW_STEPS=','.join(map(str, overflows)))

    output = finish(run_npu('--train_steps=5', overflows=(2, 4, 5)))
    assert output.count('Overflow: 1 of 1 steps skipped') == 3
    assert events(tmp_path / 'run', 'run_stop')[-1]['skipped_steps'] == 3
    line = error_line(run_npu('--train_steps=9', '--loss_scale=1024', overflows=range(1, 80)))
    assert '50 steps in a row were skipped' in line
    assert saved_step(tmp_path / 'run') == 5
