"""Maps the variables of this program to PyTorch's tensors: names, shapes and layouts.

The map is derived from the blocks of `efficientnet_builder`. Two PyTorch implementations have
Google's weights: timm; and efficientnet-pytorch with efficientnet-lite-pytorch, here called the
port. Their layouts are equal, their names differ.
"""
from typing import NamedTuple
from typing import Tuple

import numpy as np

import efficientnet_builder

TIMM, PORT = STYLES = 'timm', 'port'
# Counter of PyTorch's batch norm, not used at inference.
COUNTER = 'num_batches_tracked'
# The convolutions of a block, in order.
_EXPANSION, _DEPTHWISE, _PROJECTION = _ROLES = 'expand', 'depthwise', 'project'

_BATCH_NORM = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean',
               'running_var': 'moving_variance'}
# Layers outside the blocks: our name -> name in each style.
_OUTER = {'stem/conv2d': ('conv_stem', '_conv_stem'),
          'stem/tpu_batch_normalization': ('bn1', '_bn0'),
          'head/conv2d': ('conv_head', '_conv_head'),
          'head/tpu_batch_normalization': ('bn2', '_bn1'),
          'head/dense': ('classifier', '_fc')}
_SQUEEZE_EXCITE = {'se/conv2d': ('se.conv_reduce', '_se_reduce'),
                   'se/conv2d_1': ('se.conv_expand', '_se_expand')}


class Tensor(NamedTuple):
    """A variable of this program and the corresponding tensor of PyTorch.

    Attributes:
      ours: name of the variable, relative to the network's scope.
      theirs: PyTorch's name.
      dims: shape of PyTorch's tensor, for expert kernels before flattening.
      axes: for each axis of the variable, PyTorch's axis.
      is_matrix: whether both programs store the experts as rows of a matrix.
    """
    ours: str
    theirs: str
    dims: Tuple[int, ...]
    axes: Tuple[int, ...]
    is_matrix: bool = False

    @property
    def our_shape(self):
        return self._stored([self.dims[axis] for axis in self.axes])

    @property
    def their_shape(self):
        return self._stored(self.dims)

    def _stored(self, dims):
        return (dims[0], int(np.prod(dims[1:]))) if self.is_matrix else tuple(dims)

    def to_ours(self, tensor):
        return np.ascontiguousarray(
            tensor.reshape(self.dims).transpose(self.axes)).reshape(self.our_shape)

    def to_theirs(self, variable):
        dims = [self.dims[axis] for axis in self.axes]
        return np.ascontiguousarray(
            variable.reshape(dims).transpose(np.argsort(self.axes))).reshape(self.their_shape)


def tensors(model_name, num_classes, style=TIMM):
    """Returns a list with the `Tensor` of every variable of a network."""
    params = efficientnet_builder.get_model_params(model_name)
    index = STYLES.index(style)
    rows = _outer('stem', (params.stem_filters, 3, 3, 3), index)
    number, num_condconv, num_inputs = 0, 0, params.stem_filters
    for stage, blocks in enumerate(params.stages):
        for place, block in enumerate(blocks):
            prefix = (f'blocks.{stage}.{place}.', f'_blocks.{number}.')[index]
            experts = params.condconv_num_experts if block.condconv else 0
            rows += [row._replace(theirs=prefix + row.theirs)
                     for row in _block(block, f'blocks_{number}', num_inputs, experts,
                                       num_condconv, params.use_se, index)]
            number, num_condconv = number + 1, num_condconv + block.condconv
            num_inputs = block.output_filters
    head = params.head_filters
    return rows + _outer('head', (head, num_inputs, 1, 1), index) + _dense(
        'head/dense', _OUTER['head/dense'][index], (num_classes, head))


def _outer(scope, dims, index):
    convolution, norm = f'{scope}/conv2d', f'{scope}/tpu_batch_normalization'
    return [_kernel(f'{convolution}/kernel', _OUTER[convolution][index], dims),
            *_batch_norm(norm, _OUTER[norm][index], dims[0])]


