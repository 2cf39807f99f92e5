"""Decodes, crops and resizes a single image, for training and for evaluation.

The crops are those of the published EfficientNet. Training uses Inception's random resized crop
(Szegedy et al., arXiv:1409.4842, section 6). Evaluation uses the center of the image and leaves out
a margin. Pixels stay raw, about [0, 255]: the model normalizes them.

A crop window is drawn before decoding, from the header of the file. Windows can then be drawn
serially, so that a seed repeats them, while decoding runs on all cores.

JPEG (grayscale, RGB and CMYK) and PNG (grayscale, RGB, palette; alpha is dropped, 16 bits become 8)
decode to three channels. The JPEG decoder keeps its default `fancy_upscaling`: switching it off
corrupts the heap in TensorFlow 1.15.
"""
import math

import tensorflow.compat.v1 as tf

from common import conversions
from common import random_ops
from common.image_sizes import ImageSize
from tfrecords import image_formats

CROP_PADDING = 32                # margin left out, both sides together, in pixels
CROP_PADDING_IMAGE_SIZE = 224    # smallest image size with the full margin
MIN_RANDOM_CROP_AREA = 0.08      # share of the whole image
RANDOM_CROP_ASPECT_RATIO = (3 / 4, 4 / 3)  # width / height, for square images
RANDOM_CROP_ATTEMPTS = 10
MIN_OBJECT_COVERED = 0.1         # the object is the whole image: lower bound of the crop's area


# Kinds of files, see `image_header`.
ORDINARY, UNUSUAL, FOREIGN = range(3)

_RESIZE = {'bicubic': tf.image.resize_bicubic, 'bilinear': tf.image.resize_bilinear}
RESIZE_METHODS = tuple(_RESIZE)

_ANIMATED = r'\C*' + ''.join(f'\\x{byte:02x}' for byte in image_formats.PNG_ANIMATION) + r'\C*'


def image_header(image_bytes):
    """Reads the header of a file without decoding the image.

    Args:
        image_bytes: string scalar.

    Returns:
        (shape, kind). shape is int32 [2], height and width in pixels, and undefined for FOREIGN.
        kind is an int32 scalar, one of
          - ORDINARY: a JPEG or PNG with one 8-bit image: grayscale, RGB, RGBA or palette;
          - UNUSUAL: a CMYK JPEG, whose colors depend on a profile; a 16-bit PNG, which loses 8
            bits; or an animated PNG, of which one frame is read;
          - FOREIGN: neither JPEG nor PNG.
        In a session, a JPEG with a corrupt header raises an InvalidArgumentError.
    """
    def jpeg_header():
        height, width, channels = tf.unstack(tf.image.extract_jpeg_shape(image_bytes))
        return tf.stack([height, width, tf.where(channels < 4, ORDINARY, UNUSUAL)])

    def png_header():
        # The first chunk, IHDR, starts with width and height, 4 bytes each, and the bit depth.
        header = tf.strings.substr(tf.strings.join([image_bytes, tf.constant(bytes(25))]), 0, 25)
        shape = tf.decode_raw(tf.strings.substr(header, 16, 8), tf.int32, little_endian=False)[::-1]
        is_unusual = (tf.equal(tf.strings.substr(header, 24, 1), b'\x10')
                      | tf.strings.regex_full_match(image_bytes, _ANIMATED))
        is_png = tf.equal(
            tf.strings.substr(header, 0, len(image_formats.PNG_SIGNATURE)),
            image_formats.PNG_SIGNATURE)
        kind = tf.where(is_png, tf.where(is_unusual, UNUSUAL, ORDINARY), FOREIGN)
        return tf.concat([shape, [kind]], axis=0)

    header = tf.cond(tf.image.is_jpeg(image_bytes), jpeg_header, png_header)
    header = tf.ensure_shape(header, [3])
    return header[:2], header[2]


