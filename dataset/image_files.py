"""What of an image file goes into a record: the very file, the image encoded anew, or nothing.

A JPEG of 8 bits a channel, grey or YCbCr, that is whole goes in byte for byte. Whether it is, its
markers tell: the segments of its header, then no marker inside the entropy-coded data that does not
belong there, up to the end marker. That costs a few microseconds an image where decoding costs
milliseconds, and sees what decoding sees: libjpeg only warns of bits that have flipped.

Everything else is decoded, and what can be decoded becomes a JPEG.
"""
import dataclasses
import io
import re
import struct
from typing import Optional
import warnings
import zlib

import numpy as np
from PIL import Image
from PIL import ImageOps

JPEG_QUALITY = 95
JPEG = 'JPEG'
PNG = 'PNG'

EXTENSIONS = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.gif', '.bmp', '.webp', '.tif',
              '.tiff', '.ppm', '.pgm', '.heic', '.heif', '.avif')
"""Files of a folder that are taken for images; those that Pillow cannot decode will be reported."""

_SOI, _SOS, _EOI, _DHT, _DQT, _APP1 = 0xd8, 0xda, 0xd9, 0xc4, 0xdb, 0xe1
_START_OF_FRAME = (0xc0, 0xc1, 0xc2)  # baseline, extended and progressive, with Huffman codes
_EXIF = b'Exif\0\0'
_ORIENTATION = 0x0112
_AS_STORED = 1
# In entropy-coded data 0xff is followed by a stuffed 0, a restart marker, or fill bytes.
_NEXT_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3}    # colour type -> channels: grey, RGB, palette


class BadImageError(Exception):
    """A file that cannot become a record; the message is the reason, without the file's name."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a record holds it.

    Attributes:
        encoded: bytes, a JPEG or PNG file.
        image_format: 'JPEG' or 'PNG'.
        height, width: int, pixels.
        channels: int, as stored: 1 or 3.
        conversion: None where `encoded` is the source's bytes, else what was done and why.
    """
    encoded: bytes
    image_format: str
    height: int
    width: int
    channels: int
    conversion: Optional[str] = None


def prepare(encoded, *, keep_png=False, turn_upright=True, decode_all=False):
    """Makes the bytes of any image file what a record should hold.

    Args:
        encoded: bytes of the file.
        keep_png: bool, whether PNG files that TensorFlow decodes as they are stay PNG files.
        turn_upright: bool, whether an orientation in the Exif data is carried out; a reader of
            records does not look there.
        decode_all: bool, whether to decode even those that need no conversion.

    Returns:
        `Picture`.

    Raises:
        BadImageError: it cannot be decoded.
    """
    if not encoded:
        raise BadImageError('the file is empty')
    is_jpeg = encoded.startswith(b'\xff\xd8')
    picture, reason = _whole_jpeg(encoded, turn_upright) if is_jpeg else (None, None)
    if keep_png and encoded.startswith(_PNG_SIGNATURE):
        picture = _whole_png(encoded)
    if picture:
        if decode_all:
            _decode(encoded)
        return picture
    return _converted(encoded, turn_upright, reason)


def _whole_jpeg(encoded, turn_upright):
    """(Picture, None) of a JPEG that can stay as it is, else (None, why not)."""
    frame, tables, position = None, set(), 2
    while True:
        try:
            mark, marker = encoded[position], encoded[position + 1]
        except IndexError:
            return None, 'ends early'
        if mark != 0xff:
            return None, f'has stray bytes at {position}'
        if marker == 0xff:  # a fill byte
            position += 1
            continue
        if marker == _EOI:
            if frame is None or _SOS not in tables:
                return None, 'has no image in it'
            height, width, channels = frame
            return Picture(encoded, JPEG, height, width, channels), None
        if position + 4 > len(encoded):
            return None, 'ends early'
        length, = struct.unpack_from('>H', encoded, position + 2)
        begin, end = position + 4, position + 2 + length
        if length < 2 or end > len(encoded):
            return None, 'ends early'
        if marker in _START_OF_FRAME and length >= 8:
            precision, *frame = struct.unpack_from('>BHHB', encoded, begin)
            if precision != 8 or min(frame) == 0:
                return None, f'has {precision} bits a channel, or no size'
            if frame[2] not in (1, 3):
                return None, f'has {frame[2]} colour channels'
        elif 0xc0 <= marker <= 0xcf and marker not in (_DHT, 0xc8, 0xcc):
            return None, 'is of a kind that few programs decode'
        elif marker == _APP1 and turn_upright and _turned(encoded[begin:end]):
            return None, 'was turned upright, as its Exif data say'
        tables.add(marker)
        position = end
        if marker == _SOS:
            if frame is None or not {_DQT, _DHT} <= tables:
                return None, 'lacks tables'
            found = _NEXT_MARKER.search(encoded, end)
            if not found:
                return None, 'ends early'
            position = found.start()


