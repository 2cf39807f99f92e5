"""Per-class figures of evaluations, which are in their event files."""
import os
from typing import NamedTuple

import tensorflow.compat.v1 as tf

from tfrecords import reader

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
            event = tf.Event.FromString(record)
            for value in event.summary.value:
                if value.tag in CLASS_METRICS and value.HasField('tensor'):
                    found.setdefault(event.step, {})[value.tag] = tf.make_ndarray(value.tensor)
    return found


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
