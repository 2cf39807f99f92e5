import io
import json
import os

import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

import preprocessing


@pytest.fixture
def session():
    with tf.Graph().as_default(), tf.Session() as session:
        yield session


def noise(height, width, channels=3, seed=0):
    pixels = np.random.RandomState(seed).randint(256, size=(height, width, channels))
    return pixels.astype(np.uint8)


def encode(pixels, file_format, mode=None):
    image = Image.fromarray(pixels.squeeze())
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, file_format)
    return file.getvalue()


def test_center_crop_and_resize_equal_the_reference_implementation(session, golden_dir):
    folder = os.path.join(golden_dir, 'augmentation')
    golden = np.load(os.path.join(folder, 'eval_preprocessing.npz'))
    with open(os.path.join(folder, 'eval_preprocessing.json')) as file:
        cases = json.load(file)
    assert len(cases) == 20
    for case in cases:
        with open(os.path.join(folder, 'jpegs', case['jpeg'] + '.jpg'), 'rb') as file:
            image = preprocessing.preprocess_for_eval(
                file.read(), case['size'], resize_method=case['resize'])
        assert image.shape.as_list() == [case['size'], case['size'], 3]
        assert image.dtype == tf.float32
        np.testing.assert_allclose(
            session.run(image), golden['{jpeg}/{size}/{resize}'.format(**case)],
            atol=1e-3, err_msg=str(case))


