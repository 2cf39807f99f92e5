"""AutoAugment and RandAugment: random distortions of training images.

AutoAugment (Cubuk et al., arXiv:1805.09501) draws for each image one of the sub-policies that a
search has found: two operations with their probabilities and levels. RandAugment (Cubuk et al.,
arXiv:1909.13719, section 3) draws operations evenly from all there are, at one level. Both are
those of the scripts that EfficientNet and CondConv were published with, pixel for pixel
(test/golden/augmentation); the quirks that shaped the published accuracy are kept, and each is
named in the docstring of its function.

An operation takes on average a sixth of its time there (`python -m benchmarks.augmentation_ops`
measures each), and only the operation that was drawn is computed. On a CPU TensorFlow 1.15 is fast
at float32 arithmetic and at copying rows. Conversions from and to uint8, gathers, histograms,
`tf.pad`, `tf.where`, small convolutions and broadcasts over a last dimension of 3 cost many times
more: there are as few of them here as possible, in their cheapest form.

TensorFlow's graph optimizer adds up in another order where it sees fit, with another rounding.
Where that would show, a sum is written as a difference, which it leaves alone.
"""
import math

import numpy as np
import tensorflow.compat.v1 as tf

from common import conversions

MAX_LEVEL = 10.0  # of the policies; the magnitude of RandAugment may be above it
FILL = 128        # grey, where an operation leaves no pixel

# What Cutout and the translations reach at MAX_LEVEL, pixels.
AUTOAUGMENT_REACH = {'cutout': 100, 'translate': 250}
RANDAUGMENT_REACH = {'cutout': 40, 'translate': 100}

POLICIES = {
    # The 25 sub-policies for ImageNet of EfficientNet's scripts, which are others than in the
    # paper's table 9: pairs of (operation, probability, level).
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


def distort_image_with_autoaugment(image, augmentation_name, seed=None):
    """Applies one sub-policy, drawn evenly from those of the policy.

    Its operations are applied one after the other, each with its own probability. Rotations, shears
    and translations go either way, evenly.

    Args:
        image: uint8 [H, W, 3], of static shape.
        augmentation_name: str, one of `POLICIES`.
        seed: None or int64 [2]. The same seed gives the same distortion.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: there is no such policy.
    """
    if augmentation_name not in POLICIES:
        raise ValueError(f'Unknown policy {augmentation_name!r}; there are {sorted(POLICIES)}.')
    policy = POLICIES[augmentation_name]
    used = {name for sub_policy in policy for name, _, _ in sub_policy}
    names = [name for name in OPS if name in used]
    table = np.array([[
        (names.index(name), probability, _argument(name, level, AUTOAUGMENT_REACH))
        for name, probability, level in sub_policy] for sub_policy in policy], np.float32)
    apply_one = _switch(names, image.shape)
    (choice, *_), *draws = _draw(seed, 1 + table.shape[1])
    sub_policy = tf.unstack(tf.gather(table, _index(choice, len(policy))))
    for step, (chance, *drawn) in zip(sub_policy, draws):
        op, probability, argument = tf.unstack(step)
        op = tf.where(chance + probability >= 1.0, tf.cast(op, tf.int32), len(names))
        image = apply_one(op, image, argument, *drawn)
    return image


def distort_image_with_randaugment(image, num_layers, magnitude, seed=None):
    """Applies operations drawn evenly from `OPS`, one after the other.

    Rotations, shears and translations go either way, evenly.

    Quirk: each operation that is drawn is applied. A probability is drawn for it in the published
    scripts, from 0.2 to 0.8, and then not used.

    Args:
        image: uint8 [H, W, 3], of static shape.
        num_layers: int from 0 on, the number of operations: N in the paper.
        magnitude: number from 0 on, the level of all of them: M in the paper. AutoAugment's highest
            is 10.
        seed: None or int64 [2]. The same seed gives the same distortion.

    Returns:
        uint8 [H, W, 3].
    """
    arguments = np.array([_argument(name, magnitude, RANDAUGMENT_REACH) for name in OPS],
                         np.float32)
    apply_one = _switch(OPS, image.shape)
    for choice, *drawn in _draw(seed, num_layers):
        op = _index(choice, len(OPS))
        image = apply_one(op, image, tf.gather(arguments, op), *drawn)
    return image


def level_to_args(name, level, reach):
    """What an operation is called with at a level, besides the image and Cutout's centre.

    Args:
        name: str, one of `OPS`.
        level: number from 0 on.
        reach: dict, `AUTOAUGMENT_REACH` or `RANDAUGMENT_REACH`.

    Returns:
        tuple of one number from 0 on, or of none.
    """
    ratio = level / MAX_LEVEL
    arguments = {
        'Rotate': ratio * 30.0,
        'Posterize': int(ratio * 4),
        'Solarize': int(ratio * 256),
        'Color': ratio * 1.8 + 0.1,
        'Contrast': ratio * 1.8 + 0.1,
        'Brightness': ratio * 1.8 + 0.1,
        'Sharpness': ratio * 1.8 + 0.1,
        'ShearX': ratio * 0.3,
        'ShearY': ratio * 0.3,
        'TranslateX': ratio * reach['translate'],
        'TranslateY': ratio * reach['translate'],
        'Cutout': int(ratio * reach['cutout']),
        'SolarizeAdd': int(ratio * 110),
    }
    return (arguments[name],) if name in arguments else ()


def _argument(name, level, reach):
    """The number of `level_to_args`; 0 if there is none."""
    return sum(level_to_args(name, level, reach))


def _draw(seed, count):
    """List of `count` lists of 4 float32 scalars, uniform in [0, 1)."""
    if seed is None:
        seed = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64)
    # Not from the seed itself: whoever gave it may have drawn these very numbers from it.
    draws = tf.random.stateless_uniform([count, 4], tf.cast(seed, tf.int64) + [0, 1])
    return [tf.unstack(row) for row in tf.unstack(draws)]


