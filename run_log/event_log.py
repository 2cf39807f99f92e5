"""model_dir/results.jsonl: what a run did, one JSON object a line, for programs to read.

Every line has `event`, a key of EVENTS, and `time`. `read` gives the lines back, checked.
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
    """A field of an event: its type, a key of _KINDS, and what it says.

    Where it is not `always` there, it may be missing or null.
    """
    kind: str
    what: str
    always: bool = True


_STEP = Field('integer', 'global step')
_EPOCH = Field('number', 'the step in epochs', always=False)
_RATE = Field('number', 'images per second of all ranks', always=False)


def _optional(kind, what):
    return Field(kind, what, always=False)


# Event -> (when it is written, its fields).
EVENTS = {
    'run_start': ('when a run begins', {
        'mode': Field('string', '`--mode`'),
        'model_name': Field('string', '`--model_name`'),
        'step': Field('integer', 'global step from which training goes on'),
        'total_steps': Field('integer', 'global step at which training ends'),
        'environment': _optional('strings by name', 'device, machine, processor, cores, host, '
                                 'system, versions of Python, TensorFlow and numpy, commit'),
    }),
    'config': ('after that', {
        **{group: Field('object', 'settings and their values, as in `config.json`')
           for group in ('data', 'model', 'optimization', 'run', 'runtime')},
        'class_names': Field('strings', 'names of the classes, where they are known'),
        'num_ranks': Field('integer', 'processes that train together'),
        'changed_settings': _optional('strings', 'names of the settings that the user gave another '
                                      'value than the default'),
    }),
    'bad_record': ('for each record that `--max_bad_records` leaves out', {
        'path': Field('string', 'shard'),
        'index': Field('integer', 'place in the shard, from 0'),
        'fault': Field('string', 'what is wrong'),
    }),
    'train': ('every `--log_step_count_steps` steps, and after the last one', {
        'step': _STEP,
        'epoch': _EPOCH,
        'images_per_sec': _RATE._replace(what=f'{_RATE.what}, since the line before'),
        'loss': Field('number or null', '`--loss` and L2'),
        'top_1': Field('number or null', 'share of the batch that is classified rightly'),
        'learning_rate': _optional('number', 'of this step'),
        'cross_entropy': _optional('number', 'the loss without L2'),
        'unsmoothed_cross_entropy': _optional('number', 'the same without label smoothing, as in '
                                              'evaluations'),
        'l2_loss': _optional('number', 'weight decay'),
        'top_5': _optional('number', 'share of the batch whose class is among the first five'),
        'gradient_norm': _optional('number', 'of all gradients, the loss scale taken out; with '
                                   'mixed precision only with `--log_gradient_norm`'),
        'loss_scale': _optional('number', 'with mixed precision'),
        'skipped_steps': _optional('integer', 'with mixed precision: steps since the start of the '
                                   'run that overflowed and changed nothing'),
        'input_stall': _optional('number', 'with `--log_input_stall`: share of the time for which '
                                 'the device waited for input'),
    }),
    'epoch': ('when an epoch is over', {
        'epoch': Field('integer', 'how many are over'),
        'step': _STEP,
        'images_per_sec': _RATE._replace(what=f'{_RATE.what}, in this epoch or what this session '
                                         'did of it'),
    }),
    'train_stop': ('when training ends, unless it is killed', {
        'step': _STEP,
        'images_per_sec': _RATE._replace(what=f'{_RATE.what}, since its first step was over'),
    }),
    'eval': ('for each kind of weights that is evaluated', {
        'step': _STEP,
        'epoch': _EPOCH,
        'name': _optional('string', '`--eval_name`'),
        'weights': Field('`raw` or `ema`', '`raw`, or `ema` for the averaged ones'),
        'top_1': Field('number', 'share of the images that are classified rightly'),
        'top_5': _optional('number', 'share of those whose class is among the first five'),
        'cross_entropy': _optional('number', '`--loss`: mean over the images, without label '
                                   'smoothing'),
        'macro_f1': _optional('number', 'mean F1 over the classes that have images or are taken '
                              'for some'),
        'num_images': _optional('integer', 'images evaluated'),
        'image_size': _optional('integer or `HxW`', 'pixels of their side, or height x width, '
                                "where that is not the run's; such an evaluation is never the "
                                'best'),
    }),
    'lr_range': ('when a range test of learning rates ends', {
        'picture': Field('string', 'file of the curve'),
        'suggested_base_learning_rate': Field('number or null', 'value for `--base_learning_rate`; '
                                              'null if the loss falls no more than it varies'),
        'lowest_loss_base_learning_rate': Field('number or null', 'where the loss is lowest'),
    }),
    'export': ('when `--export_dir` is written', {
        'step': _STEP,
        'path': Field('string', 'folder of the SavedModel'),
    }),
    'run_stop': ('when a run ends, unless it is killed', {
        'mode': _optional('string', '`--mode`'),
        'step': _STEP,
        'status': Field('string', 'how: `finished`, `early_stopped` by `--early_stopping_evals`, '
                        '`already_finished`, `interrupted` by a signal, `out_of_time` by '
                        '`--max_hours` or `--stop_at`, or `failed`'),
        'bad_records': _optional('integer', 'how many were left out'),
        'skipped_steps': _optional('integer', 'with mixed precision: steps whose gradients '
                                   'overflowed'),
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
    """Adds a line to the results of `model_dir`; None, of a rank that does not report, has none.

    Raises:
      UserError: it cannot be written; no half of it stays.
    """
    if model_dir is None:
        return
    path = _path(model_dir)
    check_no_link(path)
    line = json.dumps({'event': event, 'time': round(time.time(), 3), **fields}) + '\n'
    with readable_errors():
        # Of a process that was killed while it wrote.
        _remove_torn_line(path)
        try:
            with tf.gfile.GFile(path, 'a') as file:
                file.write(line)
        except tf.errors.OpError:
            _remove_torn_line(path)
            raise


def _path(model_dir):
    """Of the file; UserError for what is there in its place."""
    path = os.path.join(model_dir, RESULTS_FILE)
    check_file_if_any(path)
    return path


def finite(value):
    """A number for an event, a float; None, null in JSON, for one that is not finite."""
    return float(value) if math.isfinite(value) else None


def read(model_dir):
    """The events of `model_dir` in order, as dicts that hold what EVENTS says.

    A line that a kill has torn is left out. What is not in EVENTS, of a later version, stays. A
    number that is not finite, which earlier versions wrote, is None.

    Raises:
      UserError: a line that is whole lacks something, or has it of another type; the file is larger
        than LARGEST_BYTES.
    """
    path = _path(model_dir)
    if not tf.gfile.Exists(path):
        return []
    if tf.gfile.Stat(path).length > LARGEST_BYTES:
        raise UserError(f'{path}: more than {bytes_text(LARGEST_BYTES)}; move the file away.')
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
    """The speed of a run by its 'train' events, or None where they do not tell.

    The median of all but the first, which may still be warming up.
    """
    rates = [event['images_per_sec'] for event in steps if event.get('images_per_sec')]
    return statistics.median(rates[1:] or rates) if rates else None


def _check(event):
    """Raises json_files.ContentError for what is no event."""
    json_files.check_fields(event, _ALWAYS)
    _, fields = EVENTS.get(event['event'], ('', {}))
    json_files.check_fields(event, {
        key: _KINDS[field.kind]._replace(always=field.always) for key, field in fields.items()})


def schema_table():
    """EVENTS as a table in Markdown."""
    rows = ['| event | when | field | type | what |', '|---|---|---|---|---|']
    for name, (when, fields) in EVENTS.items():
        for key, field in fields.items():
            optional = '' if field.always else ', optional'
            rows.append(f'| {name and f"`{name}`"} | {when} | `{key}` | {field.kind}{optional} '
                        f'| {field.what} |')
            name = when = ''
    return '\n'.join(rows)


def _remove_torn_line(path):
    """Cuts off what follows the last end of a line; of an object in a store, which is never torn,
    nothing."""
    if '://' in path or not os.path.exists(path):
        return
    with open(path, 'r+b') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_LINE_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b'\n'):
            file.truncate(size - len(tail) + tail.rfind(b'\n') + 1)
