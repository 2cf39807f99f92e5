"""What the headers of JPEG and PNG files say."""

JPEG_SIGNATURE = b'\xff\xd8\xff'
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
# The chunk that says how many frames there are comes before the first one's pixels.
PNG_ANIMATION = b'\0\0\0\x08acTL'


def num_jpeg_channels(encoded):
    """Channels by the frame header (ITU T.81, B.2.2); None when there is none."""
    position = 2
    while position + 10 <= len(encoded):
        marker, length = encoded[position + 1], int.from_bytes(
            encoded[position + 2:position + 4], 'big')
        if 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc):
            return encoded[position + 9]
        position += 2 + length
    return None
