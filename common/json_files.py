"""Reads JSON files of unknown origin: checks size, depth, numbers, strings and types.

Python's own parser accepts NaN, duplicate keys and lone surrogates, and raises RecursionError for
deeply nested text.
"""
import json
import math
import re
from typing import Any
from typing import Callable
from typing import NamedTuple

import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.image_sizes import ImageSize
from common.image_sizes import is_written
from common.paths import check_input_file
from common.quantities import bytes_text

LARGEST_BYTES = 2 ** 26
DEEPEST = 32
_MOST_DIGITS = 18       # of a whole number, so that it fits into int64
_NUM_SHOWN = 80
# NUL ends a file name; a lone surrogate cannot be written as UTF-8.
_NO_LETTER = re.compile('[\0\ud800-\udfff]')


class ContentError(ValueError):
    """The text is JSON, but its content is not accepted; the message completes a sentence."""


class Kind(NamedTuple):
    """The kind of value that a key of an object may have.

    Attributes:
      wanted: the kind in words, such as 'a string'.
      is_valid: function of a value -> bool.
      always: whether the key is required; an optional key may also be null.
    """
    wanted: str
    is_valid: Callable[[Any], bool]
    always: bool = True


def is_integer(value, minimum=0):
    """Returns whether a value is an int (not a bool) of at least `minimum`."""
    return type(value) is int and value >= minimum


def is_texts(value):
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def optional(kind):
    return kind._replace(always=False)


TEXT = Kind('a string', lambda value: isinstance(value, str))
NUMBER = Kind('a number', lambda value: type(value) in (int, float))
INTEGER = Kind('a whole number from 0 on', is_integer)
POSITIVE = Kind('a positive integer', lambda value: is_integer(value, 1))
IMAGE_SIZE = Kind('a positive integer or HEIGHTxWIDTH', lambda value: (
    is_written(value) and min(ImageSize.of(value)) > 0))
OBJECT = Kind('an object', lambda value: isinstance(value, dict))
ARRAY = Kind('a list', lambda value: isinstance(value, list))
TEXTS = Kind('a list of strings', is_texts)
TEXT_OF_KEY = Kind('an object of strings', lambda value: (
    isinstance(value, dict) and is_texts(list(value.values()))))


def read(path, cure, fields=None, name=''):
    """Returns the value in a JSON file.

    Args:
      path: of the file, local or remote.
      cure: what to do about an invalid file, as the end of a sentence.
      fields: see `parse`.
      name: flag that the path was given with, such as '--modify_mixlist', or empty.

    Raises:
      UserError: the file cannot be read, is too large, or `parse` refuses it.
    """
    place = f'{name}={path}' if name else path
    check_input_file(path, name)
    try:
        size = tf.gfile.Stat(path).length
        if size > LARGEST_BYTES:
            raise UserError(f'{place}: too large for a JSON file ({bytes_text(size)}, the limit is '
                            f'{bytes_text(LARGEST_BYTES)}); {cure}.')
        with tf.gfile.GFile(path, 'rb') as file:
            content = file.read()
    except tf.errors.OpError as error:
        raise UserError(f'{place}: cannot be read ({first_line(error)}); {cure}.') from error
    return parse(content, place, cure, fields)


def read_if_any(path, cure, fields=None):
    """Returns what `read` returns, or None if the file does not exist."""
    try:
        if not tf.gfile.Exists(path):
            return None
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f'{path!a}: cannot be read ({first_line(error)}); {cure}.') from error
    return read(path, cure, fields)


def parse(content, place, cure, fields=None):
    """Returns the value of a JSON text.

    Args:
      content: bytes or str.
      place: origin of the text, as the beginning of an error message.
      cure: what to do about an invalid text, as the end of an error message.
      fields: dict of key -> `Kind`, for a text that must be an object; other keys are accepted.
        None for any value.

    Raises:
      UserError: the text is not JSON in UTF-8, or a value is not of its kind.
    """
    try:
        value = value_of(content)
        if fields is not None:
            check_fields(value, fields)
    except ContentError as fault:
        raise UserError(f'{place}: {fault}; {cure}.') from fault
    except ValueError as error:
        raise UserError(f'{place}: not JSON in UTF-8 ({first_line(error)}); {cure}.') from error
    return value


def value_of(content, not_finite_is_null=False):
    """Returns the value of a JSON text, or raises an error without its origin.

    Args:
      content: bytes or str.
      not_finite_is_null: whether NaN and numbers beyond any float become None instead of an error.

    Raises:
      ContentError: the content is not accepted.
      ValueError: the text is not JSON in UTF-8.
    """
    def checked(text, number):
        if number is None and not not_finite_is_null:
            raise ContentError(f'the number {text[:_NUM_SHOWN]} is not finite or too large')
        return number

    def real(text):
        return checked(text, float(text) if math.isfinite(float(text)) else None)

    def integer(text):
        return checked(text, int(text) if len(text.lstrip('-')) <= _MOST_DIGITS else None)

    if isinstance(content, bytes):
        content = content.decode('utf-8-sig')
    try:
        value = json.loads(content, parse_float=real, parse_int=integer, parse_constant=real,
                           object_pairs_hook=_object)
    except RecursionError:
        raise ContentError(f'nested deeper than {DEEPEST} levels') from None
    _check_values(value)
    return value


def _object(pairs):
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ContentError(f'duplicate key {_shown(twice)}')
    return made


def _check_values(value, depth=1):
    if isinstance(value, str):
        if _NO_LETTER.search(value):
            raise ContentError(f'{_shown(value)} has a character that no file name can have')
    elif isinstance(value, (dict, list)):
        if depth > DEEPEST:
            raise ContentError(f'nested deeper than {DEEPEST} levels')
        if isinstance(value, dict):
            _check_values(list(value), depth)
            value = value.values()
        for each in value:
            _check_values(each, depth + 1)


def check_fields(value, fields):
    """Raises ContentError unless a value is an object whose values are of their kinds."""
    if not isinstance(value, dict):
        raise ContentError('not a JSON object')
    for key, kind in fields.items():
        if key not in value and kind.always:
            raise ContentError(f'lacks the key "{key}" ({kind.wanted})')
        if value.get(key) is None and not kind.always:
            continue
        if not kind.is_valid(value[key]):
            raise ContentError(f'"{key}" must be {kind.wanted}, not {_shown(value[key])}')


def _shown(value):
    return json.dumps(value)[:_NUM_SHOWN]
