"""AutoAugment and RandAugment: random distortions of training images.

AutoAugment (Cubuk et al., arXiv:1805.09501) draws for each image one of the pairs of operations
that a search had found; RandAugment (Cubuk et al., arXiv:1909.13719, section 3) draws every
operation from all of them. Both give the images of the scripts that EfficientNet and CondConv were
published with, pixel for pixel (test/golden/augmentation), and so keep their quirks, each named at
its function.

An image costs a fraction of what it costs there, for three reasons. Only the operation that was
drawn is computed. Pixels are converted between types as seldom and as cheaply as TensorFlow 1.15
can: on a CPU its conversions, gathers, pads and convolutions of small images take far longer than
its arithmetic. And all channels are computed at once, as rows of width * 3 numbers, for operations
that broadcast over a last dimension of 3 are slow too. `python -m benchmarks.augmentation_ops`
measures each operation.
"""
import collections
import math

import numpy as np
import tensorflow.compat.v1 as tf

MAX_LEVEL = 10.0    # of the levels in the policies; RandAugment's magnitude may be above it
FILL = 128          # grey, where an operation leaves no pixel
GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # of red, green and blue, as in tf.image.rgb_to_grayscale

# Reach of the operations at MAX_LEVEL, in pixels.
_AUTOAUGMENT_REACH = {'cutout': 100, 'translate': 250}
_RANDAUGMENT_REACH = {'cutout': 40, 'translate': 100}

