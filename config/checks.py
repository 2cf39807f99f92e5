"""What a configuration must fulfil before any work is done."""
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

_MAX_NAME_BYTES = 200       # of an evaluation; file systems have room for 255
_LIMITS = {'at_least': operator.ge, 'above': operator.gt,
           'at_most': operator.le, 'below': operator.lt}
_LARGEST = {int: {'at_most': app.LARGEST_INTEGER},
            float: {'at_most': setting.LARGEST_FLOAT}}


def check_types(config):
    """Raises ValueError for what no flag could have made."""
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
            # Not isinstance, to which True is a whole number.
            is_known = type(value) in ((int, float) if kind is float else (kind,))
        if not is_known:
            raise ValueError(f'{field.name} is {value!r:.80}')
    names = config.class_names
    if not all(isinstance(name, str) for name in names) or (
            len(names) not in (0, config.model.num_label_classes)):
        raise ValueError(f'the {len(names)} class_names are not those of '
                         f'{config.model.num_label_classes} classes')
    if not isinstance(config.num_ranks, int) or config.num_ranks < 1:
        raise ValueError(f'num_ranks is {config.num_ranks!r}')
    changed = config.changed_settings
    if changed is not None and not isinstance(changed, tuple):
        raise ValueError(f'changed_settings is {changed!r}')


def agreed(flag, given, stored, place, cure='leave the flag out'):
    """Returns the value of a flag that a file may have decided: the one given, or the one stored.

    Args:
      flag: name.
      given, stored: values; None for none.
      place: the file that has the stored value.
      cure: what to do if they differ.

    Raises:
      UserError: both are there, and differ.
    """
    if None not in (given, stored) and given != stored:
        raise UserError(f'--{flag}={given} contradicts {place}, which says {stored}; {cure}.')
    return stored if given is None else given


def check_dataset(config, info):
    """Raises UserError for settings that contradict the `schema.DatasetInfo` of data_dir."""
    def check(flag, given, stored):
        agreed(flag, given, stored, schema.DATASET_INFO_NAME,
               'leave the flag out or correct the file')

    data, num_classes = config.data, config.model.num_label_classes
    if not data.holdout_shards:
        check('num_train_images', data.num_train_images, info.num_images[schema.TRAIN])
        num_validation = info.num_images[schema.VALIDATION]
        if (data.num_eval_images or 0) > num_validation:
            raise UserError(f'--num_eval_images={data.num_eval_images} is more than the '
                            f'{num_validation} images that {schema.DATASET_INFO_NAME} says there '
                            'are; leave the flag out or correct the file.')
    check('label_base', data.label_base, info.label_base)
    # A background class 0 is the model's own.
    # Classes that are found by name may be some of the model's.
    if data.class_names_from != class_labels.MODEL and not (
            info.has_background(num_classes) and info.label_base == 1):
        check('num_label_classes', num_classes, info.num_classes)


def check_ranges(config):
    for group, field, kind in settings.rows():
        value = getattr(getattr(config, group), field.name)
        if value is None:
            continue
        numbers = ImageSize.of(value) if kind == WrittenSize else [value]
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'--{field.name}={value} is not a finite number.')
        for name, limit in {**_LARGEST.get(type(value), {}), **field.metadata['limits']}.items():
            if not all(_LIMITS[name](number, limit) for number in numbers):
                raise UserError(f"--{field.name}={value} must be {name.replace('_', ' ')} {limit}.")


