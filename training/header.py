"""The header of a run's log: mode, devices, model, data, schedule and output directories."""
import platform

from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf

from analysis import complexity
import autoaugment
from common.quantities import bytes_text
from common.quantities import count_text
from config import run_settings
import efficientnet_builder
from tfrecords import schema
from training import ending
from training import inputs

_MODES = {run_settings.TRAIN: 'training', run_settings.EVAL: 'evaluation',
          run_settings.TRAIN_AND_EVAL: 'training and evaluation',
          run_settings.LR_RANGE: 'learning-rate range test'}
_NUM_CLASS_NAMES = 4
# Pixels; from this size on, augmentation loses hardly more than at the published size.
_AUGMENTED_IN_FULL = 160
_BYTES_PER_VALUE = 4
# Number of values that tfdbg dumps per saved activation and per parameter. The estimate was within
# 7 % of four measured dumps (condconv-b0-8e and small networks).
_DUMPED_PER_ACTIVATION, _DUMPED_PER_PARAMETER = 3.5, 10


def log_first_line():
    """Logs that the program has started, before the slow work begins."""
    logging.info('TensorFlow %s is loaded. Reading the settings and the data.', tf.__version__)


def log(config, runtime, step):
    """Logs the header of a run if this is rank 0.

    Args:
      config: `run_config.Config` of this rank.
      runtime: the runtime from `runtime.select`.
      step: global step at which the run begins.
    """
    if runtime.rank:
        return
    costs = _costs(config)
    lines = {'Run': f'{_MODES[config.run.mode]} on {_devices(runtime)}',
             'Software': ', '.join(filter(None, (
                 f'TensorFlow {tf.__version__}', runtime.software,
                 f'Python {platform.python_version()}'))),
             'Model': _model(config, costs),
             'Classes': _classes(config),
             'Images': _images(config)}
    if config.class_weights:
        lines['Weights'] = _class_weights(config)
    if config.trains:
        lines.update({'Steps': _steps(config, step), 'Optimizer': _optimizer(config)})
    else:
        lines['Batch'] = f'{config.data.eval_batch_size} images'
    lines.update({'Precision': runtime.precision, 'Output': _output(config),
                  **_device_output(config, costs)})
    for name, text in lines.items():
        logging.info('%-11s%s', name, text)
    if config.trains:
        _warn_of_blank_images(config)


def _warn_of_blank_images(config):
    data, shorter_side = config.data, min(config.image_size)
    moves = data.augment_name == 'autoaugment' or (
        data.augment_name == 'randaugment' and data.randaug_magnitude > 0)
    if not moves or data.augment_scale == autoaugment.RELATIVE or (
            shorter_side >= _AUGMENTED_IN_FULL):
        return
    losses = autoaugment.LOSSES[data.augment_name]
    (blank, left), (usual_blank, usual_left) = (
        losses[min(losses, key=lambda measured: abs(measured - wanted))]
        for wanted in (shorter_side, autoaugment.PUBLISHED_SIZE))
    logging.warning(
        '--augment_name=%s: at %s pixels, about %.0f %% of the training images become blank and '
        '%.0f %% of the pixels are left (at %d pixels %.0f %% and %.0f %%); use '
        '--augment_scale=relative to augment as at %d pixels.',
        data.augment_name, config.image_size, 100 * blank, 100 * left, autoaugment.PUBLISHED_SIZE,
        100 * usual_blank, 100 * usual_left, autoaugment.PUBLISHED_SIZE)


def _devices(runtime):
    name = runtime.device_name
    return name if runtime.world_size == 1 else f'{name}, {runtime.world_size} ranks'


def _costs(config):
    # Takes milliseconds: the numbers come from the architecture tables, no graph is built.
    params = efficientnet_builder.get_model_params(
        config.model.model_name, config.model_overrides)
    return complexity.total(complexity.parts_of(params, config.image_size))


def _model(config, costs):
    height, width = config.image_size
    scaled = ''.join(f', {name} {value:g}' for name, value in (
        ('width', config.model.width_coefficient), ('depth', config.model.depth_coefficient))
        if value)
    multiply_adds = sum(costs[kind] for kind in complexity.KINDS)
    return (f"{config.model.model_name}{scaled}: {count_text(costs['trainable'])} parameters, "
            f'{count_text(multiply_adds)} multiply-adds per image of {height}x{width} pixels')


