"""Reads TFRecord files: with tf.data for models, record by record in Python for everything else.

A TFRecord file is a sequence of frames: the record's length (8 bytes), a checksum of the length,
the record, and a checksum of the record. Integers are little-endian. A checksum is a masked
CRC-32C (TensorFlow, core/lib/hash/crc32c.h). The whole file may be compressed.
"""
import ctypes
import functools
import itertools
import struct
from typing import NamedTuple
from typing import Optional
from typing import Tuple
import zlib

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python import _pywrap_tensorflow_internal

from common.files import read_error

INTERLEAVED_FILES = 16             # files open at the same time
READ_BUFFER_BYTES = 1 << 20        # per open file
FILE_AHEAD_RECORDS = 8             # per open file
READ_AHEAD_MB = 16                 # for all files together
MEASURED_RECORDS = 64              # first records, for `mean_record_bytes`

# TensorFlow's readers trust a record's length, and a corrupt one (2^40) aborts the process.
LARGEST_RECORD_BYTES = 1 << 29

# Compressions, by TensorFlow's names.
NONE, GZIP, ZLIB = '', 'GZIP', 'ZLIB'
_GZIP_SIGNATURE = b'\x1f\x8b'
_WINDOW_BITS = {GZIP: 16 + zlib.MAX_WBITS, ZLIB: zlib.MAX_WBITS}

_ALL = np.int64(2 ** 63 - 1)       # records

_LENGTH_BYTES = 8
_CHECKSUM_BYTES = 4
_HEADER_BYTES = _LENGTH_BYTES + _CHECKSUM_BYTES

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


class Skip(NamedTuple):
    """Records of a shard that are not read.

    Attributes:
        indices: of records that are skipped.
        end: index from which on nothing is read; None to read to the end.
    """
    indices: Tuple[int, ...]
    end: Optional[int]


def mean_record_bytes(paths, compression=NONE):
    """Returns the mean size of the first records of the shards in bytes, a float >= 1."""
    records = itertools.chain.from_iterable(iterate_records(path, compression) for path in paths)
    sizes = [len(record) for record, _ in itertools.islice(records, MEASURED_RECORDS)
             if record is not None]
    return max(1.0, sum(sizes) / max(1, len(sizes)))


def read(files, skipped, compression=NONE, ahead_records=0):
    """Returns a dataset that interleaves several shards, in an order that only `files` determines.

    Args:
        files: tf.data.Dataset of (path, number of parts, part), see `shard`.
        skipped: dict, path -> `Skip`. If it is not empty, unreadable records of all shards are
            skipped too.
        compression: str, NONE, GZIP or ZLIB.
        ahead_records: int, records to prefetch, in addition to FILE_AHEAD_RECORDS of each file.

    Returns:
        tf.data.Dataset of string scalars, serialized records.
    """
    def records_of(path):
        return tf.data.TFRecordDataset(
            path, compression_type=compression or None, buffer_size=READ_BUFFER_BYTES)

    def read_file(path, num_parts, part):
        return records_of(path).shard(num_parts, part)

    def read_good_part(path, num_parts, part):
        is_skipped = tf.equal(path, list(skipped))
        # take() stops before a record whose length is corrupt, which would abort the process.
        ends = np.array([_ALL if skip.end is None else skip.end for skip in skipped.values()])
        end = tf.reduce_min(tf.concat([tf.boolean_mask(ends, is_skipped), [_ALL]], axis=0))
        records = records_of(path).take(end)
        records = records.apply(tf.data.experimental.ignore_errors()).enumerate()
        # One row per shard, padded with -1, which matches no index.
        length = max(len(skip.indices) for skip in skipped.values())
        indices = np.array([skip.indices + (-1,) * (length - len(skip.indices))
                            for skip in skipped.values()])
        indices = tf.reshape(tf.boolean_mask(indices, is_skipped), [-1])
        return records.shard(num_parts, part).filter(_without_autograph(
            lambda index, _: tf.reduce_all(tf.not_equal(index, indices)))).map(
                _without_autograph(lambda _, record: record))

    read_one = read_good_part if skipped else read_file
    # prefetch gives each file a thread. interleave's own num_parallel_calls usually crashes the
    # process in TensorFlow 1.15.5 when a session is closed while it reads.
    records = files.interleave(
        _without_autograph(lambda *args: read_one(*args).prefetch(FILE_AHEAD_RECORDS)),
        cycle_length=INTERLEAVED_FILES)
    # interleave opens the next file only when its turn comes. Prefetched records hide the delay.
    return records.prefetch(ahead_records) if ahead_records else records


