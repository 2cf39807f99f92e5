import collections
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

import autoaugment
from common import random_ops
from common.errors import UserError
import imagenet_input
from imagenet_input import ImageNetInput
import preprocessing
from tfrecords import reader
from tfrecords import schema
from tfrecords import validation

SIZE = 8


def encode(pixels, file_format='PNG'):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def make_record(label, encoded=None):
    """Returns a record of a label; its image is uniform in that value unless given."""
    if encoded is None:
        encoded = encode(np.full([SIZE, SIZE, 3], label % 256, np.uint8))
    return schema.serialize_example(encoded=encoded, image_format='PNG', height=SIZE, width=SIZE,
                                    channels=3, filename=f'{label}.png', label=label, text='')


def write_shards(folder, split, shards):
    """Writes one shard for each list of records."""
    for index, records in enumerate(shards):
        path = os.path.join(str(folder), schema.shard_name(split, index, len(shards)))
        with tf.io.TFRecordWriter(path) as writer:
            for record in records:
                writer.write(record)


def write_counted(folder, split, counts):
    """Writes shards of the given numbers of records, labeled from 1 on, each with its own."""
    labels = iter(range(1, sum(counts) + 1))
    write_shards(folder, split, [[make_record(next(labels)) for _ in range(count)]
                                 for count in counts])


def make_input(data_dir, **fields):
    return ImageNetInput(**{'data_dir': str(data_dir), 'is_training': True, 'image_size': SIZE,
                            'batch_size': 4, **fields})


def batches(images_input, count=None):
    """Yields batches as numpy arrays: `count` of them, or all."""
    with tf.Graph().as_default(), tf.Session() as session:
        iterator = tf.data.make_initializable_iterator(images_input.dataset())
        element = iterator.get_next()
        session.run(iterator.initializer)
        while count is None or count > 0:
            try:
                yield session.run(element)
            except tf.errors.OutOfRangeError:
                return
            count = None if count is None else count - 1


def labels_of_first_epoch(images_input):
    """Returns the labels before the first repeated one; each record must have its own label."""
    seen = []
    # Without a seed images may overtake each other across the end of an epoch.
    for _, labels in batches(dataclasses.replace(images_input, batch_size=1, seed=0)):
        label = int(labels['label'][0]) + images_input.label_base
        if label in seen:
            return seen
        seen.append(label)
    raise AssertionError('training data came to an end')


