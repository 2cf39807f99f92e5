"""What is seen of gradients, what is refused to be saved, and when skipped steps are too many.

The rest is tried on runs.
"""
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from common.errors import UserError
from training import nan_guard


def test_only_finite_numbers_are_saved(tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.train.get_or_create_global_step()
        weight = tf.get_variable('weight', [3], initializer=tf.ones_initializer())
        # Its sum overflows, and yet it is finite.
        tf.get_variable('large', [3], initializer=tf.constant_initializer(3e38))
        saver, path = tf.train.Saver(), os.path.join(str(tmp_path), 'model.ckpt')
        session.run(tf.global_variables_initializer())
        session.run(step.assign(1))
        checkpoint = saver.save(session, path, 1, write_state=False)
        nan_guard.check_saved(checkpoint, str(tmp_path))
        store.add_newest(checkpoint, keep_max=5)
        session.run(weight.assign([0., float('nan'), 0.]))
        bad = saver.save(session, path, 2, write_state=False)
        with pytest.raises(UserError, match=r'variables: 1 \(first: weight\); .*-1 is'):
            nan_guard.check_saved(bad, str(tmp_path))
        assert not store.files_of(bad) and store.latest(str(tmp_path)) == checkpoint
        torn = saver.save(session, path, 3, write_state=False)
        os.truncate(f'{torn}.data-00000-of-00001', 3)
        with pytest.raises(UserError, match='-3: cannot be read back after saving'):
            nan_guard.check_saved(torn, str(tmp_path))
        assert not store.files_of(torn)


def test_skipped_steps_are_counted_up_to_a_limit():
    overflows = nan_guard.LossScaleSkips()
    overflows.add(tried=10, made=10)
    for _ in range(20):
        overflows.add(tried=10, made=7)
    assert (overflows.total, overflows.in_a_row) == (60, 0)
    for _ in range(4):
        overflows.add(tried=10, made=0)
    assert overflows.in_a_row == 40
    with pytest.raises(UserError, match='50 steps in a row were skipped'):
        overflows.add(tried=10, made=0)


def test_the_gradient_norm_is_that_of_all_numbers():
    gradients = [np.arange(1.0, 4.0), np.full([2, 2], 2.0), np.array([5.0]), np.zeros([1, 2, 3])]
    with tf.Graph().as_default(), tf.Session() as session:
        norm = nan_guard.add_gradient_norms([
            (tf.constant(each, tf.float32), tf.get_variable(f'v{index}', each.shape))
            for index, each in enumerate(gradients)])
        assert session.run(norm) == pytest.approx(np.sqrt(1 + 4 + 9 + 16 + 25))
