"""Every reader of JSON, on texts that Python's own parser takes or dies of: one sentence each."""
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import best
from common import json_files
from common.errors import UserError
from config import run_config
from export import loading
from run_log import class_metrics
from run_log import event_log
from runtime import cluster
from runtime import rank_table
from tfrecords import class_labels
from tfrecords import schema
from training import class_balance

DEEP = b'[' * 200_000
ODD = {
    'deep': DEEP, 'deep and whole': DEEP + b']' * 200_000,
    'deep in an object': b'{"a":' * 200_000 + b'1' + b'}' * 200_000,
    'a little too deep': b'[' * 33 + b']' * 33,
    'UTF-16': '{"name": "x"}'.encode('utf-16'), 'not UTF-8': b'{"name": "\xff"}',
    'NaN': b'{"a": NaN}', 'infinite': b'{"a": [1, -Infinity]}', 'above float': b'{"a": 1e400}',
    'many digits': b'{"a": %s}' % (b'9' * 5000), 'negative': b'{"a": -%s}' % (b'9' * 5000),
    'twice': b'{"a": 1, "b": 2, "a": 3}', 'surrogate': rb'{"a": "\ud800"}',
    'surrogate in a key': rb'{"x": [{"\udfff": 1}]}', 'NUL': rb'["a\u0000b"]',
    'cut': b'{"a": [1, 2', 'empty': b'', 'two': b'{} {}', 'zeros': b'\0' * 99}


def read_tf_config(path):
    with open(path, 'rb') as file:
        cluster._rank_and_workers(os.fsdecode(file.read()))


# Name of the file -> what reads it, of its path.
READERS = {
    'config.json': lambda path: run_config.load(os.path.dirname(path)),
    'archive/best_eval.json': lambda path: best.best_evaluation(
        os.path.dirname(os.path.dirname(path))),
    'class_counts.json': lambda path: class_balance.read(path),
    'dataset_info.json': lambda path: schema.DatasetInfo.load(os.path.dirname(path)),
    'model.onnx.json': lambda path: loading.read_description(path[:-len('.json')]),
    'ranks.json': lambda path: rank_table.check(path, 1),
    'names.json': lambda path: class_labels.read(path, 'class_names'),
    'TF_CONFIG': read_tf_config,
}


