"""Operation types of each graph that a device is given: no change brings one that it does not take.

golden/npu_operations.txt has those in use, each of which CANN takes onto an Ascend 910 without a
condition (docs/npu_bridge.md, section 8).
"""
import contextlib
import dataclasses
import importlib
import os
from unittest import mock

import pytest
import tensorflow.compat.v1 as tf

from benchmarks import step_operations
from config import run_config
import runtime as runtimes
from training import model_fn as model_fns

TEST_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = dict(data_dir='synthetic', width_coefficient=0.25, depth_coefficient=0.25, batch_size=4,
             input_image_size=64, num_label_classes=10, train_steps=1, accelerator='npu')
# The double's flag of the hardware, in place of NpuGetFloatStatus; and the input, which npu_bridge
# feeds to the device.
NOT_OF_THE_DEVICE = {'PyFunc', 'IteratorV2', 'IteratorGetNext'}


@pytest.fixture
def make_runtime(monkeypatch, tmp_path):
    """make_runtime(setting=value, ...) -> NPURuntime on the double of the latest release."""
    monkeypatch.syspath_prepend(os.path.join(TEST_DIR, 'fakes'))
    fake_npu = importlib.import_module('fake_npu')
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        for name in ('RANK_SIZE', 'RANK_ID', 'RANK_TABLE_FILE', 'TF_CONFIG'):
            os.environ.pop(name, None)
        stack.enter_context(fake_npu.installed('r1.15.0'))
        yield lambda **values: runtimes.select(run_config.from_values(
            {**SMALL, 'model_dir': str(tmp_path / 'run'), **values}))


@pytest.mark.slow
def test_a_step_is_made_of_few_kernels(make_runtime):
    """As docs/npu_bridge.md tells."""
    network = dict(model_name='efficientnet-condconv-b0-8e', width_coefficient=None,
                   depth_coefficient=None, batch_size=128, input_image_size=224,
                   num_label_classes=1000)
    last, first = [
        step_operations.count(make_runtime(mode='train', data_format=data_format, **network))[0]
        for data_format in ('channels_last', 'channels_first')]
    assert last['kernels'] <= 2900 and last['small_kernels'] <= 900
    assert last['fused_batch_norms'] == first['fused_batch_norms'] == 49
    with open(os.path.join(os.path.dirname(TEST_DIR), 'docs', 'npu_bridge.md')) as file:
        assert (f"they are {last['kernels']:,} ({first['kernels']:,} with channels_first), "
                f"{last['small_kernels']} ({first['small_kernels']}) of them") in file.read()


@pytest.mark.parametrize('values', [
    dict(model_name='efficientnet-condconv-b0-4e', log_gradient_norm=True),
    dict(model_name='efficientnet-condconv-b0-4e', data_format='channels_first', optimizer='lars',
         input_image_size='33x64', normalization='advprop',
         loss_scale='none', mixup_alpha=0.2, lr_schedule='poly'),
    dict(model_name='efficientnet-condconv-b0-4e', depthwise_condconv='experts',
         freeze='all_but_head', init_checkpoint='/some', optimizer='momentum'),
    dict(model_name='efficientnet-condconv-b0-4e', depthwise_condconv='loop',
         head_learning_rate_multiplier=2.0),
    dict(model_name='efficientnet-b0', lr_schedule='cosine', loss_scale='1024'),
    dict(model_name='efficientnet-b0', optimizer='adamw', head_learning_rate_multiplier=2.0,
         gradient_clip_norm=1.0, gradient_accumulation_steps=2),
    dict(model_name='efficientnet-lite0', transpose_input=True, optimizer='sgd',
         moving_average_decay=0.0, mixup_alpha=0.2, cutmix_alpha=1.0, loss='binary_cross_entropy'),
    dict(model_name='efficientnet-edgetpu-S', data_format='channels_first', weight_decay=0.0,
         lr_schedule='constant')], ids=str)
def test_training(make_runtime, check_operations, monkeypatch, values):
    # There is no such checkpoint: its variables would be read by the CPU, once.
    monkeypatch.setattr(model_fns, '_start_from_checkpoint', lambda *_: None)
    figures, types = step_operations.count(make_runtime(mode='train', **values))
    check_operations(set(types) - NOT_OF_THE_DEVICE)
    if 'freeze' not in values:
        assert figures['fused_batch_norms'] == types['FusedBatchNormV3']


def test_weighted_classes(make_runtime, check_operations):
    runtime = make_runtime(mode='train', model_name='efficientnet-lite0', mixup_alpha=0.2)
    runtime.config = dataclasses.replace(runtime.config, class_weights=(0.5,) * 10)
    _, types = step_operations.count(runtime)
    check_operations(set(types) - NOT_OF_THE_DEVICE)


@pytest.mark.parametrize('values', [
    dict(model_name='efficientnet-condconv-b0-4e'),
    dict(model_name='efficientnet-b0', data_format='channels_first'),
    dict(model_name='efficientnet-lite0', transpose_input=True),
    dict(model_name='efficientnet-edgetpu-S')], ids=str)
def test_evaluation(make_runtime, check_operations, values):
    runtime = make_runtime(mode='train_and_eval', **values)
    estimator = runtime.build_estimator(
        model_fns.model_fn, model_fns.make_params(runtime.config, runtime))
    shape = [64, 64, 3, 4] if 'transpose_input' in values else [4, 64, 64, 3]
    with tf.Graph().as_default():
        spec = estimator.model_fn(
            tf.placeholder(tf.float32, shape),
            {'label': tf.placeholder(tf.int32, [4]), 'weight': tf.placeholder(tf.float32, [4])},
            tf.estimator.ModeKeys.EVAL, estimator.config)
    fetched = [tensor.op for pair in spec.eval_metric_ops.values() for tensor in pair]
    check_operations({operation.type for operation in step_operations.needed_by(fetched)})
