"""Conditionally parameterised convolutions (CondConv, arXiv:1904.04971, section 3).

A layer holds E expert kernels. Each example mixes them with its own routing weights r(x) into one
kernel, W(x) = sum_e r_e(x) W_e, and is convolved with that kernel alone. All formulations below
but LOOP work on the whole batch at once: the graph has the same number of nodes for any batch size,
and the batch size may be unknown while the graph is built.
"""
import functools
import math
import operator

import numpy as np
import tensorflow.compat.v1 as tf

import cpu_layers

CHANNELS_FIRST = 'channels_first'
CHANNELS_LAST = 'channels_last'

# How a CondConv is computed. MIX: the kernel of each example is mixed first. CPU: the same, and one
# example alone is a plain convolution. EXPERTS: for exported models, see
# `_ExpertConvolution._convolve_experts`.
MIX = 'mix'
CPU = 'cpu'
EXPERTS = 'experts'
# How a depthwise one is, besides CPU and EXPERTS; `DepthwiseCondConv2D.call` says how they differ.
FOLD = 'fold'
LOOP = 'loop'


def spatial_axes(data_format):
    """Axes of height and width of a 4-D image tensor in `data_format`."""
    return (2, 3) if data_format == CHANNELS_FIRST else (1, 2)


def channel_axis(data_format):
    """Axis of the channels of a 4-D image tensor in `data_format`."""
    return 1 if data_format == CHANNELS_FIRST else 3


def routing(inputs, num_experts, data_format=CHANNELS_LAST, init_stddev=None, name='dense'):
    """Routing weights of each example: sigmoid(dense(global average pool)), section 3.1.

    Args:
      inputs: float [batch, height, width, channels] (or channels first).
      num_experts: E.
      data_format: 'channels_last' or 'channels_first'.
      init_stddev: of the dense layer's initial kernel; None is Glorot's uniform, as published.
      name: variable scope of the dense layer.

    Returns:
      float [batch, E], each weight in (0, 1); they need not sum to 1.
    """
    pooled = tf.reduce_mean(inputs, spatial_axes(data_format))
    initializer = init_stddev and tf.random_normal_initializer(stddev=init_stddev)
    return tf.layers.dense(pooled, num_experts, activation=tf.sigmoid,
                           kernel_initializer=initializer, name=name)


def glorot_uniform(shape, dtype=tf.float32, partition_info=None):
    """Uniform within sqrt(6 / (fan_in + fan_out)) of kernels [..., height, width, in, out]."""
    del partition_info
    height, width, in_channels, out_channels = shape[-4:]
    limit = math.sqrt(6.0 / (height * width * (in_channels + out_channels)))
    return tf.random_uniform(shape, -limit, limit, dtype=dtype)


def expert_initializer(initializer, num_experts, kernel_shape):
    """Initialises each row of an [E, prod(kernel_shape)] variable as a kernel of its own.

    `initializer` gets the shape [E, *kernel_shape], all experts in one draw, and has to take
    fan-in and fan-out from its last four axes: those of one kernel.
    """
    def initialize(shape, dtype=tf.float32, partition_info=None):
        del partition_info
        expected = [num_experts, int(np.prod(kernel_shape))]
        if list(shape) != expected:
            raise ValueError(f'Expert kernels must have shape {expected}, not {list(shape)}.')
        return tf.reshape(initializer([num_experts, *kernel_shape], dtype=dtype), expected)

    return initialize


def _size(tensor, axis):
    """Static size where known, else a scalar tensor: exporters need what is static to stay so."""
    return tensor.shape[axis].value or tf.shape(tensor)[axis]


