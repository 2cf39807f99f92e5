"""Reads TFRecord files: with tf.data for the model, record by record in Python for everything else.

A TFRecord file is a sequence of frames: the record's length (8 bytes), a checksum of the length,
the record, and a checksum of the record. Integers are little-endian. A checksum is a masked
CRC-32C (TensorFlow, core/lib/hash/crc32c.h).
"""
import ctypes
import functools
import struct

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python import _pywrap_tensorflow_internal

from common.files import read_error

INTERLEAVED_FILES = 16             # open at the same time
READ_BUFFER_BYTES = 1 << 20        # per open file
READ_AHEAD_RECORDS = 8             # per open file

_LENGTH_BYTES = 8
_CHECKSUM_BYTES = 4

_without_autograph = tf.autograph.experimental.do_not_convert


def shard(paths, rank, world_size):
    """Shards files among ranks: whole files as far as they divide evenly, the rest by record.

    Args:
        paths: list of str.
        rank, world_size: int.

    Returns:
        (paths, num_parts, parts): arrays of str, int64, int64. This rank reads records
        parts[i], parts[i] + num_parts[i], parts[i] + 2 * num_parts[i] ... of paths[i].
    """
    num_whole = len(paths) // world_size * world_size
    own = [(path, 1, 0) for path in paths[rank:num_whole:world_size]]
    # The first rank rotates with each leftover file, because that rank may get one extra record.
    own += [(path, world_size, (rank + i) % world_size)
            for i, path in enumerate(paths[num_whole:])]
    own_paths, num_parts, parts = zip(*own)
    return np.array(own_paths), np.array(num_parts, np.int64), np.array(parts, np.int64)


def read(files, skipped):
    """Reads several shards at a time.

    Args:
        files: tf.data.Dataset of (path, number of parts, part), see `shard`.
        skipped: dict, path -> indices of the records to skip. If it is not empty, unreadable
            records are skipped too, in all shards.

    Returns:
        tf.data.Dataset of string scalars, serialized records.
    """
    def read_file(path, num_parts, part):
        return tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES).shard(num_parts, part)

    def read_good_part(path, num_parts, part):
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        records = records.apply(tf.data.experimental.ignore_errors()).enumerate()
        is_skipped = tf.equal(path, list(skipped))
        # One row per shard, padded with -1, which is no index.
        length = max(map(len, skipped.values()))
        indices = np.array([values + (-1,) * (length - len(values)) for values in skipped.values()])
        indices = tf.reshape(tf.boolean_mask(indices, is_skipped), [-1])
        return records.shard(num_parts, part).filter(_without_autograph(
            lambda index, _: tf.reduce_all(tf.not_equal(index, indices)))).map(
                _without_autograph(lambda _, record: record))

    read_one = read_good_part if skipped else read_file
    # prefetch gives each file a thread. interleave's own num_parallel_calls usually crashes the
    # process in TensorFlow 1.15.5 when a session is closed while it reads.
    return files.interleave(
        _without_autograph(lambda *args: read_one(*args).prefetch(READ_AHEAD_RECORDS)),
        cycle_length=INTERLEAVED_FILES)


def iterate_records(path):
    """Yields the records of a TFRecord file, and for a corrupt one what is wrong with it.

    Args:
        path: str, anything that tf.io.gfile opens.

    Yields:
        (record, None), bytes and None; or (None, reason) for a record that cannot be read. Such a
        record is skipped if only its content is corrupt, and is the last one in all other cases:
        its length is corrupt, or the file ends too early.

    Raises:
        UserError: the file system reports an error, which says nothing about the records.
    """
    try:
        with tf.io.gfile.GFile(path, 'rb') as file:
            yield from _scan(file)
    except tf.errors.OpError as error:
        raise read_error(path, error) from error


def _scan(file):
    num_left = file.size()
    while num_left > 0:
        header = file.read(_LENGTH_BYTES + _CHECKSUM_BYTES)
        length = int.from_bytes(header[:_LENGTH_BYTES], 'little')
        if header[_LENGTH_BYTES:] != _checksum(header[:_LENGTH_BYTES]):
            yield None, 'the shard cannot be read from here on'
            return
        num_left -= len(header) + length + _CHECKSUM_BYTES
        # TensorFlow's readers trust such a length; 2^40 ends the process with std::bad_alloc.
        if num_left < 0:
            yield None, 'the shard ends in the middle of this record'
            return
        record = file.read(length)
        if file.read(_CHECKSUM_BYTES) == _checksum(record):
            yield record, None
        else:
            yield None, 'its checksum is wrong'


def _checksum(data):
    crc = _crc32c_extend()(0, data, len(data))
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff)


@functools.lru_cache(maxsize=None)
def _crc32c_extend():
    """TensorFlow's own `crc32c::Extend(crc, data, size)`: 17 us for 110 kB.

    Python does not wrap it; the shared library of TensorFlow 1.15 exports it.
    """
    extend = ctypes.CDLL(_pywrap_tensorflow_internal.__file__)._ZN10tensorflow6crc32c6ExtendEjPKcm
    extend.argtypes = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    extend.restype = ctypes.c_uint32
    return extend
