"""Writes and reads model_dir/results.jsonl, the machine-readable log of a run.

Each line is a JSON object with `event`, a key of EVENTS, and `time`. `read` validates the lines.
"""
import json
import math
import os
import statistics
import time
from typing import NamedTuple

import tensorflow.compat.v1 as tf

from checkpoints import restore
from common import json_files
from common.errors import UserError
from common.files import readable_errors
from common.paths import check_file_if_any
from common.paths import check_no_link
from common.quantities import bytes_text

RESULTS_FILE = 'results.jsonl'
LARGEST_BYTES = 2 ** 30
_MAX_LINE_BYTES = 2 ** 20


class Field(NamedTuple):
    """A field of an event.

    Attributes:
      kind: type of the value, a key of _KINDS.
      what: description for the documentation.
      always: whether the field is required; an optional field may be missing or null.
    """
    kind: str
    what: str
    always: bool = True


_STEP = Field('integer', 'global step')
_EPOCH = Field('number', 'epochs completed at this step', always=False)
_RATE = Field('number', 'images per second of all ranks', always=False)


def _optional(kind, what):
    return Field(kind, what, always=False)


# Event -> (when it is written, its fields).
EVENTS = {
    'run_start': ('when a run starts', {
        'mode': Field('string', '`--mode`'),
        'model_name': Field('string', '`--model_name`'),
        'step': Field('integer', 'global step at which training starts or resumes'),
        'total_steps': Field('integer', 'global step at which training ends'),
        'environment': _optional('strings by name', 'device, machine, processor, cores, host, '
                                 'system, commit, and versions of Python, TensorFlow and NumPy'),
    }),
    'config': ('after `run_start`', {
        **{group: Field('object', 'settings and their values, as in `config.json`')
           for group in ('data', 'model', 'optimization', 'run', 'runtime')},
        'class_names': Field('strings', 'class names; empty if unknown'),
        'num_ranks': Field('integer', 'world size'),
        'changed_settings': _optional('strings', 'names of the settings that the user set to a '
                                      'value other than the default'),
    }),
    'bad_record': ('for each record skipped by `--max_bad_records`', {
        'path': Field('string', 'path of the shard'),
        'index': Field('integer', 'index of the record in the shard, from 0'),
        'fault': Field('string', 'reason'),
    }),
    'train': ('every `--log_step_count_steps` steps, and after the last one', {
        'step': _STEP,
        'epoch': _EPOCH,
        'images_per_sec': _RATE._replace(what=f'{_RATE.what}, since the previous `train` event'),
        'loss': Field('number or null', '`--loss` plus L2 loss'),
        'top_1': Field('number or null', 'top-1 accuracy of the batch'),
        'learning_rate': _optional('number', 'learning rate of this step'),
        'cross_entropy': _optional('number', '`loss` without L2 loss'),
        'unsmoothed_cross_entropy': _optional('number', '`cross_entropy` without label smoothing, '
                                              'as in evaluations'),
        'l2_loss': _optional('number', 'L2 loss (weight decay)'),
        'top_5': _optional('number', 'top-5 accuracy of the batch'),
        'gradient_norm': _optional('number', 'global gradient norm without the loss scale; with '
                                   'mixed precision only if `--log_gradient_norm` is set'),
        'loss_scale': _optional('number', 'with mixed precision: loss scale'),
        'skipped_steps': _optional('integer', 'with mixed precision: steps skipped because of '
                                   'overflow since the start of the run'),
        'input_stall': _optional('number', 'with `--log_input_stall`: share of time for which the '
                                 'device waited for input'),
    }),
    'epoch': ('when an epoch ends', {
        'epoch': Field('integer', 'number of completed epochs'),
        'step': _STEP,
        'images_per_sec': _RATE._replace(what=f'{_RATE.what}, in the part of the epoch that this '
                                         'session trained'),
    }),
    'train_stop': ('when training ends, unless it is killed', {
        'step': _STEP,
        'images_per_sec': _RATE._replace(what=f'{_RATE.what}, after the first step'),
    }),
    'eval': ('for each kind of evaluated weights', {
        'step': _STEP,
        'epoch': _EPOCH,
        'name': _optional('string', '`--eval_name`'),
        'weights': Field('`raw` or `ema`', '`raw`: trained weights; `ema`: averaged weights'),
        'top_1': Field('number', 'top-1 accuracy'),
        'top_5': _optional('number', 'top-5 accuracy'),
        'cross_entropy': _optional('number', 'mean of `--loss` over the images, without label '
                                   'smoothing'),
        'macro_f1': _optional('number', 'mean F1 over the classes that have images or are '
                              'predicted for some image'),
        'num_images': _optional('integer', 'number of evaluated images'),
        'image_size': _optional('integer or `HxW`', 'side length, or height x width, in pixels if '
                                "it differs from the run's; such an evaluation is never the best"),
    }),
    'lr_range': ('when a learning-rate range test ends', {
        'picture': Field('string', 'path of the plot'),
        'suggested_base_learning_rate': Field('number or null', 'value for `--base_learning_rate`; '
                                              'null if the loss falls no more than it varies'),
        'lowest_loss_base_learning_rate': Field('number or null', 'base learning rate at which the '
                                                'loss is lowest'),
    }),
    'export': ('when `--export_dir` is written', {
        'step': _STEP,
        'path': Field('string', 'directory of the SavedModel'),
    }),
    'run_stop': ('when a run ends, unless it is killed', {
        'mode': _optional('string', '`--mode`'),
        'step': _STEP,
        'status': Field('string', 'reason: `finished`, `early_stopped` (`--early_stopping_evals`), '
                        '`already_finished`, `interrupted` (by a signal), `out_of_time` '
                        '(`--max_hours` or `--stop_at`) or `failed`'),
        'bad_records': _optional('integer', 'number of skipped records'),
        'skipped_steps': _optional('integer', 'with mixed precision: steps skipped because of '
                                   'overflow'),
    }),
}

