"""The per-example loop: CondConv layers as the reference implementation computes them.

A baseline for the benchmarks, with its own code: each CondConv convolves one example after another,
swish is tf.nn.swish, and tf.train.ExponentialMovingAverage averages the weights. Names, shapes and
results equal those of `efficientnet_model`.
"""
import tensorflow.compat.v1 as tf

from checkpoints import restore
import condconv_layers
from condconv_layers import CondConvImplementation
from config.optimization_settings import OptimizationConfig
import efficientnet_builder
import efficientnet_model
from training import optimization

_MOMENTUM_OF_AVERAGE = 0.9999
_WEIGHT_DECAY = 1e-5


class _CondConv2DOneByOne(condconv_layers.CondConv2D):

    def _convolve_mixed(self, inputs, routing_weights):
        batch = inputs.shape[0].value
        kernels = tf.matmul(routing_weights, self.expert_kernels)
        outputs = []
        for example, kernel in zip(tf.split(inputs, batch, 0), tf.split(kernels, batch, 0)):
            kernel = tf.reshape(kernel, self.kernel_shape)
            outputs.append(self._convolve(example, kernel, **self._conv2d_options))
        return tf.concat(outputs, 0)


class NaiveModel(efficientnet_model.Model):
    """The network of `efficientnet_model` with one convolution op per example."""

    conv_layer = _CondConv2DOneByOne

    def _activation(self):
        return tf.nn.swish if self._params.relu_fn == 'swish' else super()._activation()


def build_model(images, model_name, training, override_params=None):
    """Builds a `NaiveModel` like `efficientnet_builder.Family.build_model`.

    Args:
      images: float [batch, height, width, 3], normalized; the batch size must be static.
      model_name: a key of `efficientnet_builder.VARIANTS`.
      training: bool.
      override_params: dict of network parameters, or None.

    Returns:
      (logits, endpoints).
    """
    params = efficientnet_builder.get_model_params(model_name, {
        **(override_params or {}), 'condconv_implementation': CondConvImplementation.LOOP})
    model = NaiveModel(model_name, params, training)
    return model(images), model.endpoints


def build_train_step(images, labels, model_name, learning_rate):
    """Builds a training step with the default settings of `training.model_fn`.

    Args:
      images: float [batch, height, width, 3], normalized.
      labels: int32 [batch].
      model_name: a key of `efficientnet_builder.VARIANTS`.
      learning_rate: float.

    Returns:
      (loss, train op).
    """
    logits, _ = build_model(images, model_name, training=True)
    loss = tf.losses.softmax_cross_entropy(
        tf.one_hot(labels, logits.shape[1].value), logits, label_smoothing=0.1)
    loss += _WEIGHT_DECAY * tf.add_n([
        tf.nn.l2_loss(variable) for variable in tf.trainable_variables()
        if 'batch_normalization' not in variable.name])
    global_step = tf.train.get_or_create_global_step()
    optimizer = optimization.build_optimizer(
        OptimizationConfig(), tf.constant(learning_rate), global_step)
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = optimizer.minimize(loss, global_step)
    average = tf.train.ExponentialMovingAverage(_MOMENTUM_OF_AVERAGE, num_updates=global_step)
    with tf.control_dependencies([train_op]):
        return loss, average.apply(restore.ema_variables())
