"""Publishes an export only after its own runtime has reproduced the checkpoint's predictions."""
import dataclasses
import itertools
import os
import time
from typing import NamedTuple

from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from export import images as export_images
from export import loading
from tfrecords import layout
from tfrecords import schema

NUM_IMAGES = 8
_NUM_TIMED = 5


class Tolerance(NamedTuple):
    """The largest deviation from the checkpoint that an export may have.

    Attributes:
      quantity: name of a field of `ExportReport`.
      limit: its largest accepted value.
    """
    quantity: str
    limit: float


FLOAT_TOLERANCE = Tolerance('max_difference', 1e-3)
INTEGER_TOLERANCE = Tolerance('max_probability_difference', 0.25)
# The logits of a barely trained network are all close to zero; relative to them, rounding errors
# would be large.
_LEAST_SCALE = 1e-2


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The reference of an export.

    Attributes:
      pixels: images, float32 [N, height, width, 3].
      predictions: the checkpoint's predictions for them, see `LoadedModel.predict`.
      origin: str, where the images are from.
    """
    pixels: np.ndarray
    predictions: dict
    origin: str


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The result of an export and of its comparison with the checkpoint.

    Attributes:
      path: path of the file or directory.
      max_difference: largest difference of a logit, as a fraction of the largest logit.
      max_probability_difference: largest difference of a probability, in [0, 1].
      num_agreeing: number of images with the same predicted class.
      num_images: number of images compared.
      origin: str, where the images are from.
      num_bytes: size of the file, or of all files in the directory.
      latency_ms: median milliseconds for a batch on this machine.
      batch_size: number of images in that batch.
    """
    path: str
    max_difference: float
    max_probability_difference: float
    num_agreeing: int
    num_images: int
    origin: str
    num_bytes: int
    latency_ms: float
    batch_size: int

    def __str__(self):
        return (f'{self.path}: {self.num_bytes / 1e6:.2f} MB, {self.latency_ms:.2f} ms for '
                f'{self.batch_size} image{"s" * (self.batch_size > 1)} here; max difference from '
                f'the checkpoint {self.max_difference:.1e} of the largest logit, '
                f'{self.max_probability_difference:.1e} of a probability, same class for '
                f'{self.num_agreeing} of {self.num_images} images ({self.origin})')


def expectation(trained, data_dir='', shards=layout.DETECTED):
    """Returns the `Expectation` of a checkpoint, by running it on a few images.

    Args:
      trained: a `TrainedModel`.
      data_dir: dataset whose validation images are used; '' for the run's own dataset, or for
        generated images if that does not exist.
      shards: `layout.Layout` of data_dir.

    Raises:
      UserError: none of the images in `data_dir` is readable.
    """
    pixels, origin = _pixels(trained, data_dir, shards)
    with loading.from_trained(trained) as model:
        return Expectation(pixels, model.predict(pixels), origin)


def _pixels(trained, data_dir, shards):
    if not data_dir and trained.shards.has_shards(trained.data_dir, schema.VALIDATION):
        data_dir, shards = trained.data_dir, trained.shards
    if data_dir:
        chosen = itertools.islice(
            export_images.of_split(data_dir, schema.VALIDATION, shards), NUM_IMAGES)
        with export_images.Decoder(trained.image_size, trained.builder.resize_method,
                                   trained.max_image_pixels) as decoder:
            _, pixels, faults = decoder.decode_all(chosen)
        if pixels is None:
            raise UserError(f'{data_dir}: contains no readable validation image; check the '
                            f'dataset. First error: {faults[0]}')
        for fault in faults:
            logging.warning('Skipped an image of the comparison: %s', fault)
        return pixels, f'validation images of {data_dir}'
    return export_images.generated(NUM_IMAGES, trained.image_size), 'generated'


