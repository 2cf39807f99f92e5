"""Validates records: finds those that training cannot use, with the reason for each.

Training shuffles records and cannot tell which one a decoder refuses. Validation reads the shards
in order and decodes images on all cores with the operations of the input pipeline, so it finds
every record that the pipeline would refuse.
"""
import dataclasses
import itertools

import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from tfrecords import image_formats
from tfrecords import reader
from tfrecords import record_format
from tfrecords import schema

CHECKED_SHARDS = 16             # evenly spaced shards that are checked before a run starts
FIRST_RECORDS = 128             # records checked in each of them

_REPORTED_TOGETHER = 1024       # records
_CORRUPT_IMAGE = 'has an image that cannot be decoded (truncated or corrupt); replace it.'


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
        path: str, the shard.
        index: int, position of the record in the shard, from 0.
        reason: str, predicate ("has label ...") for a sentence about the record.
        ends_shard: bool, whether the rest of the shard cannot be read either.
    """
    path: str
    index: int
    reason: str
    ends_shard: bool = False

    def __str__(self):
        return f'{self.path}: record {self.index} {self.reason}'


def check_first_records(paths, compression, describe):
    """Raises UserError if one of the first records of CHECKED_SHARDS shards cannot be used.

    The checked shards are evenly spaced from the first to the last.

    Args:
        paths: list of str, TFRecord shards.
        compression: str, NONE, GZIP or ZLIB of `reader`.
        describe: callable, see `find_bad_records`.
    """
    num_checked = min(CHECKED_SHARDS, len(paths))
    for number in np.linspace(0, len(paths) - 1, num_checked).round().astype(int):
        path = paths[number]
        records = itertools.islice(reader.iterate_records(path, compression), FIRST_RECORDS)
        for index, (record, corruption) in enumerate(records):
            if corruption is not None:
                raise UserError(str(unreadable(path, index)))
            reason = describe(record)
            if reason is not None:
                raise UserError(str(BadRecord(path, index, reason)))


def check_lengths(paths, compression):
    """Raises UserError with the first unreadable record of the shards, if there is one."""
    for path in paths:
        for index, (_, corruption) in enumerate(reader.iterate_records(path, compression)):
            if corruption is not None:
                raise UserError(str(unreadable(path, index)))


def find_bad_records(paths, use, describe, num_parallel_calls, compression=reader.NONE):
    """Yields the bad records of shards, in order.

    Args:
        paths: list of str, TFRecord shards.
        use: callable, string scalar -> list of operations and tensors that fail in a session if
            the record is bad.
        describe: callable, bytes -> str or None, the reason why a record is bad as far as it is
            known without decoding the image.
        num_parallel_calls: int, images decoded at the same time.
        compression: str, NONE, GZIP or ZLIB of `reader`.

    Yields:
        BadRecord. An unreadable record is the last one of its shard, because TensorFlow's reader
        does not skip it.
    """
    def try_to_use(index, record):
        with tf.control_dependencies(use(record)):
            return tf.identity(index)

    with tf.Graph().as_default():
        path, count = tf.placeholder(tf.string, []), tf.placeholder(tf.int64, [])
        good = tf.data.TFRecordDataset(path, compression).take(count).enumerate().map(
            tf.autograph.experimental.do_not_convert(try_to_use), num_parallel_calls)
        good = good.apply(tf.data.experimental.ignore_errors()).batch(_REPORTED_TOGETHER)
        options = tf.data.Options()
        options.experimental_threading.max_intra_op_parallelism = 1
        iterator = tf.data.make_initializable_iterator(good.with_options(options))
        element = iterator.get_next()
        with tf.Session() as session:
            for shard in paths:
                num_readable, is_whole = _count_readable(shard, compression)
                session.run(iterator.initializer, {path: shard, count: num_readable})
                is_good = set()
                while True:
                    try:
                        is_good.update(session.run(element).tolist())
                    except tf.errors.OutOfRangeError:
                        break
                if len(is_good) < num_readable:
                    records = itertools.islice(
                        reader.iterate_records(shard, compression), num_readable)
                    for index, (record, _) in enumerate(records):
                        if index not in is_good:
                            yield BadRecord(shard, index, describe(record) or _CORRUPT_IMAGE)
                if tf.io.gfile.stat(shard).length == 0:
                    yield BadRecord(shard, 0, 'is missing: the file has zero bytes; copy or create '
                                    'this shard again.')
                elif not is_whole:
                    yield unreadable(shard, num_readable)


def _count_readable(path, compression):
    """Returns (number of records before the first unreadable one, whether all are readable)."""
    count = 0
    for _, reason in reader.iterate_records(path, compression):
        if reason is not None:
            return count, False
        count += 1
    return count, True


def unreadable(path, index):
    """Returns the `BadRecord` of a record that cannot be read from its file."""
    return BadRecord(path, index, 'cannot be read, nor can the rest of the shard (truncated, '
                     'corrupt, not a TFRecord file, or another --compression than the others); '
                     'copy the shard again.', ends_shard=True)


def describe_record(record, form, first_label, num_classes, max_image_pixels, class_names=()):
    """Returns the reason why a record cannot be used, or None; does not decode its image.

    Args:
        record: bytes, a serialized tf.train.Example.
        form: `record_format.RecordFormat`.
        first_label: int, the label of class 0.
        num_classes: int.
        max_image_pixels: int.
        class_names: tuple of str, allowed values of a text label.

    Returns:
        str, a predicate ("has label ...") for a sentence about the record, or None.
    """
    try:
        encoded, label, _ = form.parse(record)
    except ValueError as error:
        return (f'{error}; write the shards in the format of ImageNet TFRecords, or name the '
                'features with --image_key and --label_key.')
    if form.label_kind == record_format.TEXT:
        if label not in class_names:
            return (f'has label {label!r}, which is not one of the {len(class_names)} class names; '
                    f'name the classes in {schema.DATASET_INFO_NAME} or with --class_names.')
    elif not first_label <= label < first_label + num_classes:
        return (f'has label {label}, outside {first_label}..{first_label + num_classes - 1}; check '
                '--label_base and --num_label_classes.')
    return _describe_image(encoded, max_image_pixels)


def _describe_image(encoded, max_pixels):
    if encoded.startswith(image_formats.PNG_SIGNATURE):
        if image_formats.png_bits(encoded) == 16:
            return 'has a PNG with 16 bits per channel; convert it to 8.'
        if image_formats.PNG_ANIMATION in encoded:
            return 'has an animated PNG; replace it by one of its frames.'
    elif not encoded.startswith(image_formats.JPEG_SIGNATURE):
        return 'has an image that is neither a JPEG nor a PNG file; convert it.'
    elif image_formats.num_jpeg_channels(encoded) == 4:
        return 'has a CMYK JPEG; convert it to RGB.'
    excess = image_formats.excess(image_formats.image_size(encoded), max_pixels)
    return excess and f'has {excess}.'


def by_shard(bad_records):
    """Returns a dict, path of a shard -> `reader.Skip` of its bad records."""
    found = {}
    for record in bad_records:
        found.setdefault(record.path, []).append(record)
    return {path: reader.Skip(
        tuple(sorted(record.index for record in records)),
        min((record.index for record in records if record.ends_shard), default=None))
            for path, records in found.items()}
