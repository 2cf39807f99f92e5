"""Pixel operations of AutoAugment and RandAugment on uint8 images [H, W, 3] of static shape.

Every operation returns uint8 of the same shape. Results equal those of the scripts that
EfficientNet and CondConv were published with, pixel for pixel (test/golden/augmentation).
Docstrings name the quirks that are kept for that.

On a CPU, TensorFlow 1.15 is fast at float32 arithmetic and at copying rows. Conversions from and to
uint8, gathers, histograms, `tf.pad`, `tf.where`, small convolutions and broadcasts over a last
dimension of 3 cost many times more, so the operations avoid them where they can.

TensorFlow's graph optimizer reorders sums, which changes their rounding, but not differences. A sum
whose rounding matters is therefore written as a difference.
"""
import math

import numpy as np
import tensorflow.compat.v1 as tf

from common import conversions

FILL = 128        # gray value of pixels that an operation leaves empty


def _rows(image):
    height, width, channels = image.shape.as_list()
    return tf.reshape(image, [height, width * channels])


# Operations on single values. They compute eight values at once, packed into an int64; no byte may
# carry into the next.

_ONES = 0x0101010101010101


def _to_words(image):
    flat = tf.reshape(image, [-1])
    padding = -image.shape.num_elements() % 8
    if padding:
        flat = tf.concat([flat, tf.zeros([padding], tf.uint8)], axis=0)
    return tf.bitcast(tf.reshape(flat, [-1, 8]), tf.int64)


def _from_words(words, image):
    flat = tf.reshape(tf.bitcast(words, tf.uint8), [-1])
    return tf.reshape(flat[:image.shape.num_elements()], image.shape)


def _highest_bits(words):
    """Returns 1 in each byte that is at least 128, 0 in the others."""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, 7), _ONES)


def _at_least(words, threshold):
    """Returns 1 in each byte that is at least `threshold`, 0 in the others.

    Args:
        words: int64, see `_to_words`.
        threshold: int32 scalar in 0..256.
    """
    is_low = threshold <= 128
    # This addition carries into the eighth bit where the lower seven bits reach the threshold's.
    complement = tf.cast(tf.where(is_low, 128 - threshold, 256 - threshold), tf.int64)
    carries = tf.bitwise.bitwise_and(words, 127 * _ONES) + complement * _ONES
    return _highest_bits(tf.where(is_low, tf.bitwise.bitwise_or(words, carries),
                                  tf.bitwise.bitwise_and(words, carries)))


def invert(image):
    """Replaces each value v by 255 - v."""
    return _from_words(tf.bitwise.invert(_to_words(image)), image)


def posterize(image, bits):
    """Keeps the highest `bits` bits of each value.

    Quirks: a higher level keeps more bits and so distorts less. The published scripts drop 8 - bits
    as a uint8, and TensorFlow shifts by at most 7: `bits` of 0 or above 8 keeps 1 bit.
    """
    dropped = tf.minimum(tf.floormod(8 - tf.cast(bits, tf.int64), 256), 7)
    mask = 256 - tf.bitwise.left_shift(tf.constant(1, tf.int64), dropped)
    return _from_words(tf.bitwise.bitwise_and(_to_words(image), mask * _ONES), image)


def solarize(image, threshold):
    """Inverts the values that are at least `threshold`.

    Quirk: the threshold is a uint8 in the published scripts. 256, that of level 10, wraps to 0 and
    inverts every value.
    """
    words = _to_words(image)
    is_bright = _at_least(words, tf.floormod(tf.cast(threshold, tf.int32), 256))
    return _from_words(tf.bitwise.bitwise_xor(words, is_bright * 255), image)


def solarize_add(image, addition):
    """Adds `addition`, at least 0, to the values below 128; sums above 255 become 255."""
    words = _to_words(image)
    addition = tf.minimum(tf.cast(addition, tf.int32), 255)
    is_dark = _highest_bits(tf.bitwise.invert(words))
    is_over = tf.bitwise.bitwise_and(is_dark, _at_least(words, 256 - addition))
    sums = words + (is_dark - is_over) * tf.cast(addition, tf.int64)
    return _from_words(tf.bitwise.bitwise_or(sums, is_over * 255), image)


def auto_contrast(image):
    """Stretches each channel to the range 0..255; a channel with a single value is unchanged."""
    width = image.shape[1].value
    rows = conversions.to_float(_rows(image))
    lowest = tf.reduce_min(tf.reshape(tf.reduce_min(rows, axis=0), [width, 3]), axis=0)
    highest = tf.reduce_max(tf.reshape(tf.reduce_max(rows, axis=0), [width, 3]), axis=0)
    is_flat = tf.equal(lowest, highest)
    scale = tf.where(is_flat, tf.ones([3]), 255.0 / (highest - lowest))
    offset = tf.where(is_flat, tf.zeros([3]), -lowest * scale)
    rows = rows * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.reshape(conversions.cut_to_uint8(rows), image.shape)