def write(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return str(path)


def sentence(read, path):
    with pytest.raises(UserError) as raised:
        read(path)
    text = str(raised.value)
    assert '\n' not in text and len(text) < 500 and ';' in text and text.endswith('.')
    text.encode()  # It can be printed.
    return text


@pytest.mark.parametrize('content', ODD.values(), ids=list(ODD))
@pytest.mark.parametrize('name', READERS)
def test_odd_json_is_one_sentence(tmp_path, name, content):
    if name == 'TF_CONFIG' and not content:
        pytest.skip('An empty TF_CONFIG is none.')
    path = write(tmp_path, name, content)
    assert (name if name == 'TF_CONFIG' else path) in sentence(READERS[name], path)


@pytest.mark.parametrize('value', [None, 1, 'x', [], [{}], {}, {'a': 1}, True])
@pytest.mark.parametrize('name', sorted(set(READERS) - {'TF_CONFIG', 'model.onnx.json'}))
def test_json_of_another_kind_is_one_sentence(tmp_path, name, value):
    if name == 'ranks.json' and isinstance(value, dict):
        pytest.skip('A table in a form of a later release is accepted.')
    path = write(tmp_path, name, json.dumps(value).encode())
    assert path in sentence(READERS[name], path)


BEST = {'checkpoint': 'model.ckpt-3', 'step': 3, 'top_1': 0.5, 'name': None, 'num_images': 7}
EVAL = {'event': 'eval', 'time': 1.5, 'step': 3, 'weights': 'raw', 'top_1': 0.5}
START = {'event': 'run_start', 'time': 1, 'mode': 'train', 'model_name': 'x', 'step': 0,
         'total_steps': 3}


@pytest.mark.parametrize('change', [
    {'checkpoint': None}, {'checkpoint': 3}, {'checkpoint': '../x'}, {'checkpoint': ''},
    {'step': None}, {'step': True}, {'step': 2.5}, {'step': -1}, {'step': '3'},
    {'top_1': None}, {'top_1': False}, {'top_1': '0.5'}, {'name': 5}, {'name': ['x']},
    {'num_images': '7'}, {'num_images': 1.5}])
def test_odd_types_of_the_best_evaluation(tmp_path, change):
    name = 'archive/best_eval.json'
    path = write(tmp_path, name, json.dumps(BEST).encode())
    assert READERS[name](path) == BEST
    path = write(tmp_path, name, json.dumps({**BEST, **change}).encode())
    assert f'"{list(change)[0]}" must be ' in sentence(READERS[name], path)


@pytest.mark.parametrize('event, change', [
    *((EVAL, change) for change in (
        {'step': None}, {'step': 1.5}, {'step': True}, {'top_1': None}, {'top_1': True},
        {'weights': 'none'}, {'weights': None}, {'name': 3}, {'num_images': '3'},
        {'image_size': -1}, {'time': None}, {'time': True}, {'event': None}, {'event': {}})),
    *((START, {'environment': odd}) for odd in (
        [], 'x', {'device': None}, {'device': {}}, {'cores': 4}))])
def test_odd_types_of_events(tmp_path, event, change):
    path = write(tmp_path, event_log.RESULTS_FILE, json.dumps(event).encode() + b'\n')
    assert event_log.read(str(tmp_path)) == [event]
    write(tmp_path, event_log.RESULTS_FILE, json.dumps({**event, **change}).encode() + b'\n')
    text = sentence(lambda _: event_log.read(str(tmp_path)), path)
    assert f'{path}, line 1: "{list(change)[0]}" must be ' in text


@pytest.mark.parametrize('name', sorted(set(ODD) - {
    # What a kill has cut short, and what earlier versions wrote of numbers that are not finite.
    'UTF-16', 'not UTF-8', 'cut', 'empty', 'two', 'zeros', 'NaN', 'infinite', 'above float',
    'many digits', 'negative'}))
def test_odd_lines_of_events_are_named(tmp_path, name):
    path = write(tmp_path, event_log.RESULTS_FILE,
                 json.dumps(EVAL).encode() + b'\n' + ODD[name] + b'\n')
    assert f'{path}, line 2: ' in sentence(lambda _: event_log.read(str(tmp_path)), path)


def test_not_finite_numbers_of_earlier_events_are_null(tmp_path):
    line = json.dumps({**EVAL, 'cross_entropy': float('nan')})
    write(tmp_path, event_log.RESULTS_FILE, line.encode() + b'\n')
    assert event_log.read(str(tmp_path)) == [{**EVAL, 'cross_entropy': None}]


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = write(tmp_path, 'dataset_info.json', b'{')
    os.truncate(path, json_files.LARGEST_BYTES + 1)
    assert 'too large for a JSON file' in sentence(READERS['dataset_info.json'], path)


def test_what_is_accepted(tmp_path):
    path = write(tmp_path, 'x.json', '\ufeff{"name": "dög \\ud83d\\ude00", "n": -12, '
                 '"m": 1e3}'.encode())
    assert json_files.read(path, 'x', {'name': json_files.TEXT}) == {
        'name': 'dög 😀', 'n': -12, 'm': 1000.0}


@pytest.mark.parametrize('damage', [
    lambda tensor: tensor.tensor_shape.dim.add(size=10 ** 12),
    lambda tensor: tensor.tensor_shape.Clear(),
    lambda tensor: setattr(tensor.tensor_shape.dim[0], 'size', -1),
    lambda tensor: setattr(tensor, 'tensor_content', b'123'),
    lambda tensor: setattr(tensor, 'dtype', 99), None])
def test_odd_event_files_are_one_sentence(tmp_path, damage):
    tensor = tf.make_tensor_proto(np.arange(3.0))
    event = tf.Event(step=3)
    event.summary.value.add(tag='class_images').tensor.CopyFrom(tensor)
    path = str(tmp_path / 'events.out.tfevents.1.host')

    def write_record(content):
        with tf.io.TFRecordWriter(path) as writer:
            writer.write(content)
    write_record(event.SerializeToString())
    found = class_metrics.read_evaluations(str(tmp_path))
    assert found[3]['class_images'].tolist() == [0, 1, 2]
    if damage:
        damage(event.summary.value[0].tensor)
    write_record(event.SerializeToString() if damage else b'\xff' * 9)
    assert path in sentence(lambda _: class_metrics.read_evaluations(str(tmp_path)), path)
