"""Measures the cost of augmenting an image: `python -m benchmarks.augmentation_ops`.

Prints milliseconds of one core for each operation of autoaugment.py at AutoAugment's level 9, for
whole policies, and for the stages before them. The time of an empty pipeline is subtracted. The
images are those of `benchmarks.photos`, cached in memory.
"""
import time

from absl import flags
import numpy as np
from PIL import Image
import tensorflow.compat.v1 as tf

import autoaugment
from benchmarks import outputs
from benchmarks import photos
from common import app
from common import conversions
from common.image_sizes import ImageSize
from config import setting
import preprocessing

LEVEL = 9
ROUNDS = 7
IMAGES_PER_ROUND = {'operation': 100, 'stage': 100, 'policy': 500}


def define_flags():
    setting.define_image_size('image_size', 224, 'Side of the images in pixels, or HEIGHTxWIDTH.')
    flags.DEFINE_string('json', None, 'File to write the results to: milliseconds by name.')


def resized_photos(image_size):
    """Returns the photographs, uint8 [20, height, width, 3]."""
    height, width = ImageSize.of(image_size)
    return np.stack([photo.resize([width, height], Image.BICUBIC)
                     for photo in photos.load()])


def functions(image_size):
    """Returns the functions to measure: name -> (function of image and argument, kind)."""
    height, width = ImageSize.of(image_size)

    def operation(name):
        def apply(image, argument):
            if name == 'Cutout':
                return autoaugment.OPS[name](image, argument, [height // 2, width // 3])
            has_argument = autoaugment.level_to_args(name, LEVEL, autoaugment.AUTOAUGMENT_REACH)
            return autoaugment.OPS[name](image, *([argument] if has_argument else []))
        return apply

    return {
        'nothing': (lambda image, _: image, 'policy'),
        'resize': (lambda image, _: preprocessing.resize(image, image_size, 'bicubic'), 'stage'),
        'resize and round': (lambda image, _: conversions.round_to_uint8(
            preprocessing.resize(image, image_size, 'bicubic')), 'stage'),
        'mirror': (lambda image, _: tf.reverse(image, axis=[1]), 'stage'),
        **{name: (operation(name), 'operation') for name in autoaugment.OPS},
        'AutoAugment v0': (lambda image, _: autoaugment.distort_image_with_autoaugment(
            image, 'v0'), 'policy'),
        'RandAugment(2, 10)': (lambda image, _: autoaugment.distort_image_with_randaugment(
            image, 2, 10), 'policy'),
    }


def measure(images):
    """Returns name -> milliseconds of one core per image, the minimum of `ROUNDS` rounds."""
    measured = {}
    with tf.Graph().as_default():
        for name, (function, kind) in functions(images.shape[1:3]).items():
            args = autoaugment.level_to_args(
                name, LEVEL, autoaugment.AUTOAUGMENT_REACH) if kind == 'operation' else ()
            # The argument comes with the image, so that TensorFlow cannot fold it into a constant.
            dataset = tf.data.Dataset.from_tensor_slices((images, np.full(
                len(images), sum(args), np.float32))).cache().repeat().map(
                    tf.autograph.experimental.do_not_convert(function))
            count = IMAGES_PER_ROUND[kind]
            measured[name] = count, dataset.take(count).reduce(
                np.int64(0), lambda total, _: total + 1)
        # One thread, because splitting work over threads has its own cost.
        config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf.Session(config=config) as session:
            milliseconds = {name: [] for name in measured}
            for _ in range(1 + ROUNDS):
                for name, (count, run) in measured.items():
                    start = time.process_time()
                    session.run(run)
                    milliseconds[name].append((time.process_time() - start) * 1000 / count)
    # The first round is a warm-up.
    least = {name: min(rounds[1:]) for name, rounds in milliseconds.items()}
    nothing = least.pop('nothing')
    return {name: value - nothing for name, value in least.items()}


def main(argv):
    """Prints one line for each stage, operation and policy."""
    del argv
    outputs.check_json(flags.FLAGS.json)
    measured = measure(resized_photos(flags.FLAGS.image_size))
    for name, milliseconds in measured.items():
        print(f'{name:20}{milliseconds:8.3f} ms {1000 / milliseconds:8.0f} images/s')
    outputs.write_json(
        flags.FLAGS.json, {name: round(value, 4) for name, value in measured.items()})


if __name__ == '__main__':
    define_flags()
    app.run(main)
