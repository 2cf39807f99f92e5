"""Each format of each kind of network, through the programs: the same top-1 as main.py's."""
import csv
import os
import re

from conftest import EXPORTED_MODELS
import numpy as np
import pytest

from run_log import event_log
from tfrecords import schema

pytestmark = pytest.mark.slow

SUFFIXES = ('.pb', '.tflite', '.onnx')
FLOAT_REPORT = re.compile(r'max difference from the checkpoint (\S+) of the largest logit')


@pytest.fixture(scope='module', params=EXPORTED_MODELS)
def model_name(request):
    return request.param


@pytest.fixture(scope='module')
def exported(run, model_name, learned_dir, tmp_path_factory):
    """(folder of all formats, what the program said)."""
    pytest.importorskip('onnxruntime')
    folder = tmp_path_factory.mktemp(model_name)
    completed = run(
        'export_model.py', f'--ckpt_dir={learned_dir(model_name)}', f'--output_dir={folder}',
        '--formats=saved_model,frozen,tflite,onnx', '--quantize', '--num_steps=50',
        # How well integers do is the network's affair.
        '--tolerance=1')
    assert completed.returncode == 0, completed.stderr
    assert 'Note the output min/max' not in completed.stdout
    return folder, completed.stdout


def top_1_and_5(completed):
    assert completed.returncode == 0, completed.stderr
    found = re.search(r'^top-1 (\S+)  top-5 (\S+)  on \d+ images$', completed.stdout, re.M)
    return tuple(map(float, found.groups()))


def probabilities(path):
    """Image -> class -> probability, of a table of predict.py."""
    with open(path) as file:
        return {row['image']: {row[f'class_{rank}']: float(row[f'probability_{rank}'])
                               for rank in range(1, 11)} for row in csv.DictReader(file)}


def test_every_float_format_has_the_top_1_and_top_5_of_main(
        run, exported, model_name, learned_dir, digits_dir, tmp_path):
    folder, said = exported
    last = [event for event in event_log.read(learned_dir(model_name))
            if event['event'] == 'eval' and event['weights'] == 'ema'][-1]
    evaluated = last['top_1'], last['top_5']
    assert 0.3 < evaluated[0] < 0.99  # It has learned something, so that equality means something.
    sources = {'checkpoint': f'--checkpoint={learned_dir(model_name)}',
               'saved_model': f'--saved_model={folder}'}
    sources.update({suffix: f'--saved_model={folder}/{model_name}{suffix}' for suffix in SUFFIXES})
    tables = {}
    for name, flag in sources.items():
        table = f'{tmp_path}/{name}.csv'
        completed = run('predict.py', flag, f'--data_dir={digits_dir}', '--top_k=10',
                        f'--csv={table}', '--batch_size=100')
        assert top_1_and_5(completed) == pytest.approx(evaluated, abs=1e-6), name
        tables[name] = probabilities(table)
    for name, table in tables.items():
        assert list(table) == list(tables['checkpoint']) and len(table) == 1000
        for image, expected in tables['checkpoint'].items():
            assert table[image] == pytest.approx(expected, abs=1e-4), (name, image)
    differences = [float(text) for text in FLOAT_REPORT.findall(said)][:4]
    assert len(differences) == 4 and max(differences) < 1e-4


def test_integers_come_near_it(run, exported, model_name, digits_dir):
    folder, _ = exported
    shard = schema.find_shards(digits_dir, schema.VALIDATION)[0]
    integers, floats = (
        top_1_and_5(run('predict.py', f'--saved_model={folder}/{model_name}{suffix}.tflite', shard))
        for suffix in ('_int8', ''))
    # Swish and the gates of squeeze-excite lose much in 8 bits, as is known of EfficientNet.
    assert integers[0] > floats[0] - (0.1 if 'lite' in model_name else 0.4)
    sizes = [os.path.getsize(f'{folder}/{model_name}{suffix}.tflite') for suffix in ('', '_int8')]
    assert sizes[1] < 0.5 * sizes[0]


def test_what_lies_beside_them(exported, model_name, digits_dir):
    folder, said = exported
    assert sorted(os.listdir(folder)) == sorted(
        ['120', 'labels.txt', 'convert.sh', *(
            f'{model_name}{suffix}{extra}'
            for suffix in (*SUFFIXES, '_int8.tflite', *['_bs1.pb'] * ('condconv' in model_name))
            for extra in ('', '.json'))])
    names = (folder / 'labels.txt').read_text().splitlines()
    assert names == (folder / '120' / 'assets.extra' / 'labels.txt').read_text().splitlines()
    assert names[:2] == ['zero', 'one']
    num_exports = 6 if 'condconv' in model_name else 5
    assert said.count(' MB, ') == said.count(f'validation images of {digits_dir}') == num_exports
    commands = re.findall('^atc .*$', (folder / 'convert.sh').read_text(), re.M)
    shapes = [re.search(r'input_shape="image:(\S+),40,40,3"', command).group(1)
              for command in commands]
    # The shapes inside CondConv depend on the batch, which ATC has to know.
    assert shapes == (['1'] if 'condconv' in model_name else ['1', '-1'])
    for command in commands:
        assert {'--framework="3"', '--input_format="NHWC"', '--soc_version="Ascend310P3"',
                '--out_nodes="probabilities:0"', '--output_type="FP32"',
                '--precision_mode="force_fp16"'} <= set(command.split())


def test_onnx_and_frozen_take_any_batch_and_hold_no_batch_norm(exported, model_name):
    import onnx
    import onnxruntime
    import tensorflow.compat.v1 as tf
    folder, _ = exported
    images = np.random.RandomState(0).uniform(0, 255, [5, 40, 40, 3]).astype(np.float32)
    session = onnxruntime.InferenceSession(f'{folder}/{model_name}.onnx')
    outputs = ['classes', 'probabilities', 'logits']
    assert [output.name for output in session.get_outputs()] == outputs
    assert session.get_inputs()[0].shape == ['batch', 40, 40, 3]
    together = session.run(outputs, {'image': images})
    alone = [session.run(outputs, {'image': images[i:i + 1]}) for i in range(5)]
    for index, output in enumerate(together):
        np.testing.assert_allclose(
            output, np.concatenate([single[index] for single in alone]), rtol=1e-3, atol=1e-4)
    nodes = onnx.load(f'{folder}/{model_name}.onnx').graph.node
    assert not [node for node in nodes if node.op_type == 'BatchNormalization']

    graph_def = tf.GraphDef.FromString((folder / f'{model_name}.pb').read_bytes())
    assert not [node for node in graph_def.node
                if 'BatchNorm' in node.op or 'Variable' in node.op]
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name='')
        logits = session.run('logits:0', {'image:0': images})
    np.testing.assert_allclose(logits, together[2], rtol=1e-3, atol=1e-4)
