"""Validates a configuration before any work starts."""
import datetime
import math
import operator
import os
import re
import time

from common import app
from common import json_files
from common.errors import UserError
from common.image_sizes import ImageSize
from common.image_sizes import WrittenSize
from common.image_sizes import is_written
from common.paths import check_output_file
from common.paths import check_output_folder
from common.paths import is_inside
from condconv_layers import CHANNELS_FIRST
from config import class_weights
from config import run_settings
from config import setting
from config import settings
from config.data_settings import BALANCED
from runtime import precision
from tfrecords import class_labels
from tfrecords import schema

_MAX_NAME_BYTES = 200       # of --eval_name; file systems accept names of 255 bytes
_LIMITS = {'at_least': operator.ge, 'above': operator.gt,
           'at_most': operator.le, 'below': operator.lt}
_LARGEST = {int: {'at_most': app.LARGEST_INTEGER},
            float: {'at_most': setting.LARGEST_FLOAT}}


def check_types(config):
    """Raises ValueError if a stored value could not have come from a flag."""
    for group, field, kind in settings.rows():
        value = getattr(getattr(config, group), field.name)
        if value is None:
            is_known = field.default is None
        elif isinstance(field.default, tuple):
            is_known = isinstance(value, tuple) and all(isinstance(each, str) for each in value)
        elif field.metadata['choices']:
            is_known = value in field.metadata['choices']
        elif kind == WrittenSize:
            is_known = is_written(value)
        else:
            # isinstance would accept True as an int.
            is_known = type(value) in ((int, float) if kind is float else (kind,))
        if not is_known:
            raise ValueError(f'{field.name} is {value!r:.80}')
    names = config.class_names
    if not all(isinstance(name, str) for name in names) or (
            len(names) not in (0, config.model.num_label_classes)):
        raise ValueError(f'{len(names)} class_names for {config.model.num_label_classes} classes')
    if not isinstance(config.num_ranks, int) or config.num_ranks < 1:
        raise ValueError(f'num_ranks is {config.num_ranks!r}')
    changed = config.changed_settings
    if changed is not None and not isinstance(changed, tuple):
        raise ValueError(f'changed_settings is {changed!r}')


def agreed(flag, given, stored, place, cure='leave the flag out'):
    """Returns the value given by a flag, or the value stored in a file if the flag is not given.

    Args:
      flag: name of the flag.
      given, stored: the two values; None for a missing one.
      place: name of the file with the stored value, for the error.
      cure: what the user can do if the values differ, for the error.

    Raises:
      UserError: both values exist and differ.
    """
    if None not in (given, stored) and given != stored:
        raise UserError(f'--{flag}={given}: contradicts {place}, which has {stored}; {cure}.')
    return stored if given is None else given


def check_dataset(config, info):
    """Raises UserError if a setting contradicts the `schema.DatasetInfo` of data_dir."""
    def check(flag, given, stored):
        agreed(flag, given, stored, schema.DATASET_INFO_NAME,
               'leave the flag out or correct the file')

    data, num_classes = config.data, config.model.num_label_classes
    if not data.holdout_shards:
        check('num_train_images', data.num_train_images, info.num_images[schema.TRAIN])
        num_validation = info.num_images[schema.VALIDATION]
        if (data.num_eval_images or 0) > num_validation:
            raise UserError(f'--num_eval_images={data.num_eval_images}: more than the '
                            f'{num_validation} images in {schema.DATASET_INFO_NAME}; leave the '
                            'flag out or correct the file.')
    check('label_base', data.label_base, info.label_base)
    # The model may have more classes than the dataset: a background class 0, or, if classes are
    # matched by name, classes without images.
    if data.class_names_from != class_labels.MODEL and not (
            info.has_background(num_classes) and info.label_base == 1):
        check('num_label_classes', num_classes, info.num_classes)


def check_ranges(config):
    """Raises UserError if a setting is not finite or outside the limits of its row."""
    for group, field, kind in settings.rows():
        value = getattr(getattr(config, group), field.name)
        if value is None:
            continue
        numbers = ImageSize.of(value) if kind == WrittenSize else [value]
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'--{field.name}={value}: must be a finite number.')
        for name, limit in {**_LARGEST.get(type(value), {}), **field.metadata['limits']}.items():
            if not all(_LIMITS[name](number, limit) for number in numbers):
                raise UserError(
                    f"--{field.name}={value}: must be {name.replace('_', ' ')} {limit}.")