class _ExpertConvolution(tf.layers.Layer):
    """What both layers share: their options, the expert kernels and how they are mixed."""

    def __init__(self, kernel_size, strides=1, padding='valid', data_format=CHANNELS_LAST,
                 num_experts=1, activation=None, use_bias=True, kernel_initializer=None,
                 bias_initializer=None, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        if num_experts < 1:
            raise ValueError(f'num_experts must be at least 1, not {num_experts}.')
        if padding.lower() not in ('same', 'valid'):
            raise ValueError(f"padding must be 'same' or 'valid', not {padding!r}.")
        if data_format not in (CHANNELS_FIRST, CHANNELS_LAST):
            raise ValueError(
                f"data_format must be 'channels_last' or 'channels_first', not {data_format!r}.")
        self.kernel_size = _pair(kernel_size, 'kernel_size')
        self.strides = _pair(strides, 'strides')
        self.padding = padding.upper()
        self.data_format = data_format
        self.num_experts = num_experts
        self.activation = activation
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer or glorot_uniform
        self.bias_initializer = bias_initializer or tf.zeros_initializer()

    def _add_expert_weights(self, kernel_name, kernel_shape, num_outputs):
        self.expert_kernels = self.add_weight(
            kernel_name, [self.num_experts, int(np.prod(kernel_shape))],
            initializer=expert_initializer(
                self.kernel_initializer, self.num_experts, kernel_shape))
        if self.use_bias:
            self.expert_biases = self.add_weight(
                'bias', [self.num_experts, num_outputs], initializer=self.bias_initializer)

    @property
    def _conv2d_options(self):
        is_channels_first = self.data_format == CHANNELS_FIRST
        return dict(strides=[1, 1, *self.strides] if is_channels_first else [1, *self.strides, 1],
                    padding=self.padding, data_format='NCHW' if is_channels_first else 'NHWC')

    def _convolve_experts(self, inputs, routing_weights, kernel_shape, convolve):
        """sum_e r_e (x * W_e): each expert convolves, and the outputs are mixed.

        All kernels are constants of an exported graph then, which ONNX wants of a depthwise
        convolution at a free batch size, and TFLite of everything for integers. It takes E times
        the multiply-adds and the activations.

        Args:
          inputs, routing_weights: as the layer's.
          kernel_shape: of one expert.
          convolve: function of inputs, kernel, strides, padding and data_format.
        """
        outputs = []
        for expert, kernel in enumerate(tf.unstack(self.expert_kernels, self.num_experts)):
            # A product in place of a slice, and sums of two tensors: TFLite's quantizer has no
            # others.
            selector = np.eye(self.num_experts, dtype=np.float32)[:, expert:expert + 1]
            weight = tf.reshape(tf.matmul(routing_weights, selector), [-1, 1, 1, 1])
            outputs.append(weight * convolve(
                inputs, tf.reshape(kernel, kernel_shape), **self._conv2d_options))
        return functools.reduce(operator.add, outputs)

    def _add_bias_and_activate(self, outputs, routing_weights):
        if self.use_bias:
            biases = tf.matmul(routing_weights, self.expert_biases)
            for axis in spatial_axes(self.data_format):
                biases = tf.expand_dims(biases, axis)
            outputs += biases
        return self.activation(outputs) if self.activation else outputs


def _check_formulation(formulation, choices):
    if formulation not in choices:
        raise ValueError(f"formulation must be one of {', '.join(choices)}, not {formulation!r}.")


def _pair(value, name):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f'{name} must be a positive integer or a pair of them, not {value!r}.')
    return pair


