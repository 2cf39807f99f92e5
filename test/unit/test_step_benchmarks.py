"""The benchmarks of a whole step: their contenders are equal, and their files say what they say."""
import argparse
import json
import math
import os
import subprocess
import sys

import golden_weights
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from analysis import complexity
from benchmarks import contenders
from benchmarks import kernel_table
from benchmarks import naive_condconv
from benchmarks import protocol
from benchmarks import summary_overhead
from common.errors import UserError
import efficientnet_builder
import model_builder_factory

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = 'efficientnet-condconv-b0-4e'
FIGURES = {'images_per_sec', 'build_secs', 'first_step_secs', 'step_nodes', 'graph_nodes',
           'peak_rss_mb', 'loss_first', 'loss_last'}


@pytest.mark.slow
@pytest.mark.parametrize('training', [False, True])
def test_the_per_example_loop_is_the_same_network(training):
    images = (golden_weights.patch_images(3, 63) / 128 - 1).astype(np.float32)
    overrides = dict(width_coefficient=0.5, depth_coefficient=0.5, dropout_rate=0.0,
                     survival_prob=1.0, num_classes=5)
    results = []
    ours = model_builder_factory.get_model_builder(MODEL).build_model
    for build_model in (naive_condconv.build_model, ours):
        with tf.Graph().as_default(), tf.Session() as session:
            logits, _ = build_model(
                tf.constant(images), MODEL, training=training, override_params=overrides)
            variables = tf.trainable_variables()
            gradients = tf.gradients(tf.reduce_sum(logits ** 2), variables)
            session.run([variable.initializer for variable in tf.global_variables()], {
                variable.initializer.inputs[1]: golden_weights.weight(
                    variable.op.name, variable.shape.as_list())
                for variable in tf.global_variables()})
            results.append(session.run([logits, {
                variable.op.name: gradient
                for variable, gradient in zip(variables, gradients)}]))
    (logits, gradients), (our_logits, our_gradients) = results
    assert set(gradients) == set(our_gradients)
    np.testing.assert_allclose(logits, our_logits, rtol=1e-3, atol=1e-4)
    # Batch norm over three images makes differences of sums; float32 leaves 3e-5 of the largest.
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name in gradients:
        np.testing.assert_allclose(gradients[name], our_gradients[name], rtol=1e-2,
                                   atol=1e-4 * largest, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('benchmark, steps, chosen', [
    ('train_step', 4, []), ('infer', 1, ['--contender=naive', '--contender=ours'])])
def test_benchmarks_write_their_figures(benchmark, steps, chosen, tmp_path):
    path = str(tmp_path / 'figures.json')
    completed = subprocess.run(
        [sys.executable, '-m', f'benchmarks.{benchmark}', f'--model_name={MODEL}',
         '--batch_size=3', '--image_size=32', '--rounds=2', f'--steps_per_round={steps}',
         f'--json={path}', *chosen], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert completed.returncode == 0, completed.stderr
    with open(path) as file:
        measured = json.load(file)
    names = [name for name in protocol.CONTENDERS if name in measured]
    own = ['naive', 'ours', *(['optimized'] if benchmark == 'train_step' else [])]
    assert names[:len(own)] == own
    for name in protocol.ONEDNN, protocol.PYTORCH, protocol.PYTORCH_COMPILE:
        said = [name in measured, f'{name} skipped' in completed.stdout]
        assert sum(said) == (0 if chosen else 1)
    for name in names:
        figures = measured[name]
        assert set(figures) == FIGURES
        rates = figures['images_per_sec']
        assert 0 < rates['min'] <= rates['median'] <= rates['max']
        assert figures['peak_rss_mb'] > 100 and math.isfinite(figures['loss_last'])
        assert (figures['loss_last'] < figures['loss_first']) == (benchmark == 'train_step')
        assert f'| {name} |' in completed.stdout
    for name in own:
        assert 500 < measured[name]['step_nodes'] < measured[name]['graph_nodes']
    assert measured['ratio'] == pytest.approx(
        measured['ours']['images_per_sec']['median']
        / measured['naive']['images_per_sec']['median'], abs=1e-2)


def write_interpreter(folder, exit_code):
    """A program that ends like a Python which has a contender's packages, or lacks them."""
    interpreter = folder / 'python'
    interpreter.write_text(f'#!/bin/sh\nexit {exit_code}\n')
    interpreter.chmod(0o755)
    return interpreter


@pytest.mark.parametrize('name, flag', [(protocol.ONEDNN, 'onednn_python'),
                                        (protocol.PYTORCH, 'pytorch_python')])
def test_an_interpreter_without_the_packages_is_left_out_and_a_missing_one_is_an_error(
        name, flag, tmp_path):
    for exit_code in 1, 0:
        interpreter = write_interpreter(tmp_path, exit_code)
        found = contenders.find_interpreter(
            name, flag, 'torch', 'import torch', argparse.Namespace(**{flag: str(interpreter)}))
        assert found == (None if exit_code else str(interpreter))
    missing = argparse.Namespace(**{flag: str(tmp_path / 'nowhere')})
    with pytest.raises(UserError, match=f'--{flag}=.*name a Python that has torch'):
        contenders.find_interpreter(name, flag, 'torch', 'import torch', missing)


def test_a_contest_of_nobody_is_an_error(tmp_path):
    interpreter, path = write_interpreter(tmp_path, exit_code=1), tmp_path / 'figures.json'
    completed = subprocess.run(
        [sys.executable, '-m', 'benchmarks.infer', '--contender=pytorch',
         f'--pytorch_python={interpreter}', f'--json={path}'],
        cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert completed.returncode != 0 and not path.exists()
    assert completed.stderr.splitlines()[-1] == (
        'infer.py: error: --contender=pytorch: nobody is left to measure; install what was '
        'missing, or add --contender=ours.')


def test_the_cost_of_being_seen_is_that_of_a_step_and_of_what_is_due_now_and_then():
    # A step takes 1 % more; 10 ms every 100 steps and 100 ms more every 1000 are 0.2 ms a step.
    figures = summary_overhead.summarize([[0.1, 0.2, 0.1], [0.101, 0.202, 0.101]], 0.01, 0.11)
    assert figures == {
        'unseen_step_ms': 100.0, 'seen_step_ms': 101.0, 'watching_share': 0.01,
        'scalars_ms': 10.0, 'everything_ms': 110.0, 'cost_share': 0.012}
    table = summary_overhead.table({**figures, 'model_name': 'm', 'image_size': 8, 'batch_size': 2})
    assert '| total cost at the default intervals | +1.20% |' in table


@pytest.mark.slow
def test_the_kernels_of_both_steps_are_timed(tmp_path):
    path = tmp_path / 'kernels.json'
    completed = subprocess.run(
        [sys.executable, '-m', 'benchmarks.kernel_table', '--model_name=efficientnet-lite0',
         '--batch_size=2', '--image_size=32', '--rounds=1', f'--json={path}'],
        cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert completed.returncode == 0, completed.stderr
    measured = json.loads(path.read_text())
    assert measured['product_gflops'] > 1 and measured['copy_gb_per_sec'] > 0.1
    for task in protocol.TASKS:
        rows = {row['type']: row for row in measured[task]['kernels']}
        assert sum(row['share'] for row in rows.values()) == pytest.approx(1, abs=0.01)
        for kind, row in rows.items():
            assert row['count'] >= 1 and row['ms'] >= 0
            assert f'| {kind} | {row["count"]} |' in completed.stdout
        assert ('ApplyRMSProp' in rows) == (task == protocol.TRAIN)
    # The multiply-adds of two images in convolutions and classifier.
    params = efficientnet_builder.get_model_params('efficientnet-lite0')
    costs = complexity.total(complexity.parts_of(params, 32))
    expected = sum(costs[kind] for kind in complexity.KINDS)
    assert sum(row['multiply_adds_m'] for row in rows.values()) == pytest.approx(
        2 * expected / 1e6, rel=0.01)


def test_kernels_of_a_type_are_added_up():
    with tf.Graph().as_default() as graph:
        product = tf.matmul(tf.ones([20, 30]), tf.ones([30, 40]), name='product')
        tf.nn.relu(product, name='first')
        tf.nn.relu(product, name='second')
    rows = kernel_table.summarize(graph.get_operations(), [
        {'product': 6.0, 'first': 1.0, 'second': 0.5},
        {'product': 8.0, 'first': 1.0, 'second': 1.0},
        {'product': 5.0, 'first': 2.0, 'second': 3.0}])
    assert rows == [
        {'type': 'MatMul', 'count': 1, 'ms': 6.0, 'multiply_adds_m': 0.024, 'mb': 0.01,
         'share': 0.75},
        {'type': 'Relu', 'count': 2, 'ms': 2.0, 'multiply_adds_m': 0, 'mb': 0.013, 'share': 0.25}]
    table = kernel_table.table({'step_ms': 9.0, 'kernels': rows}, product_gflops=0.1,
                               copy_gb_per_sec=0.02)
    assert '| MatMul | 1 | 6.0 | 75.0% | 8% | 8% |' in table
    assert '| Relu | 2 | 2.0 | 25.0% |  | 32% |' in table