def check_pairs(config):
    """Raises UserError if settings are missing, malformed or incompatible with each other."""
    run = config.run
    for name, value in (('data_dir', config.data.data_dir), ('model_dir', run.model_dir)):
        if not value:
            raise UserError(f'--{name}: not given; name a directory.')
    if '://' in run.model_dir and set(run.model_dir) & set('*?[\\'):
        raise UserError(f'--model_dir={run.model_dir}: in object storage, TensorFlow finds no '
                        'checkpoints in a directory with *, ?, [ or \\ in its name; choose another '
                        'name.')
    for first, second in (('train_steps', 'train_epochs'),
                          ('save_checkpoints_steps', 'save_checkpoints_secs')):
        if getattr(run, first) and getattr(run, second):
            raise UserError(f'--{first} and --{second}: mutually exclusive; keep one of them.')
    low, high = config.optimization.lr_range_min, config.optimization.lr_range_max
    if low >= high:
        raise UserError(f'--lr_range_min={low}: must be below --lr_range_max={high}; lower it.')
    if run.per_class_csv and not config.evaluates:
        raise UserError(f'--per_class_csv={run.per_class_csv}: --mode={run.mode} runs no '
                        'evaluation; leave the flag out.')
    if run.early_stopping_evals and run.mode != run_settings.TRAIN_AND_EVAL:
        raise UserError(f'--early_stopping_evals={run.early_stopping_evals}: requires '
                        f'--mode=train_and_eval, not {run.mode}; leave the flag out.')
    if config.trains:
        _check_class_balance(config)
    if run.stop_at is not None:
        _check_stop_at(run.stop_at)
    if config.data.transpose_input and config.optimization.data_format == CHANNELS_FIRST:
        raise UserError('--transpose_input: requires --data_format=channels_last; leave one of the '
                        'flags out.')
    optimization = config.optimization
    if optimization.nesterov and optimization.optimizer != 'momentum':
        raise UserError(f'--nesterov: --optimizer={optimization.optimizer} has no Nesterov '
                        'momentum; use --optimizer=momentum, or leave the flag out.')
    eval_name = run.eval_name or ''
    if len(os.fsencode(eval_name)) > _MAX_NAME_BYTES or any(
            letter == '/' or not letter.isprintable() for letter in eval_name):
        # The name becomes part of the name of a directory in model_dir.
        raise UserError(f'--eval_name={eval_name!r}: cannot be part of a directory name; use at '
                        f'most {_MAX_NAME_BYTES} bytes, without slashes and line breaks.')
    try:
        _ = config.frozen_parts
    except ValueError as error:
        raise UserError(f'--freeze={config.optimization.freeze}: {error}.') from error


def _check_class_balance(config):
    weights, is_drawn = config.optimization.class_weights, config.data.sampling == BALANCED
    is_weighted = weights == class_weights.BALANCED
    if is_weighted and is_drawn:
        raise UserError('--class_weights=balanced and --sampling=balanced: both correct the class '
                        'sizes; keep one of them.')
    if (is_weighted or is_drawn) and config.data.data_dir == schema.SYNTHETIC_DIR:
        flag = 'class_weights' if is_weighted else 'sampling'
        raise UserError(f'--{flag}=balanced: generated images have no classes to balance; leave '
                        'the flag out.')


def _check_stop_at(text):
    try:
        secs = unix_time(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f'--stop_at={text}: not a date and time; write it like '
                        '2026-11-24T18:00.') from error
    if secs <= time.time():
        raise UserError(f'--stop_at={text}: already in the past; name a later time.')


def unix_time(text):
    """Returns an ISO 8601 time in seconds since 1970; a time without UTC offset is local."""
    return datetime.datetime.fromisoformat(re.sub('[zZ]$', '+00:00', text)).timestamp()


def check_runtime(runtime, model_dir):
    """Raises UserError if a `RuntimeConfig` is malformed or its settings are incompatible."""
    if runtime.loss_scale not in (None, 'none', 'dynamic') and not _is_scale(runtime.loss_scale):
        raise UserError(f'--loss_scale={runtime.loss_scale}: must be none, dynamic, or a number of '
                        'at least 1.')
    if runtime.npu_dump_data and runtime.over_dump:
        raise UserError('--npu_dump_data and --over_dump: mutually exclusive; keep one of them.')
    try:
        _ = runtime.dump_steps
    except ValueError as error:
        raise UserError(f'--dump_step={runtime.dump_step}: {error}; write it like '
                        '0|5|10-20.') from error
    if runtime.precision_mode and runtime.precision_mode_v2:
        raise UserError('--precision_mode and --precision_mode_v2: mutually exclusive; keep one of '
                        'them.')
    for option in runtime.npu_option:
        if not re.fullmatch(r'\w+=.*', option, re.DOTALL):
            raise UserError(f'--npu_option={option}: must have the form NAME=VALUE.')
    if runtime.modify_mixlist not in (None, precision.NO_MIXLIST):
        _check_mixlist(runtime)
    if runtime.obs_dir and is_inside(runtime.obs_dir, model_dir):
        raise UserError(f'--obs_dir={runtime.obs_dir}: inside model_dir, which is copied there; '
                        'choose another directory.')


def check_folders(config):
    """Raises UserError if an output of the run cannot be written, before the run starts."""
    folders = {'model_dir': config.run.model_dir, 'export_dir': config.run.export_dir,
               'obs_dir': config.runtime.obs_dir, **config.runtime.output_dirs}
    for name, path in folders.items():
        if path:
            check_output_folder(path, f'--{name}')
    if config.run.per_class_csv:
        inputs = config.data.data_dir, config.data.class_names, config.run.init_checkpoint
        check_output_file(config.run.per_class_csv, '--per_class_csv', inputs, '.csv')


def _is_scale(text):
    try:
        return 1 <= float(text) < 2 ** 127  # the range of float32
    except ValueError:
        return False


def _check_mixlist(runtime):
    if runtime.precision_mode_v2 or runtime.precision_mode not in (None, 'allow_mix_precision'):
        raise UserError('--modify_mixlist: requires --precision_mode=allow_mix_precision; leave '
                        'one of the flags out.')
    json_files.read(runtime.modify_mixlist, 'correct the list, see docs/npu_bridge.md', {},
                    '--modify_mixlist')
