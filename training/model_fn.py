"""The Estimator's model_fn: logits -> loss -> train op, metrics or predictions."""
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints import warm_start
from condconv_layers import CHANNELS_FIRST
import efficientnet_builder
import model_builder_factory
from training import nan_guard
from training import optimization
from training import summaries

# What the progress hook shows of a training step: names of scalars in the training graph.
PROGRESS = ('loss', 'cross_entropy', 'top_1', 'learning_rate')


def model_fn(features, labels, mode, params):
    """Builds the graph of one mode.

    Args:
      features: images [batch, size, size, 3] in [0, 255] ([size, size, 3, batch] with
        transpose_input), of any number type.
      labels: dict of 'label' int32 [batch]; 'weight' float32 [batch], evaluation only, 0 for the
        images that only fill up the last batch; 'mixup_lambda' float32 [batch], training with mixup
        only. None in PREDICT.
      mode: a tf.estimator.ModeKeys.
      params: dict of 'config' (`training.config.Config`), 'runtime' (`runtime.select`) and
        'weights' ('ema' or 'raw': those that evaluation and prediction restore).

    Returns:
      the runtime's EstimatorSpec.
    """
    config, runtime = params['config'], params['runtime']
    builder = model_builder_factory.get_model_builder(config.model.model_name)
    is_training = mode == tf.estimator.ModeKeys.TRAIN
    images = builder.normalize(_images_first(features, config, mode))
    targets = None
    if labels is not None:
        targets = tf.one_hot(labels['label'], config.model.num_label_classes)
        if 'mixup_lambda' in labels:
            images, targets = _mixed(images, targets, labels['mixup_lambda'])
    overrides, uses_cpu_layers = config.model_overrides, runtime.computes_on_cpu
    if mode == tf.estimator.ModeKeys.PREDICT:
        overrides, uses_cpu_layers = {**overrides, **efficientnet_builder.PORTABLE}, False
    network_images = images
    if overrides['data_format'] == CHANNELS_FIRST:
        network_images = tf.transpose(images, [0, 3, 1, 2])
    logits, endpoints = builder.build_model(
        network_images, config.model.model_name, training=is_training, override_params=overrides,
        fine_tuning=config.frozen_parts, uses_cpu_layers=uses_cpu_layers)

    if mode == tf.estimator.ModeKeys.PREDICT:
        predictions = builder.predictions(logits)
        return runtime.estimator_spec(
            mode=mode, predictions=predictions, scaffold=_scaffold(params),
            export_outputs={tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY:
                            tf.estimator.export.PredictOutput(predictions)})

    # Evaluations can then be compared, however the networks were trained.
    label_smoothing = config.optimization.label_smoothing if is_training else 0.0
    cross_entropy = _cross_entropy(logits, targets, label_smoothing)
    is_correct = tf.cast(
        tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels['label']), tf.float32)
    if not is_training:
        return _eval_spec(logits, labels, cross_entropy, is_correct, params)
    if not config.run.skip_host_call:
        summaries.watch_network(images, builder.MEAN_RGB, builder.STDDEV_RGB, endpoints)
        summaries.watch_scalars({'top_5': tf.reduce_mean(_is_in_top_5(logits, labels['label']))})
    return train_spec(tf.reduce_mean(cross_entropy), tf.reduce_mean(is_correct), config, runtime)


def _images_first(images, config, mode):
    """Undoes transpose_input, which the serving input does not have."""
    if config.data.transpose_input and mode != tf.estimator.ModeKeys.PREDICT:
        return tf.transpose(images, [3, 0, 1, 2])
    return images


def _mixed(images, targets, lambdas):
    """Mixup (arXiv:1710.09412): each example with its mirror in the batch."""
    image_lambdas = tf.reshape(lambdas, [-1, 1, 1, 1])
    target_lambdas = tf.reshape(lambdas, [-1, 1])
    return (images * image_lambdas + tf.reverse(images, [0]) * (1 - image_lambdas),
            targets * target_lambdas + tf.reverse(targets, [0]) * (1 - target_lambdas))


def _cross_entropy(logits, targets, label_smoothing):
    """Cross entropy of each example, [batch], against smoothed targets (arXiv:1512.00567)."""
    if label_smoothing:
        num_classes = targets.shape.as_list()[-1]
        targets = targets * (1.0 - label_smoothing) + label_smoothing / num_classes
    return tf.nn.softmax_cross_entropy_with_logits_v2(labels=targets, logits=logits)


def _is_in_top_5(logits, label):
    """1.0 or 0.0 for each example; of fewer classes than 5 all are in it."""
    return tf.cast(tf.nn.in_top_k(logits, label, min(5, logits.shape[1].value)), tf.float32)


def _scaffold(params):
    checkpoint = store.latest(params['config'].run.model_dir)
    return tf.train.Scaffold(
        saver=checkpoint and restore.weights_saver(params['weights'], checkpoint))


