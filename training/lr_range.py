"""The range test of learning rates: which one the loss falls fastest at.

A short training raises the learning rate exponentially; the loss stays, falls, then rises again
(Smith, arXiv:1506.01186, section 3.3). Like fastai's `lr_find`, the test suggests the rate of the
steepest fall over the logarithm of the rate, up to where the loss is four times the lowest.
"""
import os
from typing import NamedTuple
from typing import Optional

import numpy as np
import tensorflow.compat.v1 as tf

from checkpoints import store
from common.files import whole_file
from run_log import event_log
from training import pictures

PICTURE_FILE = 'lr_range.png'
_MIN_STEPS = 10               # fewer show no curve
_DIVERGED = 4                 # times the lowest loss, as in fastai
_SMOOTHED_SHARE = 5           # a fifth of all steps is averaged


class Finding(NamedTuple):
    """What a range test has found.

    Attributes:
      rates, losses, smoothed: arrays of the steps before the loss diverges.
      suggested: the rate at which the loss falls fastest; None if it falls no more than it varies.
      lowest: the rate of the lowest loss, above which training is unstable; None as before.
    """
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: Optional[float]
    lowest: Optional[float]


def find(rates, losses):
    """Returns the `Finding` of a range test.

    The average over a fifth of the steps is centered, so that it moves no rate; fastai's averages
    over earlier steps only, whose suggestions are later than the fall.

    Args:
      rates: learning rates of the steps, rising.
      losses: of the same steps; finite numbers.
    """
    rates, losses = np.array(rates, float), np.array(losses, float)
    smoothed = _smoothed(losses)
    diverged = np.flatnonzero(smoothed > _DIVERGED * np.minimum.accumulate(smoothed))
    num_steps = diverged[0] if len(diverged) else len(losses)
    rates, losses, smoothed = rates[:num_steps], losses[:num_steps], smoothed[:num_steps]
    if num_steps < _MIN_STEPS:
        return Finding(rates, losses, smoothed, None, None)
    lowest = smoothed.argmin()
    noise = np.std((losses - smoothed)[:lowest + 1])
    if smoothed[0] - smoothed[lowest] <= noise:
        return Finding(rates, losses, smoothed, None, None)
    steepest = np.gradient(smoothed, np.log(rates))[:lowest + 1].argmin()
    return Finding(rates, losses, smoothed, float(rates[steepest]), float(rates[lowest]))


def report(config):
    """Draws what a range test has recorded, appends its event, and removes its checkpoints.

    Weights that have seen such rates are of no use, and a repeated test begins anew.

    Args:
      config: the `Config` of the test.
    """
    folder = config.run.model_dir
    found = find(*_recorded(event_log.read(folder), config.scaled_rate(1.0)))
    path = os.path.join(folder, PICTURE_FILE)
    with whole_file(path, 'wb') as file:
        file.write(pictures.encode(pictures.range_test(found)))
    event_log.append(folder, 'lr_range', picture=path, suggested_base_learning_rate=found.suggested,
                     lowest_loss_base_learning_rate=found.lowest)
    for path in [path for checkpoint in store.candidates(folder)
                 for path in store.files_of(checkpoint)] + store.files(folder, 'checkpoint'):
        tf.gfile.Remove(path)


def sentence(events):
    """Returns the result of the newest range test in a run's events, in words."""
    event = [event for event in events if event['event'] == 'lr_range'][-1]
    suggested = event['suggested_base_learning_rate']
    if suggested is None:
        return ('The loss falls no more than it varies: raise --lr_range_steps, or lower '
                f"--lr_range_min. See {event['picture']}.")
    return (f'Suggested: --base_learning_rate={suggested:.2g}, where the loss falls fastest; it is '
            f"lowest at {event['lowest_loss_base_learning_rate']:.2g}. See {event['picture']}.")


def _recorded(events, scale):
    """Returns the base learning rates and the losses of the newest test, up to one not finite.

    The losses are cross entropies: weight decay would add a fall of its own.

    Args:
      events: of results.jsonl.
      scale: the learning rate for a base learning rate of 1.
    """
    start = max(index for index, event in enumerate(events)
                if event['event'] == 'run_start' and not event['step'])
    # The last event of a step counts: a test that was killed repeats steps.
    steps = {event['step']: event for event in events[start:] if event['event'] == 'train'}
    rates, losses = [], []
    for _, event in sorted(steps.items()):
        if event['cross_entropy'] is None:
            break
        rates.append(event['learning_rate'] / scale)
        losses.append(event['cross_entropy'])
    return rates, losses


def _smoothed(losses):
    """Each loss averaged with those around it, near ones counting more (a Hann window)."""
    window = np.hanning(2 * max(1, len(losses) // (2 * _SMOOTHED_SHARE)) + 3)
    return (np.convolve(losses, window, 'same') / np.convolve(np.ones(len(losses)), window, 'same')
            if len(losses) >= _MIN_STEPS else losses)
