"""The Estimator's model_fn: builds the training, evaluation or prediction graph."""
import dataclasses
import functools
from typing import Dict
from typing import Optional

import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints import warm_start
from common import mixing
from common import ranks
from condconv_layers import CHANNELS_FIRST
from condconv_layers import CHANNELS_LAST
from config import run_settings
import efficientnet_builder
from efficientnet_model import FUSED_VARIANCE
from training import accumulation
from training import clipping
from training import losses
from training import nan_guard
from training import optimization
from training import saving
from training import summaries
from training import tensor_names


@dataclasses.dataclass(frozen=True)
class _Network:
    """The input and output tensors of a network.

    Attributes:
      images: float [batch, height, width, 3], normalized and mixed.
      one_hot, targets: float [batch, classes], labels before and after mixing; None in PREDICT.
      logits: float [batch, classes].
      endpoints: see `efficientnet_model.Model`.
    """
    images: tf.Tensor
    one_hot: Optional[tf.Tensor]
    targets: Optional[tf.Tensor]
    logits: tf.Tensor
    endpoints: Dict[str, tf.Tensor]


def _network(features, labels, mode, params):
    """Builds the network of one mode and returns a `_Network`; arguments as for `model_fn`."""
    config, runtime = params['config'], params['runtime']
    builder = config.builder
    is_training = mode == tf.estimator.ModeKeys.TRAIN
    images = builder.normalize(_images_first(features, config, mode))
    one_hot = targets = None
    if labels is not None:
        one_hot = targets = tf.one_hot(labels['label'], config.model.num_label_classes)
        images, targets = mixing.mix(images, targets, labels)
    overrides, uses_cpu_layers = config.model_overrides, runtime.computes_on_cpu
    if is_training:
        if runtime.fuses_batch_norm_update:
            overrides = {**overrides, 'batch_norm_variance': FUSED_VARIANCE}
    elif mode == tf.estimator.ModeKeys.EVAL and runtime.evaluates_on_cpu:
        overrides, uses_cpu_layers = {**overrides, 'data_format': CHANNELS_LAST}, True
    elif mode == tf.estimator.ModeKeys.PREDICT:
        overrides, uses_cpu_layers = {**overrides, **efficientnet_builder.PORTABLE}, False
    network_images = images
    if overrides['data_format'] == CHANNELS_FIRST:
        network_images = tf.transpose(images, [0, 3, 1, 2])
    logits, endpoints = builder.build_model(
        network_images, config.model.model_name, training=is_training, override_params=overrides,
        fine_tuning=config.frozen_parts, uses_cpu_layers=uses_cpu_layers)
    return _Network(images, one_hot, targets, logits, endpoints)


def model_fn(features, labels, mode, params):
    """Builds the graph of one mode and returns its EstimatorSpec.

    Args:
      features: images [batch, height, width, 3] in [0, 255] ([height, width, 3, batch] with
        transpose_input), of any numeric type.
      labels: dict, or None in PREDICT. 'label': int32 [batch]. In evaluation, 'weight': float32
        [batch], 0 for images that pad the last batch. In training, also the entries from
        `mixing.draw`.
      mode: a tf.estimator.ModeKeys.
      params: dict from `make_params`.
    """
    config, runtime = params['config'], params['runtime']
    if mode == tf.estimator.ModeKeys.TRAIN:
        return _network_train_spec(features, labels, params)
    network = _network(features, labels, mode, params)
    if mode == tf.estimator.ModeKeys.PREDICT:
        predictions = config.builder.predictions(
            network.logits, config.optimization.class_activation)
        return runtime.estimator_spec(
            mode=mode, predictions=predictions, scaffold=_prediction_scaffold(params),
            export_outputs={tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY:
                            tf.estimator.export.PredictOutput(predictions)})

    # No label smoothing, so that evaluations of networks trained with and without it compare.
    cross_entropy = losses.of_examples(
        config.optimization.loss, network.logits, network.targets, label_smoothing=0.0)
    return _eval_spec(network.logits, labels, network.one_hot, cross_entropy)


