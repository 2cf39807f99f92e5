"""Classes of different sizes: their counts, their weights in the loss, and how often they come."""
import dataclasses
import json
import os
import stat

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from test_imagenet_input import make_input
from test_imagenet_input import make_record
from test_imagenet_input import write_shards

from common.errors import UserError
from config import class_weights
from config import run_config
import imagenet_input
from runtime import stock
from tfrecords import resampling
from tfrecords import schema
from training import class_balance
from training import model_fn as model_fns

NAMES = ('cat', 'dog', '1')


def test_balanced_weights_are_those_of_scikit_learn():
    """compute_class_weight('balanced', classes=[0, 2, 3], y): a class without images is none."""
    weights = class_weights.balanced([10, 0, 30, 60])
    np.testing.assert_allclose(weights, [100 / 30, 0, 100 / 90, 100 / 180])
    assert np.dot(weights, [10, 0, 30, 60]) == pytest.approx(100)


@pytest.mark.parametrize('text, names, expected', [
    ('cat,1\ndog,2.5\n1,0\n', NAMES, (1, 2.5, 0)),
    ('class,weight\n"dog",1e-1\n\n 0 , 3 \n2,1\n', NAMES, (3, 0.1, 1)),
    ('2,3\n0,1\n1,2\n', (), (1, 2, 3))])
def test_classes_are_found_by_name_or_else_by_number(tmp_path, text, names, expected):
    (tmp_path / 'x.csv').write_text(text)
    assert class_weights.read(str(tmp_path / 'x.csv'), names, 3) == expected


@pytest.mark.parametrize('text, words', [
    ('cat,1\ndog,1\nbird,1', "unknown class 'bird'"), ('0,1\n3,1', "unknown class '3'"),
    ('cat,1\ndog,1', "1 of the 3 classes have no weight, for example '1'"), ('', '3 of the 3'),
    ('cat,1\n0,2', "'0' has two weights"), ('cat,-1', "'-1' of class 'cat'"),
    ('cat,nan', "'nan'"), ('cat,inf', "'inf'"), ('cat,x', "'x'"), ('cat', 'row'),
    ('cat,1,2', 'row'), ('cat,0\ndog,0\n1,0', 'all weights are 0'), ('\0', 'cannot be read'),
    ('-1,2', "unknown class '-1'")])
def test_a_fault_of_the_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / 'x.csv'
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        class_weights.read(str(path), NAMES, 3)
    sentence = str(raised.value)
    assert sentence.startswith(f'--class_weights={path}: ') and words in sentence
    assert '\n' not in sentence and ';' in sentence and sentence.endswith('.')


def test_correcting_twice_is_refused(tmp_path):
    values = dict(data_dir='x', model_dir=str(tmp_path), train_steps=1)
    with pytest.raises(UserError, match='both correct the class sizes; keep one'):
        run_config.without_data(
            {**values, 'class_weights': 'balanced', 'sampling': 'balanced'})
    for name in 'class_weights', 'sampling':
        with pytest.raises(UserError, match=f'--{name}=balanced: generated images'):
            run_config.without_data({**values, 'data_dir': 'synthetic', name: 'balanced'})


# How often records come --------------------------------------------------------------------------

RATES = (5 / 9, 10 / 9, 10 / 3)
SIZES = (60, 30, 10)
RECORDS = [b'%d:%d' % (label, number) for label, size in enumerate(SIZES)
           for number in range(size)]


def parse(record):
    return record, tf.strings.to_number(tf.strings.substr(record, 0, 1), tf.int64)


def phases(records):
    with tf.Graph().as_default(), tf.Session() as session:
        hashed = session.run(tf.strings.to_hash_bucket_fast(records, 2 ** 52))
    return hashed.astype(np.float64) / 2 ** 52


def drawn(dataset, count):
    with tf.Graph().as_default(), tf.Session() as session:
        element = tf.data.make_one_shot_iterator(dataset()).get_next()
        return [session.run(element) for _ in range(count)]


