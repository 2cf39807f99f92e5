"""One encoded image -> one image tensor, for training and for evaluation.

The crops are those EfficientNet was published with: for training Inception's random resized crop
(Szegedy et al., arXiv:1409.4842, section 6), for evaluation the centre of the image with a margin
around it. Pixels stay raw, about [0, 255]: the mean and the standard deviation belong to the
model.

Where a crop lies is drawn apart from decoding, from the file's header alone: random crops can then
be drawn one after the other, so that a seed gives the same ones again, while the expensive part
runs on all cores.

JPEG (grey, RGB and CMYK) and PNG (grey, RGB, palette; alpha is dropped, 16 bits become 8) decode to
three channels. The default `fancy_upscaling` of the JPEG decoder is never switched off: in
TensorFlow 1.15 that corrupts the heap.
"""
import tensorflow.compat.v1 as tf

from common import conversions
from tfrecords import image_formats

CROP_PADDING = 32                # pixels left out, both sides together, when the crop is
CROP_PADDING_IMAGE_SIZE = 224    # at least as wide as this
MIN_RANDOM_CROP_AREA = 0.08      # share of the whole image
RANDOM_CROP_ASPECT_RATIO = (3 / 4, 4 / 3)  # width / height
RANDOM_CROP_ATTEMPTS = 10
MIN_OBJECT_COVERED = 0.1         # the object is the whole image: so no crop is smaller than this


# What a file is, see `image_header`.
ORDINARY, UNUSUAL, FOREIGN = range(3)

_RESIZE = {'bicubic': tf.image.resize_bicubic, 'bilinear': tf.image.resize_bilinear}
RESIZE_METHODS = tuple(_RESIZE)

_ANIMATED = r'\C*' + ''.join(f'\\x{byte:02x}' for byte in image_formats.PNG_ANIMATION) + r'\C*'


def image_header(image_bytes):
    """Reads the header of a file, without decoding the image.

    Args:
        image_bytes: string scalar.

    Returns:
        (shape, kind): int32 [2], pixels, height and width, without meaning for FOREIGN; int32
        scalar, one of
          - ORDINARY: a JPEG or PNG of one image, grey, RGB, RGBA or with a palette, of 8 bits;
          - UNUSUAL: a CMYK JPEG, whose colours depend on a profile, or a PNG of 16 bits, of which 8
            are lost, or with an animation, of which one frame is seen;
          - FOREIGN: neither JPEG nor PNG.
        A JPEG with a damaged header is an InvalidArgumentError.
    """
    def jpeg_header():
        height, width, channels = tf.unstack(tf.image.extract_jpeg_shape(image_bytes))
        return tf.stack([height, width, tf.where(channels < 4, ORDINARY, UNUSUAL)])

    def png_header():
        # The first chunk, IHDR, begins with the width, the height, 4 bytes each, and the depth.
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


def check(condition, fault):
    """An operation that fails with the words of `fault`, a string or a string scalar, unless the
    bool scalar condition holds.
    """
    # tf.Assert would put a cond around it.
    return tf.raw_ops.Assert(condition=condition, data=[tf.convert_to_tensor(fault)])


