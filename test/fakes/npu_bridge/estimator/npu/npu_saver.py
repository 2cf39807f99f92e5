"""The Saver of NPUCheckpointSaverHook (docs/npu_bridge.md section 4)."""
import tensorflow.compat.v1 as _tf


class NPUSaver(_tf.train.Saver):
    """A Saver of all variables."""
