"""Hooks that save checkpoints during a training session."""
import os
import threading

import tensorflow.compat.v1 as tf

from common.files import readable_errors


class CheckpointHook(tf.train.CheckpointSaverHook):
    """Saves like tf.train.CheckpointSaverHook, with a faster start.

    Args:
      folder: directory of the checkpoints.
      restored_dir: directory that a resumed run restores from; default: `folder`.
      **kwargs: arguments of tf.train.CheckpointSaverHook.

    Raises:
      UserError: a file cannot be written.
    """
    # TensorFlow's hook writes graph.pbtxt first, which takes seconds for thousands of nodes; the
    # event file keeps the graph for TensorBoard. It also saves again the checkpoint that the
    # session was restored from.

    def __init__(self, folder, restored_dir=None, **kwargs):
        super().__init__(folder, **kwargs)
        self._restored_dir = restored_dir or folder

    def after_create_session(self, session, coord):
        step = session.run(self._global_step_tensor)
        self._summary_writer.add_graph(tf.get_default_graph())
        name = os.path.basename(self._save_path)
        if (tf.train.latest_checkpoint(self._restored_dir)
                != os.path.join(self._restored_dir, f'{name}-{step}')):
            self._save(session, step)
        self._timer.update_last_triggered_step(step)

    def _save(self, session, step):
        with readable_errors():
            return super()._save(session, step)


class AsyncCheckpointHook(CheckpointHook):
    """Saves in a thread while training continues; the next step raises an error of that thread.

    The variables of one checkpoint may be a few steps apart.
    """

    _thread = _error = None

    def _save(self, session, step):
        self._wait()
        # Creates the saver here: TensorFlow looks it up in the default graph, which is per thread.
        self._get_saver()
        self._thread = threading.Thread(target=self._save_now, args=(session, step))
        self._thread.start()

    def _save_now(self, session, step):
        try:
            super()._save(session, step)
        except Exception as error:  # after_run or _wait raises it.
            self._error = error

    def _wait(self):
        if self._thread:
            self._thread.join()
        if self._error:
            raise self._error

    def after_run(self, run_context, run_values):
        if self._error:
            raise self._error
        super().after_run(run_context, run_values)

    def end(self, session):
        super().end(session)
        self._wait()
