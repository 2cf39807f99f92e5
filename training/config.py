"""Flags in, a frozen and validated `Config` out, with the values that are derived from it.

`training.settings` is the one place a setting exists. `define_flags()` makes the flags of its rows,
`from_flags()` the `Config`.
"""
import dataclasses
import datetime
import json
import math
import operator
import os
import re
import time
import typing

from absl import flags
import tensorflow.compat.v1 as tf

from dataset import schema
import entry_point
import model_builder_factory
import storage
from training import checkpoints
from training import freezing
from training import settings
from user_error import UserError
import user_paths

CONFIG_FILE = 'config.json'
# Setting -> its folder below model_dir.
_OUTPUT_DIRS = {'dump_dir': 'dump', 'profiling_dir': 'profiling', 'graph_dir': 'graphs',
                'tune_dir': 'tuning'}
_MAX_NAME_BYTES = 200       # of an evaluation; file systems have room for 255


@dataclasses.dataclass(frozen=True)
class Config:
    """A validated run. Optional settings that have a default elsewhere are filled in."""
    data: settings.DataConfig
    model: settings.ModelConfig
    optimization: settings.OptimizationConfig
    run: settings.RunConfig
    runtime: settings.RuntimeConfig
    class_names: typing.Tuple[str, ...] = ()
    num_ranks: int = 1

    @property
    def global_batch_size(self):
        return self.data.batch_size * self.num_ranks

    @property
    def steps_per_epoch(self):
        """Not a whole number: schedules and epochs are exact for any batch size."""
        return self.data.num_train_images / self.global_batch_size

    @property
    def total_steps(self):
        if self.run.train_steps:
            return self.run.train_steps
        return max(1, round(self.run.train_epochs * self.steps_per_epoch))

    @property
    def steps_per_eval(self):
        return self.run.steps_per_eval or max(1, round(5 * self.steps_per_epoch))

    def deadline(self, start_secs):
        """When a run that began then has to end, in seconds since 1970; None for never."""
        limits = []
        if self.run.max_hours:
            limits.append(start_secs + 3600 * self.run.max_hours)
        if self.run.stop_at:
            limits.append(_unix_time(self.run.stop_at))
        return min(limits, default=None)

    @property
    def learning_rate(self):
        """The peak learning rate, for the global batch size (arXiv:1706.02677, section 2.1)."""
        return self.optimization.base_learning_rate * self.global_batch_size / 256

    @property
    def model_overrides(self):
        """The `override_params` of the network; None where the model's own value holds."""
        names = ('dropout_rate', 'survival_prob', 'routing_init_stddev', 'batch_norm_momentum',
                 'batch_norm_epsilon', 'data_format', 'depthwise_condconv')
        return {**{name: getattr(self.optimization, name) for name in names},
                'width_coefficient': self.model.width_coefficient,
                'depth_coefficient': self.model.depth_coefficient,
                'num_classes': self.model.num_label_classes}

    @property
    def frozen_parts(self):
        """`freezing.FrozenParts`; ValueError if --freeze names what the network does not have."""
        return freezing.parse(self.optimization.freeze, model_builder_factory.get_num_blocks(
            self.model.model_name, self.model_overrides))

    def save(self):
        """Writes model_dir/config.json, whole or not at all."""
        with storage.whole_file(os.path.join(self.run.model_dir, CONFIG_FILE)) as file:
            json.dump(dataclasses.asdict(self), file, indent=2)


_LIMITS = {'at_least': operator.ge, 'above': operator.gt,
           'at_most': operator.le, 'below': operator.lt}
_LARGEST = {int: {'at_most': entry_point.LARGEST_INTEGER},
            float: {'at_most': settings.LARGEST_FLOAT}}
def define_flags(flag_values=flags.FLAGS):
    """Registers a flag for every setting."""
    # They count as the caller's own, so that the --help of an entry point lists them.
    flags.disclaim_key_flags()
    for _, field, kind in settings.rows():
        options = field.metadata
        name, default, help_text = field.name, field.default, options['help']
        if options['choices']:
            flags.DEFINE_enum(
                name, default, options['choices'], help_text, flag_values=flag_values)
        elif kind is bool:
            flags.DEFINE_bool(name, default, help_text, flag_values=flag_values)
        elif kind is int:
            flags.DEFINE_integer(name, default, help_text, flag_values=flag_values)
        elif kind is float:
            flags.DEFINE_float(name, default, help_text, flag_values=flag_values)
        else:
            flags.DEFINE_string(name, default, help_text, flag_values=flag_values)
    flags.DEFINE_alias('train_batch_size', 'batch_size', flag_values=flag_values)


def from_flags():
    """The `Config` of the parsed flags; see `from_values`."""
    return from_values(_flag_values())


def check_flags():
    """Raises the UserErrors of `from_flags` that need no data to be found."""
    _check_folders(_without_data(_flag_values()))


