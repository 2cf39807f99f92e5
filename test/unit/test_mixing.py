"""Mixup and CutMix against NumPy."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import mixing

HEIGHT, WIDTH, BATCH_SIZE = 12, 20, 5
SEEDS = list(range(1, mixing.NUM_SEEDS + 1))


def draw(count, batch_size=BATCH_SIZE, image_shape=(HEIGHT, WIDTH), **alphas):
    """Returns key -> float [count, batch_size, ...] of so many batches."""
    alphas = {'mixup_alpha': 0, 'cutmix_alpha': 0, **alphas}
    with tf.Graph().as_default(), tf.Session() as session:
        drawn = mixing.draw(batch_size=batch_size, image_shape=image_shape, seeds=SEEDS, **alphas)
        assert all(value.shape.as_list()[0] == batch_size for value in drawn.values())
        batches = [session.run(drawn) for _ in range(count)]
    return {key: np.stack([batch[key] for batch in batches]) for key in drawn}


def paper_boxes(alpha, count, height, width):
    """CutMix's boxes as in the authors' code: top, bottom, left, right, each int [count]."""
    random = np.random.RandomState(0)
    side = np.sqrt(1 - random.beta(alpha, alpha, size=count))
    edges = []
    for size in (height, width):
        half = (size * side).astype(int) // 2
        center = random.randint(size, size=count)
        edges += [np.clip(center - half, 0, size), np.clip(center + half, 0, size)]
    return edges


def assert_same_distribution(values, expected, grid):
    """Kolmogorov-Smirnov, 1.95 sqrt(2 / 4000) at p = 0.001."""
    assert len(values) == len(expected) == 4000
    assert max(abs(np.mean(values <= x) - np.mean(expected <= x)) for x in grid) < 0.044


def is_interval(row):
    return np.count_nonzero(np.diff(np.concatenate([[0], row, [0]]))) in (0, 2)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_boxes_are_those_of_the_paper(alpha):
    height, width = 40, 64
    drawn = draw(4, batch_size=1000, image_shape=(height, width), cutmix_alpha=alpha)
    assert set(drawn) == {mixing.CUTMIX_ROWS, mixing.CUTMIX_COLUMNS}
    rows = drawn[mixing.CUTMIX_ROWS].reshape(-1, height)
    columns = drawn[mixing.CUTMIX_COLUMNS].reshape(-1, width)
    assert set(np.unique(rows)) == set(np.unique(columns)) == {0, 1}
    assert all(map(is_interval, rows)) and all(map(is_interval, columns))
    top, bottom, left, right = paper_boxes(alpha, 4000, height, width)
    area = (bottom - top) * (right - left) / (height * width)
    assert_same_distribution(rows.mean(1) * columns.mean(1), area, np.linspace(0, 1, 101))
    # A box that no edge cuts off has the image's own proportions, as nearly as pixels allow.
    is_whole = (rows[:, 0] + rows[:, -1] == 0) & (columns[:, 0] + columns[:, -1] == 0)
    assert np.all(np.abs(rows.mean(1) - columns.mean(1))[is_whole] < 2 / height + 2 / width)
    for found, first, last, size in ((rows, top, bottom, height), (columns, left, right, width)):
        middles = [edges.mean() for edges in map(np.flatnonzero, found) if len(edges)]
        expected = (first + last - 1)[last > first] / 2
        assert abs(np.mean(middles) - expected.mean()) < size / 40
        assert abs(np.std(middles) / expected.std() - 1) < 0.1


def test_labels_are_mixed_as_the_pixels_are():
    random = np.random.RandomState(1)
    images = random.normal(size=[BATCH_SIZE, HEIGHT, WIDTH, 3]).astype(np.float32)
    targets = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1]]
    drawn = {key: value[0] for key, value in draw(1, cutmix_alpha=1.0).items()}
    with tf.Session() as session:
        mixed, mixed_targets = session.run(mixing.mix(
            tf.constant(images), tf.constant(targets), {'label': None, **drawn}))
    num_pasted = 0
    for index in range(BATCH_SIZE):
        other = BATCH_SIZE - 1 - index
        box = np.outer(drawn[mixing.CUTMIX_ROWS][index], drawn[mixing.CUTMIX_COLUMNS][index]) == 1
        expected = np.where(box[:, :, np.newaxis], images[other], images[index])
        np.testing.assert_array_equal(mixed[index], expected)
        share = 1 - box.sum() / (HEIGHT * WIDTH)
        np.testing.assert_allclose(
            mixed_targets[index], share * targets[index] + (1 - share) * targets[other], atol=1e-6)
        num_pasted += box.sum()
    assert 0 < num_pasted < BATCH_SIZE * HEIGHT * WIDTH


def test_mixup_is_a_weighted_mean():
    random = np.random.RandomState(2)
    images = random.normal(size=[BATCH_SIZE, HEIGHT, WIDTH, 3]).astype(np.float32)
    targets = np.eye(BATCH_SIZE, dtype=np.float32)
    drawn = {key: value[0] for key, value in draw(1, mixup_alpha=1.0).items()}
    assert set(drawn) == {mixing.MIXUP_LAMBDA}
    with tf.Session() as session:
        mixed, mixed_targets = session.run(mixing.mix(
            tf.constant(images), tf.constant(targets), drawn))
    share = drawn[mixing.MIXUP_LAMBDA]
    for values, found in ((images, mixed), (targets, mixed_targets)):
        weights = share.reshape([-1] + [1] * (values.ndim - 1))
        np.testing.assert_allclose(
            found, weights * values + (1 - weights) * values[::-1], atol=1e-6)


def test_a_batch_gets_one_of_the_two():
    drawn = draw(200, mixup_alpha=0.5, cutmix_alpha=0.5)
    alone = {**draw(200, mixup_alpha=0.5), **draw(200, cutmix_alpha=0.5)}
    has_box = drawn[mixing.CUTMIX_ROWS].any(axis=(1, 2))
    is_mixup = (drawn[mixing.MIXUP_LAMBDA] < 1).any(axis=1)
    assert not np.any(has_box & is_mixup) and np.all(has_box | is_mixup)
    assert 70 < has_box.sum() < 130
    for key, is_on in ((mixing.MIXUP_LAMBDA, is_mixup), (mixing.CUTMIX_ROWS, has_box),
                       (mixing.CUTMIX_COLUMNS, has_box)):
        np.testing.assert_array_equal(drawn[key][is_on], alone[key][is_on])


def test_without_either_nothing_is_drawn_and_nothing_changes():
    assert mixing.draw(0, 0, BATCH_SIZE, (HEIGHT, WIDTH), SEEDS) == {}
    images, targets = tf.zeros([2, 4, 4, 3]), tf.zeros([2, 3])
    assert mixing.mix(images, targets, {'label': None}) == (images, targets)
