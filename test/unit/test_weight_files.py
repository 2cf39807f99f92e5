"""Files of weights are read to the last bit, or refused in one sentence; no code in them runs."""
import collections
import io
import itertools
import json
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from common.errors import UserError
from weights import safetensors_file
from weights import torch_file

TENSORS = {'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
           'a.num_batches_tracked': np.array(7, np.int64), 'b': np.zeros([0, 4], np.float32)}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape


# .safetensors ------------------------------------------------------------------------------------

def test_the_safetensors_package_reads_what_is_written_and_writes_what_is_read(tmp_path):
    path = str(tmp_path / 'x.safetensors')
    safetensors_file.write(path, TENSORS, {'format': 'pt'})
    assert_equal(safetensors_numpy.load_file(path), TENSORS)
    written = open(path, 'rb').read()
    safetensors_numpy.save_file(TENSORS, path, {'format': 'pt'})
    assert open(path, 'rb').read() == written
    half = {**TENSORS, 'half': np.float16([0.5, -3])}
    safetensors_numpy.save_file(half, path, {'key': 'value'})
    tensors, metadata = safetensors_file.read(path)
    assert_equal(tensors, {**half, 'half': np.float32([0.5, -3])})
    assert metadata == {'key': 'value'}


def safetensors_bytes(header, content=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, 'little') + text + content


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.float32([1.5, -2, 0.0078125])
    content = (values.view('<u4') >> 16).astype('<u2').tobytes()
    path = tmp_path / 'x.safetensors'
    path.write_bytes(safetensors_bytes(
        {'x': {'dtype': 'BF16', 'shape': [3], 'data_offsets': [0, 6]}}, content))
    assert_equal(safetensors_file.read(str(path))[0], {'x': values})


def entry(dtype='F32', shape=(2,), data_offsets=(0, 8)):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': data_offsets}


@pytest.mark.parametrize('content', [
    b'', b'\0' * 7, safetensors_bytes({}, length=2 ** 60),
    safetensors_bytes({}, length=2 ** 64 - 1), safetensors_bytes(b'[' * 100000),
    safetensors_bytes(b'\xff\xfe'), safetensors_bytes([1]),
    safetensors_bytes(b'{"x": 1}'), safetensors_bytes({'__metadata__': {'a': 1}}),
    safetensors_bytes({'x': entry()}, b'\0' * 7), safetensors_bytes({'x': entry()}, b'\0' * 9),
    safetensors_bytes({'x': entry(dtype='F64')}, b'\0' * 8),
    safetensors_bytes({'x': entry(dtype=[])}, b'\0' * 8),
    safetensors_bytes({'x': entry(shape=[2 ** 62])}, b'\0' * 8),
    safetensors_bytes({'x': entry(shape=[-2])}, b'\0' * 8),
    safetensors_bytes({'x': entry(shape=[2.0])}, b'\0' * 8),
    safetensors_bytes({'x': entry(shape=[True, 2])}, b'\0' * 8),
    safetensors_bytes({'x': entry(data_offsets=[8, 0])}, b'\0' * 8),
    safetensors_bytes({'x': entry(), 'y': entry()}, b'\0' * 8),
    safetensors_bytes({'x': entry(), 'y': entry(data_offsets=[12, 20])}, b'\0' * 20),
    safetensors_bytes(b'{"x": %s, "x": %s}' % (2 * (json.dumps(entry()).encode(),)), b'\0' * 8)],
    ids=itertools.count())
def test_a_damaged_safetensors_file_is_one_sentence(tmp_path, content):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'x\.safetensors: not a readable .* download it again'):
        safetensors_file.read(str(path))


def test_a_safetensors_file_is_refused_wherever_it_is_cut(tmp_path):
    path = tmp_path / 'x.safetensors'
    safetensors_file.write(str(path), TENSORS, {})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(UserError):
            safetensors_file.read(str(path))


# .pth --------------------------------------------------------------------------------------------

class TorchPickler(pickle.Pickler):
    """Writes arrays as torch writes tensors; keeps their storages."""

    def __init__(self, file, is_old):
        super().__init__(file, protocol=2)
        self.is_old, self.storages = is_old, {}

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.storages.setdefault(value.key, value)
        return ('storage', value.kind, value.key, 'cpu', value.size) + (None,) * self.is_old


class Storage:
    """A stretch of numbers."""

    def __init__(self, key, kind, content, size):
        self.key, self.kind, self.content, self.size = key, kind, content, size


class Saved:
    """A tensor, as a pickle has it."""

    def __init__(self, storage, shape, strides, offset=0):
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules['torch._utils']._rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch_names(monkeypatch):
    """Modules of torch's names, which pickles refer to."""
    torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
    for name in ('FloatStorage', 'HalfStorage', 'BFloat16Storage', 'LongStorage', 'IntStorage'):
        setattr(torch, name, type(name, (), {'__module__': 'torch'}))

    def _rebuild_tensor_v2():
        pass

    def _rebuild_parameter():
        pass

    for function in (_rebuild_tensor_v2, _rebuild_parameter):
        function.__module__, function.__qualname__ = 'torch._utils', function.__name__
        setattr(utils, function.__name__, function)
    monkeypatch.setitem(sys.modules, 'torch', torch)
    monkeypatch.setitem(sys.modules, 'torch._utils', utils)
    return torch, utils


