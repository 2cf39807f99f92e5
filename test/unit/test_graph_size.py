"""How large the graph of a training step is: it must not grow with the batch."""
import argparse
import functools

import pytest
import tensorflow.compat.v1 as tf

from benchmarks import protocol
from benchmarks import step_operations
from benchmarks import tensorflow_step
from config import run_config
from runtime import stock
from training import summaries

MODEL = 'efficientnet-condconv-b0-8e'
BATCH_SIZES = (32, 8)


@functools.lru_cache(maxsize=1)
def training_graph(batch_size, computes_on_cpu):
    """(graph of a default training run with its saver, the fetches of a step that is watched)."""
    options = argparse.Namespace(
        contender=protocol.OURS, task=protocol.TRAIN, model_name=MODEL, batch_size=batch_size,
        image_size=224)
    config = tensorflow_step.make_config(options)
    runtime = stock.StockRuntime(config)
    runtime.computes_on_cpu = computes_on_cpu
    with tf.Graph().as_default() as graph:
        fetches = tensorflow_step.build(options, config, runtime)
        tf.train.Saver()
    watched = summaries.marked_tensors(graph)
    assert {'watched/scalars/gradient_norm', 'watched/routing/block_9', 'watched/images'} <= set(
        watched)
    return graph, [*fetches, *watched.values()]


def count_nodes(graph, fetches):
    """(nodes a step needs, before any optimisation; all nodes)."""
    names = [getattr(fetch, 'op', fetch).name for fetch in fetches]
    step = tf.graph_util.extract_sub_graph(graph.as_graph_def(), names)
    return len(step.node), len(graph.get_operations())


@pytest.mark.slow
@pytest.mark.parametrize('computes_on_cpu, most_step_nodes, most_nodes', [
    (True, 7500, 15000), (False, 6500, 14000)])
def test_graph_is_small_at_any_batch(computes_on_cpu, most_step_nodes, most_nodes):
    counts = {count_nodes(*training_graph(batch_size, computes_on_cpu))
              for batch_size in BATCH_SIZES}
    assert len(counts) == 1
    step_nodes, all_nodes = counts.pop()
    assert step_nodes <= most_step_nodes
    assert all_nodes <= most_nodes


@pytest.mark.slow
def test_accelerators_get_plain_ops_of_known_shape():
    _, fetches = training_graph(8, computes_on_cpu=False)
    operations = step_operations.needed_by([getattr(fetch, 'op', fetch) for fetch in fetches])
    names = {operation.type for operation in operations}
    assert {'Conv2D', 'DepthwiseConv2dNative', 'BatchMatMul'} <= names
    assert not {'IdentityN', 'SoftplusGrad', 'While', 'Switch', 'SplitV'} & names
    for operation in operations:
        if operation.type in ('Conv2D', 'DepthwiseConv2dNative', 'BatchMatMul'):
            assert operation.outputs[0].shape.is_fully_defined(), operation.name


@pytest.mark.parametrize('is_fused', [True, False])
def test_an_npu_fuses_the_update_of_every_batch_norm(tmp_path, is_fused):
    runtime = stock.StockRuntime(run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': str(tmp_path), 'train_steps': 1, 'batch_size': 8,
        'mode': 'train', 'model_name': MODEL, 'width_coefficient': 0.25,
        'depth_coefficient': 0.25, 'input_image_size': 32}))
    runtime.computes_on_cpu, runtime.fuses_batch_norm_update = False, is_fused
    figures, types = step_operations.count(runtime)
    assert types['FusedBatchNormV3'] > 20
    assert figures['fused_batch_norms'] == types['FusedBatchNormV3'] * is_fused


@pytest.mark.slow
def test_what_an_npu_leaves_to_its_cpu_is_not_in_a_step():
    graph, _ = training_graph(8, computes_on_cpu=False)
    assert not {'InTopK', 'InTopKV2', 'IsFinite', 'TopKV2'} & {
        operation.type for operation in graph.get_operations()}