def _network_train_spec(features, labels, params):
    """Returns the EstimatorSpec of a training step; arguments as for `model_fn`."""
    config, mode = params['config'], tf.estimator.ModeKeys.TRAIN
    first, *rest = accumulation.micro_batches(
        features, labels, config.optimization.gradient_accumulation_steps,
        batch_axis=-1 if config.data.transpose_input else 0)
    network = _network(*first, mode, params)
    if not config.run.skip_host_call:
        summaries.add_network(network.images, config.builder.MEAN_RGB, config.builder.STDDEV_RGB,
                              network.endpoints)

    def measure_again(features, labels):
        return _measured(_network(features, labels, mode, params), labels, config)

    _, labels = first
    return train_spec(_measured(network, labels, config), config, params['runtime'],
                      accumulation.later(measure_again, rest))


def _measured(network, labels, config):
    """Returns the `measured` argument of `train_spec` for a `_Network`: name -> batch mean."""
    logits, targets = network.logits, network.targets
    loss, label_smoothing = config.optimization.loss, config.optimization.label_smoothing
    cross_entropy = losses.of_examples(loss, logits, targets, label_smoothing)
    if config.class_weights:
        cross_entropy *= _example_weights(targets, config.class_weights)
    measured = {tensor_names.CROSS_ENTROPY: tf.reduce_mean(cross_entropy),
                **_training_accuracy(logits, labels, network.one_hot, config)}
    if not config.run.skip_host_call:
        # Comparable with the cross entropy of evaluations, unlike the loss.
        measured['unsmoothed_cross_entropy'] = tf.reduce_mean(
            losses.of_examples(loss, logits, targets, label_smoothing=0.0))
    return measured


def make_params(config, runtime, weights=None):
    """Returns the params of `model_fn`.

    Args:
      config: `run_config.Config`.
      runtime: the runtime from `runtime.select`.
      weights: the weights that prediction restores, `restore.EMA` or `restore.RAW`.
    """
    return dict(config=config, runtime=runtime, weights=weights)


def _images_first(images, config, mode):
    """Returns images with the batch axis first; undoes transpose_input (not used in PREDICT)."""
    if config.data.transpose_input and mode != tf.estimator.ModeKeys.PREDICT:
        return tf.transpose(images, [3, 0, 1, 2])
    return images


def _example_weights(targets, class_weights):
    """Returns the weight of each example, float [batch]: sum over classes k of target_k weight_k.

    The weight of a mixed image is therefore mixed in the same ratio as its targets.
    """
    return tf.reduce_sum(targets * tf.constant(class_weights, tf.float32), 1)


def _is_in_top_1_and_5(logits, labels, one_hot):
    """Returns float [batch, 2]: 1.0 where the label is the top class, and is among the top 5."""
    return tf.cast(ranks.is_among_first(logits, labels['label'], one_hot, [1, 5]), tf.float32)


def _training_accuracy(logits, labels, one_hot, config):
    """Returns name -> accuracy of a batch: top-1 and, if summaries are written, top-5."""
    if config.run.skip_host_call:
        # The same top-1 accuracy with fewer kernels; top-5 is not needed.
        is_first = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels['label'])
        return {tensor_names.TOP_1: tf.reduce_mean(tf.cast(is_first, tf.float32))}
    top_1, top_5 = tf.unstack(tf.reduce_mean(_is_in_top_1_and_5(logits, labels, one_hot), 0))
    return {tensor_names.TOP_1: top_1, 'top_5': top_5}


def _prediction_scaffold(params):
    checkpoint = store.latest(params['config'].run.model_dir)
    return tf.train.Scaffold(
        saver=checkpoint and restore.weights_saver(params['weights'], checkpoint))


