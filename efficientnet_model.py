"""The EfficientNet network: stem, MBConv blocks, head (arXiv:1905.11946; CondConv: 1904.04971).

Images in, logits out. Variables bear the names and shapes that the published checkpoints have,
which is why every name here is given and none is counted up by TensorFlow.
"""
import dataclasses
import math
from typing import Callable
from typing import Optional
from typing import Tuple
from typing import Union

import tensorflow.compat.v1 as tf

import condconv_layers
from condconv_layers import CHANNELS_FIRST
from condconv_layers import CHANNELS_LAST
import cpu_layers

# Ways to compute the network, equal up to rounding. PLAIN: TensorFlow's convolutions and batch
# norms, one op each, as accelerators, exported models and their converters want them. CPU: the
# formulations of `cpu_layers`, for stock TensorFlow on a CPU.
PLAIN = 'plain'
CPU = 'cpu'
FORMULATIONS = (PLAIN, CPU)
CONDCONVS = (condconv_layers.MIX, condconv_layers.EXPERTS)
DEPTHWISE_CONDCONVS = ('auto', condconv_layers.FOLD, condconv_layers.LOOP, condconv_layers.EXPERTS)


@dataclasses.dataclass(frozen=True)
class BlockArgs:
    """One stage: `num_repeat` MBConv blocks; the first has the strides and the input filters."""
    kernel_size: int
    num_repeat: int
    input_filters: int
    output_filters: int
    expand_ratio: int
    strides: Tuple[int, int]
    se_ratio: Optional[float] = None
    id_skip: bool = True
    fused_conv: bool = False
    condconv: bool = False


@dataclasses.dataclass(frozen=True)
class GlobalParams:
    """What holds for the whole network. Every field can be overridden by `override_params`."""
    blocks_args: Tuple[BlockArgs, ...] = ()
    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    depth_divisor: int = 8
    min_depth: Optional[int] = None
    fix_head_stem: bool = False
    num_classes: int = 1000
    dropout_rate: float = 0.2
    survival_prob: float = 0.8
    relu_fn: Union[str, Callable] = 'swish'
    use_se: bool = True
    local_pooling: bool = False
    clip_projection_output: bool = False
    condconv_num_experts: int = 0
    routing_init_stddev: Optional[float] = None
    batch_norm_momentum: float = 0.99
    batch_norm_epsilon: float = 1e-3
    data_format: str = CHANNELS_LAST
    formulation: str = PLAIN
    condconv: str = condconv_layers.MIX
    depthwise_condconv: str = 'auto'


def swish(x):
    """x * sigmoid(x). Written out, because TFLite refuses the op that `tf.nn.swish` makes."""
    return x * tf.sigmoid(x)


ACTIVATIONS = {'swish': swish, 'relu': tf.nn.relu, 'relu6': tf.nn.relu6}


def conv_kernel_initializer(shape, dtype=tf.float32, partition_info=None):
    """Normal with variance 2 / fan_out, not truncated, for kernels [..., height, width, in, out].

    fan_out is height * width * out, of depthwise kernels too.
    """
    del partition_info
    fan_out = int(shape[-4] * shape[-3] * shape[-1])
    return tf.random_normal(shape, stddev=math.sqrt(2.0 / fan_out), dtype=dtype)


def dense_kernel_initializer(shape, dtype=tf.float32, partition_info=None):
    """Uniform within 1 / sqrt(fan_out)."""
    del partition_info
    limit = 1.0 / math.sqrt(shape[1])
    return tf.random_uniform(shape, -limit, limit, dtype=dtype)