def _index(draw, size):
    """int32 scalar, uniform in 0..size - 1."""
    return tf.cast(draw * size, tf.int32)


def _switch(names, shape):
    """Makes the function that applies one of several operations and computes no other.

    Args:
        names: iterable of str, some of `OPS`.
        shape: TensorShape, [H, W, 3].

    Returns:
        callable, `(op, image, argument, direction, y, x)` -> uint8 [H, W, 3], with
          - op: int32 scalar, which of the names; len(names) for none;
          - image: uint8 [H, W, 3];
          - argument: float32 scalar from 0 on, not used by an operation that has none;
          - direction, y, x: float32 scalars, uniform in [0, 1): the argument's sign and Cutout's
            centre, for operations that have them.
    """
    height, width, _ = shape.as_list()

    def branch(name):
        def apply(image, argument, direction, y, x):
            if name in ('AutoContrast', 'Equalize', 'Invert'):
                return OPS[name](image)
            if name in ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'):
                return OPS[name](image, tf.where(direction < 0.5, argument, -argument))
            if name == 'Cutout':
                return OPS[name](image, argument, [_index(y, height), _index(x, width)])
            return OPS[name](image, argument)
        return apply

    signature = [tf.TensorSpec(shape, tf.uint8)] + 4 * [tf.TensorSpec([], tf.float32)]
    branches = [tf.function(function, signature, autograph=False).get_concrete_function()
                for function in [*map(branch, names), lambda image, *_: tf.identity(image)]]

    def apply_one(op, image, *args):
        # tf.switch_case would dissolve the functions in the graph, where the nodes of those that
        # were not drawn are passed by one after the other: 0.08 ms.
        image, = tf.raw_ops.Case(branch_index=op, input=[image, *args], Tout=[tf.uint8],
                                 branches=branches, output_shapes=[shape])
        return image

    return apply_one


def _rows(image):
    height, width, channels = image.shape.as_list()
    return tf.reshape(image, [height, width * channels])


# Operations on each value by itself. Eight of them, side by side in an int64, are computed at once
# as long as nothing is carried from one byte to the next.

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
    """1 in the bytes from 128 on, 0 in the others."""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, 7), _ONES)


def _at_least(words, threshold):
    """1 in the bytes from the threshold on, an int32 scalar in 0..256, 0 in the others."""
    is_low = threshold <= 128
    # The lower seven bits are at least the threshold's if this carries to the eighth.
    complement = tf.cast(tf.where(is_low, 128 - threshold, 256 - threshold), tf.int64)
    carries = tf.bitwise.bitwise_and(words, 127 * _ONES) + complement * _ONES
    return _highest_bits(tf.where(is_low, tf.bitwise.bitwise_or(words, carries),
                                  tf.bitwise.bitwise_and(words, carries)))


def invert(image):
    """255 - image."""
    return _from_words(tf.bitwise.invert(_to_words(image)), image)


def posterize(image, bits):
    """Keeps the highest bits of each value.

    Quirks: a higher level keeps more of them, and so distorts less. The number of bits to drop was
    a uint8, of which TensorFlow takes at most 7: 0 keeps 1 bit, and so do 9 and more.
    """
    dropped = tf.minimum(tf.floormod(8 - tf.cast(bits, tf.int64), 256), 7)
    mask = 256 - tf.bitwise.left_shift(tf.constant(1, tf.int64), dropped)
    return _from_words(tf.bitwise.bitwise_and(_to_words(image), mask * _ONES), image)


