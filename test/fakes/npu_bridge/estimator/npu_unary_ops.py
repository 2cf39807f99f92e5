"""docs/npu_bridge.md section 8: the op library."""
import tensorflow.compat.v1 as _tf


def gelu(x, name=None):
    """GELU by its tanh approximation."""
    with _tf.name_scope(name, 'Gelu'):
        return 0.5 * x * (1 + _tf.tanh(0.7978845608 * (x + 0.044715 * x ** 3)))
