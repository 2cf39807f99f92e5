"""Counts the bytes and multiply-adds of TensorFlow operations."""
import numpy as np
import tensorflow.compat.v1 as tf

SWITCHES = {'Switch', 'RefSwitch', 'Merge', 'RefMerge'}
# Constants, variables, aliases and the control flow of a conditional update run no kernel.
NO_KERNELS = SWITCHES | {
    'Const', 'VariableV2', 'VarHandleOp', 'ReadVariableOp', 'Identity', 'IdentityN', 'NoOp',
    'Placeholder', 'IteratorV2', 'IteratorGetNext'}


def num_bytes(tensor):
    """Returns the bytes of a tensor, or 0 if its shape is unknown or its type is not numeric."""
    size, dtype = tensor.shape.num_elements(), tensor.dtype.base_dtype
    is_data = dtype not in (tf.resource, tf.variant, tf.string)
    return size * dtype.size if is_data and size is not None else 0


def multiply_adds(operation):
    """Returns the multiply-adds of a convolution or matrix product, forward or backward.

    Other operations return 0.
    """
    kind, shapes = operation.type, [tensor.shape.as_list() for tensor in operation.inputs
                                    if tensor.shape.rank]
    if 'MatMul' in kind:
        inner = shapes[0][-2 if operation.get_attr(
            'adj_x' if 'Batch' in kind else 'transpose_a') else -1]
        return np.prod(operation.outputs[0].shape.as_list(), dtype=float) * inner
    if 'Conv2D' not in kind and 'DepthwiseConv2d' not in kind:
        return 0
    # A kernel [h, w, in, out] is applied once per position of the forward convolution's output.
    if 'BackpropInput' in kind:
        kernel, result = shapes[-2], shapes[-1]
    elif 'BackpropFilter' in kind:
        kernel, result = operation.outputs[0].shape.as_list(), shapes[-1]
    else:
        kernel, result = shapes[1], operation.outputs[0].shape.as_list()
    if 'Depthwise' in kind:
        return np.prod(result, dtype=float) * kernel[0] * kernel[1]
    return np.prod(result, dtype=float) * np.prod(kernel[:3])
