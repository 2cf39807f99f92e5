"""Counts the costs of each part of a network from its description, without building a graph."""
import collections
from typing import Dict
from typing import NamedTuple
from typing import Tuple

import numpy as np

from common.image_sizes import ImageSize

# Kinds of multiply-adds.
KINDS = ('convolution', 'depthwise', 'squeeze_excite', 'dense', 'routing', 'mixing')


class Part(NamedTuple):
    """The costs of the stem, a block or the head.

    Attributes:
      name: 'stem', 'block_<i>' or 'head', as in the network's endpoints.
      type: 'conv', 'MBConv', 'MBConv+CondConv', 'fused MBConv' or 'head'.
      kernel_size, stride: those of the spatial convolution.
      num_experts: number of experts, 0 for a part without CondConv.
      input_shape, output_shape: (height, width, channels); the head's output is (classes,).
      costs: dict of counts for one image: multiply-adds by kind, 'elementwise' operations,
        'trainable' parameters, batch 'statistics', and activations 'kept' for the backward pass.
    """
    name: str
    type: str
    kernel_size: int
    stride: int
    num_experts: int
    input_shape: Tuple[int, ...]
    output_shape: Tuple[int, ...]
    costs: Dict[str, int]


def parts_of(params, image_size):
    """Returns the costs of each part of a network.

    The counts do not depend on the implementation of the layers.

    Args:
      params: `efficientnet_builder.GlobalParams`.
      image_size: `ImageSize` of the input, or int for a square.

    Returns:
      a list of `Part`: stem, blocks, head.
    """
    parts = [_stem(params, (*ImageSize.of(image_size), 3))]
    for index, block in enumerate(params.blocks):
        parts.append(_block(f'block_{index}', block, params, parts[-1].output_shape))
    return parts + [_head(params, parts[-1].output_shape)]


class _Tally:
    """Adds up the costs of the layers of one part; methods are called in the network's order.

    Attributes:
      shape: (height, width, channels) of the output of the last layer.
      costs: see `Part`.
    """

    def __init__(self, shape, params):
        self.shape = shape
        self.costs = collections.Counter()
        self._is_swish = params.relu_fn == 'swish'

    @property
    def channels(self):
        return self.shape[2]

    @property
    def num_values(self):
        return int(np.prod(self.shape))

    def conv(self, filters, kernel_size, stride=1, num_experts=0):
        num_weights = kernel_size ** 2 * self.channels * filters
        self._convolve('convolution', num_weights, filters, stride, num_experts)

    def depthwise_conv(self, kernel_size, stride, num_experts):
        num_weights = kernel_size ** 2 * self.channels
        self._convolve('depthwise', num_weights, self.channels, stride, num_experts)

    def _convolve(self, kind, num_weights, filters, stride, num_experts):
        height, width = (-(-size // stride) for size in self.shape[:2])
        self.shape = height, width, filters
        self.costs[kind] += num_weights * height * width
        self.costs['trainable'] += num_weights * (num_experts or 1)
        self.costs['mixing'] += num_weights * num_experts
        self.costs['kept'] += self.num_values + (num_weights if num_experts else 0)

    def batch_norm(self):
        self.costs['trainable'] += 2 * self.channels
        self.costs['statistics'] += 2 * self.channels

    def activation(self):
        self.costs['kept'] += self.num_values * (3 if self._is_swish else 1)
        if self._is_swish:
            self.costs['elementwise'] += self.num_values

    def add_residual(self):
        self.costs['elementwise'] += self.num_values

    def keep_output(self):
        self.costs['kept'] += self.num_values

    def squeeze_excite(self, reduced_filters):
        self._dense_on_mean('squeeze_excite', reduced_filters)
        if self._is_swish:
            self.costs['elementwise'] += reduced_filters
        self._dense('squeeze_excite', reduced_filters, self.channels)
        self.costs['elementwise'] += self.num_values
        self.keep_output()

    def routing(self, num_experts):
        self._dense_on_mean('routing', num_experts)

    def classifier(self, num_classes):
        self._dense_on_mean('dense', num_classes)
        self.shape = num_classes,

    def _dense_on_mean(self, kind, units):
        self.costs['elementwise'] += self.num_values
        self._dense(kind, self.channels, units)

    def _dense(self, kind, num_inputs, units):
        self.costs[kind] += num_inputs * units
        self.costs['trainable'] += num_inputs * units + units
        self.costs['elementwise'] += units


def _stem(params, shape):
    tally = _Tally(shape, params)
    tally.conv(params.stem_filters, 3, 2)
    tally.batch_norm()
    tally.activation()
    return Part('stem', 'conv', 3, 2, 0, shape, tally.shape, tally.costs)


def _block(name, block, params, shape):
    num_experts = params.condconv_num_experts if block.condconv else 0
    stride = block.strides[0]
    kind = 'MBConv'
    tally = _Tally(shape, params)
    if num_experts:
        kind = 'MBConv+CondConv'
        tally.routing(num_experts)
    if block.fused_conv:
        kind = 'fused MBConv'
        tally.conv(block.expanded_filters, block.kernel_size, stride)
    else:
        if block.expand_ratio != 1:
            tally.conv(block.expanded_filters, 1, num_experts=num_experts)
            tally.batch_norm()
            tally.activation()
        tally.depthwise_conv(block.kernel_size, stride, num_experts)
    tally.batch_norm()
    tally.activation()
    if params.use_se and block.se_ratio:
        tally.squeeze_excite(block.squeezed_filters)
    tally.conv(block.output_filters, 1, num_experts=num_experts)
    tally.batch_norm()
    if block.id_skip and block.strides == (1, 1) and tally.shape == shape:
        tally.add_residual()
    tally.keep_output()
    return Part(name, kind, block.kernel_size, stride, num_experts, shape, tally.shape, tally.costs)


def _head(params, shape):
    tally = _Tally(shape, params)
    tally.conv(params.head_filters, 1)
    tally.batch_norm()
    tally.activation()
    tally.classifier(params.num_classes)
    return Part('head', 'head', 1, 1, 0, shape, tally.shape, tally.costs)


def total(parts):
    return sum((part.costs for part in parts), collections.Counter())
