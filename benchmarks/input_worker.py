"""A contender of `benchmarks.protocol`: the input pipeline of this program, or a part of it.

A step fetches a batch and returns the seconds that it waited.
"""
import argparse
import math
import os
import time

import tensorflow.compat.v1 as tf

import autoaugment
from benchmarks import protocol
import imagenet_input
import preprocessing
from tfrecords import reader
from tfrecords import schema

RANDAUGMENT_LAYERS, RANDAUGMENT_MAGNITUDE = 2, 10


def parse_options(arguments=None):
    """Returns the options of command-line arguments; by default, of this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--helpfull', action='help', help='the same as --help')
    parser.add_argument('--data_dir', required=True, help='directory of the shards')
    parser.add_argument('--image_size', type=int, required=True)
    parser.add_argument('--batch_size', type=int, required=True)
    parser.add_argument('--is_training', action='store_true')
    parser.add_argument('--augment', choices=('autoaugment', 'randaugment'))
    part = parser.add_mutually_exclusive_group()
    part.add_argument('--is_ceiling', action='store_true',
                      help='only read, parse and decode the same crops')
    part.add_argument('--is_reader', action='store_true', help='only read and shuffle records')
    parser.add_argument('--read_ahead_mb', type=int, default=reader.READ_AHEAD_MB)
    parser.add_argument('--batches_per_sec', type=float, default=math.inf,
                        help='pause after each batch, like a device with this speed')
    return parser.parse_args(arguments)


def make_ceiling(images_input):
    """Returns a dataset that only decodes; its batches have one value of each decoded crop."""
    def decode(record):
        image_bytes = tf.io.parse_single_example(record, {
            schema.IMAGE_ENCODED: tf.io.FixedLenFeature([], tf.string)})[schema.IMAGE_ENCODED]
        shape = tf.image.extract_jpeg_shape(image_bytes)[:2]
        if images_input.is_training:
            crop_window = preprocessing.random_crop_window(shape, images_input.image_size, seed=0)
        else:
            crop_window = preprocessing.center_crop_window(shape, images_input.image_size)
        image = tf.image.decode_and_crop_jpeg(image_bytes, crop_window, channels=3)
        return image[0, 0, 0]

    options = tf.data.Options()
    options.experimental_threading.max_intra_op_parallelism = 1
    options.experimental_deterministic = not images_input.is_training
    return images_input.records().map(
        tf.autograph.experimental.do_not_convert(decode), len(os.sched_getaffinity(0))).batch(
            images_input.batch_size).with_options(options).prefetch(
                imagenet_input.PREFETCHED_BATCHES)


def make_dataset(options):
    """Returns the dataset to measure; a step fetches one batch."""
    images_input = imagenet_input.ImageNetInput(
        data_dir=options.data_dir, is_training=options.is_training, image_size=options.image_size,
        batch_size=options.batch_size, read_ahead_mb=options.read_ahead_mb,
        augment=autoaugment.augmentation(
            options.augment, RANDAUGMENT_LAYERS, RANDAUGMENT_MAGNITUDE))
    if options.is_ceiling:
        return make_ceiling(images_input)
    if options.is_reader:
        return images_input.records().map(tf.autograph.experimental.do_not_convert(
            lambda record: 0)).batch(options.batch_size)
    return images_input.dataset()


def count_nodes(graph_def):
    """Returns the number of nodes in a graph and in its functions."""
    return len(graph_def.node) + sum(
        len(function.node_def) for function in graph_def.library.function)


def main():
    options = parse_options()
    tf.get_logger().setLevel('ERROR')
    start = time.monotonic()
    dataset = make_dataset(options)
    # An evaluation dataset is finite.
    iterator = tf.data.make_initializable_iterator(
        dataset if options.is_training else dataset.repeat())
    # Fetches operations, not values, because values would copy the batch once more.
    batch = [tensor.op for tensor in tf.nest.flatten(iterator.get_next())]
    with tf.Session() as session:
        session.run(iterator.initializer)
        session.run(batch)

        def step():
            start = time.monotonic()
            session.run(batch)
            waited_secs = time.monotonic() - start
            if options.batches_per_sec < math.inf:
                time.sleep(1 / options.batches_per_sec)
            return waited_secs

        protocol.serve(step, dict(
            first_batch_secs=time.monotonic() - start,
            buffered_batches=2 * imagenet_input.PREFETCHED_BATCHES,
            graph_nodes=count_nodes(session.graph_def),
            open_files=len(os.listdir('/proc/self/fd'))))


if __name__ == '__main__':
    main()
