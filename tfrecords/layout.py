"""What a user says of how shards are named and written, and what is detected of the rest."""
import collections
import dataclasses
import itertools
from typing import Optional

from common.errors import UserError
from common.paths import is_same
from tfrecords import reader
from tfrecords import record_format
from tfrecords import schema

# Values of --compression.
COMPRESSIONS = {'none': reader.NONE, 'gzip': reader.GZIP, 'zlib': reader.ZLIB}

# Flag -> its help and the values it may have, None for any.
FLAGS = {
    'train_pattern': (
        'Names of the training shards in --data_dir, such as imagenet2012-train.tfrecord-* or '
        'train/*.tfrecord; default: train-?????-of-?????.', None),
    'eval_pattern': ('The same for validation; default: validation-?????-of-?????.', None),
    'image_key': (
        'Feature of the records that is the JPEG or PNG file; default: image/encoded, else '
        'image.', None),
    'label_key': (
        'Feature that is the label: a whole number, or the name of a class; default: '
        'image/class/label, else label.', None),
    'compression': ('How whole shards are compressed; default: detected.', tuple(COMPRESSIONS)),
}

# Of programs that read validation shards only.
EVAL_FLAGS = {name: row for name, row in FLAGS.items() if name != 'train_pattern'}

_LOOKED_AT = 4             # of the first shards, and in each of the first records


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the shards of a data set are named and written. The fields are `FLAGS`; None: detected.
    """
    train_pattern: Optional[str] = None
    eval_pattern: Optional[str] = None
    image_key: Optional[str] = None
    label_key: Optional[str] = None
    compression: Optional[str] = None

    @classmethod
    def of(cls, values):
        """Makes a `Layout` of a dict of flags or settings, as far as it has them."""
        return cls(**{name: values[name] for name in FLAGS if name in values})

    def in_folder(self, data_dir, known_dir, known):
        """The same; in the folder `known_dir`, with what the `Layout` `known` says of the rest."""
        if not known_dir or not is_same(data_dir, known_dir):
            return self
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(known, **given)

    def find_shards(self, data_dir, split, allow_empty_shards=False):
        """Paths of a split's shards, see `schema.find_shards`."""
        return schema.find_shards(data_dir, split, allow_empty_shards,
                                  getattr(self, schema.PATTERN_FLAGS[split]))

    def has_shards(self, data_dir, split):
        """Whether `find_shards` finds a complete set."""
        try:
            return bool(self.find_shards(data_dir, split))
        except UserError:
            return False

    def record_format(self, paths):
        """Returns the `RecordFormat` of shards, which is that of most of the first records.

        Args:
            paths: list of str. The first ones decide for all.
        """
        compressions, formats = collections.Counter(), collections.Counter()
        for path in paths[:_LOOKED_AT]:
            compression = (reader.detect_compression(path) if self.compression is None
                           else COMPRESSIONS[self.compression])
            records = itertools.islice(reader.iterate_records(path, compression), _LOOKED_AT)
            try:
                formats.update(
                    record_format.detect(record, compression, self.image_key, self.label_key)
                    for record, reason in records if reason is None)
            except UserError:
                # Whoever reads the shard says why it cannot be read.
                continue
            compressions[compression] += 1
        del formats[None]
        if formats:
            return formats.most_common(1)[0][0]
        return record_format.RecordFormat(
            self.image_key or record_format.IMAGE_KEYS[0],
            self.label_key or record_format.LABEL_KEYS[0],
            compression=compressions.most_common(1)[0][0] if compressions else reader.NONE)

    def label_base(self, data_dir, described=schema.IMAGENET):
        """Returns the label of the first class: the one `described`, a `DatasetInfo` other than
        ImageNet's, else the usual one of such records."""
        if described is not schema.IMAGENET:
            return described.label_base
        split = schema.TRAIN if self.has_shards(data_dir, schema.TRAIN) else schema.VALIDATION
        try:
            return self.record_format(self.find_shards(data_dir, split)).label_base
        except UserError:
            return schema.IMAGENET.label_base


def check_used(values, data_dir):
    """Raises UserError if a dict of flags has one of `FLAGS`, and there is no --data_dir."""
    for name in FLAGS:
        if values.get(name) and not data_dir:
            raise UserError(
                f'--{name} is for the shards in --data_dir; give that, or leave it out.')


DETECTED = Layout()