@pytest.mark.parametrize('start_epoch', [0, 7])
def test_an_epoch_repeats_and_leaves_out_records(start_epoch):
    """Epoch by epoch as NumPy finds it; over nine of them 9 r times, rounded up or down."""
    rates, expected = np.repeat(RATES, SIZES), []
    for epoch in range(start_epoch, start_epoch + 9):
        phase = phases(RECORDS)
        counts = np.floor((epoch + 1) * rates + phase) - np.floor(epoch * rates + phase)
        expected.append(np.repeat(RECORDS, counts.astype(int)).tolist())
        # An epoch keeps its length, and has as many of each class: within what rounding leaves.
        assert abs(len(expected[-1]) - 100) < 15
    flat = sum(expected, [])
    found = drawn(lambda: resampling.resampled(
        tf.data.Dataset.from_tensor_slices(RECORDS), parse, RATES, start_epoch), len(flat))
    assert found == flat
    for record, rate in zip(RECORDS, rates):
        assert abs(found.count(record) - 9 * rate) < 1
    by_class = np.bincount([int(record[:1]) for record in found])
    np.testing.assert_allclose(by_class, [300, 300, 300], atol=12)


def test_ranks_draw_each_record_as_often_as_one_alone():
    def draw(records, count):
        return drawn(lambda: resampling.resampled(
            tf.data.Dataset.from_tensor_slices(records), parse, RATES), count)

    parts = [RECORDS[rank::2] for rank in range(2)]
    rates = dict(zip(RECORDS, np.repeat(RATES, SIZES)))
    lengths = [int(sum(np.floor(2 * rates[record] + phase)
                       for record, phase in zip(part, phases(part)))) for part in parts]
    together = sum((draw(part, length) for part, length in zip(parts, lengths)), [])
    assert sorted(together) == sorted(draw(RECORDS, sum(lengths)))


def labels_of(images_input, count):
    with tf.Graph().as_default(), tf.Session() as session:
        _, labels = tf.data.make_one_shot_iterator(images_input.dataset()).get_next()
        return np.concatenate([session.run(labels['label']) for _ in range(count)])


@pytest.mark.parametrize('use_cache', [False, True])
def test_batches_have_as_many_of_each_class(tmp_path, use_cache, monkeypatch):
    """Mixed, and the same again with the same seed; each rank draws from its own shards."""
    monkeypatch.setattr(imagenet_input, 'SHUFFLED_CACHED_RECORDS', 1024)
    records = [make_record(1 + label) for label, size in enumerate((48, 12, 4))
               for _ in range(size)]
    write_shards(tmp_path, 'train', [records[index::4] for index in range(4)])
    rates = class_weights.balanced((48, 12, 4))
    images_input = make_input(tmp_path, num_classes=3, batch_size=64, seed=3, use_cache=use_cache,
                              class_rates=rates, rank=1, world_size=2)
    first, again = labels_of(images_input, 12), labels_of(images_input, 12)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.bincount(first) / len(first), [1 / 3] * 3, atol=0.06)
    # No run of copies: of three classes in turn, a third of the neighbors are of one class.
    assert np.mean(first[1:] == first[:-1]) < 0.45
    plain = labels_of(dataclasses.replace(images_input, class_rates=()), 12)
    np.testing.assert_allclose(np.bincount(plain) / len(plain), [.75, .1875, .0625], atol=0.06)


# Counts ------------------------------------------------------------------------------------------

