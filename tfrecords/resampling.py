"""Resamples a dataset by class: repeats or drops records at a rate per class."""
import numpy as np
import tensorflow.compat.v1 as tf

# Values of a record's hash, each exact in float64.
_NUM_PHASES = 2 ** 52
# Marks the end of an epoch; a serialized Example cannot be equal to it.
_END_OF_EPOCH = b'\0end of epoch'

_without_autograph = tf.autograph.experimental.do_not_convert


def resampled(records, parse, rates, start_epoch=0):
    """Returns an endless dataset of epochs in which each record occurs at the rate of its class.

    In epoch e, counted from 0, a record of rate r occurs floor((e + 1) r + p) - floor(e r + p)
    times, where its phase p in [0, 1) is a hash of the record. The count depends on no random
    generator, rank or order. E epochs contain each record E r times, rounded up or down.

    Args:
        records: tf.data.Dataset of string scalars, one epoch.
        parse: function of a record -> (image file, class), string and integer scalars.
        rates: list of float >= 0, mean occurrences per epoch of the records of each class.
        start_epoch: int, number of the first epoch.

    Returns:
        tf.data.Dataset of string scalars. The copies of a record are adjacent.
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
