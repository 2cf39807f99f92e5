"""Nothing is left under its final name before its own runtime has said what the checkpoint says."""
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
    """The most that an export may differ from the checkpoint.

    Attributes:
      quantity: field of `ExportReport`.
      limit: its largest value that will do.
    """
    quantity: str
    limit: float


FLOAT_TOLERANCE = Tolerance('max_difference', 1e-3)
INTEGER_TOLERANCE = Tolerance('max_probability_difference', 0.25)
# Logits of a network that has hardly learned are all nearly zero, rounding errors are not.
_LEAST_SCALE = 1e-2


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What an export has to reproduce: images, and the checkpoint's predictions of them."""
    pixels: np.ndarray
    predictions: dict
    origin: str


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What came of an export.

    Attributes:
      path: of the file or the folder.
      max_difference: of a logit from the checkpoint's, in parts of the largest logit.
      max_probability_difference: of a probability from the checkpoint's.
      num_agreeing: images of the same class as by the checkpoint, of `num_images` from `origin`.
      num_bytes: size.
      latency_ms: median milliseconds of a batch of `batch_size` images, here.
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
    """Runs the checkpoint on a few validation images of `data_dir`, or of the run's data set.

    `shards` is the `layout.Layout` of data_dir.
    Where there is none, on images that are made up.
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
            raise UserError(f'{data_dir} has no readable validation image: {faults[0]}')
        for fault in faults:
            logging.warning('Not compared: %s', fault)
        return pixels, f'validation images of {data_dir}'
    return export_images.generated(NUM_IMAGES, trained.image_size), 'generated'


def check_replaceable(path):
    """Raises UserError for a folder that holds something, and is no SavedModel."""
    if (tf.gfile.IsDirectory(path) and tf.gfile.ListDirectory(path)
            and not tf.saved_model.maybe_saved_model_directory(path)):
        raise UserError(f'{path} holds something that is no SavedModel, and an export would take '
                        'its place; choose another name, or remove it.')


def publish(path, write, description, expected, tolerance=FLOAT_TOLERANCE):
    """Writes an export under a temporary name, checks it, and gives it its name.

    Args:
      path: the final name, of a file (with extension) or a folder (without). What is there is
        replaced when the new one is whole and checked, and not touched before.
      write: function of the path to write to.
      description: see `loading.describe`.
      expected: `Expectation`.
      tolerance: `Tolerance`.

    Returns:
      `ExportReport`.

    Raises:
      UserError: the export differs by more than the tolerance, or cannot be written, or would
        replace a folder of something else.
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
        if not getattr(report, tolerance.quantity) <= tolerance.limit:  # NaN is over it, too.
            raise UserError(f'{report}: over the tolerance of {tolerance.limit:g}, so nothing is '
                            'left under that name; --tolerance sets another.')
        _replace(partial_path, path)
        if tf.gfile.Exists(f'{partial_path}.json'):
            _replace(f'{partial_path}.json', f'{path}.json')
        return report
    except tf.errors.OpError as error:
        raise UserError(f'{path} cannot be written ({first_line(error)}); choose '
                        'another folder.') from error
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
        # The first run warms up.
        latency_ms=float(np.median(durations[1:])) * 1e3,
        batch_size=len(one_batch))


def _size(path):
    if not tf.gfile.IsDirectory(path):
        return tf.gfile.Stat(path).length
    return sum(tf.gfile.Stat(os.path.join(folder, name)).length
               for folder, _, names in tf.gfile.Walk(path) for name in names)


def _replace(source, target):
    """Renames; a folder that is in the way goes when the new one has its name."""
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
