"""Checkpoints in a folder that looks like a pattern, and those whose weights are not finite."""
import os
import shutil

from conftest import TINY
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from checkpoints.best import best_evaluation
from run_log import event_log


@pytest.fixture
def odd_dir(trained_dir, tmp_path):
    """A copy of the run, in a folder whose name matches other folders and not itself."""
    path = tmp_path / 'a[1]*?\\b'
    os.mkdir(path)
    shutil.copytree(trained_dir, path / 'run')
    return path


def rewrite(checkpoint, target, ending, number):
    """Copies a checkpoint, with `number` in the tensors whose names have that ending."""
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in store.tensors(checkpoint):
            if name.endswith(ending):
                value = np.full_like(value, number)
            tf.Variable(value, name=name)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, target, write_meta_graph=False, write_state=False)


def test_a_path_is_no_pattern(programs, digits_dir, odd_dir):
    def run(program, *arguments):
        ended = programs.run(program, *arguments, timeout_secs=100)
        assert ended.returncode == 0, ended.stderr
        return ended
    run_dir = f'{odd_dir}/run'
    # What the pattern matches is not what is meant.
    os.mkdir(f'{odd_dir}/../a1xyb')
    ended = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={run_dir}', *TINY,
                '--train_steps=7', '--mode=train', '--moving_average_decay=0.5',
                f'--export_dir={odd_dir}/export')
    assert 'Resuming from step 6 of 7' in ended.stderr
    image, table = f'{digits_dir}/examples/one_0.jpg', f'{odd_dir}/[t].csv'
    run('predict.py', f'--saved_model={odd_dir}/export', image, f'--csv={table}')
    assert os.path.isfile(table)


def test_weights_that_are_not_finite_are_refused(programs, digits_dir, odd_dir):
    run_dir, name = f'{odd_dir}/run', 'head/dense/bias/ExponentialMovingAverage'
    checkpoint, best = store.latest(run_dir), best_evaluation(run_dir)
    num_events = len(event_log.read(run_dir))
    rewrite(checkpoint, checkpoint, name, np.nan)
    for arguments in (
            ('main.py', f'--data_dir={digits_dir}', f'--model_dir={run_dir}', '--mode=eval',
             '--eval_once', *TINY, '--moving_average_decay=0.5', '--num_eval_images=96'),
            ('predict.py', f'--checkpoint={run_dir}', f'{digits_dir}/examples/one_0.jpg'),
            ('export_model.py', f'--ckpt_dir={run_dir}', f'--output_dir={odd_dir}/export')):
        ended = programs.run(*arguments, timeout_secs=100)
        line, = [line for line in ended.stderr.splitlines() if ' error: ' in line]
        assert ended.returncode == 1 and 'Traceback' not in ended.stderr
        assert f'{checkpoint}: 1 of ' in line and f'{name} first; name an earlier' in line
    assert best_evaluation(run_dir) == best
    assert 'eval' not in [event['event'] for event in event_log.read(run_dir)[num_events:]]
    assert not os.path.exists(odd_dir / 'export') or not os.listdir(odd_dir / 'export')
    # The trained weights are whole.
    assert programs.run('predict.py', f'--checkpoint={run_dir}', '--noenable_ema',
                        f'{digits_dir}/examples/one_0.jpg').returncode == 0