_KINDS = {
    'number': json_files.NUMBER, 'integer': json_files.INTEGER, 'string': json_files.TEXT,
    'strings': json_files.TEXTS, 'strings by name': json_files.TEXT_OF_KEY,
    'object': json_files.OBJECT,
    'integer or `HxW`': json_files.IMAGE_SIZE,
    'number or null': json_files.Kind('a number or null', lambda value: (
        value is None or json_files.NUMBER.is_valid(value))),
    '`raw` or `ema`': json_files.Kind('"raw" or "ema"', lambda value: (
        value in (restore.RAW, restore.EMA)))}
_ALWAYS = {'event': json_files.TEXT, 'time': json_files.NUMBER}


def append(model_dir, event, **fields):
    """Appends an event to the results of `model_dir`.

    Args:
      model_dir: directory of the run; None writes nothing, for ranks that do not report.
      event: a key of EVENTS.
      **fields: the fields of the event.

    Raises:
      UserError: the line cannot be written; no part of it remains in the file.
    """
    if model_dir is None:
        return
    path = _path(model_dir)
    check_no_link(path)
    line = json.dumps({'event': event, 'time': round(time.time(), 3), **fields}) + '\n'
    with readable_errors():
        # A process that was killed while writing leaves a truncated last line.
        _remove_torn_line(path)
        try:
            with tf.gfile.GFile(path, 'a') as file:
                file.write(line)
        except tf.errors.OpError:
            _remove_torn_line(path)
            raise


def _path(model_dir):
    """Returns the path of the results; raises UserError if it is not a readable file."""
    path = os.path.join(model_dir, RESULTS_FILE)
    check_file_if_any(path)
    return path


def finite(value):
    """Returns a number as a float for an event, or None (null in JSON) if it is not finite."""
    return float(value) if math.isfinite(value) else None


def read(model_dir):
    """Returns the events of `model_dir` in order, as dicts that conform to EVENTS.

    Truncated lines are skipped. Events and fields that are not in EVENTS, from later versions, are
    kept. Non-finite numbers, which earlier versions wrote, become None.

    Raises:
      UserError: a complete line lacks a field or has a field of another type, or the file is larger
        than LARGEST_BYTES.
    """
    path = _path(model_dir)
    if not tf.gfile.Exists(path):
        return []
    if tf.gfile.Stat(path).length > LARGEST_BYTES:
        raise UserError(f'{path}: larger than {bytes_text(LARGEST_BYTES)}; move the file away.')
    events = []
    with tf.gfile.GFile(path, 'rb') as file:
        for number, line in enumerate(file.read().splitlines(), 1):
            try:
                event = json_files.value_of(line, not_finite_is_null=True)
                _check(event)
            except json_files.ContentError as fault:
                raise UserError(f'{path}, line {number}: {fault}; remove the line, or the '
                                'file.') from fault
            except ValueError:
                continue
            events.append(event)
    return events


def images_per_sec(steps):
    """Returns the training speed in images per second from 'train' events, or None if unknown.

    The result is the median without the first event, which may include the warm-up.
    """
    rates = [event['images_per_sec'] for event in steps if event.get('images_per_sec')]
    return statistics.median(rates[1:] or rates) if rates else None


def _check(event):
    """Raises json_files.ContentError if a JSON value is not a valid event."""
    json_files.check_fields(event, _ALWAYS)
    _, fields = EVENTS.get(event['event'], ('', {}))
    json_files.check_fields(event, {
        key: _KINDS[field.kind]._replace(always=field.always) for key, field in fields.items()})


def schema_table():
    """Returns EVENTS as a Markdown table."""
    rows = ['| event | when | field | type | what |', '|---|---|---|---|---|']
    for name, (when, fields) in EVENTS.items():
        for key, field in fields.items():
            optional = '' if field.always else ', optional'
            rows.append(f'| {name and f"`{name}`"} | {when} | `{key}` | {field.kind}{optional} '
                        f'| {field.what} |')
            name = when = ''
    return '\n'.join(rows)


def _remove_torn_line(path):
    """Removes a truncated last line from a local file; objects in a store are written atomically.
    """
    if '://' in path or not os.path.exists(path):
        return
    with open(path, 'r+b') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_LINE_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b'\n'):
            file.truncate(size - len(tail) + tail.rfind(b'\n') + 1)
