"""docs/npu_bridge.md section 1: where the op library is loaded. Here the ops are plain Python."""
from npu_bridge.estimator import npu_unary_ops


def get_gen_ops():
    """The op library."""
    return npu_unary_ops
