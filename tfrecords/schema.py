"""Defines the format of a dataset on disk, for writers and readers.

A dataset is one directory. It contains ImageNet-style TFRecord shards `<split>-00000-of-00016`,
whose records are serialized `tf.train.Example`s with the features named below, and optionally
`dataset_info.json`, which describes the shards. Names of features and shards follow Inception's
`build_imagenet_data.py`.
"""
import dataclasses
import fnmatch
import json
import os
import re
from typing import Dict
from typing import List
from typing import Optional
from typing import Tuple

import tensorflow.compat.v1 as tf

from common import json_files
from common.errors import UserError
from common.files import whole_file
from common.paths import check_input_file
from tfrecords import class_labels

TRAIN = 'train'
VALIDATION = 'validation'
SPLITS = (TRAIN, VALIDATION)

IMAGE_ENCODED = 'image/encoded'        # bytes: a JPEG or PNG file
IMAGE_FORMAT = 'image/format'          # bytes: b'JPEG' or b'PNG'
IMAGE_HEIGHT = 'image/height'          # int64: pixels
IMAGE_WIDTH = 'image/width'            # int64: pixels
IMAGE_COLORSPACE = 'image/colorspace'  # bytes: b'RGB' or b'Grayscale', as stored
IMAGE_CHANNELS = 'image/channels'      # int64: 1, 3 or 4, as stored
IMAGE_FILENAME = 'image/filename'      # bytes: base name of the source file
CLASS_LABEL = 'image/class/label'      # int64: label_base .. label_base + num_classes - 1
CLASS_TEXT = 'image/class/text'        # bytes: class name, UTF-8
CLASS_SYNSET = 'image/class/synset'    # bytes: WordNet id of the class; ImageNet only
# Lists with one number per bounding box, if boxes are known; corners are fractions of the sides.
BOX_CORNERS = tuple(f'image/object/bbox/{corner}' for corner in ('xmin', 'ymin', 'xmax', 'ymax'))
BOX_LABEL = 'image/object/bbox/label'

DATASET_INFO_NAME = 'dataset_info.json'
LABELS_NAME = 'labels.txt'             # one class name per line, in label order
UNFINISHED_NAME = '.create'            # directory of `dataset.create` until it is done

_SHARD_NAME = re.compile(r'(?P<split>.+)-(?P<index>\d{5})-of-(?P<num_shards>\d{5})')
# Shard names of other programs, such as train-00000-of-00016.tfrecord.
_NUMBERED_NAME = re.compile(r'(.+)-\d{5}-of-(\d{5})(\..+)?')
_RECORD_FILE = re.compile(r'.+\.tfrec(ord)?s?(\.gz|\.zlib)?', re.IGNORECASE)
# Default pattern of a split's shards, and the flags that override it.
_USUAL_PATTERN = f"{{}}-{'[0-9]' * 5}-of-{'[0-9]' * 5}"
PATTERN_FLAGS = {TRAIN: 'train_pattern', VALIDATION: 'eval_pattern'}
_NUM_SHOWN = 3


def shard_name(split, index, num_shards):
    """Returns the name of a shard, such as `train-00000-of-00016`."""
    return f'{split}-{index:05d}-of-{num_shards:05d}'


def is_shard_name(name):
    """Returns whether a base name has the form `<split>-00000-of-00016`, for any split."""
    return _SHARD_NAME.fullmatch(name) is not None


def is_record_file(name):
    """Returns whether a base name is that of a shard or has a TFRecord extension."""
    return is_shard_name(name) or _RECORD_FILE.fullmatch(name) is not None


