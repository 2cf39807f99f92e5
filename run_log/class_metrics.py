"""Per-class metrics of evaluations: reading them from event files, scores, and CSV output."""
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

_MOST_NUMBERS = 10 ** 7    # elements of a metric, as a limit for corrupt files
COUNTS = ('class_images', 'class_predicted', 'class_correct')
CLASS_METRICS = (*COUNTS, 'confusion_matrix')


class ClassScores(NamedTuple):
    """The scores of a class, as defined by classification_report in scikit-learn.

    Attributes:
      class_index: number of the class, from 0.
      name: name of the class.
      precision: share of the images predicted as the class that belong to it; 0 if there are none.
      recall: share of the images of the class that are predicted as it; 0 if there are none.
      f1: harmonic mean of precision and recall; 0 if both are 0.
      support: number of images of the class.
    """
    class_index: int
    name: str
    precision: float
    recall: float
    f1: float
    support: int


def read_evaluations(folder):
    """Returns the per-class metrics in the event files of a directory.

    Returns:
      dict of step -> metrics of the last evaluation at that step: the COUNTS, arrays [classes], and
      for few classes 'confusion_matrix'. Files of earlier versions lack 'class_predicted'.

    Raises:
      UserError: a file is corrupt. A truncated end is accepted.
    """
    found = {}
    names = tf.gfile.ListDirectory(folder) if tf.gfile.IsDirectory(folder) else []
    for name in sorted(name for name in names if 'tfevents' in name):
        for record, reason in reader.iterate_records(os.path.join(folder, name)):
            if reason is not None:
                # The process that wrote the file was killed, and its last record is truncated.
                break
            try:
                event = tf.Event.FromString(record)
                figures = {value.tag: _array(value) for value in event.summary.value
                           if value.tag in CLASS_METRICS and value.HasField('tensor')}
            except (DecodeError, TypeError, ValueError) as error:
                raise UserError(f'{os.path.join(folder, name)}: corrupt ({first_line(error)}); '
                                'remove the file.') from error
            if figures:
                found.setdefault(event.step, {}).update(figures)
    return {step: {**(counts_of(metrics['confusion_matrix']) if 'confusion_matrix' in metrics
                      else {}), **metrics} for step, metrics in found.items()}


def _array(value):
    """Returns the array in a summary value; raises ValueError if its shape is implausible."""
    shape = [dim.size for dim in value.tensor.tensor_shape.dim]
    # A TensorProto may store one number for a whole array, which could be too large for memory.
    if len(shape) not in (1, 2) or not 0 < np.prod(shape, dtype=float) <= _MOST_NUMBERS:
        raise ValueError(f'{value.tag} has the shape {shape}')
    return tf.make_ndarray(value.tensor)


def evaluation_folder(model_dir, label):
    """Returns the directory in which an Estimator writes the events of the evaluation `label`."""
    return os.path.join(model_dir, f'eval_{label}' if label else 'eval')


def counts_of(confusion_matrix):
    """Returns the COUNTS of a confusion matrix.

    Args:
      confusion_matrix: [classes, classes], number of images by true class (row) and predicted
        class (column).
    """
    matrix = np.asarray(confusion_matrix)
    return dict(zip(COUNTS, (matrix.sum(1), matrix.sum(0), matrix.diagonal())))


def scores(counts, class_names):
    """Returns a list of the `ClassScores` of all classes, in order.

    Args:
      counts: dict with the COUNTS.
      class_names: names of the classes; empty if unknown.
    """
    images, predicted, correct = (np.asarray(counts[name], np.float64) for name in COUNTS)
    columns = [_ratio(correct, predicted), _ratio(correct, images),
               _ratio(2 * correct, images + predicted), images.astype(int)]
    return [ClassScores(index, class_names[index] if class_names else str(index), *values)
            for index, values in enumerate(zip(*(column.tolist() for column in columns)))]


def macro_f1(counts):
    """Returns the mean F1 over the classes that have images or are predicted for some image.

    f1_score(average='macro') in scikit-learn averages over the same classes.

    Args:
      counts: dict with the COUNTS.
    """
    images, predicted, correct = (np.asarray(counts[name], np.float64) for name in COUNTS)
    is_there = images + predicted > 0
    return float(np.mean(2 * correct[is_there] / (images + predicted)[is_there]))


def write_csv(path, class_scores):
    """Writes `ClassScores` to a CSV file with one row per class."""
    records = [{'class': index, 'name': name, **{key: round(value, 6) for key, value in zip(
        ClassScores._fields[2:], values)}} for index, name, *values in class_scores]
    table = text_tables.Findings({}, [text_tables.Table(records, ())], [])
    with whole_file(path) as file:
        file.write(text_tables.to_csv(table) + '\n')


def _ratio(numerators, denominators):
    return np.divide(numerators, denominators, out=np.zeros_like(numerators),
                     where=denominators > 0)
