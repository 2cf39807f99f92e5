"""Reads and writes .safetensors files, which contain names, shapes and numbers but no code.

A file consists of the length of its header (8 bytes); the header, a JSON object of tensor name ->
type, shape and byte range; and the tensors, little-endian and without gaps.
Source: https://huggingface.co/docs/safetensors#format
"""
import json
import os

import numpy as np

from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.files import whole_file

BFLOAT16 = 'BF16'
# Type name -> NumPy type. NumPy has no bfloat16, the upper half of a float32 number.
DTYPES = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), BFLOAT16: np.dtype('<u2'),
          'I64': np.dtype('<i8')}
_METADATA = '__metadata__'
_LENGTH_BYTES = 8
# Limit of the safetensors package. The header of our largest network has 0.2 MB.
_MAX_HEADER_BYTES = 100_000_000


def read(path):
    """Reads the tensors and the metadata of a file.

    Returns:
      (dict of tensor name -> array, float32 or int64; dict of metadata, str -> str).

    Raises:
      UserError: the file is truncated, not a .safetensors file, or has types outside `DTYPES`.
    """
    with open(path, 'rb') as file:
        try:
            metadata, places, start = _read_header(file, os.path.getsize(path))
            tensors = {}
            for name, (kind, shape, offset, size) in places.items():
                file.seek(start + offset)
                tensors[name] = as_array(file.read(size), kind).reshape(shape)
            return tensors, metadata
        except ValueError as error:
            raise UserError(f'{path}: not a readable .safetensors file ({first_line(error)}); '
                            'download it again or name another one.') from error


def as_array(content, kind):
    """Converts bytes of a type in `DTYPES` to an array [n], float32 or int64."""
    values = np.frombuffer(content, DTYPES[kind])
    if kind == BFLOAT16:
        return (values.astype('<u4') << 16).view('<f4')
    return values if kind == 'I64' else values.astype(np.float32, copy=False)


def _read_header(file, file_size):
    """Returns (metadata, name -> (type, shape, offset, size in bytes), position of offset 0)."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), 'little')
    num_bytes = file_size - _LENGTH_BYTES - length
    if num_bytes < 0 or length > _MAX_HEADER_BYTES:
        raise ValueError(f'header of {length} bytes in a file of {file_size} bytes')
    header = json_files.value_of(file.read(length))
    json_files.check_fields(header, {_METADATA: json_files.optional(json_files.TEXT_OF_KEY)})
    metadata = header.pop(_METADATA, None) or {}
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, offset, size) in sorted(places.items(), key=lambda item: item[1][2:]):
        if offset != end:
            raise ValueError(f'tensor {name} begins at byte {offset}, but the previous tensor ends '
                             f'at byte {end}')
        end += size
    if end != num_bytes:
        raise ValueError(f'tensors have {end} bytes, but the file contains {num_bytes}')
    return metadata, places, _LENGTH_BYTES + length


def _place(name, entry):
    """Returns (type, shape, offset, size in bytes) of an entry of the header."""
    if not isinstance(entry, dict):
        raise ValueError(f'the header entry of tensor {name} is not an object')
    kind, shape, offsets = (entry.get(key) for key in ('dtype', 'shape', 'data_offsets'))
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"tensor {name} has type {kind}; supported types are {', '.join(DTYPES)}")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise ValueError(f'tensor {name} has an invalid shape {shape} or byte range {offsets}')
    size = DTYPES[kind].itemsize
    for side in shape:
        size *= side
    if offsets[1] - offsets[0] != size:
        raise ValueError(f'the size of tensor {name} contradicts its shape')
    return kind, shape, offsets[0], size


def _are_sizes(values):
    return isinstance(values, list) and all(map(json_files.is_integer, values))


def write(path, tensors, metadata):
    """Writes a file atomically.

    Args:
      path: str, local or remote.
      tensors: dict of name -> array, float32 or int64.
      metadata: dict of str -> str.
    """
    kinds = {np.dtype(np.float32): 'F32', np.dtype(np.int64): 'I64'}
    # Like the safetensors package, writes larger types first, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, offset = {_METADATA: metadata}, 0
    for name in names:
        tensor = tensors[name]
        header[name] = {'dtype': kinds[tensor.dtype], 'shape': list(tensor.shape),
                        'data_offsets': [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % _LENGTH_BYTES)
    with whole_file(path, 'wb') as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, 'little') + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
