"""Session hooks that report progress: log lines, events in results.jsonl, TensorBoard summaries."""
import math
import time

from absl import logging
import tensorflow.compat.v1 as tf

from common.quantities import secs_text
from run_log import event_log
from training import progress
from training import summaries
from training import tensor_names
from training.time_left import TimeLeft

_LOSS_DECAY = 0.98    # of the smoothed loss, per session.run


class FirstStepHook(tf.train.SessionRunHook):
    """Calls a function once, after the first step of a session."""

    def __init__(self, call):
        self._call = call

    def after_run(self, run_context, run_values):
        call, self._call = self._call, None
        if call and not run_context.stop_requested:
            call()


class StagesHook(tf.train.SessionRunHook):
    """Logs the stages of a session up to the end of its first step, with their durations.

    One hook serves all sessions of a run in turn. It must be the first hook, so that the work of
    other hooks at the start of a session, such as saving, is not part of a stage.

    Args:
      find_checkpoint: function that returns the path prefix of the checkpoint that a session
        restores, or None.
    """

    def __init__(self, find_checkpoint):
        self._find_checkpoint = find_checkpoint
        self._has_run = False
        self._stage = None

    def begin_building(self):
        """Starts the first stage; the caller is about to build the graph of a session."""
        self._has_run = False
        self._begin('Building the training graph')

    def begin(self):
        self._end()
        checkpoint = self._find_checkpoint()
        self._begin(f'Restoring {checkpoint}' if checkpoint else 'Initializing the variables')

    def after_create_session(self, session, coord):
        self._end()

    def before_run(self, run_context):
        if not self._has_run:
            self._begin('Compiling the graph in the first step')

    def after_run(self, run_context, run_values):
        self._has_run = True
        self._end()

    def _begin(self, stage):
        logging.info('%s.', stage)
        self._stage, self._start_secs = stage, time.monotonic()

    def _end(self):
        if self._stage:
            logging.info('%s took %s.', self._stage, secs_text(time.monotonic() - self._start_secs))
            self._stage = None


class _Smoothed:
    """Exponential moving average of the finite numbers added, corrected for its zero start.

    Attributes:
      value: the average, or None before the first number.
    """

    def __init__(self, decay):
        self.value = None
        self._decay = decay
        self._sum = self._weight = 0.0

    def add(self, number):
        if math.isfinite(number):
            self._sum += (1 - self._decay) * (number - self._sum)
            self._weight += (1 - self._decay) * (1 - self._weight)
            self.value = self._sum / self._weight


class _StepClock:
    """Measures the time spent in steps, without saves and evaluations between them."""

    def __init__(self):
        self._secs = 0.0
        self._start_secs = None

    def start(self):
        self._start_secs = time.monotonic()

    def stop(self):
        self._secs, self._start_secs = self.secs, None

    @property
    def secs(self):
        running_secs = time.monotonic() - self._start_secs if self._start_secs else 0.0
        return self._secs + running_secs


class _Mark:
    """A step and its end time, from which rates are measured."""

    def __init__(self, step, clock, global_batch_size):
        self.step = step
        self._clock = clock
        self._secs = clock.secs
        self._global_batch_size = global_batch_size

    def images_per_sec(self, step):
        """Returns images/s from the mark to now, the end of `step`, or None without a step."""
        steps, secs = step - self.step, self.elapsed_secs
        if steps <= 0 or secs <= 0:
            return None
        return round(steps * self._global_batch_size / secs, 2)

    @property
    def elapsed_secs(self):
        return self._clock.secs - self._secs


