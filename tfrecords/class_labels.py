"""Reads class name files, and maps the classes of a dataset to those of a model."""
import csv
import io

import tensorflow.compat.v1 as tf

from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.paths import check_input_file

# Values of --class_names_from.
MODEL, DATA = SOURCES = 'model', 'data'
# Name of class 0 if a model has one class more than its dataset.
BACKGROUND = 'background'
_NUM_SHOWN = 3


def read(path, flag):
    """Returns the class names in a file, a tuple in class order.

    The file is JSON (a list of names, or an object that maps class numbers to names or names to
    numbers), CSV (a number and a name in each row, with or without a header), or text (one name per
    line).

    Args:
      path: of the file. The extension .json or .csv selects the format; any other is text.
      flag: name of the flag that gave the path, for the error.

    Raises:
      UserError: the file cannot be read, or its class numbers are not 0, 1, 2, ...
    """
    check_input_file(path, f'--{flag}')
    try:
        with tf.gfile.GFile(path) as file:
            text = file.read()
        names = _FORMS.get(path.rsplit('.', 1)[-1].lower(), str.splitlines)(text)
    except (tf.errors.OpError, csv.Error, ValueError) as error:
        raise UserError(f'--{flag}={path}: cannot be read ({first_line(error)}); name a file of '
                        'class names: JSON, CSV, or text with one name per line.') from error
    if not names:
        raise UserError(f'--{flag}={path}: is empty; name a file with the name of each class.')
    return tuple(names)


def _of_json(text):
    content = json_files.value_of(text)
    if isinstance(content, dict):
        pairs = [(value, key) if type(value) is int else (key, value)
                 for key, value in content.items()]
        content = _in_order(pairs)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError('neither a list of names nor an object of numbers and names')
    return content


def _of_csv(text):
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    if rows and not rows[0][0].strip().isdigit():
        del rows[0]
    return _in_order([tuple(row[:2]) for row in rows])


def _in_order(pairs):
    """Returns the names of (class number, name) pairs in order; the numbers must start at 0."""
    numbered = {int(number): name for number, name in pairs}
    if sorted(numbered) != list(range(len(pairs))):
        raise ValueError(f'the class numbers are not 0 to {len(pairs) - 1}, once each')
    return [numbered[number] for number in range(len(pairs))]


_FORMS = {'json': _of_json, 'csv': _of_csv}


def class_map(model_names, data_names, names_from, place):
    """Returns the model's class for each class of the data, or () if both number them alike.

    Args:
      model_names: in class order, including a background class; empty if unknown.
      data_names: in label order; empty if unknown.
      names_from: MODEL: classes match by name. DATA: classes match by number, whatever their names.
        None: the flag was not given.
      place: file or directory that the data's names come from, for the error.

    Raises:
      UserError: the names differ and names_from is None; or it is MODEL, and a name is missing or
        occurs twice.
    """
    if names_from == MODEL and not (model_names and data_names):
        nameless = 'the data' if model_names else 'the model'
        raise UserError(f'--class_names_from=model: the classes of {nameless} have no names; omit '
                        'the flag.')
    if names_from == DATA or not (model_names and data_names):
        return ()
    if tuple(model_names) in (tuple(data_names), (BACKGROUND, *data_names)):
        return ()
    if names_from is None:
        differences = _differences(_without_background(model_names), data_names)
        raise UserError(
            f'{place}: the classes differ from those that the model was trained with '
            f'({differences}); match them by name with --class_names_from=model, or keep the '
            'labels as they are with --class_names_from=data.')
    numbers = {name: number for number, name in enumerate(model_names)}
    missing = [name for name in data_names if name not in numbers]
    if missing or len(set(data_names)) < len(data_names):
        wrong = (f'the model has no class {missing[0]!r}' if missing else
                 'two classes of the data have the same name')
        raise UserError(f'--class_names_from=model: {wrong}; correct {place}, or check the model.')
    return tuple(numbers[name] for name in data_names)


def _without_background(names):
    return names[1:] if names[0] == BACKGROUND else names


def _differences(model_names, data_names):
    if len(model_names) != len(data_names) and set(data_names) <= set(model_names):
        return f'{len(data_names)} of its {len(model_names)}'
    pairs = [(number, was, now) for number, (was, now) in enumerate(zip(model_names, data_names))
             if was != now]
    shown = ', '.join(f'class {number} was {was!r} and is {now!r}'
                      for number, was, now in pairs[:_NUM_SHOWN])
    return shown or f'{len(model_names)} were trained, the data have {len(data_names)}'
