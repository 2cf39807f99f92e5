"""Defines `Config`, the frozen and validated configuration of a run, and the flags of its settings.

All settings are declared in `config.settings`. `define_flags()` registers their flags;
`config.command_line` makes a `Config` from the command line.
"""
import dataclasses
import json
import os
import typing

from absl import flags

from checkpoints import store
from common import app
from common import json_files
from common.errors import UserError
from common.files import whole_file
from common.image_sizes import ImageSize
from common.image_sizes import WrittenSize
from config import checks
from config import freeze
from config import normalization
from config import optimization_settings
from config import run_settings
from config import segments as run_segments
from config import setting
from config import settings
import efficientnet_builder
import model_builder_factory
from tfrecords import class_labels
from tfrecords import schema

CONFIG_FILE = store.CONFIG_FILE
# Fields of config.json. `checks.check_types` checks the settings of each group.
_FIELDS = {**{name: json_files.OBJECT for name in settings.GROUPS},
           'class_names': json_files.TEXTS, 'num_ranks': json_files.POSITIVE,
           # Earlier versions wrote no segments.
           'segments': json_files.optional(json_files.ARRAY),
           'changed_settings': json_files.optional(json_files.TEXTS)}
_ANEW = 'remove the file, and the next training run writes a new one'


@dataclasses.dataclass(frozen=True)
class Config:
    """The validated configuration of a run, in which derived defaults are filled in.

    Attributes:
      class_names: one name per class, from dataset_info.json if it has names; empty if unknown.
      names_to_show: names to display instead of `class_names`; empty for none.
      class_map: for each class of the dataset, the class of the model; empty if they are equal.
      class_weights: one weight per class for the training loss; empty if all are 1. The weights
        of --class_weights=balanced are set once the images have been counted.
      num_ranks: world size, the number of processes that train together.
      segments: all segments of the run, the newest last; empty for a new run.
      changed_settings: names of the settings that the user set to a value other than the default;
        None if unknown, as for runs of earlier versions.
    """
    data: settings.DataConfig
    model: settings.ModelConfig
    optimization: settings.OptimizationConfig
    run: settings.RunConfig
    runtime: settings.RuntimeConfig
    class_names: typing.Tuple[str, ...] = ()
    names_to_show: typing.Tuple[str, ...] = ()
    class_map: typing.Tuple[int, ...] = ()
    class_weights: typing.Tuple[float, ...] = ()
    num_ranks: int = 1
    segments: typing.Tuple[run_segments.Segment, ...] = ()
    changed_settings: typing.Optional[typing.Tuple[str, ...]] = None

    @property
    def shown_class_names(self):
        """The class names to display."""
        return self.names_to_show or self.class_names

    @property
    def global_batch_size(self):
        """Images per training step of all ranks together, in the newest segment."""
        if self.segments:
            return self.segments[-1].global_batch_size
        return self.device_batch_size * self.num_ranks

    @property
    def device_batch_size(self):
        """Images per training step on one device, in all micro-batches together."""
        return self.data.batch_size * self.optimization.gradient_accumulation_steps

    @property
    def steps_per_epoch(self):
        """Steps per epoch, a float: schedules and epochs are exact for any batch size."""
        return self.data.num_train_images / self.global_batch_size

    def position(self, step):
        """Returns the progress of a run at a global step, in steps of the newest global batch size.

        Schedules and epochs count images. After a resume with another batch size, the position
        therefore differs from the global step.
        """
        if len(self.segments) < 2:
            return step
        return run_segments.num_examples(self.segments, step) / self.global_batch_size

    @property
    def position_offset(self):
        """The difference between position and global step in the newest segment."""
        if not self.segments:
            return 0
        return self.position(self.segments[-1].step) - self.segments[-1].step

    def keeps_loss_scale(self, step):
        """Returns whether precision and loss scale are unchanged when the run resumes at a step."""
        return not {'accelerator', 'loss_scale', 'precision_mode', 'precision_mode_v2'} & set(
            self.changes_at(step))

    def changes_at(self, step):
        """Returns a dict of setting -> (old value, new value) for a run that resumes at a step."""
        if len(self.segments) < 2 or self.segments[-1].step != step:
            return {}
        before, now = self.segments[-2:]
        return run_segments.changes(before.settings, now.settings)

    def epoch_at(self, step):
        """Returns the number of epochs completed at a global step, a float."""
        return self.position(step) / self.steps_per_epoch

    @property
    def total_steps(self):
        """The global step at which training ends."""
        if self.run.train_steps:
            return self.run.train_steps
        return max(1, round(self.run.train_epochs * self.steps_per_epoch - self.position_offset))

    @property
    def steps_per_eval(self):
        """Steps between evaluations of --mode=train_and_eval."""
        return self.run.steps_per_eval or max(1, round(5 * self.steps_per_epoch))

    def rounds_at(self, step):
        """Returns the number of training rounds completed at a global step.

        A round is the training between two evaluations.
        """
        return int((step if self.run.steps_per_eval else self.position(step))
                   // self.steps_per_eval)

    @property
    def trains(self):
        return self.run.mode != run_settings.EVAL

    @property
    def evaluates(self):
        return self.run.mode in (run_settings.EVAL, run_settings.TRAIN_AND_EVAL)

    def ends_round(self, earlier_step, step):
        """Returns whether a training round ends between two global steps.

        The last round does not count, because it ends with the training.
        """
        return (self.trains and self.evaluates and step < self.total_steps
                and self.rounds_at(step) > self.rounds_at(earlier_step))

    def deadline(self, start_secs):
        """Returns the time in seconds since 1970 at which the run must stop, or None.

        Args:
          start_secs: start of the run in seconds since 1970.
        """
        limits = []
        if self.run.max_hours:
            limits.append(start_secs + 3600 * self.run.max_hours)
        if self.run.stop_at:
            limits.append(checks.unix_time(self.run.stop_at))
        return min(limits, default=None)

    @property
    def learning_rate(self):
        """The peak learning rate, for the global batch size."""
        return self.scaled_rate(self.optimization.base_learning_rate)

    def scaled_rate(self, base_rate):
        """Returns a learning rate scaled to the global batch size (arXiv:1706.02677, section 2.1).

        Args:
          base_rate: learning rate for a global batch size of 256.
        """
        return base_rate * self.global_batch_size / 256

    @property
    def model_overrides(self):
        """The `override_params` of the network; None selects the model's own value."""
        names = ('dropout_rate', 'survival_prob', 'routing_init_stddev', 'batch_norm_momentum',
                 'batch_norm_epsilon', 'data_format')
        return {**{name: getattr(self.optimization, name) for name in names},
                'condconv_implementation':
                    optimization_settings.CONDCONV_IMPLEMENTATIONS[self.optimization.depthwise_condconv],
                'width_coefficient': self.model.width_coefficient,
                'depth_coefficient': self.model.depth_coefficient,
                'num_classes': self.model.num_label_classes}

    @property
    def image_size(self):
        """The `ImageSize` of the network's input."""
        return ImageSize.of(self.optimization.input_image_size)

    @property
    def builder(self):
        """The `efficientnet_builder.Family` that builds the network and normalizes its images."""
        return model_builder_factory.get_model_builder(
            self.model.model_name, self.model.normalization)

    @property
    def frozen_parts(self):
        """The `freeze.FrozenParts` of --freeze; raises ValueError if the network has no such part.
        """
        params = efficientnet_builder.get_model_params(
            self.model.model_name, self.model_overrides)
        return freeze.parse(self.optimization.freeze, len(params.blocks))

    @property
    def settings(self):
        """A dict of group -> setting -> JSON value, and 'num_ranks'."""
        groups = {name: dataclasses.asdict(getattr(self, name)) for name in settings.GROUPS}
        return json_files.value_of(json.dumps({**groups, 'num_ranks': self.num_ranks}))

    def continued(self, earlier, step):
        """Returns this configuration with the segments of a run that resumes at a global step.

        Args:
          earlier: the stored `Config` of the run; None for a new run.
          step: global step of the newest checkpoint; 0 if there is none.
        """
        before = (earlier.segments or (run_segments.Segment(0, earlier.settings),)
                  if earlier else ())
        segments = run_segments.continued(before, step, self.settings)
        return dataclasses.replace(
            self, segments=segments,
            class_names=earlier.class_names or self.class_names if earlier else self.class_names)

    def save(self, folder=None):
        """Writes config.json atomically to a directory, by default model_dir."""
        with whole_file(os.path.join(folder or self.run.model_dir, CONFIG_FILE)) as file:
            json.dump({**self.settings, 'class_names': self.class_names,
                       'changed_settings': self.changed_settings,
                       'segments': run_segments.to_json(self.segments)}, file, indent=2)


def define_flags(flag_values=flags.FLAGS):
    """Registers a flag for every setting."""
    # Attributes the flags to the calling module, so that the --help of the program lists them.
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
        elif kind == WrittenSize:
            setting.define_image_size(name, default, help_text, flag_values)
        else:
            flags.DEFINE_string(name, default, help_text, flag_values=flag_values)
    flags.DEFINE_alias('train_batch_size', 'batch_size', flag_values=flag_values)
    normalization.define_googles_name(flag_values)


def hashable(value):
    """Returns a value as a dataclass stores it: a list from flags or JSON becomes a tuple."""
    return tuple(value) if isinstance(value, list) else value


def from_values(values):
    """Returns the validated `Config` of a dict of settings, with derived defaults filled in.

    Args:
      values: dict of setting -> value; missing settings have their defaults.

    Raises:
      UserError: a value is out of range, settings contradict each other or dataset_info.json, or
        data_dir is missing or has no shards.
      KeyError: a setting does not exist.
    """
    config = _filled_in(without_data(values))
    try:
        checks.check_ranges(config)
    except UserError as error:
        raise UserError(f'{error} The value comes from {schema.DATASET_INFO_NAME}; correct that '
                        'file.') from error
    if config.total_steps > app.LARGEST_INTEGER:
        raise UserError(f'--train_epochs={config.run.train_epochs}: {config.total_steps} steps; '
                        f'train for at most {app.LARGEST_INTEGER}.')
    checks.check_folders(config)
    return config


def without_data(values):
    """Returns the `Config` of a dict of settings, with all checks that do not need the dataset."""
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
    """Returns the `Config` stored in `model_dir`, or None if there is no config.json.

    Raises:
      UserError: config.json is corrupt or from an incompatible version.
    """
    path = os.path.join(model_dir, CONFIG_FILE)
    saved = json_files.read_if_any(path, _ANEW, _FIELDS)
    if saved is None:
        return None
    try:
        groups = {name: kind(**{key: hashable(value) for key, value in saved.pop(name).items()})
                  for name, kind in settings.GROUPS.items()}
        saved['class_names'] = tuple(saved['class_names'])
        saved['segments'] = run_segments.from_json(saved.get('segments') or ())
        saved['changed_settings'] = hashable(saved.get('changed_settings'))
        config = Config(**groups, **saved)
        checks.check_types(config)
        checks.check_ranges(config)
        return config
    except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(
            f'{path}: corrupt or from another version ({error}); {_ANEW}.') from error


def of_checkpoint(checkpoint):
    """Returns the `Config` of the run that saved a checkpoint (path prefix), or None.

    See `of_folder`.
    """
    return of_folder(os.path.dirname(checkpoint) or '.')


def of_folder(folder):
    """Returns the `Config` of the run whose checkpoints are in a directory, or None.

    For the archive of a run, config.json may also be in the parent directory.
    """
    return next(filter(None, map(load, store.config_folders(folder))), None)


def _filled_in(config):
    """Returns the configuration with missing settings derived, in table order.

    Derived values depend on the dataset, the model and the settings before them.
    """
    config = replaced(config, 'run', model_dir=config.run.model_dir.rstrip('/') or '/')
    data_dir = config.data.data_dir
    info = schema.DatasetInfo.load(data_dir)
    if info:
        checks.check_dataset(config, info)
    dataset = info or (
        schema.SYNTHETIC if data_dir == schema.SYNTHETIC_DIR else schema.IMAGENET)
    for group, field, _ in settings.rows():
        derived = field.metadata['derived']
        if derived and getattr(getattr(config, group), field.name) in (None, ''):
            config = replaced(config, group, **{field.name: derived(config, dataset)})
    num_classes, path = config.model.num_label_classes, config.data.class_names
    shown = class_labels.read(path, 'class_names') if path else ()
    if path and len(shown) != num_classes:
        raise UserError(f'--class_names={path}: {len(shown)} names for {num_classes} classes; name '
                        'another file.')
    return dataclasses.replace(
        config, class_names=dataset.names_of(num_classes) or shown, names_to_show=shown)


def replaced(config, group, **values):
    """Returns a copy of a `Config` with some settings of one group replaced."""
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **values)})
