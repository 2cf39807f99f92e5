"""Conditionally parameterized convolutions (CondConv, arXiv:1904.04971, section 3).

A layer has E expert kernels. The routing weights r(x) of each example mix them into one kernel,
W(x) = sum_e r_e(x) W_e, with which the example is convolved. The size of the graph depends on the
batch size only in the implementation LOOP; in all others the batch size may be unknown.
"""
import enum
import functools
import itertools
import math
import operator

import numpy as np
import tensorflow.compat.v1 as tf

# Limit of CANN's fusion passes for the gradients of a depthwise convolution.
MAX_DEPTHWISE_CHANNELS = 65535

CHANNELS_FIRST = 'channels_first'
CHANNELS_LAST = 'channels_last'
DATA_FORMATS = (CHANNELS_LAST, CHANNELS_FIRST)


class CondConvImplementation(enum.Enum):
    """Implementation of the CondConv layers, by string; results are equal up to rounding.

    FOLD: Mixes kernels. A depthwise layer folds the batch into the channels of one image, or of
      several images with at most MAX_DEPTHWISE_CHANNELS each.
    LOOP: Mixes kernels. A depthwise layer convolves examples one by one; the batch size is known.
    EXPERTS_DEPTHWISE: Mixes kernels, but in depthwise layers the outputs of all experts.
    EXPERTS: Mixes the outputs of all experts in every layer.
    """
    FOLD = 'fold'
    LOOP = 'loop'
    EXPERTS_DEPTHWISE = 'experts_depthwise'
    EXPERTS = 'experts'

    def __str__(self):
        return self.value

    @classmethod
    def _missing_(cls, value):
        raise ValueError(f'CondConv implementation {value!r}: unknown; choose one of '
                         f"{', '.join(map(str, cls))}.")


def spatial_axes(data_format):
    """Returns the axes of height and width of a 4-D image tensor."""
    return (2, 3) if data_format == CHANNELS_FIRST else (1, 2)


def channel_axis(data_format):
    """Returns the channel axis of a 4-D image tensor."""
    return 1 if data_format == CHANNELS_FIRST else 3


def image_format(data_format):
    """Returns the name of `data_format` in TensorFlow's image ops."""
    return 'NCHW' if data_format == CHANNELS_FIRST else 'NHWC'


def conv2d_options(strides, padding, data_format):
    """Returns keyword arguments of `tf.nn.conv2d`; `strides` is a pair, `padding` upper case."""
    strides = [1, 1, *strides] if data_format == CHANNELS_FIRST else [1, *strides, 1]
    return dict(strides=strides, padding=padding, data_format=image_format(data_format))


def routing(inputs, num_experts, data_format=CHANNELS_LAST, init_stddev=None, name='dense'):
    """Returns the routing weights of each example: sigmoid(dense(global mean)), section 3.1.

    Args:
      inputs: float [batch, height, width, channels] (or channels first).
      num_experts: E.
      data_format: CHANNELS_LAST or CHANNELS_FIRST.
      init_stddev: standard deviation of the initial kernel; None for Glorot's uniform (published).
      name: variable scope of the dense layer.

    Returns:
      float [batch, E], each weight in (0, 1); they need not sum to 1.
    """
    pooled = tf.reduce_mean(inputs, spatial_axes(data_format))
    initializer = init_stddev and tf.random_normal_initializer(stddev=init_stddev)
    return tf.layers.dense(pooled, num_experts, activation=tf.sigmoid,
                           kernel_initializer=initializer, name=name)


def glorot_uniform(shape, dtype=tf.float32, partition_info=None):
    """Initializes kernels [..., height, width, in, out]: +-sqrt(6 / (fan_in + fan_out))."""
    del partition_info
    height, width, in_channels, out_channels = shape[-4:]
    limit = math.sqrt(6.0 / (height * width * (in_channels + out_channels)))
    return tf.random_uniform(shape, -limit, limit, dtype=dtype)


