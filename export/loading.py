"""Loads an exported model of any format, or a checkpoint, behind one interface.

The path determines the format. A directory is a SavedModel, or contains SavedModels by version.
Files end in .pb (frozen graph), .tflite or .onnx.
"""
import contextlib
import dataclasses
import faulthandler
import json
import os
import signal
from typing import Any
from typing import Callable
from typing import Dict
from typing import Optional

import numpy as np
import tensorflow.compat.v1 as tf

from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.files import literal
from common.image_sizes import ImageSize
from common.paths import check_input_file
from common.paths import check_input_folder
from export import inference_graph
import preprocessing
from tfrecords import layout

EXPORT_REQUIREMENTS = 'requirements-export.lock'
# The directory in a SavedModel that TensorFlow reserves for files of other programs.
EXTRA_DIR = 'assets.extra'
_DESCRIPTION = 'export.json'
_FIELDS = {
    'resize_method': json_files.optional(json_files.Kind(
        ' or '.join(preprocessing.RESIZE_METHODS),
        lambda value: value in preprocessing.RESIZE_METHODS)),
    'class_names': json_files.optional(json_files.TEXTS)}
# Time limit of the trial run of a TFLite file, which may never end.
_SURVIVAL_SECS = 60


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
      run: function that maps float32 [batch_size, height, width, 3], RGB in [0, 255], to a dict of
        arrays 'classes', 'probabilities', 'logits' and any other exported outputs.
      image_size: `ImageSize` of these images.
      batch_size: int, or None for any.
      description: `TrainedModel.description`, or {} for a file without one.
      data_dir, shards: see `TrainedModel`; '' and the default for exports, which do not store them.
    """
    run: Callable
    image_size: ImageSize
    batch_size: Optional[int]
    description: Dict[str, Any]
    data_dir: str = ''
    shards: layout.Layout = layout.DETECTED

    @property
    def resize_method(self):
        return self.description.get('resize_method') or 'bicubic'

    @property
    def class_names(self):
        return self.description.get('class_names') or []

    def predict(self, images):
        """Returns the predictions of any number of images, split if the batch size is fixed.

        Args:
          images: float32 [N, height, width, 3], RGB in [0, 255].

        Returns:
          dict of arrays [N, ...], see `run`.
        """
        size = self.batch_size or len(images)
        portions = []
        for start in range(0, len(images), size):
            portion = images[start:start + size]
            padding = [[0, size - len(portion)], [0, 0], [0, 0], [0, 0]]
            outputs = self.run(np.pad(portion, padding, 'constant'))
            portions.append({name: output[:len(portion)] for name, output in outputs.items()})
        return {name: np.concatenate([portion[name] for portion in portions])
                for name in portions[0]}


@contextlib.contextmanager
def load(path):
    """Loads the exported model at `path` for a with block; yields a `LoadedModel`.

    Raises:
      UserError: it does not exist or is corrupt, or its runtime is not installed.
    """
    if not path or not tf.gfile.Exists(path):
        raise UserError(f'{path!r}: does not exist; name a SavedModel or a .pb, .tflite or .onnx '
                        'file that export_model.py wrote.')
    loaders = {'.pb': _frozen, '.tflite': _tflite, '.onnx': _onnx}
    extension = os.path.splitext(path)[1]
    if tf.gfile.IsDirectory(path):
        check_input_folder(path)
        path, loader = _newest_version(path), _saved_model
    elif extension in loaders:
        check_input_file(path)
        loader = loaders[extension]
    else:
        raise UserError(f'{path}: neither a SavedModel nor a .pb, .tflite or .onnx file; name '
                        'one.')
    with contextlib.ExitStack() as stack:
        try:
            run, shape = stack.enter_context(loader(path))
        except UserError:
            raise
        except Exception as error:  # Each runtime raises its own types of errors.
            raise UserError(
                f'{path}: cannot be loaded ({first_line(error)}); export it again.') from error
        yield LoadedModel(run, ImageSize(*shape[1:3]), shape[0], read_description(path))


@contextlib.contextmanager
def from_trained(trained):
    """Builds and restores a `TrainedModel` for a with block; yields a `LoadedModel`."""
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(tf.float32, [None, *trained.image_shape])
        outputs = trained.outputs(images)
        trained.restore(session)
        yield LoadedModel(lambda values: session.run(outputs, {images: values}),
                          trained.image_size, None, trained.description, trained.data_dir,
                          trained.shards)


def describe(path, description):
    """Writes `LoadedModel.description` into a SavedModel, or into a JSON file beside a file."""
    with tf.gfile.GFile(_description_path(path), 'w') as file:
        json.dump(description, file, indent=2)


def _description_path(path):
    if tf.gfile.IsDirectory(path):
        return os.path.join(path, EXTRA_DIR, _DESCRIPTION)
    return f'{path}.json'


def read_description(path):
    """Returns `LoadedModel.description` of an exported model."""
    description_path = _description_path(path)
    return json_files.read_if_any(description_path, 'export the model again', _FIELDS) or {}


def _newest_version(folder):
    """Returns `folder` if it is a SavedModel, else its subdirectory with the highest number."""
    if tf.saved_model.maybe_saved_model_directory(folder):
        return folder
    versions = [name.rstrip('/') for name in tf.gfile.ListDirectory(folder)]
    versions = [name for name in versions if name.isdigit()]
    if not versions:
        raise UserError(f'{folder}: not a SavedModel and contains none; check --saved_model.')
    return os.path.join(folder, max(versions, key=int))


# Each loader yields (LoadedModel.run, static shape of the input images as a list).

@contextlib.contextmanager
def _saved_model(path):
    for folder, _, names in tf.gfile.Walk(path):
        for name in names:
            check_input_file(os.path.join(folder, name))
    with tf.Graph().as_default() as graph, tf.Session() as session:
        with literal(path) as folder:
            meta_graph = tf.saved_model.load(
                session, [tf.saved_model.tag_constants.SERVING], folder)
        if inference_graph.IMAGE not in meta_graph.signature_def:
            raise UserError(f"{path}: has no signature '{inference_graph.IMAGE}'; name a "
                            'SavedModel that export_model.py wrote.')
        signature = meta_graph.signature_def[inference_graph.IMAGE]
        images = graph.get_tensor_by_name(signature.inputs[inference_graph.IMAGE].name)
        outputs = {name: info.name for name, info in signature.outputs.items()}
        yield lambda values: session.run(outputs, {images: values}), images.shape.as_list()


@contextlib.contextmanager
def _frozen(path):
    graph_def = tf.GraphDef.FromString(_read(path))
    with tf.Graph().as_default() as graph, tf.Session() as session:
        tf.import_graph_def(graph_def, name='')
        # Outputs are the tensors without consumers. The image tensor exists in every graph: one
        # that takes encoded images computes it.
        images = graph.get_tensor_by_name(f'{inference_graph.IMAGE}:0')
        used = {tensor.op for op in graph.get_operations() for tensor in op.inputs}
        used |= {control for op in graph.get_operations() for control in op.control_inputs}
        outputs = {op.name: op.outputs[0] for op in graph.get_operations()
                   if op not in used and op.type not in _NO_OUTPUTS and op.outputs}
        yield lambda values: session.run(outputs, {images: values}), images.shape.as_list()


_NO_OUTPUTS = ('Assert', 'NoOp', 'Exit', 'Switch')


@contextlib.contextmanager
def _tflite(path):
    content = _read(path)
    _check_survivable(content)
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    image, = interpreter.get_input_details()

    def run(values):
        interpreter.set_tensor(image['index'], _quantized(values, image))
        interpreter.invoke()
        return {output['name']: _dequantized(interpreter.get_tensor(output['index']), output)
                for output in interpreter.get_output_details()}

    yield run, list(image['shape'])


def _check_survivable(content):
    """Raises ValueError for a TFLite file that crashes its interpreter.

    TFLite does not check that offsets lie inside the file, so a corrupt file may crash the process.
    A child process therefore loads and runs the file first.
    """
    child = os.fork()
    if not child:
        try:
            faulthandler.disable()
            signal.alarm(_SURVIVAL_SECS)
            interpreter = tf.lite.Interpreter(model_content=content)
            interpreter.allocate_tensors()
            interpreter.invoke()
        finally:
            # Python errors are ignored here, because the parent process raises them again.
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise ValueError('the file is corrupt')


def _quantized(values, details):
    """Returns real numbers r quantized for a TFLite tensor: q = r / scale + zero_point."""
    if details['dtype'] == np.float32:
        return values
    scale, zero_point = details['quantization']
    limits = np.iinfo(details['dtype'])
    return np.clip(np.round(values / scale + zero_point), limits.min,
                   limits.max).astype(details['dtype'])


def _dequantized(values, details):
    scale, zero_point = details['quantization']
    if not scale:
        return values
    return ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)


@contextlib.contextmanager
def _onnx(path):
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f'{path}: onnxruntime is not installed; install it with: python -m pip '
                        f'install -r {EXPORT_REQUIREMENTS}') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(_read(path), options)
    image, = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    batch_size = image.shape[0]

    def run(values):
        return dict(zip(names, session.run(names, {image.name: values})))

    yield run, [batch_size if isinstance(batch_size, int) else None, *image.shape[1:]]


def _read(path):
    with tf.gfile.GFile(path, 'rb') as file:
        return file.read()
