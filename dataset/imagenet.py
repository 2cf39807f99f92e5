"""Lists the files of ILSVRC 2012 as downloaded: tar files, directories, labels, bounding boxes."""
import collections
import os
import re
import tarfile
import xml.etree.ElementTree

import numpy as np

from common.errors import UserError
from common.paths import check_input_file
from dataset import image_files
from dataset import sources
from tfrecords import schema

TARS = {schema.TRAIN: 'ILSVRC2012_img_train.tar', schema.VALIDATION: 'ILSVRC2012_img_val.tar'}
# Default names of --synset_labels, in --raw_dir.
LABEL_FILES = ('synset_labels.txt', 'imagenet_2012_validation_synset_labels.txt',
               'LOC_val_solution.csv', 'ILSVRC2012_validation_ground_truth.txt')

_SYNSET = re.compile(r'n\d{8}')


def listing(raw_dir, synset_labels=None, synset_names=None):
    """Lists ILSVRC 2012: its two tar files, or their content.

    Training images: ILSVRC2012_img_train.tar (which contains a tar file per synset), or
    train/<synset>.tar, or train/<synset>/*.JPEG. Validation images: ILSVRC2012_img_val.tar, or
    validation/ (or val/) with all images in one directory or a directory per synset. Classes are
    the synsets in the order of their ids, as in all published checkpoints.

    Args:
        raw_dir: str.
        synset_labels: path of the labels of validation images without synset directories, one per
            line in the order of the file names. A line is a synset, optionally after the file name;
            or a number of ILSVRC2012_validation_ground_truth.txt, which synset_names must define.
            None to look for one of `LABEL_FILES`.
        synset_names: path of a file of lines such as 'n01440764 tench, Tinca tinca' or, with the
            numbers of the development kit, 'n02119789 1 kit_fox'. None to use synsets as names.

    Returns:
        `sources.ImageSource`.

    Raises:
        UserError: raw_dir lacks these files, or one is corrupt or contradicts another.
    """
    sources.check_folder(raw_dir)
    train, ignored = sources.ImageList(raw_dir), []
    splits = sources.split_folders(raw_dir)
    if sources.TEST in splits:
        ignored.append((f'{os.path.basename(splits[sources.TEST])}/', 'it has no labels'))
    synsets = _list_training_synsets(train, raw_dir, splits.get(schema.TRAIN), ignored)
    names, numbers = _read_synset_names(synset_names)
    validation = sources.ImageList(raw_dir)
    _list_validation(validation, raw_dir, splits.get(schema.VALIDATION), synsets, synset_labels,
                     numbers, ignored)
    return sources.ImageSource(
        name='imagenet', class_names=tuple(names.get(synset, synset) for synset in synsets),
        synsets=tuple(synsets), images={schema.TRAIN: train, schema.VALIDATION: validation},
        rows={schema.TRAIN: np.arange(len(train)), schema.VALIDATION: np.arange(len(validation))},
        ignored=ignored)


def _list_training_synsets(listed, raw_dir, train_dir, ignored):
    """Adds the training images to `listed`; returns the sorted synsets."""
    tar_path = os.path.join(raw_dir, TARS[schema.TRAIN])
    found = []  # (synset, path, offset and size of its tar file in that path)
    if os.path.isfile(tar_path):
        for name, offset, size in _tar_members(tar_path):
            synset, extension = os.path.splitext(os.path.basename(name))
            if extension == '.tar' and _SYNSET.fullmatch(synset):
                found.append((synset, tar_path, offset, size))
    elif train_dir:
        for entry in sources.scan(train_dir):
            synset, extension = os.path.splitext(entry.name)
            if _SYNSET.fullmatch(synset) and (sources.is_folder(entry) or extension == '.tar'):
                found.append((synset, entry.path, 0, None))
            else:
                sources.ignore(entry, raw_dir, ignored, 'its name is not a synset')
    else:
        raise UserError(f'{raw_dir}: contains neither {TARS[schema.TRAIN]} nor a directory train; '
                        'set --raw_dir to the directory of one of them.')
    synsets = sorted({synset for synset, *_ in found})
    if len(synsets) < 2:
        raise UserError(f'{tar_path if os.path.isfile(tar_path) else train_dir}: contains no '
                        'synsets such as n01440764; check --raw_dir, or use --source=folder.')
    if len(synsets) < len(found):
        raise UserError(f'{train_dir}: contains a synset twice, as a directory and as a tar file; '
                        'keep one.')

    for class_index, (synset, path, offset, size) in enumerate(sorted(found)):
        num_before = len(listed)
        if os.path.isdir(path):
            sources.list_images(listed, raw_dir, path, class_index, ignored)
        else:
            for name, inner_offset, inner_size in _tar_members(path, offset, size):
                listed.add(name, class_index, inner_size, inner_offset, path)
        if len(listed) == num_before:
            raise UserError(f'{path}: contains no images of {synset}; download it again.')
    return synsets