def expert_initializer(initializer, num_experts, kernel_shape):
    """Returns an initializer for a variable [E, prod(kernel_shape)] with one kernel per row.

    `initializer` receives the shape [E, *kernel_shape] and must compute fan-in and fan-out from the
    last four axes, those of one kernel.
    """
    def initialize(shape, dtype=tf.float32, partition_info=None):
        del partition_info
        expected = [num_experts, int(np.prod(kernel_shape))]
        if list(shape) != expected:
            raise ValueError(f'expert kernels: must have shape {expected}, not {list(shape)}.')
        return tf.reshape(initializer([num_experts, *kernel_shape], dtype=dtype), expected)

    return initialize


def _size(tensor, axis):
    """Returns the static size if known, which exporters need; else a scalar tensor."""
    return tensor.shape[axis].value or tf.shape(tensor)[axis]


class _ExpertConvolution(tf.layers.Layer):
    """Base class of both layers: options, expert kernels, and the convolution with each expert.

    A subclass defines `_convolve`, TensorFlow's convolution; `_expert_implementations`, those that
    mix outputs; and `_convolve_mixed` for the implementations that mix kernels.
    """

    def __init__(self, kernel_size, strides=1, padding='valid', data_format=CHANNELS_LAST,
                 num_experts=1, activation=None, use_bias=True, kernel_initializer=None,
                 bias_initializer=None, implementation=CondConvImplementation.FOLD, name=None,
                 **kwargs):
        super().__init__(name=name, **kwargs)
        if num_experts < 1:
            raise ValueError(f'num_experts={num_experts}: must be at least 1.')
        if padding.lower() not in ('same', 'valid'):
            raise ValueError(f"padding {padding!r}: must be 'same' or 'valid'.")
        if data_format not in DATA_FORMATS:
            raise ValueError(f"data_format {data_format!r}: not one of {', '.join(DATA_FORMATS)}.")
        self.kernel_size = _pair(kernel_size, 'kernel_size')
        self.strides = _pair(strides, 'strides')
        self.padding = padding.upper()
        self.data_format = data_format
        self.num_experts = num_experts
        self.activation = activation
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer or glorot_uniform
        self.bias_initializer = bias_initializer or tf.zeros_initializer()
        self.implementation = CondConvImplementation(implementation)

    def _add_expert_weights(self, kernel_name, kernel_shape, num_outputs):
        self.kernel_shape = tuple(kernel_shape)
        self.expert_kernels = self.add_weight(
            kernel_name, [self.num_experts, int(np.prod(kernel_shape))],
            initializer=expert_initializer(
                self.kernel_initializer, self.num_experts, kernel_shape))
        if self.use_bias:
            self.expert_biases = self.add_weight(
                'bias', [self.num_experts, num_outputs], initializer=self.bias_initializer)

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs, routing_weights):
        if self.implementation in self._expert_implementations:
            outputs = self._convolve_experts(inputs, routing_weights)
        else:
            outputs = self._convolve_mixed(inputs, routing_weights)
        if self.use_bias:
            biases = tf.matmul(routing_weights, self.expert_biases)
            for axis in spatial_axes(self.data_format):
                biases = tf.expand_dims(biases, axis)
            outputs += biases
        return self.activation(outputs) if self.activation else outputs

    @property
    def _conv2d_options(self):
        return conv2d_options(self.strides, self.padding, self.data_format)

    def _convolve_experts(self, inputs, routing_weights):
        """Computes sum_e r_e (x * W_e): convolves with each expert and mixes the outputs.

        Keeps expert kernels constant in the exported graph, as ONNX (depthwise, free batch size)
        and integer TFLite require. Costs E times the multiply-adds and activations.
        """
        outputs = []
        for expert, kernel in enumerate(tf.unstack(self.expert_kernels, self.num_experts)):
            # TFLite's quantizer supports neither slices nor sums of more than two tensors. A matrix
            # product therefore selects the weight, and a chain of additions sums up.
            selector = np.eye(self.num_experts, dtype=np.float32)[:, expert:expert + 1]
            weight = tf.reshape(tf.matmul(routing_weights, selector), [-1, 1, 1, 1])
            outputs.append(weight * self._convolve(
                inputs, tf.reshape(kernel, self.kernel_shape), **self._conv2d_options))
        return functools.reduce(operator.add, outputs)


