"""What becomes of each kind of image file on its way into a record."""
import io

import numpy as np
from PIL import Image
from PIL import PngImagePlugin
import pytest
import tensorflow.compat.v1 as tf

from dataset import image_files
from tfrecords import image_formats

SIZE = (40, 30)


def gradient(mode='RGB'):
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    rgb = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encode(image, file_format='JPEG', **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'), np.float32)


def assert_alike(encoded, image, tolerance=4.0):
    expected = np.asarray(image.convert('RGB'), np.float32)
    assert pixels(encoded).shape == expected.shape
    assert np.abs(pixels(encoded) - expected).mean() < tolerance


@pytest.mark.parametrize('options', [
    dict(), dict(progressive=True), dict(optimize=True), dict(comment=b'a comment'),
    dict(exif=b'Exif\0\0broken')])
@pytest.mark.parametrize('mode, channels', [('RGB', 3), ('L', 1)])
def test_a_whole_jpeg_stays_byte_for_byte(mode, channels, options):
    encoded = encode(gradient(mode), **options)
    for decode_all in (False, True):
        picture = image_files.prepare(encoded, decode_all=decode_all)
        assert picture == image_files.Picture(encoded, 'JPEG', SIZE[1], SIZE[0], channels)


def test_photographs_of_imagenet_stay_byte_for_byte(photos):
    for _, encoded, _ in photos:
        assert image_files.prepare(encoded).encoded == encoded


LIMIT = image_files.Limit(20, 60)


def assert_resized(picture, size, quality):
    stored = Image.open(io.BytesIO(picture.encoded))
    assert (picture.width, picture.height) == stored.size == size
    assert stored.quantization == Image.open(io.BytesIO(
        encode(stored, quality=quality))).quantization
    if stored.mode == 'RGB':
        # One sample of chroma for four of luma.
        assert [layer[1:3] for layer in stored.layer] == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize('short_side', [30, 31, 1000])
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'BMP'])
def test_pictures_up_to_the_limit_are_stored_as_without_one(file_format, short_side):
    encoded = encode(gradient(), file_format)
    limit = image_files.Limit(short_side, 10)
    for keep_png in (False, True):
        assert image_files.prepare(encoded, keep_png=keep_png, limit=limit) == image_files.prepare(
            encoded, keep_png=keep_png)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_pictures_above_the_limit_are_resized(mode):
    picture = image_files.prepare(encode(gradient(mode)), limit=LIMIT)
    assert_resized(picture, (27, 20), 60)
    expected = gradient(mode).convert('L' if mode == 'L' else 'RGB').resize((27, 20), Image.BOX)
    assert_alike(picture.encoded, expected, 8.0)
    assert (picture.conversion is None) == (mode != 'CMYK')
    best = image_files.prepare(encode(gradient(mode)), limit=image_files.Limit(20, 100))
    assert_resized(best, (27, 20), 100)
    assert_alike(best.encoded, expected, 2.0 if mode == 'L' else 4.0)


def test_a_turned_and_a_kept_picture_are_resized_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image_files.prepare(encode(gradient(), exif=exif.tobytes()), limit=LIMIT)
    assert_resized(turned, (20, 27), 60)
    kept = image_files.prepare(encode(gradient(), 'PNG'), keep_png=True, limit=LIMIT)
    assert_resized(kept, (27, 20), 60)
    assert kept.image_format == 'JPEG' and 'PNG' in kept.conversion


def test_the_decoder_halves_no_more_than_it_may():
    large = gradient().resize((400, 300))
    picture = image_files.prepare(encode(large), limit=image_files.Limit(100, 95))
    assert_resized(picture, (133, 100), 95)
    assert_alike(picture.encoded, large.resize((133, 100), Image.BOX), 3.0)