def center_crop_window(shape, image_size):
    """The evaluation crop: the central square of image_size / (image_size + padding).

    The padding is 32 pixels from 224 pixels on, so that larger models see more of the image (0.875
    of the shorter side at 224, 0.949 at 600: what their published accuracy was measured with), and
    in proportion to image_size below, as in test/golden/augmentation.

    Args:
        shape: int32 [2], pixels: height and width of the image.
        image_size: int, pixels of the side that the crop will be resized to.

    Returns:
        int32 [4], pixels: top, left, height, width.
    """
    padding = min(CROP_PADDING, round(CROP_PADDING * image_size / CROP_PADDING_IMAGE_SIZE))
    shorter_side = tf.cast(tf.reduce_min(shape), tf.float32)
    side = tf.cast(image_size / (image_size + padding) * shorter_side, tf.int32)
    side = tf.maximum(side, 1)
    return tf.concat([(shape - side + 1) // 2, [side, side]], axis=0)


def random_crop_window(shape, image_size, *, seed, min_area=MIN_RANDOM_CROP_AREA):
    """The training crop: a rectangle of random area, shape and place.

    The centre crop instead when all attempts fail or the draw is the whole image, as in the
    ancestors (who compared the channels too, so that a grey JPEG, one channel in the file and three
    decoded, never fell back).

    Args:
        shape: int32 [2], pixels: height and width of the image.
        image_size: int, pixels of the side that the crop will be resized to.
        seed: int above 0, of the sequence that the operation draws from as it runs again and again.
        min_area: float in (0, 1], the smallest share of the image that a crop may have.

    Returns:
        int32 [4], pixels: top, left, height, width.
    """
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.concat([shape, [3]], axis=0),
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=MIN_OBJECT_COVERED,
        aspect_ratio_range=RANDOM_CROP_ASPECT_RATIO,
        area_range=(min_area, 1.0),
        max_attempts=RANDOM_CROP_ATTEMPTS,
        use_image_if_no_bounding_boxes=True)
    is_whole_image = tf.reduce_all(tf.equal(size[:2], shape))
    return tf.cond(is_whole_image,
                   lambda: center_crop_window(shape, image_size),
                   lambda: tf.concat([begin[:2], size[:2]], axis=0))


def decode_and_crop(image_bytes, crop_window):
    """Decodes the part of a file that lies in the window; of a JPEG, no more than that.

    Args:
        image_bytes: string scalar, a JPEG or PNG file.
        crop_window: int32 [4], pixels: top, left, height, width.

    Returns:
        uint8 [height, width, 3].
    """
    # Whatever is checked before there is a window is checked before the decoder complains.
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
                         random_flip=True, augment=None):
    """Decodes, crops, resizes, mirrors half of the images, augments.

    The result is uint8, as the augmentations take and give it, also where there is none: what
    rounding takes away, 0.3 grey levels of 255 in the mean square, is less than what JPEG has taken
    away already, and a quarter of the bytes is left to be copied, batched and moved to the device.
    The published scripts cut off before an augmentation and so does this one; without one, where
    they kept floats, it rounds.

    Args:
        image_bytes: string scalar, a JPEG or PNG file.
        image_size: int, pixels of the side of the result.
        crop_window: int32 [4], from `random_crop_window`.
        seed: int64 [2], this image's own, for stateless random operations.
        resize_method: str, one of `RESIZE_METHODS`.
        random_flip: bool, whether half of the images are mirrored left to right.
        augment: None or callable, `augment(image, seed)` with image uint8
            [image_size, image_size, 3] and the seed above, returning the same type and shape.

    Returns:
        uint8 [image_size, image_size, 3], raw RGB.
    """
    image = resize(decode_and_crop(image_bytes, crop_window), image_size, resize_method)
    image = conversions.cut_to_uint8(image) if augment else conversions.round_to_uint8(image)
    if random_flip:
        image = tf.cond(tf.random.stateless_uniform([], seed) < 0.5,
                        lambda: tf.reverse(image, axis=[1]), lambda: image)
        image.set_shape([image_size, image_size, 3])
    if augment:
        image = tf.ensure_shape(augment(image, seed), [image_size, image_size, 3])
    return image


def preprocess_for_eval(image_bytes, image_size, *, resize_method, is_strict=False):
    """Decodes the centre crop and resizes it.

    Not rounded to uint8: the pixels are those that the published accuracy was measured with, and
    what an exported model sees of the same file.

    Args:
        image_bytes: string scalar, a JPEG or PNG file.
        image_size: int, pixels of the side of the result.
        resize_method: str, one of `RESIZE_METHODS`.
        is_strict: bool, whether a file that is not ORDINARY (`image_header`) is an error; if not,
            one that is FOREIGN is.

    Returns:
        float32 [image_size, image_size, 3], raw RGB in [0, 255]; bicubic may overshoot.
    """
    shape, kind = image_header(image_bytes)
    is_good = check(kind <= (ORDINARY if is_strict else UNUSUAL),
                    'The image is neither a JPEG nor a PNG file, or of an unusual kind.')
    with tf.control_dependencies([is_good]):
        crop_window = center_crop_window(shape, image_size)
    return resize(decode_and_crop(image_bytes, crop_window), image_size, resize_method)


def resize(image, image_size, resize_method):
    """uint8 [height, width, 3] -> float32 [image_size, image_size, 3], without antialiasing."""
    if resize_method not in _RESIZE:
        raise ValueError(f'Unknown resize_method {resize_method!r}; there are {RESIZE_METHODS}.')
    # Of uint8 the kernel converts each value as often as it is used.
    image = conversions.to_float(image)
    image = _RESIZE[resize_method](image[tf.newaxis], [image_size, image_size])[0]
    return tf.ensure_shape(image, [image_size, image_size, 3])