def round_filters(filters, params, fixed=False):
    """Channels after width scaling: the nearest multiple of the divisor, at most 10 % below."""
    if fixed or not params.width_coefficient:
        return filters
    scaled = filters * params.width_coefficient
    divisor = params.depth_divisor
    rounded = max(params.min_depth or divisor,
                  int(scaled + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * scaled else rounded)


def round_repeats(repeats, params, fixed=False):
    """Blocks of a stage after depth scaling, rounded up."""
    if fixed or not params.depth_coefficient:
        return repeats
    return int(math.ceil(params.depth_coefficient * repeats))


def expand_stages(params):
    """The scaled stages of `params` as a flat list of blocks, each with num_repeat 1."""
    blocks = []
    for index, stage in enumerate(params.blocks_args):
        fixed = params.fix_head_stem and index in (0, len(params.blocks_args) - 1)
        first = dataclasses.replace(
            stage, num_repeat=1,
            input_filters=round_filters(stage.input_filters, params),
            output_filters=round_filters(stage.output_filters, params))
        rest = dataclasses.replace(first, input_filters=first.output_filters, strides=(1, 1))
        blocks += [first] + [rest] * (round_repeats(stage.num_repeat, params, fixed) - 1)
    return blocks


class Model:
    """Builds the network under a variable scope of the model's name.

    Attributes:
      endpoints: name -> tensor, filled by a call: 'stem', 'block_<i>' and its 'expansion_output',
        'block_<i>/routing_weights' (CondConv blocks, [batch, experts]), 'reduction_<n>' (the last
        block before each halving) and its 'expansion_output', 'features', 'head_1x1',
        'pooled_features', 'global_pool', 'head'.
    """

    # What a CondConv block makes its convolutions with.
    conv_layer = condconv_layers.CondConv2D
    depthwise_conv_layer = condconv_layers.DepthwiseCondConv2D

    def __init__(self, name, params):
        self._name = name
        self._params = params
        self._is_for_cpu = params.formulation == CPU
        self._is_channels_first = params.data_format == CHANNELS_FIRST
        self.endpoints = {}

    def __call__(self, images, training, freeze_batch_norm=False, features_only=False,
                 pooled_features_only=False):
        """Runs the network.

        Args:
          images: float [batch, height, width, 3], normalised; channels first if the parameters say
            so.
          training: whether dropout and stochastic depth are on, and batch norm uses (and updates)
            the statistics of the batch.
          freeze_batch_norm: batch norm uses its moving statistics even in training; or a container
            of the layers' names, from below the network's scope, where it does.
          features_only: stop before the head, at the features of the last block.
          pooled_features_only: stop after global pooling, before dropout and classifier.

        Returns:
          logits [batch, num_classes], or features where asked for.
        """
        self._training = training
        self._freeze_batch_norm = freeze_batch_norm
        self._relu = self._activation()
        with tf.variable_scope(self._name) as self._root:
            outputs = self._stem(images)
            outputs = self._blocks(outputs)
            self.endpoints['features'] = outputs
            if not features_only:
                outputs = self._head(outputs, pooled_features_only)
        return outputs

    def _activation(self):
        if self._uses_cpu_swish:
            return cpu_layers.swish
        return ACTIVATIONS.get(self._params.relu_fn, self._params.relu_fn)

    @property
    def _uses_cpu_swish(self):
        """It has the cheaper gradient; at inference it gains nothing."""
        return self._params.relu_fn == 'swish' and self._is_for_cpu and self._training

    def _stem(self, images):
        with tf.variable_scope('stem'):
            filters = round_filters(32, self._params, self._params.fix_head_stem)
            outputs = self._conv(images, filters, 3, strides=(2, 2))
            outputs = self._relu(self._batch_norm(outputs))
        self.endpoints['stem'] = outputs
        return outputs

    def _blocks(self, outputs):
        blocks = expand_stages(self._params)
        condconv_names = _condconv_names(blocks)
        reductions = 0
        for index, block in enumerate(blocks):
            with tf.variable_scope(f'blocks_{index}'):
                # Stochastic depth: the deeper the block, the likelier it is dropped.
                survival_prob = 1.0 - (1.0 - self._params.survival_prob) * index / len(blocks)
                outputs, expansion, routing_weights = self._block(
                    outputs, block, survival_prob, condconv_names[index])
            endpoint_names = [f'block_{index}']
            if index + 1 == len(blocks) or max(blocks[index + 1].strides) > 1:
                reductions += 1
                endpoint_names.append(f'reduction_{reductions}')
            for name in endpoint_names:
                self.endpoints[name] = outputs
                self.endpoints[f'{name}/expansion_output'] = expansion
            if routing_weights is not None:
                self.endpoints[f'block_{index}/routing_weights'] = routing_weights
        return outputs

    def _block(self, inputs, block, survival_prob, condconv_names):
        """One MBConv block: expansion, depthwise convolution, squeeze and excite, projection.

        Returns the block's output, the expanded features before projection, and the routing weights
        (None unless the block is a CondConv one).
        """
        conv, depthwise_conv, routing_weights = self._conv, self._depthwise_conv, None
        if block.condconv:
            routing_weights = condconv_layers.routing(
                inputs, self._params.condconv_num_experts, self._params.data_format,
                self._params.routing_init_stddev)
            conv, depthwise_conv = self._condconv_pair(routing_weights, condconv_names)

        filters = block.input_filters * block.expand_ratio
        outputs = inputs
        names = _LayerNames()
        if block.fused_conv:
            outputs = conv(outputs, filters, block.kernel_size, block.strides, name=names.conv())
            outputs = self._batch_norm(outputs, names.batch_norm())
        else:
            if block.expand_ratio != 1:
                conv_name, batch_norm_name = names.conv(), names.batch_norm()
                if (self._is_for_cpu and not block.condconv
                        and self._uses_batch_statistics(batch_norm_name)):
                    # Batch norm in terms of the inputs, which are a sixth of the outputs.
                    outputs = self._pointwise_conv_batch_norm(
                        outputs, filters, conv_name, batch_norm_name)
                else:
                    outputs = conv(outputs, filters, 1, name=conv_name)
                    outputs = self._batch_norm(outputs, batch_norm_name)
                if self._uses_cpu_swish and not block.condconv and block.kernel_size % 2:
                    # It is made anew for the backward pass, rather than kept.
                    depthwise_conv = self._swish_depthwise_conv
                else:
                    outputs = self._relu(outputs)
            if self._is_for_cpu and not self._training and not block.condconv:
                outputs = self._depthwise_conv_batch_norm(
                    outputs, block.kernel_size, block.strides, names.batch_norm())
            else:
                outputs = depthwise_conv(outputs, block.kernel_size, block.strides)
                outputs = self._batch_norm(outputs, names.batch_norm())
        outputs = self._relu(outputs)

        gate = None
        if self._params.use_se and block.se_ratio:
            gate = self._squeeze_excite(outputs, max(1, int(block.input_filters * block.se_ratio)))
        expansion = outputs if gate is None else gate * outputs

        if self._is_for_cpu and self._training and gate is not None and not block.condconv:
            # The gate goes into the kernel, where its gradient is cheaper; `expansion` then is an
            # endpoint and no more.
            outputs = self._gated_pointwise_conv(outputs, gate, block.output_filters, names.conv())
        else:
            outputs = conv(expansion, block.output_filters, 1, name=names.conv())
        outputs = self._batch_norm(outputs, names.batch_norm())
        if self._params.clip_projection_output:
            outputs = tf.clip_by_value(outputs, -6.0, 6.0)
        if (block.id_skip and block.strides == (1, 1)
                and inputs.shape.as_list()[self._channel_axis] == block.output_filters):
            outputs = self._drop_connect(outputs, survival_prob) + inputs
        return outputs, expansion, routing_weights

    def _condconv_pair(self, routing_weights, names):
        """CondConv stand-ins for `_conv` and `_depthwise_conv`.

        In the checkpoints their variables live in '<model>/model/<block>/<layer>' while all others
        live in '<model>/<block>/<layer>': hence the way back to the root scope.
        """
        names = iter(names)
        block_scope = tf.get_variable_scope().name[len(self._root.name) + 1:]
        common = dict(padding='same', data_format=self._params.data_format, use_bias=False,
                      num_experts=self._params.condconv_num_experts,
                      kernel_initializer=conv_kernel_initializer)

        def at_root(layer, inputs):
            with tf.variable_scope(self._root, auxiliary_name_scope=False):
                with tf.variable_scope(f'model/{block_scope}', auxiliary_name_scope=False):
                    return layer.apply(inputs, routing_weights)

        def conv(inputs, filters, kernel_size, strides=(1, 1), name=None):
            del name
            return at_root(self.conv_layer(
                filters, kernel_size, strides=strides, formulation=self._condconv(),
                name=next(names), **common), inputs)

        def depthwise_conv(inputs, kernel_size, strides):
            return at_root(self.depthwise_conv_layer(
                kernel_size, strides=strides, formulation=self._depthwise_condconv(),
                name=next(names), **common), inputs)

        return conv, depthwise_conv

    def _condconv(self):
        """The formulation of the other CondConv layers."""
        if self._is_for_cpu and self._params.condconv == condconv_layers.MIX:
            return condconv_layers.CPU
        return self._params.condconv

    def _depthwise_condconv(self):
        """The formulation of the depthwise CondConv layers; their `call` says how they differ."""
        if self._params.depthwise_condconv != 'auto':
            return self._params.depthwise_condconv
        return condconv_layers.CPU if self._is_for_cpu else condconv_layers.FOLD

    def _squeeze_excite(self, inputs, reduced_filters):
        """The gate of each channel, from their global means (arXiv:1709.01507)."""
        with tf.variable_scope('se'):
            gate = tf.reduce_mean(inputs, self._spatial_axes, keepdims=True)
            gate = self._relu(self._conv(gate, reduced_filters, 1, use_bias=True))
            gate = self._conv(gate, inputs.shape.as_list()[self._channel_axis], 1, use_bias=True,
                              name='conv2d_1')
            return tf.sigmoid(gate)

    def _head(self, outputs, pooled_features_only):
        params = self._params
        with tf.variable_scope('head'):
            filters = round_filters(1280, params, params.fix_head_stem)
            outputs = self._relu(self._batch_norm(self._conv(outputs, filters, 1)))
            self.endpoints['head_1x1'] = outputs
            # The lite and edgetpu families keep the pooled features four-dimensional.
            outputs = tf.reduce_mean(outputs, self._spatial_axes, keepdims=params.local_pooling)
            self.endpoints['pooled_features'] = outputs
            if pooled_features_only:
                return outputs
            if self._training and params.dropout_rate:
                outputs = tf.nn.dropout(outputs, rate=params.dropout_rate)
            self.endpoints['global_pool'] = outputs
            if not params.num_classes:
                return outputs
            if params.local_pooling:
                outputs = tf.squeeze(outputs, self._spatial_axes)
            outputs = self._dense(outputs, params.num_classes)
            self.endpoints['head'] = outputs
        return outputs

    @property
    def _channel_axis(self):
        return condconv_layers.channel_axis(self._params.data_format)

    @property
    def _spatial_axes(self):
        return condconv_layers.spatial_axes(self._params.data_format)

    @property
    def _image_format(self):
        return 'NCHW' if self._is_channels_first else 'NHWC'

    def _strides4(self, strides):
        return [1, 1, *strides] if self._is_channels_first else [1, *strides, 1]

    def _kernel(self, inputs, filters, kernel_size):
        in_channels = inputs.shape.as_list()[self._channel_axis]
        return tf.get_variable('kernel', [kernel_size, kernel_size, in_channels, filters],
                               initializer=conv_kernel_initializer)

    def _conv(self, inputs, filters, kernel_size, strides=(1, 1), use_bias=False, name='conv2d'):
        with tf.variable_scope(name):
            kernel = self._kernel(inputs, filters, kernel_size)
            if self._is_for_cpu and self._training and (kernel_size, *strides) == (1, 1, 1):
                # In inference there is no gradient to make cheaper, and TensorFlow fuses the
                # convolution with the batch norm behind it.
                outputs = cpu_layers.pointwise_conv2d(inputs, kernel)
            else:
                outputs = tf.nn.conv2d(inputs, kernel, self._strides4(strides), 'SAME',
                                       data_format=self._image_format)
            if use_bias:
                bias = tf.get_variable('bias', [filters], initializer=tf.zeros_initializer())
                outputs = tf.nn.bias_add(outputs, bias, data_format=self._image_format)
        return outputs

    def _gated_pointwise_conv(self, inputs, gate, filters, name):
        with tf.variable_scope(name):
            return cpu_layers.gated_pointwise_conv2d(inputs, gate, self._kernel(inputs, filters, 1))

    def _pointwise_conv_batch_norm(self, inputs, filters, conv_name, batch_norm_name):
        with tf.variable_scope(conv_name):
            kernel = self._kernel(inputs, filters, 1)
        with tf.variable_scope(batch_norm_name):
            gamma, beta, moving_mean, moving_variance = _batch_norm_variables(filters)
            outputs, mean, variance = cpu_layers.pointwise_conv2d_batch_norm(
                inputs, kernel, gamma, beta, self._params.batch_norm_epsilon)
            self._update_statistics(moving_mean, mean)
            self._update_statistics(moving_variance, variance)
        return outputs

    def _depthwise_kernel(self, inputs, kernel_size):
        in_channels = inputs.shape.as_list()[self._channel_axis]
        return tf.get_variable('depthwise_kernel', [kernel_size, kernel_size, in_channels, 1],
                               initializer=conv_kernel_initializer)

    def _swish_depthwise_conv(self, inputs, kernel_size, strides):
        with tf.variable_scope('depthwise_conv2d'):
            return cpu_layers.swish_depthwise_conv2d(
                inputs, self._depthwise_kernel(inputs, kernel_size), strides[0])

    def _depthwise_conv(self, inputs, kernel_size, strides):
        with tf.variable_scope('depthwise_conv2d'):
            return self._convolve_depthwise(
                inputs, self._depthwise_kernel(inputs, kernel_size), strides)

    def _depthwise_conv_batch_norm(self, inputs, kernel_size, strides, batch_norm_name):
        """Both at inference: the scale of batch norm in the kernel, and an addition for the rest.

        Where it stands behind other convolutions TensorFlow does the same by itself.
        """
        with tf.variable_scope('depthwise_conv2d'):
            kernel = self._depthwise_kernel(inputs, kernel_size)
        with tf.variable_scope(batch_norm_name):
            gamma, beta, mean, variance = _batch_norm_variables(kernel.shape[2].value)
            scale = gamma * tf.rsqrt(variance + self._params.batch_norm_epsilon)
            kernel *= tf.expand_dims(scale, 1)
            outputs = self._convolve_depthwise(inputs, kernel, strides)
            return tf.nn.bias_add(outputs, beta - mean * scale)

    def _convolve_depthwise(self, inputs, kernel, strides):
        if self._is_for_cpu and kernel.shape[0].value % 2:
            return cpu_layers.depthwise_conv2d(inputs, kernel, strides[0])
        return tf.nn.depthwise_conv2d(inputs, kernel, self._strides4(strides), 'SAME',
                                      data_format=self._image_format)

    def _dense(self, inputs, units):
        with tf.variable_scope('dense'):
            kernel = tf.get_variable('kernel', [inputs.shape.as_list()[-1], units],
                                     initializer=dense_kernel_initializer)
            bias = tf.get_variable('bias', [units], initializer=tf.zeros_initializer())
            return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)

    def _batch_norm(self, inputs, name='tpu_batch_normalization'):
        uses_batch_statistics = self._uses_batch_statistics(name)
        with tf.variable_scope(name):
            gamma, beta, moving_mean, moving_variance = _batch_norm_variables(
                inputs.shape.as_list()[self._channel_axis])
            fused = dict(epsilon=self._params.batch_norm_epsilon, data_format=self._image_format)
            if not uses_batch_statistics:
                outputs, _, _ = tf.nn.fused_batch_norm(
                    inputs, gamma, beta, moving_mean, moving_variance, is_training=False, **fused)
                return outputs
            outputs, mean, variance = tf.nn.fused_batch_norm(
                inputs, gamma, beta, is_training=True, **fused)
            # The fused op returns the variance with n - 1 in its denominator; the published moving
            # averages were made with n.
            samples = self._num_samples(inputs)
            variance *= (samples - 1) / samples
            self._update_statistics(moving_mean, mean)
            self._update_statistics(moving_variance, variance)
            return outputs

    def _update_statistics(self, moving, batch):
        change = (moving - batch) * (1.0 - self._params.batch_norm_momentum)
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(moving, change))

    def _uses_batch_statistics(self, name):
        """Whether the batch norm of this name in the current scope is in training mode."""
        if isinstance(self._freeze_batch_norm, bool):
            return self._training and not self._freeze_batch_norm
        scope = tf.get_variable_scope().name[len(self._root.name) + 1:]
        return self._training and f'{scope}/{name}' not in self._freeze_batch_norm

    def _num_samples(self, inputs):
        """Values that a channel of `inputs` has: an int, or a tensor where the batch is unknown."""
        channels = inputs.shape[self._channel_axis].value
        num_values = inputs.shape.num_elements()
        if num_values is None:
            return tf.cast(tf.size(inputs) // channels, tf.float32)
        return num_values // channels

    def _drop_connect(self, inputs, survival_prob):
        """Drops a whole residual branch per example, scaling the survivors (arXiv:1603.09382)."""
        if not self._training or survival_prob >= 1.0:
            return inputs
        noise = tf.random_uniform([tf.shape(inputs)[0], 1, 1, 1], dtype=inputs.dtype)
        return inputs / survival_prob * tf.floor(survival_prob + noise)


def _batch_norm_variables(channels):
    """gamma, beta, moving mean and moving variance in the current variable scope."""
    gamma = tf.get_variable('gamma', [channels], initializer=tf.ones_initializer())
    beta = tf.get_variable('beta', [channels], initializer=tf.zeros_initializer())
    # Each replica keeps statistics of its own; a checkpoint holds their mean.
    statistic = dict(trainable=False, aggregation=tf.VariableAggregation.MEAN,
                     synchronization=tf.VariableSynchronization.ON_READ)
    moving_mean = tf.get_variable(
        'moving_mean', [channels], initializer=tf.zeros_initializer(), **statistic)
    moving_variance = tf.get_variable(
        'moving_variance', [channels], initializer=tf.ones_initializer(), **statistic)
    return gamma, beta, moving_mean, moving_variance


class _LayerNames:
    """Names of a block's layers in the order of their making: conv2d, conv2d_1, ..."""

    def __init__(self):
        self._convs = self._batch_norms = 0

    def conv(self):
        self._convs += 1
        return 'conv2d' if self._convs == 1 else f'conv2d_{self._convs - 1}'

    def batch_norm(self):
        self._batch_norms += 1
        suffix = '' if self._batch_norms == 1 else f'_{self._batch_norms - 1}'
        return f'tpu_batch_normalization{suffix}'


def _condconv_names(blocks):
    """Names of the CondConv layers of each block, in the order in which the block calls them.

    The published checkpoints number these layers through the whole network, and every CondConv
    block begins with a fused convolution that is never called and yet takes a number.
    """
    names = []
    convs = depthwise_convs = 0
    for block in blocks:
        names.append([])
        if not block.condconv:
            continue
        convs += 1
        if block.expand_ratio != 1:
            names[-1].append(f'cond_conv2d_{convs}')
            convs += 1
        names[-1].append('depthwise_cond_conv2d' + (f'_{depthwise_convs}' * bool(depthwise_convs)))
        names[-1].append(f'cond_conv2d_{convs}')
        depthwise_convs += 1
        convs += 1
    return names