def _classes(config):
    names = ', '.join(config.shown_class_names[:_NUM_CLASS_NAMES])
    more = ', ...' * (len(config.shown_class_names) > _NUM_CLASS_NAMES)
    return f'{config.model.num_label_classes}' + (f' ({names}{more})' if names else '')


def _class_weights(config):
    """Describes the weights in the --class_weights file (see `class_balance` for balanced ones)."""
    weights, names = config.class_weights, config.shown_class_names
    least, most = weights.index(min(weights)), weights.index(max(weights))
    shown = [f'{weights[index]:.4g} ({names[index] if names else f"class {index}"})'
             for index in (least, most)]
    return f'class weights in the loss: {shown[0]} to {shown[1]}, mean {np.mean(weights):.4g}'


def _images(config):
    found = []
    if config.trains:
        found.append(f'{config.data.num_train_images} for training')
    if config.evaluates:
        count = inputs.num_evaluation_images(config)
        found.append(f"{'an unknown number' if count is None else count} for evaluation")
    info = schema.DatasetInfo.load(config.data.data_dir)
    stored = ''
    if info and info.max_short_side:
        quality = f' and JPEG quality {info.jpeg_quality}' if info.jpeg_quality else ''
        stored = f', stored with a short side of at most {info.max_short_side} pixels{quality}'
    return f"{', '.join(found)}, from {config.data.data_dir}{stored}"


def _steps(config, step):
    batch = f'{config.global_batch_size} images'
    num_micro_batches = config.optimization.gradient_accumulation_steps
    parts = ' '.join([f'in each of {num_micro_batches} micro-batches'] * (num_micro_batches > 1)
                     + [f'on each of {config.num_ranks} ranks'] * (config.num_ranks > 1))
    if parts:
        batch += f' ({config.data.batch_size} {parts})'
    begin = f'{step} to ' if step else ''
    text = (f'{begin}{config.total_steps}, each of {batch}; '
            f'{config.epoch_at(config.total_steps):.4g} epochs of '
            f'{config.steps_per_epoch:.4g} steps')
    if config.evaluates:
        text += f'; evaluation every {config.steps_per_eval} steps'
    return text


def _optimizer(config):
    optimization = config.optimization
    schedule = optimization.lr_schedule
    if schedule == 'exponential':
        schedule += (f', times {optimization.lr_decay_factor:g} every '
                     f'{optimization.lr_decay_epoch:g} epochs')
    average = optimization.moving_average_decay
    if config.run.mode == run_settings.LR_RANGE:
        return (f'{optimization.optimizer}, learning rate from '
                f'{config.scaled_rate(optimization.lr_range_min):.4g} to '
                f'{config.scaled_rate(optimization.lr_range_max):.4g}')
    return '; '.join(filter(None, (
        f'{optimization.optimizer}, learning rate {config.learning_rate:.4g}', schedule,
        f'warm-up of {optimization.lr_warmup_epochs:g} epochs' * (
            optimization.lr_warmup_epochs > 0),
        f'moving average {average:g}' * (average > 0))))


def _output(config):
    places = [config.run.model_dir]
    if config.run.export_dir:
        places.append(f'SavedModel to {config.run.export_dir}')
    if config.runtime.obs_dir:
        places.append(f'copied to {config.runtime.obs_dir} at the end')
    return ', '.join(places)


def _device_output(config, costs):
    """Returns a dict of name -> directory of each device output, with its size where known."""
    runtime = config.runtime
    found = {ending.OUTPUT_NAMES[setting]: folder
             for setting, folder in runtime.output_dirs.items()}
    if runtime.npu_dump_data:
        num_bytes = _BYTES_PER_VALUE * (
            _DUMPED_PER_ACTIVATION * costs['kept'] * config.device_batch_size
            + _DUMPED_PER_PARAMETER * costs['trainable'])
        num_steps = sum(map(len, runtime.dump_steps))
        found[ending.OUTPUT_NAMES['dump_dir']] += (
            f': about {bytes_text(num_bytes)} for each of {num_steps} step{"s" * (num_steps > 1)} '
            'and device')
    elif runtime.over_dump:
        found[ending.OUTPUT_NAMES['dump_dir']] += (
            ': gigabytes per step if many operators overflow')
    return found