def _tar_members(path, offset=0, size=None):
    """Yields (name, offset, size) of the files in a tar file, in bytes.

    Args:
        path: str, the tar file, or one that contains it.
        offset, size: int, position and size of the tar file in `path`; None for the whole file.

    The yielded offsets count from the start of `path`.
    """
    try:
        with open(path, 'rb') as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode='r:') as tar:
                for member in tar:
                    if size and member.offset_data + member.size > offset + size:
                        raise tarfile.ReadError('unexpected end of data')
                    if member.isfile():
                        yield member.name, member.offset_data, member.size
                    # tarfile keeps every member: 60 MB for 50,000 files.
                    tar.members = []
    except (OSError, tarfile.TarError) as error:
        raise UserError(f'{path}: cannot be read to the end ({error}); download it '
                        'again.') from error


def _list_validation(listed, raw_dir, validation_dir, synsets, synset_labels, numbers, ignored):
    tar_path = os.path.join(raw_dir, TARS[schema.VALIDATION])
    index_of = {synset: index for index, synset in enumerate(synsets)}
    if os.path.isfile(tar_path):
        place = tar_path
        found = [(os.path.basename(name), (name, size, offset, tar_path))
                 for name, offset, size in _tar_members(tar_path) if image_files.is_image(name)]
    elif validation_dir:
        place = validation_dir
        if _list_synset_folders(listed, raw_dir, validation_dir, index_of, ignored):
            return
        found = [(entry.name, (os.path.relpath(entry.path, raw_dir), sources.size_of(entry)))
                 for entry in sources.scan(validation_dir) if image_files.is_image(entry.name)]
    else:
        raise UserError(f'{raw_dir}: contains neither {TARS[schema.VALIDATION]} nor a directory '
                        'validation or val; set --raw_dir to the directory of one of them.')
    if not found:
        raise UserError(f'{place}: contains no images; check --raw_dir.')
    found.sort()
    labels_path = synset_labels or next(
        (path for path in (os.path.join(raw_dir, name) for name in LABEL_FILES)
         if os.path.isfile(path)), None)
    if not labels_path:
        raise UserError(f'{place}: no file gives the classes of the validation images; name one '
                        'with a synset per line with --synset_labels.')
    synset_of = _read_synset_labels(labels_path, [file_name for file_name, _ in found], numbers)
    for file_name, (name, *part) in found:
        synset = synset_of[file_name]
        if synset not in index_of:
            raise UserError(f'{labels_path}: contains synset {synset}, which has no training '
                            'images; check --synset_labels.')
        listed.add(name, index_of[synset], *part)


def _list_synset_folders(listed, raw_dir, validation_dir, index_of, ignored):
    """Adds the images in synset directories; returns whether there are such directories."""
    synsets = [name for name in sources.class_folders(validation_dir) if _SYNSET.fullmatch(name)]
    for synset in synsets:
        if synset not in index_of:
            raise UserError(f'{validation_dir}: contains synset {synset}, which has no training '
                            'images; check --raw_dir.')
        synset_dir = os.path.join(validation_dir, synset)
        num_before = len(listed)
        sources.list_images(listed, raw_dir, synset_dir, index_of[synset], ignored)
        if len(listed) == num_before:
            raise UserError(f'{synset_dir}: contains no images; download it again.')
    return bool(synsets)


def _read_lines(path, flag):
    check_input_file(path, f'--{flag}')
    try:
        with open(path, encoding='utf-8') as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f'--{flag}={path}: cannot be read ({error}); name a text file.') from error
    if not lines:
        raise UserError(f'--{flag}={path}: is empty; name another file, or omit the flag.')
    return lines


def _read_synset_names(path):
    """Returns the dicts (synset -> name, development kit number -> synset); empty for None."""
    names, numbers = {}, {}
    for line in _read_lines(path, 'synset_names') if path else ():
        match = re.fullmatch(r'(n\d{8})(?:\s+(\d+))?\s+(.+)', line)
        if not match:
            raise UserError(f'{path}: {line[:60]!r} does not look like "n01440764 tench, Tinca '
                            'tinca"; correct --synset_names.')
        synset, number, names[synset] = match.groups()
        if number:
            numbers[number] = synset
    return names, numbers


