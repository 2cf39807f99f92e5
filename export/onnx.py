"""Exports to ONNX with tf2onnx."""
import logging

import tensorflow.compat.v1 as tf

from common.errors import UserError
from condconv_layers import CondConvImplementation
from export import inference_graph
from export import loading

# ONNX 1.8 (December 2020) is old enough for most runtimes.
OPSET = 13


def check_installed():
    """Raises UserError if the converter or the runtime is not installed."""
    try:
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise UserError(f'--formats=onnx: a package is not installed ({error}); install it with: '
                        f'python -m pip install -r {loading.EXPORT_REQUIREMENTS}') from error


def write(trained, path, batch_size):
    """Writes the network of `trained` as an ONNX model.

    Args:
      trained: a `TrainedModel`.
      path: path of the file.
      batch_size: int, or None for any.
    """
    import tf2onnx
    # ONNX cannot represent a convolution whose number of channels depends on a free batch size.
    implementation = (CondConvImplementation.FOLD if batch_size
                      else CondConvImplementation.EXPERTS_DEPTHWISE)
    graph_def, output_names = inference_graph.constant_graph(
        trained, inference_graph.IMAGE, batch_size, condconv_implementation=implementation)
    logging.getLogger('tf2onnx').setLevel(logging.ERROR)
    names = {f'{name}:0': name for name in [inference_graph.IMAGE, *output_names]}
    model, _ = tf2onnx.convert.from_graph_def(
        graph_def, name=trained.model_name, opset=OPSET, input_names=[f'{inference_graph.IMAGE}:0'],
        output_names=[f'{name}:0' for name in output_names], tensors_to_rename=names)
    if batch_size is None:
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[0].dim_param = 'batch'
    with tf.gfile.GFile(path, 'wb') as file:
        file.write(model.SerializeToString())
