"""The TensorFlow contenders of `benchmarks.protocol`: this program, or the per-example loop.

Training runs as in main.py, which leaves out TensorFlow's graph optimizer on a CPU, or with it.
Under an interpreter with intel-tensorflow, the program uses the kernels of oneDNN.
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
    # The per-example loop uses TensorFlow's defaults; the program has the session of main.py.
    runtime, session_config = None, None
    if options.contender != protocol.NAIVE:
        runtime = stock.StockRuntime(config)
        is_optimized = options.contender == protocol.OPTIMIZED or options.task == protocol.INFER
        session_config = (
            runtime.session_config if is_optimized else runtime.training_session_config)
    fetches = tensorflow_step.build(options, config, runtime)
    # The graph of a training run also contains a saver.
    if options.task == protocol.TRAIN:
        tf.train.Saver()
    init_ops = tf.global_variables_initializer(), tf.local_variables_initializer()
    build_secs = time.monotonic() - start

    start = time.monotonic()
    session = tf.Session(config=session_config)
    for init_op in init_ops:
        session.run(init_op)
    # The kernel of the stem, the last optimizer slot, and the last moving average.
    watched = [tf.trainable_variables()[0], tf.global_variables()[-1]]
    if options.contender != protocol.NAIVE:
        watched.append(tf.local_variables()[-1])
    initial_values = session.run(watched) if options.task == protocol.TRAIN else []
    loss_first = float(session.run(fetches)[0])
    first_step_secs = time.monotonic() - start

    def check():
        """Raises RuntimeError if the steps left a watched variable unchanged."""
        for initial, value in zip(initial_values, session.run(watched)):
            if np.array_equal(initial, value):
                raise RuntimeError(f'{options.contender}: the training steps left a variable '
                                   'unchanged.')

    protocol.serve(lambda: float(session.run(fetches)[0]), dict(
        build_secs=build_secs, first_step_secs=first_step_secs, loss_first=loss_first,
        step_nodes=count_step_nodes(session, fetches),
        graph_nodes=len(tf.get_default_graph().get_operations())), check)


def count_step_nodes(session, fetches):
    """Returns the number of nodes of a step, after pruning and TensorFlow's graph optimization."""
    metadata = tf.RunMetadata()
    session.run(fetches, options=tf.RunOptions(output_partition_graphs=True),
                run_metadata=metadata)
    return sum(len(graph.node) for graph in metadata.partition_graphs)


if __name__ == '__main__':
    main()
