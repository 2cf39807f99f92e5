"""Data parallelism without an NPU: two workers are one worker with twice the batch."""
import json
import os
import socket

from conftest import ROOT
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

TOY_WORKER = os.path.join('test', 'tools', 'toy_worker.py')


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(('127.0.0.1', 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def train(start, num_workers, model_dir, rows_per_worker, max_steps, settings):
    hosts = [f'127.0.0.1:{port}' for port in free_ports(num_workers)]
    processes = []
    for index in range(num_workers):
        environment = {'PYTHONPATH': ROOT, 'TF_CONFIG': json.dumps({
            'cluster': {'worker': hosts}, 'task': {'type': 'worker', 'index': index}})}
        processes.append(start(
            TOY_WORKER, str(model_dir), str(rows_per_worker), str(max_steps),
            json.dumps(settings), **environment))
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert 'Exception ignored' not in output
    reader = tf.train.load_checkpoint(str(model_dir))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.mark.slow
@pytest.mark.parametrize('values, of_two', [
    ({}, {}), ({'gradient_clip_norm': 0.5}, {'gradient_accumulation_steps': 2})], ids=str)
def test_two_workers_equal_one_with_twice_the_batch(start, tmp_path, values, of_two):
    """Weights, RMSProp's slots and moving averages, after five steps and resumed to ten."""
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
    start_values = None
    for max_steps in (5, 10):
        two = train(start, 2, tmp_path / 'two', 4, max_steps, {**values, **of_two})
        one = train(start, 1, tmp_path / 'one', 8, max_steps, values)
        assert set(one) == set(two)
        assert {'hidden/kernel', 'hidden/kernel/ExponentialMovingAverage',
                'hidden/kernel/RMSProp'} <= set(one)
        assert one['global_step'] == two['global_step'] == max_steps
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, atol=1e-5, err_msg=name)
        if start_values:
            assert np.abs(one['hidden/kernel'] - start_values['hidden/kernel']).max() > 0.01
        start_values = one


@pytest.mark.slow
@pytest.mark.parametrize('text, words', [
    ('{', 'not JSON'),
    ('[]', 'not a JSON object'),
    ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
     'index 2 of 2 workers'),
    ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}', 'jobs other than "worker"')])
def test_a_wrong_tf_config_is_one_sentence(run, digits_dir, tmp_path, text, words):
    completed = run('main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/run',
                    '--train_steps=1', TF_CONFIG=text)
    assert completed.returncode == 1
    line, = [line for line in completed.stderr.splitlines() if 'error:' in line]
    assert words in line and 'Traceback' not in completed.stderr
    assert not (tmp_path / 'run').exists()