def usable_shape(image_bytes, max_pixels=None, allows_unusual=False):
    """Reads the size of an image that can be used.

    Args:
        image_bytes: string scalar.
        max_pixels: None or int, an image with more pixels is an error.
        allows_unusual: bool, whether UNUSUAL files (`image_header`) are accepted. FOREIGN files
            never are.

    Returns:
        int32 [2], height and width in pixels. In a session, a file that cannot be used raises an
        InvalidArgumentError.
    """
    shape, kind = image_header(image_bytes)
    is_usable = kind <= (UNUSUAL if allows_unusual else ORDINARY)
    fault = 'The image is neither a JPEG nor a PNG file, or of an unusual kind'
    if max_pixels is not None:
        # A JPEG can have 65,535 x 65,535 pixels, which overflows int32.
        is_usable &= tf.reduce_prod(tf.cast(shape, tf.int64)) <= max_pixels
        fault += ', or too large'
    with tf.control_dependencies([check(is_usable, f'{fault}.')]):
        return tf.identity(shape)


def check(condition, fault):
    """Returns an operation that fails unless a condition holds.

    Args:
        condition: bool scalar.
        fault: str or string scalar, the error message.
    """
    # tf.Assert would add a tf.cond.
    return tf.raw_ops.Assert(condition=condition, data=[tf.convert_to_tensor(fault)])