def solarize(image, threshold):
    """Inverts the values from the threshold on.

    Quirk: the threshold was a uint8. 256, that of level 10, is 0, and inverts all of them.
    """
    words = _to_words(image)
    is_bright = _at_least(words, tf.floormod(tf.cast(threshold, tf.int32), 256))
    return _from_words(tf.bitwise.bitwise_xor(words, is_bright * 255), image)


def solarize_add(image, addition):
    """Adds a number from 0 on to the values below 128, up to 255."""
    words = _to_words(image)
    addition = tf.minimum(tf.cast(addition, tf.int32), 255)
    is_dark = _highest_bits(tf.bitwise.invert(words))
    is_over = tf.bitwise.bitwise_and(is_dark, _at_least(words, 256 - addition))
    sums = words + (is_dark - is_over) * tf.cast(addition, tf.int64)
    return _from_words(tf.bitwise.bitwise_or(sums, is_over * 255), image)


def auto_contrast(image):
    """Stretches each channel, so that it reaches from 0 to 255."""
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
    """Spreads the values of each channel, so that all are about equally frequent."""
    height, width, _ = image.shape.as_list()
    # Two values at a time halve the work. As a pair goes over the end of a pixel there are three
    # kinds: red and green, blue and red, green and blue.
    first, second = [0, 2, 1], [1, 0, 2]  # of the channels; each its own inverse
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
    # Of almost one value only: left alone.
    table = tf.where(step[:, 0] > 0, table, np.tile(np.arange(256, dtype=np.int32), [3, 1]))

    # The table of pairs, two entries in an int32: rows of it are the table of the first value, to
    # which the second is added.
    rows = tf.reshape(tf.cast(tf.gather(table, first), tf.uint16), [3, 128, 2])
    rows = tf.gather(tf.bitcast(rows, tf.int32), np.repeat(np.arange(3), 256))
    rows += tf.reshape(tf.gather(table, second), [768, 1]) * 0x01000100
    table = tf.reshape(tf.bitcast(rows, tf.uint16), [-1])
    flat = tf.reshape(tf.bitcast(tf.gather_nd(table, index[..., tf.newaxis]), tf.uint8), [-1])
    return tf.reshape(flat[:image.shape.num_elements()], image.shape)


# Blends of the image with a simpler one. A factor of 0 gives the simpler one, 1 the image; what is
# above 1 exaggerates the difference.


def _blend(simple, pixels, factor):
    return conversions.cut_to_uint8(simple + factor * (pixels - simple))


def color(image, factor):
    """Blends with the grey image."""
    pixels = tf.reshape(conversions.to_float(image), [-1, 3])
    # As tf.image.rgb_to_grayscale, rounding included: scaled to [0, 1] and back.
    gray = tf.matmul(pixels * (1.0 / 255.0), [[0.2989], [0.5870], [0.1140]])
    gray = tf.floor(gray * 255.5)
    # Each value for three channels, several pixels at once.
    count = math.gcd(pixels.shape[0].value, 8)
    repeat = np.kron(np.eye(count, dtype=np.float32), np.ones([1, 3], np.float32))
    gray = tf.matmul(tf.reshape(gray, [-1, count]), repeat)
    return tf.reshape(_blend(gray, tf.reshape(pixels, gray.shape), factor), image.shape)


