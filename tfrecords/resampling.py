"""Repeats and leaves out the records of a dataset, each as often as its class asks for."""
import numpy as np
import tensorflow.compat.v1 as tf

# Of a record's hash: as many as float64 tells apart.
_NUM_PHASES = 2 ** 52
# No record, bad or good, is this.
_END_OF_EPOCH = b'\0end of epoch'

_without_autograph = tf.autograph.experimental.do_not_convert


def resampled(records, parse, rates, start_epoch=0):
    """Repeats the epochs of a dataset without end, with each record a number of times.

    In epoch e, counted from 0, a record of rate r comes floor((e + 1) r + p) - floor(e r + p)
    times, where its phase p in [0, 1) is a hash of the record. The number depends on nothing else:
    no generator, rank or order. E epochs have each record E r times, rounded up or down.

    Args:
        records: tf.data.Dataset of string scalars; an epoch.
        parse: function of a record -> (its image file, its class), a string and an integer scalar.
        rates: times an epoch for the records of each class, float from 0 on.
        start_epoch: int, number of the first epoch.

    Returns:
        tf.data.Dataset of string scalars. The copies of a record follow one another.
    """
    rates = tf.constant(rates, tf.float64)

    @_without_autograph
    def number(epoch, record):
        return epoch + tf.cast(tf.equal(record, _END_OF_EPOCH), tf.int64), (epoch, record)

    @_without_autograph
    def copies(epoch, record):
        _, class_index = parse(record)
        rate = tf.gather(rates, class_index)
        phase = tf.cast(tf.strings.to_hash_bucket_fast(record, _NUM_PHASES), tf.float64)
        start = tf.cast(epoch, tf.float64) * rate + phase / _NUM_PHASES
        count = tf.floor(start + rate) - tf.floor(start)
        return tf.data.Dataset.from_tensors(record).repeat(tf.cast(count, tf.int64))

    epochs = records.concatenate(tf.data.Dataset.from_tensors(_END_OF_EPOCH)).repeat().apply(
        tf.data.experimental.scan(np.int64(start_epoch), number))
    return epochs.filter(_without_autograph(
        lambda _, record: tf.not_equal(record, _END_OF_EPOCH))).flat_map(copies)