def test_what_phones_append_to_a_jpeg_does_no_harm():
    encoded = encode(gradient())
    assert image_files.prepare(encoded + b'\0' * 9 + encoded).conversion is None
    several = encode(gradient(), 'MPO', save_all=True, append_images=[gradient()])
    assert image_files.prepare(several).conversion is None


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def test_a_photograph_stored_on_its_side_is_turned_upright():
    encoded = encode(gradient(), exif=exif(6), quality=95)
    picture = image_files.prepare(encoded)
    assert (picture.width, picture.height) == SIZE[::-1]
    assert 'Exif' in picture.conversion
    assert_alike(picture.encoded, gradient().transpose(Image.ROTATE_270))
    assert image_files.prepare(encoded, turn_upright=False).encoded == encoded
    assert image_files.prepare(encode(gradient(), exif=exif(1))).conversion is None


def xmp():
    data = PngImagePlugin.PngInfo()
    data.add_itxt('XML:com.adobe.xmp', '<x tiff:Orientation="6"/>')
    return data


@pytest.mark.parametrize('file_format, options', [
    ('JPEG', dict(exif=exif(6), quality=95)), ('PNG', dict(exif=exif(6))),
    ('PNG', dict(pnginfo=xmp())), ('WEBP', dict(exif=exif(6), lossless=True)),
    ('TIFF', dict(tiffinfo={0x112: 6})),
    ('TIFF', dict(tiffinfo={0x112: 6}, compression='tiff_lzw'))])
@pytest.mark.parametrize('keep_png', [False, True])
def test_every_kind_of_file_is_turned_upright_once(file_format, options, keep_png):
    picture = image_files.prepare(encode(gradient(), file_format, **options), keep_png=keep_png)
    assert_alike(picture.encoded, gradient().transpose(Image.ROTATE_270))


def limited(encoded):
    """Prepares a file with fewer pixels allowed than it has."""
    return image_files.prepare(encoded, max_pixels=SIZE[0] * SIZE[1] - 1, keep_png=True)


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM'])
def test_an_image_above_the_limit_of_pixels_is_refused(file_format):
    encoded = encode(gradient(), file_format)
    with pytest.raises(image_files.BadImageError, match='it has 40 x 30 pixels, above the limit '
                       'of 1199 .decompression bomb..; raise --max_image_pixels'):
        limited(encoded)
    image_files.prepare(encoded, max_pixels=SIZE[0] * SIZE[1], keep_png=True)


def test_a_program_is_no_image():
    with pytest.raises(image_files.BadImageError, match='it is PostScript'):
        image_files.prepare(encode(gradient(), 'EPS'))


def test_a_limit_is_that_of_one_image():
    with pytest.raises(image_files.BadImageError, match='pixels'):
        image_files.prepare(encode(gradient(), 'BMP'), max_pixels=10)
    assert Image.MAX_IMAGE_PIXELS == image_formats.MAX_IMAGE_PIXELS


def test_the_limit_can_be_raised_above_pillows(monkeypatch):
    encoded = encode(gradient(), 'BMP')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
    assert image_files.prepare(encoded).width == SIZE[0]


def test_heic_says_what_to_install():
    for brand in (b'heic', b'mif1', b'avif'):
        with pytest.raises(image_files.BadImageError, match='HEIC or AVIF .*pip install pillow-h'):
            image_files.prepare(b'\0\0\0\x18ftyp' + brand + bytes(40))
    with pytest.raises(image_files.BadImageError, match='not an image that Pillow can'):
        image_files.prepare(b'\0\0\0\x18ftypqt  ' + bytes(40))


@pytest.mark.parametrize('file_format, mode', [
    ('JPEG', 'CMYK'), ('PNG', 'RGB'), ('PNG', 'L'), ('PNG', 'P'), ('PNG', '1'), ('BMP', 'RGB'),
    ('GIF', 'P'), ('WEBP', 'RGB'), ('TIFF', 'RGB'), ('TIFF', 'CMYK'), ('PPM', 'RGB')])
