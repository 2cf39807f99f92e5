"""What happens between training steps: the progress line."""
import time

from absl import logging
import tensorflow.compat.v1 as tf

from training import results


class InputStall:
    """Adds up how long the device has waited for input. Filled from the pipeline's threads."""

    def __init__(self):
        self._secs = 0.0

    def add(self, secs):
        self._secs += secs

    def take(self):
        """Seconds since the last call."""
        secs, self._secs = self._secs, 0.0
        return secs


class ProgressHook(tf.train.SessionRunHook):
    """Logs a line, and writes a 'train' event and summaries, every `every_steps` steps.

    The clock starts when the first step is over, because that step waits for the graph to be
    optimised (on an NPU: compiled) and for the shuffle buffer to fill. Each step fetches the same
    tensors, since with others the graph would be optimised or compiled once more. Summaries are
    written here, without an op, for the same reason.

    Args:
      model_dir: where results.jsonl and the summaries are; None for a rank that does not report.
      tensor_names: names of the scalars to show; the graph must have them, see model_fn.PROGRESS.
      every_steps: steps between lines.
      total_steps: where training ends, for the ETA.
      steps_per_epoch, global_batch_size: turn steps into epochs and images.
      steps_per_run: steps that one session.run makes; the values shown are of the last of them.
      writes_summaries: whether TensorBoard is to see the scalars and the epoch, as 'train/...'.
      stall: None or the `InputStall` of the input; its share of the time is then told as well.
    """

    def __init__(self, model_dir, tensor_names, every_steps, total_steps, steps_per_epoch,
                 global_batch_size, steps_per_run=1, writes_summaries=True, stall=None):
        self._model_dir = model_dir
        self._tensor_names = tensor_names
        self._every_steps = every_steps
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._global_batch_size = global_batch_size
        self._steps_per_run = steps_per_run
        self._writes_summaries = writes_summaries and model_dir is not None
        self._stall = stall

    def begin(self):
        graph = tf.get_default_graph()
        self._tensors = {name: graph.get_tensor_by_name(f'{name}:0') for name in self._tensor_names}
        self._global_step = tf.train.get_global_step()

    def after_create_session(self, session, coord):
        self._step = session.run(self._global_step)
        self._start = self._last = None

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._tensors)

    def after_run(self, run_context, run_values):
        earlier_step = self._step
        self._step += self._steps_per_run
        if self._start is None:
            self._start = self._last = (self._step, time.monotonic())
            if self._stall:
                self._stall.take()
        if self._step // self._every_steps > earlier_step // self._every_steps:
            # Counted steps are those that were tried; the variable knows those that were made.
            self._step = run_context.session.run(self._global_step)
            self._report(run_values.results)

    def _report(self, values):
        images_per_sec = self._images_per_sec(self._last)
        input_stall = self._input_stall()
        self._last = (self._step, time.monotonic())
        epoch = self._step / self._steps_per_epoch
        scalars = {name: float(values[name]) for name in self._tensor_names}
        rate_text = '-' if images_per_sec is None else f'{images_per_sec:.1f}'
        logging.info(
            'step %d/%d  epoch %.2f  loss %.4f  top-1 %.3f  lr %.3g  %s images/s  ETA %s%s',
            self._step, self._total_steps, epoch, scalars['loss'], scalars['top_1'],
            scalars['learning_rate'], rate_text, self._eta_text(),
            f"  input stall {input_stall['input_stall']:.0%}" if input_stall else '')
        results.append(self._model_dir, 'train', step=int(self._step), epoch=round(epoch, 4),
                       **scalars, images_per_sec=images_per_sec, **input_stall)
        if self._writes_summaries:
            summary = tf.Summary(value=[
                tf.Summary.Value(tag=f'train/{name}', simple_value=value)
                for name, value in {**scalars, 'epoch': epoch}.items()])
            tf.summary.FileWriterCache.get(self._model_dir).add_summary(summary, self._step)

    def _images_per_sec(self, since):
        """Images per second since a (step, time), or None where no step has passed."""
        if since is None:
            return None
        steps, secs = self._step - since[0], time.monotonic() - since[1]
        return round(steps * self._global_batch_size / secs, 2) if steps > 0 and secs > 0 else None

    def _input_stall(self):
        """{'input_stall': share of the time since the last line}; empty where none is known."""
        secs = time.monotonic() - self._last[1]
        if self._stall is None or secs <= 0:
            return {}
        # A batch that the next step waits for already may come from before.
        return {'input_stall': round(min(1.0, self._stall.take() / secs), 4)}

    def _eta_text(self):
        rate = self._images_per_sec(self._start)
        if not rate:
            return '-'
        secs = (self._total_steps - self._step) * self._global_batch_size / rate
        hours, rest = divmod(int(secs), 3600)
        return f'{hours}:{rest // 60:02d}:{rest % 60:02d}'

    def end(self, session):
        self._step = session.run(self._global_step)
        if self._writes_summaries:
            tf.summary.FileWriterCache.get(self._model_dir).flush()
        results.append(self._model_dir, 'train_stop', step=int(self._step),
                       images_per_sec=self._images_per_sec(self._start))