def _block(block, scope, num_inputs, num_experts, num_condconv, uses_se, index):
    """Returns the list of `Tensor` of a block, with PyTorch's names relative to the block.

    Args:
      block: `BlockArgs`.
      scope: our name of the block.
      num_inputs: input channels; in the first block they are those of the stem, not of `block`.
      num_experts: number of experts, 0 for a block without CondConv.
      num_condconv: number of CondConv blocks before this one.
      uses_se: whether the network has squeeze-excite.
      index: index of the style in STYLES.
    """
    rows, num_plain = [], 0
    for number, (role, dims) in enumerate(_convolutions(block, num_inputs)):
        if role == _DEPTHWISE:
            ours = _numbered('depthwise_cond_conv2d', num_condconv) if num_experts else (
                'depthwise_conv2d')
        else:
            ours = (f'cond_conv2d_{3 * num_condconv + 1 + num_plain}' if num_experts else
                    _numbered('conv2d', num_plain))
            num_plain += 1
        leaf = ('depthwise_' if role == _DEPTHWISE else '') + (
            'condconv_kernel' if num_experts else 'kernel')
        name = f"{'model/' if num_experts else ''}{scope}/{ours}/{leaf}"
        rows.append(_kernel(name, _convolution_name(block, role, index), dims, num_experts))
        norm = (f'bn{number + 1}', f'_bn{_ROLES.index(role)}')[index]
        rows += _batch_norm(_numbered(f'{scope}/tpu_batch_normalization', number), norm, dims[0])
    if num_experts:
        rows += _dense(f'{scope}/dense', 'routing_fn', (num_experts, num_inputs))
    if uses_se and block.se_ratio:
        wide, narrow = _num_expanded(block, num_inputs), block.squeezed_filters
        for layer, dims in (('se/conv2d', (narrow, wide, 1, 1)),
                            ('se/conv2d_1', (wide, narrow, 1, 1))):
            theirs = _SQUEEZE_EXCITE[layer][index]
            rows += [_kernel(f'{scope}/{layer}/kernel', theirs, dims),
                     Tensor(f'{scope}/{layer}/bias', f'{theirs}.bias', dims[:1], (0,))]
    return rows


def _num_expanded(block, num_inputs):
    return num_inputs if block.expand_ratio == 1 else block.expanded_filters


def _convolutions(block, num_inputs):
    """Yields (role, shape of PyTorch's kernel) of each convolution of a block, in order."""
    size, wide = block.kernel_size, _num_expanded(block, num_inputs)
    if block.fused_conv:
        yield _EXPANSION, (wide, num_inputs, size, size)
    else:
        if block.expand_ratio != 1:
            yield _EXPANSION, (wide, num_inputs, 1, 1)
        yield _DEPTHWISE, (wide, 1, size, size)
    yield _PROJECTION, (block.output_filters, wide, 1, 1)


def _convolution_name(block, role, index):
    # In blocks without expansion, timm's conv_pw is the projection.
    timm = {_EXPANSION: 'conv_exp' if block.fused_conv else 'conv_pw', _DEPTHWISE: 'conv_dw',
            _PROJECTION: 'conv_pw' if block.expand_ratio == 1 else 'conv_pwl'}
    return (timm[role], f'_{role}_conv')[index]


def _kernel(ours, theirs, dims, num_experts=0):
    is_depthwise = 'depthwise' in ours
    axes = (2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0)
    if num_experts:
        dims, axes = (num_experts, *dims), (0, *(axis + 1 for axis in axes))
    return Tensor(ours, f'{theirs}.weight', dims, axes, is_matrix=num_experts > 0)


def _dense(ours, theirs, dims):
    return [Tensor(f'{ours}/kernel', f'{theirs}.weight', dims, (1, 0)),
            Tensor(f'{ours}/bias', f'{theirs}.bias', dims[:1], (0,))]


def _batch_norm(ours, theirs, size):
    return [Tensor(f'{ours}/{name}', f'{theirs}.{leaf}', (size,), (0,))
            for leaf, name in _BATCH_NORM.items()]


def _numbered(name, number):
    return f'{name}_{number}' if number else name