class ProgressHook(tf.train.SessionRunHook):
    """Displays every step; writes a 'train' event and summaries every --log_step_count_steps.

    The last step is always reported, and every epoch ends with an 'epoch' event.

    Rates exclude the time between steps and the first step of each session, which includes the
    compilation of the graph and the filling of the shuffle buffer. All ranks fetch the same tensors
    in every step, because a device compiles a new graph for another set of fetches.

    One hook serves all sessions of a run in turn. It must precede the hooks that save and evaluate.

    Args:
      config: the run's `Config`.
      results_dir: directory of results.jsonl; None for a rank that does not report.
      display: a `progress.Lines` or `progress.LiveLine`; default: lines.
      writer: `summaries.SummaryWriter`, or None for no summaries.
      stall: `input_stall.InputStall` of the input, or None.
      skips: `nan_guard.LossScaleSkips` that an earlier hook updates, or None.
      time_left: `time_left.TimeLeft` that measures saves and evaluations; default: a new one.

    Attributes:
      step: the global step after the last step; None before the first session.
    """

    def __init__(self, config, *, results_dir=None, display=None, writer=None, stall=None,
                 skips=None, time_left=None):
        self._config = config
        self._results_dir = results_dir
        self._display = display or progress.Lines()
        self._writer = writer
        self._stall = stall
        self._skips = skips
        self._time_left = time_left or TimeLeft(config)
        self._smoothed_loss = _Smoothed(_LOSS_DECAY)
        self._clock = _StepClock()
        self.step = self._start = self._last_line = self._epoch_start = None
        self._last_rate = self._last_stall = self._reported_step = None

    def begin(self):
        graph = tf.get_default_graph()
        self._tensors = {name: graph.get_tensor_by_name(f'{name}:0')
                         for name in (*tensor_names.PROGRESS, tensor_names.STEP)}
        # Ranks that write no summaries fetch them too: with other fetches, the device would compile
        # another graph around the same exchange of gradients.
        self._tensors['summaries'] = summaries.marked_tensors(graph)
        self._global_step = tensor_names.global_step_read()

    def after_create_session(self, session, coord):
        self.step = int(session.run(self._global_step))
        self._epochs = self._whole_epochs()
        self._is_first_run = True
        self._unreported = None    # values of the last step, unless it is reported
        self._display.begin()

    def before_run(self, run_context):
        if not self._is_first_run:
            self._clock.start()
        return tf.train.SessionRunArgs(self._tensors)

    def after_run(self, run_context, run_values):
        values = run_values.results
        earlier_step, self.step = self.step, int(values[tensor_names.STEP])
        if self._is_first_run:
            self._leave_out(self.step - earlier_step)
        self._smoothed_loss.add(float(values[tensor_names.LOSS]))
        every_steps = self._config.run.log_step_count_steps
        if self.step // every_steps > earlier_step // every_steps:
            self._report(values)
        else:
            self._unreported = values
            self._display.update(self._progress(values))
        if self._whole_epochs() > self._epochs:
            self._report_epoch()
        self._clock.stop()

    def end(self, session):
        # A step that the loss scale skipped leaves the step number at that of an earlier line.
        if self._unreported and self.step != self._reported_step:
            self._report(self._unreported)

    def write_stop(self):
        """Writes the 'train_stop' event, if a session has begun."""
        if self.step is not None:
            event_log.append(
                self._results_dir, 'train_stop', step=self.step,
                images_per_sec=self._start.images_per_sec(self.step) if self._start else None)

    def _report(self, values):
        self._unreported, self._reported_step = None, self.step
        now = self._progress(values)
        self._display.report(now)
        scalars = self._scalars(values, now)
        rate = now.images_per_sec if self.step > self._last_line.step else None
        event_log.append(self._results_dir, 'train', step=now.step, epoch=round(now.epoch, 4),
                         images_per_sec=rate, **scalars)
        if self._writer:
            self._writer.write(now.step, {**scalars, 'epoch': now.epoch, 'images_per_sec': rate},
                               values['summaries'])
        if now.input_stall is not None:
            self._stall.advise(self.step, now.input_stall)
        self._last_line = self._mark()
        self._last_rate, self._last_stall = now.images_per_sec, now.input_stall
        self._reset_stall()

    def _scalars(self, values, now):
        scalars = {name: event_log.finite(values[name]) for name in tensor_names.PROGRESS}
        if self._writer:
            scalars.update(summaries.scalars_of(values['summaries']))
        if self._skips:
            scalars['skipped_steps'] = self._skips.total
        if now.input_stall is not None:
            scalars['input_stall'] = now.input_stall
        return scalars

    def _report_epoch(self):
        self._epochs = self._whole_epochs()
        event_log.append(self._results_dir, 'epoch', epoch=self._epochs, step=self.step,
                         images_per_sec=self._epoch_start.images_per_sec(self.step))
        self._epoch_start = self._mark()

    def _progress(self, values):
        """Returns the `Progress` after a step with these values; rates are since the last line."""
        config = self._config
        average = self._start.images_per_sec(self.step)
        return progress.Progress(
            step=self.step,
            total_steps=config.total_steps,
            epoch=config.epoch_at(self.step),
            total_epochs=config.epoch_at(config.total_steps),
            loss=float(values[tensor_names.LOSS]),
            top_1=float(values[tensor_names.TOP_1]),
            learning_rate=float(values[tensor_names.LEARNING_RATE]),
            images_per_sec=self._last_line.images_per_sec(self.step) or self._last_rate,
            input_stall=self._input_stall(),
            smoothed_loss=self._smoothed_loss.value,
            eta_secs=average and self._time_left.secs(
                self.step, average / config.global_batch_size))

    def _input_stall(self):
        """Returns the share of time, since the last line, that the device waited for input."""
        secs = self._last_line.elapsed_secs
        if not self._stall or self.step <= self._last_line.step or secs <= 0:
            return self._last_stall
        # Clipped to 1: a wait that ended after the last line may have begun before it.
        return round(min(1.0, self._stall.secs / secs), 4)

    def _leave_out(self, num_steps):
        """Excludes the steps of a session's first run, which the clock did not measure."""
        self._is_first_run = False
        if self._start is None:
            self._start = self._last_line = self._epoch_start = self._mark()
        else:
            for mark in {self._start, self._last_line, self._epoch_start}:
                mark.step += num_steps
        self._reset_stall()

    def _reset_stall(self):
        if self._stall:
            self._stall.take()

    def _mark(self):
        return _Mark(self.step, self._clock, self._config.global_batch_size)

    def _whole_epochs(self):
        return int(self._config.epoch_at(self.step))
