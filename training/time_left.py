"""When a run will be over, with the saves and the evaluations that are still to come."""
import contextlib
import math
import statistics
import time


class TimeLeft:
    """Measures what interrupts the steps of a run, and estimates how long the run still takes.

    Args:
      config: `run_config.Config`.
    """

    SAVE, EVALUATION = 'save', 'evaluation'

    def __init__(self, config):
        self._config = config
        self._measured_secs = {self.SAVE: [], self.EVALUATION: []}

    @contextlib.contextmanager
    def measured(self, kind):
        """Measures a with block, which is a SAVE or an EVALUATION of all kinds of weights."""
        start_secs = time.monotonic()
        yield
        self._measured_secs[kind].append(time.monotonic() - start_secs)

    def secs(self, step, steps_per_sec):
        """Returns the seconds until the run is over.

        A save or an evaluation takes as long as the median of those so far, and no time as long as
        there was none: nothing is known of it.

        Args:
          step: global step that was just made; what is due after it is still to come.
          steps_per_sec: without saves and evaluations.
        """
        training_secs = (self._config.total_steps - step) / steps_per_sec
        counts = {self.SAVE: self._num_saves(step - 1, training_secs),
                  self.EVALUATION: self._num_evaluations(step - 1)}
        return training_secs + sum(
            counts[kind] * statistics.median(secs)
            for kind, secs in self._measured_secs.items() if secs)

    def _num_evaluations(self, step):
        """The rounds that end after `step`; the last one ends with the training."""
        config = self._config
        if not config.evaluates:
            return 0
        return config.rounds_at(config.total_steps - 1) - config.rounds_at(step) + 1

    def _num_saves(self, step, training_secs):
        """The saves after `step`: at intervals, which begin anew at the end of each round."""
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
        """The global step, of the newest segment, that the steps of a round follow."""
        config = self._config
        start = config.segments[-1].step if config.segments else 0
        offset = 0 if config.run.steps_per_eval else config.position_offset
        return max(start, math.ceil(number * config.steps_per_eval - offset))

    def _saves_between(self, step, end):
        """The saves after `step` of a round that has `end` steps, the last one at its end."""
        every_steps = self._config.run.save_checkpoints_steps
        return (end - 1) // every_steps - step // every_steps + 1
