"""Lists all images and their classes in a directory tree with one directory per class.

The listing reads names only, so that errors are reported before anything is written.
`dataset.imagenet` lists the files of ILSVRC 2012 in the same form.
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
# Name of a directory in lower case -> the split that it contains.
_SPLITS = {'train': schema.TRAIN, 'training': schema.TRAIN, 'validation': schema.VALIDATION,
           'val': schema.VALIDATION, 'valid': schema.VALIDATION, 'test': TEST, 'testing': TEST}
# Words in other names of split directories, such as seg_train, TestImages, 训练集 and 测试集.
_WORD = r'(?<![a-z])(?:{})(?:set|data|images|imgs)?(?![a-z])'
_LIKE_TRAIN = re.compile(_WORD.format('train|training') + '|训练')
_LIKE_ANOTHER = re.compile(
    _WORD.format('val|valid|validation|test|testing|dev|eval|evaluation|holdout|pred')
    + '|验证|测试')
# Values of --class_order.
BY_NAME, BY_NUMBER = CLASS_ORDERS = 'name', 'number'
VALIDATION_FRACTION = 0.1
OWN_FILE = -1  # the offset of an image that is a file of its own, not a member of a tar file

_NOT_A_CLASS = re.compile(r'\..*|__MACOSX')


class ImageList:
    """A list of images, each a file below `root` or a member of a tar file.

    Memory: under 30 bytes per image, plus its name.
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
        """Adds an image.

        Args:
            name: str, path below the root, or in the tar file.
            class_index: int.
            size: int, bytes.
            offset: int, position in the tar file in bytes, or OWN_FILE.
            tar: str, path of the tar file, or None.
        """
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
        """Returns the path of an image below the root, or in the tar file."""
        begin = self._name_ends[index - 1] if index else 0
        return os.fsdecode(bytes(self._names[begin:self._name_ends[index]]))

    def read(self, index):
        """Returns the bytes of an image's file.

        Raises:
            image_files.BadImageError: the path is not a regular file, or a broken symbolic link.
            UserError: the file system reports an error; the image may be intact.
        """
        is_own_file = self._offsets[index] == OWN_FILE
        path = (os.path.join(self._root, self.name(index)) if is_own_file
                else self._tars[self._tar_of[index]])
        try:
            if not is_own_file:
                with open(path, 'rb', buffering=0) as file:
                    file.seek(self._offsets[index])
                    return file.read(self._sizes[index])
            # Reading a pipe may never end.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise image_files.BadImageError('it is not a regular file')
            with open(path, 'rb') as file:
                return file.read()
        except OSError as error:
            if is_own_file and error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path):
                raise image_files.BadImageError('it is a broken symbolic link') from error
            raise read_error(path, error) from error

    def digest(self):
        """Returns the SHA-256 of all names, classes and sizes."""
        digest = hashlib.sha256(bytes(self._names))
        for column in (self._name_ends, self._classes, self._sizes):
            digest.update(column)
        return digest.hexdigest()


@dataclasses.dataclass
class ImageSource:
    """All images of a dataset, with their classes and splits.

    Attributes:
        name: of the dataset.
        class_names: in the order of the class indices.
        synsets: WordNet ids in that order, or empty.
        images: split -> `ImageList`; two splits may share one.
        rows: split -> int [N], indices of the split's images in its list.
        ignored: list of (name, reason) of skipped files and directories.
    """
    name: str
    class_names: Tuple[str, ...]
    synsets: Tuple[str, ...]
    images: Dict[str, ImageList]
    rows: Dict[str, np.ndarray]
    ignored: List[Tuple[str, str]]


