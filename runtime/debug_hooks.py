"""The hook behind the dump flags of an NPU on stock TensorFlow."""
import tempfile
import time

import tensorflow.compat.v1 as tf
from tensorflow.python import debug as tf_debug


class DumpStepsHook(tf_debug.DumpingDebugHook):
    """Dumps every tensor of the chosen steps, for tfdbg's offline_analyzer.

    Args:
      folder: parent directory; each session makes a directory named by its time, with one
        directory per step.
      steps: list of ranges of global steps, as global_step is before the step.
    """

    def __init__(self, folder, steps):
        # tfdbg requires an empty directory.
        super().__init__(tempfile.mkdtemp(prefix=time.strftime('%Y%m%d-%H%M%S-'), dir=folder))
        self._steps = steps

    def after_create_session(self, session, coord):
        self._step = session.run(tf.train.get_global_step(session.graph))

    def before_run(self, run_context):
        if any(self._step in group for group in self._steps):
            return super().before_run(run_context)
        return None

    def after_run(self, run_context, run_values):
        self._step += 1
