"""Learning-rate range test: finds the rate at which the loss falls fastest.

A short training raises the learning rate exponentially; the loss first stays level, then falls,
then rises (Smith, arXiv:1506.01186, section 3.3). Like fastai's `lr_find`, the test suggests the
rate with the steepest slope of the loss over the logarithm of the rate. Steps after the loss
exceeds four times its minimum are ignored.
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
_MIN_STEPS = 10               # fewer steps give no usable curve
_DIVERGED = 4                 # times the lowest loss so far, as in fastai
_SMOOTHED_SHARE = 5           # the smoothing window spans one fifth of all steps


class Finding(NamedTuple):
    """The result of a range test.

    Attributes:
      rates, losses, smoothed: arrays [steps] of the steps before the loss diverges: learning rates,
        raw losses, smoothed losses.
      suggested: the rate at which the loss falls fastest; None if it does not fall by more than
        its noise.
      lowest: the rate of the lowest loss, above which training is unstable; None if `suggested` is.
    """
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggested: Optional[float]
    lowest: Optional[float]


def find(rates, losses):
    """Returns the `Finding` of a range test.

    Losses are smoothed with a centered window, which does not shift the curve. fastai averages over
    earlier steps only, so its suggestions come late.

    Args:
      rates: learning rates of the steps, rising.
      losses: losses of the same steps; finite numbers.
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
    """Draws the curve of a range test, appends an 'lr_range' event, and removes its checkpoints.

    The weights are useless after such high rates, and a repeated test must start from scratch.

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
    """Returns a sentence with the result of the newest range test in a run's events."""
    event = [event for event in events if event['event'] == 'lr_range'][-1]
    suggested = event['suggested_base_learning_rate']
    if suggested is None:
        return ('Range test: the loss does not fall by more than its noise; raise --lr_range_steps '
                f"or lower --lr_range_min. See {event['picture']}.")
    return (f'Suggested: --base_learning_rate={suggested:.2g}, where the loss falls fastest. The '
            f"loss is lowest at {event['lowest_loss_base_learning_rate']:.2g}. "
            f"See {event['picture']}.")


def _recorded(events, scale):
    """Returns base learning rates and losses of the newest test, up to the first non-finite loss.

    The losses are cross entropies, because the weight decay term falls independently.

    Args:
      events: the events in results.jsonl.
      scale: the learning rate that a base learning rate of 1 gives.
    """
    start = max(index for index, event in enumerate(events)
                if event['event'] == 'run_start' and not event['step'])
    # A test that was killed and resumed repeats steps; the last event of a step counts.
    steps = {event['step']: event for event in events[start:] if event['event'] == 'train'}
    rates, losses = [], []
    for _, event in sorted(steps.items()):
        if event['cross_entropy'] is None:
            break
        rates.append(event['learning_rate'] / scale)
        losses.append(event['cross_entropy'])
    return rates, losses


def _smoothed(losses):
    """Returns the losses smoothed with a centered Hann window, or unchanged if there are few."""
    window = np.hanning(2 * max(1, len(losses) // (2 * _SMOOTHED_SHARE)) + 3)
    return (np.convolve(losses, window, 'same') / np.convolve(np.ones(len(losses)), window, 'same')
            if len(losses) >= _MIN_STEPS else losses)
