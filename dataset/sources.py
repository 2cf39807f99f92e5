"""The list of all images with their classes, and how it is made of a folder for each class.

It is made from names alone, so that what is wrong with a folder is told before anything is written.
`dataset.imagenet` makes the same of the files of ILSVRC 2012.
"""
import array
import dataclasses
import errno
import hashlib
import os
import re
from typing import Dict
from typing import List
from typing import Tuple

import numpy as np

from common.errors import UserError
from dataset import image_files
from tfrecords import schema

SPLIT_FOLDERS = {schema.TRAIN: ('train',), schema.VALIDATION: ('validation', 'val', 'valid')}
VALIDATION_FRACTION = 0.1
OWN_FILE = -1  # the offset of an image that is no part of a tar file

_NOT_A_CLASS = re.compile(r'\..*|__MACOSX')


class ImageList:
    """Images by number, in under 30 bytes each and the bytes of their names.

    An image is a file below `root`, or a part of a tar file.
    """

    def __init__(self, root):
        self._root = root
        self._names = bytearray()
        self._name_ends = array.array('q')
        self._classes = array.array('i')
        self._sizes = array.array('i')
        self._offsets = array.array('q')
        self._tars = []
        self._tar_of = array.array('h')

    def __len__(self):
        return len(self._classes)

    def add(self, name, class_index, size, offset=OWN_FILE, tar=None):
        """Adds a file `name` below the root, or, with `offset` and `tar`, a part of a tar file."""
        if tar and tar not in self._tars[-1:]:
            self._tars.append(tar)
        self._names += os.fsencode(name)
        self._name_ends.append(len(self._names))
        self._classes.append(class_index)
        self._sizes.append(min(size, 2 ** 31 - 1))
        self._offsets.append(offset)
        self._tar_of.append(len(self._tars) - 1 if tar else OWN_FILE)

    @property
    def classes(self):
        """Class index of every image, int32 [N]."""
        return np.frombuffer(self._classes, np.int32) if len(self) else np.zeros([0], np.int32)

    def name(self, index):
        """Path below the root, or in the tar file, of an image."""
        begin = self._name_ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._names[begin:self._name_ends[index]]))

    def read(self, index):
        """The bytes of an image's file; OSError where it cannot be read."""
        if self._offsets[index] == OWN_FILE:
            path = os.path.join(self._root, self.name(index))
            if os.path.exists(path) and not os.path.isfile(path):
                # Of a pipe there may be no end.
                raise OSError(errno.EINVAL, 'it is no regular file')
            with open(path, 'rb') as file:
                return file.read()
        with open(self._tars[self._tar_of[index]], 'rb', buffering=0) as file:
            file.seek(self._offsets[index])
            return file.read(self._sizes[index])

    def digest(self):
        """SHA-256 of all names, classes and sizes."""
        digest = hashlib.sha256(bytes(self._names))
        for column in (self._name_ends, self._classes, self._sizes):
            digest.update(column)
        return digest.hexdigest()


@dataclasses.dataclass
class ImageSource:
    """Everything there is.

    Attributes:
        name: of the data set.
        class_names: in the order of the class indices.
        synsets: WordNet ids in that order, or empty.
        images: split -> `ImageList`; two splits may share one.
        rows: split -> int [N], which images of the list belong to it.
        ignored: files that were passed over, for their name is not an image's.
    """
    name: str
    class_names: Tuple[str, ...]
    synsets: Tuple[str, ...]
    images: Dict[str, ImageList]
    rows: Dict[str, np.ndarray]
    ignored: List[str]


def folder(raw_dir, validation_fraction=None, seed=0):
    """Lists a tree of images with one folder a class.

    Either raw_dir/<class>/..., or raw_dir/train/<class>/... and optionally
    raw_dir/validation/<class>/... (or val, valid). Classes are in the order of their names.

    Args:
        raw_dir: str.
        validation_fraction: share of each class's images that becomes the validation split; None
            for a tenth, or for what raw_dir/validation holds.
        seed: int, of the choice.

    Returns:
        `ImageSource`.

    Raises:
        UserError: raw_dir is not such a tree.
    """
    check_folder(raw_dir)
    train_dir, validation_dir = _find_splits(raw_dir, validation_fraction)
    classes = _find_classes(train_dir)
    ignored = []
    train = _list_classes(raw_dir, train_dir, classes, classes, ignored)
    if validation_dir:
        validation = _list_classes(
            raw_dir, validation_dir, class_folders(validation_dir), classes, ignored)
        if not len(validation):
            raise UserError(f'{validation_dir} has no folders of images; fill it, or remove it to '
                            'have --validation_fraction choose.')
        rows = {schema.TRAIN: np.arange(len(train)), schema.VALIDATION: np.arange(len(validation))}
    else:
        validation = train
        rows = _stratified(train.classes, len(classes), seed, (
            VALIDATION_FRACTION if validation_fraction is None else validation_fraction))
    return ImageSource(
        name=os.path.basename(os.path.abspath(raw_dir)), class_names=tuple(map(text, classes)),
        synsets=(), images={schema.TRAIN: train, schema.VALIDATION: validation}, rows=rows,
        ignored=ignored)


