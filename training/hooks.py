"""What happens between training steps: the progress line."""
import time

from absl import logging
import tensorflow.compat.v1 as tf

from training import results


class ProgressHook(tf.train.SessionRunHook):
    """Logs a line, and writes a 'train' event, every `every_steps` steps.

    The clock starts when the first step is over, because that step waits for the graph to be
    optimised (on an NPU: compiled) and for the shuffle buffer to fill.

    Args:
      model_dir: where results.jsonl is.
      tensor_names: names of the scalars to show; the graph must have them, see model_fn.PROGRESS.
      every_steps: steps between lines.
      total_steps: where training ends, for the ETA.
      steps_per_epoch, global_batch_size: turn steps into epochs and images.
    """

    def __init__(self, model_dir, tensor_names, every_steps, total_steps, steps_per_epoch,
                 global_batch_size):
        self._model_dir = model_dir
        self._tensor_names = tensor_names
        self._every_steps = every_steps
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._global_batch_size = global_batch_size

    def begin(self):
        graph = tf.get_default_graph()
        self._tensors = {name: graph.get_tensor_by_name(f'{name}:0') for name in self._tensor_names}
        self._global_step = tf.train.get_global_step()

    def after_create_session(self, session, coord):
        self._step = session.run(self._global_step)
        self._start = self._last = None

    def before_run(self, run_context):
        if (self._step + 1) % self._every_steps == 0:
            return tf.train.SessionRunArgs(self._tensors)
        return None

    def after_run(self, run_context, run_values):
        self._step += 1
        if self._start is None:
            self._start = self._last = (self._step, time.monotonic())
        if run_values.results:
            # Counted steps are those that were tried; the variable knows those that were made.
            self._step = run_context.session.run(self._global_step)
            self._report(run_values.results)

    def _report(self, values):
        images_per_sec = self._images_per_sec(self._last)
        self._last = (self._step, time.monotonic())
        epoch = self._step / self._steps_per_epoch
        loss, top_1, learning_rate = (float(values[name]) for name in self._tensor_names)
        rate_text = '-' if images_per_sec is None else f'{images_per_sec:.1f}'
        logging.info(
            'step %d/%d  epoch %.2f  loss %.4f  top-1 %.3f  lr %.3g  %s images/s  ETA %s',
            self._step, self._total_steps, epoch, loss, top_1, learning_rate, rate_text,
            self._eta_text())
        results.append(
            self._model_dir, 'train', step=int(self._step), epoch=round(epoch, 4), loss=loss,
            top_1=top_1, learning_rate=learning_rate, images_per_sec=images_per_sec)

    def _images_per_sec(self, since):
        """Images per second since a (step, time), or None where no step has passed."""
        if since is None:
            return None
        steps, secs = self._step - since[0], time.monotonic() - since[1]
        return round(steps * self._global_batch_size / secs, 2) if steps > 0 and secs > 0 else None

    def _eta_text(self):
        rate = self._images_per_sec(self._start)
        if not rate:
            return '-'
        secs = (self._total_steps - self._step) * self._global_batch_size / rate
        hours, rest = divmod(int(secs), 3600)
        return f'{hours}:{rest // 60:02d}:{rest % 60:02d}'

    def end(self, session):
        self._step = session.run(self._global_step)
        results.append(self._model_dir, 'train_stop', step=int(self._step),
                       images_per_sec=self._images_per_sec(self._start))
