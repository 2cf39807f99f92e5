"""Random distortions of single training images, with timm's parameters: `(image, seed) -> image`.

Images are uint8 [H, W, 3] of static shape. The seed, int64 [2], belongs to the image. Each
distortion has its own random stream.
"""
import functools
import math

import numpy as np
import tensorflow.compat.v1 as tf

from common import conversions
from common import image_ops

# Offsets of the streams from the seed of an image. The horizontal flip has 0 and `autoaugment` 1.
_FLIP_STREAM, _JITTER_STREAM, _ERASING_STREAM, _FILL_STREAM = range(2, 6)

# Weights of red, green and blue in a gray value (ITU-R BT.601), as in Pillow's mode L.
GRAY_WEIGHTS = 0.299, 0.587, 0.114

ERASED_AREA = 0.02, 1 / 3          # share of the image
ERASED_ASPECT_RATIO = 0.3, 1 / 0.3  # height / width
ERASING_ATTEMPTS = 10


def chosen(strength, erasing_prob):
    """Returns the enabled distortions in timm's order: a tuple of `(image, seed) -> image`.

    Args:
        strength: see `color_jitter`; 0 disables it.
        erasing_prob: see `random_erasing`; 0 disables it.
    """
    return (*((functools.partial(color_jitter, strength=strength),) if strength else ()),
            *((functools.partial(random_erasing, probability=erasing_prob),)
              if erasing_prob else ()))


def vertical_flip(image, seed):
    """Mirrors the image top to bottom with probability 0.5."""
    flipped = tf.cond(_draw(seed, _FLIP_STREAM, []) < 0.5,
                      lambda: tf.reverse(image, axis=[0]), lambda: image)
    return tf.ensure_shape(flipped, image.shape)


def color_jitter(image, seed, strength):
    """Changes brightness, contrast and saturation by random factors.

    Each factor is uniform in [1 - strength, 1 + strength], as in timm with a single number for
    --color-jitter. A factor f blends the image x with a simpler image s to s + f (x - s); s is
    black for brightness, the mean gray value for contrast, and the grayscale image for saturation.

    Pixels are rounded and clipped once, at the end, so the order of the three does not matter.
    torchvision, which timm calls, draws the order, and truncates and clips after each of the three.

    Args:
        image: uint8 [H, W, 3].
        seed: int64 [2].
        strength: number in (0, 1].
    """
    factors = 1 + strength * (2 * _draw(seed, _JITTER_STREAM, [3]) - 1)
    brightness, contrast, saturation = tf.unstack(factors)
    pixels = tf.reshape(conversions.to_float(image), [-1, 3])
    gray = np.array(GRAY_WEIGHTS, np.float32)
    mean_gray = tf.reduce_sum(tf.reduce_mean(pixels, axis=0) * gray)
    # Columns of `to_gray` are equal: each channel of the product is the gray value.
    to_gray = np.tile(gray[:, np.newaxis], [1, 3])
    matrix = np.eye(3, dtype=np.float32) * saturation + to_gray * (1 - saturation)
    pixels = tf.matmul(pixels, matrix * (brightness * contrast))
    pixels += brightness * (1 - contrast) * mean_gray
    return tf.reshape(conversions.round_to_uint8(pixels), image.shape)


def random_erasing(image, seed, probability):
    """Fills a random rectangle with noise, with the given probability.

    The noise is uniform in 0..255 for each pixel and channel, as in the paper. Area and aspect
    ratio are drawn as in timm: the area is uniform in `ERASED_AREA` of the image, the ratio
    log-uniform in `ERASED_ASPECT_RATIO`. The first of `ERASING_ATTEMPTS` rectangles that is lower
    and narrower than the image is placed uniformly; if none is, the image is returned unchanged.

    Args:
        image: uint8 [H, W, 3].
        seed: int64 [2].
        probability: number in (0, 1].

    Source: Zhong et al., arXiv:1708.04896, algorithm 1.
    """
    height, width, _ = image.shape.as_list()
    chance, y, x, *shapes = tf.unstack(_draw(seed, _ERASING_STREAM, [3 + 2 * ERASING_ATTEMPTS]))
    area, ratio = tf.unstack(tf.reshape(tf.stack(shapes), [2, ERASING_ATTEMPTS]))
    smallest, largest = ERASED_AREA
    area = height * width * (smallest + (largest - smallest) * area)
    low, high = map(math.log, ERASED_ASPECT_RATIO)
    ratio = tf.exp(low + (high - low) * ratio)
    heights, widths = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
    fits = (heights < height) & (widths < width)
    first = tf.argmax(tf.cast(fits, tf.int32))
    erased_height, erased_width = (
        tf.cast(sides[first], tf.int32) for sides in (heights, widths))

    def erase():
        top, left = (tf.cast(draw * tf.cast(size - side + 1, tf.float32), tf.int32)
                     for draw, size, side in ((y, height, erased_height), (x, width, erased_width)))
        noise = tf.random.stateless_uniform(
            [erased_height, erased_width * 3], _stream(seed, _FILL_STREAM), minval=0, maxval=256,
            dtype=tf.int32)
        return image_ops.paste(image, tf.cast(noise, tf.uint8), top, left)

    return tf.cond((chance < probability) & tf.reduce_any(fits), erase, lambda: image)


def _stream(seed, number):
    return tf.cast(seed, tf.int64) + [0, number]


def _draw(seed, stream, shape):
    """Returns a float32 tensor of the given shape, uniform in [0, 1)."""
    return tf.random.stateless_uniform(shape, _stream(seed, stream))