def torch_bytes(value, is_old):
    """A torch file of `value`, in the form of before version 1.6 or the zip archive since."""
    file = io.BytesIO()
    if is_old:
        for each in (0x1950a86a20f9469cfc6c, 1001, {'little_endian': True, 'type_sizes': {}}):
            pickle.dump(each, file, protocol=2)
    pickled = file if is_old else io.BytesIO()
    pickler = TorchPickler(pickled, is_old)
    pickler.dump(value)
    if is_old:
        pickle.dump(sorted(pickler.storages), file, protocol=2)
        for _, storage in sorted(pickler.storages.items()):
            file.write((storage.size % 2 ** 64).to_bytes(8, 'little') + storage.content)
        return file.getvalue()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('x/data.pkl', pickled.getvalue())
        for key, storage in pickler.storages.items():
            archive.writestr(f'x/data/{key}', storage.content)
    return file.getvalue()


def some_tensors(torch, utils):
    """(what is saved, what is read) of tensors of every kind: views, parameters, all types."""
    numbers = np.arange(6, dtype=np.float32)
    floats = Storage('0', torch.FloatStorage, numbers.tobytes(), 6)
    halfs = Storage('1', torch.HalfStorage, np.float16([1, 2]).tobytes(), 2)
    longs = Storage('2', torch.LongStorage, np.int64([5]).tobytes(), 1)
    brains = Storage('3', torch.BFloat16Storage, b'\x80\x3f\x00\xc0', 2)

    class Parameter:
        def __reduce__(self):
            return utils._rebuild_parameter, (Saved(floats, (6,), (1,)), True,
                                              collections.OrderedDict())

    saved = collections.OrderedDict(
        transposed=Saved(floats, (3, 2), (1, 3)), part=Saved(floats, (2,), (1,), 4),
        empty=Saved(floats, (0, 3), (3, 1)), half=Saved(halfs, (2,), (1,)),
        counter=Saved(longs, (), ()), brain=Saved(brains, (2,), (1,)), parameter=Parameter())
    saved._metadata = {'': {'version': 1}}
    return {'epoch': 3, 'state_dict': saved}, dict(
        transposed=numbers.reshape(2, 3).T, part=numbers[4:], empty=np.zeros([0, 3], np.float32),
        half=np.float32([1, 2]), counter=np.array(5), brain=np.float32([1, -2]),
        parameter=numbers)


@pytest.mark.parametrize('is_old', [True, False])
def test_both_forms_of_torch_files_are_read(tmp_path, torch_names, is_old):
    saved, expected = some_tensors(*torch_names)
    path = tmp_path / 'x.pth'
    content = torch_bytes(saved, is_old)
    path.write_bytes(content)
    read = torch_file.read(str(path))
    assert read['epoch'] == 3
    assert_equal(read['state_dict'], expected)
    for size in range(0, len(content) - 1, 97):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match='x.pth: not a readable torch file'):
            torch_file.read(str(path))


class Called:
    """Calls something when it is unpickled."""

    def __init__(self, function, *arguments):
        self._reduced = function, arguments

    def __reduce__(self):
        return self._reduced


@pytest.mark.parametrize('is_old', [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_runs_nothing(tmp_path, torch_names, is_old):
    path, witness = tmp_path / 'x.pth', tmp_path / 'witness'
    for intruder in (Called(open, str(witness), 'w'), Called(getattr, 'a', 'upper'),
                     Called(types.SimpleNamespace), Called(collections.defaultdict, list),
                     [Called(open, str(witness), 'w')], torch_names[0].IntStorage, np.float32(1)):
        path.write_bytes(torch_bytes({'state_dict': {'x': intruder}}, is_old))
        with pytest.raises(UserError, match='x.pth: .* is not a tensor; nothing was executed'):
            torch_file.read(str(path))
    assert not witness.exists()


class Stateful(Saved):
    """A tensor whose state is set after it is made."""

    def __reduce__(self):
        return (*super().__reduce__(), (None, {'shape': (1000000,)}))


@pytest.mark.parametrize('is_old', [True, False])
def test_a_tensor_outside_its_storage_is_refused(tmp_path, torch_names, is_old):
    torch, _ = torch_names
    path = tmp_path / 'x.pth'
    six = Storage('0', torch.FloatStorage, b'\0' * 24, 6)
    for tensor in (Saved(six, (2, 2), (1, 4), 2), Saved(six, (2, 2), (-1, 1), 3),
                   Saved(six, (2,), (1,), -1), Saved(six, (2, 2), (1,)), Saved(six, (2.0,), (1,)),
                   Saved(six, (7,), (1,)), Saved('six', (1,), (1,)), Stateful(six, (6,), (1,)),
                   Saved(Storage('0', torch.FloatStorage, b'\0' * 24, 7), (6,), (1,)),
                   Saved(Storage('0', torch.FloatStorage, b'\0' * 24, 2 ** 60), (6,), (1,)),
                   Saved(Storage('0', 'F32', b'\0' * 24, -1), (6,), (1,))):
        path.write_bytes(torch_bytes({'x': tensor}, is_old))
        with pytest.raises(UserError, match='x.pth: not a readable torch file'):
            torch_file.read(str(path))


def write_pickle(path, pickled):
    with zipfile.ZipFile(str(path), 'w') as archive:
        archive.writestr('x/data.pkl', pickled)


def test_a_pickle_that_asks_for_memory_gets_none(tmp_path):
    path = tmp_path / 'x.pth'
    # None goes into slot 2^32 - 1 of the memo, for which the unpickler in C allocates 64 GB.
    write_pickle(path, b'\x80\x02Nr\xff\xff\xff\xff.')
    assert torch_file.read(str(path)) is None
    # A string of 2^63 bytes; a list that holds itself; lists in lists.
    for pickled in (b'\x80\x04\x8e' + b'\xff' * 7 + b'\x7f', b'\x80\x02]q\x00h\x00a.',
                    b'\x80\x02' + b']' * 5000 + b'a' * 4999 + b'.'):
        write_pickle(path, pickled)
        with pytest.raises(UserError, match='x.pth: not a readable torch file'):
            torch_file.read(str(path))
