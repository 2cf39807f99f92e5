import collections
import hashlib
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import autoaugment
from imagenet_input import ImageNetInput
from tfrecords import schema


def run(function, *arrays):
    """Returns the results of a function of tensors for each row of the arrays.

    Runs in a dataset, where TensorFlow's optimizer treats the operations as in training.
    """
    # AutoGraph warns about functions that are not at the top level of a module.
    function = tf.autograph.experimental.do_not_convert(function)
    with tf.Graph().as_default(), tf.Session() as session:
        dataset = tf.data.Dataset.from_tensor_slices(tuple(map(tf.constant, arrays))).map(function)
        iterator = tf.data.make_initializable_iterator(dataset.batch(len(arrays[0])))
        element = iterator.get_next()
        session.run(iterator.initializer)
        return session.run(element)


def run_op(name, image, *args):
    return run(autoaugment.OPS[name], image[np.newaxis], *(np.array([arg]) for arg in args))[0]


def smooth_image(height, width, seed=0):
    """Returns waves with some noise: neighbors are alike, and all values occur."""
    random = np.random.RandomState(seed)
    y, x = np.ogrid[:height, :width]
    y, x = y[..., np.newaxis], x[..., np.newaxis]
    waves = 128 + 120 * np.sin(random.uniform(0, 9, 3) + y / random.uniform(5, 20, 3)
                               + x / random.uniform(5, 20, 3))
    return np.clip(waves + random.normal(0, 3, [height, width, 3]), 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def golden(golden_dir):
    path = os.path.join(golden_dir, 'augmentation', 'autoaugment_ops')
    with open(path + '.json') as file:
        description = json.load(file)
    return description, np.load(path + '.npz')


@pytest.mark.parametrize('name', [name for name in autoaugment.OPS if name != 'Cutout'])
def test_operations_equal_the_reference_implementation(golden, name):
    description, arrays = golden
    cases = [case for case in description['cases'] if case['op'] == name]
    assert cases
    images = np.stack([arrays[case['image']] for case in cases])
    args = np.array([case['args'] for case in cases], np.float32)
    results = run(lambda image, args: autoaugment.OPS[name](image, *tf.unstack(args)), images, args)
    for case, result in zip(cases, results):
        np.testing.assert_array_equal(result, arrays[case['key']], err_msg=str(case))


@pytest.mark.parametrize('policy, reach', [
    ('autoaugment', autoaugment.AUTOAUGMENT_REACH), ('randaugment', autoaugment.RANDAUGMENT_REACH)])
def test_levels_equal_the_reference_implementation(golden, policy, reach):
    table = golden[0]['level_to_arg_abs_levels_0_to_10']
    names = {key.split('/')[1] for key in table}
    assert names == set(autoaugment.OPS)
    for name in names:
        args = [list(autoaugment.level_to_args(name, level, reach)) for level in range(11)]
        np.testing.assert_allclose(args, table[f'{policy}/{name}'], rtol=1e-6, err_msg=name)


def test_policy_v0_equals_the_reference_implementation():
    # Compared entry by entry with auto_augment_policy_v0 of timm 0.4.12, an independent copy.
    policy = json.dumps(autoaugment.POLICIES['v0']).encode()
    assert hashlib.sha1(policy).hexdigest() == '716fda99213a0d32b2cef9f67aa7afb6df59eb42'


def expected_equalize(image):
    result = image.copy()
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            table = (np.cumsum(counts) - counts + step // 2) // step
            result[..., channel] = np.minimum(table, 255)[image[..., channel]]
    return result


@pytest.mark.parametrize('height, width', [(32, 32), (33, 34), (34, 33), (35, 37)])
def test_operations_on_values_work_at_any_size(height, width):
    # Images of one value, of few values, of all values.
    images = np.stack([np.full([height, width, 3], (0, 7, 255), np.uint8),
                       smooth_image(height, width) // 60 * 60, smooth_image(height, width)])

    def results(name, *args):
        return run(autoaugment.OPS[name], images, *(np.full(3, arg, np.float32) for arg in args))

    np.testing.assert_array_equal(results('Invert'), 255 - images)
    np.testing.assert_array_equal(
        results('Equalize'), np.stack([expected_equalize(image) for image in images]))
    for bits, kept in [(0, 128), (1, 128), (3, 224), (7, 254), (8, 255), (12, 128)]:
        np.testing.assert_array_equal(results('Posterize', bits), images & kept, f'{bits} bits')
    for threshold in (0, 1, 7, 127, 128, 129, 255, 256, 300):
        expected = np.where(images < threshold % 256, images, 255 - images)
        np.testing.assert_array_equal(results('Solarize', threshold), expected, str(threshold))
    for addition in (0, 1, 110, 128, 129, 200, 255, 330):
        expected = np.where(images < 128, np.minimum(images.astype(int) + addition, 255), images)
        np.testing.assert_array_equal(results('SolarizeAdd', addition), expected, str(addition))


def test_auto_contrast_leaves_a_channel_of_one_value():
    image = smooth_image(20, 20) // 2 + 50
    image[..., 1] = 93
    result = run_op('AutoContrast', image)
    assert np.all(result[..., 1] == 93)
    assert result[..., ::2].min() == 0 and result[..., ::2].max() == 255


@pytest.mark.parametrize('name', ['Color', 'Contrast', 'Brightness', 'Sharpness'])
def test_factor_1_is_the_image(name):
    image = smooth_image(35, 37)
    np.testing.assert_array_equal(run_op(name, image, np.float32(1)), image)


def test_factor_0_is_the_simpler_image():
    image = smooth_image(35, 37)
    zero = np.float32(0)
    assert np.all(run_op('Brightness', image, zero) == 0)
    assert np.all(run_op('Contrast', image, zero) == 35 * 37 // 256)
    large = smooth_image(270, 260)
    np.testing.assert_array_equal(run_op('Contrast', large, np.float32(0.5)), (large + 255.0) // 2)
    blurred = run_op('Sharpness', image, zero)
    np.testing.assert_array_equal(blurred[[0, -1]], image[[0, -1]])
    np.testing.assert_array_equal(blurred[:, [0, -1]], image[:, [0, -1]])
    kernel = np.tile(np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]])[..., np.newaxis, np.newaxis]
                     / np.float32(13), [1, 1, 3, 1])
    with tf.Graph().as_default(), tf.Session() as session:
        expected = session.run(tf.nn.depthwise_conv2d(
            tf.constant(image[np.newaxis], tf.float32), kernel, [1, 1, 1, 1], 'VALID'))
    np.testing.assert_array_equal(blurred[1:-1, 1:-1], expected[0].astype(np.uint8))


def test_color_takes_the_gray_of_tensorflow():
    # A sixteenth of all colors.
    colors = np.arange(0, 1 << 24, 16, dtype=np.uint32) + np.arange(1 << 20, dtype=np.uint32) % 16
    image = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8)
    image = image.reshape([1024, 1024, 3])
    with tf.Graph().as_default(), tf.Session() as session:
        expected = session.run(tf.image.rgb_to_grayscale(image))
    np.testing.assert_array_equal(run_op('Color', image, np.float32(0)), expected.repeat(3, axis=2))


def expected_sample(image, y, x):
    """Returns the pixels nearest to float32 places, rounding halves away from 0; 128 outside."""
    height, width, _ = image.shape
    y, x = (np.trunc(place.astype(float) + np.copysign(0.5, place)).astype(int)
            for place in np.broadcast_arrays(y, x))
    is_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixels = image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.where(is_inside[..., np.newaxis], pixels, 128)


@pytest.mark.parametrize('height, width', [(35, 37), (48, 64)])
def test_moved_pixels_are_the_nearest_ones(height, width):
    image = smooth_image(height, width)
    y, x = np.arange(height, dtype=np.float32)[:, np.newaxis], np.arange(width, dtype=np.float32)
    for amount in np.float32([0.0, 0.3, -0.3, 0.5, -0.5, 0.12, 1.5, -2.5, 22.5, -22.5, 100, -100]):
        for name, expected in [
                ('ShearX', expected_sample(image, y, x + amount * y)),
                ('ShearY', expected_sample(image, amount * x + y, x)),
                ('TranslateX', expected_sample(image, y, x + amount)),
                ('TranslateY', expected_sample(image, y + amount, x))]:
            np.testing.assert_array_equal(
                run_op(name, image, amount), expected, f'{name} {amount}')


@pytest.mark.parametrize('degrees, quarters', [(0, 0), (90, 1), (180, 2), (-90, -1)])
def test_rotation_by_quarters(degrees, quarters):
    image = smooth_image(41, 41)
    np.testing.assert_array_equal(
        run_op('Rotate', image, np.float32(degrees)), np.rot90(image, quarters))


@pytest.mark.parametrize('pad_size', [0, 5, 60])
@pytest.mark.parametrize('y, x', [(0, 0), (20, 11), (34, 36)])
def test_cutout_fills_a_square(pad_size, y, x):
    image = smooth_image(35, 37)
    expected = image.copy()
    expected[max(y - pad_size, 0):y + pad_size, max(x - pad_size, 0):x + pad_size] = 128
    result = run_op('Cutout', image, np.float32(pad_size), np.array([y, x], np.int32))
    np.testing.assert_array_equal(result, expected)


# To see what is drawn, recorders replace the operations. Each writes its name and arguments into
# the image, one pixel per operation, from left to right.
NAMES = list(autoaugment.OPS)
CANVAS = np.zeros([5, 7, 3], np.uint8)


@pytest.fixture
def recorded(monkeypatch):
    def recorder(name):
        def record(image, *args):
            args = list(tf.unstack(args[1])) if name == 'Cutout' else [
                tf.round(tf.abs(arg) * 100) % 256 for arg in args] + [tf.sign(arg) for arg in args]
            pixel = [NAMES.index(name) + 1, *args, 0, 0][:3]
            pixel = tf.stack([tf.cast(number, tf.int32) for number in pixel])
            row = tf.concat([image[:1, 1:], tf.cast(pixel, tf.uint8)[tf.newaxis, tf.newaxis]], 1)
            return tf.ensure_shape(tf.concat([row, image[1:]], axis=0), CANVAS.shape)
        return record
    for name in NAMES:
        monkeypatch.setitem(autoaugment.OPS, name, recorder(name))


def draw(distort, count, seed=0):
    """Applies `distort(image, seed)` with `count` seeds.

    Returns:
        list of lists of (name, second number, third number) of the applied operations.
    """
    seeds = np.random.RandomState(seed).randint(1 << 62, size=[count, 2])
    images = run(lambda seed: distort(tf.constant(CANVAS), seed), seeds)
    return [[(NAMES[first - 1], second, np.int8(third)) for first, second, third in image[0]
             if first] for image in images]


def assert_distributed(counts, probabilities):
    """Tests by chi-square. The seeds are fixed, so the result never changes."""
    assert set(counts) <= {key for key, probability in probabilities.items() if probability}
    total = sum(counts.values())
    chi_square = sum((counts[key] - total * probability) ** 2 / (total * probability)
                     for key, probability in probabilities.items() if probability)
    degrees = sum(probability > 0 for probability in probabilities.values()) - 1
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees), (chi_square, degrees)


def test_v0_draws_each_sub_policy_with_its_probabilities_and_levels(recorded):
    probabilities = collections.Counter()
    for sub_policy in autoaugment.POLICIES['v0']:
        entries = [
            (name, int(round(sum(autoaugment.level_to_args(
                name, level, autoaugment.AUTOAUGMENT_REACH)) * 100)) % 256)
            for name, _, level in sub_policy]
        (_, first, _), (_, second, _) = sub_policy
        probabilities[()] += (1 - first) * (1 - second) / 25
        probabilities[entries[0],] += first * (1 - second) / 25
        probabilities[entries[1],] += (1 - first) * second / 25
        probabilities[tuple(entries)] += first * second / 25
    assert abs(sum(probabilities.values()) - 1) < 1e-9
    drawn = draw(lambda image, seed: autoaugment.distort_image_with_autoaugment(
        image, 'v0', seed=seed), 10000)
    assert_distributed(collections.Counter(
        tuple((name, argument) for name, argument, _ in ops) for ops in drawn), probabilities)


def test_policy_test_is_a_translation_and_equalize(recorded):
    drawn = draw(lambda image, seed: autoaugment.distort_image_with_autoaugment(
        image, 'test', seed=seed), 400)
    # 100 pixels.
    assert {tuple(op[:2] for op in ops) for ops in drawn} == {
        (('TranslateX', 10000 % 256), ('Equalize', 0))}
    directions = collections.Counter(ops[0][2] for ops in drawn)
    assert_distributed(directions, {1: 0.5, -1: 0.5})


@pytest.mark.parametrize('num_layers, magnitude', [(1, 10), (2, 10), (3, 7.5)])
def test_randaugment_draws_evenly_and_always_applies(recorded, num_layers, magnitude):
    drawn = draw(lambda image, seed: autoaugment.distort_image_with_randaugment(
        image, num_layers, magnitude, seed=seed), 6000)
    assert {len(ops) for ops in drawn} == {num_layers}
    assert_distributed(
        collections.Counter(tuple(name for name, _, _ in ops[:2]) for ops in drawn),
        {(*key,): 1 / len(NAMES) ** len(key) for key in
         ([(a,) for a in NAMES] if num_layers == 1 else [(a, b) for a in NAMES for b in NAMES])})
    calls = collections.defaultdict(set)
    for ops in drawn:
        for name, argument, sign in ops:
            calls[name].add((argument, sign))
    signed = {'Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'}
    for name in NAMES:
        args = autoaugment.level_to_args(name, magnitude, autoaugment.RANDAUGMENT_REACH)
        if name == 'Cutout':
            # Every pixel is the center of some square.
            assert calls[name] == {(y, x) for y in range(5) for x in range(7)}
        elif args:
            value = int(np.round(np.float32(args[0]) * np.float32(100))) % 256
            assert calls[name] == {(value, sign) for sign in ([1, -1] if name in signed else [1])}
        else:
            assert calls[name] == {(0, 0)}


def test_draws_differ_from_those_of_a_caller_with_the_same_seed(recorded, monkeypatch):
    monkeypatch.setitem(autoaugment.POLICIES, 'either', (
        (('Invert', 1.0, 0),), (('Equalize', 1.0, 0),)))
    seeds = np.random.RandomState(0).randint(1 << 62, size=[400, 2])
    images, draws = run(lambda seed: (
        autoaugment.distort_image_with_autoaugment(tf.constant(CANVAS), 'either', seed=seed),
        tf.random.stateless_uniform([], seed)), seeds)
    is_invert = images[:, 0, -1, 0] == NAMES.index('Invert') + 1
    assert abs(np.mean(is_invert == (draws < 0.5)) - 0.5) < 0.1


def losses(name, size, scale, count=500):
    """Returns the shares of blank images and of pixels that are left, see `LOSSES`.

    A pixel is left if it depends on the image.
    """
    seeds = np.random.RandomState(1).randint(1 << 62, size=[count, 2])
    pair = np.random.RandomState(2).randint(0, 256, [2, size, size, 3]).astype(np.uint8)
    augment = autoaugment.augmentation(name, num_layers=2, magnitude=10, scale=scale)
    left = run(lambda seed: tf.reduce_mean(tf.cast(tf.reduce_any(tf.not_equal(
        augment(tf.constant(pair[0]), seed), augment(tf.constant(pair[1]), seed)), 2),
        tf.float32)), seeds)
    return np.mean(left == 0), np.mean(left)


@pytest.mark.parametrize('name, size', [
    ('randaugment', 32), ('randaugment', 96), ('autoaugment', 32)])
def test_small_images_lose_what_the_table_says(name, size):
    # Three standard errors of a share of 500 draws.
    table = autoaugment.LOSSES[name]
    assert losses(name, size, 'absolute') == pytest.approx(table[size], abs=0.06)
    assert losses(name, size, 'relative') == pytest.approx(table[224], abs=0.06)


def test_relative_distances_are_those_of_the_published_size(monkeypatch, recorded):
    def arguments(size, scale):
        monkeypatch.setattr(autoaugment, 'PUBLISHED_SIZE', size)
        return [(name, argument) for (name, argument, _), in draw(
            lambda image, seed: autoaugment.distort_image_with_randaugment(
                image, 1, 1, seed, scale), 100)]

    absolute, same, double = arguments(5, 'absolute'), arguments(5, 'relative'), arguments(
        10, 'relative')
    assert absolute == same != double
    assert {name for (name, before), (_, now) in zip(same, double) if now != before} == {
        'TranslateX', 'TranslateY'}


AUGMENTATIONS = {name: autoaugment.augmentation(name, num_layers=2, magnitude=10)
                 for name in ('autoaugment', 'randaugment')}


def test_augmentations_are_policy_v0_and_randaugment():
    images, seeds = np.stack([smooth_image(64, 64)] * 20), np.arange(40).reshape([20, 2])
    for name, distort in [
            ('autoaugment', lambda image, seed: autoaugment.distort_image_with_autoaugment(
                image, 'v0', seed)),
            ('randaugment', lambda image, seed: autoaugment.distort_image_with_randaugment(
                image, 2, 10, seed))]:
        np.testing.assert_array_equal(
            run(AUGMENTATIONS[name], images, seeds), run(distort, images, seeds))
    assert autoaugment.augmentation(None, num_layers=2, magnitude=10) is None


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_a_seed_repeats_its_image_and_no_other_does(name):
    image = smooth_image(64, 64)
    seeds = np.tile(np.random.RandomState(0).randint(1 << 62, size=[40, 2]), [2, 1])
    results = run(lambda seed: AUGMENTATIONS[name](tf.constant(image), seed), seeds)
    assert results.dtype == np.uint8 and results.shape == (80, 64, 64, 3)
    np.testing.assert_array_equal(results[:40], results[40:])
    assert len({result.tobytes() for result in results}) > 15


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_no_seed_gives_another_image_each_time(name):
    image = smooth_image(64, 64)
    results = run(lambda image: AUGMENTATIONS[name](image, None), np.stack([image] * 40))
    assert len({result.tobytes() for result in results}) > 15


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_type_and_static_shape_stay(name):
    with tf.Graph().as_default():
        result = AUGMENTATIONS[name](tf.zeros([30, 40, 3], tf.uint8), [1, 2])
    assert result.dtype == tf.uint8
    assert result.shape.as_list() == [30, 40, 3]


def test_no_layer_leaves_the_image():
    image = smooth_image(30, 40)
    result, = run(lambda image: autoaugment.distort_image_with_randaugment(image, 0, 10),
                  image[np.newaxis])
    np.testing.assert_array_equal(result, image)


def test_an_unknown_policy_lists_the_known_ones():
    with tf.Graph().as_default(), pytest.raises(ValueError) as raised:
        autoaugment.distort_image_with_autoaugment(tf.zeros([8, 8, 3], tf.uint8), 'v1')
    assert str(raised.value) == (
        "augmentation_name 'v1': unknown policy; choose one of ['test', 'v0'].")


@pytest.fixture(scope='module')
def photos_dir(tmp_path_factory, photos):
    folder = str(tmp_path_factory.mktemp('photos'))
    with tf.io.TFRecordWriter(
            os.path.join(folder, schema.shard_name(schema.TRAIN, 0, 1))) as writer:
        for name, encoded, index in photos[:8]:
            writer.write(schema.serialize_example(
                encoded=encoded, image_format='JPEG', height=512, width=512, channels=3,
                filename=name, label=index + 1, text=''))
    return folder


def augmented_input(photos_dir, augment):
    return ImageNetInput(data_dir=photos_dir, is_training=True, image_size=224, batch_size=8,
                         seed=1, augment=augment)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_training_images_are_augmented_and_repeatable(photos_dir, name):
    def first_batch(augment):
        with tf.Graph().as_default(), tf.Session() as session:
            dataset = augmented_input(photos_dir, augment).dataset()
            iterator = tf.data.make_initializable_iterator(dataset)
            element = iterator.get_next()
            session.run(iterator.initializer)
            return session.run(element)[0]

    images = first_batch(AUGMENTATIONS[name])
    np.testing.assert_array_equal(images, first_batch(AUGMENTATIONS[name]))
    assert images.min() >= 0 and images.max() <= 255
    np.testing.assert_array_equal(images, np.trunc(images))
    differences = np.abs(images - np.clip(first_batch(None), 0, 255)).mean(axis=(1, 2, 3))
    assert np.sum(differences > 1) >= 4


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_graph_is_small(photos_dir, name):
    with tf.Graph().as_default() as graph:
        iterator = tf.data.make_initializable_iterator(
            augmented_input(photos_dir, AUGMENTATIONS[name]).dataset())
        iterator.get_next()
        graph_def = graph.as_graph_def()
    num_nodes = len(graph_def.node) + sum(
        len(function.node_def) for function in graph_def.library.function)
    assert num_nodes < 1500
    assert graph_def.ByteSize() < 1 << 19
