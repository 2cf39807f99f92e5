"""Writes and reads the inputs of offline inference: .bin files, labels and a manifest."""
import concurrent.futures
import hashlib
import itertools
import json
import os
import re
from typing import NamedTuple
from typing import Optional

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

from common import json_files
from common.errors import UserError
from common.files import whole_file
from common.image_sizes import ImageSize
from common.paths import check_input_file
from export import images as export_images

MANIFEST = 'manifest.json'
LABELS = 'image_labels.txt'
# Journal of an unfinished prepare. Each line has the name of a finished file, the checksum of its
# encoded images, and the checksum of its own content.
_FINISHED = 'finished.txt'
_INPUT = re.compile(r'\d{5,}\.bin')
DTYPES = ('float32', 'uint8')
_CURE = 'run prepare again, with an empty --output_dir'
_FIELDS = {
    'shape': json_files.Kind('a list of four positive integers', lambda value: (
        isinstance(value, list) and len(value) == 4
        and all(json_files.is_integer(size, 1) for size in value))),
    'dtype': json_files.Kind(' or '.join(DTYPES), lambda value: value in DTYPES),
    'batch_size': json_files.POSITIVE, 'num_classes': json_files.POSITIVE,
    'num_images': json_files.POSITIVE, 'num_padding': json_files.INTEGER,
    'model_name': json_files.TEXT, 'class_names': json_files.TEXTS,
    'model_checksum': json_files.optional(json_files.TEXT),
    'image_size': json_files.IMAGE_SIZE,
    'has_labels': json_files.Kind('true or false', lambda value: isinstance(value, bool)),
    'files': json_files.TEXT_OF_KEY}


class Clipping(NamedTuple):
    """Values of resized images below 0 or above 255, which uint8 clips.

    Attributes:
      share: fraction of the values that were clipped, in [0, 1].
      largest: largest distance of a value from [0, 255].
    """
    share: float
    largest: float


class _Written(NamedTuple):
    """A .bin file: its name, the checksums of its encoded images and of its own content."""
    name: str
    source: str
    checksum: str
    clipping: Optional[Clipping] = None


def prepare(images, labels, settings, max_pixels, folder, num_images):
    """Writes the inputs of a model; returns their manifest, and their `Clipping` or None.

    Files of an earlier attempt are kept if their settings, encoded images and content are
    unchanged; its other files are removed. The manifest lists no files until all are written.

    Args:
      images: iterable of `images.Image`.
      labels: function that maps an image to its class, or None for images without labels.
      settings: dict of the first fields of the manifest.
      max_pixels: largest number of pixels that an image may have.
      folder: directory to write to.
      num_images: int for the progress bar, or None if unknown.

    Raises:
      UserError: an image cannot be read, or the directory contains other files.
    """
    images = _checked_first(iter(images), labels, settings['source'])
    known = _begin(folder, settings)
    batch_size = settings['batch_size']
    written, classes, tasks = [], [], []
    num_workers = len(os.sched_getaffinity(0))
    with concurrent.futures.ProcessPoolExecutor(num_workers) as executor, tqdm.tqdm(
            total=num_images, unit=' images', disable=None, leave=False) as progress, open(
                os.path.join(folder, _FINISHED), 'a') as finished:
        def finish(task):
            written.append(task.result())
            finished.write(f'{written[-1].name} {written[-1].source} {written[-1].checksum}\n')
            finished.flush()
            progress.update(batch_size)

        for index in itertools.count():
            batch = list(itertools.islice(images, batch_size))
            if not batch:
                break
            encoded = [_encoded(image) for image in batch]
            if labels:
                classes.append([labels(image) for image in batch])
            name = f'{index:05}.bin'
            tasks.append(executor.submit(
                _write, os.path.join(folder, name), [image.name for image in batch],
                encoded, settings, max_pixels, known.get(name)))
            num_padding = batch_size - len(batch)
            if len(tasks) > 4 * num_workers:
                finish(tasks.pop(0))
        for task in tasks:
            finish(task)
    manifest = {**settings, 'num_images': len(written) * batch_size - num_padding,
                'num_padding': num_padding, 'has_labels': labels is not None,
                'sources': {file.name: file.source for file in written},
                'files': {file.name: file.checksum for file in written}}
    if labels:
        _write_labels(folder, zip(manifest['files'], classes))
    _remove_stale(folder, manifest)
    _write_manifest(folder, manifest)
    os.remove(os.path.join(folder, _FINISHED))
    clipped = [file.clipping for file in written if file.clipping]
    return manifest, clipped and Clipping(
        np.mean([each.share for each in clipped]), max(each.largest for each in clipped)) or None


def _checked_first(images, labels, source):
    """Returns the same images; raises UserError, before any write, if the first is unusable."""
    first = next(images, None)
    if first is None:
        raise UserError(f'{source}: contains no image; name another directory.')
    _encoded(first)
    if labels:
        labels(first)
    return itertools.chain([first], images)


