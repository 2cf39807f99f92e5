"""Builds the EfficientNet network: stem, MBConv blocks, head.

Source: EfficientNet, arXiv:1905.11946; CondConv, arXiv:1904.04971. Variables have the names and
shapes of the published checkpoints. All names are explicit; none depends on TensorFlow's automatic
numbering.
"""
import itertools
import math
from typing import NamedTuple
from typing import Optional

import tensorflow.compat.v1 as tf

import condconv_layers


def swish(x):
    """Returns x * sigmoid(x); TFLite does not support the op of `tf.nn.swish`."""
    return x * tf.sigmoid(x)


# Batch variance that enters the moving variance of batch norm: the sum of squares divided by the
# number of values n, or by n - 1 as in the output of the fused op.
PUBLISHED_VARIANCE = 'published'
FUSED_VARIANCE = 'as_fused'
BATCH_NORM_VARIANCES = (PUBLISHED_VARIANCE, FUSED_VARIANCE)

ACTIVATIONS = {'swish': swish, 'relu': tf.nn.relu, 'relu6': tf.nn.relu6}


def conv_kernel_initializer(shape, dtype=tf.float32, partition_info=None):
    """Initializes kernels [..., height, width, in, out]: normal, variance 2 / fan_out.

    The distribution is not truncated. fan_out is height * width * out, also for depthwise kernels.
    """
    del partition_info
    fan_out = int(shape[-4] * shape[-3] * shape[-1])
    return tf.random_normal(shape, stddev=math.sqrt(2.0 / fan_out), dtype=dtype)


def dense_kernel_initializer(shape, dtype=tf.float32, partition_info=None):
    """Initializes a dense kernel [in, out]: uniform in +-1 / sqrt(out)."""
    del partition_info
    limit = 1.0 / math.sqrt(shape[1])
    return tf.random_uniform(shape, -limit, limit, dtype=dtype)


class LayerNames(NamedTuple):
    """Names of the layers of one MBConv block; None for a layer that the block does not have."""
    expand: Optional[str]
    expand_norm: Optional[str]
    depthwise: str
    depthwise_norm: Optional[str]
    project: str
    project_norm: str


def layer_names(blocks):
    """Yields the `LayerNames` of each block of the network.

    The published checkpoints number convolutions and batch norms per block, but CondConv layers
    across the whole network.
    """
    condconvs, depthwise_condconvs = _numbered('cond_conv2d'), _numbered('depthwise_cond_conv2d')
    for block in blocks:
        convs, depthwise_convs = _numbered('conv2d'), _numbered('depthwise_conv2d')
        norms = _numbered('tpu_batch_normalization')
        if block.condconv:
            convs, depthwise_convs = condconvs, depthwise_condconvs
            # The reference implementation also creates a fused convolution, but never calls it.
            next(convs)
        has_expansion = block.fused_conv or block.expand_ratio != 1
        yield LayerNames(
            expand=next(convs) if has_expansion else None,
            expand_norm=next(norms) if has_expansion else None,
            depthwise=next(depthwise_convs),
            depthwise_norm=None if block.fused_conv else next(norms),
            project=next(convs),
            project_norm=next(norms))


def _numbered(name):
    return itertools.chain([name], (f'{name}_{number}' for number in itertools.count(1)))


