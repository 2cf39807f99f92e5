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
import stat
from typing import Dict
from typing import List
from typing import Tuple

from absl import logging
import numpy as np

from common.errors import UserError
from common.files import read_error
from common.paths import is_inside
from dataset import image_files
from tfrecords import schema

TEST = 'test'
# Name of a folder, in small letters -> the split that it holds.
_SPLITS = {'train': schema.TRAIN, 'training': schema.TRAIN, 'validation': schema.VALIDATION,
           'val': schema.VALIDATION, 'valid': schema.VALIDATION, 'test': TEST, 'testing': TEST}
# What else names of such folders have in them, like seg_train and TestImages, or 训练集 and 测试集.
_WORD = r'(?<![a-z])(?:{})(?:set|data|images|imgs)?(?![a-z])'
_LIKE_TRAIN = re.compile(_WORD.format('train|training') + '|训练')
_LIKE_ANOTHER = re.compile(
    _WORD.format('val|valid|validation|test|testing|dev|eval|evaluation|holdout|pred')
    + '|验证|测试')
# Values of --class_order.
BY_NAME, BY_NUMBER = CLASS_ORDERS = 'name', 'number'
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
        """The bytes of an image's file.

        Raises:
            image_files.BadImageError: it is no regular file, or a link to nowhere.
            UserError: the system cannot read it, which says nothing about the image.
        """
        is_own_file = self._offsets[index] == OWN_FILE
        path = (os.path.join(self._root, self.name(index)) if is_own_file
                else self._tars[self._tar_of[index]])
        try:
            if not is_own_file:
                with open(path, 'rb', buffering=0) as file:
                    file.seek(self._offsets[index])
                    return file.read(self._sizes[index])
            # Of a pipe there may be no end.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise image_files.BadImageError('it is no regular file')
            with open(path, 'rb') as file:
                return file.read()
        except OSError as error:
            if is_own_file and error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path):
                raise image_files.BadImageError('it is a link to nowhere') from error
            raise read_error(path, error) from error

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
        ignored: (name, why) of files and folders that were passed over.
    """
    name: str
    class_names: Tuple[str, ...]
    synsets: Tuple[str, ...]
    images: Dict[str, ImageList]
    rows: Dict[str, np.ndarray]
    ignored: List[Tuple[str, str]]


def folder(raw_dir, validation_fraction=None, seed=0, order=BY_NAME, output_dir=None):
    """Lists a tree of images with one folder a class.

    Either raw_dir/<class>/..., or raw_dir/train/<class>/... and optionally
    raw_dir/validation/<class>/..., by their other names too (`_SPLITS`). Where there is a test
    folder and no validation folder, its images validate.

    Args:
        raw_dir: str.
        validation_fraction: share of each class's images that becomes the validation split; None
            for a tenth, or for what raw_dir/validation holds.
        seed: int, of the choice.
        order: of the classes, BY_NAME or BY_NUMBER, see `in_order`.
        output_dir: a folder that may lie in raw_dir and holds no images.

    Returns:
        `ImageSource`.

    Raises:
        UserError: raw_dir is not such a tree.
    """
    check_folder(raw_dir)
    ignored = []
    train_dir, validation_dir = _find_splits(raw_dir, validation_fraction, ignored, output_dir)
    classes = in_order(_find_classes(train_dir), order)
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


def split_folders(raw_dir):
    """Returns split -> path of its folder, of those that a folder has (`TEST` may be one)."""
    found = {}
    for name in class_folders(raw_dir):
        path, split = os.path.join(raw_dir, name), _SPLITS.get(name.lower())
        if split in found:
            raise UserError(f'{found[split]} and {path} both hold the {split} images; keep one.')
        if split:
            found[split] = path
    return found


def _find_splits(raw_dir, validation_fraction, ignored, output_dir):
    """Returns the folders of the training and the validation classes; the latter may be None."""
    found = split_folders(raw_dir)
    if schema.TRAIN not in found:
        if found:
            raise UserError(f'{min(found.values())} looks like a split, and {raw_dir} has no '
                            'folder train; give the training images a folder of that name, or '
                            'another name to a class that is called so.')
        return raw_dir, None
    train_dir, validation_dir = found[schema.TRAIN], found.get(schema.VALIDATION)
    if validation_dir and validation_fraction is not None:
        raise UserError(f'{validation_dir} is there, so --validation_fraction has nothing to '
                        'split; leave one of them out.')
    if TEST in found and not validation_dir and validation_fraction is None and (
            class_folders(found[TEST])):
        validation_dir = found[TEST]
        logging.info('There is no folder validation: the images of %s validate.', validation_dir)
    for entry in scan(raw_dir):
        is_output = output_dir and is_inside(output_dir, entry.path)
        if entry.path not in (train_dir, validation_dir) and not is_output:
            ignore(entry, raw_dir, ignored, 'it lies beside the folders of the splits')
            if is_folder(entry) and not _NOT_A_CLASS.fullmatch(entry.name):
                logging.warning('%s is left out: the splits are %s and %s.', entry.path, train_dir,
                                validation_dir or 'a part of it')
    return train_dir, validation_dir


def _check_no_splits(folder_path, names):
    """Raises UserError where the folders that would be taken for classes are those of splits.

    Where others lie beside them they may be classes, such as bullet_train and test_tube.
    """
    # TrainImages is train images.
    words = {name: re.sub('([a-z])([A-Z])', r'\1 \2', name).lower() for name in names}
    train, other = (next((name for name in names if kind.search(words[name])), None)
                    for kind in (_LIKE_TRAIN, _LIKE_ANOTHER))
    if not train or not other:
        return
    found = f'{folder_path} has the folders {text(train)} and {text(other)}, which look like splits'
    layout = '<--raw_dir>/train/<class>/ and <--raw_dir>/validation/<class>/'
    if all(_LIKE_TRAIN.search(each) or _LIKE_ANOTHER.search(each) for each in words.values()):
        raise UserError(
            f'{found} and would be taken for classes or parts of one; make it {layout}.')
    logging.warning('%s, and are taken for classes or parts of one. Splits are %s.', found, layout)


def _find_classes(train_dir):
    """Returns the names of the class folders, at least two."""
    classes = class_folders(train_dir)
    _check_no_splits(train_dir, classes)
    if not classes:
        raise UserError(f'{train_dir} has no folders; put the images of each class into a folder '
                        'named after it.')
    if len(classes) < 2:
        raise UserError(f'{train_dir} has one class only, {text(classes[0])}; a classifier needs '
                        'two. If the folders of the classes lie deeper, name the folder that '
                        'holds them.')
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


def in_order(names, order):
    """Sorts names of classes: BY_NAME letter by letter, or BY_NUMBER, where 2 is before 10."""
    def by_number(name):
        # Text and numbers take turns.
        return [int(part) if index % 2 else part
                for index, part in enumerate(re.split('([0-9]+)', name))], name

    return sorted(names, key=by_number if order == BY_NUMBER else None)


def class_folders(folder_path):
    return sorted(entry.name for entry in scan(folder_path)
                  if is_folder(entry) and not _NOT_A_CLASS.fullmatch(entry.name))


def is_folder(entry):
    """Whether an entry of `scan` is a folder, or a link to one."""
    # Its own is_dir() raises for a link in a loop.
    return entry.is_dir(follow_symlinks=False) or entry.is_symlink() and os.path.isdir(entry.path)


def size_of(entry):
    """Bytes of a file; 0 for a link to nowhere, which will be reported when it is read."""
    return entry.stat().st_size if os.path.exists(entry.path) else 0


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
        if entry.name not in folders:
            ignore(entry, raw_dir, ignored, 'it lies beside the folders of the classes')
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
    entries = scan(folder_path)
    _check_no_splits(folder_path, [entry.name for entry in entries if is_folder(entry)])
    for entry in entries:
        if is_folder(entry):
            if _NOT_A_CLASS.fullmatch(entry.name):
                ignore(entry, raw_dir, ignored, 'it is hidden')
            elif entry.is_symlink():
                ignore(entry, raw_dir, ignored, 'it is a link to a folder')
            else:
                list_images(listed, raw_dir, entry.path, class_index, ignored)
        elif image_files.is_image(entry.name):
            name = os.path.relpath(entry.path, raw_dir)
            listed.add(name, class_index, size_of(entry))
        else:
            ignore(entry, raw_dir, ignored, 'its name is not that of an image')


def ignore(entry, raw_dir, ignored, why):
    """Notes a file or folder that is passed over."""
    name = text(os.path.relpath(entry.path, raw_dir))
    ignored.append((f'{name}/' if is_folder(entry) else name, why))


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