def detect_compression(path):
    """Returns NONE, GZIP or ZLIB by the first bytes of a file; NONE if it cannot be read."""
    try:
        with tf.io.gfile.GFile(path, 'rb') as file:
            header = file.read(_HEADER_BYTES)
    except tf.errors.OpError:
        return NONE
    if header[_LENGTH_BYTES:] == _checksum(header[:_LENGTH_BYTES]):
        return NONE
    if header.startswith(_GZIP_SIGNATURE):
        return GZIP
    # RFC 1950, section 2.2: method 8 (deflate), and the header is a multiple of 31.
    is_zlib = header[:1] and header[0] & 15 == 8 and int.from_bytes(header[:2], 'big') % 31 == 0
    return ZLIB if is_zlib else NONE


def iterate_records(path, compression=None):
    """Yields the records of a TFRecord file, and the reason for each one that cannot be read.

    Args:
        path: str, local or remote.
        compression: str, NONE, GZIP or ZLIB; None to detect it.

    Yields:
        (record, None), bytes and None; or (None, reason) for an unreadable record. Reading goes on
        after a record whose content is corrupt, and ends at one whose length is corrupt or where
        the file is truncated.

    Raises:
        UserError: the file system reports an error; the records may be intact.
    """
    if compression is None:
        compression = detect_compression(path)
    try:
        with tf.io.gfile.GFile(path, 'rb') as file:
            if compression:
                yield from _scan(_Inflated(file, compression), None)
            else:
                yield from _scan(file, file.size())
    except zlib.error as error:
        yield None, f'the shard cannot be decompressed beyond this record ({error})'
    except tf.errors.OpError as error:
        raise read_error(path, error) from error


def _scan(file, num_left):
    """Yields what `iterate_records` does; num_left is the file's size in bytes, None if unknown."""
    while num_left is None or num_left > 0:
        header = file.read(_HEADER_BYTES)
        if num_left is None and not header:
            return
        length = int.from_bytes(header[:_LENGTH_BYTES], 'little')
        if header[_LENGTH_BYTES:] != _checksum(header[:_LENGTH_BYTES]):
            yield None, 'its header is corrupt or truncated, so the rest of the shard is unreadable'
            return
        if num_left is not None:
            num_left -= _HEADER_BYTES + length + _CHECKSUM_BYTES
            if num_left < 0:
                yield None, 'the shard is truncated within this record'
                return
        if length > LARGEST_RECORD_BYTES:
            yield None, f'its length of {length} bytes is above the limit of {LARGEST_RECORD_BYTES}'
            return
        record = file.read(length)
        checksum = file.read(_CHECKSUM_BYTES)
        if len(checksum) < _CHECKSUM_BYTES:
            yield None, 'the shard is truncated within this record'
            return
        if checksum == _checksum(record):
            yield record, None
        else:
            yield None, 'its checksum is wrong'


class _Inflated:
    """Decompresses a file incrementally, so that memory does not grow with its size."""

    def __init__(self, file, compression):
        self._file = file
        self._decoder = zlib.decompressobj(_WINDOW_BITS[compression])

    def read(self, size):
        """Returns `size` bytes, or fewer at the end of the file; zlib.error if it is corrupt."""
        parts = []
        while size and not self._decoder.eof:
            compressed = self._decoder.unconsumed_tail or self._file.read(READ_BUFFER_BYTES)
            parts.append(self._decoder.decompress(compressed, size))
            size -= len(parts[-1])
            if not compressed and not parts[-1]:
                raise zlib.error('it is truncated')
        if size and (self._decoder.unused_data or self._file.read(1)):
            raise zlib.error('TensorFlow reads only the first compressed stream of a file')
        return b''.join(parts)


def _checksum(data):
    crc = _crc32c_extend()(0, data, len(data))
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff)


@functools.lru_cache(maxsize=None)
def _crc32c_extend():
    """Returns TensorFlow's `crc32c::Extend(crc, data, size)`, which takes 17 us for 110 kB.

    Python has no wrapper, but the shared library of TensorFlow 1.15 exports the symbol.
    """
    extend = ctypes.CDLL(_pywrap_tensorflow_internal.__file__)._ZN10tensorflow6crc32c6ExtendEjPKcm
    extend.argtypes = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t]
    extend.restype = ctypes.c_uint32
    return extend
