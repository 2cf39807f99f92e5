"""Measures the time of each type of kernel on a CPU: `python -m benchmarks.kernel_table`.

TensorFlow traces a training step and an inference step on one batch of random images. The table
compares the multiply-adds of a kernel with the fastest matrix product of this machine, and the
bytes of its inputs and outputs with the fastest copy.
"""
import argparse
import collections
from concurrent import futures
import multiprocessing
import statistics
import time

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks import network_flags
from benchmarks import operation_costs
from benchmarks import outputs
from benchmarks import protocol
from benchmarks import tensorflow_step
from common import app
from runtime import stock

_WARM_UP_STEPS = 2
# Operations whose output shares the bytes of the input.
_VIEWS = {'Reshape', 'ExpandDims', 'Squeeze'}
# The matrix product and the copy are too large for caches; each is timed `_TRIES` times.
_PRODUCT_SIZE = 2048
_COPY_BYTES = 256 * 1024 * 1024
_TRIES = 5


def define_flags():
    network_flags.define(flags, batch_size=32)
    network_flags.define_image_size(flags)
    flags.DEFINE_integer('rounds', 5, 'Number of traced steps; figures are medians.', lower_bound=1)
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    """Measures both steps, prints their tables and writes --json."""
    options = flags.FLAGS
    outputs.check_json(options.json)
    image_size = network_flags.image_size(options)
    limits = {'product_gflops': round(_product_gflops(), 1),
              'copy_gb_per_sec': round(_copy_gb(), 1)}
    figures = dict(model_name=options.model_name, batch_size=options.batch_size,
                   image_size=image_size, **limits)
    for task in protocol.TASKS:
        figures[task] = measure(argparse.Namespace(
            contender=protocol.OURS, task=task, model_name=options.model_name,
            batch_size=options.batch_size, image_size=image_size), options.rounds)
        print(f'{task}: {table(figures[task], **limits)}\n', flush=True)
    outputs.write_json(options.json, figures)


def _product_gflops():
    """Returns the peak speed of a float32 matrix product in 10^9 operations per second.

    A multiplication and an addition count as two operations.
    """
    operands = np.random.RandomState(0).rand(2, _PRODUCT_SIZE, _PRODUCT_SIZE).astype(np.float32)
    return 2 * _PRODUCT_SIZE ** 3 / 1e9 / _least_secs(lambda: np.matmul(*operands))


def _copy_gb():
    """Returns the peak speed of a copy on all cores in 10^9 bytes per second, read plus written."""
    num_cores = multiprocessing.cpu_count()
    sources = np.ones([num_cores, _COPY_BYTES // num_cores], np.uint8)
    targets = np.zeros_like(sources)
    with futures.ThreadPoolExecutor(num_cores) as pool:
        return 2 * sources.size / 1e9 / _least_secs(
            lambda: list(pool.map(np.copyto, targets, sources)))


def _least_secs(function):
    secs = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        function()
        secs.append(time.perf_counter() - start)
    return min(secs)


def measure(worker_options, rounds):
    """Traces a step `rounds` times.

    Args:
      worker_options: see `tensorflow_step.build`.
      rounds: int.

    Returns:
      dict: 'step_ms', the median time of a step; 'kernels', see `summarize`.
    """
    config = tensorflow_step.make_config(worker_options)
    runtime = stock.StockRuntime(config)
    session_config = runtime.training_session_config
    # Kernels run one at a time on all cores, so that none slows down another.
    session_config.inter_op_parallelism_threads = 1
    with tf.Graph().as_default(), tf.Session(config=session_config) as session:
        tf.set_random_seed(1)
        fetches = tensorflow_step.build(worker_options, config, runtime)
        # The moving averages, local variables, are initialized from the weights.
        session.run(tf.global_variables_initializer())
        session.run(tf.local_variables_initializer())
        for _ in range(_WARM_UP_STEPS):
            session.run(fetches)
        step_secs, traces = [], []
        for number in range(rounds):
            start = time.perf_counter()
            session.run(fetches)
            step_secs.append(time.perf_counter() - start)
            metadata = tf.RunMetadata()
            session.run(fetches, run_metadata=metadata, options=tf.RunOptions(
                trace_level=tf.RunOptions.FULL_TRACE, output_partition_graphs=not number))
            traces.append(_kernel_ms(metadata.step_stats))
            if not number:
                operations = _operations(metadata.partition_graphs)
    return {'step_ms': round(1e3 * statistics.median(step_secs), 2),
            'kernels': summarize(operations, traces)}


def _kernel_ms(step_stats):
    """Returns node name -> milliseconds of its kernel."""
    return {stats.node_name: stats.op_end_rel_nanos / 1e6 - stats.op_start_rel_nanos / 1e6
            for device in step_stats.dev_stats for stats in device.node_stats}


def _operations(graph_defs):
    """Returns the operations that a step runs after TensorFlow's graph optimization, a list."""
    operations = []
    for graph_def in graph_defs:
        # _Retval nodes, which return the fetches, have names that import_graph_def rejects.
        nodes = [node for node in graph_def.node if node.op != '_Retval']
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(tf.GraphDef(node=nodes, versions=graph_def.versions), name='')
        operations += graph.get_operations()
    return operations


def summarize(operations, traces):
    """Returns the cost of each type of kernel, the most expensive first.

    Args:
      operations: list of tf.Operation that a step runs.
      traces: list of dicts, operation name -> milliseconds.

    Returns:
      list of dicts: 'type'; 'count'; 'ms' per step, the median of the traces; 'share' of the time
      of all kernels; 'multiply_adds_m', millions of multiply-adds; 'mb', millions of bytes read and
      written.
    """
    of_type = collections.defaultdict(list)
    for operation in operations:
        if operation.name in traces[0] and operation.type not in operation_costs.NO_KERNELS:
            of_type[operation.type].append(operation)
    rows = [dict(
        type=kind, count=len(found),
        ms=statistics.median(sum(trace.get(operation.name, 0) for operation in found)
                             for trace in traces),
        multiply_adds_m=round(sum(map(operation_costs.multiply_adds, found)) / 1e6, 3),
        mb=round(sum(map(_moved_bytes, found)) / 1e6, 3),
    ) for kind, found in of_type.items()]
    total = sum(row['ms'] for row in rows)
    return [dict(row, ms=round(row['ms'], 3), share=round(row['ms'] / total, 4))
            for row in sorted(rows, key=lambda row: -row['ms'])]


def _moved_bytes(operation):
    if operation.type in _VIEWS:
        return 0
    return sum(map(operation_costs.num_bytes, [*operation.inputs, *operation.outputs]))


def table(figures, product_gflops, copy_gb_per_sec):
    """Returns a Markdown table of a step: time of each kernel, and share of the two limits."""
    lines = [f"{figures['step_ms']:.1f} ms a step; limits: {product_gflops:.0f} GFLOP/s, "
             f'{copy_gb_per_sec:.0f} GB/s', '',
             '| kernel | count | ms | share | of the product limit | of the copy limit |',
             '|---|--:|--:|--:|--:|--:|']
    for row in figures['kernels']:
        secs = row['ms'] / 1e3
        shares = [f'{amount / 1e3 / secs / limit:.0%}' if amount and secs else ''
                  for amount, limit in ((2 * row['multiply_adds_m'], product_gflops),
                                        (row['mb'], copy_gb_per_sec))]
        lines.append('| {type} | {count} | {ms:.1f} | {share:.1%} | '.format(**row)
                     + ' | '.join(shares) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    define_flags()
    app.run(main)
