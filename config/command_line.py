"""Makes the `Config` of the command line, combined with the stored settings of the run.

An evaluation takes the settings that are not given from the run. A resumed training keeps the
class names of the run.
"""
import dataclasses
import os

from absl import flags
from absl import logging

from checkpoints import restore
from checkpoints import store
from common.errors import UserError
from common.paths import is_same
from config import checks
from config import class_weights
from config import normalization
from config import run_config
from config import run_settings
from config import segments as run_segments
from config import settings
import model_builder_factory
from tfrecords import class_labels
from tfrecords import layout
from tfrecords import schema

# If one setting of a set is given, the run's stored values of the whole set are ignored.
_PRECISION = {'precision_mode', 'precision_mode_v2'}
_DECIDED_TOGETHER = (
    {'train_steps', 'train_epochs'}, {'batch_size', 'eval_batch_size'}, _PRECISION)
# The stored values of these settings apply only to the dataset of the run.
_OF_THE_DATA = {'num_eval_images', 'holdout_shards', 'max_bad_records', 'max_image_pixels'}
# The defaults of these settings changed between versions; a resumed run keeps its stored values.
_KEPT = {'lars_weight_decay'}
_OF_THE_RUN = ('train_steps', 'train_epochs', 'archive_ckpt', 'best_metric')


def from_flags(as_checkpoint=None):
    """Returns the `Config` of the parsed flags.

    An evaluation waits for the first checkpoint in model_dir and takes the settings that are not
    given from config.json there. A run that starts from --init_checkpoint takes its model settings
    from the run of that checkpoint.

    Args:
      as_checkpoint: function of (path, flag name, alternative directory) -> path of the checkpoint
        that a weight file is converted to, see `weights.conversion`; default: no conversion.

    Raises:
      UserError: see `run_config.from_values`; or the flags contradict the run, or the classes of
        the run and the dataset differ.
    """
    values, given = _flag_values(), _given()
    if values['mode'] == run_settings.EVAL:
        return _evaluation(values, given)
    has_checkpoint = store.latest(values['model_dir'])
    if as_checkpoint and values['init_checkpoint'] and not has_checkpoint:
        values['init_checkpoint'] = as_checkpoint(
            values['init_checkpoint'], 'init_checkpoint', _parent(values['model_dir']))
    stored = _stored(values) if has_checkpoint else None
    values = _with_initial_model(values, given, stored)
    if values['class_names_from'] == class_labels.MODEL:
        if not stored:
            raise UserError('--class_names_from=model: model_dir has no run to take the classes '
                            'from; leave the flag out.')
        if 'num_label_classes' not in given:
            values['num_label_classes'] = stored.model.num_label_classes
    if not stored:
        return _with_class_weights(run_config.from_values(values))
    values.update({name: getattr(stored.optimization, name) for name in _KEPT - given})
    mapped = class_map(stored, values['data_dir'], values['class_names_from'])
    return _with_class_weights(_with_classes_of(stored, run_config.from_values(values), mapped))


def check_flags():
    """Raises the UserErrors of `from_flags` that can be detected without the dataset."""
    values, given = _flag_values(), _given()
    if values['mode'] == run_settings.EVAL:
        stored = _stored(values)
        values = _with_stored(values, given, stored) if stored else values
    checks.check_folders(run_config.without_data(values))


def class_map(stored, data_dir, names_from):
    """Returns the `class_labels.class_map` from the classes of a dataset to those of a run."""
    info = schema.DatasetInfo.load(data_dir)
    return class_labels.class_map(stored.class_names, info.class_names if info else (), names_from,
                                  f'the {schema.DATASET_INFO_NAME} in {data_dir}')


def _parent(model_dir):
    """Returns the parent directory of a local model_dir, or None for a URL."""
    return None if '://' in model_dir else os.path.dirname(os.path.abspath(model_dir))


def _flag_values():
    values = {field.name: run_config.hashable(flags.FLAGS[field.name].value)
              for _, field, _ in settings.rows()}
    values['normalization'] = normalization.given(flags.FLAGS) or None
    return _of_range_test(values) if values['mode'] == run_settings.LR_RANGE else values


def _of_range_test(values):
    """Returns the flag values adapted to a learning-rate range test.

    A separate directory keeps the test apart from the run. Every step is logged.
    """
    folders = {name: os.path.join(values[name], run_settings.LR_RANGE)
               for name in ('model_dir', 'obs_dir') if values[name]}
    return {**values, **folders, 'export_dir': '', 'per_class_csv': '',
            'early_stopping_evals': None, 'train_steps': values['lr_range_steps'],
            'train_epochs': None, 'log_step_count_steps': 1, 'iterations_per_loop': 1}


def _given():
    """Returns the names of the settings that the user or a calling program has set."""
    # A flag given by its alias is only `present`; a flag set by a program only loses its default.
    names = {field.name for _, field, _ in settings.rows()
             if flags.FLAGS[field.name].present or not flags.FLAGS[field.name].using_default_value}
    return names | ({'normalization'} if normalization.given(flags.FLAGS) is not None else set())