@pytest.mark.parametrize('batch_size', [1, 4, 17, 18, 64])
def test_evaluation_counts_every_image_once(tmp_path, batch_size):
    write_counted(tmp_path, 'validation', [5, 3, 7, 2])
    seen = []
    num_batches = 0
    for images, labels in batches(make_input(tmp_path, is_training=False, batch_size=batch_size,
                                             rank=1, world_size=2)):
        num_batches += 1
        assert images.shape == (batch_size, SIZE, SIZE, 3)
        assert labels['label'].shape == labels['weight'].shape == (batch_size,)
        assert set(labels['weight']) <= {0.0, 1.0}
        is_real = labels['weight'] == 1
        np.testing.assert_array_equal(
            images, np.broadcast_to(np.where(is_real, labels['label'] + 1, 0)[
                :, np.newaxis, np.newaxis, np.newaxis], images.shape))
        seen += [int(label) + 1 for label in labels['label'][is_real]]
    assert sorted(seen) == list(range(1, 18))
    assert num_batches == -(-17 // batch_size)


def test_evaluation_is_the_same_each_time(tmp_path):
    write_counted(tmp_path, 'validation', [5, 3, 7, 2])
    first, second = [[labels['label'].tolist() for _, labels in batches(
        make_input(tmp_path, is_training=False, num_parallel_calls=8))] for _ in range(2)]
    assert first == second


def test_an_evaluation_on_synthetic_images_is_the_same_each_time():
    """A run that goes on in another process compares its results with the earlier ones."""
    def stream(is_training):
        return list(batches(make_input('synthetic', is_training=is_training, num_classes=100,
                                       num_images=8), 2))

    assert is_equal_stream(stream(False), stream(False))
    assert not is_equal_stream(stream(True), stream(True))


def test_evaluation_of_the_sample_data(digits_dir):
    digits = make_input(digits_dir, is_training=False, image_size=28, batch_size=64, num_classes=10)
    counts = collections.Counter()
    for _, labels in batches(digits):
        counts.update(labels['label'][labels['weight'] == 1].tolist())
    assert counts == {digit: 100 for digit in range(10)}


@pytest.mark.parametrize('counts, world_size', [
    ([7], 1), ([7], 2), ([5, 6, 4], 2), ([5, 6, 4, 3], 4), ([3, 3, 3, 3, 3], 4), ([9, 8, 9], 8),
    ([1, 2, 3, 1, 2, 3, 1, 2], 3)])
def test_ranks_share_the_training_records_out(tmp_path, counts, world_size):
    write_counted(tmp_path, 'train', counts)
    shares = [labels_of_first_epoch(make_input(tmp_path, rank=rank, world_size=world_size))
              for rank in range(world_size)]
    assert sorted(sum(shares, [])) == list(range(1, sum(counts) + 1))
    if len(counts) < world_size:
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def first_labels(images_input, count):
    return [int(labels['label'][0]) for _, labels in batches(images_input, count)]


def test_large_records_are_shuffled_among_as_many_as_fit_into_memory(tmp_path, monkeypatch):
    write_counted(tmp_path, 'train', [40])
    images_input = make_input(tmp_path, batch_size=1, seed=0)
    kept_bytes = 5 * images_input.mean_record_bytes()

    def largest_jump():
        labels = first_labels(images_input, 40)
        assert sorted(labels) == list(range(40))
        return max(label - place for place, label in enumerate(labels))

    assert largest_jump() > 8
    monkeypatch.setattr(imagenet_input, 'SHUFFLED_MB', kept_bytes / 1e6)
    assert largest_jump() == 4
    monkeypatch.setattr(imagenet_input, 'SHUFFLED_MB', 0)
    assert first_labels(images_input, 40) == list(range(40))


@pytest.mark.parametrize('is_training', [True, False])
def test_reading_ahead_changes_no_order(tmp_path, is_training):
    write_counted(tmp_path, 'train', [5, 9, 7])
    write_counted(tmp_path, 'validation', [5, 9, 7])
    orders = [first_labels(make_input(tmp_path, is_training=is_training, batch_size=1, seed=0,
                                      read_ahead_mb=megabytes), 21)
              for megabytes in (0, 1e-3, 1, 1000)]
    assert sorted(orders[0]) == list(range(21))
    assert orders == [orders[0]] * 4


def read_bytes():
    with open('/proc/self/io') as file:
        return int(re.search(r'rchar: (\d+)', file.read())[1])


def test_reading_ahead_reads_records_before_they_are_used(tmp_path):
    for shard in range(20):
        with tf.io.TFRecordWriter(
                str(tmp_path / schema.shard_name(schema.VALIDATION, shard, 20))) as writer:
            for _ in range(8):
                writer.write(bytes(500000))

    def bytes_read_for_one_record(megabytes, expected):
        with tf.Graph().as_default(), tf.Session() as session:
            record = tf.data.make_one_shot_iterator(imagenet_input.ImageNetInput(
                str(tmp_path), is_training=False, image_size=32, batch_size=1,
                read_ahead_mb=megabytes).records()).get_next()
            before, deadline = read_bytes(), time.monotonic() + 20
            session.run(record)
            while read_bytes() - before < expected and time.monotonic() < deadline:
                time.sleep(0.1)
            return read_bytes() - before

    # The shards have 80 MB in all. Parts of the open ones are read in any case.
    anyway = bytes_read_for_one_record(0, 1)
    assert bytes_read_for_one_record(1000, anyway + 10e6) >= anyway + 10e6


def test_the_mean_size_of_records_is_that_of_the_first(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / 'shard'), 'GZIP') as writer:
        for size in (100, 300, 800):
            writer.write(bytes(size))
    (tmp_path / 'empty').write_bytes(b'')
    paths = [str(tmp_path / 'empty'), str(tmp_path / 'shard')]
    assert reader.mean_record_bytes(paths, reader.GZIP) == 400
    assert reader.mean_record_bytes(paths[:1]) == 1
    with tf.io.TFRecordWriter(str(tmp_path / 'long')) as writer:
        for size in [7] * reader.MEASURED_RECORDS + [1000000]:
            writer.write(bytes(size))
    assert reader.mean_record_bytes([str(tmp_path / 'long')]) == 7