def test_labels_are_counted_as_the_models_classes(tmp_path):
    records = [make_record(label) for label in (1, 1, 2, 3, 3, 3, 9)] + [b'no record']
    write_shards(tmp_path, 'train', [records[:3], records[3:]])

    def count(**fields):
        return make_input(tmp_path, **fields).class_counter().count().tolist()

    assert count(num_classes=3) == [2, 1, 3]
    assert count(num_classes=4, label_base=0) == [0, 2, 1, 3]
    assert count(num_classes=5, class_map=(4, 2, 0)) == [3, 0, 1, 0, 2]
    schema.DatasetInfo('x', 3, ('a', 'b', 'c'), 1, {'train': 6, 'validation': 0},
                       class_counts={'train': [2, 1, 3], 'validation': [0, 0, 0]}).save(
                           str(tmp_path))
    assert count(num_classes=4) == [0, 2, 1, 3]
    counter = make_input(tmp_path, num_classes=4).class_counter()
    assert counter.of_model([2, 1, 3]).tolist() == [0, 2, 1, 3]
    assert make_input(tmp_path, num_classes=5, class_map=(4, 2, 0)).class_counter().of_model(
        [2, 1, 3]).tolist() == [3, 0, 1, 0, 2]


def test_a_fingerprint_is_of_the_shards_and_the_meaning_of_their_labels(tmp_path):
    for folder in 'a', 'b', 'c':
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder, 'train', [[make_record(1)] * (1 + (folder == 'c'))])

    def fingerprint(folder, **fields):
        return make_input(tmp_path / folder, **fields).class_counter().fingerprint()

    # A copy elsewhere is the same.
    assert fingerprint('a') == fingerprint('b')
    assert len({fingerprint('a'), fingerprint('c'), fingerprint('a', num_classes=3),
                fingerprint('a', label_base=0)}) == 4


class Runtime:
    """A runtime with the attributes that the module uses."""

    def __init__(self, leader_dir, rank=0):
        self.leader_dir, self.rank = str(leader_dir), rank


@pytest.fixture
def balance(tmp_path):
    """balance(rank) -> the `Config` of --class_weights=balanced on data of 3 and 1 images."""
    data_dir = tmp_path / 'data'
    data_dir.mkdir()
    write_shards(data_dir, 'train', [[make_record(label) for label in (1, 2, 1, 1)]])
    (tmp_path / 'run').mkdir()
    os.chmod(data_dir, stat.S_IRUSR | stat.S_IXUSR)

    def make(rank=0, **values):
        config = run_config.from_values({
            'data_dir': str(data_dir), 'model_dir': str(tmp_path / 'run'), 'train_steps': 1,
            'num_label_classes': 2, 'mode': 'train', 'class_weights': 'balanced', **values})
        return class_balance.apply(
            config, Runtime(tmp_path / 'run', rank), make_input(data_dir, num_classes=2))

    yield make
    os.chmod(data_dir, stat.S_IRWXU)


def test_rank_0_counts_once_and_the_others_read_what_it_keeps(tmp_path, balance, monkeypatch):
    before = sorted(os.listdir(tmp_path / 'data'))
    config, _ = balance()
    assert config.class_weights == pytest.approx((4 / 6, 4 / 2))
    path = tmp_path / 'run' / 'class_counts.json'
    assert json.loads(path.read_text())['class_counts'] == [3, 1]
    assert sorted(os.listdir(tmp_path / 'data')) == before
    # Nobody counts again.
    path.write_text(path.read_text().replace('[3, 1]', '[1, 1]'))
    for rank in range(2):
        assert balance(rank)[0].class_weights == (1, 1)
    monkeypatch.setattr(class_balance, '_TIMEOUT_SECS', 0)
    path.write_text(json.dumps({'fingerprint': 'of other data', 'class_counts': [1, 1]}))
    with pytest.raises(UserError, match='rank 0 has not counted'):
        balance(rank=1)
    assert balance()[0].class_weights == pytest.approx((4 / 6, 4 / 2))


def test_sampling_draws_what_weights_would_weigh(balance):
    config, train = balance(class_weights=None, sampling='balanced')
    assert config.class_weights == () and train.class_rates == pytest.approx((4 / 6, 4 / 2))
    config, train = balance(class_weights=None)
    assert config.class_weights == train.class_rates == ()