def find_shards(data_dir, split, allow_empty_shards=False, pattern=None):
    """Returns the paths of a split's TFRecord shards, sorted by name.

    Args:
        data_dir: str, a directory, local or remote; never a pattern itself.
        split: str, one of `SPLITS`.
        allow_empty_shards: bool, whether a shard may have zero bytes.
        pattern: str, shell pattern (*, ?, []) of the shards' names below data_dir; None for
            `<split>-?????-of-?????`.

    Raises:
        UserError: data_dir is missing, not a directory, empty, or not finished by dataset.create;
            it contains no shards of the split, an incomplete set, or two sets; a shard is not a
            file or has zero bytes; or the pattern leads out of data_dir. The shards themselves are
            checked on local disks only, since 1,024 remote requests would take a minute.
    """
    names = _list_folder(data_dir)
    if UNFINISHED_NAME in (name.rstrip('/') for name in names):
        raise UserError(f'{data_dir}: the dataset is not finished; wait for dataset.create, or '
                        'rerun its command to resume it.')
    flag = PATTERN_FLAGS[split]
    if pattern and ('://' in pattern or not {'', '.', '..'}.isdisjoint(pattern.split('/'))):
        raise UserError(f'--{flag}={pattern}: must name files below --data_dir; write a pattern '
                        f'such as *-{split}.tfrecord-*.')
    found = _matching(data_dir, names, pattern or _USUAL_PATTERN.format(split))
    if not found:
        cure = (f'correct --{flag}' if pattern else
                f'name them with --{flag}, such as "*-{split}.tfrecord-*"')
        raise UserError(
            f"{data_dir}: no file matches {pattern or f'{split}-?????-of-?????'} (found: "
            f'{_shown(names)}); set --data_dir to the directory of the TFRecord shards, or {cure}.')
    _check_complete(data_dir, split, found, pattern)
    paths = [os.path.join(data_dir, name) for name in found]
    if '://' not in data_dir:
        for path in paths:
            check_input_file(path)
            if os.path.getsize(path) == 0 and not allow_empty_shards:
                raise UserError(f'{path}: has zero bytes; copy or create this shard again.')
    return paths


def _matching(folder, names, pattern):
    """Returns the sorted names that match a pattern, below `folder`, whose entries are `names`."""
    first, _, rest = pattern.partition('/')
    names = sorted(name.rstrip('/') for name in names)
    # A wildcard does not match hidden files, as in a shell: a copy in progress may be one.
    found = [name for name in names if fnmatch.fnmatchcase(name, first)
             and (first.startswith('.') or not name.startswith('.'))]
    if not rest:
        return found
    folders = [name for name in found if tf.io.gfile.isdir(os.path.join(folder, name))]
    return [f'{name}/{each}' for name in folders
            for each in _matching(os.path.join(folder, name),
                                  _list(os.path.join(folder, name)), rest)]


def _check_complete(data_dir, split, found, pattern):
    """Raises UserError if a shard that matches the pattern is missing, or there are two sets."""
    counts, present = {}, set(found)
    for name in found:
        match = _NUMBERED_NAME.fullmatch(name)
        if match:
            prefix, num_shards, suffix = match.groups(default='')
            counts.setdefault((prefix, suffix), set()).add(int(num_shards))
    for (prefix, suffix), (num_shards, *others) in counts.items():
        if others:
            names = ' and '.join(f'{prefix}-?????-of-{count:05d}{suffix}'
                                 for count in sorted((num_shards, *others)))
            raise UserError(f'{data_dir}: contains two sets of shards, {names}; keep one of them.')
        expected = [shard_name(prefix, index, num_shards) + suffix for index in range(num_shards)]
        meant = [name for name in expected if not pattern or fnmatch.fnmatchcase(name, pattern)]
        missing = [name for name in meant if name not in present]
        if missing:
            raise UserError(f'{data_dir}: {missing[0]} is missing, {len(meant) - len(missing)} of '
                            f'{len(meant)} {split} shards are present; copy or create the missing '
                            'ones.')


def _shown(names):
    """Returns some of the names in a directory for a message, TFRecord files first."""
    names = sorted(names, key=lambda name: (not is_record_file(name), name))
    more = f' and {len(names) - _NUM_SHOWN} more' if len(names) > _NUM_SHOWN else ''
    return ', '.join(names[:_NUM_SHOWN]) + more


def _list_folder(data_dir):
    if not data_dir:
        raise UserError('--data_dir: not set; name the directory of the TFRecord shards.')
    try:
        if not tf.io.gfile.exists(data_dir):
            raise UserError(f'{data_dir}: does not exist; check --data_dir.')
        if not tf.io.gfile.isdir(data_dir):
            raise UserError(f'{data_dir}: not a directory; set --data_dir to the directory of the '
                            'TFRecord shards.')
    except tf.errors.OpError as error:
        raise _unreadable_folder(data_dir, error) from error
    names = _list(data_dir)
    if not names:
        raise UserError(f'{data_dir}: is empty; check --data_dir.')
    return names


