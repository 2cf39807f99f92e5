"""What the records of a shard look like: keys and types of the features that are read.

Records are serialized `tf.train.Example`s, as `dataset.create` and Inception's
`build_imagenet_data.py` write them, or as TensorFlow Datasets (TFDS) does.
"""
import dataclasses

from google.protobuf.message import DecodeError
import tensorflow.compat.v1 as tf

from tfrecords import reader
from tfrecords import schema

# Keys that are recognized. TFDS counts its labels from 0.
TFDS_LABEL = 'label'
IMAGE_KEYS = schema.IMAGE_ENCODED, 'image'
LABEL_KEYS = schema.CLASS_LABEL, TFDS_LABEL

# Kinds of label, by the fields of tf.train.Feature.
NUMBER, FLOAT, TEXT = 'int64_list', 'float_list', 'bytes_list'
_NUM_SHOWN, _SHOWN_LETTERS = 12, 60
_TYPES = {NUMBER: tf.int64, FLOAT: tf.float32, TEXT: tf.string}


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """How the records of a split are written.

    Attributes:
        image_key: str, feature of the JPEG or PNG file.
        label_key: str, feature of the label.
        label_kind: str, NUMBER, FLOAT for whole numbers as floats, or TEXT for names of classes.
        compression: str, the shards' as `reader` names it.
    """
    image_key: str = schema.IMAGE_ENCODED
    label_key: str = schema.CLASS_LABEL
    label_kind: str = NUMBER
    compression: str = reader.NONE

    @property
    def label_base(self):
        """The usual label of the first class."""
        return 0 if self.label_key == TFDS_LABEL else schema.IMAGENET.label_base

    def parse(self, record, needs_label=True):
        """Returns what a record holds: (encoded image, label, class's name).

        Args:
            record: bytes, a serialized tf.train.Example.
            needs_label: bool, whether a record without exactly one label is refused.

        Returns:
            (bytes, label, str): the label is an int, or a str if its kind is TEXT; None, and the
            name '', if the record has none.

        Raises:
            ValueError: the record has not exactly one image and one label of its kind; says so as
                the rest of a sentence.
        """
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            raise ValueError(f'is no tf.train.Example with "{self.image_key}"') from None
        # To look one up adds it.
        keys = list(features)
        images = features[self.image_key].bytes_list.value
        label = features[self.label_key]
        labels = getattr(label, self.label_kind).value
        kind = label.WhichOneof('kind')
        if kind not in (None, self.label_kind) and needs_label:
            raise ValueError(f'has a label of type {kind} where others have {self.label_kind}')
        for key, values, is_needed in ((self.image_key, images, True),
                                       (self.label_key, labels, needs_label)):
            if is_needed and len(values) != 1:
                found = ', '.join(
                    f'{key[:_SHOWN_LETTERS]!r}' for key in sorted(keys)[:_NUM_SHOWN])
                raise ValueError(f'has {len(values)} values of "{key}" where one is needed; its '
                                 f"features are {found or 'none'}")
        names = features[schema.CLASS_TEXT].bytes_list.value
        name = names[0].decode('utf-8', 'replace') if names else ''
        return images[0], self._read_label(labels[0]) if len(labels) == 1 else None, name

    def _read_label(self, value):
        if self.label_kind == TEXT:
            return value.decode('utf-8', 'backslashreplace')
        if self.label_kind == FLOAT and not value.is_integer():
            raise ValueError(f'has label {value}, which is no whole number')
        return int(value)

    def parse_tensor(self, record, first_label, class_names):
        """Does the same in a graph.

        Args:
            record: string scalar.
            first_label: int, the label of class 0.
            class_names: tuple of str, what labels of the kind TEXT are looked up in.

        Returns:
            (encoded image, class), scalars of string and int64. The class may be out of range, and
            is -1 for a label that means nothing.
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
    """Returns the `RecordFormat` of a record; None if it is no Example with an image.

    Args:
        record: bytes.
        compression: str, that of its shard.
        image_key, label_key: None or str, overrides for the keys that are recognized.
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