def train_spec(measured, config, runtime, later=()):
    """Returns the EstimatorSpec of a training step for any network in the graph.

    Args:
      measured: name -> float scalar, the mean over the first micro-batch of this rank:
        CROSS_ENTROPY, TOP_1, and other values for the summaries.
      config: `run_config.Config`.
      runtime: the runtime from `runtime.select`.
      later: functions that build and measure the other micro-batches, see `accumulation.later`.
    """
    global_step = tf.train.get_or_create_global_step()
    trained_variables = config.frozen_parts.trained(tf.trainable_variables())
    l2_loss = _l2_loss(config, trained_variables)
    loss = _regularized(measured[tensor_names.CROSS_ENTROPY], l2_loss)
    learning_rate = _learning_rate(config, global_step)
    optimizer = _optimizer(config, learning_rate, global_step)
    if later:
        measures = [measured]
        optimizer = accumulation.AccumulatedGradients(
            optimizer, _losses(measures, later, l2_loss))
        loss = tf.constant(1.0)
    train_op, shown, scaling = _minimize(
        loss, optimizer, trained_variables, global_step, config, runtime)
    if later:
        measured = accumulation.means(measures)
        loss = _regularized(measured[tensor_names.CROSS_ENTROPY], l2_loss)
    train_op = _averaged(train_op, global_step, config)
    _start_from_checkpoint(config)
    if not tf.get_collection(tf.GraphKeys.SAVERS):
        # The Estimator takes its saver from this collection. All replicas share one.
        tf.add_to_collection(tf.GraphKeys.SAVERS, saving.RunSaver(_anew(scaling, config)))
    measured = {**measured, tensor_names.LOSS: loss, tensor_names.LEARNING_RATE: learning_rate}
    for name in tensor_names.PROGRESS:
        tf.identity(measured.pop(name), name=name)
    with tf.control_dependencies([train_op]):
        # Grappler would merge `read_value` with a read from before the step.
        tf.cast(global_step, tf.int32, name=tensor_names.STEP)
    if not config.run.skip_host_call:
        summaries.add_scalars({
            'l2_loss': tf.constant(0.0) if l2_loss is None else l2_loss, **shown, **measured})
    return runtime.estimator_spec(mode=tf.estimator.ModeKeys.TRAIN, loss=loss, train_op=train_op)


def _l2_loss(config, variables):
    """Returns the weight decay term of the loss, or None if it has none or the optimizer decays."""
    weight_decay = config.optimization.weight_decay
    if not weight_decay or config.optimization.optimizer in ('lars', 'adamw'):
        return None
    return optimization.l2_loss(weight_decay, variables)


def _regularized(cross_entropy, l2_loss):
    return cross_entropy if l2_loss is None else cross_entropy + l2_loss


def _learning_rate(config, global_step):
    settings, offset = config.optimization, config.position_offset
    position = tf.cast(global_step, tf.float32) + offset if offset else global_step
    if config.run.mode == run_settings.LR_RANGE:
        return optimization.range_test_rate_at(
            position, config.scaled_rate(settings.lr_range_min),
            config.scaled_rate(settings.lr_range_max), config.total_steps)
    return optimization.learning_rate_at(
        position, settings.lr_schedule, config.learning_rate, config.steps_per_epoch,
        config.total_steps + offset, settings.lr_decay_factor, settings.lr_decay_epoch,
        settings.lr_warmup_epochs)


def _losses(measures, later, l2_loss):
    """Returns the loss functions of the micro-batches for `accumulation.AccumulatedGradients`.

    Their sum is the loss of the step.

    Args:
      measures: list with the `measured` dict of the first micro-batch; each function appends the
        dict of its micro-batch.
      later: see `train_spec`.
      l2_loss: weight decay term, or None.
    """
    number = 1 + len(later)

    def loss_of(build, done):
        measures.append(build(done))
        return measures[-1][tensor_names.CROSS_ENTROPY] / number

    first = measures[0][tensor_names.CROSS_ENTROPY] / number
    return [lambda done: _regularized(first, l2_loss),
            *[functools.partial(loss_of, build) for build in later]]


