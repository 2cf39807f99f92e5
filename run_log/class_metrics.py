"""Per-class figures of evaluations, which are in their event files."""
import os
from typing import NamedTuple

from google.protobuf.message import DecodeError
import numpy as np
import tensorflow.compat.v1 as tf

from common import text_tables
from common.errors import UserError
from common.errors import first_line
from common.files import whole_file
from tfrecords import reader

_MOST_NUMBERS = 10 ** 7
COUNTS = ('class_images', 'class_predicted', 'class_correct')
CLASS_METRICS = (*COUNTS, 'confusion_matrix')


class ClassScores(NamedTuple):
    """The figures of a class, as scikit-learn's classification_report has them.

    Attributes:
      class_index, name: of the class.
      precision: share of the images taken for the class that are of it; 0 if there are none.
      recall: share of the images of the class that are taken for it; 0 if there are none.
      f1: harmonic mean of the two; 0 if both are.
      support: number of images of the class.
    """
    class_index: int
    name: str
    precision: float
    recall: float
    f1: float
    support: int


def read_evaluations(folder):
    """What the event files of evaluations say of classes.

    Returns:
      step -> dict of COUNTS, [classes] each, and for few classes 'confusion_matrix'; of the last
      evaluation of that step. Earlier versions have not counted 'class_predicted'.
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
    return {step: {**(counts_of(metrics['confusion_matrix']) if 'confusion_matrix' in metrics
                      else {}), **metrics} for step, metrics in found.items()}


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


def counts_of(confusion_matrix):
    """Returns the COUNTS of a confusion matrix.

    Args:
      confusion_matrix: [classes, classes], images of the row's class taken for the column's.
    """
    matrix = np.asarray(confusion_matrix)
    return dict(zip(COUNTS, (matrix.sum(1), matrix.sum(0), matrix.diagonal())))


def scores(counts, class_names):
    """Returns the `ClassScores` of each class, in order.

    Args:
      counts: dict with the COUNTS.
      class_names: their names; empty where they have none.
    """
    images, predicted, correct = (np.asarray(counts[name], np.float64) for name in COUNTS)
    columns = [_ratio(correct, predicted), _ratio(correct, images),
               _ratio(2 * correct, images + predicted), images.astype(int)]
    return [ClassScores(index, class_names[index] if class_names else str(index), *values)
            for index, values in enumerate(zip(*(column.tolist() for column in columns)))]


def macro_f1(counts):
    """Returns the mean F1 over the classes that have images or are taken for some.

    These are the classes of scikit-learn's f1_score(average='macro').

    Args:
      counts: dict with the COUNTS.
    """
    images, predicted, correct = (np.asarray(counts[name], np.float64) for name in COUNTS)
    is_there = images + predicted > 0
    return float(np.mean(2 * correct[is_there] / (images + predicted)[is_there]))


def write_csv(path, class_scores):
    """Writes `ClassScores` as a table with a row for each class."""
    records = [{'class': index, 'name': name, **{key: round(value, 6) for key, value in zip(
        ClassScores._fields[2:], values)}} for index, name, *values in class_scores]
    table = text_tables.Findings({}, [text_tables.Table(records, ())], [])
    with whole_file(path) as file:
        file.write(text_tables.to_csv(table) + '\n')


def _ratio(numerators, denominators):
    return np.divide(numerators, denominators, out=np.zeros_like(numerators),
                     where=denominators > 0)