def contrast(image, factor):
    """Blends with one grey.

    Quirk: the grey is not the image's mean but the number of its pixels / 256, at most 255: 196 at
    224 x 224 pixels, 255 from 256 x 256 on.
    """
    height, width, _ = image.shape.as_list()
    return _blend(float(min(height * width // 256, 255)), conversions.to_float(image), factor)


def brightness(image, factor):
    """Blends with black."""
    return conversions.cut_to_uint8(conversions.to_float(image) * factor)


def sharpness(image, factor):
    """Blends with the blurred image. The outermost pixels stay as they are."""
    height, width, _ = image.shape.as_list()
    flat = tf.concat([tf.reshape(image, [-1]), tf.zeros([6], tf.uint8)], axis=0)
    flat = conversions.to_float(flat)
    # At each pixel: itself, the next one and the one after that, as neighbours of the next one.
    left, middle, right = (
        tf.reshape(flat[i:i + height * width * 3], [height, width * 3]) for i in (0, 3, 6))
    inner = middle[1:-1]
    center = inner * (5.0 / 13.0)
    left, middle, right = (rows * (1.0 / 13.0) for rows in (left, middle, right))
    # In the order of TensorFlow's convolution, on whose rounding depends what is cut off.
    negative = -left[:-2]
    for addend in (middle[:-2], right[:-2], left[1:-1], center, right[1:-1],
                   left[2:], middle[2:], right[2:]):
        negative -= addend
    inner = _blend(tf.floor(-negative), inner, factor)
    rows = _rows(image)
    band = tf.concat([rows[1:-1, :3], inner[:, :-6], rows[1:-1, -3:]], axis=1)
    return tf.reshape(tf.concat([rows[:1], band, rows[-1:]], axis=0), image.shape)


# Operations that move pixels. Each pixel of the result is the one nearest to some place in the
# image, or grey.


def _places(image):
    """float32 [H, 1] and [1, W], the y and x of each pixel."""
    height, width, _ = image.shape.as_list()
    return (np.arange(height, dtype=np.float32)[:, np.newaxis],
            np.arange(width, dtype=np.float32)[np.newaxis, :])


def _nearest(places, size):
    """Rounds, halves away from 0; -1 or size when that is outside of 0..size - 1."""
    # The float32 next below 0.5, for 0.5 would take -0.5 into the image.
    return tf.floor(tf.clip_by_value(places, -1.0, float(size)) + np.float32(0.49999997))


def _sample(image, y, x):
    """The image's pixels nearest to the places (y, x), which broadcast to float32 [H, W]."""
    height, width, _ = image.shape.as_list()
    # A frame of one pixel, for what is outside.
    side = np.full([height, 3], FILL, np.uint8)
    edge = np.full([1, (width + 2) * 3], FILL, np.uint8)
    framed = tf.concat([edge, tf.concat([side, _rows(image), side], axis=1), edge], axis=0)
    index = (_nearest(y, height) + 1.0) * (width + 2.0) + (_nearest(x, width) + 1.0)
    pixels = tf.gather_nd(tf.reshape(framed, [-1, 3]), conversions.to_index(index)[..., tf.newaxis])
    return tf.reshape(pixels, image.shape)


def rotate(image, degrees):
    """Turns the image about its centre, anticlockwise."""
    y, x = _places(image)
    bottom, right = y[-1, 0], x[0, -1]
    radians = degrees * tf.constant(math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    x_shift = ((cos * right - sin * bottom) - right) / 2.0
    y_shift = ((sin * right + cos * bottom) - bottom) / 2.0
    return _sample(image, (sin * x + cos * y) - y_shift, (cos * x - sin * y) - x_shift)


def shear_x(image, slope):
    """Moves each row to the left by slope times its number, pixels."""
    y, x = _places(image)
    return _sample(image, y, x + slope * y)


def shear_y(image, slope):
    """Moves each column up by slope times its number, pixels."""
    y, x = _places(image)
    return _sample(image, slope * x + y, x)


def translate_x(image, distance):
    """Moves the image to the left, pixels."""
    y, x = _places(image)
    return _sample(image, y, x + distance)


def translate_y(image, distance):
    """Moves the image up, pixels."""
    height = image.shape[0].value
    rows = _rows(image)
    edge = tf.fill([1, rows.shape[1].value], np.uint8(FILL))
    index = _nearest(np.arange(height, dtype=np.float32) + distance, height) + 1.0
    return tf.reshape(tf.gather(tf.concat([edge, rows, edge], axis=0), conversions.to_index(index)),
                      image.shape)


def cutout(image, pad_size, center):
    """Fills a square of 2 * pad_size pixels (DeVries and Taylor, arXiv:1708.04552).

    Its centre, int32 [2], y and x, is in the image; the square goes on beyond the edge.
    """
    height, width, _ = image.shape.as_list()
    pad_size = tf.cast(pad_size, tf.int32)
    top, left = tf.unstack(tf.maximum(center - pad_size, 0))
    bottom, right = tf.unstack(tf.minimum(center + pad_size, [height, width]))
    rows = _rows(image)
    square = tf.fill([bottom - top, (right - left) * 3], np.uint8(FILL))
    band = rows[top:bottom]
    band = tf.concat([band[:, :left * 3], square, band[:, right * 3:]], axis=1)
    return tf.reshape(tf.concat([rows[:top], band, rows[bottom:]], axis=0), image.shape)


OPS = {
    'AutoContrast': auto_contrast,
    'Equalize': equalize,
    'Invert': invert,
    'Rotate': rotate,
    'Posterize': posterize,
    'Solarize': solarize,
    'Color': color,
    'Contrast': contrast,
    'Brightness': brightness,
    'Sharpness': sharpness,
    'ShearX': shear_x,
    'ShearY': shear_y,
    'TranslateX': translate_x,
    'TranslateY': translate_y,
    'Cutout': cutout,
    'SolarizeAdd': solarize_add,
}
"""name -> function(image, *args): uint8 [H, W, 3], of static shape, and the numbers or scalars of
`level_to_args` -> uint8 [H, W, 3]."""