def test_other_kinds_become_jpegs_of_the_same_picture(file_format, mode):
    source = gradient(mode)
    encoded = encode(source, file_format, **({'quality': 95} if mode == 'CMYK' else {}))
    picture = image_files.prepare(encoded)
    assert (picture.image_format, picture.height, picture.width) == ('JPEG', SIZE[1], SIZE[0])
    assert Image.open(io.BytesIO(picture.encoded)).mode == ('L' if picture.channels == 1 else 'RGB')
    assert picture.conversion.startswith(f'{file_format} in mode ')
    assert_alike(picture.encoded, source)
    with tf.Graph().as_default(), tf.Session() as session:
        decoded = session.run(tf.image.decode_jpeg(picture.encoded, channels=3))
    assert decoded.shape == (SIZE[1], SIZE[0], 3)


def test_16_bits_become_8_and_not_white():
    grey = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)
    for file_format in ('PNG', 'TIFF'):
        picture = image_files.prepare(encode(Image.fromarray(grey), file_format))
        assert '16 bits' in picture.conversion
        assert_alike(picture.encoded, Image.fromarray((grey // 257).astype(np.uint8)))


def test_of_an_animation_the_first_frame_is_kept():
    frames = [Image.new('RGB', SIZE, colour) for colour in ('red', 'blue', 'green')]
    for file_format in ('GIF', 'PNG', 'WEBP'):
        encoded = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
        picture = image_files.prepare(encoded, keep_png=True)
        assert 'the first of 3 frames' in picture.conversion
        assert_alike(picture.encoded, frames[0])


def test_transparency_becomes_white():
    image = gradient('RGBA')
    image.putalpha(Image.new('L', SIZE, 0))
    picture = image_files.prepare(encode(image, 'PNG'), keep_png=True)
    assert 'transparency became white' in picture.conversion
    assert_alike(picture.encoded, Image.new('RGB', SIZE, 'white'))


def test_a_png_can_be_kept():
    for mode, channels in (('RGB', 3), ('L', 1), ('P', 3), ('1', 1)):
        encoded = encode(gradient(mode), 'PNG')
        picture = image_files.prepare(encoded, keep_png=True)
        assert picture == image_files.Picture(encoded, 'PNG', SIZE[1], SIZE[0], channels)
    damaged = bytearray(encode(gradient(), 'PNG'))
    damaged[60] ^= 1
    with pytest.raises(image_files.BadImageError, match='cannot be decoded'):
        image_files.prepare(bytes(damaged), keep_png=True)


@pytest.mark.parametrize('encoded, words', [
    (b'', 'is empty'),
    (b'<html>404</html>', 'not an image that Pillow can'),
    (b'\xff\xd8\xff', 'not an image|cannot be decoded'),
    (b'\xff\xd8\xff\xd9', 'not an image|cannot be decoded'),
    (encode(gradient('F'), 'TIFF'), 'floating-point'),
])
def test_what_cannot_be_used_has_a_reason(encoded, words):
    with pytest.raises(image_files.BadImageError, match=words):
        image_files.prepare(encoded)


@pytest.mark.parametrize('keep_png', [False, True])
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF'])
def test_half_a_file_is_never_a_picture(file_format, keep_png):
    encoded = encode(gradient(), file_format)
    for share in (0.1, 0.5, 0.7):
        with pytest.raises(image_files.BadImageError):
            image_files.prepare(encoded[:int(share * len(encoded))], keep_png=keep_png)


def test_a_photograph_cut_or_overwritten_never_passes_as_it_is(photos):
    """What decodes all the same is encoded anew, and so it is in the report."""
    random = np.random.RandomState(0)
    for _, encoded, _ in photos[:5]:
        middle = len(encoded) // 2
        noise = random.bytes(len(encoded) // 4)
        for damaged in (encoded[:middle], encoded[:middle] + noise + encoded[middle + len(noise):]):
            try:
                picture = image_files.prepare(damaged)
            except image_files.BadImageError:
                continue
            assert picture.conversion and 'it ' in picture.conversion
