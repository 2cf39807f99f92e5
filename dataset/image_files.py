"""Converts image files to what a record stores: the file as it is, or the image as a new JPEG.

An intact JPEG with 8 bits per channel, gray or YCbCr, is stored byte for byte. It counts as intact
if its header segments are complete and its entropy-coded data contain no stray marker up to the end
marker. This check takes microseconds where decoding takes milliseconds, and finds as much: libjpeg
only warns about flipped bits.

Every other file is decoded and stored as a JPEG; a file that cannot be decoded is an error.
"""
import dataclasses
import functools
import io
import struct
from typing import Optional
import warnings

import numpy as np
from PIL import Image
from PIL import ImageOps

from common.errors import first_line
from tfrecords import image_formats

JPEG_QUALITY = 95
RESIZED_JPEG_QUALITY = 90
_HALF_CHROMA = 2           # Pillow's number for 4:2:0
JPEG = 'JPEG'
PNG = 'PNG'

EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.gif', '.bmp', '.dib',
              '.webp', '.tif', '.tiff', '.jp2', '.ppm', '.pgm', '.pbm', '.pnm', '.tga', '.ico',
              '.heic', '.heif', '.avif')
"""Extensions of image files. Files with one of them that Pillow cannot decode are reported."""

HEIF_PACKAGE = 'pillow-heif==0.12.0'    # the last release for Python 3.7
_HEIF_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1', b'avif',
                b'avis')

_HUFFMAN_FRAMES = (0xc0, 0xc1, 0xc2)  # baseline, extended and progressive
_EXIF = b'Exif\0\0'
_ORIENTATION = 0x0112
_AS_STORED = 1

_PNG_METADATA = (b'Raw profile type exif', b'XML:com.adobe.xmp')    # keywords of text chunks
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3}    # color type -> channels: gray, RGB, palette


class BadImageError(Exception):
    """A file that cannot become a record. The message is the reason, without the file's name."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as stored in a record.

    Attributes:
        encoded: bytes, a JPEG or PNG file.
        image_format: 'JPEG' or 'PNG'.
        height, width: int, pixels.
        channels: int, as stored: 1 or 3.
        conversion: str, what was converted and why; None if nothing but the size was changed.
    """
    encoded: bytes
    image_format: str
    height: int
    width: int
    channels: int
    conversion: Optional[str] = None


def is_image(name):
    """Returns whether a file name is that of an image: not hidden, and one of EXTENSIONS."""
    return not name.startswith('.') and name.lower().endswith(EXTENSIONS)


@dataclasses.dataclass(frozen=True)
class Limit:
    """Largest size in which images are stored.

    Attributes:
        short_side: int, pixels; images with a longer short side are resized to it.
        jpeg_quality: int, 1 to 100, quality of the JPEGs of resized images.
    """
    short_side: int
    jpeg_quality: int = RESIZED_JPEG_QUALITY

    def size_of(self, width, height):
        """Returns the (width, height) in which an image is stored, pixels."""
        short_side = min(width, height)
        if short_side <= self.short_side:
            return width, height
        return tuple(round(side * self.short_side / short_side) for side in (width, height))

    def applies_to(self, width, height):
        return min(width, height) > self.short_side


def prepare(encoded, *, keep_png=False, turn_upright=True, decode_all=False,
            max_pixels=image_formats.MAX_IMAGE_PIXELS, limit=None):
    """Converts an image file of any kind to what a record stores.

    Args:
        encoded: bytes of the file.
        keep_png: bool, whether PNG files that TensorFlow can decode stay PNG files.
        turn_upright: bool, whether to apply the Exif orientation, which readers of records ignore.
        decode_all: bool, whether to decode even files that need no conversion, as a check.
        max_pixels: int; a larger image is an error, which is found before it is decoded.
        limit: `Limit`, or None to store every size. A JPEG that is only resized has no
            `conversion`.

    Returns:
        `Picture`.

    Raises:
        BadImageError: the file is empty, cannot be decoded, or is too large.
    """
    if not encoded:
        raise BadImageError('the file is empty')
    picture = reason = None
    try:
        if encoded.startswith(b'\xff\xd8'):
            picture = _whole_jpeg(encoded, turn_upright)
        elif keep_png and encoded.startswith(image_formats.PNG_SIGNATURE):
            picture = _whole_png(encoded, turn_upright, max_pixels)
    except ValueError as error:
        reason = str(error)
    if picture is None:
        return _converted(encoded, turn_upright, reason, max_pixels, limit)
    _check_size((picture.height, picture.width), max_pixels)
    if limit and limit.applies_to(picture.width, picture.height):
        return _resized(encoded, picture, max_pixels, limit)
    if decode_all:
        _decode(encoded, max_pixels)
    return picture


