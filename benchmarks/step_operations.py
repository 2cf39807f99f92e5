"""Counts the operations of a training step: `python -m benchmarks.step_operations`.

Builds the graph of a step as a run does, counts the operations that its fetches need, and runs
nothing. On an NPU, a small kernel costs microseconds whatever it computes, and a large kernel costs
the bytes that it moves. With the test double of npu_bridge (test/fakes) on PYTHONPATH and JOB_ID
set, `--accelerator=npu` counts the graph for an NPU on any machine.
"""
import collections
import os

from absl import flags
import tensorflow.compat.v1 as tf

from benchmarks import network_flags
from benchmarks import operation_costs
from benchmarks import outputs
from common import app
from config import run_config
import runtime as runtimes
from tfrecords import schema
from training import inputs
from training import model_fn as model_fns
from training import summaries
from training import tensor_names

SMALL_BYTES = 64 * 1024
COLUMNS = ('nodes', 'kernels', 'small_kernels', 'fused_batch_norms', 'transposes', 'switches',
           'read_mb', 'written_mb', 'multiply_adds_m')


def define_flags():
    network_flags.define(flags, batch_size=128)
    flags.DEFINE_enum('accelerator', 'stock', ('stock', 'host', 'npu'), 'Runtime of the graph.')
    flags.DEFINE_string('loss_scale', None, 'none, dynamic, or a number from 1 on; default: '
                        'dynamic if the precision mode may use float16, otherwise none.')
    flags.DEFINE_enum('data_format', 'channels_last', ('channels_last', 'channels_first'),
                      'Layout of image tensors.')
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    """Counts the operations, prints the figures and the types, and writes --json."""
    options = flags.FLAGS
    outputs.check_json(options.json)
    with outputs.work_folder(None) as folder:
        figures, types = count(runtimes.select(run_config.from_values(dict(
            data_dir=schema.SYNTHETIC_DIR, model_dir=os.path.join(folder, 'run'), mode='train',
            model_name=options.model_name, batch_size=options.batch_size, train_steps=1,
            accelerator=options.accelerator, loss_scale=options.loss_scale,
            data_format=options.data_format))))
    print(table(figures))
    print('\n| operation | nodes |\n|---|--:|')
    for kind, number in types.most_common():
        print(f'| {kind} | {number} |')
    outputs.write_json(options.json, {**figures, 'types': dict(types)})


def step_operations(runtime):
    """Builds a training step; returns the set of operations that its session.run executes."""
    config = runtime.config
    with tf.Graph().as_default() as graph:
        tf.train.create_global_step()
        dataset = inputs.make_input(config, is_training=True).dataset()
        features, labels = tf.data.make_initializable_iterator(dataset).get_next()
        spec = model_fns.model_fn(features, labels, tf.estimator.ModeKeys.TRAIN,
                                  model_fns.make_params(config, runtime))
    names = (*tensor_names.PROGRESS, tensor_names.STEP)
    fetched = [spec.train_op, spec.loss.op, *(graph.get_operation_by_name(name) for name in names),
               *(tensor.op for tensor in summaries.marked_tensors(graph).values())]
    return needed_by(fetched)


def needed_by(fetched):
    """Returns the set of operations that a session.run of the `fetched` operations executes."""
    needed, waiting = set(), list(fetched)
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + operation.control_inputs
    return needed


def count(runtime):
    """Returns the figures of a training step, name -> number, and a Counter of operation types."""
    operations = step_operations(runtime)
    kernels = [operation for operation in operations
               if operation.type not in operation_costs.NO_KERNELS]
    fused, updates = _fused_batch_norms(operations)
    kernels = [operation for operation in kernels if operation not in updates]
    return {
        'nodes': len(operations),
        'kernels': len(kernels),
        'small_kernels': sum(_largest_bytes(operation) < SMALL_BYTES for operation in kernels),
        'fused_batch_norms': fused,
        'transposes': sum(operation.type == 'Transpose' for operation in kernels),
        'switches': sum(operation.type in operation_costs.SWITCHES for operation in operations),
        'read_mb': round(sum(operation_costs.num_bytes(tensor) for operation in kernels
                             for tensor in operation.inputs) / 1e6),
        'written_mb': round(sum(operation_costs.num_bytes(tensor) for operation in kernels
                                for tensor in operation.outputs) / 1e6),
        'multiply_adds_m': round(sum(map(operation_costs.multiply_adds, kernels)) / 1e6),
    }, collections.Counter(operation.type for operation in operations)


def _consumers(tensor, operations):
    """Returns the list of `operations` that read a tensor, directly or through an Identity."""
    found = []
    for operation in tensor.consumers():
        if operation in operations:
            found += (_consumers(operation.outputs[0], operations)
                      if operation.type == 'Identity' else [operation])
    return found


def _fused_update(statistic, operations):
    """Returns the operations of an update that CANN's engine fuses with the batch norm, or None.

    The engine fuses moving -= (moving - statistic) * constant if no other operation reads the
    statistic (docs/npu_bridge.md, section 8).
    """
    found = []
    for kind in ('Sub', 'Mul', 'AssignSub'):
        consumers = _consumers(statistic, operations)
        if [operation.type for operation in consumers] != [kind]:
            return None
        operation, = consumers
        if kind == 'Mul' and operation.inputs[1].op.type != 'Const':
            return None
        found.append(operation)
        statistic = operation.outputs[0]
    return found


def _fused_batch_norms(operations):
    """Returns (number of batch norms with two fused updates, operations of these updates)."""
    norms = [operation for operation in operations
             if operation.type.startswith('FusedBatchNorm') and 'Grad' not in operation.type]
    fused, updates = 0, set()
    for norm in norms:
        of_norm = [_fused_update(statistic, operations) for statistic in norm.outputs[1:3]]
        if None not in of_norm:
            fused += 1
            updates.update(of_norm[0] + of_norm[1])
    return fused, updates


def _largest_bytes(operation):
    return max(map(operation_costs.num_bytes, [*operation.inputs, *operation.outputs]), default=0)


def table(figures):
    return '\n'.join(['| a training step | |', '|---|--:|', *(
        f"| {name.replace('_', ' ')} | {figures[name]:,} |" for name in COLUMNS)])


if __name__ == '__main__':
    define_flags()
    app.run(main)