def _list(folder):
    try:
        return tf.io.gfile.listdir(folder)
    except tf.errors.OpError as error:
        raise _unreadable_folder(folder, error) from error


def _unreadable_folder(folder, error):
    return UserError(f'{folder}: cannot be read ({error.message}); check --data_dir and its '
                     'permissions.')


def serialize_example(*, encoded, image_format, height, width, channels, filename, label, text,
                      synset=None, boxes=None):
    """Returns a record: a serialized tf.train.Example with ImageNet's features.

    Args:
        encoded: bytes, the JPEG or PNG file.
        image_format: str, 'JPEG' or 'PNG'.
        height, width: int, pixels.
        channels: int, as stored in the file: 1 for gray, 3 for RGB, 4 for RGBA.
        filename: str, base name of the source.
        label: int, counted from the dataset's label_base.
        text: str, name of the class.
        synset: None or str, WordNet id of the class.
        boxes: None or list of bounding boxes, (xmin, ymin, xmax, ymax) in [0, 1].

    Returns:
        bytes, identical for identical arguments.
    """
    def int64_feature(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def bytes_feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {
        IMAGE_ENCODED: bytes_feature(encoded),
        IMAGE_FORMAT: bytes_feature(image_format.encode()),
        IMAGE_HEIGHT: int64_feature(height),
        IMAGE_WIDTH: int64_feature(width),
        IMAGE_COLORSPACE: bytes_feature(b'Grayscale' if channels == 1 else b'RGB'),
        IMAGE_CHANNELS: int64_feature(channels),
        IMAGE_FILENAME: bytes_feature(filename.encode()),
        CLASS_LABEL: int64_feature(label),
        CLASS_TEXT: bytes_feature(text.encode()),
    }
    if synset is not None:
        features[CLASS_SYNSET] = bytes_feature(synset.encode())
    if boxes is not None:
        for key, values in zip(BOX_CORNERS, zip(*boxes) if boxes else [()] * len(BOX_CORNERS)):
            features[key] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        features[BOX_LABEL] = tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label] * len(boxes)))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # The order of map fields is undefined: without the argument, two runs write different bytes.
    return example.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Describes a dataset: the content of dataset_info.json, which omits unknown optional fields.

    Attributes:
        name: str.
        num_classes: int, number of different labels, without a background class.
        class_names: tuple of str in label order, or empty if unknown.
        label_base: int, 0 or 1, the label of the first class.
        num_images: dict, split -> number of images.
        sha256: dict, shard name -> SHA-256 of the file as `sha256sum` prints it; empty if unknown.
        max_short_side, jpeg_quality: int; images with a longer short side (pixels) were resized to
            max_short_side and stored as JPEGs of this quality. None if no size limit was set.
        class_counts: dict, split -> list of images per class, in label order; None if unknown.
    """
    name: str
    num_classes: int
    class_names: Tuple[str, ...]
    label_base: int
    num_images: Dict[str, int]
    sha256: Dict[str, str] = dataclasses.field(default_factory=dict)
    max_short_side: Optional[int] = None
    jpeg_quality: Optional[int] = None
    class_counts: Optional[Dict[str, List[int]]] = None

    def has_background(self, num_classes):
        """Returns whether a model with num_classes classes adds a background class 0 to these."""
        return num_classes == self.num_classes + 1

    def names_of(self, num_classes):
        """Returns the class names of a model with num_classes classes, or () if unknown.

        They include the name of the background class, if the model has one.
        """
        names = (class_labels.BACKGROUND,) * self.has_background(num_classes) + self.class_names
        return names if len(names) == num_classes else ()

    @classmethod
    def load(cls, data_dir) -> Optional['DatasetInfo']:
        """Returns the content of data_dir/dataset_info.json, or None if missing or written by TFDS.

        Raises:
            UserError: the file cannot be read, is not JSON, lacks a key, has a value of the wrong
                type, or contradicts itself.
        """
        path = os.path.join(data_dir, DATASET_INFO_NAME)
        cure = 'repair or delete it'
        fields = json_files.read_if_any(path, cure, {})
        # TFDS writes a file of the same name, without the number of classes and their names.
        if fields is None or 'splits' in fields and 'num_classes' not in fields:
            return None
        try:
            json_files.check_fields(fields, _FIELDS)
        except json_files.ContentError as fault:
            raise UserError(f'{path}: {fault}; {cure}.') from fault
        info = cls(name=fields['name'], num_classes=fields['num_classes'],
                   class_names=tuple(fields['class_names']), label_base=fields['label_base'],
                   num_images={split: fields['num_images'][split] for split in SPLITS},
                   sha256=fields.get('sha256') or {},
                   max_short_side=fields.get('max_short_side'),
                   jpeg_quality=fields.get('jpeg_quality'),
                   class_counts=fields.get('class_counts'))
        if info.class_names and len(info.class_names) != info.num_classes:
            raise UserError(f'{path}: "class_names" has {len(info.class_names)} entries and '
                            f'"num_classes" is {info.num_classes}; correct one of them.')
        for split, counts in (info.class_counts or {}).items():
            if len(counts) != info.num_classes or sum(counts) != info.num_images[split]:
                raise UserError(f'{path}: "class_counts" of {split} has {len(counts)} numbers with '
                                f'the sum {sum(counts)}, but there are {info.num_classes} classes '
                                f'and {info.num_images[split]} images; correct it, or delete it.')
        return info

    def save(self, data_dir):
        """Writes data_dir/dataset_info.json atomically.

        Raises:
            UserError: the directory cannot be written.
        """
        path = os.path.join(data_dir, DATASET_INFO_NAME)
        fields = {name: value for name, value in dataclasses.asdict(self).items()
                  if name not in _OPTIONAL or value}
        try:
            with whole_file(path) as file:
                file.write(json.dumps(fields, indent=2, ensure_ascii=False) + '\n')
        except tf.errors.OpError as error:
            raise UserError(f'{path}: cannot be written ({error.message}); choose another '
                            'directory.') from error


# Optional and all fields of dataset_info.json.
_OPTIONAL = ('sha256', 'max_short_side', 'jpeg_quality', 'class_counts')
_FIELDS = {
    'name': json_files.TEXT,
    'num_classes': json_files.POSITIVE,
    'class_names': json_files.Kind('a list of strings without line breaks', lambda value: (
        json_files.is_texts(value) and all(len(name.splitlines()) <= 1 for name in value))),
    'label_base': json_files.Kind('0 or 1', lambda value: (
        json_files.is_integer(value) and value <= 1)),
    'num_images': json_files.Kind(
        'an object with the integers "train" and "validation"', lambda value: (
            isinstance(value, dict)
            and all(json_files.is_integer(value.get(split)) for split in SPLITS))),
    'sha256': json_files.optional(json_files.TEXT_OF_KEY._replace(
        wanted='an object of shard names and checksums')),
    'max_short_side': json_files.optional(json_files.POSITIVE),
    'jpeg_quality': json_files.optional(json_files.POSITIVE),
    'class_counts': json_files.optional(json_files.Kind(
        'an object with the lists of integers "train" and "validation"', lambda value: (
            isinstance(value, dict) and set(value) == set(SPLITS)
            and all(isinstance(counts, list) and all(map(json_files.is_integer, counts))
                    for counts in value.values())))),
}

# ILSVRC 2012 as build_imagenet_data.py writes it (Russakovsky et al., arXiv:1409.0575).
IMAGENET = DatasetInfo(name='imagenet', num_classes=1000, class_names=(), label_base=1,
                       num_images={TRAIN: 1281167, VALIDATION: 50000})

# --data_dir=synthetic: generated images, with as many classes and training steps as ImageNet.
SYNTHETIC_DIR = 'synthetic'
SYNTHETIC = DatasetInfo(name='synthetic', num_classes=1000, class_names=(), label_base=1,
                        num_images={TRAIN: 1281167, VALIDATION: 1024})