def _read_synset_labels(path, file_names, numbers):
    """Returns a dict, name of a validation image -> synset.

    Args:
        path: of the labels.
        file_names: sorted names of the images.
        numbers: dict, development kit number -> synset.
    """
    by_name, in_order = {}, []
    for line in _read_lines(path, 'synset_labels'):
        match = re.fullmatch(r'(?:(\S+?)(?:\.JPEG)?[,\s]\s*)?(n\d{8})(?:[\s,].*)?', line)
        if match and match.group(1):
            by_name[match.group(1)] = match.group(2)
        elif match:
            in_order.append(match.group(2))
        elif line.isdigit() and line in numbers:
            in_order.append(numbers[line])
        elif line.isdigit():
            raise UserError(
                f'{path}: contains numbers of the development kit, which are not in synset order; '
                'name a file with lines like "n02119789 1 kit_fox" with --synset_names, or a file '
                'of synsets with --synset_labels.')
        elif (by_name or in_order) or 'ImageId' not in line:  # Kaggle's file has a header line.
            raise UserError(f'{path}: {line[:60]!r} has no synset such as n01440764; correct '
                            '--synset_labels.')
    if by_name:
        stems = [os.path.splitext(name)[0] for name in file_names]
        lacking = [stem for stem in stems if stem not in by_name]
        if lacking:
            raise UserError(f'{path}: has no line for {lacking[0]}; correct --synset_labels.')
        return {name: by_name[stem] for name, stem in zip(file_names, stems)}
    if len(in_order) != len(file_names):
        raise UserError(f'{path}: has {len(in_order)} lines for {len(file_names)} validation '
                        'images; write one synset per line, in the order of the image names.')
    return dict(zip(file_names, in_order))


class BoundingBoxes:
    """Bounding boxes of the objects in images, as fractions of width and height.

    Args:
        path: a directory of ILSVRC's annotations, <synset>/<image>.xml, directly or one level
            deeper, each read on demand; or a file of lines '<image>.JPEG,xmin,ymin,xmax,ymax', as
            written by Inception's process_bounding_boxes.py, which is kept in memory (0.2 GB for
            ImageNet's 615,000 boxes).

    Raises:
        UserError: path is neither, or is empty.
    """

    def __init__(self, path):
        self._folders = self._boxes = None
        if os.path.isdir(path):
            self._folders = [path] + [
                entry.path for entry in sources.scan(path) if entry.is_dir()
                and not _SYNSET.fullmatch(entry.name)]
            if not sources.scan(path):
                raise UserError(f'--bounding_boxes={path}: is empty; name the directory of the '
                                'annotations, or omit the flag.')
            return
        self._boxes = collections.defaultdict(list)
        for line in _read_lines(path, 'bounding_boxes'):
            name, *corners = line.split(',')
            try:
                xmin, ymin, xmax, ymax = map(float, corners)
            except ValueError:
                raise UserError(f'{path}: {line[:60]!r} is not <image>.JPEG,xmin,ymin,xmax,ymax; '
                                'correct --bounding_boxes.') from None
            self._boxes[_stem(name)].append((xmin, ymin, xmax, ymax))

    def of(self, name, synset):
        """Returns the boxes of an image, a list of (xmin, ymin, xmax, ymax) in [0, 1]."""
        stem = _stem(name)
        boxes = self._boxes.get(stem, []) if self._folders is None else self._read(stem, synset)
        clipped = [tuple(min(max(corner, 0.0), 1.0) for corner in box) for box in boxes]
        return [box for box in clipped if box[0] < box[2] and box[1] < box[3]]

    def _read(self, stem, synset):
        for folder in self._folders:
            for path in (os.path.join(folder, synset, f'{stem}.xml'),
                         os.path.join(folder, f'{stem}.xml')):
                if os.path.exists(path):
                    return _read_annotation(path)
        return []


def _stem(name):
    return os.path.splitext(os.path.basename(name))[0]


def _read_annotation(path):
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
        size = root.find('size')
        width, height = float(size.find('width').text), float(size.find('height').text)
        corners = [[float(box.find(name).text) for name in ('xmin', 'ymin', 'xmax', 'ymax')]
                   for box in root.iter('bndbox')]
        return [(xmin / width, ymin / height, xmax / width, ymax / height)
                for xmin, ymin, xmax, ymax in corners]
    except (OSError, xml.etree.ElementTree.ParseError, AttributeError, TypeError, ValueError,
            ZeroDivisionError) as error:
        raise UserError(f'{path}: not a bounding box annotation ({error}); download it again, or '
                        'omit --bounding_boxes.') from error