def _check_size(size, max_pixels):
    excess = image_formats.excess(size, max_pixels)
    if excess:
        raise BadImageError(f'it has {excess}')


def _whole_jpeg(encoded, turn_upright):
    """Returns the `Picture` of a JPEG that can be stored as it is.

    Raises:
        ValueError: the JPEG has to be converted. The message is a predicate that gives the reason.
    """
    size, tables = None, set()
    for marker, data in image_formats.jpeg_segments(encoded):
        if marker in _HUFFMAN_FRAMES and len(data) >= 6:
            precision, *size = struct.unpack_from('>BHHB', data)
            if precision != 8 or min(size) == 0:
                raise ValueError(f'has {precision} bits per channel, or no size')
            if size[2] not in (1, 3):
                raise ValueError(f'has {size[2]} color channels')
        elif marker in image_formats.FRAME_HEADERS:
            raise ValueError('has a compression that few programs decode')
        elif marker == image_formats.APP1 and turn_upright and data.startswith(_EXIF) and (
                _is_turned(_exif_of_segment, data)):
            raise ValueError('was turned upright by its Exif orientation')
        tables.add(marker)
        if marker == image_formats.SOS and not (
                size and {image_formats.DQT, image_formats.DHT} <= tables):
            raise ValueError('lacks quantization or Huffman tables')
    if image_formats.SOS not in tables:
        raise ValueError('contains no image data')
    return Picture(encoded, JPEG, *size)


def _exif_of_segment(segment):
    exif = Image.Exif()
    exif.load(segment)
    return exif


def _exif_of_file(encoded, max_pixels):
    return load(encoded, max_pixels).getexif()


def _is_turned(read_exif, *arguments):
    """Returns whether the Exif data that `read_exif` returns rotate or mirror the image."""
    try:
        return read_exif(*arguments).get(_ORIENTATION, _AS_STORED) in range(2, 9)
    except Exception:  # Pillow raises errors of any kind for malformed Exif data.
        return False


def _whole_png(encoded, turn_upright, max_pixels):
    """Returns the `Picture` of a PNG that can be stored as it is, or None.

    The PNG must have at most 8 bits per channel, be opaque and upright, and have one frame.

    Raises:
        ValueError: the file is truncated or corrupt.
    """
    all_chunks = list(image_formats.png_chunks(encoded))
    chunks = dict(all_chunks)
    header = chunks.get(b'IHDR', b'')
    if len(header) != 13 or b'IDAT' not in chunks or {b'tRNS', b'acTL'} & set(chunks):
        return None
    has_metadata = b'eXIf' in chunks or any(
        data.startswith(_PNG_METADATA) for _, data in all_chunks)
    if turn_upright and has_metadata and _is_turned(_exif_of_file, encoded, max_pixels):
        return None
    width, height, bits, color_type = struct.unpack_from('>IIBB', header)
    if bits > 8 or color_type not in _PNG_CHANNELS:
        return None
    return Picture(encoded, PNG, height, width, _PNG_CHANNELS[color_type])


def load(encoded, max_pixels, draft_size=None):
    """Returns the first frame as a loaded Pillow image, in the mode of the file.

    Args:
        encoded: bytes of the file.
        max_pixels: int.
        draft_size: (width, height) in pixels. The decoder of a JPEG may halve the sides while they
            stay at least this long, which takes a fraction of the time. None for the full size.

    Raises:
        BadImageError: the image has more than max_pixels (found before decoding), or is PostScript.
        Exception: of any kind, raised by Pillow's decoders for corrupt files.
    """
    _register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            # Pillow's own limit would apply first, with a message without size and flag.
            Image.MAX_IMAGE_PIXELS = None
            image = Image.open(io.BytesIO(encoded))
            _check_size(image.size[::-1], max_pixels)
            if image.format == 'EPS':
                # Pillow would run it in Ghostscript.
                raise BadImageError('it is PostScript, a program, which is never run')
            if draft_size:
                image.draft(image.mode, draft_size)
            # Embedded images, such as those of an icon, are found during decoding only.
            Image.MAX_IMAGE_PIXELS = max_pixels
            image.load()
    finally:
        Image.MAX_IMAGE_PIXELS = image_formats.MAX_IMAGE_PIXELS
    return image