@pytest.mark.parametrize('image_size, side', [(32, 259), (224, 262), (300, 271), (600, 284)])
def test_center_crop_padding_is_32_from_224_on(session, image_size, side):
    window = session.run(preprocessing.center_crop_window(tf.constant([300, 401]), image_size))
    assert window.tolist() == [(300 - side + 1) // 2, (401 - side + 1) // 2, side, side]


@pytest.mark.parametrize('shape, image_size, window', [
    # In 300 x 401, a 224:288 rectangle has the whole height and 385.7 of the width; times 0.875.
    ([300, 401], (224, 288), [19, 32, 262, 337]),
    ([401, 300], (288, 224), [32, 19, 337, 262]),
    # In a narrow image it has the whole width: 233.3 x 300.
    ([401, 300], (224, 288), [99, 19, 204, 262]),
    ([300, 401], (224, 224), [19, 70, 262, 262]),
    # 0.875, and 0.9, of an image of the same shape, without a rounding error.
    ([448, 576], (224, 288), [28, 36, 392, 504]),
    ([1152, 896], (288, 224), [72, 56, 1008, 784]),
    ([2304, 4096], (288, 512), [116, 205, 2073, 3686]),
    # The padding is that of the shorter side, 14 of 96.
    ([300, 300], (96, 192), [85, 20, 130, 261]),
    ([1, 4000], (4096, 8), [0, 2000, 1, 1])])
def test_center_crop_is_the_largest_rectangle_of_that_shape(session, shape, image_size, window):
    found = session.run(preprocessing.center_crop_window(tf.constant(shape), image_size))
    assert found.tolist() == window


def test_center_crop_of_a_square_is_the_published_one_bit_for_bit(session):
    """In float32, as the published scripts compute it; and no crop leaves its image."""
    random = np.random.RandomState(0)
    shape, found = tf.placeholder(tf.int32, [2]), {}
    for image_size in (8, 33, 224, 260, 380, 600, (224, 288), (96, 31)):
        found[image_size] = preprocessing.center_crop_window(shape, image_size)
    for _ in range(200):
        values = random.randint(1, 5000, 2)
        windows = session.run(found, {shape: values})
        for image_size, (top, left, height, width) in windows.items():
            assert 0 <= top <= values[0] - height and 0 <= left <= values[1] - width
            if isinstance(image_size, int):
                padding = min(32, round(32 * image_size / 224))
                side = max(1, int(np.float32(image_size / (image_size + padding))
                                  * np.float32(values.min())))
                assert [height, width] == [side, side]
                assert [top, left] == ((values - side + 1) // 2).tolist()


def test_a_wide_center_crop_keeps_the_shape_of_things(session):
    """Height before width: 0.875 of 512 x 640 is twice 224 x 280."""
    pixels = noise(512, 640)
    image = preprocessing.preprocess_for_eval(
        encode(pixels, 'PNG'), (224, 280), resize_method='bilinear')
    assert image.shape.as_list() == [224, 280, 3]
    np.testing.assert_array_equal(session.run(image), pixels[32:480:2, 40:600:2])


def test_a_training_crop_becomes_an_image_of_that_size(session):
    pixels, seen = noise(90, 140), []
    image = preprocessing.preprocess_for_train(
        encode(pixels, 'PNG'), (40, 30), crop_window=tf.constant([7, 11, 80, 120]),
        seed=tf.constant([1, 2], tf.int64), resize_method='bilinear', random_flip=False,
        augment=lambda image, _: seen.append(image.shape.as_list()) or image)
    assert image.shape.as_list() == [40, 30, 3] and seen == [[40, 30, 3]]
    np.testing.assert_array_equal(session.run(image), pixels[7:87:2, 11:131:4])


@pytest.mark.parametrize('image_size', [(224, 224), (64, 256), (90, 60)])
def test_training_crops_vary_around_the_shape_of_the_size(session, image_size):
    """From 3:4 to 4:3 of it, as those of a square do."""
    draw = preprocessing.random_crop_window(tf.constant([500, 500]), image_size, seed=1)
    _, _, heights, widths = np.array([session.run(draw) for _ in range(60)]).T
    stretched = widths / heights / (image_size[1] / image_size[0])
    assert 0.74 < stretched.min() < 0.85 and 1.2 < stretched.max() < 1.34


def test_photos_are_cropped_and_halved(session, photos):
    assert len(photos) == 20 and photos[0][0] == 'imagenet_00_243.jpg' and photos[0][2] == 243
    encoded = tf.placeholder(tf.string, [])
    image = preprocessing.preprocess_for_eval(encoded, 224, resize_method='bicubic')
    num_compared = 0
    for name, jpeg, _ in photos:
        result = session.run(image, {encoded: jpeg})
        with Image.open(io.BytesIO(jpeg)) as photo:
            if photo.size == (512, 512):
                # 224 / 256 of 512 is 448, twice 224: TensorFlow 1's resize then takes every second
                # pixel. Its fast inverse DCT is a few units off Pillow's accurate one.
                expected = np.asarray(photo.convert('RGB'), float)[32:480:2, 32:480:2]
                errors = np.abs(result - expected)
                assert errors.mean() < 1.5 and np.percentile(errors, 99) <= 4, name
                num_compared += 1
    assert num_compared > 10


@pytest.mark.parametrize('file_format, mode, tolerance', [
    ('PNG', 'RGB', 0), ('PNG', 'L', 0), ('PNG', 'RGBA', 0), ('PNG', 'P', 0), ('PNG', '1', 0),
    ('PNG', 'LA', 0), ('JPEG', 'RGB', 4), ('JPEG', 'L', 1)])
def test_every_kind_of_file_decodes_to_three_channels(session, file_format, mode, tolerance):
    smooth = np.asarray(Image.fromarray(noise(5, 6)).resize((60, 50), Image.BICUBIC))
    encoded = encode(smooth, file_format, mode)
    window = [7, 11, 30, 41]
    shape, kind = session.run(preprocessing.image_header(tf.placeholder_with_default(encoded, [])))
    assert shape.tolist() == [50, 60] and kind == preprocessing.ORDINARY
    pixels = session.run(preprocessing.decode_and_crop(encoded, tf.constant(window)))
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(image.convert('RGB'), int)[7:37, 11:52]
    assert pixels.shape == (30, 41, 3)
    assert pixels.dtype == np.uint8
    # The JPEG decoder works on 8x8 blocks: colors may differ more near the edge of the window.
    assert np.abs(pixels[2:-2, 2:-2] - expected[2:-2, 2:-2]).max() <= tolerance


def test_cmyk_jpeg_and_16_bit_png_decode(session):
    cmyk = encode(np.full([20, 30, 3], (200, 100, 50), np.uint8), 'JPEG', 'CMYK')
    image = session.run(preprocessing.preprocess_for_eval(cmyk, 8, resize_method='bilinear'))
    assert np.abs(image - (200, 100, 50)).max() < 6
    deep = io.BytesIO()
    Image.fromarray(np.full([20, 30], 0x80ff, np.uint16)).save(deep, 'PNG')
    image = session.run(preprocessing.preprocess_for_eval(
        deep.getvalue(), 8, resize_method='bilinear'))
    np.testing.assert_array_equal(image, np.full([8, 8, 3], 0x80))


def png_of_16_bits():
    file = io.BytesIO()
    Image.fromarray(np.full([20, 30], 0x80ff, np.uint16)).save(file, 'PNG')
    return file.getvalue()


def animated_png():
    file = io.BytesIO()
    Image.fromarray(noise(20, 30)).save(file, 'PNG', save_all=True,
                                        append_images=[Image.fromarray(noise(20, 30, seed=1))])
    return file.getvalue()


@pytest.mark.parametrize('encoded, kind', [
    (encode(noise(20, 30), 'JPEG', 'CMYK'), preprocessing.UNUSUAL),
    (png_of_16_bits(), preprocessing.UNUSUAL), (animated_png(), preprocessing.UNUSUAL),
    (encode(noise(20, 30), 'GIF'), preprocessing.FOREIGN)],
    ids=['CMYK', '16 bits', 'animated', 'GIF'])
def test_unusual_files_are_recognized_and_can_be_refused(session, encoded, kind):
    image_bytes = tf.placeholder_with_default(encoded, [])
    shape, recognized = session.run(preprocessing.image_header(image_bytes))
    assert recognized == kind
    assert kind == preprocessing.FOREIGN or shape.tolist() == [20, 30]
    image = preprocessing.preprocess_for_eval(
        image_bytes, 8, resize_method='bicubic', is_strict=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match='unusual kind'):
        session.run(image)


@pytest.mark.parametrize('encoded', [
    b'', b'no image', encode(noise(8, 8), 'GIF'), encode(noise(8, 8), 'BMP'),
    encode(noise(8, 8), 'PNG')[1:]], ids=['empty', 'text', 'GIF', 'BMP', 'headless PNG'])
def test_another_kind_of_file_is_an_error(session, encoded):
    # A placeholder, because TensorFlow would compute every branch of a constant in advance.
    image_bytes = tf.placeholder(tf.string, [])
    image = preprocessing.preprocess_for_eval(image_bytes, 8, resize_method='bicubic')
    with pytest.raises(tf.errors.InvalidArgumentError, match='neither a JPEG nor a PNG file'):
        session.run(image, {image_bytes: encoded})


@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
def test_a_truncated_file_is_an_error(session, file_format):
    encoded = encode(noise(64, 64), file_format)
    image_bytes = tf.placeholder(tf.string, [])
    image = preprocessing.preprocess_for_eval(image_bytes, 8, resize_method='bicubic')
    assert session.run(image, {image_bytes: encoded}).shape == (8, 8, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        session.run(image, {image_bytes: encoded[:len(encoded) // 2]})


def draw_windows(session, shape, count, seed, **options):
    window = preprocessing.random_crop_window(tf.constant(shape), 224, seed=seed, **options)
    return np.array([session.run(window) for _ in range(count)])


@pytest.mark.parametrize('height, width', [(375, 500), (500, 375)])
def test_random_crops_have_the_areas_and_shapes_of_the_recipe(session, height, width):
    windows = draw_windows(session, [height, width], 2000, seed=1)
    top, left, crop_height, crop_width = windows.T
    assert top.min() >= 0 and (top + crop_height).max() <= height
    assert left.min() >= 0 and (left + crop_width).max() <= width
    # Crops are whole pixels, and one pixel of a side of at least 100 is up to 1 %.
    area = crop_height * crop_width / (height * width)
    assert 0.099 <= area.min() < 0.12
    assert 0.8 < area.max() <= 1.0
    aspect_ratio = crop_width / crop_height
    assert 0.74 < aspect_ratio.min() < 0.77
    assert 1.31 < aspect_ratio.max() < 1.35
    # Crops prefer no side of the image.
    assert abs(np.mean(top - (height - crop_height - top))) < 0.02 * height
    assert abs(np.mean(left - (width - crop_width - left))) < 0.02 * width


def test_the_smallest_crop_can_be_chosen(session):
    windows = draw_windows(session, [375, 500], 500, seed=1, min_area=0.6)
    area = windows[:, 2] * windows[:, 3] / (375 * 500)
    assert 0.595 <= area.min() < 0.65
    assert 0.8 < area.max() <= 1.0


def test_a_seed_repeats_the_crops():
    windows = {}
    for name, seed in (('first', 3), ('again', 3), ('other', 4)):
        with tf.Graph().as_default(), tf.Session() as session:
            windows[name] = draw_windows(session, [512, 512], 20, seed)
    np.testing.assert_array_equal(windows['first'], windows['again'])
    assert (windows['first'] != windows['other']).any(axis=1).sum() > 15
    assert len(set(map(tuple, windows['first']))) > 15


def test_an_image_too_long_for_any_crop_gives_the_center_crop(session):
    windows = draw_windows(session, [20, 400], 5, seed=1)
    center = session.run(preprocessing.center_crop_window(tf.constant([20, 400]), 224))
    np.testing.assert_array_equal(windows, [center] * 5)


def train_image(encoded, size, seed, **options):
    return preprocessing.preprocess_for_train(
        encoded, size, crop_window=tf.constant([0, 0, size, size]), seed=seed,
        resize_method='bicubic', **options)


def test_half_of_the_training_images_are_mirrored(session):
    pixels = noise(8, 8)
    seed = tf.placeholder(tf.int64, [2])
    image = train_image(encode(pixels, 'PNG'), 8, seed)
    assert image.shape.as_list() == [8, 8, 3]
    assert image.dtype == tf.uint8
    images = [session.run(image, {seed: [5, i]}) for i in range(400)]
    mirrored = [np.array_equal(image, pixels[:, ::-1]) for image in images]
    kept = [np.array_equal(image, pixels) for image in images]
    assert sum(mirrored) + sum(kept) == 400
    assert 150 < sum(mirrored) < 250  # 5 standard deviations
    np.testing.assert_array_equal(images[7], session.run(image, {seed: [5, 7]}))


def test_mirroring_can_be_left_out(session):
    pixels = noise(8, 8)
    seed = tf.placeholder(tf.int64, [2])
    image = train_image(encode(pixels, 'PNG'), 8, seed, random_flip=False)
    for i in range(20):
        np.testing.assert_array_equal(session.run(image, {seed: [5, i]}), pixels)


def test_augmentation_gets_uint8_without_wrap_around_and_the_seed(session):
    # Black beside white: bicubic enlargement overshoots on both sides.
    pixels = np.zeros([4, 4, 3], np.uint8)
    pixels[:, 2:] = 255
    png = encode(pixels, 'PNG')
    seen = []

    def augment(image, seed):
        seen.append((image.dtype, image.shape.as_list()))
        return image + tf.cast(seed[1], tf.uint8)

    arguments = dict(crop_window=tf.constant([0, 0, 4, 4]), seed=tf.constant([1, 3], tf.int64),
                     resize_method='bicubic')
    raw = tf.image.resize_bicubic(tf.constant(pixels[np.newaxis], tf.float32), [16, 16])[0]
    raw, plain, augmented = session.run([
        raw, preprocessing.preprocess_for_train(png, 16, random_flip=False, **arguments),
        preprocessing.preprocess_for_train(
            png, 16, random_flip=False, augment=augment, **arguments)])
    assert raw.min() < 0 and raw.max() > 255
    clipped = np.clip(raw, 0, 255)
    np.testing.assert_array_equal(plain, np.rint(clipped))
    np.testing.assert_array_equal(augmented, clipped.astype(np.uint8) + np.uint8(3))
    assert plain.dtype == augmented.dtype == np.uint8
    assert seen == [(tf.uint8, [16, 16, 3])]


def test_an_unknown_resize_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="'nearest'.*bicubic.*bilinear"):
        preprocessing.preprocess_for_eval(b'', 8, resize_method='nearest')