@pytest.mark.parametrize('world_size', [1, 2, 4])
def test_the_size_of_a_share_is_that_of_its_shards(tmp_path, world_size):
    write_counted(tmp_path, 'train', [9, 20, 4, 4, 4])
    sizes = [os.path.getsize(tmp_path / name) for name in sorted(os.listdir(tmp_path))]
    shares = [make_input(tmp_path, rank=rank, world_size=world_size).shard_bytes()
              for rank in range(world_size)]
    assert abs(sum(shares) - sum(sizes)) <= world_size
    if world_size == 4:
        assert shares[1] == int(sizes[1] + sizes[4] / 4)


def test_ranks_read_whole_files_as_far_as_they_divide_evenly(tmp_path):
    write_counted(tmp_path, 'train', [4, 4, 4, 4, 4])
    share = labels_of_first_epoch(make_input(tmp_path, rank=1, world_size=2))
    assert set(range(5, 9)) | set(range(13, 17)) < set(share)
    assert len(set(share) & set(range(17, 21))) == 2


@pytest.mark.parametrize('counts, shuffled_records', [([10], 1024), ([1] * 10, 1)],
                         ids=['records', 'files'])
def test_training_is_endless_and_each_epoch_has_its_own_order(tmp_path, monkeypatch, counts,
                                                              shuffled_records):
    monkeypatch.setattr(imagenet_input, 'SHUFFLED_RECORDS', shuffled_records)
    write_counted(tmp_path, 'train', counts)
    labels = [int(labels['label'][0]) for _, labels in
              batches(make_input(tmp_path, batch_size=1, seed=0), count=40)]
    epochs = [labels[start:start + 10] for start in range(0, 40, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert len(set(map(tuple, epochs))) > 1


def test_cache_keeps_every_record_and_shuffles(tmp_path):
    write_counted(tmp_path, 'train', [6, 4])
    labels = [int(labels['label'][0]) for _, labels in
              batches(make_input(tmp_path, batch_size=1, seed=0, use_cache=True),
                      count=30)]
    epochs = [labels[start:start + 10] for start in range(0, 30, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len(set(map(tuple, epochs))) > 1


def training_stream(digits_dir, **fields):
    digits = make_input(digits_dir, **{
        'image_size': 24, 'batch_size': 16, 'num_classes': 10, 'mixup_alpha': 0.2,
        'num_parallel_calls': 8, **fields})
    return list(batches(digits, count=6))


def is_equal_stream(first, second):
    return all(np.array_equal(a[0], b[0]) and all(np.array_equal(a[1][key], b[1][key])
                                                  for key in a[1]) for a, b in zip(first, second))


def test_a_seed_repeats_images_labels_and_mixup(digits_dir):
    first = training_stream(digits_dir, seed=7)
    assert is_equal_stream(first, training_stream(digits_dir, seed=7))
    for other in (dict(seed=8), dict(seed=7, start_step=6), dict(seed=7, rank=1, world_size=2),
                  dict(seed=None)):
        stream = training_stream(digits_dir, **other)
        for (images, labels), (other_images, other_labels) in zip(first, stream):
            assert not np.array_equal(images, other_images)
            assert not np.array_equal(labels['label'], other_labels['label'])
            assert not np.array_equal(labels['mixup_lambda'], other_labels['mixup_lambda'])


def test_a_seed_repeats_distortions_and_cutmix(digits_dir):
    """Also those of a run that goes on from a step, as often as it does."""
    fields = dict(mixup_alpha=0, cutmix_alpha=1.0, vertical_flip=True,
                  distortions=random_ops.chosen(0.4, 0.5), augment=autoaugment.augmentation(
                      'randaugment', 2, 10))
    streams = [training_stream(digits_dir, seed=7, start_step=step, **fields) for step in (0, 6)]
    for step, stream in zip((0, 6), streams):
        assert is_equal_stream(
            stream, training_stream(digits_dir, seed=7, start_step=step, **fields))
    for (images, labels), (other_images, other_labels) in zip(*streams):
        assert not np.array_equal(images, other_images)
        assert not np.array_equal(labels['cutmix_rows'], other_labels['cutmix_rows'])


def test_without_a_seed_no_two_runs_are_equal_though_the_graph_has_one(digits_dir):
    streams = []
    for _ in range(2):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(1)  # as an Estimator does
            iterator = tf.data.make_initializable_iterator(
                make_input(digits_dir, num_classes=10, batch_size=64).dataset())
            _, labels = iterator.get_next()
            session.run(iterator.initializer)
            streams.append(session.run(labels['label']))
    assert not np.array_equal(*streams)


def test_holdout_shards_are_left_out_of_training_and_evaluated(tmp_path):
    write_counted(tmp_path, 'train', [3, 4, 5, 2, 1])
    write_counted(tmp_path, 'validation', [30])
    train = make_input(tmp_path, holdout_shards=2)
    evaluation = make_input(tmp_path, is_training=False, holdout_shards=2, batch_size=1)
    assert sorted(labels_of_first_epoch(train)) == list(range(8, 16))
    assert sorted(int(labels['label'][0]) + 1 for _, labels in batches(evaluation)) == (
        list(range(1, 8)))
    for too_many in (5, 6, -1):
        with pytest.raises(UserError, match=f'--holdout_shards={too_many}.*from 1 to 4'):
            make_input(tmp_path, holdout_shards=too_many).dataset()


def test_dataset_reports_incomplete_shards_and_a_missing_split(tmp_path):
    write_counted(tmp_path, 'train', [3, 4, 5])
    os.remove(str(tmp_path / 'train-00001-of-00003'))
    with pytest.raises(UserError, match='train-00001-of-00003 is missing'):
        make_input(tmp_path).dataset()
    with pytest.raises(UserError, match=r'no file matches validation-\?'):
        make_input(tmp_path, is_training=False).dataset()


def test_labels_from_zero(tmp_path):
    write_shards(tmp_path, 'validation', [[make_record(label) for label in range(3)]])
    (_, labels), = batches(make_input(tmp_path, is_training=False, num_classes=3, label_base=0))
    assert labels['label'].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize('label_base', [0, 1])
def test_classes_of_the_data_become_those_of_the_model(tmp_path, label_base):
    """Two of the model's three, in another order; a third label is out of range."""
    schema.DatasetInfo(name='two', num_classes=2, class_names=(), label_base=label_base,
                       num_images={'train': 0, 'validation': 3}).save(str(tmp_path))
    write_shards(tmp_path, 'validation',
                 [[make_record(label_base + index) for index in (1, 0, 2)]])
    mapped = make_input(tmp_path, is_training=False, num_classes=3, class_map=(2, 0),
                        label_base=label_base, batch_size=2, num_images=2)
    (_, labels), = batches(mapped)
    assert labels['label'].tolist() == [0, 2]
    bad, = mapped.find_bad_records()
    assert bad.index == 2 and f'outside {label_base}..{label_base + 1}' in bad.reason


@pytest.mark.parametrize('label_base', [0, 1])
def test_one_class_more_than_labels_is_a_background_class(tmp_path, label_base):
    schema.DatasetInfo(name='three', num_classes=3, class_names=(), label_base=label_base,
                       num_images={'train': 0, 'validation': 3}).save(str(tmp_path))
    write_shards(tmp_path, 'validation',
                 [[make_record(label_base + index) for index in range(3)]])
    plain, background = [make_input(tmp_path, is_training=False, num_classes=num_classes,
                                    label_base=label_base, batch_size=3) for num_classes in (3, 4)]
    (_, labels), = batches(plain)
    assert labels['label'].tolist() == [0, 1, 2]
    (_, labels), = batches(background)
    assert labels['label'].tolist() == [1, 2, 3]


def test_1001_classes_of_imagenet_have_a_background_class(tmp_path):
    write_shards(tmp_path, 'validation', [[make_record(1000)]])
    imagenet = make_input(tmp_path, is_training=False, num_classes=1001, batch_size=1)
    (_, labels), = batches(imagenet)
    assert labels['label'].tolist() == [1000]
    (_, labels), = batches(dataclasses.replace(imagenet, num_classes=1000))
    assert labels['label'].tolist() == [999]


def test_shapes_are_static_and_types_are_the_contract(digits_dir):
    def form(**fields):
        with tf.Graph().as_default():
            dataset = make_input(digits_dir, num_classes=10, **fields).dataset()
            images, labels = tf.data.make_initializable_iterator(dataset).get_next()
            return {'images': (images.dtype, images.shape.as_list()),
                    **{key: (value.dtype, value.shape.as_list()) for key, value in labels.items()}}

    images, label = (tf.uint8, [4, SIZE, SIZE, 3]), (tf.int32, [4])
    assert form() == {'images': images, 'label': label}
    assert form(mixup_alpha=0.2) == {
        'images': images, 'label': label, 'mixup_lambda': (tf.float32, [4])}
    box = {f'cutmix_{name}': (tf.float32, [4, SIZE]) for name in ('rows', 'columns')}
    for transpose_input in (False, True):
        assert form(cutmix_alpha=0.2, transpose_input=transpose_input).items() >= box.items()
    assert form(is_training=False, mixup_alpha=0.2, cutmix_alpha=0.2) == {
        'images': (tf.float32, images[1]), 'label': label, 'weight': (tf.float32, [4])}
    for is_training, dtype in ((True, tf.uint8), (False, tf.float32)):
        assert form(is_training=is_training, transpose_input=True)['images'] == (
            dtype, [SIZE, SIZE, 3, 4])


def test_transposed_images_are_the_same_images(digits_dir):
    plain = make_input(digits_dir, num_classes=10, is_training=False)
    (images, _), = batches(plain, count=1)
    (transposed, _), = batches(dataclasses.replace(plain, transpose_input=True), count=1)
    np.testing.assert_array_equal(transposed.transpose(3, 0, 1, 2), images)
    assert images.std() > 10


def test_augment_works_on_training_images_only(digits_dir):
    digits = make_input(digits_dir, num_classes=10, augment=lambda image, seed: image * 0 + 77)
    (images, _), = batches(digits, count=1)
    assert set(images.ravel()) == {77}
    (images, _), = batches(dataclasses.replace(digits, is_training=False), count=1)
    assert len(set(images.ravel())) > 10


def test_crop_area_and_mirroring_reach_the_images(tmp_path):
    # The left half is black, the right half white.
    half = np.zeros([64, 64, 3], np.uint8)
    half[:, 32:] = 255
    write_shards(tmp_path, 'train', [[make_record(1, encode(half))]])
    gentle = make_input(tmp_path, image_size=32, batch_size=64, min_crop_area=0.9,
                        random_flip=False)
    (images, _), = batches(gentle, count=1)
    assert np.all(images[:, :, 0] < 30) and np.all(images[:, :, -1] > 225)
    (images, _), = batches(dataclasses.replace(gentle, random_flip=True), count=1)
    assert 10 < np.sum(images[:, 0, 0, 0] > 225) < 54
    (images, _), = batches(dataclasses.replace(gentle, min_crop_area=0.1), count=1)
    assert np.any(images.std(axis=(1, 2, 3)) < 30)


@pytest.mark.parametrize('alpha', [0.001, 0.2, 1.0])
def test_mixup_weights_are_the_larger_side_of_a_beta(digits_dir, alpha):
    digits = make_input(digits_dir, num_classes=10, batch_size=500, mixup_alpha=alpha, seed=1)
    weights = np.concatenate(
        [labels['mixup_lambda'] for _, labels in batches(digits, count=6)]).astype(float)
    assert len(set(weights[weights < 1])) > 2
    assert 0.5 <= weights.min() and weights.max() <= 1.0
    draws = np.random.RandomState(0).beta(alpha, alpha, size=3000)
    draws = np.maximum(draws, 1 - draws)
    # Kolmogorov-Smirnov: the two samples' distribution functions, 1.95 sqrt(2 / 3000) at p = 0.001.
    grid = np.linspace(0.5, 1.0, 201)[:-1]
    distance = max(abs(np.mean(weights <= x) - np.mean(draws <= x)) for x in grid)
    assert distance < 0.05


def assert_ends_with_an_error(images_input):
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.DataLossError)):
        for _ in batches(images_input, count=100):
            pass


@pytest.mark.parametrize('is_training', [True, False])
@pytest.mark.parametrize('label, label_base, valid', [
    (11, 1, '1..10'), (0, 1, '1..10'), (10, 0, '0..9'), (-1, 0, '0..9')])
def test_a_label_out_of_range_ends_the_iteration(tmp_path, is_training, label, label_base, valid):
    records = [make_record(label_base)] * (validation.FIRST_RECORDS + 5)
    records.append(make_record(label, encode(np.zeros([SIZE, SIZE], np.uint8))))
    for split in schema.SPLITS:
        write_shards(tmp_path, split, [records])
    bad = make_input(tmp_path, is_training=is_training, num_classes=10, label_base=label_base)
    assert_ends_with_an_error(bad)
    record, = bad.find_bad_records()
    assert str(record) == (
        f'{record.path}: record {validation.FIRST_RECORDS + 5} has label {label}, outside '
        f'{valid}; check --label_base and --num_label_classes.')
    bad.check_first_records()  # passes: the bad record is not among the first


def shard_of(tmp_path, *records):
    write_shards(tmp_path, 'train', [records])
    return tmp_path / 'train-00000-of-00001'


def without(record, key):
    example = tf.train.Example.FromString(record)
    del example.features.feature[key]
    return example.SerializeToString()


@pytest.mark.parametrize('record, words', [
    (b'\xff\xff\xff no example', 'is not a tf.train.Example'),
    (without(make_record(1), 'image/encoded'), 'has 0 values of "image/encoded"'),
    (without(make_record(1), 'image/class/label'), 'has 0 values of "image/class/label"'),
    (make_record(11), 'has label 11, outside 1..10; check --label_base and --num_label_classes'),
    (make_record(0), 'has label 0, outside 1..10'),
    (make_record(1, b'GIF89a'), 'neither a JPEG nor a PNG'),
], ids=['no example', 'no image', 'no label', 'label 11', 'label 0', 'GIF'])
def test_the_first_records_are_checked(tmp_path, record, words):
    path = shard_of(tmp_path, make_record(1), make_record(10), record)
    with pytest.raises(UserError) as raised:
        make_input(tmp_path, num_classes=10).check_first_records()
    assert words in str(raised.value)
    assert str(raised.value).startswith(f'{path}: record 2 ')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('labels, label', [((0, 1, 2), 0), ((2, 1, 0), 0), ((1, 2, 11), 11)])
def test_labels_from_another_base_are_reported_even_if_sorted_by_class(tmp_path, labels, label):
    write_shards(tmp_path, 'train', [[make_record(label)] * 20 for label in labels])
    with pytest.raises(UserError, match=f'has label {label}, outside 1..10; check --label_base'):
        make_input(tmp_path, num_classes=10).check_first_records()


@pytest.mark.parametrize('damage', ['truncated', 'flipped bit', 'text'])
def test_a_corrupt_shard_is_reported_before_the_run(tmp_path, damage):
    path = shard_of(tmp_path, make_record(1), make_record(2))
    content = bytearray(path.read_bytes())
    if damage == 'truncated':
        content = content[:-10]
    elif damage == 'flipped bit':
        content[len(content) * 3 // 4] ^= 1
    else:
        content = b'404: not found\n' * 10
    path.write_bytes(bytes(content))
    index = 0 if damage == 'text' else 1
    with pytest.raises(UserError, match=f'train-00000-of-00001: record {index} cannot be read'):
        make_input(tmp_path, num_classes=10).check_first_records()


def test_good_records_pass_quickly_without_touching_the_graph(digits_dir, capfd):
    with tf.Graph().as_default() as graph:
        start_secs = time.process_time()  # not wall time: the machine may be busy
        for is_training in (True, False):
            make_input(digits_dir, num_classes=10, is_training=is_training).check_first_records()
        assert time.process_time() - start_secs < 1.0
        assert not graph.get_operations()
    assert capfd.readouterr() == ('', '')


def animated_png():
    frames = [Image.fromarray(np.full([SIZE, SIZE, 3], level, np.uint8)) for level in (0, 90)]
    file = io.BytesIO()
    frames[0].save(file, 'PNG', save_all=True, append_images=frames[1:])
    return file.getvalue()


def bad_images():
    """Returns pairs of (words of the message, image file); some fail only when decoded."""
    noise = np.random.RandomState(0).randint(256, size=[40, 40, 3]).astype(np.uint8)
    deep, cmyk = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full([SIZE, SIZE], 0x80ff, np.uint16)).save(deep, 'PNG')
    Image.fromarray(noise).convert('CMYK').save(cmyk, 'JPEG')
    jpeg, png = encode(noise, 'JPEG'), encode(noise, 'PNG')
    return [('CMYK', cmyk.getvalue()), ('16 bits', deep.getvalue()), ('animated', animated_png()),
            ('neither a JPEG nor a PNG', encode(noise, 'GIF')),
            ('neither a JPEG nor a PNG', b'<html></html>'), ('neither a JPEG nor a PNG', b''),
            ('cannot be decoded', jpeg[:len(jpeg) // 2]), ('cannot be decoded', jpeg[:30]),
            ('cannot be decoded', png[:len(png) // 2]), ('cannot be decoded', png[:20])]


@pytest.mark.parametrize('is_training', [True, False])
def test_bad_records_are_found_named_and_left_out(tmp_path, is_training):
    split = schema.TRAIN if is_training else schema.VALIDATION
    good = make_record(1, encode(np.zeros([40, 40, 3], np.uint8), 'JPEG'))
    faults = [('label 11', make_record(11)), ('not a tf.train.Example', b'\xff\xff\xff'),
              ('0 values of "image/encoded"', without(good, 'image/encoded'))]
    faults += [(words, make_record(1, encoded)) for words, encoded in bad_images()]
    first = [good, good] + [record for _, record in faults] + [good]
    write_shards(tmp_path, split, [first, [], [good, make_record(11), *[good] * 4], [good] * 5])
    paths = schema.find_shards(str(tmp_path), split, allow_empty_shards=True)
    with open(paths[2], 'r+b') as file:  # the last record loses its end
        file.truncate(os.path.getsize(paths[2]) - 10)
    with open(paths[3], 'r+b') as file:  # a bit of the third record turns
        file.seek(os.path.getsize(paths[3]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))

    bad = make_input(tmp_path, is_training=is_training, num_classes=10, batch_size=3,
                     allow_empty_shards=True)
    assert_ends_with_an_error(bad)
    records = list(bad.find_bad_records())
    expected = [(paths[0], 2 + i, words) for i, (words, _) in enumerate(faults)]
    expected += [(paths[1], 0, 'zero bytes'), (paths[2], 1, 'label 11'),
                 (paths[2], 5, 'cannot be read'),
                 (paths[3], 2, 'cannot be read')]
    assert [(record.path, record.index) for record in records] == [
        (path, index) for path, index, _ in expected]
    for record, (path, index, words) in zip(records, expected):
        assert str(record).startswith(f'{path}: record {index} ') and words in str(record)
        assert str(record).endswith('.') and '\n' not in str(record)

    skipping = dataclasses.replace(bad, skipped=validation.by_shard(records))
    if is_training:
        assert all(set(labels['label']) == {0} for _, labels in batches(skipping, count=20))
    else:
        weights = np.concatenate([labels['weight'] for _, labels in batches(skipping)])
        assert weights.sum() == 3 + 4 + 2


@pytest.mark.parametrize('is_training', [True, False])
@pytest.mark.parametrize('file_format', ['JPEG', 'PNG'])
def test_an_image_above_the_limit_of_pixels_is_a_bad_record(tmp_path, file_format, is_training):
    large, good = (make_record(1, encode(np.zeros([40, width, 3], np.uint8), file_format))
                   for width in (51, 50))
    split = schema.TRAIN if is_training else schema.VALIDATION
    write_shards(tmp_path, split, [[good] * 3 + [large]])
    path, = schema.find_shards(str(tmp_path), split)
    limited = make_input(tmp_path, is_training=is_training, max_image_pixels=40 * 50)
    assert_ends_with_an_error(limited)
    record, = limited.find_bad_records()
    assert str(record) == (f'{path}: record 3 has 51 x 40 pixels, above the limit of 2000 '
                           '(decompression bomb?); raise --max_image_pixels if it is intended.')
    with pytest.raises(UserError, match='record 3 has 51 x 40 pixels'):
        limited.check_first_records()
    raised = dataclasses.replace(limited, max_image_pixels=40 * 51)
    assert not list(raised.find_bad_records())
    raised.check_first_records()


def test_each_rank_looks_through_what_it_reads(tmp_path):
    write_shards(tmp_path, 'train', [[make_record(1), make_record(11)] for _ in range(4)])
    paths = schema.find_shards(str(tmp_path), schema.TRAIN)
    found = [[record.path for record in make_input(
        tmp_path, num_classes=10, rank=rank, world_size=2).find_bad_records()] for rank in (0, 1)]
    assert found == [paths[::2], paths[1::2]]


def test_good_data_has_no_bad_records(digits_dir):
    for is_training in (True, False):
        assert not list(make_input(
            digits_dir, num_classes=10, is_training=is_training).find_bad_records())


@pytest.mark.parametrize('is_training', [True, False])
def test_synthetic_images_need_no_files(is_training):
    synthetic = make_input(schema.SYNTHETIC_DIR, is_training=is_training, num_classes=7,
                           mixup_alpha=0.2, cutmix_alpha=0.2, num_images=10)
    synthetic.check_first_records()
    made = list(batches(synthetic, count=5))
    images, labels = made[0]
    assert images.shape == (4, SIZE, SIZE, 3) and images.std() > 50
    assert images.dtype == (np.uint8 if is_training else np.float32)
    assert set(labels['label']) <= set(range(7))
    if is_training:
        assert len(made) == 5 and set(labels) == {
            'label', 'mixup_lambda', 'cutmix_rows', 'cutmix_columns'}
    else:
        assert sum(labels['weight'].sum() for _, labels in made) == 10 and len(made) == 3


def test_waits_are_measured_where_the_consumer_is(digits_dir):
    waits = []
    slow = make_input(  # 0.2 s a batch
        digits_dir, num_classes=10, num_parallel_calls=1, on_wait=waits.append,
        augment=lambda image, _: tf.py_func(
            lambda image: time.sleep(0.05) or image, [image], tf.uint8))
    with tf.Graph().as_default(), tf.Session() as session:
        iterator = tf.data.make_initializable_iterator(slow.dataset())
        images = iterator.get_next()[0]
        assert images.shape.as_list() == [4, SIZE, SIZE, 3]
        session.run(iterator.initializer)
        for _ in range(6):
            session.run(images)
        assert len(waits) == 6
        assert sum(waits) > 0.8
        del waits[:]
        for _ in range(3):
            time.sleep(0.6)  # a busy device: batches become ready meanwhile
            session.run(images)
        assert len(waits) == 3 and sum(waits) < 0.4


@pytest.mark.slow
def test_a_session_can_be_closed_while_it_reads(digits_dir):
    # With interleave's num_parallel_calls this ends with SIGSEGV.
    script = f'''
import tensorflow.compat.v1 as tf
from imagenet_input import ImageNetInput
for _ in range(20):
    with tf.Graph().as_default(), tf.Session() as session:
        dataset = ImageNetInput({digits_dir!r}, True, 8, 4, num_classes=10).dataset()
        iterator = tf.data.make_initializable_iterator(dataset)
        element = iterator.get_next()
        session.run(iterator.initializer)
        session.run(element)
'''
    repository = os.path.dirname(os.path.abspath(imagenet_input.__file__))
    assert subprocess.run([sys.executable, '-c', script], cwd=repository).returncode == 0


def test_serving_input_takes_images_of_any_kind_and_size(photos):
    rng = np.random.RandomState(0)
    files = [photos[0][1], encode(rng.randint(256, size=(40, 30)).astype(np.uint8), 'PNG'),
             encode(rng.randint(256, size=(20, 50, 3)).astype(np.uint8), 'JPEG')]
    with tf.Graph().as_default(), tf.Session() as session:
        image_bytes = tf.placeholder(tf.string, [None])
        images = imagenet_input.serving_input(image_bytes, 32, 'bicubic')
        assert images.shape.as_list() == [None, 32, 32, 3]
        assert images.dtype == tf.float32
        served = session.run(images, {image_bytes: files})
        for image, encoded in zip(served, files):
            np.testing.assert_array_equal(image, session.run(
                preprocessing.preprocess_for_eval(encoded, 32, resize_method='bicubic')))
        assert session.run(images, {image_bytes: []}).shape == (0, 32, 32, 3)


def test_photos_train_at_full_size(tmp_path, photos):
    write_shards(tmp_path, 'train', [[make_record(label + 1, jpeg) for _, jpeg, label in photos]])
    classes = {label for _, _, label in photos}
    for images, labels in batches(make_input(tmp_path, image_size=224, batch_size=10), count=4):
        assert images.shape == (10, 224, 224, 3)
        assert -64 < images.min() < 30 and 220 < images.max() < 320
        assert set(labels['label']) <= classes


def test_an_incomplete_dataset_info_is_reported(digits_dir, tmp_path):
    (tmp_path / 'dataset_info.json').write_text(json.dumps({'name': 'x'}))
    write_counted(tmp_path, 'train', [3])
    with pytest.raises(UserError, match='lacks the key "num_classes"'):
        make_input(tmp_path).dataset()