def _flag_values():
    return {field.name: flags.FLAGS[field.name].value for _, field, _ in settings.rows()}


def from_values(values):
    """Makes a `Config`, fills in what the data set and the model decide, and checks it.

    Args:
      values: a dict of settings; what is missing has its default.

    Raises:
      UserError: a value out of range, settings that contradict each other or the data set's
        dataset_info.json, a data_dir that is missing or holds no shards.
      KeyError: a setting that does not exist.
    """
    config = _filled_in(_without_data(values))
    try:
        _check_ranges(config)
    except UserError as error:
        raise UserError(f'{error} {schema.DATASET_INFO_NAME} says so; correct it.') from error
    if config.total_steps > entry_point.LARGEST_INTEGER:
        raise UserError(f'--train_epochs={config.run.train_epochs} are {config.total_steps} steps; '
                        f'train for {entry_point.LARGEST_INTEGER} at most.')
    _check_folders(config)
    return config


def _without_data(values):
    """The `Config` of what is given, as far as it can be checked before the data are there."""
    groups = {name: {} for name in settings.GROUPS}
    owners = {field.name: group for group, field, _ in settings.rows()}
    for name, value in values.items():
        groups[owners[name]][name] = value
    config = Config(**{name: settings.GROUPS[name](**chosen) for name, chosen in groups.items()})
    _check_ranges(config)
    _check_pairs(config)
    _check_runtime(config.runtime, config.run.model_dir)
    return config


def load(model_dir):
    """The `Config` a run left in `model_dir`, or None; a damaged file is a UserError."""
    path = os.path.join(model_dir, CONFIG_FILE)
    if not tf.gfile.Exists(path):
        return None
    user_paths.check_input_file(path)
    try:
        with tf.gfile.GFile(path) as file:
            saved = json.load(file)
        groups = {name: kind(**saved.pop(name)) for name, kind in settings.GROUPS.items()}
        saved['class_names'] = tuple(saved['class_names'])
        config = Config(**groups, **saved)
        _check_types(config)
        _check_ranges(config)
        return config
    except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f'{path} is damaged or of another version ({error}); remove it to let the '
                        'next training run write it anew.') from error


def of_checkpoint(checkpoint):
    """The `Config` of the run that a checkpoint (its path prefix) is of, or None.

    It lies beside the checkpoint, or beside the archive that the checkpoint is in.
    """
    folder = os.path.dirname(checkpoint) or '.'
    if os.path.basename(folder) == checkpoints.ARCHIVE_DIR:
        return load(folder) or load(os.path.dirname(folder) or '.')
    return load(folder)


def _check_types(config):
    """Raises ValueError for what no flag could have made."""
    for group, field, kind in settings.rows():
        value = getattr(getattr(config, group), field.name)
        if value is None:
            is_known = field.default is None
        elif field.metadata['choices']:
            is_known = value in field.metadata['choices']
        else:
            # Not isinstance, to which True is a whole number.
            is_known = type(value) in ((int, float) if kind is float else (kind,))
        if not is_known:
            raise ValueError(f'{field.name} is {value!r}')
    names = config.class_names
    if not all(isinstance(name, str) for name in names) or (
            len(names) not in (0, config.model.num_label_classes)):
        raise ValueError(f'the {len(names)} class_names are not those of '
                         f'{config.model.num_label_classes} classes')
    if not isinstance(config.num_ranks, int) or config.num_ranks < 1:
        raise ValueError(f'num_ranks is {config.num_ranks!r}')


def _check_ranges(config):
    for group, field, _ in settings.rows():
        value = getattr(getattr(config, group), field.name)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'--{field.name}={value} is not a finite number.')
        for name, limit in {**_LARGEST.get(type(value), {}), **field.metadata['limits']}.items():
            if not _LIMITS[name](value, limit):
                raise UserError(f"--{field.name}={value} must be {name.replace('_', ' ')} {limit}.")


def _check_pairs(config):
    run = config.run
    for name, value in (('data_dir', config.data.data_dir), ('model_dir', run.model_dir)):
        if not value:
            raise UserError(f'--{name} is not given; name the folder.')
    if set(run.model_dir) & set('*?[\\'):
        raise UserError(f'--model_dir={run.model_dir}: in a folder with *, ?, [ or \\ in its name '
                        'TensorFlow does not find its checkpoints again; choose another.')
    for first, second in (('train_steps', 'train_epochs'),
                          ('save_checkpoints_steps', 'save_checkpoints_secs')):
        if getattr(run, first) and getattr(run, second):
            raise UserError(f'--{first} and --{second} are both given; keep one of them.')
    if run.stop_at is not None:
        _check_stop_at(run.stop_at)
    if config.data.transpose_input and config.optimization.data_format == 'channels_first':
        raise UserError('--transpose_input only goes with --data_format=channels_last.')
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