def _turned(segment):
    """Whether an Exif segment says that the picture is stored turned or mirrored."""
    if not segment.startswith(_EXIF):
        return False
    exif = Image.Exif()
    try:
        exif.load(segment)
        return exif.get(_ORIENTATION, _AS_STORED) in range(2, 9)
    except Exception:  # Exif data are written by anything; Pillow raises anything.
        return False


def _whole_png(encoded):
    """Picture of a PNG that can stay as it is, or None: 8 bits at most, opaque, one frame."""
    position, header, kinds = len(_PNG_SIGNATURE), None, set()
    while position + 12 <= len(encoded):
        length, kind = struct.unpack_from('>I4s', encoded, position)
        end = position + 8 + length
        if end + 4 > len(encoded) or struct.unpack_from('>I', encoded, end)[0] != zlib.crc32(
                encoded[position + 4:end]):
            return None
        if kind == b'IHDR' and length == 13:
            header = struct.unpack_from('>IIBB', encoded, position + 8)
        kinds.add(kind)
        if kind == b'IEND':
            break
        position = end + 4
    if not header or not {b'IDAT', b'IEND'} <= kinds or kinds & {b'tRNS', b'acTL'}:
        return None
    width, height, bits, colour_type = header
    if bits > 8 or colour_type not in _PNG_CHANNELS:
        return None
    return Picture(encoded, PNG, height, width, _PNG_CHANNELS[colour_type])


def load(encoded):
    """The first frame as a loaded Pillow image, in whatever mode the file has.

    Raises:
        Exception: of any kind, as Pillow's decoders do for damaged files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        image = Image.open(io.BytesIO(encoded))
        image.load()
    return image


def _decode(encoded):
    """`load`, with what is wrong as a BadImageError."""
    try:
        return load(encoded)
    except Image.DecompressionBombError as error:
        raise BadImageError('it has more pixels than is believable') from error
    except Exception as error:
        if type(error).__name__ == 'UnidentifiedImageError':
            raise BadImageError('it is no image of a kind that Pillow decodes') from error
        raise BadImageError(f'it cannot be decoded ({_clean(error)})') from error


def _clean(error):
    return ' '.join(f'{error}'.split()) or type(error).__name__


def _converted(encoded, turn_upright, reason):
    """The `Picture` of a file that is decoded and encoded anew; `reason` is why a JPEG is."""
    image = _decode(encoded)
    frames = getattr(image, 'n_frames', 1)
    # Phones append other views of a picture to its JPEG: those are no animation.
    is_animated = frames > 1 and image.format not in (JPEG, 'MPO')
    done = [f'{image.format} in mode {image.mode}']
    if is_animated:
        done.append(f'the first of {frames} frames')
    if reason:
        done.append(f'it {reason}')
    if turn_upright:
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:
            done.append('its Exif data are damaged')
    file = io.BytesIO()
    try:
        image = _opaque_8_bits(image, done)
        image.save(file, JPEG, quality=JPEG_QUALITY, subsampling=0)
    except (OSError, ValueError) as error:
        raise BadImageError(f'it cannot become a JPEG ({_clean(error)})') from error
    channels = len(image.getbands())
    return Picture(file.getvalue(), JPEG, image.height, image.width, channels, ', '.join(done))


def _opaque_8_bits(image, done):
    """An image in mode L or RGB; says in the list `done` what was lost on the way."""
    if image.mode == 'F':
        raise BadImageError('its pixels are floating-point numbers, which have no agreed range')
    if image.mode.startswith('I'):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError('its pixels have 32 bits')
        done.append('16 bits a channel became 8')
        return Image.fromarray((values // 257).astype(np.uint8))
    if image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        if image.getchannel('A').getextrema() != (255, 255):
            done.append('transparency became white')
            image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
        return image.convert('RGB')
    return image.convert('L' if image.mode in ('1', 'L') else 'RGB')
