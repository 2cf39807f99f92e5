"""Estimates when a run ends, including the remaining saves and evaluations."""
import contextlib
import math
import statistics
import time


class TimeLeft:
    """Measures saves and evaluations, and estimates the remaining time of a run.

    Args:
      config: `run_config.Config`.
    """

    SAVE, EVALUATION = 'save', 'evaluation'

    def __init__(self, config):
        self._config = config
        self._measured_secs = {self.SAVE: [], self.EVALUATION: []}

    @contextlib.contextmanager
    def measured(self, kind):
        """Context that measures a save, or an evaluation of all kinds of weights.

        Args:
          kind: SAVE or EVALUATION.
        """
        start_secs = time.monotonic()
        yield
        self._measured_secs[kind].append(time.monotonic() - start_secs)

    def secs(self, step, steps_per_sec):
        """Returns the estimated seconds until the run ends.

        Each remaining save or evaluation counts as the median of those measured so far, and as zero
        before the first one.

        Args:
          step: the last completed global step; saves and evaluations due after it are included.
          steps_per_sec: speed of training without saves and evaluations.
        """
        training_secs = (self._config.total_steps - step) / steps_per_sec
        counts = {self.SAVE: self._num_saves(step - 1, training_secs),
                  self.EVALUATION: self._num_evaluations(step - 1)}
        return training_secs + sum(
            counts[kind] * statistics.median(secs)
            for kind, secs in self._measured_secs.items() if secs)

    def _num_evaluations(self, step):
        """Returns the number of rounds that end after `step`; the last one ends with training."""
        config = self._config
        if not config.evaluates:
            return 0
        return config.rounds_at(config.total_steps - 1) - config.rounds_at(step) + 1

    def _num_saves(self, step, training_secs):
        """Returns the number of saves after `step`; each round restarts the save interval."""
        config, run, end = self._config, self._config.run, self._config.total_steps
        if run.save_checkpoints_secs:
            return int(training_secs / run.save_checkpoints_secs) + max(
                1, self._num_evaluations(step))
        first, last = ((config.rounds_at(step), config.rounds_at(end - 1)) if config.evaluates
                       else (0, 0))
        begin = self._begin_of(first)
        if first == last:
            return self._saves_between(step - begin, end - begin)
        return (self._saves_between(step - begin, self._begin_of(first + 1) - begin)
                + (last - first - 1) * self._saves_between(0, config.steps_per_eval)
                + self._saves_between(0, end - self._begin_of(last)))

    def _begin_of(self, number):
        """Returns the global step at which round `number` begins in the newest segment."""
        config = self._config
        start = config.segments[-1].step if config.segments else 0
        offset = 0 if config.run.steps_per_eval else config.position_offset
        return max(start, math.ceil(number * config.steps_per_eval - offset))

    def _saves_between(self, step, end):
        """Returns the number of saves after `step` in a round of `end` steps, one at its end."""
        every_steps = self._config.run.save_checkpoints_steps
        return (end - 1) // every_steps - step // every_steps + 1
