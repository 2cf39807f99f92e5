"""Vertical flip, color jitter and random erasing against NumPy and Pillow."""
import itertools

import numpy as np
from PIL import Image
from PIL import ImageEnhance
import pytest
import tensorflow.compat.v1 as tf

from common import random_ops
import preprocessing

HEIGHT, WIDTH = 24, 40
NUM_SEEDS = 2000


def distorted(image, distort, count=NUM_SEEDS):
    """Returns uint8 [count, H, W, 3], the image distorted with so many seeds."""
    seeds = np.stack([np.arange(count) * 7919, np.full(count, 5)], axis=1)
    with tf.Graph().as_default(), tf.Session() as session:
        dataset = tf.data.Dataset.from_tensor_slices(seeds).map(
            tf.autograph.experimental.do_not_convert(
                lambda seed: distort(tf.constant(image), seed))).batch(count)
        images = tf.data.make_one_shot_iterator(dataset).get_next()
        assert images.shape.as_list()[1:] == list(image.shape) and images.dtype == tf.uint8
        return session.run(images)


def noise(low=0, high=256):
    return np.random.RandomState(0).randint(low, high, [HEIGHT, WIDTH, 3]).astype(np.uint8)


def assert_same_distribution(values, expected):
    """Kolmogorov-Smirnov at p = 0.001."""
    grid = np.concatenate([values, expected])
    distance = max(abs(np.mean(values <= x) - np.mean(expected <= x))
                   for x in np.quantile(grid, np.linspace(0, 1, 200)))
    assert distance < 1.95 * np.sqrt(1 / len(values) + 1 / len(expected))


