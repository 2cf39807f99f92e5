"""The formulation everybody starts from: CondConv layers unrolled into a loop over the examples.

What the published scripts do, written anew to be measured beside ours: every CondConv convolves
example by example, swish is TensorFlow's, and the moving average of the weights is applied by
TensorFlow's own class. Names, shapes and numbers are those of the plain `efficientnet_model`.
"""
import tensorflow.compat.v1 as tf

from checkpoints import restore
import condconv_layers
import efficientnet_builder
import efficientnet_model
from training import optimization

_MOMENTUM_OF_AVERAGE = 0.9999
_WEIGHT_DECAY = 1e-5


class _CondConv2DOneByOne(condconv_layers.CondConv2D):

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, routing_weights):
        batch = inputs.shape[0].value
        kernels = tf.matmul(routing_weights, self.expert_kernels)
        outputs = []
        for example, kernel in zip(tf.split(inputs, batch, 0), tf.split(kernels, batch, 0)):
            kernel = tf.reshape(kernel, [*self.kernel_size, self.in_channels, self.filters])
            outputs.append(tf.nn.conv2d(example, kernel, [1, *self.strides, 1], self.padding))
        return tf.concat(outputs, 0)


class NaiveModel(efficientnet_model.Model):
    """The network of `efficientnet_model` with one convolution op for each example."""

    conv_layer = _CondConv2DOneByOne

    def _activation(self):
        return tf.nn.swish if self._params.relu_fn == 'swish' else super()._activation()


def build_model(images, model_name, training, override_params=None):
    """`efficientnet_builder.build_model` in this formulation; the batch must be known."""
    params = efficientnet_builder.get_model_params(
        model_name, {**(override_params or {}), 'depthwise_condconv': condconv_layers.LOOP})
    model = NaiveModel(model_name, params)
    return model(images, training=training), model.endpoints


def build_train_step(images, labels, model_name, learning_rate):
    """One step of training as `training.model_fn` defines it by default: (loss, train op).

    Args:
      images: float [batch, size, size, 3], normalised.
      labels: int32 [batch].
      model_name: a key of `efficientnet_builder.VARIANTS`.
      learning_rate: a float.
    """
    logits, _ = build_model(images, model_name, training=True)
    loss = tf.losses.softmax_cross_entropy(
        tf.one_hot(labels, logits.shape[1].value), logits, label_smoothing=0.1)
    loss += _WEIGHT_DECAY * tf.add_n([
        tf.nn.l2_loss(variable) for variable in tf.trainable_variables()
        if 'batch_normalization' not in variable.name])
    global_step = tf.train.get_or_create_global_step()
    optimizer = optimization.build_optimizer('rmsprop', tf.constant(learning_rate))
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = optimizer.minimize(loss, global_step)
    average = tf.train.ExponentialMovingAverage(_MOMENTUM_OF_AVERAGE, num_updates=global_step)
    with tf.control_dependencies([train_op]):
        return loss, average.apply(restore.ema_variables())
