"""The EfficientNet network with faster CPU implementations of its expensive layers.

Variables and endpoints are those of `efficientnet_model`; results are equal up to rounding.
"""
import tensorflow.compat.v1 as tf

import condconv_layers
import cpu_layers
import efficientnet_model

# Values per image. For smaller tensors, `cpu_layers.batch_norm` makes a step no faster, and a graph
# larger.
_LEAST_NORMALIZED_VALUES = 50_000


class CpuCondConv2D(condconv_layers.CondConv2D):
    """CondConv layer that convolves a batch of one example with a plain convolution."""

    def _convolve_mixed(self, inputs, routing_weights):
        if inputs.shape[0].value != 1:
            return super()._convolve_mixed(inputs, routing_weights)
        # At inference TensorFlow fuses a convolution with the batch norm that follows it.
        kernel = tf.reshape(tf.matmul(routing_weights, self.expert_kernels), self.kernel_shape)
        return self._convolve(inputs, kernel, **self._conv2d_options)


class CpuDepthwiseCondConv2D(condconv_layers.DepthwiseCondConv2D):
    """Depthwise CondConv layer that convolves the folded batch in groups of channels.

    32 images of [14, 14, 672] with 5x5 kernels, forward and backward, take 167 ms as one
    convolution, 55 ms in eight groups and 40 ms in a loop, whose graph grows with the batch.
    """

    def _convolve_folded(self, images, kernel):
        if (self.padding == 'SAME' and self.depth_multiplier == 1
                and all(size % 2 for size in self.kernel_size)):
            return cpu_layers.depthwise_conv2d(images, kernel, self.strides[0])
        return super()._convolve_folded(images, kernel)


class CpuInferenceDepthwiseCondConv2D(CpuDepthwiseCondConv2D):
    """Transposes the batch by gathering rows. In training that adds 550 nodes to the graph."""

    _batch_inward = staticmethod(cpu_layers.batch_inward)
    _batch_outward = staticmethod(cpu_layers.batch_outward)


class CpuModel(efficientnet_model.Model):
    """The network, with `cpu_layers` wherever these are faster than TensorFlow's layers.

    Raises:
      ValueError: data_format is not channels_last, because TensorFlow's CPU convolutions support no
        other; or batch_norm_variance is not `efficientnet_model.PUBLISHED_VARIANCE`.
    """

    conv_layer = CpuCondConv2D
    depthwise_conv_layer = CpuDepthwiseCondConv2D

    def __init__(self, name, params, training, freeze_batch_norm=False):
        for setting, supported in (('data_format', condconv_layers.CHANNELS_LAST),
                                   ('batch_norm_variance', efficientnet_model.PUBLISHED_VARIANCE)):
            value = getattr(params, setting)
            if value != supported:
                raise ValueError(
                    f'{setting}={value}: not supported by CPU layers; use {supported}.')
        if not training:
            self.depthwise_conv_layer = CpuInferenceDepthwiseCondConv2D
        super().__init__(name, params, training, freeze_batch_norm)

    def _activation(self):
        return cpu_layers.swish if self._params.relu_fn == 'swish' else super()._activation()

    def _expand(self, inputs, block, names, routing_weights):
        """In training, computes batch statistics from the inputs, which have 6x fewer channels."""
        if routing_weights is not None or not self._uses_batch_statistics(names.expand_norm):
            return super()._expand(inputs, block, names, routing_weights)
        with tf.variable_scope(names.expand):
            kernel = self._kernel(inputs, 1, block.expanded_filters)
        with tf.variable_scope(names.expand_norm):
            gamma, beta, moving_mean, moving_variance = efficientnet_model.batch_norm_variables(
                kernel.shape[3].value)
            outputs, mean, variance = cpu_layers.pointwise_conv2d_batch_norm(
                inputs, kernel, gamma, beta, self._params.batch_norm_epsilon)
            self._update_statistics(moving_mean, mean)
            self._update_statistics(moving_variance, variance)
        return outputs

    def _activate_depthwise(self, inputs, block, names, routing_weights):
        """In training, recomputes swish in the backward pass to save memory."""
        recomputes = self._training and self._relu is cpu_layers.swish
        if routing_weights is not None or not recomputes or block.kernel_size % 2 == 0:
            return super()._activate_depthwise(inputs, block, names, routing_weights)
        with tf.variable_scope(names.depthwise):
            outputs = cpu_layers.swish_depthwise_conv2d(
                inputs, self._depthwise_kernel(inputs, block.kernel_size), block.strides[0])
        return self._batch_norm(outputs, names.depthwise_norm)

    def _depthwise(self, inputs, block, names, routing_weights):
        """At inference, multiplies the scale of batch norm into the kernel.

        TensorFlow does the same for other convolutions, but not for depthwise ones.
        """
        if routing_weights is not None or self._training:
            return super()._depthwise(inputs, block, names, routing_weights)
        with tf.variable_scope(names.depthwise):
            kernel = self._depthwise_kernel(inputs, block.kernel_size)
        with tf.variable_scope(names.depthwise_norm):
            gamma, beta, mean, variance = efficientnet_model.batch_norm_variables(
                kernel.shape[2].value)
            scale = gamma * tf.rsqrt(variance + self._params.batch_norm_epsilon)
            kernel *= tf.expand_dims(scale, 1)
            outputs = self._convolve_depthwise(inputs, kernel, block.strides)
            return tf.nn.bias_add(outputs, beta - mean * scale)

    def _normalize_batch(self, inputs, gamma, beta):
        is_static = inputs.shape.is_fully_defined()
        if not is_static or inputs.shape[1:].num_elements() < _LEAST_NORMALIZED_VALUES:
            return super()._normalize_batch(inputs, gamma, beta)
        return cpu_layers.batch_norm(inputs, gamma, beta, self._params.batch_norm_epsilon)

    def _gate_conv(self, inputs, gate, filters, name, routing_weights):
        """In training, multiplies the gate into the kernel, where its gradient is cheaper."""
        if routing_weights is not None or gate is None or not self._training:
            return super()._gate_conv(inputs, gate, filters, name, routing_weights)
        gated = gate * inputs
        with tf.variable_scope(name):
            outputs = cpu_layers.gated_pointwise_conv2d(
                inputs, gate, self._kernel(inputs, 1, filters))
        return outputs, gated

    def _convolve(self, inputs, kernel, strides):
        # The matrix product makes the gradient cheaper. At inference there is no gradient, and
        # TensorFlow fuses its own convolution with the batch norm that follows.
        if self._training and kernel.shape[:2] == (1, 1) and strides == (1, 1):
            return cpu_layers.pointwise_conv2d(inputs, kernel)
        return super()._convolve(inputs, kernel, strides)

    def _convolve_depthwise(self, inputs, kernel, strides):
        if kernel.shape[0].value % 2:
            return cpu_layers.depthwise_conv2d(inputs, kernel, strides[0])
        return super()._convolve_depthwise(inputs, kernel, strides)
