"""Flags in, a frozen and validated `Config` out, with the values that are derived from it.

`config.settings` is the one place a setting exists. `define_flags()` makes the flags of its rows,
`from_flags()` the `Config`.
"""
import dataclasses
import json
import os
import typing

from absl import flags
import tensorflow.compat.v1 as tf

from checkpoints import store
from common import app
from common.errors import UserError
from common.files import whole_file
from common.paths import check_input_file
from config import checks
from config import freeze
from config import settings
import efficientnet_builder
from tfrecords import schema

CONFIG_FILE = 'config.json'


@dataclasses.dataclass(frozen=True)
class Config:
    """A validated run. Optional settings that have a default elsewhere are filled in.

    Attributes:
      changed_settings: names of the settings that the user gave another value than the default;
        None where it is not known, as of runs of earlier versions.
    """
    data: settings.DataConfig
    model: settings.ModelConfig
    optimization: settings.OptimizationConfig
    run: settings.RunConfig
    runtime: settings.RuntimeConfig
    class_names: typing.Tuple[str, ...] = ()
    num_ranks: int = 1
    changed_settings: typing.Optional[typing.Tuple[str, ...]] = None

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

    @property
    def trains(self):
        return self.run.mode != settings.EVAL

    @property
    def evaluates(self):
        return self.run.mode != settings.TRAIN

    def ends_round(self, earlier_step, step):
        """Whether a round of training, which an evaluation follows, ends between two steps.

        The last round does not count: it ends with the training.
        """
        return (self.trains and self.evaluates and step < self.total_steps
                and step // self.steps_per_eval > earlier_step // self.steps_per_eval)

    def deadline(self, start_secs):
        """When a run that began then has to end, in seconds since 1970; None for never."""
        limits = []
        if self.run.max_hours:
            limits.append(start_secs + 3600 * self.run.max_hours)
        if self.run.stop_at:
            limits.append(checks.unix_time(self.run.stop_at))
        return min(limits, default=None)

    @property
    def learning_rate(self):
        """The peak learning rate, for the global batch size (arXiv:1706.02677, section 2.1)."""
        return self.optimization.base_learning_rate * self.global_batch_size / 256

    @property
    def model_overrides(self):
        """The `override_params` of the network; None where the model's own value holds."""
        names = ('dropout_rate', 'survival_prob', 'routing_init_stddev', 'batch_norm_momentum',
                 'batch_norm_epsilon', 'data_format')
        return {**{name: getattr(self.optimization, name) for name in names},
                'condconv_implementation':
                    settings.CONDCONV_IMPLEMENTATIONS[self.optimization.depthwise_condconv],
                'width_coefficient': self.model.width_coefficient,
                'depth_coefficient': self.model.depth_coefficient,
                'num_classes': self.model.num_label_classes}

    @property
    def frozen_parts(self):
        """`freeze.FrozenParts`; ValueError if --freeze names what the network does not have."""
        params = efficientnet_builder.get_model_params(
            self.model.model_name, self.model_overrides)
        return freeze.parse(self.optimization.freeze, len(params.blocks))

    def save(self):
        """Writes model_dir/config.json, whole or not at all."""
        with whole_file(os.path.join(self.run.model_dir, CONFIG_FILE)) as file:
            json.dump(dataclasses.asdict(self), file, indent=2)


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
        elif isinstance(default, tuple):
            flags.DEFINE_multi_string(name, list(default), help_text, flag_values=flag_values)
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
    checks.check_folders(_without_data(_flag_values()))


def _flag_values():
    values = {field.name: flags.FLAGS[field.name].value for _, field, _ in settings.rows()}
    return {name: _hashable(value) for name, value in values.items()}


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


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
        checks.check_ranges(config)
    except UserError as error:
        raise UserError(f'{error} {schema.DATASET_INFO_NAME} says so; correct it.') from error
    if config.total_steps > app.LARGEST_INTEGER:
        raise UserError(f'--train_epochs={config.run.train_epochs} are {config.total_steps} steps; '
                        f'train for {app.LARGEST_INTEGER} at most.')
    checks.check_folders(config)
    return config


def _without_data(values):
    """The `Config` of what is given, as far as it can be checked before the data are there."""
    groups = {name: {} for name in settings.GROUPS}
    owners = {field.name: group for group, field, _ in settings.rows()}
    for name, value in values.items():
        groups[owners[name]][name] = value
    changed = tuple(field.name for _, field, _ in settings.rows()
                    if values.get(field.name, field.default) != field.default)
    config = Config(**{name: settings.GROUPS[name](**chosen) for name, chosen in groups.items()},
                    changed_settings=changed)
    checks.check_ranges(config)
    checks.check_pairs(config)
    checks.check_runtime(config.runtime, config.run.model_dir)
    return config


def load(model_dir):
    """The `Config` a run left in `model_dir`, or None; a damaged file is a UserError."""
    path = os.path.join(model_dir, CONFIG_FILE)
    if not tf.gfile.Exists(path):
        return None
    check_input_file(path)
    try:
        with tf.gfile.GFile(path) as file:
            saved = json.load(file)
        groups = {name: kind(**{key: _hashable(value) for key, value in saved.pop(name).items()})
                  for name, kind in settings.GROUPS.items()}
        saved['class_names'] = tuple(saved['class_names'])
        saved['changed_settings'] = _hashable(saved.get('changed_settings'))
        config = Config(**groups, **saved)
        checks.check_types(config)
        checks.check_ranges(config)
        return config
    except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f'{path} is damaged or of another version ({error}); remove it to let the '
                        'next training run write it anew.') from error


def of_checkpoint(checkpoint):
    """The `Config` of the run that a checkpoint (its path prefix) is of, or None.

    It lies beside the checkpoint, or beside the archive that the checkpoint is in.
    """
    folder = os.path.dirname(checkpoint) or '.'
    if os.path.basename(folder) == store.ARCHIVE_DIR:
        return load(folder) or load(os.path.dirname(folder) or '.')
    return load(folder)


def _filled_in(config):
    """Derives what is not given, row by row, from the data set, the model and other settings."""
    config = _replaced(config, 'run', model_dir=config.run.model_dir.rstrip('/') or '/')
    data_dir = config.data.data_dir
    info = schema.DatasetInfo.load(data_dir)
    if info:
        checks.check_dataset(config, info)
    dataset = info or (
        schema.SYNTHETIC if data_dir == schema.SYNTHETIC_DIR else schema.IMAGENET)
    for group, field, _ in settings.rows():
        derived = field.metadata['derived']
        if derived and getattr(getattr(config, group), field.name) in (None, ''):
            config = _replaced(config, group, **{field.name: derived(config, dataset)})
    return dataclasses.replace(
        config, class_names=_class_names(info, config.model.num_label_classes))


def _replaced(config, group, **values):
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **values)})


def _class_names(info, num_classes):
    """One name a class, the background class included; empty where they are not known."""
    if not info or not info.class_names:
        return ()
    return ('background',) * info.has_background(num_classes) + tuple(info.class_names)
