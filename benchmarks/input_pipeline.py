"""Measures input throughput: `python -m benchmarks.input_pipeline --json=FILE`.

Four pipelines are measured: training without augmentation, with AutoAugment and with
RandAugment(2, 10), and evaluation. Each is compared with a ceiling, which only reads and parses the
same records and decodes the same crops. A pipeline and its ceiling are separate processes that take
turns, and the ratio of their speeds is the result.

The images are the photographs of `benchmarks.photos`, resized to 500 x 375 pixels and encoded with
quality 97: 103 kB each, close to ImageNet's 110 kB at 469 x 387 pixels.
"""
import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import time

from absl import flags
from PIL import Image
import tensorflow.compat.v1 as tf

import autoaugment
from benchmarks import outputs
from benchmarks import photos
from benchmarks import protocol
from common import app
import imagenet_input
import preprocessing
from tfrecords import schema

IMAGE_WIDTH, IMAGE_HEIGHT = 500, 375
JPEG_QUALITY = 97
NUM_SHARDS = 16
RECORDS_PER_SHARD = 100
IMAGE_SIZE = 224
BATCH_SIZE = 32
WARM_UP_BATCHES = 20
BATCHES_PER_ROUND = 16

CASES = {
    'train_none': dict(is_training=True),
    'train_autoaugment': dict(is_training=True, augment='autoaugment'),
    'train_randaugment': dict(is_training=True, augment='randaugment'),
    'eval': dict(is_training=False),
}
RANDAUGMENT_LAYERS, RANDAUGMENT_MAGNITUDE = 2, 10


def define_flags():
    flags.DEFINE_string('json', None, 'File to write the figures to.')
    flags.DEFINE_integer('rounds', 15, 'Times that a pipeline and its ceiling take turns.',
                         lower_bound=1)


def write_data(data_dir):
    """Writes the photographs as training shards and links the same files as validation shards."""
    encoded = []
    for photo in photos.load():
        side = (IMAGE_WIDTH - IMAGE_HEIGHT) // 2
        photo = photo.resize([IMAGE_WIDTH, IMAGE_WIDTH], Image.BICUBIC).crop(
            [0, side, IMAGE_WIDTH, side + IMAGE_HEIGHT])
        file = io.BytesIO()
        photo.save(file, 'JPEG', quality=JPEG_QUALITY)
        encoded.append(file.getvalue())
    for shard in range(NUM_SHARDS):
        name = os.path.join(data_dir, schema.shard_name(schema.TRAIN, shard, NUM_SHARDS))
        with tf.io.TFRecordWriter(name) as writer:
            for record in range(RECORDS_PER_SHARD):
                index = (shard + record) % len(encoded)
                writer.write(schema.serialize_example(
                    encoded=encoded[index], image_format='JPEG', height=IMAGE_HEIGHT,
                    width=IMAGE_WIDTH, channels=3, filename=f'{index}.jpg', label=1 + index,
                    text=''))
        os.link(name, os.path.join(
            data_dir, schema.shard_name(schema.VALIDATION, shard, NUM_SHARDS)))


def make_input(data_dir, is_training, augment=None):
    return imagenet_input.ImageNetInput(
        data_dir=data_dir, is_training=is_training, image_size=IMAGE_SIZE, batch_size=BATCH_SIZE,
        augment=autoaugment.augmentation(augment, RANDAUGMENT_LAYERS, RANDAUGMENT_MAGNITUDE))


def make_ceiling(images_input):
    """Returns a dataset that only decodes: its batches hold one value of each decoded crop."""
    def decode(record):
        image_bytes = tf.io.parse_single_example(record, {
            schema.IMAGE_ENCODED: tf.io.FixedLenFeature([], tf.string)})[schema.IMAGE_ENCODED]
        shape = tf.image.extract_jpeg_shape(image_bytes)[:2]
        if images_input.is_training:
            crop_window = preprocessing.random_crop_window(shape, IMAGE_SIZE, seed=0)
        else:
            crop_window = preprocessing.center_crop_window(shape, IMAGE_SIZE)
        image = tf.image.decode_and_crop_jpeg(image_bytes, crop_window, channels=3)
        return image[0, 0, 0]

    options = tf.data.Options()
    options.experimental_threading.max_intra_op_parallelism = 1
    options.experimental_deterministic = not images_input.is_training
    return images_input.records().map(
        tf.autograph.experimental.do_not_convert(decode), len(os.sched_getaffinity(0))).batch(
            BATCH_SIZE).with_options(options).prefetch(imagenet_input.PREFETCHED_BATCHES)


