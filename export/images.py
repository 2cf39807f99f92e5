"""Finds and decodes images for prediction, verification and calibration, or generates them.

Images come from files, directories or TFRecord files.
"""
import dataclasses
import errno
import os
from typing import Callable
from typing import Union

import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.files import read_error
from common.image_sizes import ImageSize
from common.paths import check_input_file
from config import checks
from dataset import image_files
import imagenet_input
from tfrecords import class_labels
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import reader
from tfrecords import schema

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclasses.dataclass(frozen=True)
class Image:
    """An encoded image that is read on demand.

    Attributes:
      name: path of the image file, or `path:index` of a record in a TFRecord file.
      read: function without arguments that returns the bytes. Raises UnreadableError.
      label: int or str label of a record; None for files.
      label_base: the usual label of the first class in records of this format.
      data_dir: directory of the record's dataset.
    """
    name: str
    read: Callable
    label: Union[int, str, None] = None
    label_base: int = schema.IMAGENET.label_base
    data_dir: str = '.'


class UnreadableError(Exception):
    """A file or record without a readable image. The message is one sentence that names it."""


def find(paths, skipped, max_pixels=image_formats.MAX_IMAGE_PIXELS,
         shards=layout.DETECTED):
    """Yields an `Image` for each image file and record in `paths`, searching directories.

    An unreadable file or record is yielded too; its `read` raises UnreadableError.

    Args:
      paths: list of str: image files, TFRecord files and directories.
      skipped: list to which the paths of other files in the directories are appended.
      max_pixels: int, images with more pixels are unreadable.
      shards: `layout.Layout` of TFRecord files.

    Raises:
      UserError: an error of the system, such as permission denied.
    """
    for path in paths:
        if tf.gfile.IsDirectory(path):
            yield from _in_folder(path, skipped, max_pixels, shards)
        elif is_records(path):
            yield from records(path, shards)
        else:
            yield _of_file(path, max_pixels)


def is_records(path):
    """Returns whether a path names a TFRecord file, by its extension or as a shard."""
    return schema.is_record_file(os.path.basename(path))


def _in_folder(folder, skipped, max_pixels, shards):
    found = []
    try:
        for place, _, names in sorted(tf.gfile.Walk(folder)):
            for name in sorted(names):
                is_meant = image_files.is_image(name) or is_records(name)
                (found if is_meant else skipped).append(os.path.join(place, name))
    except tf.errors.OpError as error:
        raise read_error(folder, error) from error
    except UnicodeDecodeError as error:
        name = error.object.decode('ascii', 'backslashreplace')
        yield _unreadable(folder, f'{folder}: cannot be read (the file name {name} is not UTF-8); '
                          'rename the file.')
        return
    if not found:
        yield _unreadable(folder, f'{folder}: contains no image or TFRecord file.')
    yield from find(found, skipped, max_pixels, shards)


def _of_file(path, max_pixels):
    def read():
        _check_file(path)
        try:
            # TensorFlow reads only as many bytes as the file's reported size; open() reads all.
            with (tf.gfile.GFile if '://' in path else open)(path, 'rb') as file:
                encoded = file.read()
        except tf.errors.NotFoundError as error:
            raise UnreadableError(f'{path}: does not exist.') from error
        except (OSError, tf.errors.OpError) as error:
            raise read_error(path, error) from error
        try:
            return image_files.prepare(encoded, keep_png=True, max_pixels=max_pixels).encoded
        except image_files.BadImageError as error:
            raise UnreadableError(f'{path}: {error}.') from error

    return Image(path, read)


def _check_file(path):
    """Raises UnreadableError if `path` is not a file, UserError for an error of the system."""
    try:
        if '://' not in path:
            os.stat(path)
        check_input_file(path)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise read_error(path, error) from error
        raise UnreadableError(f'{path}: does not exist.') from error
    except UserError as error:
        if os.path.isfile(path):
            raise
        raise UnreadableError(str(error)) from error


