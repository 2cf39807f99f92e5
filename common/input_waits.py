"""Measures how long the consumer of a dataset waits for each element."""
import tensorflow.compat.v1 as tf

_without_autograph = tf.autograph.experimental.do_not_convert


def timed(dataset, on_wait):
    """Returns `dataset` with a call of `on_wait(secs)` for each element.

    Args:
        dataset: tf.data.Dataset.
        on_wait: function of the seconds, a float, that `dataset` took to yield the element. The
            pipeline calls it, in a thread of its own.
    """
    clock = tf.data.Dataset.from_tensors(0).repeat().map(_without_autograph(
        lambda _: tf.timestamp()))

    @_without_autograph
    def report(start_secs, element, stop_secs):
        reported = tf.py_func(lambda secs: on_wait(float(secs)), [stop_secs - start_secs], [])
        with tf.control_dependencies([reported]):
            return tf.nest.map_structure(tf.identity, element)

    # Zip reads its inputs in order and prefetches nothing, so the two clocks enclose the element.
    return tf.data.Dataset.zip((clock, dataset, clock)).map(report)