def _stored(values):
    """Returns the `Config` stored in model_dir, or None."""
    return run_config.of_folder(values['model_dir']) if values['model_dir'] else None


def _evaluation(values, given):
    if values['model_dir'] and not values['eval_once']:
        _wait_for_first_checkpoint(values)
    stored = _stored(values)
    if not stored:
        return run_config.from_values(_with_evaluated_network(values, given))
    values = _with_stored(values, given, stored)
    mapped = class_map(stored, values['data_dir'], values['class_names_from'])
    config = _with_classes_of(stored, run_config.from_values(values), mapped)
    # Epochs are counted in training images of the run, even if another dataset is evaluated.
    config = run_config.replaced(config, 'data', num_train_images=stored.data.num_train_images)
    return dataclasses.replace(
        config, segments=stored.segments or (run_segments.Segment(0, stored.settings),))


def _wait_for_first_checkpoint(values):
    model_dir, timeout_secs = values['model_dir'], values['eval_timeout']
    if store.latest(model_dir):
        return
    # Reports invalid flags before the wait.
    run_config.without_data({**values, 'data_dir': values['data_dir'] or schema.SYNTHETIC_DIR})
    arriving = store.arriving(model_dir, timeout_secs, lambda last: 'the first checkpoint')
    if not next(arriving, None):
        raise UserError(f'--model_dir={model_dir}: no checkpoint within {timeout_secs} seconds; '
                        'check the path, or raise --eval_timeout.')


def _with_stored(values, given, stored):
    """Returns the flag values, with the run's stored values for settings that are not given."""
    # The class names themselves are stored, because their file may have been removed.
    own = given | {'class_names', 'class_names_from'}
    for names in _DECIDED_TOGETHER:
        own |= names if given & names else set()
    data_dir = values['data_dir'] if 'data_dir' in given else stored.data.data_dir
    if not is_same(data_dir, stored.data.data_dir):
        own |= _OF_THE_DATA | set(layout.FLAGS)
        own |= _label_base_if_other(values, data_dir, stored)
    if schema.DatasetInfo.load(data_dir):
        # dataset_info.json takes precedence over the stored values.
        own |= {'num_train_images', 'label_base'}
    inherited = {name: value for group in ('data', 'model', 'optimization')
                 for name, value in vars(getattr(stored, group)).items()}
    inherited.update({name: getattr(stored.run, name) for name in _OF_THE_RUN})
    inherited.update({name: getattr(stored.runtime, name) for name in _PRECISION})
    for name in sorted(given & set(inherited)):
        if values[name] != inherited[name] and name != 'data_dir':
            logging.info("--%s=%s overrides the run's value, %s.", name, values[name],
                         inherited[name])
    return {**values, **{name: value for name, value in inherited.items() if name not in own}}


def _label_base_if_other(values, data_dir, stored):
    """Returns {'label_base'} if the labels of another dataset start at another number, else {}."""
    bases = {layout.Layout.of(values).label_base(data_dir),
             stored.data.layout.label_base(stored.data.data_dir)}
    return {'label_base'} if len(bases) > 1 else set()


def _with_initial_model(values, given, stored):
    """Returns the flag values, with the model settings of --init_checkpoint if not given."""
    path = values['init_checkpoint']
    initial = stored
    if path and not stored:
        initial = run_config.of_checkpoint(store.find(path, 'init_checkpoint'))
    if not path or not initial:
        return values
    if not stored and 'model_name' in given:
        checks.agreed('model_name', values['model_name'], initial.model.model_name,
                      f'the config.json of --init_checkpoint={path}',
                      'leave the flag out, or name another checkpoint')
    names = {field.name for field in dataclasses.fields(settings.ModelConfig)}
    names -= {'num_label_classes', *given}
    return {**values, **{name: getattr(initial.model, name) for name in names}}


def _with_evaluated_network(values, given):
    """Returns the flag values, with model and classes read from a checkpoint without config.json.
    """
    checkpoint = values['model_dir'] and store.latest(values['model_dir'])
    if not checkpoint:
        return values
    model_name = values['model_name']
    if 'model_name' not in given:
        model_name = restore.only_model(checkpoint, model_builder_factory.MODEL_NAMES)
    num_classes = restore.check_model(checkpoint, model_name, values['num_label_classes'])
    return {**values, 'model_name': model_name, 'num_label_classes': num_classes}


def _with_class_weights(config):
    """Returns the configuration with the class weights of the --class_weights file, if any."""
    path = config.optimization.class_weights
    if path in (None, class_weights.BALANCED):
        return config
    return dataclasses.replace(config, class_weights=class_weights.read(
        path, config.class_names, config.model.num_label_classes))


def _with_classes_of(stored, config, mapped):
    """Returns the configuration with the run's class names and a map from the dataset's classes."""
    shown = config.names_to_show
    if not shown and config.data.class_names_from == class_labels.DATA:
        shown = config.class_names
    return dataclasses.replace(config, class_names=stored.class_names or config.class_names,
                               names_to_show=shown, class_map=mapped)