def test_half_of_the_images_are_flipped():
    image = noise()
    images = distorted(image, random_ops.vertical_flip)
    is_flipped = (images == image[::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(images[~is_flipped], np.broadcast_to(
        image, [NUM_SEEDS - is_flipped.sum(), HEIGHT, WIDTH, 3]))
    assert abs(is_flipped.mean() - 0.5) < 0.04


def test_the_two_flips_are_independent():
    image = noise()[:, :HEIGHT]
    with tf.Graph().as_default(), tf.Session() as session:
        png = session.run(tf.image.encode_png(image))
    images = distorted(image, lambda _, seed: preprocessing.preprocess_for_train(
        png, HEIGHT, crop_window=tf.constant([0, 0, HEIGHT, HEIGHT]), seed=seed,
        resize_method='bicubic', vertical_flip=True), count=400)
    counts = [(images == flipped).all(axis=(1, 2, 3)).sum()
              for flipped in (image, image[::-1], image[:, ::-1], image[::-1, ::-1])]
    assert sum(counts) == len(images)
    assert all(abs(count / len(images) - 0.25) < 0.07 for count in counts)


def blended(image, brightness, contrast, saturation, order):
    """Color jitter step by step in float64, in an order of 'bcs'."""
    pixels = image.astype(float)
    for step in order:
        gray = pixels @ np.array(random_ops.GRAY_WEIGHTS)
        simple, factor = {
            'b': (0.0, brightness), 'c': (gray.mean(), contrast),
            's': (gray[:, :, np.newaxis], saturation)}[step]
        pixels = simple + factor * (pixels - simple)
    return np.clip(np.round(pixels), 0, 255)


def factors_of(strength, count):
    """The factors of the images in `distorted`, float64 [count, 3]."""
    seeds = [(index * 7919, 5 + random_ops._JITTER_STREAM) for index in range(count)]
    with tf.Graph().as_default(), tf.Session() as session:
        draws = session.run([tf.random.stateless_uniform([3], seed) for seed in seeds])
    return 1 + strength * (2 * np.array(draws, float) - 1)


@pytest.mark.parametrize('strength', [0.4, 1.0])
def test_color_jitter_is_three_blends_in_any_order(strength):
    image = noise()
    images = distorted(image, lambda image, seed: random_ops.color_jitter(image, seed, strength), 8)
    for found, factors in zip(images, factors_of(strength, 8)):
        for order in itertools.permutations('bcs'):
            difference = np.abs(found - blended(image, *factors, order))
            assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


def test_color_jitter_is_pillows_where_nothing_is_clipped():
    image = noise(90, 150)
    images = distorted(image, lambda image, seed: random_ops.color_jitter(image, seed, 0.3), 8)
    for found, factors in zip(images, factors_of(0.3, 8)):
        expected = Image.fromarray(image)
        for enhance, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors):
            expected = enhance(expected).enhance(factor)
        difference = found.astype(float) - np.asarray(expected, float)
        # Pillow truncates three times, which takes away up to 3 levels.
        assert difference.min() >= -1 and difference.max() <= 4 and abs(difference.mean()) < 2


def test_factors_of_color_jitter_are_uniform():
    # Only the brightness changes a uniform gray image.
    gray = np.full([2, 2, 3], 100, np.uint8)
    images = distorted(gray, lambda image, seed: random_ops.color_jitter(image, seed, 0.4))
    assert (images == images[:, :1, :1, :1]).all()
    expected = 100 * np.random.RandomState(1).uniform(0.6, 1.4, size=NUM_SEEDS)
    assert_same_distribution(images[:, 0, 0, 0] + 0.0, np.round(expected))
    factors = factors_of(0.4, 200)
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.25
    assert factors.min() >= 0.6 and factors.max() <= 1.4


def timm_rectangles(count):
    """Rectangles as timm's RandomErasing draws them: top, left, height, width, int [count, 4]."""
    random = np.random.RandomState(2)
    drawn = []
    while len(drawn) < count:
        for _ in range(10):
            area = random.uniform(0.02, 1 / 3) * HEIGHT * WIDTH
            ratio = np.exp(random.uniform(np.log(0.3), np.log(1 / 0.3)))
            height, width = int(round(np.sqrt(area * ratio))), int(round(np.sqrt(area / ratio)))
            if height < HEIGHT and width < WIDTH:
                drawn.append((random.randint(0, HEIGHT - height + 1),
                              random.randint(0, WIDTH - width + 1), height, width))
                break
    return np.array(drawn)


def test_erased_rectangles_are_timms_and_hold_noise():
    image = np.full([HEIGHT, WIDTH, 3], 77, np.uint8)
    images = distorted(image, lambda image, seed: random_ops.random_erasing(image, seed, 1.0))
    found, fills = [], []
    for erased in images:
        is_erased = (erased != 77).any(axis=2)
        rows, columns = (np.flatnonzero(is_erased.any(axis=axis)) for axis in (1, 0))
        top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
        found.append((top, left, bottom - top, right - left))
        fill = erased[top:bottom, left:right]
        assert is_erased.sum() >= 0.99 * fill.shape[0] * fill.shape[1]
        fills.append(fill.ravel())
    found, expected = np.array(found), timm_rectangles(NUM_SEEDS)
    for column in range(4):
        assert_same_distribution(found[:, column], expected[:, column])
    for statistic in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3]):
        assert_same_distribution(statistic(found), statistic(expected))
    areas = found[:, 2] * found[:, 3] / (HEIGHT * WIDTH)
    assert 0.015 < areas.min() < 0.03 and 0.32 < areas.max() < 0.35
    counts = np.bincount(np.concatenate(fills), minlength=256)
    assert abs(counts / counts.mean() - 1).max() < 0.1 and len(counts) == 256


def test_as_many_images_are_erased_as_the_flag_says():
    image = np.full([HEIGHT, WIDTH, 3], 77, np.uint8)
    images = distorted(image, lambda image, seed: random_ops.random_erasing(image, seed, 0.25))
    assert abs((images != 77).any(axis=(1, 2, 3)).mean() - 0.25) < 0.04


def test_a_tiny_image_may_have_no_rectangle():
    image = np.full([1, 1, 3], 77, np.uint8)
    assert (distorted(image, lambda image, seed: random_ops.random_erasing(image, seed, 1.0), 20)
            == 77).all()


def test_distortions_are_those_that_are_on():
    assert random_ops.chosen(0.0, 0.0) == ()
    names = [[distort.func.__name__ for distort in random_ops.chosen(*values)]
             for values in ((0.4, 0.0), (0.0, 0.25), (0.4, 0.25))]
    assert names == [['color_jitter'], ['random_erasing'], ['color_jitter', 'random_erasing']]
