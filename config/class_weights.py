"""Class weights: balanced ones from class counts, or those in a CSV file."""
import csv
import io
import math

import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.paths import check_input_file

# The value of --class_weights that is not a path.
BALANCED = 'balanced'


def balanced(counts):
    """Returns the weight N / (K n) of each class with n of N images; K classes have images.

    The mean weight over the images is 1. A class without images gets weight 0.

    Args:
      counts: number of images of each class, in order.

    Source: King and Zeng, "Logistic Regression in Rare Events Data", 2001, as implemented by
    class_weight='balanced' in scikit-learn.
    """
    counts = np.asarray(counts, np.float64)
    has_images = counts > 0
    weights = np.divide(counts.sum(), has_images.sum() * counts, out=np.zeros_like(counts),
                        where=has_images)
    return tuple(weights.tolist())


def read(path, class_names, num_classes):
    """Returns the weights in a CSV file as a tuple in the order of the classes.

    Args:
      path: CSV file with rows of class,weight, with or without a header. A class is given by its
        name or, if no class has that name, by its number from 0.
      class_names: names of the model's classes in order; empty if unknown.
      num_classes: number of classes of the model.

    Raises:
      UserError: the file cannot be read; a class is unknown, missing or repeated; a weight is not
        a finite number of at least 0; or all weights are 0.
    """
    place = f'--class_weights={path}'
    check_input_file(path, '--class_weights')
    try:
        with tf.gfile.GFile(path) as file:
            rows = [row for row in csv.reader(io.StringIO(file.read())) if row]
    except (tf.errors.OpError, csv.Error, ValueError) as error:
        raise UserError(f'{place}: cannot be read ({first_line(error)}); name a CSV file of '
                        'class,weight.') from error
    if rows and [cell.strip().lower() for cell in rows[0]] == ['class', 'weight']:
        del rows[0]
    weights = {}
    for row in rows:
        index, weight = _parsed(row, class_names, num_classes, place)
        if index in weights:
            raise UserError(f'{place}: class {row[0]!r} has two weights; keep one of them.')
        weights[index] = weight
    missing = [index for index in range(num_classes) if index not in weights]
    if missing:
        name = repr(class_names[missing[0]]) if class_names else missing[0]
        raise UserError(f'{place}: {len(missing)} of the {num_classes} classes have no weight, '
                        f'for example {name}; add a row for each.')
    if not any(weights.values()):
        raise UserError(f'{place}: all weights are 0; give some class a weight above 0.')
    return tuple(weights[index] for index in range(num_classes))


def _parsed(row, class_names, num_classes, place):
    """Returns (class index, weight) of a row."""
    if len(row) != 2:
        raise UserError(
            f"{place}: row {','.join(row)!r:.80} does not have the form class,weight; correct it.")
    name, text = (cell.strip() for cell in row)
    if name in class_names:
        if class_names.count(name) > 1:
            raise UserError(f'{place}: several classes have the name {name!r}; use class numbers.')
        index = class_names.index(name)
    elif name.isdecimal() and int(name) < num_classes:
        index = int(name)
    else:
        raise UserError(f'{place}: unknown class {name!r:.80}; use a class name, or a number from '
                        f'0 to {num_classes - 1}.')
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(f'{place}: the weight {text!r:.80} of class {name!r} is not a number of at '
                        'least 0; correct it.')
    return index, weight