def check_pairs(config):
    run = config.run
    for name, value in (('data_dir', config.data.data_dir), ('model_dir', run.model_dir)):
        if not value:
            raise UserError(f'--{name} is not given; name the folder.')
    if '://' in run.model_dir and set(run.model_dir) & set('*?[\\'):
        raise UserError(f'--model_dir={run.model_dir}: on a remote store, TensorFlow finds no '
                        'checkpoints in a folder with *, ?, [ or \\ in its name; choose another.')
    for first, second in (('train_steps', 'train_epochs'),
                          ('save_checkpoints_steps', 'save_checkpoints_secs')):
        if getattr(run, first) and getattr(run, second):
            raise UserError(f'--{first} and --{second} are both given; keep one of them.')
    low, high = config.optimization.lr_range_min, config.optimization.lr_range_max
    if low >= high:
        raise UserError(f'--lr_range_min={low} is not below --lr_range_max={high}; lower it.')
    if run.per_class_csv and not config.evaluates:
        raise UserError(f'--per_class_csv={run.per_class_csv}: --mode={run.mode} evaluates '
                        'nothing; leave the flag out.')
    if run.early_stopping_evals and run.mode != run_settings.TRAIN_AND_EVAL:
        raise UserError(f'--early_stopping_evals={run.early_stopping_evals} only goes with '
                        f'--mode=train_and_eval, not with {run.mode}; leave the flag out.')
    if config.trains:
        _check_class_balance(config)
    if run.stop_at is not None:
        _check_stop_at(run.stop_at)
    if config.data.transpose_input and config.optimization.data_format == CHANNELS_FIRST:
        raise UserError('--transpose_input only goes with --data_format=channels_last.')
    optimization = config.optimization
    if optimization.nesterov and optimization.optimizer != 'momentum':
        raise UserError(f'--nesterov: --optimizer={optimization.optimizer} has no Nesterov '
                        'momentum; use --optimizer=momentum or leave the flag out.')
    eval_name = run.eval_name or ''
    if len(os.fsencode(eval_name)) > _MAX_NAME_BYTES or any(
            letter == '/' or not letter.isprintable() for letter in eval_name):
        # A folder below model_dir is called by it.
        raise UserError(f'--eval_name={eval_name!r} cannot be part of the name of a folder; '
                        f'leave out slashes and line breaks, and keep to {_MAX_NAME_BYTES} bytes.')
    try:
        _ = config.frozen_parts
    except ValueError as error:
        raise UserError(f'--freeze={config.optimization.freeze}: {error}.') from error


def _check_class_balance(config):
    weights, is_drawn = config.optimization.class_weights, config.data.sampling == BALANCED
    is_weighted = weights == class_weights.BALANCED
    if is_weighted and is_drawn:
        raise UserError('--class_weights=balanced and --sampling=balanced correct the sizes of the '
                        'classes twice; keep one of them.')
    if (is_weighted or is_drawn) and config.data.data_dir == schema.SYNTHETIC_DIR:
        flag = 'class_weights' if is_weighted else 'sampling'
        raise UserError(f'--{flag}=balanced: generated images have no classes to balance; leave '
                        'the flag out.')


def _check_stop_at(text):
    try:
        secs = unix_time(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f'--stop_at={text} is no time; write it like 2026-11-24T18:00.') from error
    if secs <= time.time():
        raise UserError(f'--stop_at={text} is over; name a time to come.')


def unix_time(text):
    """Seconds since 1970 of an ISO 8601 time, which is local unless it says its offset."""
    return datetime.datetime.fromisoformat(re.sub('[zZ]$', '+00:00', text)).timestamp()


def check_runtime(runtime, model_dir):
    if runtime.loss_scale not in (None, 'none', 'dynamic') and not _is_scale(runtime.loss_scale):
        raise UserError(f'--loss_scale={runtime.loss_scale} is neither none nor dynamic nor a '
                        'number from 1 on.')
    if runtime.npu_dump_data and runtime.over_dump:
        raise UserError('--npu_dump_data and --over_dump exclude each other; keep one of them.')
    try:
        _ = runtime.dump_steps
    except ValueError as error:
        raise UserError(f'--dump_step={runtime.dump_step}: {error}; write it like '
                        '0|5|10-20.') from error
    if runtime.precision_mode and runtime.precision_mode_v2:
        raise UserError('--precision_mode and --precision_mode_v2 exclude each other; keep one of '
                        'them.')
    for option in runtime.npu_option:
        if not re.fullmatch(r'\w+=.*', option, re.DOTALL):
            raise UserError(f'--npu_option={option} is not like NAME=VALUE.')
    if runtime.modify_mixlist not in (None, precision.NO_MIXLIST):
        _check_mixlist(runtime)
    if runtime.obs_dir and is_inside(runtime.obs_dir, model_dir):
        raise UserError(f'--obs_dir={runtime.obs_dir} is in model_dir, which is copied there; '
                        'choose another folder.')


def check_folders(config):
    """That what a run leaves can be written is told before it begins, not at its end."""
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
        return 1 <= float(text) < 2 ** 127  # of float32
    except ValueError:
        return False


def _check_mixlist(runtime):
    if runtime.precision_mode_v2 or runtime.precision_mode not in (None, 'allow_mix_precision'):
        raise UserError('--modify_mixlist only goes with --precision_mode=allow_mix_precision.')
    json_files.read(runtime.modify_mixlist, 'correct the list, see docs/npu_bridge.md', {},
                    '--modify_mixlist')
