"""Names and format of a dataset's shards: set by flags, or detected."""
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

# Flag -> (help, allowed values or None for any).
FLAGS = {
    'train_pattern': (
        'Names of the training shards in --data_dir, such as imagenet2012-train.tfrecord-* or '
        'train/*.tfrecord; default: train-?????-of-?????.', None),
    'eval_pattern': (
        'Names of the validation shards in --data_dir; default: validation-?????-of-?????.', None),
    'image_key': (
        'Feature that holds the JPEG or PNG file; default: image/encoded, otherwise image.', None),
    'label_key': (
        'Feature that holds the label, an integer or a class name; default: image/class/label, '
        'otherwise label.', None),
    'compression': ('Compression of the shards; default: detected.', tuple(COMPRESSIONS)),
}

# Flags of programs that read validation shards only.
EVAL_FLAGS = {name: row for name, row in FLAGS.items() if name != 'train_pattern'}

_LOOKED_AT = 4             # first shards, and first records of each, for detecting the format


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and format of the shards of a dataset; a field for each of `FLAGS`, None to detect."""
    train_pattern: Optional[str] = None
    eval_pattern: Optional[str] = None
    image_key: Optional[str] = None
    label_key: Optional[str] = None
    compression: Optional[str] = None

    @classmethod
    def of(cls, values):
        """Returns the `Layout` in a dict of flags or settings; missing ones are detected."""
        return cls(**{name: values[name] for name in FLAGS if name in values})

    def in_folder(self, data_dir, known_dir, known):
        """Returns this layout, completed from `known` if data_dir is `known_dir`.

        Args:
            data_dir: str.
            known_dir: str, directory that `known` describes, or None.
            known: `Layout`, supplies the fields that are None here.
        """
        if not known_dir or not is_same(data_dir, known_dir):
            return self
        given = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(known, **given)

    def find_shards(self, data_dir, split, allow_empty_shards=False):
        """Returns the paths of a split's shards (see `schema.find_shards`)."""
        return schema.find_shards(data_dir, split, allow_empty_shards,
                                  getattr(self, schema.PATTERN_FLAGS[split]))

    def has_shards(self, data_dir, split):
        """Returns whether `find_shards` finds a complete set."""
        try:
            return bool(self.find_shards(data_dir, split))
        except UserError:
            return False

    def record_format(self, paths):
        """Returns the most frequent `RecordFormat` among the first records of the first shards.

        Args:
            paths: list of str, the shards of a split.
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
                # Reading the shard reports the error later.
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
        """Returns the label of the first class.

        Args:
            data_dir: str.
            described: `DatasetInfo` of data_dir, which decides; `schema.IMAGENET` if there is none,
                in which case the convention of the record format decides.
        """
        if described is not schema.IMAGENET:
            return described.label_base
        split = schema.TRAIN if self.has_shards(data_dir, schema.TRAIN) else schema.VALIDATION
        try:
            return self.record_format(self.find_shards(data_dir, split)).label_base
        except UserError:
            return schema.IMAGENET.label_base


def check_used(values, data_dir):
    """Raises UserError if a dict of flags sets one of `FLAGS` without --data_dir."""
    for name in FLAGS:
        if values.get(name) and not data_dir:
            raise UserError(f'--{name}: applies to the shards in --data_dir only; set --data_dir, '
                            f'or omit --{name}.')


DETECTED = Layout()
