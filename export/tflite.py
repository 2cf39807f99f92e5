"""Exports to TFLite, in float32 or fully quantized to integers."""
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

# TFLite's depthwise convolution has a buffer of this many channels.
_MAX_FLOAT_CHANNELS = 4832
_MAX_INTEGER_CHANNELS = 2048


def write(trained, path, batch_size, calibration=None):
    """Writes the network of `trained` as a TFLite model.

    Args:
      trained: a `TrainedModel`.
      path: path of the file.
      batch_size: int; None becomes 1, because TFLite's shapes are static.
      calibration: None for float32. For quantization, a function without arguments that yields
        float32 images [1, height, width, 3]; they determine the range of each tensor.

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
            raise UserError(f'TFLite: cannot convert this network ({last_line(error)}); remove '
                            'tflite from --formats.') from error
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
    """Raises UserError if a depthwise convolution has too many channels for TFLite.

    TFLite would never return from such a convolution, because the channels exceed its buffer.
    """
    for op in graph.get_operations():
        if op.type == 'DepthwiseConv2dNative':
            channels = op.outputs[0].shape[-1].value
            if channels > max_channels:
                raise UserError(
                    f'{op.name}: has {channels} channels, but TFLite in TensorFlow 1.15 supports '
                    f'at most {max_channels}; remove tflite from --formats, or export a narrower '
                    'network.')


@contextlib.contextmanager
def _converter_on_path():
    """Puts the interpreter's directory on PATH, where TensorFlow looks up toco_from_protos."""
    path, folder = os.environ.get('PATH', ''), tempfile.tempdir
    os.environ['PATH'] = os.pathsep.join([os.path.dirname(sys.executable), path])
    try:
        # The converter leaves temporary files behind.
        with tempfile.TemporaryDirectory() as tempfile.tempdir:
            yield
    finally:
        os.environ['PATH'] = path
        tempfile.tempdir = folder


@contextlib.contextmanager
def _without_notes():
    """Discards stdout, to which TFLite's C++ code prints a useless line for each quantized gate."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        # Buffered output of C would otherwise appear later.
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