def _minimize(loss, optimizer, variables, global_step, config, runtime):
    """Adds the update of weights and batch statistics to the graph.

    Returns:
      (train op, values, variables). The values are float scalars for the summaries: 'loss_scale' if
      the loss is scaled, and 'gradient_norm' if gradients are clipped, if the optimizer does not
      detect overflows, or with --log_gradient_norm. The variables are those of the loss scale.
    """
    others = tf.global_variables()
    optimizer, loss_scale = runtime.wrap_optimizer(optimizer)
    scaling = [variable for variable in tf.global_variables() if variable not in others]
    # One gate before all updates ensures that no update changes a weight that a gradient still
    # reads. TensorFlow's own gates, one per op of the backward pass, take a thousand nodes more.
    gradients = optimizer.compute_gradients(
        loss, variables, gate_gradients=tf.train.Optimizer.GATE_NONE)
    shown, clip_norm = {}, config.optimization.gradient_clip_norm
    if clip_norm:
        gradients = clipping.reduced(gradients)
    if clip_norm or not runtime.skips_overflows or config.run.log_gradient_norm:
        shown['gradient_norm'] = nan_guard.add_gradient_norms(gradients)
    if clip_norm:
        gradients = clipping.clipped(gradients, shown['gradient_norm'], clip_norm)
    if loss_scale is not None:
        shown['loss_scale'] = loss_scale
    # The gate includes the loss, whose weight decay term reads weights that no gradient depends on.
    gate = tf.group(loss, *[gradient for gradient, _ in gradients],
                    *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    with tf.control_dependencies([gate]):
        return optimizer.apply_gradients(gradients, global_step), shown, scaling


def _anew(scaling, config):
    """Returns the loss-scale variables that must be initialized instead of restored: all or none.

    They are initialized if the checkpoint lacks them, or if the precision or --loss_scale changed.
    """
    checkpoint = store.latest(config.run.model_dir)
    if not (scaling and checkpoint):
        return []
    is_held = {variable.op.name for variable in scaling} <= set(store.shapes(checkpoint))
    return [] if is_held and config.keeps_loss_scale(store.step_of(checkpoint)) else scaling


def _averaged(train_op, global_step, config):
    """Returns a train op that also updates the moving averages, if the run has them."""
    decay = config.optimization.moving_average_decay
    if not decay:
        return train_op
    moving_average = optimization.MovingAverage(restore.ema_variables(), decay, global_step)
    with tf.control_dependencies([train_op]):
        return moving_average.apply()


def _start_from_checkpoint(config):
    """Initializes a new run with the weights of --init_checkpoint, if given."""
    run = config.run
    if run.init_checkpoint and not store.latest(run.model_dir):
        warm_start.initialize(
            store.find(run.init_checkpoint, 'init_checkpoint'), restore.ema_variables(),
            run.model_dir, config.frozen_parts)


def _optimizer(config, learning_rate, global_step):
    """Returns the optimizer of a run, split if the head has its own learning rate."""
    def build(rate):
        return optimization.build_optimizer(config.optimization, rate, global_step)

    multiplier = config.optimization.head_learning_rate_multiplier
    if multiplier == 1:
        return build(learning_rate)
    head_scope = f'{config.model.model_name}/head/'
    return optimization.SplitOptimizer(
        build(learning_rate * multiplier), build(learning_rate),
        lambda variable: variable.op.name.startswith(head_scope))


def _eval_spec(logits, labels, one_hot, cross_entropy):
    weight = labels['weight']
    is_correct, is_in_top_5 = tf.unstack(_is_in_top_1_and_5(logits, labels, one_hot), axis=1)
    num_classes = logits.shape[1].value
    targets = one_hot * weight[:, tf.newaxis]
    predicted = tf.one_hot(tf.argmax(logits, 1, output_type=tf.int32), num_classes)
    metrics = {'top_1': tf.metrics.mean(is_correct, weight),
               'top_5': tf.metrics.mean(is_in_top_5, weight),
               'cross_entropy': tf.metrics.mean(cross_entropy, weight),
               'num_images': _total('total', tf.reduce_sum(weight)),
               'class_images': _total('class_images', tf.reduce_sum(targets, 0)),
               'class_predicted': _total(
                   'class_predicted', tf.reduce_sum(predicted * weight[:, tf.newaxis], 0)),
               'class_correct': _total(
                   'class_correct', tf.reduce_sum(targets * is_correct[:, tf.newaxis], 0))}
    if num_classes <= summaries.MAX_CONFUSION_CLASSES:
        metrics['confusion_matrix'] = _total(
            'confusion_matrix', tf.matmul(targets, predicted, transpose_a=True))
    loss = tf.losses.compute_weighted_loss(cross_entropy, weight)
    # A stock EstimatorSpec works for every runtime, because evaluation returns only metrics.
    return tf.estimator.EstimatorSpec(
        mode=tf.estimator.ModeKeys.EVAL, loss=loss, eval_metric_ops=metrics)


def _total(name, values):
    """Returns a metric, (total, update op), that adds up the `values` of each batch."""
    total = tf.get_variable(
        name, values.shape, tf.float32, tf.zeros_initializer(), trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.METRIC_VARIABLES])
    return total, tf.assign_add(total, values)