def center_crop_window(shape, image_size):
    """Returns the evaluation crop, a central rectangle with the aspect ratio of image_size.

    Its sides are s / (s + padding) of those of the largest such rectangle in the image, where s is
    the shorter side of image_size.

    Args:
        shape: int32 [2], height and width of the image in pixels.
        image_size: `ImageSize` to which the crop will be resized, or int for a square.

    Returns:
        int32 [4], top, left, height and width in pixels.
    """
    # A constant padding of 32 pixels for sizes of at least 224 shows larger models more of the
    # image, as in the published evaluations: 0.875 of the shorter side at 224, 0.949 at 600. Below
    # 224 the padding is proportional to image_size, as in test/golden/augmentation.
    height, width = ImageSize.of(image_size)
    shorter_side = min(height, width)
    padding = min(CROP_PADDING, round(CROP_PADDING * shorter_side / CROP_PADDING_IMAGE_SIZE))
    # The largest rectangle has the image's height or its width; the other side follows from the
    # ratio. The ratio is reduced, and the product computed before the quotient, so that the result
    # is exact for an image with the aspect ratio of image_size.
    divisor = math.gcd(height, width)
    height, width = height // divisor, width // divisor
    limits = tf.cast(shape, tf.float32) * [[1.0, height], [width, 1.0]] / [
        [1.0, width], [height, 1.0]]
    sides = tf.cast(
        shorter_side / (shorter_side + padding) * tf.reduce_min(limits, axis=1), tf.int32)
    sides = tf.maximum(sides, 1)
    return tf.concat([(shape - sides + 1) // 2, sides], axis=0)


def random_crop_window(shape, image_size, *, seed, min_area=MIN_RANDOM_CROP_AREA):
    """Draws the training crop, a rectangle of random area, aspect ratio and position.

    Returns the center crop if all attempts fail or the whole image is drawn. The aspect ratio is
    that of image_size times a factor from 3/4 to 4/3, so that objects are distorted no more than
    for square images.

    Args:
        shape: int32 [2], height and width of the image in pixels.
        image_size: `ImageSize` to which the crop will be resized, or int for a square.
        seed: int, above 0; each run of the operation draws the next crop of the seed's sequence.
        min_area: float in (0, 1], smallest share of the image that a crop may cover.

    Returns:
        int32 [4], top, left, height and width in pixels.
    """
    height, width = ImageSize.of(image_size)
    # The reference implementation also compares the number of channels. A grayscale JPEG, which has
    # one channel in the file and three when decoded, therefore never gets the center crop there.
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.concat([shape, [3]], axis=0),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=MIN_OBJECT_COVERED,
        aspect_ratio_range=[ratio * (width / height) for ratio in RANDOM_CROP_ASPECT_RATIO],
        area_range=(min_area, 1.0),
        max_attempts=RANDOM_CROP_ATTEMPTS,
        use_image_if_no_bounding_boxes=True)
    is_whole_image = tf.reduce_all(tf.equal(size[:2], shape))
    return tf.cond(is_whole_image,
                   lambda: center_crop_window(shape, image_size),
                   lambda: tf.concat([begin[:2], size[:2]], axis=0))


def decode_and_crop(image_bytes, crop_window):
    """Decodes the part of an image inside the window; pixels of a JPEG outside are not decoded.

    Args:
        image_bytes: string scalar, a JPEG or PNG file.
        crop_window: int32 [4], top, left, height and width in pixels.

    Returns:
        uint8 [height, width, 3].
    """
    # The checks that the window depends on must report a bad file before the decoder does.
    with tf.control_dependencies([crop_window]):
        image_bytes = tf.identity(image_bytes)

    def crop_png():
        top, left, height, width = tf.unstack(crop_window)
        return tf.image.decode_png(image_bytes, channels=3)[top:top + height, left:left + width]

    return tf.cond(
        tf.image.is_jpeg(image_bytes),
        lambda: tf.image.decode_and_crop_jpeg(image_bytes, crop_window, channels=3),
        crop_png)


def preprocess_for_train(image_bytes, image_size, *, crop_window, seed, resize_method,
                         random_flip=True, vertical_flip=False, augment=None, distortions=()):
    """Decodes, crops and resizes an image, flips it with probability 0.5 and augments it.

    Args:
        image_bytes: string scalar, a JPEG or PNG file.
        image_size: `ImageSize` of the result, or int for a square.
        crop_window: int32 [4], from `random_crop_window`.
        seed: int64 [2], seed of this image for stateless random operations.
        resize_method: str, one of `RESIZE_METHODS`.
        random_flip: bool, whether to flip left to right with probability 0.5.
        vertical_flip: bool, whether to flip top to bottom with probability 0.5.
        augment: None or callable, `augment(image, seed)` with image uint8
            [height, width, 3] and the seed above, returning the same type and shape.
        distortions: tuple of such callables, applied in this order after `augment`.

    Returns:
        uint8 [height, width, 3], raw RGB.
    """
    # uint8 images have a quarter of the bytes to copy, batch and move to the device. The rounding
    # error is 0.3 of 255 gray levels (root mean square), less than the loss of JPEG. With an
    # augmentation, pixels are truncated as in the published scripts, which keep floats without one.
    image = resize(decode_and_crop(image_bytes, crop_window), image_size, resize_method)
    shape = image.shape
    image = conversions.cut_to_uint8(image) if augment else conversions.round_to_uint8(image)
    if random_flip:
        image = tf.cond(tf.random.stateless_uniform([], seed) < 0.5,
                        lambda: tf.reverse(image, axis=[1]), lambda: image)
        image.set_shape(shape)
    if vertical_flip:
        image = random_ops.vertical_flip(image, seed)
    for distort in (*([augment] if augment else ()), *distortions):
        image = tf.ensure_shape(distort(image, seed), shape)
    return image


def preprocess_for_eval(image_bytes, image_size, *, resize_method, is_strict=False,
                        max_pixels=None):
    """Decodes the center crop and resizes it.

    The pixels are not rounded: they equal those behind the published accuracy and those that an
    exported model gets from the same file.

    Args:
        image_bytes: string scalar, a JPEG or PNG file.
        image_size: `ImageSize` of the result, or int for a square.
        resize_method: str, one of `RESIZE_METHODS`.
        is_strict: bool, whether an UNUSUAL file is an error.
        max_pixels: see `usable_shape`.

    Returns:
        float32 [height, width, 3], raw RGB in [0, 255]; bicubic may overshoot.
    """
    shape = usable_shape(image_bytes, max_pixels, allows_unusual=not is_strict)
    crop_window = center_crop_window(shape, image_size)
    return resize(decode_and_crop(image_bytes, crop_window), image_size, resize_method)


def resize(image, image_size, resize_method):
    """Resizes uint8 [any, any, 3] to float32 [height, width, 3], not antialiased.

    image_size is an `ImageSize`, or an int for a square.
    """
    if resize_method not in _RESIZE:
        raise ValueError(f'resize_method {resize_method!r}: unknown; choose one of '
                         f'{RESIZE_METHODS}.')
    # The resize kernel would convert each uint8 value every time it reads it.
    image = conversions.to_float(image)
    size = ImageSize.of(image_size)
    image = _RESIZE[resize_method](image[tf.newaxis], size)[0]
    return tf.ensure_shape(image, [*size, 3])