class Model:
    """Builds the network, for training or inference, in a variable scope with its name.

    Attributes:
      endpoints: name -> tensor, filled by a call: 'stem', 'block_<i>' and its 'expansion_output',
        'block_<i>/routing_weights' (CondConv blocks, [batch, experts]), 'reduction_<n>' (the last
        block before each halving of the resolution) and its 'expansion_output', 'features',
        'head_1x1', 'pooled_features', 'global_pool', 'head'.
    """

    # Layer classes of CondConv blocks.
    conv_layer = condconv_layers.CondConv2D
    depthwise_conv_layer = condconv_layers.DepthwiseCondConv2D

    def __init__(self, name, params, training, freeze_batch_norm=False):
        """Stores the description of the network; a call builds it.

        Args:
          name: variable scope of the network.
          params: `efficientnet_builder.GlobalParams`.
          training: whether dropout and stochastic depth are on, and batch norm uses (and updates)
            the statistics of the batch.
          freeze_batch_norm: whether batch norm uses its moving statistics even in training; or a
            container with the names of the batch norms that do, relative to the network's scope.
        """
        self._name = name
        self._params = params
        self._training = training
        self._freeze_batch_norm = freeze_batch_norm
        self._relu = self._activation()
        self.endpoints = {}

    def __call__(self, images, features_only=False, pooled_features_only=False):
        """Builds the network.

        Args:
          images: float [batch, height, width, 3], normalized; [batch, 3, height, width] if
            params.data_format is channels first.
          features_only: whether to stop before the head, at the features of the last block.
          pooled_features_only: whether to stop after global pooling, before dropout and classifier.

        Returns:
          logits [batch, num_classes], or the requested features.
        """
        with tf.variable_scope(self._name) as self._root:
            outputs = self._stem(images)
            outputs = self._blocks(outputs)
            self.endpoints['features'] = outputs
            if not features_only:
                outputs = self._head(outputs, pooled_features_only)
        return outputs

    def _activation(self):
        return ACTIVATIONS.get(self._params.relu_fn, self._params.relu_fn)

    # Parts of the network.

    def _stem(self, images):
        with tf.variable_scope('stem'):
            outputs = self._conv(images, self._params.stem_filters, 3, strides=(2, 2))
            outputs = self._relu(self._batch_norm(outputs))
        self.endpoints['stem'] = outputs
        return outputs

    def _blocks(self, outputs):
        blocks = self._params.blocks
        reductions = 0
        for index, (block, names) in enumerate(zip(blocks, layer_names(blocks))):
            # Stochastic depth drops deeper blocks more often.
            survival_prob = 1.0 - (1.0 - self._params.survival_prob) * index / len(blocks)
            with tf.variable_scope(f'blocks_{index}'):
                outputs, expansion, routing_weights = self._block(
                    outputs, block, names, survival_prob)
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

    def _block(self, inputs, block, names, survival_prob):
        """Builds one MBConv block: expansion, depthwise convolution, squeeze-excite, projection.

        Returns:
          the block's output, the expanded features before projection, and the routing weights
          (None for a block without CondConv).
        """
        routing_weights = self._route(inputs) if block.condconv else None
        if block.fused_conv:
            outputs = self._fused_expand(inputs, block, names)
        elif block.expand_ratio == 1:
            outputs = self._depthwise(inputs, block, names, routing_weights)
        else:
            outputs = self._expand(inputs, block, names, routing_weights)
            outputs = self._activate_depthwise(outputs, block, names, routing_weights)
        outputs = self._relu(outputs)
        gate = self._squeeze_excite(outputs, block)
        outputs, expansion = self._project(outputs, gate, block, names, routing_weights)
        if (block.id_skip and block.strides == (1, 1)
                and self._num_channels(inputs) == block.output_filters):
            outputs = self._drop_connect(outputs, survival_prob) + inputs
        return outputs, expansion, routing_weights

    def _head(self, outputs, pooled_features_only):
        params = self._params
        with tf.variable_scope('head'):
            outputs = self._conv(outputs, params.head_filters, 1)
            outputs = self._relu(self._batch_norm(outputs))
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

    # Stages of a block. Each ends with its batch norm, before the activation.

    def _route(self, inputs):
        """Returns the routing weights [batch, experts] for all layers of the block."""
        return condconv_layers.routing(
            inputs, self._params.condconv_num_experts, self._params.data_format,
            self._params.routing_init_stddev)

    def _fused_expand(self, inputs, block, names):
        """Builds expansion and spatial convolution as one layer, as in the edgetpu family."""
        outputs = self._conv(inputs, block.expanded_filters, block.kernel_size, block.strides,
                             name=names.expand)
        return self._batch_norm(outputs, names.expand_norm)

    def _expand(self, inputs, block, names, routing_weights):
        outputs = self._conv(inputs, block.expanded_filters, 1, name=names.expand,
                             routing_weights=routing_weights)
        return self._batch_norm(outputs, names.expand_norm)

    def _activate_depthwise(self, inputs, block, names, routing_weights):
        """Activates the expansion, then applies `_depthwise`."""
        return self._depthwise(self._relu(inputs), block, names, routing_weights)

    def _depthwise(self, inputs, block, names, routing_weights):
        outputs = self._depthwise_conv(
            inputs, block.kernel_size, block.strides, names.depthwise, routing_weights)
        return self._batch_norm(outputs, names.depthwise_norm)

    def _squeeze_excite(self, inputs, block):
        """Returns the gate of each channel (arXiv:1709.01507), or None without squeeze-excite."""
        if not self._params.use_se or not block.se_ratio:
            return None
        with tf.variable_scope('se'):
            gate = tf.reduce_mean(inputs, self._spatial_axes, keepdims=True)
            gate = self._relu(self._conv(gate, block.squeezed_filters, 1, use_bias=True))
            gate = self._conv(gate, self._num_channels(inputs), 1, use_bias=True, name='conv2d_1')
            return tf.sigmoid(gate)

    def _project(self, inputs, gate, block, names, routing_weights):
        """Returns the projection of the gated inputs, and the gated inputs."""
        outputs, gated = self._gate_conv(
            inputs, gate, block.output_filters, names.project, routing_weights)
        outputs = self._batch_norm(outputs, names.project_norm)
        if self._params.clip_projection_output:
            outputs = tf.clip_by_value(outputs, -6.0, 6.0)
        return outputs, gated

    def _gate_conv(self, inputs, gate, filters, name, routing_weights):
        """Returns the 1x1 convolution of the gated inputs, and the gated inputs."""
        gated = inputs if gate is None else gate * inputs
        return self._conv(gated, filters, 1, name=name, routing_weights=routing_weights), gated

    def _drop_connect(self, inputs, survival_prob):
        """Drops the residual branch of random examples and scales the rest (arXiv:1603.09382)."""
        if not self._training or survival_prob >= 1.0:
            return inputs
        batch = inputs.shape[0].value or tf.shape(inputs)[0]
        # The raw op is already in [0, 1); `tf.random_uniform` would add three kernels to scale it.
        seed, seed2 = tf.get_seed(None)
        noise = tf.raw_ops.RandomUniform(shape=[batch, 1, 1, 1], dtype=inputs.dtype,
                                         seed=seed or 0, seed2=seed2 or 0)
        # Scaling the mask instead of the outputs leaves one pass over the inputs.
        return inputs * (tf.floor(survival_prob + noise) / survival_prob)

    # Layers: variables and ops.

    def _conv(self, inputs, filters, kernel_size, strides=(1, 1), use_bias=False, name='conv2d',
              routing_weights=None):
        """Builds a convolution or, given routing weights, a CondConv layer, which has no bias."""
        if routing_weights is not None:
            return self._condconv(self.conv_layer, inputs, routing_weights, filters, kernel_size,
                                  strides=strides, name=name)
        with tf.variable_scope(name):
            outputs = self._convolve(inputs, self._kernel(inputs, kernel_size, filters), strides)
            if use_bias:
                bias = tf.get_variable('bias', [filters], initializer=tf.zeros_initializer())
                outputs = tf.nn.bias_add(outputs, bias, data_format=self._image_format)
        return outputs

    def _depthwise_conv(self, inputs, kernel_size, strides, name, routing_weights):
        if routing_weights is not None:
            return self._condconv(self.depthwise_conv_layer, inputs, routing_weights, kernel_size,
                                  strides=strides, name=name)
        with tf.variable_scope(name):
            return self._convolve_depthwise(
                inputs, self._depthwise_kernel(inputs, kernel_size), strides)

    def _condconv(self, layer_class, inputs, routing_weights, *shape, strides, name):
        """Builds a CondConv layer of the current block.

        In the published checkpoints, variables of CondConv layers are in
        '<model>/model/<block>/<layer>', all other variables in '<model>/<block>/<layer>'.
        """
        layer = layer_class(
            *shape, strides=strides, padding='same', data_format=self._params.data_format,
            num_experts=self._params.condconv_num_experts, use_bias=False,
            kernel_initializer=conv_kernel_initializer,
            implementation=self._params.condconv_implementation, name=name,
            # Without _reuse, a second layer of this name gets another name and new variables.
            _reuse=tf.get_variable_scope().reuse or None)
        block_scope = self._scope
        with tf.variable_scope(self._root, auxiliary_name_scope=False):
            with tf.variable_scope(f'model/{block_scope}', auxiliary_name_scope=False):
                return layer.apply(inputs, routing_weights)

    def _dense(self, inputs, units):
        with tf.variable_scope('dense'):
            kernel = tf.get_variable('kernel', [inputs.shape.as_list()[-1], units],
                                     initializer=dense_kernel_initializer)
            bias = tf.get_variable('bias', [units], initializer=tf.zeros_initializer())
            return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)

    def _batch_norm(self, inputs, name='tpu_batch_normalization'):
        uses_batch_statistics = self._uses_batch_statistics(name)
        with tf.variable_scope(name):
            gamma, beta, moving_mean, moving_variance = batch_norm_variables(
                self._num_channels(inputs))
            if not uses_batch_statistics:
                outputs, _, _ = tf.nn.fused_batch_norm(
                    inputs, gamma, beta, moving_mean, moving_variance, is_training=False,
                    epsilon=self._params.batch_norm_epsilon, data_format=self._image_format)
                return outputs
            outputs, mean, variance = self._normalize_batch(inputs, gamma, beta)
            self._update_statistics(moving_mean, mean)
            self._update_statistics(moving_variance, variance)
            return outputs

    def _normalize_batch(self, inputs, gamma, beta):
        """Returns the outputs, and the mean and variance that enter the moving averages."""
        outputs, mean, variance = tf.nn.fused_batch_norm(
            inputs, gamma, beta, is_training=True, epsilon=self._params.batch_norm_epsilon,
            data_format=self._image_format)
        if self._params.batch_norm_variance == PUBLISHED_VARIANCE:
            # The fused op divides the sum of squares by n - 1; the published averages use n.
            samples = self._num_samples(inputs)
            variance *= (samples - 1) / samples
        return outputs, mean, variance

    def _update_statistics(self, moving, batch):
        change = (moving - batch) * (1.0 - self._params.batch_norm_momentum)
        tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, tf.assign_sub(moving, change))

    def _uses_batch_statistics(self, name):
        """Returns whether batch norm `name` in the current scope uses batch statistics."""
        if isinstance(self._freeze_batch_norm, bool):
            return self._training and not self._freeze_batch_norm
        return self._training and f'{self._scope}/{name}' not in self._freeze_batch_norm

    # Kernels, ops and shapes.

    def _kernel(self, inputs, kernel_size, filters, name='kernel'):
        return tf.get_variable(
            name, [kernel_size, kernel_size, self._num_channels(inputs), filters],
            initializer=conv_kernel_initializer)

    def _depthwise_kernel(self, inputs, kernel_size):
        return self._kernel(inputs, kernel_size, 1, 'depthwise_kernel')

    def _convolve(self, inputs, kernel, strides):
        return tf.nn.conv2d(inputs, kernel, **self._conv2d_options(strides))

    def _convolve_depthwise(self, inputs, kernel, strides):
        return tf.nn.depthwise_conv2d(inputs, kernel, **self._conv2d_options(strides))

    @property
    def _scope(self):
        """The current variable scope, relative to the network's."""
        return tf.get_variable_scope().name[len(self._root.name) + 1:]

    @property
    def _spatial_axes(self):
        return condconv_layers.spatial_axes(self._params.data_format)

    @property
    def _image_format(self):
        return condconv_layers.image_format(self._params.data_format)

    def _conv2d_options(self, strides):
        return condconv_layers.conv2d_options(strides, 'SAME', self._params.data_format)

    def _num_channels(self, inputs):
        return inputs.shape[condconv_layers.channel_axis(self._params.data_format)].value

    def _num_samples(self, inputs):
        """Returns the values per channel of `inputs`: an int, or a tensor if batch is unknown."""
        num_values = inputs.shape.num_elements()
        if num_values is None:
            return tf.cast(tf.size(inputs) // self._num_channels(inputs), tf.float32)
        return num_values // self._num_channels(inputs)


def batch_norm_variables(channels):
    """Returns gamma, beta, moving mean and moving variance, created in the current scope."""
    gamma = tf.get_variable('gamma', [channels], initializer=tf.ones_initializer())
    beta = tf.get_variable('beta', [channels], initializer=tf.zeros_initializer())
    # Each replica keeps its own statistics; a checkpoint stores their mean.
    statistic = dict(trainable=False, aggregation=tf.VariableAggregation.MEAN,
                     synchronization=tf.VariableSynchronization.ON_READ)
    moving_mean = tf.get_variable(
        'moving_mean', [channels], initializer=tf.zeros_initializer(), **statistic)
    moving_variance = tf.get_variable(
        'moving_variance', [channels], initializer=tf.ones_initializer(), **statistic)
    return gamma, beta, moving_mean, moving_variance
