"""How long the device waits for input, and what would shorten that."""
import os
import time
from typing import NamedTuple

from absl import logging

from common import machine
from tfrecords import schema

ADVISED_STALL = 0.1     # share of the time, above which there is advice
_BUSY = 0.7             # share of the cores, from which on they limit the input
_READ_AHEAD_FACTOR = 8


class InputStall:
    """Adds up the seconds for which the device waited for input; the pipeline's threads call it.

    Args:
      find_situation: function of (step, busy share of the cores) -> `Situation`, for the advice;
        None for no advice.
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
        """Logs what would shorten the wait, once a run and only if it is long.

        Args:
          step: the global step.
          share: of the time since the last `take`, for which the device waited.
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
    """What decides how a run gets its images sooner.

    Attributes:
      cores: number that this rank has for itself.
      busy_share: share of their time for which they are busy, this rank's or not.
      num_threads: number that decode images.
      image_size: longer side of the network's images, pixels.
      has_large_images: whether the shards hold larger images than training needs.
      can_cache: whether the shards fit into memory, and are read once more.
      is_cached: whether --use_cache is on.
      read_ahead_mb: value of the flag.
    """
    cores: int
    busy_share: float
    num_threads: int
    image_size: int
    has_large_images: bool
    can_cache: bool
    is_cached: bool
    read_ahead_mb: int


def find_situation(config, ranks_on_host, train_input, step, busy_share):
    """Returns the `Situation` of a run whose images come from shards.

    Args:
      config: `run_config.Config`.
      ranks_on_host: ranks on this machine.
      train_input: `ImageNetInput` of this rank.
      step: the global step.
      busy_share: of the cores, see `Situation`.
    """
    data, (height, width) = config.data, config.image_size
    record_bytes = train_input.mean_record_bytes()
    host_bytes = record_bytes * data.num_train_images * ranks_on_host / config.num_ranks
    free_bytes = machine.free_memory_bytes()
    info = schema.DatasetInfo.load(data.data_dir)
    return Situation(
        cores=machine.cores_per_rank(ranks_on_host),
        busy_share=busy_share,
        num_threads=train_input.num_parallel_calls,
        image_size=max(height, width),
        # JPEGs of quality 90 and 9/7 of the input's size take less than a byte for each of its
        # pixels.
        has_large_images=not (info and info.max_short_side) and record_bytes > height * width,
        can_cache=(free_bytes is None or host_bytes < free_bytes) and (
            config.epoch_at(config.total_steps) - config.epoch_at(step) > 1),
        is_cached=data.use_cache,
        read_ahead_mb=data.read_ahead_mb)


def recommendation(situation):
    """Returns what shortens the wait for input, as a sentence; None if nothing is known to."""
    smaller_shards = (
        f'dataset.create --max_short_side={situation.image_size * 9 // 7} makes shards with '
        'smaller pictures')
    if situation.num_threads < situation.cores:
        return (f'More threads help: --num_parallel_calls={situation.num_threads} uses '
                f'{situation.num_threads} of the {situation.cores} cores of this rank; leave the '
                'flag out.')
    if situation.busy_share >= _BUSY:
        if situation.has_large_images:
            return f'Its cores ({situation.cores}) are busy decoding; {smaller_shards}.'
        return (f'Its cores ({situation.cores}) are busy, and the pictures are small already; only '
                'more cores help.')
    if situation.is_cached:
        return None
    idle = f'Storage is slow, the cores are idle {1 - situation.busy_share:.0%} of the time: '
    if situation.can_cache:
        return f'{idle}--use_cache keeps the shards in memory, which is large enough.'
    if situation.has_large_images:
        return f'{idle}{smaller_shards}.'
    return (f'{idle}try --read_ahead_mb={_READ_AHEAD_FACTOR * situation.read_ahead_mb}.')