def records(path, shards=layout.DETECTED, form=None, data_dir=None):
    """Yields an `Image` for each record of a TFRecord file.

    Args:
      path: str, path of the file.
      shards: `layout.Layout` of the file.
      form: `record_format.RecordFormat` of the records; None to detect it.
      data_dir: directory of the dataset; None for the directory of the file.
    """
    try:
        _check_file(path)
    except UnreadableError as error:
        yield _unreadable(path, str(error))
        return
    form = form or shards.record_format([path])
    data_dir = data_dir or os.path.dirname(path) or '.'
    index = -1
    for index, (record, reason) in enumerate(reader.iterate_records(path, form.compression)):
        name = f'{path}:{index}'
        if reason is None:
            yield _of_record(name, record, form, data_dir)
        else:
            yield _unreadable(name, f'{name}: cannot be read ({reason}).')
    if index < 0:
        yield _unreadable(path, f'{path}: contains no record.')


def _unreadable(name, reason):
    def fail():
        raise UnreadableError(reason)

    return Image(name, fail)


def _of_record(name, record, form, data_dir):
    try:
        encoded, label, _ = form.parse(record, needs_label=False)
    except ValueError as error:
        return _unreadable(name, f'{name}: {error}.')
    return Image(name, lambda: encoded, label, form.label_base, data_dir)


def of_split(data_dir, split, shards=layout.DETECTED):
    """Yields the images of a dataset's split in order; raises UserError if it has no shards."""
    paths = shards.find_shards(data_dir, split)
    form = shards.record_format(paths)
    for path in paths:
        yield from records(path, shards, form, data_dir)


def classes_of_labels(folder, num_classes, label_base=None, class_names=(), names_from=None,
                      usual_base=schema.IMAGENET.label_base):
    """Returns a dict that maps the labels of a dataset's records to classes of the model.

    Args:
      folder: directory of the records, with or without a dataset_info.json.
      num_classes: number of classes of the model; one more than the dataset's means that class 0
        is the background.
      label_base: label of the first class; None for that of dataset_info.json.
      class_names: names of the model's classes, or empty.
      names_from: see `class_labels.class_map`.
      usual_base: `label_base` if neither the argument nor dataset_info.json gives it.

    Raises:
      UserError: `label_base` or the class names contradict dataset_info.json.
    """
    info = schema.DatasetInfo.load(folder)
    base = checks.agreed('label_base', label_base, info and info.label_base,
                         f'the {schema.DATASET_INFO_NAME} in {folder}')
    dataset = info or schema.IMAGENET
    base = usual_base if base is None else base
    class_map = class_labels.class_map(
        class_names, dataset.class_names, names_from,
        f'the {schema.DATASET_INFO_NAME} in {folder}')
    if class_map:
        return {base + number: index for number, index in enumerate(class_map)}
    first_label = base - int(dataset.has_background(num_classes))
    return {first_label + index: index for index in range(num_classes)}


def classes_of_names(folder, num_classes, class_names, names_from):
    """Returns a dict that maps text labels to classes of the model; see `classes_of_labels`."""
    info = schema.DatasetInfo.load(folder)
    if not info or not info.class_names:
        return {name: index for index, name in enumerate(class_names)}
    class_map = class_labels.class_map(
        class_names, info.class_names, names_from, f'the {schema.DATASET_INFO_NAME} in {folder}')
    names = info.class_names if class_map else info.names_of(num_classes)
    return dict(zip(names, class_map or range(num_classes)))


