"""Classifies image files with an exported SavedModel.

    python3.7 predict.py --saved_model=DIR IMAGE...
"""
import os

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf

import entry_point
from user_error import UserError

BATCH_SIZE = 32


def define_flags():
    flags.DEFINE_string('saved_model', '', 'A SavedModel, or the folder of its versions.')
    flags.DEFINE_integer('top_k', 5, 'Classes to print for each image.', lower_bound=1)


def main(argv):
    paths = argv[1:]
    if not paths:
        raise UserError('No image is given; name JPEG or PNG files after the flags.')
    saved_model_dir = newest_version(flags.FLAGS.saved_model)
    labels = read_labels(saved_model_dir)
    for path, probabilities in zip(paths, predict(saved_model_dir, paths)):
        ranking = np.argsort(-probabilities)[:flags.FLAGS.top_k]
        guesses = '  '.join(f'{labels.get(index, index)} {probabilities[index]:.3f}'
                            for index in ranking)
        print(f'{path}  {guesses}')


def newest_version(folder):
    """`folder` if it is a SavedModel, else its subfolder with the highest number."""
    if not folder:
        raise UserError('--saved_model is not given; name the folder export_model.py wrote.')
    if tf.saved_model.maybe_saved_model_directory(folder):
        return folder
    versions = []
    if tf.gfile.IsDirectory(folder):
        versions = [name.rstrip('/') for name in tf.gfile.ListDirectory(folder)]
        versions = [name for name in versions if name.isdigit()]
    if not versions:
        raise UserError(f'{folder} is no SavedModel and holds none; check --saved_model.')
    return os.path.join(folder, max(versions, key=int))


def read_labels(saved_model_dir):
    """Class index -> name; empty where the SavedModel has no labels."""
    path = os.path.join(saved_model_dir, 'assets.extra', 'labels.txt')
    if not tf.gfile.Exists(path):
        return {}
    with tf.gfile.GFile(path) as file:
        return dict(enumerate(file.read().splitlines()))


def predict(saved_model_dir, paths):
    """Yields the class probabilities of each image file, float32 [num_classes]."""
    with tf.Graph().as_default(), tf.Session() as session:
        meta_graph = tf.saved_model.load(
            session, [tf.saved_model.tag_constants.SERVING], saved_model_dir)
        signature = meta_graph.signature_def['serving_default']
        image_bytes = signature.inputs['image_bytes'].name
        probabilities = signature.outputs['probabilities'].name
        for start in range(0, len(paths), BATCH_SIZE):
            batch = [_read(path) for path in paths[start:start + BATCH_SIZE]]
            yield from session.run(probabilities, {image_bytes: batch})


def _read(path):
    try:
        with tf.gfile.GFile(path, 'rb') as file:
            return file.read()
    except tf.errors.OpError as error:
        raise UserError(f'{path} cannot be read ({error.message}).') from error


if __name__ == '__main__':
    define_flags()
    entry_point.run(main, takes_arguments=True)