def serve(connection, data_dir, case, is_ceiling):
    """Runs a pipeline in a process of its own and reports its speed.

    Sends the cost of the start first. For each number of batches that it receives, it fetches them
    and sends (images per second, milliseconds of one core per image). Receiving 0 ends it, with the
    peak memory in MB as the last message.
    """
    tf.logging.set_verbosity(tf.logging.ERROR)
    start = time.monotonic()
    images_input = make_input(data_dir, **CASES[case])
    with tf.Graph().as_default() as graph, tf.Session() as session:
        dataset = make_ceiling(images_input) if is_ceiling else images_input.dataset()
        # An evaluation dataset is finite.
        iterator = tf.data.make_initializable_iterator(
            dataset if images_input.is_training else dataset.repeat())
        # Runs the operations only: fetching the values would copy the batch once more.
        batch = [tensor.op for tensor in tf.nest.flatten(iterator.get_next())]
        session.run(iterator.initializer)
        session.run(batch)
        connection.send(dict(first_batch_secs=time.monotonic() - start,
                             graph_nodes=count_nodes(graph.as_graph_def())))
        while True:
            num_batches = connection.recv()
            if not num_batches:
                break
            start, cpu_start = time.monotonic(), time.process_time()
            for _ in range(num_batches):
                session.run(batch)
            num_images = num_batches * BATCH_SIZE
            connection.send((num_images / (time.monotonic() - start),
                             (time.process_time() - cpu_start) * 1000 / num_images))
    connection.send(protocol.peak_rss_mb())


def count_nodes(graph_def):
    """Returns the number of nodes in a graph and in its functions."""
    return len(graph_def.node) + sum(
        len(function.node_def) for function in graph_def.library.function)


@contextlib.contextmanager
def started(*args):
    """Yields the connection to a process that runs `serve(*args)`."""
    context = multiprocessing.get_context('spawn')
    connection, other_end = context.Pipe()
    process = context.Process(target=serve, args=(other_end, *args), daemon=True)
    process.start()
    other_end.close()
    yield connection
    process.join()


def take_turns(pipeline, ceiling, rounds):
    """Returns one pair per round: what `serve` reports for the pipeline and for its ceiling."""
    def run(connection, num_batches):
        connection.send(num_batches)
        return connection.recv()

    for connection in (pipeline, ceiling):
        run(connection, WARM_UP_BATCHES)
    pairs = []
    for _ in range(rounds):
        pair = []
        for connection in (pipeline, ceiling):
            # Batches that were prefetched during the other one's turn do not count.
            run(connection, 2 * imagenet_input.PREFETCHED_BATCHES)
            pair.append(run(connection, BATCHES_PER_ROUND))
        pairs.append(pair)
    return pairs


def measure(data_dir, case, rounds):
    """Returns the figures of a case, as they are in the JSON file."""
    with started(data_dir, case, False) as pipeline:
        figures = pipeline.recv()
        with started(data_dir, case, True) as ceiling:
            ceiling.recv()
            pairs = take_turns(pipeline, ceiling, rounds)
            ceiling.send(0)
            ceiling.recv()
        pipeline.send(0)
        peak = pipeline.recv()

    def median(value):
        return statistics.median(value(*pair) for pair in pairs)

    return {
        'images_per_sec': round(median(lambda own, _: own[0]), 1),
        'ceiling_images_per_sec': round(median(lambda _, ceiling: ceiling[0]), 1),
        'ratio_to_ceiling': round(median(lambda own, ceiling: own[0] / ceiling[0]), 3),
        'core_ms_per_image': round(median(lambda own, _: own[1]), 3),
        'ceiling_core_ms_per_image': round(median(lambda _, ceiling: ceiling[1]), 3),
        'peak_rss_mb': round(peak, 1),
        'first_batch_secs': round(figures['first_batch_secs'], 2),
        'graph_nodes': figures['graph_nodes'],
    }


def main(argv):
    """Prints one line for each case."""
    del argv
    outputs.check_json(flags.FLAGS.json)
    measured = {}
    with tempfile.TemporaryDirectory(prefix='input-pipeline-') as data_dir:
        write_data(data_dir)
        for case in CASES:
            measured[case] = measure(data_dir, case, flags.FLAGS.rounds)
            print(f'{case:18}', '  '.join(
                f'{name} {value}' for name, value in measured[case].items()), flush=True)
    outputs.write_json(flags.FLAGS.json, measured)


if __name__ == '__main__':
    define_flags()
    app.run(main)
