"""Parses records: detects which features hold the image and the label, and reads them.

Records are serialized `tf.train.Example`s in the format of `dataset.create` and Inception's
`build_imagenet_data.py`, or in that of TensorFlow Datasets (TFDS).
"""
import dataclasses

from google.protobuf.message import DecodeError
import tensorflow.compat.v1 as tf

from tfrecords import reader
from tfrecords import schema

# Recognized feature keys. TFDS labels start at 0.
TFDS_LABEL = 'label'
IMAGE_KEYS = schema.IMAGE_ENCODED, 'image'
LABEL_KEYS = schema.CLASS_LABEL, TFDS_LABEL

# Kinds of label, named like the fields of tf.train.Feature.
NUMBER, FLOAT, TEXT = 'int64_list', 'float_list', 'bytes_list'
_NUM_SHOWN, _SHOWN_LETTERS = 12, 60
_TYPES = {NUMBER: tf.int64, FLOAT: tf.float32, TEXT: tf.string}


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """The format of the records of a split.

    Attributes:
        image_key: str, feature of the JPEG or PNG file.
        label_key: str, feature of the label.
        label_kind: str, NUMBER, FLOAT (integers stored as floats) or TEXT (class names).
        compression: str, `reader.NONE`, `GZIP` or `ZLIB`.
    """
    image_key: str = schema.IMAGE_ENCODED
    label_key: str = schema.CLASS_LABEL
    label_kind: str = NUMBER
    compression: str = reader.NONE

    @property
    def label_base(self):
        """Label of the first class by convention of this format: 0 in TFDS, otherwise 1."""
        return 0 if self.label_key == TFDS_LABEL else schema.IMAGENET.label_base

    def parse(self, record, needs_label=True):
        """Returns the (encoded image, label, class name) of a record.

        Args:
            record: bytes, a serialized tf.train.Example.
            needs_label: bool, whether a record without exactly one label is an error.

        Returns:
            (bytes, label, str): the label is an int, or a str if label_kind is TEXT, or None if the
            record has no label. The name is '' if the record has none.

        Raises:
            ValueError: the record does not have exactly one image and one label of label_kind. The
                message is a predicate ("has label ...") for a sentence about the record.
        """
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            raise ValueError(f'is not a tf.train.Example with "{self.image_key}"') from None
        # Copied first: a lookup in a protobuf map adds the key.
        keys = list(features)
        images = features[self.image_key].bytes_list.value
        label = features[self.label_key]
        labels = getattr(label, self.label_kind).value
        kind = label.WhichOneof('kind')
        if kind not in (None, self.label_kind) and needs_label:
            raise ValueError(f'has a label of type {kind}, but the others have {self.label_kind}')
        for key, values, is_needed in ((self.image_key, images, True),
                                       (self.label_key, labels, needs_label)):
            if is_needed and len(values) != 1:
                found = ', '.join(
                    f'{key[:_SHOWN_LETTERS]!r}' for key in sorted(keys)[:_NUM_SHOWN])
                raise ValueError(f'has {len(values)} values of "{key}" instead of one (features: '
                                 f"{found or 'none'})")
        names = features[schema.CLASS_TEXT].bytes_list.value
        name = names[0].decode('utf-8', 'replace') if names else ''
        return images[0], self._read_label(labels[0]) if len(labels) == 1 else None, name

    def _read_label(self, value):
        if self.label_kind == TEXT:
            return value.decode('utf-8', 'backslashreplace')
        if self.label_kind == FLOAT and not value.is_integer():
            raise ValueError(f'has label {value}, which is not an integer')
        return int(value)

    def parse_tensor(self, record, first_label, class_names):
        """Returns the (encoded image, class index) of a record as tensors.

        Args:
            record: string scalar.
            first_label: int, the label of class 0.
            class_names: tuple of str, in which labels of the kind TEXT are looked up.

        Returns:
            (encoded image, class), scalars of string and int64. The class may be out of range; it
            is -1 for an unknown name or a fractional label.
        """
        features = tf.io.parse_single_example(record, {
            self.image_key: tf.io.FixedLenFeature([], tf.string),
            self.label_key: tf.io.FixedLenFeature([], _TYPES[self.label_kind])})
        image_bytes, label = features[self.image_key], features[self.label_key]
        if self.label_kind == TEXT:
            is_class = tf.equal(label, tf.constant(class_names, tf.string, [len(class_names)]))
            index = tf.argmax(tf.cast(tf.concat([is_class, [True]], axis=0), tf.int32))
            return image_bytes, tf.where(index < len(class_names), index, tf.constant(-1, tf.int64))
        if self.label_kind == FLOAT:
            is_whole = tf.equal(label, tf.floor(label))
            label = tf.where(is_whole, tf.cast(label, tf.int64), tf.constant(-1, tf.int64))
        return image_bytes, label - first_label


def detect(record, compression, image_key=None, label_key=None):
    """Returns the `RecordFormat` of a record, or None if it is not an Example with an image.

    Args:
        record: bytes.
        compression: str, compression of its shard.
        image_key, label_key: str, override the recognized keys; None to detect them.
    """
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError:
        return None
    image_key = next((key for key in ([image_key] if image_key else IMAGE_KEYS)
                      if key in features), None)
    if image_key is None:
        return None
    label_key = label_key or next((key for key in LABEL_KEYS if key in features), LABEL_KEYS[0])
    kind = features[label_key].WhichOneof('kind') if label_key in features else None
    return RecordFormat(image_key, label_key, kind or NUMBER, compression)
