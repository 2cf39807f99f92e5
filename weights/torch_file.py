"""Reads the tensors of a PyTorch file (.pth) without PyTorch and without executing its code.

A file consists of a pickle of names and shapes, and of raw numbers. Since PyTorch 1.6 it is a zip
archive of `data.pkl` and one file per storage; before, the numbers followed the pickle.
"""
import collections
import os
import pickle
import zipfile

import numpy as np

from common.errors import UserError
from common.errors import first_line
from weights import safetensors_file

_MAGIC = 0x1950a86a20f9469cfc6c
_PROTOCOL = 1001
# Storage classes that a pickle may name -> `safetensors_file.DTYPES`.
_STORAGES = {'FloatStorage': 'F32', 'HalfStorage': 'F16',
             'BFloat16Storage': safetensors_file.BFLOAT16, 'LongStorage': 'I64'}


class _Stateless:
    """Base class of objects whose attributes a pickle cannot set."""
    __slots__ = ()

    def __setstate__(self, state):
        raise pickle.UnpicklingError('a tensor has a state')


class _Storage(_Stateless):
    """The numbers of one or more tensors; they are read after the whole pickle."""
    __slots__ = ('kind', 'size', 'values')

    def __init__(self, kind, size):
        if not isinstance(kind, str) or type(size) is not int or size < 0:
            raise pickle.UnpicklingError('a storage has an unknown type')
        self.kind, self.size, self.values = kind, size, None

    @property
    def num_bytes(self):
        return self.size * safetensors_file.DTYPES[self.kind].itemsize

    def fill(self, content):
        if len(content) != self.num_bytes:
            raise ValueError('a storage is truncated')
        self.values = safetensors_file.as_array(content, self.kind)


class _Tensor(_Stateless):
    """The description of a tensor in a pickle: a view of a storage."""
    __slots__ = ('storage', 'offset', 'shape', 'strides')

    def __init__(self, storage, offset, shape, strides, *_):
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or not all(
                type(number) is int and number >= 0 for number in numbers):
            raise pickle.UnpicklingError('the description of a tensor is malformed')
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self):
        """Returns the tensor as an array, a view of its storage; strides are in elements."""
        values = self.storage.values
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides))
        # as_strided does not check bounds.
        if last >= values.size:
            raise ValueError(f'a tensor of shape {tuple(self.shape)} exceeds its storage')
        return np.lib.stride_tricks.as_strided(
            values[self.offset:], self.shape,
            [stride * values.itemsize for stride in self.strides], writeable=False)


def _parameter(tensor, *_):
    return tensor


class _WeightsUnpickler(pickle._Unpickler):
    """Builds tensors, dicts and plain values, and rejects everything else.

    A pickle can call any function it names; here only those that create a dict or a tensor. The
    unpickler in Python (3.7) keeps its memo in a dict. The one in C would allocate as much memory
    as an index in the file demands.
    """

    def __init__(self, file, max_bytes):
        super().__init__(file)
        self.storages = {}
        self._bytes_left = max_bytes

    def find_class(self, module, name):
        found = {('collections', 'OrderedDict'): collections.OrderedDict,
                 ('torch._utils', '_rebuild_tensor_v2'): _Tensor,
                 ('torch._utils', '_rebuild_parameter'): _parameter}.get((module, name))
        if module == 'torch' and name in _STORAGES:
            return _STORAGES[name]
        if found is None:
            raise pickle.UnpicklingError(
                f'it contains {module}.{name}, which is not a tensor; nothing was executed')
        return found

    def persistent_load(self, pid):
        _, kind, key, _, size, *_ = pid
        if key not in self.storages:
            storage = self.storages[key] = _Storage(kind, size)
            self._bytes_left -= storage.num_bytes
            if self._bytes_left < 0:
                raise pickle.UnpicklingError('its storages are larger than the file')
        return self.storages[key]


def read(path):
    """Reads the object saved in a file.

    Returns:
      the saved object, usually a dict. Tensors are arrays, float32 or int64; dicts, lists and plain
      values are unchanged.

    Raises:
      UserError: the file is truncated, not a PyTorch file, or contains more than tensors.
    """
    with open(path, 'rb') as file:
        try:
            form = _read_zip if zipfile.is_zipfile(file) else _read_old
            file.seek(0)
            return _with_arrays(form(file, os.path.getsize(path)))
        except Exception as error:  # A malformed pickle can raise any exception.
            raise UserError(f'{path}: not a readable torch file of tensors ({first_line(error)}); '
                            'download it again, or save its state_dict again.') from error


def _read_zip(file, file_size):
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.split('/')[1:] == ['data.pkl']]
        if len(pickles) != 1:
            raise ValueError('it contains no data.pkl')
        folder = pickles[0][:-len('data.pkl')]
        if archive.getinfo(pickles[0]).file_size > file_size:
            raise ValueError('its data.pkl is larger than the file')
        with archive.open(pickles[0]) as pickled:
            unpickler = _WeightsUnpickler(pickled, file_size)
            saved = unpickler.load()
        for key, storage in unpickler.storages.items():
            member = f'{folder}data/{key}'
            if archive.getinfo(member).file_size != storage.num_bytes:
                raise ValueError(f'the size of {member} contradicts its tensors')
            storage.fill(archive.read(member))
    return saved


def _read_old(file, file_size):
    magic, protocol, system = (_WeightsUnpickler(file, 0).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system['little_endian']:
        raise ValueError('neither a zip archive nor a file of PyTorch before 1.6')
    unpickler = _WeightsUnpickler(file, file_size)
    saved = unpickler.load()
    for key in _WeightsUnpickler(file, 0).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), 'little') != storage.size:
            raise ValueError(f'the size of storage {key} contradicts its tensors')
        storage.fill(file.read(storage.num_bytes))
    if any(storage.values is None for storage in unpickler.storages.values()):
        raise ValueError('a storage is missing')
    return saved


def _with_arrays(saved):
    """Returns `saved` with each tensor replaced by an array."""
    if isinstance(saved, _Tensor):
        return saved.array()
    if isinstance(saved, dict):
        return {key: _with_arrays(value) for key, value in saved.items()}
    if isinstance(saved, list):
        return [_with_arrays(value) for value in saved]
    return saved
