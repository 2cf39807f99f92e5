"""Names of classes: files of them, and what to do where a model and its data disagree."""
import csv
import io

import tensorflow.compat.v1 as tf

from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.paths import check_input_file

# Values of --class_names_from.
MODEL, DATA = SOURCES = 'model', 'data'
# Class 0 of a model that has one class more than its data.
BACKGROUND = 'background'
_NUM_SHOWN = 3


def read(path, flag):
    """Returns the names in a file, a tuple in the order of the classes.

    The file is JSON (a list of names, or an object of class number -> name or name -> number), CSV
    (a number and a name in each row, with or without a heading), or text with a name a line.

    Args:
      path: of the file; its ending, .json or .csv, says what it is.
      flag: that names it.

    Raises:
      UserError: it cannot be read, or its numbers are not those from 0 on.
    """
    check_input_file(path, f'--{flag}')
    try:
        with tf.gfile.GFile(path) as file:
            text = file.read()
        names = _FORMS.get(path.rsplit('.', 1)[-1].lower(), str.splitlines)(text)
    except (tf.errors.OpError, csv.Error, ValueError) as error:
        raise UserError(f'--{flag}={path} cannot be read ({first_line(error)}); name a file of '
                        'class names: JSON, CSV, or text with a name a line.') from error
    if not names:
        raise UserError(f'--{flag}={path} is empty; name a file with the name of each class.')
    return tuple(names)


def _of_json(text):
    content = json_files.value_of(text)
    if isinstance(content, dict):
        pairs = [(value, key) if type(value) is int else (key, value)
                 for key, value in content.items()]
        content = _in_order(pairs)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError('it holds neither a list of names nor an object of numbers and names')
    return content


def _of_csv(text):
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    if rows and not rows[0][0].strip().isdigit():
        del rows[0]
    return _in_order([tuple(row[:2]) for row in rows])


def _in_order(pairs):
    """The names of (class number, name) pairs by their numbers, which are those from 0 on."""
    numbered = {int(number): name for number, name in pairs}
    if sorted(numbered) != list(range(len(pairs))):
        raise ValueError(f'its numbers are not 0 to {len(pairs) - 1}, once each')
    return [numbered[number] for number in range(len(pairs))]


_FORMS = {'json': _of_json, 'csv': _of_csv}


def class_map(model_names, data_names, names_from, place):
    """Returns the model's class of each of the data's, or () where they are the same.

    Args:
      model_names: in the order of the classes, a background class included; empty where they are
        not known.
      data_names: in the order of the labels; empty where they are not known.
      names_from: MODEL: classes of one name are the same. DATA: the n-th class of the data is the
        model's n-th, whatever it was called. None: nobody has said.
      place: what the data's names are from.

    Raises:
      UserError: the names differ, and nobody has said what holds; or MODEL, and a name is missing.
    """
    if names_from == MODEL and not (model_names and data_names):
        nameless = 'the data' if model_names else 'the model'
        raise UserError(f'--class_names_from=model: the classes of {nameless} have no names; leave '
                        'the flag out.')
    if names_from == DATA or not (model_names and data_names):
        return ()
    if tuple(model_names) in (tuple(data_names), (BACKGROUND, *data_names)):
        return ()
    if names_from is None:
        differences = _differences(_without_background(model_names), data_names)
        raise UserError(
            f'The classes of {place} are not those that the model was trained with: '
            f'{differences}. --class_names_from=model takes classes of one name for the same; '
            '--class_names_from=data leaves the labels as they are.')
    numbers = {name: number for number, name in enumerate(model_names)}
    missing = [name for name in data_names if name not in numbers]
    if missing or len(set(data_names)) < len(data_names):
        wrong = (f'the model has no class {missing[0]!r}' if missing else
                 'two classes of the data have one name')
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
    return shown or f'{len(model_names)} were trained, and {len(data_names)} are there'