class CondConv2D(_ExpertConvolution):
    """2-D convolution whose kernel is mixed from experts for each example.

    Variables: `condconv_kernel` [E, kh*kw*in*out] (each row a flattened [kh, kw, in, out] kernel)
    and, with `use_bias`, `bias` [E, out].

    Call with `(inputs, routing_weights)`: float [batch, height, width, in] (or channels first) and
    float [batch, E]; returns [batch, new_height, new_width, out].
    """

    def __init__(self, filters, kernel_size, formulation=MIX, **kwargs):
        super().__init__(kernel_size, **kwargs)
        _check_formulation(formulation, (MIX, CPU, EXPERTS))
        self.filters = filters
        self.formulation = formulation

    def build(self, input_shape):
        self.in_channels = int(input_shape[channel_axis(self.data_format)])
        self._add_expert_weights(
            'condconv_kernel', [*self.kernel_size, self.in_channels, self.filters], self.filters)
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, routing_weights):
        if self.formulation == EXPERTS:
            outputs = self._convolve_experts(
                inputs, routing_weights, [*self.kernel_size, self.in_channels, self.filters],
                tf.nn.conv2d)
            return self._add_bias_and_activate(outputs, routing_weights)
        if self.formulation == CPU and inputs.shape[0].value == 1:
            return self._add_bias_and_activate(
                self._convolve_one(inputs, routing_weights), routing_weights)
        # A convolution is a matrix product of patches with the kernel, so it can be done for the
        # whole batch at once: 46 nodes where a loop over the examples of a batch of 8 has 188, at
        # equal speed or up to 1.2 times faster on a CPU (1x1, the only size this family has).
        patches = self._patches(inputs)
        if self.data_format == CHANNELS_FIRST:
            patches = tf.transpose(patches, [0, 2, 3, 1])
        height, width = _size(patches, 1), _size(patches, 2)
        patch_size = self.kernel_size[0] * self.kernel_size[1] * self.in_channels
        rows = tf.reshape(patches, [-1, height * width, patch_size])
        if self._mixes_inputs(height, width):
            outputs = self._mix_inputs(rows, routing_weights, patch_size)
        else:
            kernels = tf.matmul(routing_weights, self.expert_kernels)
            outputs = tf.matmul(rows, tf.reshape(kernels, [-1, patch_size, self.filters]))
        outputs = tf.reshape(outputs, [-1, height, width, self.filters])
        if self.data_format == CHANNELS_FIRST:
            outputs = tf.transpose(outputs, [0, 3, 1, 2])
        return self._add_bias_and_activate(outputs, routing_weights)

    def _convolve_one(self, inputs, routing_weights):
        """A plain convolution, which TensorFlow fuses with a batch norm behind it at inference."""
        kernel = tf.reshape(tf.matmul(routing_weights, self.expert_kernels),
                            [*self.kernel_size, self.in_channels, self.filters])
        return tf.nn.conv2d(inputs, kernel, **self._conv2d_options)

    def _mixes_inputs(self, height, width):
        """Whether it is cheaper to mix the inputs of the experts than their kernels.

        Mixing kernels writes in*out numbers an example, whatever the image size; mixing inputs
        multiplies E times as much. On 2 CPU cores the second wins below about 40 products of
        positions and experts (inputs of 32 or 64 pixels), by 10 times at a single position.
        """
        is_static = isinstance(height, int) and isinstance(width, int)
        return is_static and height * width * self.num_experts <= 32

    def _mix_inputs(self, rows, routing_weights, patch_size):
        """sum_e r_e (x W_e) as one product: [r_1 x, ..., r_E x] times the stacked kernels."""
        positions = rows.shape[1].value
        mixed = tf.expand_dims(rows, 2) * tf.reshape(routing_weights, [-1, 1, self.num_experts, 1])
        mixed = tf.reshape(mixed, [-1, self.num_experts * patch_size])
        kernels = tf.reshape(self.expert_kernels, [self.num_experts * patch_size, self.filters])
        return tf.reshape(tf.matmul(mixed, kernels), [-1, positions, self.filters])

    def _patches(self, inputs):
        """The kh*kw strided views of `inputs`, side by side on the channel axis.

        Slices rather than `extract_image_patches`, which TFLite and ONNX refuse.
        """
        if self.kernel_size == self.strides == (1, 1):
            return inputs
        axes = spatial_axes(self.data_format)
        pads = [[0, 0] for _ in range(4)]
        out_sizes = []
        for axis, kernel, stride in zip(axes, self.kernel_size, self.strides):
            size = _size(inputs, axis)
            if self.padding == 'SAME':
                out_size = (size + stride - 1) // stride
                total = _at_least_zero((out_size - 1) * stride + kernel - size)
                pads[axis] = [total // 2, total - total // 2]
            else:
                out_size = (size - kernel) // stride + 1
            out_sizes.append(out_size)
        if self.kernel_size != (1, 1) and self.padding == 'SAME':
            inputs = tf.pad(inputs, pads)

        views = []
        for row in range(self.kernel_size[0]):
            for column in range(self.kernel_size[1]):
                window = [slice(None)] * 4
                for axis, start, stride, out_size in zip(
                        axes, (row, column), self.strides, out_sizes):
                    window[axis] = slice(start, start + (out_size - 1) * stride + 1, stride)
                views.append(inputs[tuple(window)])
        return views[0] if len(views) == 1 else tf.concat(views, channel_axis(self.data_format))


def _at_least_zero(value):
    return tf.maximum(value, 0) if tf.is_tensor(value) else max(value, 0)


class DepthwiseCondConv2D(_ExpertConvolution):
    """Depthwise 2-D convolution whose kernel is mixed from experts for each example.

    Variables: `depthwise_condconv_kernel` [E, kh*kw*in*depth_multiplier] (each row a flattened
    [kh, kw, in, depth_multiplier] kernel) and, with `use_bias`, `bias` [E, in*depth_multiplier].

    Call with `(inputs, routing_weights)`: float [batch, height, width, in] (or channels first) and
    float [batch, E]; returns [batch, new_height, new_width, in*depth_multiplier].
    """

    def __init__(self, kernel_size, depth_multiplier=1, formulation=FOLD, **kwargs):
        super().__init__(kernel_size, **kwargs)
        if self.strides[0] != self.strides[1]:
            raise ValueError(f'A depthwise convolution needs equal strides, not {self.strides}.')
        _check_formulation(formulation, (FOLD, LOOP, CPU, EXPERTS))
        self.depth_multiplier = depth_multiplier
        self.formulation = formulation

    def build(self, input_shape):
        self.in_channels = int(input_shape[channel_axis(self.data_format)])
        self._add_expert_weights(
            'depthwise_condconv_kernel',
            [*self.kernel_size, self.in_channels, self.depth_multiplier],
            self.in_channels * self.depth_multiplier)
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, routing_weights):
        if self.formulation == EXPERTS:
            outputs = self._convolve_experts(
                inputs, routing_weights,
                [*self.kernel_size, self.in_channels, self.depth_multiplier],
                tf.nn.depthwise_conv2d)
            return self._add_bias_and_activate(outputs, routing_weights)
        kernels = tf.reshape(tf.matmul(routing_weights, self.expert_kernels),
                             [_size(inputs, 0), *self.kernel_size, -1])
        # Depthwise means one kernel a channel, so a batch of B images with C channels is one image
        # with B*C channels: a single plain depthwise convolution, bit-equal to a loop over the
        # examples, with 52 nodes where that loop has 236 at a batch of 8. It is what accelerators
        # are made for. On a CPU that convolution goes by groups of channels, see `cpu_layers`:
        # 32 images of [14, 14, 672] with k5, forward and backward, take 167 ms as one, 55 in eight
        # groups, and 40 in a loop, whose graph grows with the batch.
        if self.formulation == LOOP:
            outputs = self._loop(inputs, kernels)
        else:
            outputs = self._fold(inputs, kernels)
        outputs.set_shape(self._static_shape(inputs.shape[0], outputs.shape))
        return self._add_bias_and_activate(outputs, routing_weights)

    def _loop(self, inputs, kernels):
        batch = inputs.shape[0].value
        if batch is None:
            raise ValueError('A loop over the examples needs to know the size of the batch; use '
                             'fold.')
        shape = [*self.kernel_size, self.in_channels, self.depth_multiplier]
        return tf.concat([
            self._convolve(example, tf.reshape(kernel, shape)) for example, kernel in zip(
                tf.split(inputs, batch, 0), tf.split(kernels, batch, 0))], 0)

    def _fold(self, inputs, kernels):
        batch = _size(inputs, 0)
        folded_channels = batch * self.in_channels
        kernels = tf.reshape(tf.transpose(kernels, [1, 2, 0, 3]),
                             [*self.kernel_size, folded_channels, self.depth_multiplier])
        out_channels = self.in_channels * self.depth_multiplier
        height, width = (_size(inputs, axis) for axis in spatial_axes(self.data_format))
        if self.data_format == CHANNELS_FIRST:
            outputs = self._convolve(
                tf.reshape(inputs, [1, folded_channels, height, width]), kernels)
            return tf.reshape(
                outputs, [batch, out_channels, _size(outputs, 2), _size(outputs, 3)])
        folded = tf.reshape(tf.transpose(inputs, [1, 2, 0, 3]),
                            [1, height, width, folded_channels])
        outputs = self._convolve(folded, kernels)
        outputs = tf.reshape(
            outputs, [_size(outputs, 1), _size(outputs, 2), batch, out_channels])
        return tf.transpose(outputs, [2, 0, 1, 3])

    def _convolve(self, inputs, kernel):
        stride = self.strides[0]
        if (self.formulation == CPU and self.padding == 'SAME' and self.depth_multiplier == 1
                and all(size % 2 for size in self.kernel_size)):
            return cpu_layers.depthwise_conv2d(inputs, kernel, stride)
        if self.data_format == CHANNELS_FIRST:
            return tf.nn.depthwise_conv2d(
                inputs, kernel, [1, 1, stride, stride], self.padding, data_format='NCHW')
        return tf.nn.depthwise_conv2d(inputs, kernel, [1, stride, stride, 1], self.padding)

    def _static_shape(self, batch, shape):
        channels = self.in_channels * self.depth_multiplier
        height, width = (shape[axis] for axis in spatial_axes(self.data_format))
        if self.data_format == CHANNELS_FIRST:
            return [batch, channels, height, width]
        return [batch, height, width, channels]
