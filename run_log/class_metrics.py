"""Per-class figures of evaluations, which are in their event files."""
import os
from typing import NamedTuple

from google.protobuf.message import DecodeError
import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from tfrecords import reader

_MOST_NUMBERS = 10 ** 7
CLASS_METRICS = ('class_images', 'class_correct', 'confusion_matrix')


class ClassAccuracy(NamedTuple):
    """The share of a class's validation images that are classified correctly."""
    name: str
    accuracy: float
    num_images: int


def read_evaluations(folder):
    """What the event files of evaluations say of classes.

    Returns:
      step -> dict of 'class_images' and 'class_correct', [classes] each, and for few classes
      'confusion_matrix'; of the last evaluation of that step.
    """
    found = {}
    names = tf.gfile.ListDirectory(folder) if tf.gfile.IsDirectory(folder) else []
    for name in sorted(name for name in names if 'tfevents' in name):
        for record, reason in reader.iterate_records(os.path.join(folder, name)):
            if reason is not None:
                # The truncated end of a file whose writer was killed.
                break
            try:
                event = tf.Event.FromString(record)
                figures = {value.tag: _array(value) for value in event.summary.value
                           if value.tag in CLASS_METRICS and value.HasField('tensor')}
            except (DecodeError, TypeError, ValueError) as error:
                raise UserError(f'{os.path.join(folder, name)}: damaged ({first_line(error)}); '
                                'remove the file.') from error
            if figures:
                found.setdefault(event.step, {}).update(figures)
    return found


def _array(value):
    """The array of a value of a summary; ValueError if it cannot be one of CLASS_METRICS."""
    shape = [dim.size for dim in value.tensor.tensor_shape.dim]
    # A single number may stand for all of a shape that no memory holds.
    if len(shape) not in (1, 2) or not 0 < np.prod(shape, dtype=float) <= _MOST_NUMBERS:
        raise ValueError(f'{value.tag} has the shape {shape}')
    return tf.make_ndarray(value.tensor)


def evaluation_folder(model_dir, label):
    """Where an Estimator puts the event file of the evaluation called `label`."""
    return os.path.join(model_dir, f'eval_{label}' if label else 'eval')


def accuracy_by_class(class_images, class_correct, class_names):
    """Returns the `ClassAccuracy` of each class that has images, the worst class first.

    Args:
      class_images, class_correct: [classes], of `read_evaluations`.
      class_names: their names.
    """
    found = [ClassAccuracy(name, correct / count, int(count))
             for name, count, correct in zip(class_names, class_images, class_correct) if count]
    return sorted(found, key=lambda line: line.accuracy)