class LabelClasses:
    """Maps the labels of images to the classes of a model.

    Args:
      label_base, class_names, names_from: see `classes_of_labels`.
      shown_names: class names to use for text labels if `class_names` is empty.
    """

    def __init__(self, label_base=None, class_names=(), names_from=None, shown_names=()):
        self._label_base, self._class_names = label_base, class_names
        self._names_from, self._shown_names = names_from, shown_names
        self._classes = {}

    def of(self, image, num_classes):
        """Returns the class of a labeled `Image`; raises UserError if the model has none."""
        kind = image.data_dir, image.label_base, type(image.label)
        if kind not in self._classes:
            self._classes[kind] = self._of_kind(*kind, num_classes)
        index = self._classes[kind].get(image.label)
        if index is None:
            raise UserError(f"{image.name}: label {image.label!r} is none of the model's "
                            f'{num_classes} classes; check --label_base, --class_names and the '
                            'model.')
        return index

    def _of_kind(self, folder, usual_base, label_type, num_classes):
        if label_type is str:
            return classes_of_names(
                folder, num_classes, self._class_names or self._shown_names, self._names_from)
        return classes_of_labels(folder, num_classes, self._label_base, self._class_names,
                                 self._names_from, usual_base)


class Decoder:
    """Decodes, crops and resizes encoded images as evaluation does; a context manager.

    Args:
      image_size: size of the decoded images, see `ImageSize.of`.
      resize_method: one of `preprocessing.RESIZE_METHODS`.
      max_pixels: int, images with more pixels count as undecodable.
    """

    def __init__(self, image_size, resize_method, max_pixels=image_formats.MAX_IMAGE_PIXELS):
        self._max_pixels = max_pixels
        with tf.Graph().as_default() as graph:
            self._bytes = tf.placeholder(tf.string, [None])
            self._images = imagenet_input.serving_input(
                self._bytes, image_size, resize_method, max_pixels)
        self._session = tf.Session(graph=graph)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.close()

    def decode(self, encoded):
        """Decodes a list of N images.

        Args:
          encoded: list of bytes.

        Returns:
          float32 [N, height, width, 3] in [0, 255].

        Raises:
          UnreadableError: an image cannot be decoded.
        """
        try:
            return self._session.run(self._images, {self._bytes: encoded})
        except tf.errors.OpError as error:
            raise UnreadableError(first_line(error)) from error

    def decode_all(self, images):
        """Decodes `Image`s and leaves out those that cannot be decoded.

        Returns:
          (good, pixels, reasons): list of the N decoded images, their pixels as float32
          [N, height, width, 3] or None if N is 0, and a list of one sentence for each other image.
        """
        good, encoded, reasons = [], [], []
        for image in images:
            try:
                content = image.read()
            except UnreadableError as error:
                reasons.append(str(error))
                continue
            excess = image_formats.excess(image_formats.image_size(content), self._max_pixels)
            if not content.startswith(
                    (image_formats.JPEG_SIGNATURE, image_formats.PNG_SIGNATURE)):
                reasons.append(f'{image.name}: neither a JPEG nor a PNG file.')
            elif excess:
                reasons.append(f'{image.name}: has {excess}.')
            else:
                encoded.append(content)
                good.append(image)
        if not good:
            return [], None, reasons
        try:
            return good, self.decode(encoded), reasons
        except UnreadableError:
            pass
        decoded, pixels = [], []
        for image, content in zip(good, encoded):
            try:
                pixels.append(self.decode([content]))
                decoded.append(image)
            except UnreadableError as error:
                reasons.append(f'{image.name}: cannot be decoded ({error}).')
        return decoded, np.concatenate(pixels) if pixels else None, reasons


def generated(count, image_size):
    """Generates images of colored waves, for use without a dataset; deterministic.

    Returns:
      float32 [count, height, width, 3] in [0, 255].
    """
    random = np.random.RandomState(0)
    height, width = ImageSize.of(image_size)
    rows, columns = np.mgrid[:height, :width]
    rows, columns = rows / height, columns / width
    images = []
    for _ in range(count):
        image = np.zeros([height, width, 3])
        for _ in range(6):
            frequency, phase = random.uniform(-8, 8, 2), random.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * (frequency[0] * rows + frequency[1] * columns) + phase)
            image += wave[:, :, np.newaxis] * random.uniform(-1, 1, 3)
        images.append(127.5 + 127.5 * image / np.abs(image).max())
    return np.clip(images, 0, 255).astype(np.float32)