def train_spec(cross_entropy, top_1, config, runtime):
    """The spec of a training step of whatever network the graph holds.

    Args:
      cross_entropy, top_1: float scalars, means over the batch of this rank.
      config: `training.config.Config`.
      runtime: `runtime.select`.

    Returns:
      the runtime's EstimatorSpec.
    """
    optimization_config = config.optimization
    loss, l2_loss = cross_entropy, tf.constant(0.0)
    trained_variables = config.frozen_parts.trained(tf.trainable_variables())
    if optimization_config.weight_decay and optimization_config.optimizer != 'lars':
        l2_loss = optimization.l2_loss(optimization_config.weight_decay, trained_variables)
        loss += l2_loss
    global_step = tf.train.get_or_create_global_step()
    learning_rate = optimization.learning_rate_at(
        global_step, optimization_config.lr_schedule, config.learning_rate, config.steps_per_epoch,
        config.total_steps, optimization_config.lr_decay_factor, optimization_config.lr_decay_epoch,
        optimization_config.lr_warmup_epochs)
    optimizer = runtime.wrap_optimizer(optimization.build_optimizer(
        optimization_config.optimizer, learning_rate, optimization_config.lars_weight_decay,
        optimization_config.lars_epsilon, _rate_multiplier(config)))
    # One gate in front of all updates, so that none changes a weight that a gradient still needs,
    # in place of TensorFlow's own behind each op of the backward pass: a thousand nodes less.
    gradients = optimizer.compute_gradients(
        loss, trained_variables, gate_gradients=tf.train.Optimizer.GATE_NONE)
    gradient_norm = nan_guard.watch(gradients)
    gate = tf.group(*[gradient for gradient, _ in gradients],
                    *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
    with tf.control_dependencies([gate]):
        train_op = optimizer.apply_gradients(gradients, global_step)
    variables, average = restore.ema_variables(), None
    if optimization_config.moving_average_decay:
        moving_average = optimization.MovingAverage(
            variables, optimization_config.moving_average_decay, global_step)
        average = moving_average.average
        with tf.control_dependencies([train_op]):
            train_op = moving_average.apply()
    if config.run.init_checkpoint and not store.latest(config.run.model_dir):
        warm_start.initialize(store.find(config.run.init_checkpoint, 'init_checkpoint'),
                              variables, config.run.model_dir, average, config.frozen_parts)

    if not config.run.skip_host_call:
        watched = {'l2_loss': l2_loss, 'gradient_norm': gradient_norm}
        if runtime.loss_scale is not None:
            watched['loss_scale'] = runtime.loss_scale
        summaries.watch_scalars(watched)
    for name, value in zip(PROGRESS, (loss, cross_entropy, top_1, learning_rate)):
        tf.identity(value, name=name)
    return runtime.estimator_spec(mode=tf.estimator.ModeKeys.TRAIN, loss=loss, train_op=train_op)


def _rate_multiplier(config):
    """The function from a variable to the factor of its learning rate; None where all are 1."""
    multiplier = config.optimization.head_learning_rate_multiplier
    if multiplier == 1:
        return None
    head = f'{config.model.model_name}/head/'
    return lambda variable: multiplier if variable.op.name.startswith(head) else 1.0


def _eval_spec(logits, labels, cross_entropy, is_correct, params):
    label, weight = labels['label'], labels['weight']
    num_classes = logits.shape[1].value
    targets = tf.one_hot(label, num_classes) * weight[:, tf.newaxis]
    metrics = {'top_1': tf.metrics.mean(is_correct, weight),
               'top_5': tf.metrics.mean(_is_in_top_5(logits, label), weight),
               'cross_entropy': tf.metrics.mean(cross_entropy, weight),
               'num_images': _total('total', tf.reduce_sum(weight)),
               'class_images': _total('class_images', tf.reduce_sum(targets, 0)),
               'class_correct': _total(
                   'class_correct', tf.reduce_sum(targets * is_correct[:, tf.newaxis], 0))}
    if num_classes <= summaries.MAX_CONFUSION_CLASSES:
        predicted = tf.one_hot(tf.argmax(logits, 1, output_type=tf.int32), num_classes)
        metrics['confusion_matrix'] = _total(
            'confusion_matrix', tf.matmul(targets, predicted, transpose_a=True))
    loss = tf.losses.compute_weighted_loss(cross_entropy, weight)
    return params['runtime'].estimator_spec(
        mode=tf.estimator.ModeKeys.EVAL, loss=loss, eval_metric_ops=metrics,
        scaffold=_scaffold(params))


def _total(name, values):
    """A metric that adds up `values` of each batch: (total, update op)."""
    total = tf.get_variable(
        name, values.shape, tf.float32, tf.zeros_initializer(), trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES, tf.GraphKeys.METRIC_VARIABLES])
    return total, tf.assign_add(total, values)
