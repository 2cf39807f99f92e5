"""A TensorFlow contender as `benchmarks.protocol` wants it: ours or the naive one.

Under an interpreter that has intel-tensorflow, the first one is that of oneDNN's kernels.
"""
import time

import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks import protocol
from benchmarks import tensorflow_step
from runtime import stock


def main():
    options = protocol.parse_options()
    tf.get_logger().setLevel('ERROR')
    tf.set_random_seed(1)
    start = time.monotonic()
    config = tensorflow_step.make_config(options)
    # The naive contender runs as TensorFlow comes, ours as main.py runs it.
    runtime, session_config = None, None
    if options.contender != protocol.NAIVE:
        runtime = stock.StockRuntime(config)
        session_config = runtime.session_config
    fetches = tensorflow_step.build(options, config, runtime)
    # What a training run has in its graph as well.
    if options.task == protocol.TRAIN:
        tf.train.Saver()
    init_ops = tf.global_variables_initializer(), tf.local_variables_initializer()
    build_secs = time.monotonic() - start

    start = time.monotonic()
    session = tf.Session(config=session_config)
    for init_op in init_ops:
        session.run(init_op)
    # The stem's kernel, the last of the optimizer's slots, and the last of the averages.
    watched = [tf.trainable_variables()[0], tf.global_variables()[-1]]
    if options.contender != protocol.NAIVE:
        watched.append(tf.local_variables()[-1])
    initial_values = session.run(watched) if options.task == protocol.TRAIN else []
    loss_first = float(session.run(fetches)[0])
    first_step_secs = time.monotonic() - start

    def check():
        """That every step did all of its work."""
        for initial, value in zip(initial_values, session.run(watched)):
            if np.array_equal(initial, value):
                raise RuntimeError('The weights did not move.')

    protocol.serve(lambda: float(session.run(fetches)[0]), dict(
        build_secs=build_secs, first_step_secs=first_step_secs, loss_first=loss_first,
        step_nodes=count_step_nodes(session, fetches),
        graph_nodes=len(tf.get_default_graph().get_operations())), check)


def count_step_nodes(session, fetches):
    """Nodes that a step runs: those of its graph after pruning and TensorFlow's optimisations."""
    metadata = tf.RunMetadata()
    session.run(fetches, options=tf.RunOptions(output_partition_graphs=True),
                run_metadata=metadata)
    return sum(len(graph.node) for graph in metadata.partition_graphs)


if __name__ == '__main__':
    main()
