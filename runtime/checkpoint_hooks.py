"""Checkpoints in the course of a training session."""
import os
import threading

import tensorflow.compat.v1 as tf

from common.files import readable_errors


class CheckpointHook(tf.train.CheckpointSaverHook):
    """Saves as TensorFlow's own hook does, but begins sooner.

    That one first writes the graph as text, which takes seconds at thousands of nodes, however
    small the network; TensorBoard shows the graph from the event file, where it stays. And it saves
    once more what the session has just been restored from.

    Args:
      folder: where checkpoints go.
      restored_dir: where those of a resumed run come from; default: `folder`.
      **kwargs: of tf.train.CheckpointSaverHook.

    Raises:
      UserError: a file cannot be written.
    """

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
    """Saves in a thread while training goes on; what fails there is raised at the next save.

    The variables of such a checkpoint may be a few steps apart.
    """

    _thread = _error = None

    def _save(self, session, step):
        self._wait()
        # TensorFlow looks for it in the default graph, of which each thread has its own.
        self._get_saver()
        self._thread = threading.Thread(target=self._save_now, args=(session, step))
        self._thread.start()

    def _save_now(self, session, step):
        try:
            super()._save(session, step)
        except Exception as error:  # Whatever it is, the training ends with it.
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