def _find_splits(raw_dir, validation_fraction):
    """Returns the folders of the training and the validation classes; the latter may be None."""
    train_dir, validation_dir = (first_folder(raw_dir, SPLIT_FOLDERS[split])
                                 for split in (schema.TRAIN, schema.VALIDATION))
    if validation_dir and not train_dir:
        raise UserError(f'{raw_dir} has a folder {os.path.basename(validation_dir)} and no folder '
                        'train; name that one train, or leave only folders of classes.')
    if validation_dir and validation_fraction is not None:
        raise UserError(f'{validation_dir} is there, so --validation_fraction has nothing to '
                        'split; leave one of them out.')
    return train_dir or raw_dir, validation_dir


def _find_classes(train_dir):
    """Returns the names of the class folders, at least two."""
    classes = class_folders(train_dir)
    if not classes:
        raise UserError(f'{train_dir} has no folders; put the images of each class into a folder '
                        'named after it.')
    if len(classes) < 2:
        raise UserError(f'{train_dir} has one class only, {classes[0]}; a classifier needs two.')
    for name in classes:
        if len(text(name).splitlines()) > 1:
            raise UserError(f'{train_dir} has the folder {name!r}, and labels.txt has a class a '
                            'line; rename it.')
    return classes


def check_folder(raw_dir):
    if not raw_dir:
        raise UserError('--raw_dir is not given; name the folder with the images.')
    if not os.path.isdir(raw_dir):
        raise UserError(f'--raw_dir={raw_dir} is no folder; name the folder with the images.')


def first_folder(raw_dir, names):
    paths = [os.path.join(raw_dir, name) for name in names]
    return next((path for path in paths if os.path.isdir(path)), None)


def class_folders(folder_path):
    return sorted(entry.name for entry in scan(folder_path)
                  if entry.is_dir() and not _NOT_A_CLASS.fullmatch(entry.name))


def scan(folder_path):
    try:
        with os.scandir(folder_path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f'{folder_path} cannot be read ({error.strerror}); correct the rights or '
                        '--raw_dir.') from error


def _list_classes(raw_dir, split_dir, folders, classes, ignored):
    """The images of a split; UserError for a folder that has none or is no class."""
    listed, indices = ImageList(raw_dir), {name: index for index, name in enumerate(classes)}
    for entry in scan(split_dir):
        if not entry.is_dir():
            _ignore(entry, raw_dir, ignored)
    for name in folders:
        class_dir = os.path.join(split_dir, name)
        if name not in indices:
            raise UserError(f'{class_dir} is a class that the training images do not have; remove '
                            'it, or add training images of it.')
        num_before = len(listed)
        list_images(listed, raw_dir, class_dir, indices[name], ignored)
        if len(listed) == num_before:
            raise UserError(f'{class_dir} holds no image; add some or remove the folder.')
    return listed


def list_images(listed, raw_dir, folder_path, class_index, ignored):
    """Adds the images of a folder and of the folders in it."""
    for entry in scan(folder_path):
        if entry.is_dir(follow_symlinks=False):
            if not _NOT_A_CLASS.fullmatch(entry.name):
                list_images(listed, raw_dir, entry.path, class_index, ignored)
        elif is_image(entry.name):
            name = os.path.relpath(entry.path, raw_dir)
            # A link to nowhere is listed all the same: it will be reported when it is read.
            size = entry.stat().st_size if os.path.exists(entry.path) else 0
            listed.add(name, class_index, size)
        else:
            _ignore(entry, raw_dir, ignored)


def _ignore(entry, raw_dir, ignored):
    """Notes a file that is passed over, unless it is hidden."""
    if not entry.name.startswith('.'):
        ignored.append(text(os.path.relpath(entry.path, raw_dir)))


def is_image(name):
    return not name.startswith('.') and name.lower().endswith(image_files.EXTENSIONS)


def text(name):
    """A file's name as text that can be written, whatever its bytes."""
    return os.fsencode(name).decode('utf-8', 'replace')


def _stratified(classes, num_classes, seed, fraction):
    """Splits images into training and validation, in the same proportion of each class.

    At least one image of each class trains, and one validates where there are two.
    """
    random = np.random.RandomState(seed)
    rows = {schema.TRAIN: [], schema.VALIDATION: []}
    for class_index in range(num_classes):
        members = random.permutation(np.flatnonzero(classes == class_index))
        num_validation = min(max(1, round(fraction * len(members))), len(members) - 1)
        rows[schema.VALIDATION].append(members[:num_validation])
        rows[schema.TRAIN].append(members[num_validation:])
    return {split: np.sort(np.concatenate(parts)) for split, parts in rows.items()}
