"""The range test of learning rates, on curves whose answer is known."""
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from config import run_config
from run_log import event_log
from training import lr_range
from training import optimization
from training import pictures
from training import restart

RATES = np.geomspace(1e-5, 10, 100)


def curve(fall_at, rise_at, noise=0.02):
    """Losses that fall from 5 to 1 fastest at one rate, and rise without bound from another on."""
    logs = np.log10(RATES)
    falling = 5 - 4 / (1 + np.exp(-4 * (logs - np.log10(fall_at))))
    rising = np.exp(np.minimum(8 * (logs - np.log10(rise_at)), 50))
    return falling + rising + np.random.RandomState(0).normal(size=100) * noise


@pytest.mark.parametrize('fall_at, rise_at', [(1e-3, 0.1), (0.02, 1.0)])
def test_the_suggestion_is_where_the_loss_falls_fastest(fall_at, rise_at):
    losses = curve(fall_at, rise_at)
    found = lr_range.find(RATES, losses)
    # A step is a factor of 1.15; noise moves the steepest place by a few.
    assert found.suggested == pytest.approx(fall_at, rel=0.6)
    assert found.suggested < found.lowest < rise_at
    count = len(found.rates)
    assert count < 100 and found.losses.tolist() == losses[:count].tolist()
    # A Hann window over a fifth of the steps, centered, without the places outside.
    weights = 0.5 + 0.5 * np.cos(np.pi * np.arange(-10, 11) / 11)
    for step in (0, 5, 30):
        near = np.arange(max(0, step - 10), step + 11)
        expected = np.average(losses[near], weights=weights[near - step + 10])
        assert found.smoothed[step] == pytest.approx(expected)
    assert (found.smoothed <= 4 * np.minimum.accumulate(found.smoothed)).all()


@pytest.mark.parametrize('losses', [
    np.linspace(1, 3, 100), 3 + np.random.RandomState(1).normal(size=100), np.full(100, 2.0),
    [3.0, 2.0, 1.0], []])
def test_without_a_fall_there_is_no_suggestion(losses):
    found = lr_range.find(RATES[:len(losses)], losses)
    assert found.suggested is None and found.lowest is None and len(found.losses) == len(losses)
    assert pictures.range_test(found).size == (640, 400)


def test_the_picture_marks_the_suggestion():
    found = lr_range.find(RATES, curve(1e-3, 0.1))
    pixels = np.asarray(pictures.range_test(found))
    red = (pixels == (178, 24, 43)).all(-1)[40:360]
    marks = np.flatnonzero(red.sum(0) > 250)
    share = np.log(found.suggested / RATES[0]) / np.log(found.rates[-1] / RATES[0])
    assert marks[0] == pytest.approx(60 + share * (610 - 60), abs=1.5) and len(marks) == 2
    blue = (pixels == (33, 102, 172)).all(-1)[:, marks[0] - 200]
    before = (pixels == (33, 102, 172)).all(-1)[:, marks[1] - 5]
    # The curve is higher where the loss is.
    assert np.flatnonzero(blue).mean() < np.flatnonzero(before).mean() - 50


def test_the_rate_rises_exponentially():
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.placeholder(tf.int64, [])
        rate = optimization.range_test_rate_at(step, 1e-4, 2.0, 50)
        rates = [session.run(rate, {step: value}) for value in range(50)]
    np.testing.assert_allclose(rates, np.geomspace(1e-4, 2.0, 50), rtol=1e-5)


def test_only_the_newest_test_counts(tmp_path):
    """After a kill and a resume a step may be there twice; a loss that is not finite ends it."""
    def add(event, **fields):
        event_log.append(str(tmp_path), event, **fields)

    def step(number, loss, rate):
        add('train', step=number, epoch=0.1, images_per_sec=1.0, loss=1.0, top_1=0.1,
            cross_entropy=loss, learning_rate=rate)

    for start in (0, 0, 2):
        add('run_start', mode='lr_range', model_name='x', step=start, total_steps=20)
        if not start:
            step(9, 1.0, 9.0)
        step(start + 1, 5.0, 0.1 + start)
        step(3, 4.0 - start, 0.3)
    step(4, None, 0.4)
    rates, losses = lr_range._recorded(event_log.read(str(tmp_path)), scale=0.5)
    assert losses == [5.0, 2.0] and rates == [0.2, 0.6]


def test_several_ranks_are_refused(tmp_path):
    config = run_config.from_values({'data_dir': 'synthetic', 'model_dir': str(tmp_path),
                                     'mode': 'lr_range'})
    runtime = types.SimpleNamespace(world_size=2, rank=0, leader_dir=str(tmp_path))
    with pytest.raises(UserError, match='lr_range: there are 2 ranks; start a single one'):
        restart.check_model_dir(config, runtime)