def _batch_product(first, second, transpose_first=False):
    """Multiplies [batch, m, k] by [batch, k, n]; the gradient of `tf.matmul` has five more ops."""
    return tf.raw_ops.BatchMatMul(x=first, y=second, adj_x=transpose_first)


def _pair(value, name):
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f'{name}={value!r}: must be a positive integer or a pair of them.')
    return pair


class CondConv2D(_ExpertConvolution):
    """2-D convolution whose kernel is mixed from experts for each example.

    Arguments are those of `tf.layers.Conv2D`, where strides or dilation rate must be 1 too.
    Variables: `condconv_kernel` [E, kh*kw*in*out] (each row a flattened [kh, kw, in, out] kernel)
    and, with `use_bias`, `bias` [E, out].

    Call with `(inputs, routing_weights)`: float [batch, height, width, in] (or channels first) and
    float [batch, E]; returns [batch, new_height, new_width, out].
    """

    _expert_implementations = (CondConvImplementation.EXPERTS,)

    def __init__(self, filters, kernel_size, dilation_rate=1, **kwargs):
        super().__init__(kernel_size, **kwargs)
        self.filters = filters
        self.dilation_rate = _pair(dilation_rate, 'dilation_rate')
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError('strides and dilation_rate: both are above 1; set one of them to 1.')

    def build(self, input_shape):
        self.in_channels = int(input_shape[channel_axis(self.data_format)])
        self._add_expert_weights(
            'condconv_kernel', [*self.kernel_size, self.in_channels, self.filters], self.filters)
        super().build(input_shape)

    def _convolve(self, inputs, kernel, **options):
        if max(self.dilation_rate) == 1:
            return tf.nn.conv2d(inputs, kernel, **options)
        # The dilated `tf.nn.conv2d` has no gradient on a CPU.
        return tf.nn.convolution(inputs, kernel, self.padding, dilation_rate=self.dilation_rate,
                                 data_format=image_format(self.data_format))

    def _convolve_mixed(self, inputs, routing_weights):
        """Convolves each example with its own mixed kernel, in one matrix product for the batch.

        For a batch of 8 the graph has 46 nodes, with a loop over the examples 188. It is up to 1.2
        times faster than the loop on a CPU (1x1 kernels, the only ones in this family).
        """
        patches = self._patches(inputs)
        height, width = (_size(patches, axis) for axis in spatial_axes(self.data_format))
        patch_size = self.kernel_size[0] * self.kernel_size[1] * self.in_channels
        if self.data_format == CHANNELS_LAST and self._mixes_inputs(height, width):
            rows = tf.reshape(patches, [-1, height * width, patch_size])
            outputs = self._mix_inputs(rows, routing_weights, patch_size)
            return tf.reshape(outputs, [-1, height, width, self.filters])
        kernels = tf.reshape(tf.matmul(routing_weights, self.expert_kernels),
                             [-1, patch_size, self.filters])
        if self.data_format == CHANNELS_FIRST:
            # Computing W x instead of x W avoids a transpose of the images.
            columns = tf.reshape(patches, [-1, patch_size, height * width])
            outputs = _batch_product(kernels, columns, transpose_first=True)
            return tf.reshape(outputs, [-1, self.filters, height, width])
        rows = tf.reshape(patches, [-1, height * width, patch_size])
        return tf.reshape(_batch_product(rows, kernels), [-1, height, width, self.filters])

    def _mixes_inputs(self, height, width):
        """Returns whether mixing the inputs of the experts is cheaper than mixing their kernels.

        Mixing kernels writes in*out values per example for any image size; mixing inputs costs E
        times the multiplications. On 2 CPU cores mixing inputs is faster if positions * experts is
        below about 40 (images of 32 or 64 pixels), by a factor of 10 at a single position.
        """
        is_static = isinstance(height, int) and isinstance(width, int)
        return is_static and height * width * self.num_experts <= 32

    def _mix_inputs(self, rows, routing_weights, patch_size):
        """Computes sum_e r_e (x W_e) as one product, [r_1 x, ..., r_E x] by stacked kernels."""
        positions = rows.shape[1].value
        mixed = tf.expand_dims(rows, 2) * tf.reshape(routing_weights, [-1, 1, self.num_experts, 1])
        mixed = tf.reshape(mixed, [-1, self.num_experts * patch_size])
        kernels = tf.reshape(self.expert_kernels, [self.num_experts * patch_size, self.filters])
        return tf.reshape(tf.matmul(mixed, kernels), [-1, positions, self.filters])

    def _patches(self, inputs):
        """Returns the kh*kw strided views of `inputs`, concatenated on the channel axis.

        TFLite and ONNX support slices, but not `extract_image_patches`.
        """
        if self.kernel_size == self.strides == (1, 1):
            return inputs
        axes = spatial_axes(self.data_format)
        pads = [[0, 0] for _ in range(4)]
        out_sizes = []
        offsets = [range(0, kernel * dilation, dilation)
                   for kernel, dilation in zip(self.kernel_size, self.dilation_rate)]
        for axis, stride, (*_, last) in zip(axes, self.strides, offsets):
            size = _size(inputs, axis)
            if self.padding == 'SAME':
                out_size = (size + stride - 1) // stride
                total = _at_least_zero((out_size - 1) * stride + (last + 1) - size)
                pads[axis] = [total // 2, total - total // 2]
            else:
                out_size = (size - (last + 1)) // stride + 1
            out_sizes.append(out_size)
        if self.kernel_size != (1, 1) and self.padding == 'SAME':
            inputs = tf.pad(inputs, pads)
        views = []
        for starts in itertools.product(*offsets):
            window = [slice(None)] * 4
            for axis, start, stride, out_size in zip(axes, starts, self.strides, out_sizes):
                window[axis] = slice(start, start + (out_size - 1) * stride + 1, stride)
            views.append(inputs[tuple(window)])
        return views[0] if len(views) == 1 else tf.concat(views, channel_axis(self.data_format))


def fold_sizes(batch, channels):
    """Returns the numbers of examples in the parts of a batch that depthwise convolutions fold.

    Each part has at most MAX_DEPTHWISE_CHANNELS channels. The parts have equal sizes if that takes
    at most twice the least number of parts; otherwise their sizes differ by at most one.

    Args:
      batch: number of examples, or None if unknown; an unknown batch is one part, [None].
      channels: number of channels of an example.
    """
    if batch is None:
        return [None]
    least = -(-batch // max(1, MAX_DEPTHWISE_CHANNELS // channels))
    for count in range(least, 2 * least + 1):
        if batch % count == 0:
            return [batch // count] * count
    small, num_larger = divmod(batch, least)
    return [small + 1] * num_larger + [small] * (least - num_larger)


def _at_least_zero(value):
    return tf.maximum(value, 0) if tf.is_tensor(value) else max(value, 0)


class DepthwiseCondConv2D(_ExpertConvolution):
    """Depthwise 2-D convolution whose kernel is mixed from experts for each example.

    Variables: `depthwise_condconv_kernel` [E, kh*kw*in*depth_multiplier] (each row a flattened
    [kh, kw, in, depth_multiplier] kernel) and, with `use_bias`, `bias` [E, in*depth_multiplier].

    Call with `(inputs, routing_weights)`: float [batch, height, width, in] (or channels first) and
    float [batch, E]; returns [batch, new_height, new_width, in*depth_multiplier].
    """

    _convolve = staticmethod(tf.nn.depthwise_conv2d)
    _expert_implementations = (CondConvImplementation.EXPERTS_DEPTHWISE,
                               CondConvImplementation.EXPERTS)

    def __init__(self, kernel_size, depth_multiplier=1, **kwargs):
        super().__init__(kernel_size, **kwargs)
        if self.strides[0] != self.strides[1]:
            raise ValueError(f'strides={self.strides}: must be equal strides in depthwise layers.')
        self.depth_multiplier = depth_multiplier

    def build(self, input_shape):
        self.in_channels = int(input_shape[channel_axis(self.data_format)])
        self._add_expert_weights(
            'depthwise_condconv_kernel',
            [*self.kernel_size, self.in_channels, self.depth_multiplier],
            self.in_channels * self.depth_multiplier)
        super().build(input_shape)

    def _convolve_mixed(self, inputs, routing_weights):
        kernels = tf.reshape(tf.matmul(routing_weights, self.expert_kernels),
                             [_size(inputs, 0), *self.kernel_size, -1])
        if self.implementation is CondConvImplementation.LOOP:
            return self._loop(inputs, kernels)
        return self._fold(inputs, kernels)

    def _loop(self, inputs, kernels):
        batch = inputs.shape[0].value
        if batch is None:
            raise ValueError('CondConv implementation loop: needs a known batch size; use fold.')
        return tf.concat([
            self._convolve(example, tf.reshape(kernel, self.kernel_shape), **self._conv2d_options)
            for example, kernel in zip(
                tf.split(inputs, batch, 0), tf.split(kernels, batch, 0))], 0)

    def _fold(self, inputs, kernels):
        """Convolves a batch of B images with C channels as one image with B*C channels.

        Each channel has its own kernel, so that the result is bit-equal to a loop over the
        examples. For a batch of 8 the graph has 52 nodes, with the loop 236.
        """
        batch = _size(inputs, 0)
        folded_channels = batch * self.in_channels
        kernels = tf.reshape(self._batch_inward(kernels),
                             [*self.kernel_size, folded_channels, self.depth_multiplier])
        out_channels = self.in_channels * self.depth_multiplier
        height, width = (_size(inputs, axis) for axis in spatial_axes(self.data_format))
        if self.data_format == CHANNELS_FIRST:
            outputs = self._convolve_folded(
                tf.reshape(inputs, [1, folded_channels, height, width]), kernels)
            return tf.reshape(
                outputs, [batch, out_channels, _size(outputs, 2), _size(outputs, 3)])
        folded = tf.reshape(self._batch_inward(inputs), [1, height, width, folded_channels])
        outputs = self._convolve_folded(folded, kernels)
        outputs = tf.reshape(
            outputs, [_size(outputs, 1), _size(outputs, 2), batch, out_channels])
        return self._batch_outward(outputs)

    @staticmethod
    def _batch_inward(images):
        """Transposes [batch, height, width, channels] to [height, width, batch, channels]."""
        return tf.transpose(images, [1, 2, 0, 3])

    @staticmethod
    def _batch_outward(images):
        """Transposes [height, width, batch, channels] to [batch, height, width, channels]."""
        return tf.transpose(images, [2, 0, 1, 3])

    def _convolve_folded(self, images, kernel):
        """Convolves the folded batch, in parts of at most MAX_DEPTHWISE_CHANNELS channels."""
        axis = channel_axis(self.data_format)
        num_channels = images.shape[axis].value
        sizes = fold_sizes(num_channels and num_channels // self.in_channels, self.in_channels)
        if len(sizes) == 1:
            return self._convolve(images, kernel, **self._conv2d_options)
        # A number of parts selects tf.split's simpler op, which needs equal parts.
        parts = (len(sizes) if len(set(sizes)) == 1
                 else [size * self.in_channels for size in sizes])
        return tf.concat([self._convolve(*part, **self._conv2d_options) for part in zip(
            tf.split(images, parts, axis), tf.split(kernel, parts, 2))], axis)
