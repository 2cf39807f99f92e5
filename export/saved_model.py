"""Exports SavedModels for TensorFlow Serving.

A SavedModel has three signatures. 'image_bytes' takes JPEG or PNG files of any size. 'image' takes
float32 [batch, height, width, 3], RGB in [0, 255]. 'serving_default' is one of the two.
"""
import os

import tensorflow.compat.v1 as tf

from common.files import whole_file
from common.paths import check_output_folder
from export import inference_graph
from export import loading
from export import verify

LABELS_FILE = 'labels.txt'
_DEFAULT = tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY


def write(trained, path, input_name, batch_size):
    """Writes the network of `trained` as a SavedModel.

    Args:
      trained: a `TrainedModel`.
      path: directory, which must not exist.
      input_name: signature that 'serving_default' equals, one of `inference_graph.INPUTS`.
      batch_size: int, or None for any.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        inputs = dict(zip(
            inference_graph.INPUTS, inference_graph.input_tensors(trained, batch_size)))
        outputs = trained.outputs(inputs[inference_graph.IMAGE])
        trained.restore(session)
        signatures = {name: tf.saved_model.predict_signature_def({name: tensor}, outputs)
                      for name, tensor in inputs.items()}
        builder = tf.saved_model.Builder(path)
        builder.add_meta_graph_and_variables(
            session, [tf.saved_model.tag_constants.SERVING],
            signature_def_map={**signatures, _DEFAULT: signatures[input_name]})
        builder.save()
    _add_labels(trained, path)


def publish(trained, export_dir):
    """Writes and checks the SavedModel of `trained` as `export_dir`/<step>.

    Returns:
      `ExportReport`.

    Raises:
      UserError: it does not reproduce the checkpoint's predictions, or cannot be written.
    """
    return verify.publish(
        published_path(export_dir, trained.step),
        lambda path: write(trained, path, inference_graph.IMAGE_BYTES, None),
        trained.description, verify.expectation(trained))


def published_path(export_dir, step):
    """Returns the path to which `publish` writes the SavedModel of a step."""
    return os.path.join(export_dir, str(step))


def check_publishable(export_dir, step):
    """Raises UserError if `publish` could not write the SavedModel of a step."""
    path = published_path(export_dir, step)
    check_output_folder(path, '--export_dir')
    verify.check_replaceable(path)


def _add_labels(trained, path):
    extra_dir = os.path.join(path, loading.EXTRA_DIR)
    tf.gfile.MakeDirs(extra_dir)
    if trained.class_names:
        write_labels(trained, os.path.join(extra_dir, LABELS_FILE))


def write_labels(trained, path):
    """Writes the class names to a file, one per line."""
    with whole_file(path) as file:
        file.write('\n'.join(trained.class_names) + '\n')
