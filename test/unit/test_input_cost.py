"""benchmarks/input_cost.py: TensorFlow reads its object store; its tables say what follows."""
import time

import pytest
import tensorflow.compat.v1 as tf

from benchmarks import input_cost
from benchmarks import object_store
import imagenet_input
from tfrecords import schema

NUM_SHARDS, NUM_RECORDS = 20, 50
RECORD_BYTES = 1000


@pytest.fixture(scope='module')
def shard_dir(tmp_path_factory):
    """20 shards of 50 records."""
    folder = tmp_path_factory.mktemp('shards')
    for shard in range(NUM_SHARDS):
        path = folder / schema.shard_name(schema.TRAIN, shard, NUM_SHARDS)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in range(NUM_RECORDS):
                writer.write(b'%06d' % (shard * NUM_RECORDS + record) + bytes(RECORD_BYTES))
    return folder


def take(data_dir, count):
    """Returns the numbers of the first records."""
    with tf.Graph().as_default(), tf.Session() as session:
        records = imagenet_input.ImageNetInput(
            str(data_dir), is_training=True, image_size=32, batch_size=1, seed=0).records()
        number = tf.data.make_one_shot_iterator(
            records.map(lambda record: tf.strings.substr(record, 0, 6))).get_next()
        return [int(session.run(number)) for _ in range(count)]


def test_the_store_has_what_the_folder_has(shard_dir):
    expected = take(shard_dir, 900)
    with object_store.serving(str(shard_dir)) as store:
        assert take(object_store.URL, 900) == expected
        # The look-ups, and each shard in one part.
        assert store.num_bytes >= NUM_SHARDS * NUM_RECORDS * RECORD_BYTES
        store.latency_secs = 0.05
        start = time.monotonic()
        take(object_store.URL, 1)
        assert time.monotonic() - start > 0.05 * 5


FIGURES = {
    'cores_1': {'images_per_sec': 600.0, 'core_ms_per_image': 1.6, 'peak_rss_mb': 400.0,
                'open_files': 40},
    'cores_2': {'images_per_sec': 1200.0, 'core_ms_per_image': 1.5, 'peak_rss_mb': 450.0,
                'open_files': 41},
    'reader': {'images_per_sec': 9000.0}, 'kilobytes_per_image': 100.0,
    'stores': [
        {'latency_ms': latency_ms, 'slow_share': share, 'slow_secs': secs, 'read_ahead_mb': ahead,
         'stall': 0.25, 'longest_wait_secs': 0.5}
        for latency_ms, share, secs in input_cost.STORES for ahead in input_cost.READ_AHEAD_MB]}


def test_the_tables_say_what_was_measured_and_what_follows():
    rows = [[cell.strip() for cell in row.split('|')[1:-1]]
            for row in input_cost.table(FIGURES).split('\n')[2:]]
    assert rows[0] == ['1 core, measured', '600', '400', '1', '40', '60']
    assert rows[1] == ['2 cores, measured', '1,200', '450', '2', '41', '120']
    # 24 cores decode 16,000, but one thread reads 9,000. Each core more takes 50 MB.
    assert rows[2] == ['24 cores, 1 rank, at most', '9,000', '1,550', '24', '41', '900']
    assert rows[3][1:] == ['72,000', '12,400', '192', '328', '7,200']
    assert rows[4][1:] == ['6,067', '12,400', '192', '328', '607']
    stores = input_cost.store_table(FIGURES).split('\n')
    assert len(stores) == 2 + len(input_cost.STORES)
    assert stores[2].startswith('| 5 ms | 25% (longest 0.50 s) |')
    assert stores[-1].startswith('| 20 ms, 0.2% of them 0.5 s later |')
