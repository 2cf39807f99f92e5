"""Compares a network here with timm's, which another Python has: the same weights and images."""
import os
import subprocess
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from common.errors import UserError
from common.errors import last_line
from common.stages import stage
import efficientnet_builder
import model_builder_factory
from weights import conversion
from weights import origin
from weights import pytorch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Of the largest logit. Rounding comes to 8e-5 in the deepest network, and a kernel in the wrong
# layout to more than 1e-2.
TOLERANCE = 1e-3
_BATCH_SIZE = 4
_PATCHES = 8                # of an image, in each direction
_MAX_IMAGE_SIZE = 456       # that of b5: larger networks need tens of gigabytes at their own


class Comparison(NamedTuple):
    """How a network here and timm's differ.

    Attributes:
      model_name, image_size: what was compared.
      difference: the largest of a logit, in parts of the largest logit.
      num_equal, num_images: images, and those whose class with the largest logit is the same.
    """
    model_name: str
    image_size: int
    difference: float
    num_equal: int
    num_images: int

    def __str__(self):
        return (f'{self.model_name} at {self.image_size} pixels: logits differ from those of timm '
                f'by {self.difference:.1e} of the largest, same class {self.num_equal} of '
                f'{self.num_images}')


def random_weights(model_name, pytorch_python):
    """Returns `NetworkWeights` that timm made from a seed, with batch statistics of images."""
    with tempfile.TemporaryDirectory() as folder:
        # Written by torch itself, so that the reader is compared too.
        path = os.path.join(folder, f'{origin.timm_name(model_name)}.pth')
        _run_timm(pytorch_python, model_name, 'make', images=_save_images(folder, model_name),
                  output=path)
        return conversion.read(path, 'input')


def compare(weights, pytorch_python):
    """Returns the `Comparison` of a network with timm's.

    Args:
      weights: a `NetworkWeights`. timm loads what `pytorch.write` writes; this program restores
        the checkpoint that `conversion.write_checkpoint` writes.
      pytorch_python: path of an interpreter.

    Raises:
      UserError: they differ by more than `TOLERANCE`, or timm does not load the weights.
    """
    name = weights.model_name
    with tempfile.TemporaryDirectory() as folder:
        images = _save_images(folder, name, weights.normalization)
        path, logits_path = (os.path.join(folder, each) for each in ('timm.safetensors', 'out.npy'))
        pytorch.write(weights, path, enable_ema=True)
        with stage(f'{name} in timm'):
            _run_timm(pytorch_python, name, 'predict', weights=path, images=images,
                      output=logits_path)
        theirs = np.load(logits_path)
        checkpoint_dir = os.path.join(folder, 'checkpoint')
        conversion.write_checkpoint(weights, checkpoint_dir)
        with stage(f'{name} here'):
            ours = _logits(weights, checkpoint_dir, np.load(images))
    ours = ours[:, -theirs.shape[1]:]      # timm has no background class
    found = Comparison(
        name, _image_size(name), float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        int((ours.argmax(1) == theirs.argmax(1)).sum()), len(ours))
    if not found.difference <= TOLERANCE:
        raise UserError(f'{found}, which is more than {TOLERANCE:g}; do not use these weights, and '
                        'report it.')
    return found


def _image_size(model_name):
    return min(model_builder_factory.get_model_input_size(model_name), _MAX_IMAGE_SIZE)


def _save_images(folder, model_name, normalization=None):
    """Writes normalized images, float32 [batch, size, size, 3]; returns the path of the file."""
    size = _image_size(model_name)
    random = np.random.RandomState(0)
    repeats = -(-size // _PATCHES)
    patches = random.uniform(0, 255, [_BATCH_SIZE, _PATCHES, _PATCHES, 3])
    pixels = patches.repeat(repeats, axis=1).repeat(repeats, axis=2)[:, :size, :size]
    pixels = 0.8 * pixels + 0.2 * random.uniform(0, 255, pixels.shape)
    builder = model_builder_factory.get_model_builder(model_name, normalization)
    path = os.path.join(folder, 'images.npy')
    np.save(path, ((pixels - builder.MEAN_RGB) / builder.STDDEV_RGB).astype(np.float32))
    return path


def _logits(weights, checkpoint_dir, images):
    checkpoint = store.latest(checkpoint_dir)
    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = model_builder_factory.get_model_builder(weights.model_name).build_model(
            tf.constant(images), weights.model_name, training=False,
            override_params={'num_classes': weights.num_classes, **efficientnet_builder.PORTABLE})
        kind = restore.EMA if weights.averages else restore.RAW
        restore.weights_saver(kind, checkpoint).restore(session, checkpoint)
        return session.run(logits)


def _run_timm(pytorch_python, model_name, task, **paths):
    options = {'task': task, 'timm_name': origin.timm_name(model_name), **paths}
    try:
        completed = subprocess.run(
            [pytorch_python, '-m', 'weights.timm_worker',
             *(f'--{name}={value}' for name, value in options.items())], cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise UserError(f'--pytorch_python={pytorch_python}: cannot be run ({error.strerror}); '
                        'name a Python interpreter.') from error
    if completed.returncode:
        reason = last_line(RuntimeError(completed.stderr))
        raise UserError(f'--pytorch_python={pytorch_python}: timm failed ({reason}); check that '
                        'torch and timm are installed there.')
