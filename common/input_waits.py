"""Measures how long the consumer of a dataset waits for its elements."""
import tensorflow.compat.v1 as tf

_without_autograph = tf.autograph.experimental.do_not_convert


def timed(dataset, on_wait):
    """Calls `on_wait(secs)` from within the pipeline with the time that each element took."""
    clock = tf.data.Dataset.from_tensors(0).repeat().map(_without_autograph(
        lambda _: tf.timestamp()))

    @_without_autograph
    def report(start_secs, element, stop_secs):
        reported = tf.py_func(lambda secs: on_wait(float(secs)), [stop_secs - start_secs], [])
        with tf.control_dependencies([reported]):
            return tf.nest.map_structure(tf.identity, element)

    # Zip reads its inputs one after the other, and nothing in advance.
    return tf.data.Dataset.zip((clock, dataset, clock)).map(report)