def test_a_dataset_that_knows_its_counts_is_not_read(tmp_path):
    schema.DatasetInfo('x', 2, (), 1, {'train': 4, 'validation': 0}, class_counts={
        'train': [3, 1], 'validation': [0, 0]}).save(str(tmp_path))
    write_shards(tmp_path, 'train', [[b'no record']])
    config = run_config.from_values({
        'data_dir': str(tmp_path), 'model_dir': str(tmp_path / 'run'), 'train_steps': 1,
        'mode': 'train', 'class_weights': 'balanced', 'num_label_classes': 2})
    config, _ = class_balance.apply(
        config, Runtime('/no/folder'), make_input(tmp_path, num_classes=2))
    assert config.class_weights == pytest.approx((4 / 6, 4 / 2))


@pytest.mark.parametrize('counts, words', [
    ({'train': [3, 1]}, 'class_counts'), ({'train': [3, 2], 'validation': [0, 0]}, 'the sum 5'),
    ({'train': [4], 'validation': [0]}, '1 numbers'), ([3, 1], 'class_counts'),
    ({'train': [3, -1], 'validation': [0, 0]}, 'class_counts')])
def test_counts_that_cannot_be_are_one_sentence(tmp_path, counts, words):
    (tmp_path / 'dataset_info.json').write_text(json.dumps({
        'name': 'x', 'num_classes': 2, 'class_names': [], 'label_base': 1,
        'num_images': {'train': 4, 'validation': 0}, 'class_counts': counts}))
    with pytest.raises(UserError, match=words):
        schema.DatasetInfo.load(str(tmp_path))


# The loss ----------------------------------------------------------------------------------------

def test_the_loss_is_weighted_as_numpy_weighs_it(tmp_path):
    """mean_i(sum_k(t_ik w_k) CE_i), with the mixed targets t before they are smoothed; the last
    image is not mixed."""
    weights, labels = np.linspace(0.1, 2, 10), np.array([0, 3, 3, 9])
    lambdas = np.array([0.5, 0.6, 0.7, 1.0], np.float32)
    config = run_config.from_values(dict(
        data_dir='synthetic', model_dir=str(tmp_path), model_name='efficientnet-lite0',
        width_coefficient=0.25, depth_coefficient=0.25, batch_size=4, num_label_classes=10,
        train_steps=1, survival_prob=1.0, dropout_rate=0.0, label_smoothing=0.1))
    config = dataclasses.replace(config, class_weights=tuple(weights.tolist()))
    with tf.Graph().as_default() as graph, tf.Session() as session:
        tf.set_random_seed(1)
        model_fns.model_fn(
            np.random.RandomState(0).randint(0, 256, [4, 32, 32, 3]).astype(np.float32),
            {'label': tf.constant(labels, tf.int32), 'mixup_lambda': tf.constant(lambdas)},
            tf.estimator.ModeKeys.TRAIN, model_fns.make_params(config, stock.StockRuntime(config)))
        session.run(tf.global_variables_initializer())
        entropies = [operation for operation in graph.get_operations()
                     if operation.type == 'SoftmaxCrossEntropyWithLogits']
        loss, unsmoothed, logits = session.run([
            'cross_entropy:0', 'watched/scalars/unsmoothed_cross_entropy:0',
            entropies[0].inputs[0]])
    targets = np.eye(10)[labels]
    targets = targets * lambdas[:, None] + targets[::-1] * (1 - lambdas[:, None])
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    smoothed = 0.9 * targets + 0.01
    expected = np.mean((targets @ weights) * -(smoothed * log_probabilities).sum(1))
    assert loss == pytest.approx(expected, rel=1e-5)
    # Evaluations are not weighted.
    assert unsmoothed == pytest.approx(np.mean(-(targets * log_probabilities).sum(1)), rel=1e-5)