POLICIES = {
    # The 25 sub-policies for ImageNet of EfficientNet's scripts (not those of the paper's table 9):
    # pairs of (operation, probability, level).
    'v0': (
        (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
        (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
        (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
        (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
        (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
        (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
        (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
        (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
        (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
        (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
        (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
        (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
        (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
        (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
        (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
        (('Rotate', 1.0, 7), ('TranslateY', 0.8, 9)),
        (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
        (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
        (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
        (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
        (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
        (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
        (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
        (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
        (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
    ),
    'test': ((('TranslateX', 1.0, 4), ('Equalize', 1.0, 10)),),
}


def _rows(image):
    height, width, channels = image.shape.as_list()
    return tf.reshape(image, [height, width * channels])


def _to_int32(image):
    # TensorFlow converts to uint32 in a plain loop, to int32 in one that waits for its own stores:
    # 0.1 against 0.3 ms for an image of 224 pixels.
    return tf.bitcast(tf.cast(image, tf.uint32), tf.int32)


def _to_float(image):
    # The same for int32 to float32. Added to the bits of 2^23, a small integer becomes the last
    # bits of 2^23 + integer.
    return tf.bitcast(_to_int32(image) + 0x4b000000, tf.float32) - 2.0 ** 23


def _to_uint8(pixels, image):
    """float32 of any shape -> uint8 of the image's shape: clipped, then cut off, not rounded."""
    pixels = tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)
    return tf.reshape(pixels, image.shape)


def auto_contrast(image):
    """Stretches each channel so that it reaches from 0 to 255."""
    width = image.shape[1].value
    pixels = _to_float(_rows(image))
    lowest = tf.reduce_min(tf.reshape(tf.reduce_min(pixels, axis=0), [width, 3]), axis=0)
    highest = tf.reduce_max(tf.reshape(tf.reduce_max(pixels, axis=0), [width, 3]), axis=0)
    is_flat = tf.equal(lowest, highest)
    scale = 255.0 / tf.where(is_flat, tf.fill([3], 255.0), highest - lowest)
    offset = tf.where(is_flat, tf.zeros([3]), -lowest * scale)
    return _to_uint8(pixels * tf.tile(scale, [width]) + tf.tile(offset, [width]), image)


def equalize(image):
    """Spreads the values of each channel, so that all are about equally frequent."""
    height, width, _ = image.shape.as_list()
    # One histogram and one table for the three channels, 256 entries each.
    values = _to_int32(_rows(image)) + np.tile(np.arange(0, 768, 256, dtype=np.int32), width)
    counts = tf.reshape(tf.math.bincount(values, minlength=768, maxlength=768), [3, 256])
    darker = tf.cumsum(counts, axis=1, exclusive=True)
    step = tf.reduce_max(tf.minimum(counts, 1) * darker, axis=1, keepdims=True) // 255
    table = tf.minimum((darker + step // 2) // tf.maximum(step, 1), 255)
    # A channel with a step of 0 has hardly more than one value, and is left alone.
    table = tf.where(tf.squeeze(step, 1) > 0, table, np.tile(np.arange(256, dtype=np.int32), [3, 1]))
    table = tf.reshape(tf.cast(table, tf.uint8), [768])
    return tf.reshape(tf.gather_nd(table, values[..., tf.newaxis]), image.shape)


# Bytes of the same image side by side in int64 words: what needs no carry from byte to byte is
# eight times as fast.
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


def _at_least(words, threshold):
    """1 in each byte that is at least the threshold, 0 in the others.

    Args:
        words: int64 [N].
        threshold: int32 scalar in 0..256.

    Returns:
        int64 [N].
    """
    is_low = threshold <= 128
    reach = tf.cast(tf.where(is_low, 128 - threshold, 256 - threshold), tf.int64)
    # The highest bit of a byte's sum says whether its seven lower bits reach the threshold, or
    # what of it is above 128.
    sums = tf.bitwise.bitwise_and(words, 127 * _ONES) + reach * _ONES
    reaches = tf.where(is_low, tf.bitwise.bitwise_or(words, sums),
                       tf.bitwise.bitwise_and(words, sums))
    return _highest_bits(reaches)


def _highest_bits(words):
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, 7), _ONES)


def invert(image):
    """255 - image."""
    return _from_words(tf.bitwise.invert(_to_words(image)), image)


def posterize(image, bits):
    """Keeps the highest bits of each value: 0..8; one when the number is 0 or above 8.

    (Higher levels keep more bits: the opposite of the paper. The number of bits to drop was a
    uint8 and TensorFlow drops at most 7.)
    """
    dropped = tf.cast(tf.floormod(8 - tf.cast(bits, tf.int32), 256), tf.int64)
    kept = tf.bitwise.left_shift(tf.constant(255, tf.int64), tf.minimum(dropped, 7))
    mask = tf.bitwise.bitwise_and(kept, 255) * _ONES
    return _from_words(tf.bitwise.bitwise_and(_to_words(image), mask), image)


def solarize(image, threshold):
    """Inverts the values that are at least the threshold.

    (The threshold was a uint8: 256, of the highest level, is 0 and inverts all of them.)
    """
    words = _to_words(image)
    is_bright = _at_least(words, tf.floormod(tf.cast(threshold, tf.int32), 256))
    return _from_words(tf.bitwise.bitwise_xor(words, is_bright * 255), image)


def solarize_add(image, addition):
    """Adds the addition, from 0 on, to the values below 128, up to 255."""
    words = _to_words(image)
    addition = tf.minimum(tf.cast(addition, tf.int32), 255)
    is_dark = _highest_bits(tf.bitwise.invert(words))
    is_over = tf.bitwise.bitwise_and(is_dark, _at_least(words, 256 - addition))
    sums = words + (is_dark - is_over) * tf.cast(addition, tf.int64)
    return _from_words(tf.bitwise.bitwise_or(sums, is_over * 255), image)


def _blend(background, pixels, factor):
    return background + factor * (pixels - background)


def color(image, factor):
    """Saturation: 0 gives grey, 1 the image, more than 1 stronger colours."""
    height, width, _ = image.shape.as_list()
    pixels = _to_float(image)
    # Several pixels at once, and each grey value three times.
    count = math.gcd(height * width, 8)
    weights = np.kron(np.eye(count), np.tile(np.array(GRAY_WEIGHTS)[:, np.newaxis], [1, 3]))
    pixels = tf.reshape(pixels, [-1, count * 3])
    # Scaled to [0, 1] and back as between the image types of tf.image, which this has to equal.
    gray = tf.floor(tf.matmul(pixels * (1.0 / 255.0), weights.astype(np.float32)) * 255.5)
    return _to_uint8(_blend(gray, pixels, factor), image)


def contrast(image, factor):
    """Contrast: 0 gives one grey, 1 the image, more than 1 stronger contrasts.

    (The grey is not the mean of the image but the number of its pixels / 256, at most 255: 196 at
    224 x 224 pixels, 255 from 256 x 256 on.)
    """
    height, width, _ = image.shape.as_list()
    gray = float(min(height * width // 256, 255))
    return _to_uint8(_blend(gray, _to_float(_rows(image)), factor), image)


def brightness(image, factor):
    """Brightness: 0 gives black, 1 the image, more than 1 a brighter one."""
    return _to_uint8(_to_float(_rows(image)) * factor, image)


def sharpness(image, factor):
    """Sharpness: 0 gives a blurred image, 1 the image, more than 1 a sharper one.

    The outermost pixels stay as they are.
    """
    width = image.shape[1].value

    def column(rows, i):
        return rows[:, 3 * i:3 * (i + width - 2)]

    pixels = _to_float(_rows(image))
    inner = column(pixels[1:-1], 1)
    # 1/13 of the neighbours and 5/13 of the pixel, added in the order in which TensorFlow's
    # convolution adds them: what is cut off below depends on it.
    neighbors = pixels * (1.0 / 13.0)
    left, middle, right = (column(neighbors, i) for i in range(3))
    blurred = (left + middle + right)[:-2]
    for addend in (left[1:-1], inner * (5.0 / 13.0), right[1:-1], left[2:], middle[2:], right[2:]):
        blurred += addend
    blurred = tf.floor(tf.clip_by_value(blurred, 0.0, 255.0))
    inner = tf.cast(tf.clip_by_value(_blend(blurred, inner, factor), 0.0, 255.0), tf.uint8)
    rows = _rows(image)
    band = rows[1:-1]
    band = tf.concat([band[:, :3], inner, band[:, -3:]], axis=1)
    return tf.reshape(tf.concat([rows[:1], band, rows[-1:]], axis=0), image.shape)


def _sample(image, y, x):
    """The image's pixels next to the given places, grey where there is none.

    Args:
        image: uint8 [H, W, 3].
        y, x: float32, pixels, shapes that broadcast to [H, W].

    Returns:
        uint8 [H, W, 3].
    """
    height, width, _ = image.shape.as_list()

    def nearest(place, size):
        # The float32 below 0.5: 0.5 itself would round -0.5 up, into the image.
        return tf.clip_by_value(tf.floor(place + np.float32(0.49999997)), -1.0, float(size))

    # With a frame of one pixel every place has a pixel.
    rows = _rows(image)
    side = tf.fill([height, 3], tf.constant(FILL, tf.uint8))
    edge = tf.fill([1, (width + 2) * 3], tf.constant(FILL, tf.uint8))
    framed = tf.concat([edge, tf.concat([side, rows, side], axis=1), edge], axis=0)
    index = nearest(y, height) * (width + 2.0) + nearest(x, width) + (width + 3.0)
    # float32 to int32 as in _to_float, the other way round.
    index = tf.bitcast(index + 2.0 ** 23, tf.int32) - 0x4b000000
    pixels = tf.gather_nd(tf.reshape(framed, [-1, 3]), index[..., tf.newaxis])
    return tf.reshape(pixels, image.shape)


def _places(image):
    height, width, _ = image.shape.as_list()
    return (np.arange(height, dtype=np.float32)[:, np.newaxis],
            np.arange(width, dtype=np.float32)[np.newaxis, :])


def rotate(image, degrees):
    """Turns the image about its centre, counterclockwise when degrees are above 0."""
    y, x = _places(image)
    bottom, right = y[-1, 0], x[0, -1]
    radians = tf.convert_to_tensor(degrees, tf.float32) * (math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    x_offset = (right - (cos * right - sin * bottom)) / 2.0
    y_offset = (bottom - (sin * right + cos * bottom)) / 2.0
    return _sample(image, (sin * x + cos * y) + y_offset, (cos * x + -sin * y) + x_offset)


def shear_x(image, slope):
    """Moves each row to the left by its number * slope, pixels."""
    y, x = _places(image)
    return _sample(image, y, x + slope * y)


def shear_y(image, slope):
    """Moves each column up by its number * slope, pixels."""
    y, x = _places(image)
    return _sample(image, slope * x + y, x)


def translate_x(image, distance):
    """Moves the image to the left by the distance, pixels."""
    y, x = _places(image)
    return _sample(image, y, x + distance)


def translate_y(image, distance):
    """Moves the image up by the distance, pixels."""
    y, x = _places(image)
    return _sample(image, y + distance, x)


def cutout(image, reach, center):
    """Fills the square that reaches so far, pixels, up and left and less far down and right."""
    height, width, _ = image.shape.as_list()
    reach = tf.cast(reach, tf.int32)
    top, left = tf.unstack(tf.maximum(center - reach, 0))
    bottom, right = tf.unstack(tf.minimum(center + reach, [height, width]))
    rows = _rows(image)
    fill = tf.fill([bottom - top, 3 * (right - left)], tf.constant(FILL, tf.uint8))
    band = rows[top:bottom]
    band = tf.concat([band[:, :3 * left], fill, band[:, 3 * right:]], axis=1)
    return tf.reshape(tf.concat([rows[:top], band, rows[bottom:]], axis=0), image.shape)


OPS = collections.OrderedDict([
    ('AutoContrast', auto_contrast),
    ('Equalize', equalize),
    ('Invert', invert),
    ('Rotate', rotate),
    ('Posterize', posterize),
    ('Solarize', solarize),
    ('Color', color),
    ('Contrast', contrast),
    ('Brightness', brightness),
    ('Sharpness', sharpness),
    ('ShearX', shear_x),
    ('ShearY', shear_y),
    ('TranslateX', translate_x),
    ('TranslateY', translate_y),
    ('Cutout', cutout),
    ('SolarizeAdd', solarize_add),
])
