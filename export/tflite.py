"""TFLite, in floating point or in integers throughout."""
import contextlib
import ctypes
import os
import sys
import tempfile

import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import last_line
from condconv_layers import CondConvImplementation
from export import inference_graph

# Of a depthwise convolution: the size of its buffer.
_MAX_FLOAT_CHANNELS = 4832
_MAX_INTEGER_CHANNELS = 2048


def write(trained, path, batch_size, calibration=None):
    """Writes the network of `trained` for TFLite.

    TFLite's shapes are static: a batch of any size becomes one of 1.

    Args:
      trained: a `TrainedModel`.
      path: of the file.
      batch_size: images, or None.
      calibration: None for floating point. For integers, a function without arguments that yields
        images [1, height, width, 3]: the ranges of all tensors are those that these give them.

    Raises:
      UserError: the converter fails.
    """
    batch_size = batch_size or 1
    graph_def, output_names = inference_graph.constant_graph(
        trained, inference_graph.IMAGE, batch_size,
        condconv_implementation=_condconv_implementation(calibration is not None, batch_size))
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name='')
        _check_depthwise(graph, _MAX_INTEGER_CHANNELS if calibration else _MAX_FLOAT_CHANNELS)
        converter = tf.lite.TFLiteConverter(
            graph_def, [graph.get_tensor_by_name(f'{inference_graph.IMAGE}:0')],
            [graph.get_tensor_by_name(f'{name}:0') for name in output_names])
        if calibration:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image] for image in calibration())
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        try:
            with _converter_on_path(), _without_notes():
                model = converter.convert()
        except (tf.lite.ConverterError, RuntimeError, ValueError) as error:
            raise UserError(f'TFLite cannot take this network ({last_line(error)}); leave tflite '
                            'out of --formats.') from error
    with tf.gfile.GFile(path, 'wb') as file:
        file.write(model)


def _condconv_implementation(is_quantized, batch_size):
    if is_quantized:
        # Only constant kernels can be quantized.
        return CondConvImplementation.EXPERTS
    if batch_size > 1:
        return CondConvImplementation.EXPERTS_DEPTHWISE
    return CondConvImplementation.FOLD


def _check_depthwise(graph, max_channels):
    """TFLite's depthwise convolution never ends when its channels do not fit into its buffer."""
    for op in graph.get_operations():
        if op.type == 'DepthwiseConv2dNative':
            channels = op.outputs[0].shape[-1].value
            if channels > max_channels:
                raise UserError(
                    f'{op.name} has {channels} channels, of which TFLite in TensorFlow 1.15 can do '
                    f'{max_channels} at most; leave TFLite out, or export a narrower network.')


@contextlib.contextmanager
def _converter_on_path():
    """TensorFlow runs toco_from_protos, a program that lies beside the interpreter."""
    path, folder = os.environ.get('PATH', ''), tempfile.tempdir
    os.environ['PATH'] = os.pathsep.join([os.path.dirname(sys.executable), path])
    try:
        # It leaves files of no use among the temporary ones.
        with tempfile.TemporaryDirectory() as tempfile.tempdir:
            yield
    finally:
        os.environ['PATH'] = path
        tempfile.tempdir = folder


@contextlib.contextmanager
def _without_notes():
    """Quantizing prints a line of no use for each gate to stdout, from C++ and so past Python."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        # What C holds back would follow later.
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
