"""Finds the records of a data set that cannot be used, and says what is wrong with each.

Training has no time to find out which of a thousand shuffled records a decoder complains of. Here
shards are read one after the other, in order, and images are decoded on all cores: whatever the
pipeline would complain of is found, whichever operation complains.
"""
import dataclasses
import itertools

from google.protobuf.message import DecodeError
import tensorflow.compat.v1 as tf

from tfrecords import image_formats
from tfrecords import schema

_REPORTED_TOGETHER = 1024       # records
_FRAME_BYTES = 16               # that a TFRecord file has around each record


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
        path: str, the shard.
        index: int, the record's place in it, from 0 on.
        fault: str, what is wrong, as the rest of a sentence.
    """
    path: str
    index: int
    fault: str

    def __str__(self):
        return f'{self.path}: record {self.index} {self.fault}'


def find_bad_records(paths, use, describe, num_parallel_calls):
    """Yields the bad records of shards, in order.

    Args:
        paths: list of str, TFRecord shards.
        use: callable, string scalar -> list of operations and tensors, which fail in a session if
            the record is bad.
        describe: callable, bytes -> str or None: what is wrong with a record, as far as it can be
            told without decoding the image.
        num_parallel_calls: int, images decoded at the same time.

    Yields:
        BadRecord. A record that cannot be read is the last one of its shard, whatever follows.
    """
    def try_to_use(index, record):
        with tf.control_dependencies(use(record)):
            return tf.identity(index)

    with tf.Graph().as_default():
        path = tf.placeholder(tf.string, [])
        records = tf.data.TFRecordDataset(path)
        good = records.enumerate().map(
            tf.autograph.experimental.do_not_convert(try_to_use), num_parallel_calls)
        good = good.apply(tf.data.experimental.ignore_errors()).batch(_REPORTED_TOGETHER)
        options = tf.data.Options()
        options.experimental_threading.max_intra_op_parallelism = 1
        iterator = tf.data.make_initializable_iterator(good.with_options(options))
        element = iterator.get_next()
        extent = records.apply(tf.data.experimental.ignore_errors()).reduce(
            (tf.constant(0, tf.int64), tf.constant(0, tf.int64)),
            tf.autograph.experimental.do_not_convert(lambda total, record: (
                total[0] + 1,
                total[1] + tf.cast(tf.strings.length(record), tf.int64) + _FRAME_BYTES)))
        with tf.Session() as session:
            for shard in paths:
                session.run(iterator.initializer, {path: shard})
                is_good = set()
                while True:
                    try:
                        is_good.update(session.run(element).tolist())
                    except tf.errors.OutOfRangeError:
                        break
                num_records, num_bytes = session.run(extent, {path: shard})
                yield from _name(shard, num_records, is_good, describe)
                size_bytes = tf.io.gfile.stat(shard).length
                if size_bytes == 0:
                    yield BadRecord(shard, 0, 'is missing: the file has zero bytes; copy or make '
                                    'this shard again.')
                elif num_bytes != size_bytes:
                    yield unreadable(shard, num_records)


def _name(path, num_records, is_good, describe):
    if len(is_good) == num_records:
        return
    # What follows these cannot be read.
    for index, record in enumerate(itertools.islice(iterate_records(path), num_records)):
        if index not in is_good:
            yield BadRecord(path, index, describe(record) or 'holds an image that cannot be '
                            'decoded (truncated, or damaged); replace it.')


def unreadable(path, index):
    """The `BadRecord` of which the TFRecord file does not hold the whole."""
    return BadRecord(path, int(index), 'cannot be read, nor what follows it (truncated, damaged, '
                     'or no uncompressed TFRecord file); copy the shard again.')


def iterate_records(path):
    """Iterates over the records of a shard in plain Python, without a session."""
    verbosity = tf.logging.get_verbosity()
    # It warns that tf.data should be used instead, which cannot be without a session.
    tf.logging.set_verbosity(tf.logging.ERROR)
    try:
        return tf.io.tf_record_iterator(path)
    finally:
        tf.logging.set_verbosity(verbosity)


def describe_record(record, first_label, num_classes):
    """What is wrong with a serialised record besides that its image may be damaged.

    Args:
        record: bytes.
        first_label: int, the label of class 0.
        num_classes: int.

    Returns:
        str, the rest of a sentence; None for nothing.
    """
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        return 'is no tf.train.Example; write the shards as ImageNet TFRecords are written.'
    images = features[schema.IMAGE_ENCODED].bytes_list.value
    labels = features[schema.CLASS_LABEL].int64_list.value
    for key, values in ((schema.IMAGE_ENCODED, images), (schema.CLASS_LABEL, labels)):
        if len(values) != 1:
            return (f'has {len(values)} values of "{key}" where one is needed; write the '
                    'shards as ImageNet TFRecords are written.')
    last_label = first_label + num_classes - 1
    if not first_label <= labels[0] <= last_label:
        return (f'has label {labels[0]}, outside {first_label}..{last_label}; check --label_base '
                'and --num_label_classes.')
    return _describe_image(images[0])


def _describe_image(encoded):
    if encoded.startswith(image_formats.PNG_SIGNATURE):
        if encoded[24:25] == b'\x10':
            return 'holds a PNG of 16 bits; convert it to 8.'
        if image_formats.PNG_ANIMATION in encoded:
            return 'holds an animated PNG; replace it by one of its frames.'
    elif not encoded.startswith(image_formats.JPEG_SIGNATURE):
        return 'holds an image that is neither a JPEG nor a PNG file; convert it.'
    elif image_formats.num_jpeg_channels(encoded) == 4:
        return 'holds a CMYK JPEG; convert it to RGB.'
    return None


def by_shard(bad_records):
    """Path -> sorted tuple of the indices of the bad records in it."""
    indices = {}
    for record in bad_records:
        indices.setdefault(record.path, []).append(record.index)
    return {path: tuple(sorted(values)) for path, values in indices.items()}