def _begin(folder, settings):
    """Writes the manifest without files; returns the files of an earlier attempt.

    Returns:
      dict name of a file -> (checksum of its encoded images, checksum of its content).

    Raises:
      UserError: the directory contains other files, or inputs with other settings.
    """
    tf.gfile.MakeDirs(folder)
    path = os.path.join(folder, MANIFEST)
    earlier = json_files.read_if_any(path, 'remove it', {})
    if earlier is None and tf.gfile.ListDirectory(folder):
        raise UserError(f'--output_dir={folder}: not empty and without a {MANIFEST}; name another '
                        'directory.')
    if earlier is not None and any(earlier.get(key) != value for key, value in settings.items()):
        raise UserError(f'--output_dir={folder}: contains inputs of another model, dataset or '
                        'dtype; name another directory, or remove it.')
    parts = json_files.parse(json.dumps(earlier or {}), path, _CURE, {
        name: json_files.optional(json_files.TEXT_OF_KEY) for name in ('sources', 'files')})
    sources, checksums = (parts.get(name) or {} for name in ('sources', 'files'))
    known = {name: (sources[name], checksums[name]) for name in sources if name in checksums}
    finished = os.path.join(folder, _FINISHED)
    if os.path.exists(finished):
        check_input_file(finished)
        with open(finished, errors='replace') as file:
            # The last line may be truncated if the process was killed.
            known.update((words[0], tuple(words[1:])) for words in map(str.split, file)
                         if len(words) == 3)
    with whole_file(finished) as file:
        file.write(''.join(f'{name} {source} {own}\n' for name, (source, own) in known.items()))
    _write_manifest(folder, {**settings, 'sources': {}, 'files': {}})
    return known


def _write_labels(folder, rows):
    with whole_file(os.path.join(folder, LABELS)) as file:
        file.write(''.join(f"{name} {' '.join(map(str, classes))}\n" for name, classes in rows))


def _remove_stale(folder, manifest):
    """Removes files that an earlier attempt wrote for other images."""
    for name in os.listdir(folder):
        if (_INPUT.fullmatch(name) and name not in manifest['files']
                or name == LABELS and not manifest['has_labels']):
            os.remove(os.path.join(folder, name))


def _write_manifest(folder, manifest):
    with whole_file(os.path.join(folder, MANIFEST)) as file:
        json.dump(manifest, file, indent=1)


def _encoded(image):
    try:
        return image.read()
    except export_images.UnreadableError as error:
        raise UserError(f'{str(error).rstrip(".")}; remove it from the dataset.') from error


_decoders = {}    # one per worker process and settings


def _write(path, names, encoded, settings, max_pixels, known):
    """Writes a .bin file unless it has the same content already; returns a `_Written`."""
    source = checksum(b''.join(encoded))
    name, dtype = os.path.basename(path), np.dtype(settings['dtype'])
    if known and known[0] == source and os.path.exists(path):
        check_input_file(path)
        with open(path, 'rb') as file:
            if checksum(file.read()) == known[1]:
                return _Written(name, *known)
    key = settings['image_size'], settings['resize_method'], max_pixels
    if key not in _decoders:
        _decoders[key] = export_images.Decoder(*key)
    read = [export_images.Image(each, lambda content=content: content)
            for each, content in zip(names, encoded)]
    _, pixels, reasons = _decoders[key].decode_all(read)
    if reasons:
        raise UserError(f'{reasons[0].rstrip(".")}; remove it from the dataset.')
    clipping = None
    if dtype == np.uint8:
        rounded = np.rint(pixels)
        pixels = np.clip(rounded, 0, 255)
        distance = np.abs(rounded - pixels)
        clipping = Clipping(float((distance > 0).mean()), float(distance.max()))
    padded = np.zeros(settings['shape'], dtype)
    padded[:len(pixels)] = pixels
    content = padded.tobytes()
    with whole_file(path, 'wb') as file:
        file.write(content)
    return _Written(name, source, checksum(content), clipping)


def checksum(content):
    return hashlib.sha256(content).hexdigest()


def read_manifest(folder):
    """Returns the manifest of prepared inputs.

    Raises:
      UserError: there is no manifest, it is corrupt, or the inputs are incomplete.
    """
    path = os.path.join(folder, MANIFEST)
    manifest = json_files.read(path, _CURE, {'files': json_files.TEXT_OF_KEY})
    if not manifest['files']:
        raise UserError(f'{path}: the inputs are incomplete; run prepare again.')
    json_files.parse(json.dumps(manifest), path, _CURE, _FIELDS)
    num_files, batch_size = len(manifest['files']), manifest['batch_size']
    if (manifest['shape'] != [batch_size, *ImageSize.of(manifest['image_size']), 3]
            or manifest['num_images'] + manifest['num_padding'] != num_files * batch_size
            or manifest['num_padding'] >= batch_size
            or list(manifest['files']) != [f'{index:05}.bin' for index in range(num_files)]
            or len(manifest['class_names']) not in (0, manifest['num_classes'])):
        raise UserError(f'{path}: the shape, files and number of images contradict each other; '
                        f'{_CURE}.')
    return manifest


def read(folder, manifest):
    """Yields (name, images) of each file, where images is [N, height, width, 3].

    Raises:
      UserError: a file is missing, truncated or changed.
    """
    for name, expected in manifest['files'].items():
        path = os.path.join(folder, name)
        check_input_file(path)
        with open(path, 'rb') as file:
            content = file.read()
        if checksum(content) != expected:
            raise UserError(f'{path}: truncated or changed since it was prepared; remove it and '
                            'run prepare again.')
        yield name, np.frombuffer(content, manifest['dtype']).reshape(manifest['shape'])


def read_labels(folder, manifest):
    """Returns the class of each image, int [num_images].

    Raises:
      UserError: the file of labels is missing or contradicts the manifest.
    """
    path = os.path.join(folder, LABELS)
    check_input_file(path)
    with open(path, errors='replace') as file:
        rows = [line.split() for line in file]
    labels = [word for row in rows for word in row[1:]]
    num_classes = manifest['num_classes']
    if ([row[0] for row in rows if row] != list(manifest['files'])
            or len(labels) != manifest['num_images']
            or not all(word.isascii() and word.isdigit() and len(word) < 9
                       and int(word) < num_classes for word in labels)):
        raise UserError(f'{path}: the names or labels contradict {MANIFEST}; {_CURE}.')
    return np.array(labels, int)
