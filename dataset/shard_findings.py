"""What the records of a shard hold, the damaged ones included."""
import collections
import dataclasses
import hashlib
import struct
from typing import Counter
from typing import Dict
from typing import List
from typing import Tuple

from google.protobuf.message import DecodeError
import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python import pywrap_tensorflow

from dataset import contact_sheet
from dataset import image_files
from tfrecords import schema

HASH_BYTES = 8
_HEADER_BYTES = 12         # of a record: its length and a checksum of that
_FOOTER_BYTES = 4          # a checksum of its data


@dataclasses.dataclass
class ShardFindings:
    """What a shard holds.

    Attributes:
        labels: label -> number of records.
        formats, modes: name -> number of images; modes are Pillow's, such as RGB and L.
        sizes: int32 [N, 2], width and height in pixels.
        hashes: [N], of the decoded pixels of each image.
        indices: [N], the records that those are of.
        corrupt: list of (record's index, what is wrong).
        thumbnails: label -> JPEG files of its first images.
        names: label -> the class's name in the records.
    """
    labels: Counter[int]
    formats: Counter[str]
    modes: Counter[str]
    sizes: np.ndarray
    hashes: np.ndarray
    indices: np.ndarray
    corrupt: List[Tuple[int, str]]
    thumbnails: Dict[int, List[bytes]]
    names: Dict[int, str]


def read_records(path):
    """Yields (index, record, None) of a shard, or (index, None, what is wrong) and goes on.

    A record whose data are damaged is stepped over. One whose length is damaged, or that is cut
    short, hides all after it, and is the last.
    """
    index = offset = 0
    with tf.io.gfile.GFile(path, 'rb') as file:
        size = file.size()
        reader = None
        while offset < size:
            try:
                if reader is None:
                    with tf.errors.raise_exception_on_not_ok_status() as status:
                        reader = pywrap_tensorflow.PyRecordReader_New(
                            tf.compat.as_bytes(path), offset, b'', status)
                reader.GetNext()
                record = reader.record()
                yield index, record, None
                length = len(record)
            except tf.errors.OutOfRangeError:
                return
            except tf.errors.OpError:
                file.seek(offset)
                header = file.read(_HEADER_BYTES)
                if len(header) < _HEADER_BYTES or not _is_length(header):
                    yield index, None, 'the shard cannot be read from here on'
                    return
                length, = struct.unpack_from('<Q', header)
                if offset + _HEADER_BYTES + length + _FOOTER_BYTES > size:
                    yield index, None, 'the shard ends in the middle of this record'
                    return
                yield index, None, 'its checksum is wrong'
                reader = None
            offset += _HEADER_BYTES + length + _FOOTER_BYTES
            index += 1


def _is_length(header):
    """Whether the checksum of a record's length is right (masked CRC-32C, as TFRecords have)."""
    crc = 0xffffffff
    for byte in header[:8]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    crc ^= 0xffffffff
    masked = ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff
    return masked == struct.unpack_from('<I', header, 8)[0]


def look_at_shard(path, labels_shown):
    """The `ShardFindings` of a shard; thumbnails are made of `labels_shown`, None for all."""
    counters = [collections.Counter() for _ in range(3)]
    labels, formats, modes = counters
    sizes, hashes, indices, corrupt = [], [], [], []
    thumbnails, names = collections.defaultdict(list), {}
    for index, record, damage in read_records(path):
        try:
            if damage:
                raise ValueError(damage)
            encoded, label, name = _parse(record)
            image = _decode(encoded)
        except ValueError as error:
            corrupt.append((index, str(error)))
            continue
        labels[label] += 1
        formats[image.format] += 1
        modes[image.mode] += 1
        sizes.append(image.size)
        indices.append(index)
        rgb = image.convert('RGB')
        hashes.append(hashlib.blake2b(b'%d' % rgb.width + rgb.tobytes(),
                                      digest_size=HASH_BYTES).digest())
        names.setdefault(label, name)
        if ((labels_shown is None or label in labels_shown)
                and len(thumbnails[label]) < contact_sheet.IMAGES_PER_CLASS):
            thumbnails[label].append(contact_sheet.thumbnail(rgb))
    return ShardFindings(
        *counters, np.array(sizes, np.int32).reshape(-1, 2),
        np.frombuffer(b''.join(hashes), np.int64), np.array(indices, np.int64), corrupt,
        dict(thumbnails), names)


def _parse(record):
    """(image file, label, class's name or '') of a record; ValueError with what is wrong."""
    try:
        feature = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        raise ValueError('it is no tf.train.Example') from None
    files = feature[schema.IMAGE_ENCODED].bytes_list.value
    labels = feature[schema.CLASS_LABEL].int64_list.value
    if len(files) != 1 or len(labels) != 1:
        raise ValueError(f'it has {len(files)} images and {len(labels)} labels')
    text = feature[schema.CLASS_TEXT].bytes_list.value
    return files[0], labels[0], text[0].decode('utf-8', 'replace') if text else ''


def _decode(encoded):
    """A loaded Pillow image; ValueError with what is wrong."""
    try:
        image = image_files.load(encoded)
    except Exception as error:
        raise ValueError(f"its image cannot be decoded ({' '.join(str(error).split())})") from None
    if image.format not in ('JPEG', 'MPO', 'PNG'):
        raise ValueError(f'its image is a {image.format}, neither a JPEG nor a PNG')
    return image