def check_replaceable(path):
    """Raises UserError if `path` is a directory that is neither empty nor a SavedModel."""
    if (tf.gfile.IsDirectory(path) and tf.gfile.ListDirectory(path)
            and not tf.saved_model.maybe_saved_model_directory(path)):
        raise UserError(f'{path}: not empty and not a SavedModel, and an export would overwrite '
                        'it; choose another name, or remove it.')


def publish(path, write, description, expected, tolerance=FLOAT_TOLERANCE):
    """Writes an export under a temporary name, checks it, and renames it to `path`.

    Args:
      path: final path of a file (with extension) or a directory (without). An existing one is
        overwritten only after the new one is complete and checked.
      write: function that writes the export to a path.
      description: see `loading.describe`.
      expected: `Expectation`.
      tolerance: `Tolerance`.

    Returns:
      `ExportReport`.

    Raises:
      UserError: the export exceeds the tolerance, cannot be written, or would overwrite a
        directory that is no SavedModel.
    """
    check_replaceable(path)
    stem, extension = os.path.splitext(path)
    partial_path = f'{stem}.partial{extension}'
    try:
        _remove(partial_path)
        tf.gfile.MakeDirs(os.path.dirname(path) or '.')
        write(partial_path)
        loading.describe(partial_path, description)
        report = _checked(path, partial_path, expected)
        if not getattr(report, tolerance.quantity) <= tolerance.limit:  # NaN exceeds it, too.
            raise UserError(f'{report}: over the tolerance of {tolerance.limit:g}, so the export '
                            'was removed; --tolerance sets another limit.')
        _replace(partial_path, path)
        if tf.gfile.Exists(f'{partial_path}.json'):
            _replace(f'{partial_path}.json', f'{path}.json')
        return report
    except tf.errors.OpError as error:
        raise UserError(f'{path}: cannot be written ({first_line(error)}); choose another '
                        'directory.') from error
    finally:
        for leftover in (partial_path, f'{partial_path}.json'):
            _remove(leftover)


def _checked(path, partial_path, expected):
    with loading.load(partial_path) as model:
        actual = model.predict(expected.pixels)
        one_batch = expected.pixels[:1] if model.batch_size is None else np.resize(
            expected.pixels, [model.batch_size, *expected.pixels.shape[1:]])
        durations = []
        for _ in range(_NUM_TIMED + 1):
            start = time.perf_counter()
            model.run(one_batch)
            durations.append(time.perf_counter() - start)
    differences = {name: np.abs(actual[name] - expected.predictions[name]).max()
                   for name in ('logits', 'probabilities')}
    scale = max(np.abs(expected.predictions['logits']).max(), _LEAST_SCALE)
    return ExportReport(
        path=path,
        max_difference=float(differences['logits'] / scale),
        max_probability_difference=float(differences['probabilities']),
        num_agreeing=int(np.sum(actual['classes'] == expected.predictions['classes'])),
        num_images=len(expected.pixels),
        origin=expected.origin,
        num_bytes=_size(partial_path),
        # The first run is a warm-up.
        latency_ms=float(np.median(durations[1:])) * 1e3,
        batch_size=len(one_batch))


def _size(path):
    if not tf.gfile.IsDirectory(path):
        return tf.gfile.Stat(path).length
    return sum(tf.gfile.Stat(os.path.join(folder, name)).length
               for folder, _, names in tf.gfile.Walk(path) for name in names)


def _replace(source, target):
    """Renames `source` to `target`; an existing directory is removed after the rename."""
    if not tf.gfile.IsDirectory(target):
        tf.gfile.Rename(source, target, overwrite=True)
        return
    retired = f'{target}.replaced'
    _remove(retired)
    tf.gfile.Rename(target, retired)
    tf.gfile.Rename(source, target)
    _remove(retired)


def _remove(path):
    if tf.gfile.IsDirectory(path):
        tf.gfile.DeleteRecursively(path)
    elif tf.gfile.Exists(path):
        tf.gfile.Remove(path)