def equalize(image):
    """Equalizes the histogram of each channel."""
    height, width, _ = image.shape.as_list()
    # Pairs of values halve the work. Pairs run across the ends of pixels, so there are three kinds:
    # red and green, blue and red, green and blue.
    first, second = [0, 2, 1], [1, 0, 2]  # channels of a kind; each list is its own inverse
    flat = tf.reshape(image, [-1])
    padding = width * (height % 2)
    if padding:
        flat = tf.concat([flat, tf.zeros([padding * 3], tf.uint8)], axis=0)
    pairs = tf.bitcast(tf.reshape(flat, [-1, width * 3, 2]), tf.uint16)
    kinds = np.tile(np.arange(0, 3 << 16, 1 << 16, dtype=np.int32), width)
    index = conversions.to_int32(pairs) + kinds

    # Faster than tf.math.bincount, which keeps a copy of the bins for each thread.
    counts = tf.histogram_fixed_width(index, [0, 3 << 16], nbins=3 << 16)
    counts = tf.reshape(counts, [3, 256, 256])  # kind, value of second, value of first
    counts = (tf.gather(tf.reduce_sum(counts, axis=1), first)
              + tf.gather(tf.reduce_sum(counts, axis=2), second))
    counts -= np.array([padding] + 255 * [0], np.int32)

    darker = tf.cumsum(counts, axis=1, exclusive=True)
    step = tf.reduce_max(darker * tf.minimum(counts, 1), axis=1, keepdims=True) // 255
    table = tf.minimum((darker + step // 2) // tf.maximum(step, 1), 255)
    # A channel with almost a single value (step 0) is unchanged.
    table = tf.where(step[:, 0] > 0, table, np.tile(np.arange(256, dtype=np.int32), [3, 1]))

    # The table of pairs packs two entries into an int32. Row r is the table of the first value plus
    # the entry for the second value r.
    rows = tf.reshape(tf.cast(tf.gather(table, first), tf.uint16), [3, 128, 2])
    rows = tf.gather(tf.bitcast(rows, tf.int32), np.repeat(np.arange(3), 256))
    rows += tf.reshape(tf.gather(table, second), [768, 1]) * 0x01000100
    table = tf.reshape(tf.bitcast(rows, tf.uint16), [-1])
    flat = tf.reshape(tf.bitcast(tf.gather_nd(table, index[..., tf.newaxis]), tf.uint8), [-1])
    return tf.reshape(flat[:image.shape.num_elements()], image.shape)


# Blends of the image with a simpler one. Factor 0 gives the simpler one and 1 the image; factors
# above 1 exaggerate the difference.


def _blend(simple, pixels, factor):
    return conversions.cut_to_uint8(simple + factor * (pixels - simple))


def color(image, factor):
    """Blends with the grayscale image."""
    pixels = tf.reshape(conversions.to_float(image), [-1, 3])
    # tf.image.rgb_to_grayscale scales to [0, 1] and back; this repeats its rounding.
    gray = tf.matmul(pixels * (1.0 / 255.0), [[0.2989], [0.5870], [0.1140]])
    gray = tf.floor(gray * 255.5)
    # Copies each value to three channels, for several pixels at once.
    count = math.gcd(pixels.shape[0].value, 8)
    repeat = np.kron(np.eye(count, dtype=np.float32), np.ones([1, 3], np.float32))
    gray = tf.matmul(tf.reshape(gray, [-1, count]), repeat)
    return tf.reshape(_blend(gray, tf.reshape(pixels, gray.shape), factor), image.shape)


def contrast(image, factor):
    """Blends with a uniform gray.

    Quirk: the gray value is not the mean of the image but its number of pixels / 256, at most 255:
    196 at 224 x 224 pixels, 255 from 256 x 256 pixels on.
    """
    height, width, _ = image.shape.as_list()
    return _blend(float(min(height * width // 256, 255)), conversions.to_float(image), factor)


def brightness(image, factor):
    """Blends with black."""
    return conversions.cut_to_uint8(conversions.to_float(image) * factor)


def sharpness(image, factor):
    """Blends with the blurred image; the outermost pixels are unchanged."""
    height, width, _ = image.shape.as_list()
    flat = tf.concat([tf.reshape(image, [-1]), tf.zeros([6], tf.uint8)], axis=0)
    flat = conversions.to_float(flat)
    # `middle` is shifted by one pixel and `right` by two: `left` and `right` hold its neighbors.
    left, middle, right = (
        tf.reshape(flat[i:i + height * width * 3], [height, width * 3]) for i in (0, 3, 6))
    inner = middle[1:-1]
    center = inner * (5.0 / 13.0)
    left, middle, right = (rows * (1.0 / 13.0) for rows in (left, middle, right))
    # The order is that of TensorFlow's convolution, because its rounding affects the truncation.
    negative = -left[:-2]
    for addend in (middle[:-2], right[:-2], left[1:-1], center, right[1:-1],
                   left[2:], middle[2:], right[2:]):
        negative -= addend
    inner = _blend(tf.floor(-negative), inner, factor)
    rows = _rows(image)
    band = tf.concat([rows[1:-1, :3], inner[:, :-6], rows[1:-1, -3:]], axis=1)
    return tf.reshape(tf.concat([rows[:1], band, rows[-1:]], axis=0), image.shape)


# Operations that move pixels. Each pixel of the result is the nearest pixel to a place in the
# image, or gray if the place is outside.


def _places(image):
    """Returns the y and x of each pixel, float32 [H, 1] and [1, W]."""
    height, width, _ = image.shape.as_list()
    return (np.arange(height, dtype=np.float32)[:, np.newaxis],
            np.arange(width, dtype=np.float32)[np.newaxis, :])


def _nearest(places, size):
    """Rounds places, halves away from 0; returns -1 below and `size` above 0..size - 1."""
    # Adds the largest float32 below 0.5, because 0.5 would round -0.5 to 0, inside the image.
    return tf.floor(tf.clip_by_value(places, -1.0, float(size)) + np.float32(0.49999997))


def _sample(image, y, x):
    """Returns the pixels nearest to the places (y, x), which broadcast to float32 [H, W]."""
    height, width, _ = image.shape.as_list()
    # A gray frame, one pixel wide, stands for all places outside the image.
    side = np.full([height, 3], FILL, np.uint8)
    edge = np.full([1, (width + 2) * 3], FILL, np.uint8)
    framed = tf.concat([edge, tf.concat([side, _rows(image), side], axis=1), edge], axis=0)
    index = (_nearest(y, height) + 1.0) * (width + 2.0) + (_nearest(x, width) + 1.0)
    pixels = tf.gather_nd(tf.reshape(framed, [-1, 3]), conversions.to_index(index)[..., tf.newaxis])
    return tf.reshape(pixels, image.shape)


def rotate(image, degrees):
    """Rotates the image about its center, counterclockwise."""
    y, x = _places(image)
    bottom, right = y[-1, 0], x[0, -1]
    radians = degrees * tf.constant(math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    x_shift = ((cos * right - sin * bottom) - right) / 2.0
    y_shift = ((sin * right + cos * bottom) - bottom) / 2.0
    return _sample(image, (sin * x + cos * y) - y_shift, (cos * x - sin * y) - x_shift)


def shear_x(image, slope):
    """Moves row y to the left by slope * y pixels."""
    y, x = _places(image)
    return _sample(image, y, x + slope * y)


def shear_y(image, slope):
    """Moves column x up by slope * x pixels."""
    y, x = _places(image)
    return _sample(image, slope * x + y, x)


def translate_x(image, distance):
    """Moves the image to the left by `distance` pixels."""
    y, x = _places(image)
    return _sample(image, y, x + distance)


def translate_y(image, distance):
    """Moves the image up by `distance` pixels."""
    height = image.shape[0].value
    rows = _rows(image)
    edge = tf.fill([1, rows.shape[1].value], np.uint8(FILL))
    index = _nearest(np.arange(height, dtype=np.float32) + distance, height) + 1.0
    return tf.reshape(tf.gather(tf.concat([edge, rows, edge], axis=0), conversions.to_index(index)),
                      image.shape)


def cutout(image, pad_size, center):
    """Fills a square with gray; the square is clipped at the edge of the image.

    Args:
        image: uint8 [H, W, 3].
        pad_size: number at least 0, half the side of the square in pixels.
        center: int32 [2], y and x of a pixel of the image.

    Source: DeVries and Taylor, arXiv:1708.04552.
    """
    height, width, _ = image.shape.as_list()
    pad_size = tf.cast(pad_size, tf.int32)
    top, left = tf.unstack(tf.maximum(center - pad_size, 0))
    bottom, right = tf.unstack(tf.minimum(center + pad_size, [height, width]))
    square = tf.fill([bottom - top, (right - left) * 3], np.uint8(FILL))
    return paste(image, square, top, left)


def paste(image, patch, top, left):
    """Replaces a rectangle of the image.

    Args:
        image: uint8 [H, W, 3].
        patch: uint8 [height, width * 3], the new pixels; may be empty.
        top, left: int32 scalars, position of the first pixel of `patch`, which must lie inside the
            image.
    """
    rows = _rows(image)
    height, width = tf.unstack(tf.shape(patch))
    bottom, right = top + height, left * 3 + width
    band = rows[top:bottom]
    band = tf.concat([band[:, :left * 3], patch, band[:, right:]], axis=1)
    return tf.reshape(tf.concat([rows[:top], band, rows[bottom:]], axis=0), image.shape)