@functools.lru_cache(maxsize=None)
def _register_heif():
    """Lets Pillow read HEIC and AVIF if pillow-heif is installed; returns whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    pillow_heif.register_avif_opener()
    return True


def _decode(encoded, max_pixels, draft_size=None):
    """Returns what `load` does; raises BadImageError for every failure."""
    try:
        return load(encoded, max_pixels, draft_size)
    except BadImageError:
        raise
    except Exception as error:
        if type(error).__name__ != 'UnidentifiedImageError':
            raise BadImageError(f'it cannot be decoded ({first_line(error)})') from error
        if encoded[4:8] == b'ftyp' and encoded[8:12] in _HEIF_BRANDS and not _register_heif():
            raise BadImageError('it is a HEIC or AVIF image; to read it, run '
                                f'pip install {HEIF_PACKAGE}') from error
        raise BadImageError('it is not an image that Pillow can decode') from error


def _resized(encoded, picture, max_pixels, limit):
    """Returns the resized `Picture` of an intact JPEG or PNG that exceeds the limit."""
    size = limit.size_of(picture.width, picture.height)
    image = _opaque_8_bits(_decode(encoded, max_pixels, size), [])
    return _as_jpeg(image.resize(size, Image.BOX), limit,
                    None if picture.image_format == JPEG else 'a PNG that was resized')


def _as_jpeg(image, limit, conversion):
    """Returns the `Picture` of an opaque 8-bit Pillow image; `limit` is None if it was not resized.
    """
    file = io.BytesIO()
    options = (dict(quality=limit.jpeg_quality, subsampling=_HALF_CHROMA) if limit else
               dict(quality=JPEG_QUALITY, subsampling=0))
    image.save(file, JPEG, **options)
    return Picture(file.getvalue(), JPEG, image.height, image.width, len(image.getbands()),
                   conversion)


def _converted(encoded, turn_upright, reason, max_pixels, limit):
    """Returns the `Picture` of a file that is decoded and re-encoded.

    `reason` is why an intact-looking JPEG or PNG cannot be stored as it is, or None.
    """
    image = _decode(encoded, max_pixels)
    frames = getattr(image, 'n_frames', 1)
    # Phones append further views to a JPEG, which are not frames of an animation.
    is_animated = frames > 1 and image.format not in (JPEG, 'MPO')
    done = [f'{image.format} in mode {image.mode}']
    if is_animated:
        done.append(f'the first of {frames} frames')
    if reason:
        done.append(f'it {reason}')
    # Pillow applies the orientation of TIFF files itself while it decodes them.
    if turn_upright and image.format != 'TIFF':
        try:
            upright = ImageOps.exif_transpose(image)
            if not reason and _is_turned(image.getexif):
                done.append('it was turned upright')
            image = upright
        except Exception:
            done.append('its Exif data are corrupt')
    try:
        image = _opaque_8_bits(image, done)
        if limit and limit.applies_to(*image.size):
            image = image.resize(limit.size_of(*image.size), Image.BOX)
        else:
            limit = None
        return _as_jpeg(image, limit, ', '.join(done))
    except (OSError, ValueError) as error:
        raise BadImageError(f'it cannot be converted to JPEG ({first_line(error)})') from error


def _opaque_8_bits(image, done):
    """Returns the image in mode L or RGB; appends to the list `done` what the conversion lost."""
    if image.mode == 'F':
        raise BadImageError('its pixels are floating-point numbers, which have no standard range')
    if image.mode.startswith('I'):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError('its pixels have 32 bits')
        done.append('16 bits per channel became 8')
        return Image.fromarray((values // 257).astype(np.uint8))
    if image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        if image.getchannel('A').getextrema() != (255, 255):
            done.append('transparency became white')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        return image.convert('RGB')
    return image.convert('L' if image.mode in ('1', 'L') else 'RGB')
