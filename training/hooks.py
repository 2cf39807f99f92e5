"""What happens between training steps: progress is shown and recorded."""
import time

import tensorflow.compat.v1 as tf
from tensorflow.python.training import training_util

from run_log import event_log
from training import progress as progress_lib


class InputStall:
    """Adds up how long the device has waited for input. Filled from the pipeline's threads."""

    def __init__(self):
        self.secs = 0.0    # since the last `take`

    def add(self, secs):
        self.secs += secs

    def take(self):
        """Seconds since the last call."""
        secs, self.secs = self.secs, 0.0
        return secs


class ProgressHook(tf.train.SessionRunHook):
    """Shows each step, and every `every_steps` steps writes a 'train' event and summaries.

    The clock starts when the first step is over, because that step waits for the graph to be
    optimised (on an NPU: compiled) and for the shuffle buffer to fill. Each step fetches the same
    tensors, since with others the graph would be optimised or compiled once more. Summaries are
    written here, without an op, for the same reason. The end of an epoch is an event of its own.

    Args:
      model_dir: where results.jsonl is; None for a rank that does not report.
      tensor_names: names of the scalars to show; the graph must have them, see model_fn.PROGRESS.
      every_steps: steps between lines.
      total_steps: where training ends, for the ETA.
      steps_per_epoch, global_batch_size: turn steps into epochs and images.
      steps_per_run: steps that one session.run makes; the values shown are of the last of them.
      display: a `progress.Lines` or `progress.LiveLine`.
      board: None or the `summaries.Board` that is to have all that is watched.
      stall: None or the `InputStall` of the input; its share of the time is then told as well.
      overflows: None or the `finiteness.Overflows` that an earlier hook adds to.
    """

    def __init__(self, model_dir, tensor_names, every_steps, total_steps, steps_per_epoch,
                 global_batch_size, steps_per_run=1, display=None, board=None, stall=None,
                 overflows=None):
        self._model_dir = model_dir
        self._tensor_names = tensor_names
        self._every_steps = every_steps
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._global_batch_size = global_batch_size
        self._steps_per_run = steps_per_run
        self._display = display or progress_lib.Lines()
        self._board = board
        self._stall = stall
        self._overflows = overflows

    def begin(self):
        graph = tf.get_default_graph()
        self._tensors = {name: graph.get_tensor_by_name(f'{name}:0') for name in self._tensor_names}
        if self._board:
            self._tensors['board'] = self._board.tensors(graph)
        # What TensorFlow's hooks fetch: to an NPU another tensor is another graph to compile.
        self._global_step = training_util._get_or_create_global_step_read()

    def after_create_session(self, session, coord):
        self._step = session.run(self._global_step)
        self._start = self._last = self._epoch_start = None
        self._epochs = int(self._step / self._steps_per_epoch)
        self._last_rate = self._last_stall = None

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._tensors)

    def after_run(self, run_context, run_values):
        earlier_step = self._step
        self._step += self._steps_per_run
        if self._start is None:
            self._start = self._last = self._epoch_start = (self._step, time.monotonic())
            if self._stall:
                self._stall.take()
        values = run_values.results
        self._display.update(self._progress(values))
        if self._step // self._every_steps > earlier_step // self._every_steps:
            # Counted steps are those that were tried; the variable knows those that were made.
            self._step = run_context.session.run(self._global_step)
            self._report(values)
        if self._step / self._steps_per_epoch >= self._epochs + 1:
            self._report_epoch()

    def _report(self, values):
        now = self._progress(values)
        self._display.report(now)
        scalars = {name: event_log.finite(values[name]) for name in self._tensor_names}
        if self._board:
            scalars.update(self._board.scalars(values['board']))
        if self._overflows:
            scalars['skipped_steps'] = self._overflows.total
        if now.input_stall is not None:
            scalars['input_stall'] = now.input_stall
        rate = now.images_per_sec if self._step > self._last[0] else None
        event_log.append(self._model_dir, 'train', step=now.step, epoch=round(now.epoch, 4),
                       images_per_sec=rate, **scalars)
        if self._board:
            self._board.write(now.step, {**scalars, 'epoch': now.epoch, 'images_per_sec': rate},
                              values['board'])
        self._last = (self._step, time.monotonic())
        self._last_rate, self._last_stall = now.images_per_sec, now.input_stall
        if self._stall:
            self._stall.take()

    def _report_epoch(self):
        self._epochs = int(self._step / self._steps_per_epoch)
        event_log.append(self._model_dir, 'epoch', epoch=self._epochs, step=int(self._step),
                       images_per_sec=self._images_per_sec(self._epoch_start))
        self._epoch_start = (self._step, time.monotonic())

    def _progress(self, values):
        """The `Progress` after the step of these values; rates are since the last line."""
        rate = self._images_per_sec(self._last) or self._last_rate
        stall, secs = None, time.monotonic() - self._last[1]
        if self._stall and self._step > self._last[0] and secs > 0:
            # A batch that the next step waits for already may come from before.
            stall = round(min(1.0, self._stall.secs / secs), 4)
        average = self._images_per_sec(self._start)
        left = (self._total_steps - self._step) * self._global_batch_size
        return progress_lib.Progress(
            step=int(self._step), total_steps=self._total_steps,
            epoch=self._step / self._steps_per_epoch,
            total_epochs=self._total_steps / self._steps_per_epoch,
            loss=float(values['loss']), top_1=float(values['top_1']),
            learning_rate=float(values['learning_rate']), images_per_sec=rate,
            input_stall=self._last_stall if stall is None else stall,
            eta_secs=left / average if average else None)

    def _images_per_sec(self, since):
        """Images per second since a (step, time), or None where no step has passed."""
        steps, secs = self._step - since[0], time.monotonic() - since[1]
        return round(steps * self._global_batch_size / secs, 2) if steps > 0 and secs > 0 else None

    def end(self, session):
        self._step = session.run(self._global_step)
        event_log.append(
            self._model_dir, 'train_stop', step=int(self._step),
            images_per_sec=self._images_per_sec(self._start) if self._start else None)
