"""Parses the segments of JPEG files and the chunks of PNG files, without decoding pixels."""
import re
import struct
import zlib

JPEG_SIGNATURE = b'\xff\xd8\xff'
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# Header of the animation control chunk (8 bytes long), which precedes the pixels.
PNG_ANIMATION = b'\0\0\0\x08acTL'

MAX_IMAGE_PIXELS = 89478485     # Pillow's limit: 256 MiB of RGB pixels

# Markers of JPEG segments (ITU T.81, table B.1).
DHT, SOS, DQT, APP1 = 0xc4, 0xda, 0xdb, 0xe1
FRAME_HEADERS = frozenset(range(0xc0, 0xd0)) - {DHT, 0xc8, 0xcc}
_EOI, _FILL_BYTE = 0xd9, 0xff
# Inside entropy-coded data, 0xff is followed by a stuffed 0, a restart marker, or fill bytes.
_NEXT_MARKER = re.compile(rb'\xff[^\x00\xd0-\xd7\xff]')


def jpeg_segments(encoded):
    """Yields (marker, data) of each segment of a JPEG file, up to its end marker.

    Raises:
        ValueError: the file is truncated, or has bytes between its segments. The message is a
            predicate for a sentence about the file.
    """
    position = 2
    while True:
        if position + 2 > len(encoded):
            raise ValueError('is truncated')
        mark, marker = encoded[position:position + 2]
        if mark != 0xff:
            raise ValueError(f'has unexpected bytes at offset {position}')
        if marker == _FILL_BYTE:
            position += 1
            continue
        if marker == _EOI:
            return
        length = int.from_bytes(encoded[position + 2:position + 4], 'big')
        data = encoded[position + 4:position + 2 + length]
        if length < 2 or len(data) != length - 2:
            raise ValueError('is truncated')
        yield marker, data
        position += 2 + length
        if marker == SOS:
            found = _NEXT_MARKER.search(encoded, position)
            if not found:
                raise ValueError('is truncated')
            position = found.start()


def _jpeg_frame_header(encoded):
    """Returns the content of a JPEG's frame header, or None if there is none."""
    try:
        return next((data for marker, data in jpeg_segments(encoded)
                     if marker in FRAME_HEADERS and len(data) > 5), None)
    except ValueError:
        return None


def num_jpeg_channels(encoded):
    """Returns the number of channels in a JPEG's frame header, or None if there is no header."""
    header = _jpeg_frame_header(encoded)
    return header and header[5]


def image_size(encoded):
    """Returns the (height, width) in the header of a JPEG or PNG file, or None if unknown."""
    if encoded.startswith(PNG_SIGNATURE):
        return struct.unpack_from('>II', encoded, 16)[::-1] if len(encoded) >= 24 else None
    header = _jpeg_frame_header(encoded)
    return header and struct.unpack_from('>HH', header, 1)


def excess(size, max_pixels):
    """Returns an error text if an image has too many pixels, otherwise None.

    Args:
        size: (height, width) in pixels, or None if unknown.
        max_pixels: int.

    Returns:
        str that continues 'it has'.
    """
    if size is None or size[0] * size[1] <= max_pixels:
        return None
    return (f'{size[1]} x {size[0]} pixels, above the limit of {max_pixels} (decompression bomb?); '
            'raise --max_image_pixels if it is intended')


def png_chunks(encoded):
    """Yields (kind, data) of each chunk of a PNG file, including the last one.

    Raises:
        ValueError: the file is truncated, or the checksum of a chunk is wrong.
    """
    position, kind = len(PNG_SIGNATURE), None
    while kind != b'IEND':
        header = encoded[position:position + 8]
        if len(header) < 8:
            raise ValueError('is truncated')
        length, kind = struct.unpack('>I4s', header)
        data = encoded[position + 8:position + 8 + length]
        position += 12 + length
        if encoded[position - 4:position] != struct.pack('>I', zlib.crc32(kind + data)):
            raise ValueError('is corrupt')
        yield kind, data


def png_bits(encoded):
    """Returns the bits per channel of a PNG file, or None if its header is truncated."""
    return encoded[24] if len(encoded) > 24 else None
