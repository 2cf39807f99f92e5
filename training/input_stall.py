"""Measures how long the device waits for input, and recommends how to shorten the wait."""
import os
import time
from typing import NamedTuple

from absl import logging

from common import machine
from config import data_settings
from tfrecords import schema

ADVISED_STALL = 0.1     # share of the time; a recommendation is logged above it
_BUSY = 0.7             # share of the cores; at or above it the cores limit the input
_READ_AHEAD_FACTOR = 8


class InputStall:
    """Adds up the seconds that the device waited for input; threads of the pipeline call `add`.

    Args:
      find_situation: function of (step, busy share of the cores) -> `Situation`; None for no
        recommendation.
    """

    def __init__(self, find_situation=None):
        self.secs = 0.0    # since the last `take`
        self._find_situation = find_situation
        self._begin()

    def _begin(self):
        self._start_secs, self._start_idle_secs = time.monotonic(), machine.idle_secs()

    def add(self, secs):
        # The clock of tf.timestamp can be set back.
        self.secs += max(0.0, secs)

    def take(self):
        """Returns the seconds since the last call."""
        secs, self.secs = self.secs, 0.0
        self._begin()
        return secs

    def advise(self, step, share):
        """Logs how to shorten the wait if it is long, at most once per run.

        Args:
          step: the global step.
          share: share of the time since the last `take` that the device waited, in [0, 1].
        """
        if share <= ADVISED_STALL or not self._find_situation:
            return
        idle_cores = (machine.idle_secs() - self._start_idle_secs) / max(
            1e-3, time.monotonic() - self._start_secs)
        advice = recommendation(self._find_situation(
            step, 1 - idle_cores / len(os.sched_getaffinity(0))))
        self._find_situation = None
        if advice:
            logging.warning('The device waits for input %.0f %% of the time. %s', 100 * share,
                            advice)


class Situation(NamedTuple):
    """The facts about a run that decide which recommendation helps.

    Attributes:
      cores: number of cores per rank.
      busy_share: share of time that the cores of the process are busy, with any work.
      num_threads: number of threads that decode images.
      short_side: shorter side of the network's images, pixels.
      has_large_images: whether the shards hold larger images than training needs.
      can_cache: whether the shards fit into memory and will be read at least once more.
      is_cached: whether --use_cache is on.
      read_ahead_mb: value of --read_ahead_mb.
    """
    cores: int
    busy_share: float
    num_threads: int
    short_side: int
    has_large_images: bool
    can_cache: bool
    is_cached: bool
    read_ahead_mb: int


def find_situation(config, ranks_on_host, train_input, step, busy_share):
    """Returns the `Situation` of a run that reads shards.

    Args:
      config: `run_config.Config`.
      ranks_on_host: number of ranks on this machine.
      train_input: training `ImageNetInput` of this rank.
      step: the global step.
      busy_share: see `Situation`.
    """
    data, (height, width) = config.data, config.image_size
    record_bytes = train_input.mean_record_bytes()
    host_bytes = record_bytes * data.num_train_images * ranks_on_host / config.num_ranks
    free_bytes = machine.free_memory_bytes()
    info = schema.DatasetInfo.load(data.data_dir)
    short_side = min(height, width)
    is_limited = bool(info and info.max_short_side) and (
        info.max_short_side <= _advised_short_side(short_side))
    return Situation(
        cores=machine.cores_per_rank(ranks_on_host),
        busy_share=busy_share,
        num_threads=train_input.num_parallel_calls,
        short_side=short_side,
        # A JPEG of quality 90 at 9/7 of the network's size takes less than one byte per pixel of
        # the network's images.
        has_large_images=not is_limited and record_bytes > height * width,
        can_cache=(free_bytes is None or host_bytes < free_bytes) and (
            config.epoch_at(config.total_steps) - config.epoch_at(step) > 1),
        is_cached=data.use_cache,
        read_ahead_mb=data.read_ahead_mb)


def _advised_short_side(short_side):
    """Returns the shorter side of images to store for a network with this shorter side."""
    return short_side * 9 // 7


def recommendation(situation):
    """Returns a sentence that says how to shorten the wait for input, or None if unknown."""
    smaller_shards = (
        f'dataset.create --max_short_side={_advised_short_side(situation.short_side)} makes '
        'shards with smaller images')
    if situation.num_threads < situation.cores:
        return (f'--num_parallel_calls={situation.num_threads} uses {situation.num_threads} of '
                f'the {situation.cores} cores of this rank; omit the flag to use all.')
    if situation.busy_share >= _BUSY:
        if situation.has_large_images:
            return (f'The cores of this rank ({situation.cores}) are busy decoding; '
                    f'{smaller_shards}.')
        return (f'The cores of this rank ({situation.cores}) are busy and the images are already '
                'small; only more cores help.')
    if situation.is_cached:
        return None
    idle = f'Storage is slow; the cores are idle {1 - situation.busy_share:.0%} of the time: '
    if situation.can_cache:
        return f'{idle}--use_cache keeps the shards in memory, where they fit.'
    if situation.has_large_images:
        return f'{idle}{smaller_shards}.'
    if situation.read_ahead_mb >= data_settings.LARGEST_READ_AHEAD_MB:
        return None
    read_ahead_mb = min(_READ_AHEAD_FACTOR * situation.read_ahead_mb,
                        data_settings.LARGEST_READ_AHEAD_MB)
    return f'{idle}try --read_ahead_mb={read_ahead_mb}.'