def folder(raw_dir, validation_fraction=None, seed=0, order=BY_NAME, output_dir=None):
    """Lists the images of a tree with one directory per class.

    The tree is raw_dir/<class>/..., or raw_dir/train/<class>/... and optionally
    raw_dir/validation/<class>/...; `_SPLITS` has other accepted names. A test directory is used for
    validation if there is no validation directory.

    Args:
        raw_dir: str.
        validation_fraction: float, share of the images of each class that becomes the validation
            split; None for the content of raw_dir/validation, or VALIDATION_FRACTION without it.
        seed: int, of the random split.
        order: of the classes, BY_NAME or BY_NUMBER, see `in_order`.
        output_dir: str, a directory without images that may be inside raw_dir.

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
            raise UserError(f'{validation_dir}: contains no directories of images; add some, or '
                            'remove it to split by --validation_fraction.')
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
    """Returns a dict, split -> path, of the split directories in raw_dir, including `TEST`."""
    found = {}
    for name in class_folders(raw_dir):
        path, split = os.path.join(raw_dir, name), _SPLITS.get(name.lower())
        if split in found:
            raise UserError(f'{found[split]}: {path} contains {split} images too; keep one of '
                            'them.')
        if split:
            found[split] = path
    return found


def _find_splits(raw_dir, validation_fraction, ignored, output_dir):
    """Returns the paths (training directory, validation directory or None)."""
    found = split_folders(raw_dir)
    if schema.TRAIN not in found:
        if found:
            raise UserError(f'{min(found.values())}: looks like a split, but {raw_dir} has no '
                            'directory train; move the training images there, or rename the '
                            'directory if it is a class.')
        return raw_dir, None
    train_dir, validation_dir = found[schema.TRAIN], found.get(schema.VALIDATION)
    if validation_dir and validation_fraction is not None:
        raise UserError(f'--validation_fraction={validation_fraction}: {validation_dir} already '
                        'defines the validation split; omit the flag, or remove the directory.')
    if TEST in found and not validation_dir and validation_fraction is None and (
            class_folders(found[TEST])):
        validation_dir = found[TEST]
        logging.info('%s is used for validation: there is no directory validation.',
                     validation_dir)
    for entry in scan(raw_dir):
        is_output = output_dir and is_inside(output_dir, entry.path)
        if entry.path not in (train_dir, validation_dir) and not is_output:
            ignore(entry, raw_dir, ignored, 'it is outside the split directories')
            if is_folder(entry) and not _NOT_A_CLASS.fullmatch(entry.name):
                logging.warning('%s is skipped: the splits are %s and %s.', entry.path, train_dir,
                                validation_dir or 'a part of it')
    return train_dir, validation_dir


def _check_no_splits(folder_path, names):
    """Raises UserError if all directories that would become classes look like splits.

    Logs a warning if only some do, since they may be classes, such as bullet_train and test_tube.
    """
    # Splits words: TrainImages becomes train images.
    words = {name: re.sub('([a-z])([A-Z])', r'\1 \2', name).lower() for name in names}
    train, other = (next((name for name in names if kind.search(words[name])), None)
                    for kind in (_LIKE_TRAIN, _LIKE_ANOTHER))
    if not train or not other:
        return
    found = f'{folder_path}: the directories {text(train)} and {text(other)} look like splits'
    layout = '<--raw_dir>/train/<class>/ and <--raw_dir>/validation/<class>/'
    if all(_LIKE_TRAIN.search(each) or _LIKE_ANOTHER.search(each) for each in words.values()):
        raise UserError(f'{found}, but would become classes or parts of one; rename them to '
                        f'{layout}.')
    logging.warning('%s, but become classes or parts of one. Splits are read from %s.', found,
                    layout)


def _find_classes(train_dir):
    """Returns the names of the class directories; UserError for fewer than two."""
    classes = class_folders(train_dir)
    _check_no_splits(train_dir, classes)
    if not classes:
        raise UserError(f'{train_dir}: contains no directories; put the images of each class into '
                        'a directory named after the class.')
    if len(classes) < 2:
        raise UserError(f'{train_dir}: contains only one class, {text(classes[0])}; add another '
                        'one, or name the directory in which the class directories are.')
    for name in classes:
        if len(text(name).splitlines()) > 1:
            raise UserError(f'{train_dir}: the directory name {name!r} has a line break, but '
                            'labels.txt has one class per line; rename the directory.')
    return classes


def check_folder(raw_dir):
    if not raw_dir:
        raise UserError('--raw_dir: not set; name the directory of the images.')
    if not os.path.isdir(raw_dir):
        raise UserError(f'--raw_dir={raw_dir}: not a directory; name the directory of the images.')


def in_order(names, order):
    """Returns class names sorted BY_NAME (10 before 2) or BY_NUMBER (2 before 10)."""
    def by_number(name):
        # Every second part is a number.
        return [int(part) if index % 2 else part
                for index, part in enumerate(re.split('([0-9]+)', name))], name

    return sorted(names, key=by_number if order == BY_NUMBER else None)


def class_folders(folder_path):
    return sorted(entry.name for entry in scan(folder_path)
                  if is_folder(entry) and not _NOT_A_CLASS.fullmatch(entry.name))


def is_folder(entry):
    """Returns whether an entry of `scan` is a directory, or a link to one."""
    # DirEntry.is_dir() raises an error for a link to itself.
    return entry.is_dir(follow_symlinks=False) or entry.is_symlink() and os.path.isdir(entry.path)


def size_of(entry):
    """Returns the size of a file in bytes; 0 for a broken link, which is reported when read."""
    return entry.stat().st_size if os.path.exists(entry.path) else 0


def scan(folder_path):
    try:
        with os.scandir(folder_path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f'{folder_path}: cannot be read ({error.strerror}); correct its '
                        'permissions, or --raw_dir.') from error


def _list_classes(raw_dir, split_dir, folders, classes, ignored):
    """Returns the `ImageList` of a split; UserError for a directory without images or class."""
    listed, indices = ImageList(raw_dir), {name: index for index, name in enumerate(classes)}
    for entry in scan(split_dir):
        if entry.name not in folders:
            ignore(entry, raw_dir, ignored, 'it is outside the class directories')
    for name in folders:
        class_dir = os.path.join(split_dir, name)
        if name not in indices:
            raise UserError(f'{class_dir}: this class has no training images; remove the '
                            'directory, or add training images of the class.')
        num_before = len(listed)
        list_images(listed, raw_dir, class_dir, indices[name], ignored)
        if len(listed) == num_before:
            raise UserError(f'{class_dir}: contains no images; add some, or remove the directory.')
    return listed


def list_images(listed, raw_dir, folder_path, class_index, ignored):
    """Adds the images of a directory and its subdirectories to the `ImageList` listed."""
    entries = scan(folder_path)
    _check_no_splits(folder_path, [entry.name for entry in entries if is_folder(entry)])
    for entry in entries:
        if is_folder(entry):
            if _NOT_A_CLASS.fullmatch(entry.name):
                ignore(entry, raw_dir, ignored, 'it is hidden')
            elif entry.is_symlink():
                ignore(entry, raw_dir, ignored, 'it is a link to a directory')
            else:
                list_images(listed, raw_dir, entry.path, class_index, ignored)
        elif image_files.is_image(entry.name):
            name = os.path.relpath(entry.path, raw_dir)
            listed.add(name, class_index, size_of(entry))
        else:
            ignore(entry, raw_dir, ignored, 'its name has no extension of an image')


def ignore(entry, raw_dir, ignored, why):
    """Appends a skipped file or directory and the reason to the list `ignored`."""
    name = text(os.path.relpath(entry.path, raw_dir))
    ignored.append((f'{name}/' if is_folder(entry) else name, why))


def text(name):
    """Returns a file name as valid UTF-8 text, with replacement characters for other bytes."""
    return os.fsencode(name).decode('utf-8', 'replace')


def _stratified(classes, num_classes, seed, fraction):
    """Returns a random split, in the same proportion for each class: split -> int [N] rows.

    Training gets at least one image of each class, and validation one if the class has two.
    """
    random = np.random.RandomState(seed)
    rows = {schema.TRAIN: [], schema.VALIDATION: []}
    for class_index in range(num_classes):
        members = random.permutation(np.flatnonzero(classes == class_index))
        num_validation = min(max(1, round(fraction * len(members))), len(members) - 1)
        rows[schema.VALIDATION].append(members[:num_validation])
        rows[schema.TRAIN].append(members[num_validation:])
    return {split: np.sort(np.concatenate(parts)) for split, parts in rows.items()}