def _check_stop_at(text):
    try:
        secs = _unix_time(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f'--stop_at={text} is no time; write it like 2026-11-24T18:00.') from error
    if secs <= time.time():
        raise UserError(f'--stop_at={text} is over; name a time to come.')


def _unix_time(text):
    """Seconds since 1970 of an ISO 8601 time, which is local unless it says its offset."""
    return datetime.datetime.fromisoformat(re.sub('[zZ]$', '+00:00', text)).timestamp()


def _check_runtime(runtime, model_dir):
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
    if runtime.modify_mixlist:
        _check_mixlist(runtime)
    if runtime.obs_dir and user_paths.is_inside(runtime.obs_dir, model_dir):
        raise UserError(f'--obs_dir={runtime.obs_dir} is in model_dir, which is copied there; '
                        'choose another folder.')


def _check_folders(config):
    """That what a run leaves can be written is told before it begins, not at its end."""
    folders = {'model_dir': config.run.model_dir, 'export_dir': config.run.export_dir,
               'obs_dir': config.runtime.obs_dir, **config.runtime.output_dirs}
    for name, path in folders.items():
        if path:
            user_paths.check_output_folder(path, f'--{name}')


def _is_scale(text):
    try:
        return 1 <= float(text) < 2 ** 127  # of float32
    except ValueError:
        return False


def _check_mixlist(runtime):
    if runtime.precision_mode not in (None, 'allow_mix_precision'):
        raise UserError('--modify_mixlist only goes with --precision_mode=allow_mix_precision.')
    if os.path.exists(runtime.modify_mixlist):
        user_paths.check_input_file(runtime.modify_mixlist, '--modify_mixlist')
    try:
        with open(runtime.modify_mixlist) as file:
            json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f'--modify_mixlist={runtime.modify_mixlist} is no readable JSON file '
                        f'({error}).') from error


def _filled_in(config):
    """Fills in what is not given: from the data set, the model, or the published recipe."""
    data, model, optimization, run = config.data, config.model, config.optimization, config.run
    info = schema.DatasetInfo.load(data.data_dir)
    described = info or (
        schema.SYNTHETIC if data.data_dir == schema.SYNTHETIC_DIR else schema.IMAGENET)
    if info and not data.holdout_shards:
        _agreed('num_train_images', data.num_train_images, info.num_images[schema.TRAIN], info)
        if (data.num_eval_images or 0) > info.num_images[schema.VALIDATION]:
            raise UserError(f'--num_eval_images={data.num_eval_images} is more than the '
                            f'{info.num_images[schema.VALIDATION]} images that dataset_info.json '
                            'says there are; leave the flag out or correct the file.')
    label_base = _agreed('label_base', data.label_base, described.label_base, info)
    num_classes = model.num_label_classes
    if not described.has_background(num_classes) or described.label_base != 1:
        num_classes = _agreed('num_label_classes', num_classes, described.num_classes, info)
    data = dataclasses.replace(
        data,
        label_base=label_base,
        eval_batch_size=data.eval_batch_size or data.batch_size,
        num_train_images=data.num_train_images or _num_train_images(data, described))
    optimization = dataclasses.replace(
        optimization,
        input_image_size=(optimization.input_image_size
                          or model_builder_factory.get_model_input_size(model.model_name)))
    run = dataclasses.replace(run, model_dir=run.model_dir.rstrip('/') or '/')
    if not run.train_steps and not run.train_epochs:
        run = dataclasses.replace(run, train_epochs=350.0)
    if not run.save_checkpoints_steps and not run.save_checkpoints_secs:
        run = dataclasses.replace(run, save_checkpoints_steps=1000)
    runtime = dataclasses.replace(config.runtime, **{
        name: getattr(config.runtime, name) or os.path.join(run.model_dir, folder)
        for name, folder in _OUTPUT_DIRS.items()})
    return dataclasses.replace(
        config, data=data, optimization=optimization, run=run, runtime=runtime,
        model=dataclasses.replace(model, num_label_classes=num_classes),
        class_names=_class_names(info, num_classes))


def _num_train_images(data, described):
    """Those of the data set, without the share that --holdout_shards leaves out."""
    num_images = described.num_images[schema.TRAIN]
    if not data.holdout_shards or data.data_dir == schema.SYNTHETIC_DIR:
        return num_images
    num_shards = len(schema.find_shards(data.data_dir, schema.TRAIN, data.max_bad_records > 0))
    return max(1, num_images * (num_shards - data.holdout_shards) // num_shards)


def _class_names(info, num_classes):
    """One name a class, the background class included; empty where they are not known."""
    if not info or not info.class_names:
        return ()
    return ('background',) * info.has_background(num_classes) + tuple(info.class_names)


def _agreed(name, given, described, info):
    """The value of a setting that dataset_info.json may decide and no flag may contradict."""
    if info and given is not None and given != described:
        raise UserError(f'--{name}={given} contradicts dataset_info.json, which says {described}; '
                        'leave the flag out or correct the file.')
    return described if given is None else given
