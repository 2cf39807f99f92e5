import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from analysis import complexity
from analysis import memory
from common import text_tables
from common.errors import UserError
from config import run_config
from config.optimization_settings import OptimizationConfig
import efficientnet_builder
import inspect_model_architecture
import model_builder_factory
from tfrecords import schema
from training import optimization

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONDCONV_4E = 'efficientnet-condconv-b0-4e'
CONDCONV_8E = 'efficientnet-condconv-b0-8e'
NUM_IMAGES = 21
# What each expert's routing weight comes out as: the third is dead, the last depends on the image.
ROUTING_BIASES = [0.0, 20.0, -20.0, 1.0]


def run(*arguments):
    return subprocess.run(
        [sys.executable, 'inspect_model_architecture.py', *arguments], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=300)


def inspect(*args, **kwargs):
    return inspect_model_architecture.inspect(*args, **kwargs).content


def compare(*args, **kwargs):
    return inspect_model_architecture.compare(*args, **kwargs).content['models']


def golden(golden_dir, model_name):
    with open(os.path.join(golden_dir, 'variables', f'{model_name}.json')) as file:
        return json.load(file)


def number_of_values(variables, scopes, is_trainable):
    return sum(int(np.prod(shape)) for name, shape, trainable in variables
               if name.startswith(scopes) and (trainable or not is_trainable))


def test_totals_of_every_model_are_the_references(golden_dir):
    with open(os.path.join(golden_dir, 'models.json')) as file:
        expected = {model['model']: model for model in json.load(file)}
    models = compare(['all'])
    assert sorted(model['model'] for model in models) == sorted(expected)
    for model in models:
        reference = expected[model['model']]
        assert model['image_size'] == reference['input_size']
        for key in ('trainable_params', 'all_params'):
            assert model[key] == reference[key], model
        total = reference['multiply_adds_conv_depthwise_matmul']
        assert model['multiply_adds']['total'] == total, model


@pytest.mark.parametrize('model_name', model_builder_factory.MODEL_NAMES)
def test_shapes_and_parameters_of_every_part_are_the_references(model_name, golden_dir):
    reference = golden(golden_dir, model_name)
    shapes, variables = reference['endpoint_shapes_batch_1'], reference['variables']
    report = inspect(model_name)
    parts = {part['part']: part for part in report['parts']}
    assert list(parts) == ['stem', *[f'block_{i}' for i in range(len(parts) - 2)], 'head']
    output_shape = (report['image_size'], report['image_size'], 3)
    for name, part in parts.items():
        assert part['input_shape'] == output_shape
        output_shape = part['output_shape']
        assert [1, *output_shape] == shapes[name]

        scope = name.replace('block_', 'blocks_')
        scopes = (f'{model_name}/{scope}/', f'{model_name}/model/{scope}/')
        assert part['trainable_params'] == number_of_values(variables, scopes, True)
        assert part['all_params'] == number_of_values(variables, scopes, False)
        num_experts = {shape[0] for variable, shape, _ in variables
                       if variable.startswith(scopes) and 'condconv_kernel' in variable}
        assert part['num_experts'] == (num_experts.pop() if num_experts else 0)
    for key in ('trainable_params', 'all_params', 'activation_bytes'):
        assert sum(part[key] for part in parts.values()) == report['total'][key]


def test_types_kernels_and_strides():
    def rows(model_name):
        return {part['part']: (part['type'], part['kernel_size'], part['stride'])
                for part in inspect(model_name)['parts']}

    assert rows('b0')['block_3'] == ('MBConv', 5, 2)
    condconv = rows('condconv-b0-8e')
    assert condconv['stem'] == ('conv', 3, 2)
    assert condconv['block_7'] == ('MBConv', 3, 1)
    assert condconv['block_11'] == ('MBConv+CondConv', 5, 2)
    assert condconv['head'] == ('head', 1, 1)
    assert rows('edgetpu-S')['block_1'] == ('fused MBConv', 3, 2)


def test_published_multiply_adds_come_out_to_the_million():
    published = {model['model']: model['published'] for model in compare(['all'])
                 if model['published']['multiply_adds']}
    assert len(published) == 4
    for model in compare(published):
        counted = model['multiply_adds']['with_elementwise']
        assert round(counted / 1e6) * 1000000 == model['published']['multiply_adds'], model


def test_experts_cost_routing_and_mixing_and_nothing_else():
    plain, four, eight = (model['multiply_adds'] for model in compare(
        ['b0', 'condconv-b0-4e', 'condconv-b0-8e']))
    for kind in ('convolution', 'depthwise', 'squeeze_excite', 'dense'):
        assert plain[kind] == four[kind] == eight[kind] > 0
    for kind in ('routing', 'mixing'):
        assert plain[kind] == 0 and eight[kind] == 2 * four[kind] > 0
    for counted in (plain, four, eight):
        kinds = complexity.KINDS
        assert counted['total'] == sum(counted[kind] for kind in kinds)


@pytest.mark.slow
def test_options_change_the_figures_as_they_change_the_network():
    # 65 pixels: every halving rounds up; and at 3x3 positions the layers mix inputs, not kernels.
    size, num_classes = 65, 7
    report = inspect(CONDCONV_4E, image_size=size, num_classes=num_classes, batch_size=3)
    with tf.Graph().as_default():
        _, endpoints = model_builder_factory.get_model_builder(CONDCONV_4E).build_model(
            tf.zeros([3, size, size, 3]), CONDCONV_4E, training=False,
            override_params={'num_classes': num_classes})
        for part in report['parts']:
            shape = endpoints[part['part']].shape.as_list()
            assert shape == [3, *part['output_shape']]
        trainable = sum(variable.shape.num_elements() for variable in tf.trainable_variables())
    assert report['total']['trainable_params'] == trainable

    single = inspect(CONDCONV_4E, image_size=size, num_classes=num_classes, batch_size=1)['total']
    assert report['total']['activation_bytes'] == 3 * single['activation_bytes']
    assert report['total']['multiply_adds'] == single['multiply_adds']


def bytes_the_backward_pass_reads(model_name, batch_size):
    """What the gradients' graph takes from the forward graph, variables and images aside."""
    size = model_builder_factory.get_model_input_size(model_name)
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [batch_size, size, size, 3])
        logits, _ = model_builder_factory.get_model_builder(model_name).build_model(
            images, model_name, training=True)
        forward_ops = set(graph.get_operations())
        gradients = tf.gradients(tf.reduce_sum(logits), tf.trainable_variables())

    def owner(tensor):
        while tensor.op.type in ('Reshape', 'Identity', 'ExpandDims', 'Squeeze'):
            tensor = tensor.op.inputs[0]
        return tensor

    read, seen, waiting = set(), set(), [gradient.op for gradient in gradients]
    while waiting:
        op = waiting.pop()
        if op in seen:
            continue
        seen.add(op)
        for tensor in op.inputs:
            if tensor.op in forward_ops:
                read.add(owner(tensor))
            else:
                waiting.append(tensor.op)
    return sum(4 * tensor.shape.num_elements() for tensor in read
               # Batch norm hands on a scratch tensor of unknown shape, which is empty on a CPU.
               if tensor.dtype == tf.float32 and tensor.shape.num_elements()
               and tensor.op.type not in ('VariableV2', 'Const', 'Placeholder'))


@pytest.mark.slow
@pytest.mark.parametrize('model_name', [
    'efficientnet-b0', CONDCONV_4E, 'efficientnet-lite0', 'efficientnet-edgetpu-S'])
def test_activation_memory_is_what_the_gradients_read(model_name):
    (model,) = compare([model_name], batch_size=2)
    expected = bytes_the_backward_pass_reads(model_name, batch_size=2)
    assert model['activation_bytes'] == pytest.approx(expected, rel=0.005)


def test_memory_of_a_training_step(golden_dir):
    """Weights and statistics as the golden variables have them; activations as --compare has."""
    content = inspect_model_architecture.estimate_memory('b0', batch_sizes=[2, 4]).content
    variables = golden(golden_dir, 'efficientnet-b0')['variables']
    weights, trainable = (number_of_values(variables, ('efficientnet-b0/',), is_trainable)
                          for is_trainable in (False, True))
    (model,) = compare(['b0'], batch_size=4)
    two, four = (record['bytes'] for record in content['memory'])
    assert [record['batch_size'] for record in content['memory']] == [2, 4]
    for held in (two, four):
        assert held['weights'] == held['averages'] == 4 * weights
        assert (held['gradients'], held['optimizer']) == (4 * trainable, 8 * trainable)
    assert four['activations'] == {'float32': model['activation_bytes'],
                                   'float16': model['activation_bytes'] // 2}
    assert two['activations']['float32'] == four['activations']['float32'] // 2
    assert two['total']['float32'] - two['activations']['float32'] == (
        four['total']['float16'] - four['activations']['float16']) == 8 * weights + 12 * trainable


def test_memory_beside_activations_is_what_the_variables_of_a_training_graph_take():
    overrides = {'width_coefficient': 0.25, 'depth_coefficient': 0.25}
    costs = complexity.total(complexity.parts_of(
        efficientnet_builder.get_model_params(CONDCONV_4E, overrides), image_size=32))
    held = memory.of_training(costs, batch_size=1)

    def num_bytes(variables):
        return sum(4 * variable.shape.num_elements() for variable in variables)

    with tf.Graph().as_default():
        logits, _ = model_builder_factory.get_model_builder(CONDCONV_4E).build_model(
            tf.zeros([1, 32, 32, 3]), CONDCONV_4E, training=True, override_params=overrides)
        weights = tf.global_variables()
        trainable = tf.trainable_variables()
        optimizer = optimization.build_optimizer(OptimizationConfig(), 0.1, None)
        optimizer.minimize(tf.reduce_sum(logits))
        optimization.MovingAverage(weights, 0.9)
        slots = [optimizer.get_slot(variable, name)
                 for variable in trainable for name in optimizer.get_slot_names()]
        averages = tf.local_variables()
    assert held['weights'] == num_bytes(weights) and held['averages'] == num_bytes(averages)
    assert held['gradients'] == num_bytes(trainable) and held['optimizer'] == num_bytes(slots)


def test_the_table_of_batch_sizes():
    process = run('--model_name=b0', '--batch_sizes=64,8')
    assert (process.returncode, process.stderr) == (0, '')
    table, note = process.stdout.rstrip('\n').split('\n\n')
    rows = [line.split() for line in table.split('\n')[1:]]
    assert [row[0] for row in rows] == ['8', '64'] and rows[0][1:4] == ['21.3', '21.2', '42.3']
    assert note.startswith('Estimated memory of') and 'efficientnet-b0' in note
    content = json.loads(
        run('--model_name=b0', '--batch_sizes=8', '--image_size=64x96', '--json').stdout)
    assert content['is_estimate'] and content['image_size'] == '64x96'
    assert len(content['memory']) == 1


def test_default_is_the_main_model_as_an_aligned_table():
    process = run()
    assert (process.returncode, process.stderr) == (0, '')
    table, multiply_adds_note, activations_note = process.stdout.rstrip('\n').split('\n\n')
    lines = table.split('\n')
    assert [line.split()[0] for line in lines] == [
        'part', 'stem', *[f'block_{i}' for i in range(16)], 'head', 'total']
    assert lines[9 + 2].split() == ['block_9', 'MBConv+CondConv', '5', '1', '8', '14x14x112',
                                    '14x14x112', '1.381', '34.17', '34.46', '715.1']
    assert lines[-1].split() == ['total', '24.013', '407.21', '412.80', '15,754.5']
    assert len({len(line) for line in lines}) == 1
    assert 'one for each weight at each position' in multiply_adds_note.replace('\n', ' ')
    assert 'a training step with a batch of 128' in activations_note.replace('\n', ' ')


def test_compare_as_markdown_is_the_table_of_the_readme():
    process = run('--compare', 'all', '--markdown', '--batch_size=1')
    assert (process.returncode, process.stderr) == (0, '')
    table, *notes = process.stdout.rstrip('\n').split('\n\n')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.split('\n')]
    assert {len(row) for row in rows} == {8}
    assert rows[0] == ['model', 'input', 'parameters (M)', 'multiply-adds (M)',
                       'with elementwise (M)', 'activations (MB)', 'published (M)',
                       'published top-1 (%)']
    assert rows[1] == ['---'] + ['--:'] * 7
    assert tuple(row[0] for row in rows[2:]) == model_builder_factory.MODEL_NAMES
    assert rows[2 + model_builder_factory.MODEL_NAMES.index(CONDCONV_8E)] == [
        CONDCONV_8E, '224', '24.013', '407.21', '412.80', '123.1', '413', '78.3']
    assert len(notes) == 3 and notes[0].startswith('Multiply-adds are') and 'Google' in notes[2]


def test_json_and_csv_hold_the_same_figures():
    report = inspect_model_architecture.inspect('condconv-b0-4e')
    content = json.loads(text_tables.to_json(report))
    rows = list(csv.DictReader(io.StringIO(text_tables.to_csv(report))))
    assert content['model'] == CONDCONV_4E and content['num_classes'] == 1000
    assert len(rows) == len(content['parts']) == 18
    for row, part in zip(rows, content['parts']):
        assert row['part'] == part['part']
        assert row['output_shape'] == 'x'.join(map(str, part['output_shape']))
        for kind, count in part['multiply_adds'].items():
            assert int(row[f'multiply_adds_{kind}']) == count
    assert sum(int(row['multiply_adds_total']) for row in rows) == 396513888

    report = inspect_model_architecture.compare(['b1', CONDCONV_8E])
    first, second = csv.DictReader(io.StringIO(text_tables.to_csv(report)))
    assert (first['model'], first['published_top_1']) == ('efficientnet-b1', '')
    assert (second['model'], second['published_top_1']) == (CONDCONV_8E, '78.3')
    assert json.loads(text_tables.to_json(report))['models'][0]['image_size'] == 240


@pytest.mark.parametrize('arguments, code, complaint', [
    (['--compare=b0,b9'], 1, "'b9': unknown model; choose one of b0, b1,"),
    (['--compare=b0', '--checkpoint=/x'], 1, '--checkpoint and --compare: mutually exclusive'),
    (['--json', '--csv'], 1, '--json and --csv: mutually exclusive'),
    (['--image_size=4'], 2, '--image_size=4'),
])
def test_mistakes_become_one_line(arguments, code, complaint):
    process = run(*arguments)
    assert (process.returncode, process.stdout) == (code, '')
    assert process.stderr.startswith('inspect_model_architecture.py: error: ')
    assert complaint in process.stderr and process.stderr.count('\n') == 1


def test_checkpoint_and_images_go_together(tmp_path):
    for kwargs in ({'checkpoint': str(tmp_path)}, {'data_dir': str(tmp_path)}):
        with pytest.raises(UserError, match='give both or neither'):
            inspect(**kwargs)


def test_unreadable_checkpoints_are_refused(tmp_path):
    data_dir = str(tmp_path)
    with pytest.raises(UserError, match='no checkpoint found'):
        inspect(checkpoint=str(tmp_path), data_dir=data_dir)
    with pytest.raises(UserError, match='not a readable checkpoint'):
        inspect(checkpoint=str(tmp_path / 'model.ckpt-1'), data_dir=data_dir)
    with pytest.raises(UserError, match='contains no CondConv block'):
        inspect('b0', checkpoint=str(tmp_path / 'model.ckpt-1'), data_dir=data_dir)


def write_images(data_dir, num_images, label=1):
    """Two validation shards of noise in three classes; `label` is that of the last image."""
    data_dir.mkdir()
    random = np.random.RandomState(0)
    for shard in range(2):
        path = data_dir / schema.shard_name(schema.VALIDATION, shard, 2)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for index in range(shard, num_images, 2):
                file = io.BytesIO()
                # Of different brightness, so that there is something to route by.
                pixels = random.randint(1 + 12 * index, size=(40, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(file, 'JPEG')
                writer.write(schema.serialize_example(
                    encoded=file.getvalue(), image_format='JPEG', height=40, width=40, channels=3,
                    filename='noise.jpg', text='noise',
                    label=label if index == num_images - 1 else 1 + index % 3))
    schema.DatasetInfo('noise', 3, (), 1, {schema.TRAIN: 1, schema.VALIDATION: num_images}).save(
        str(data_dir))
    return str(data_dir)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images') / 'noise', NUM_IMAGES)


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory, data_dir):
    """A narrow CondConv model with a config.json, whose averaged weights route by `ROUTING_BIASES`.

    Its raw weights route by biases of zero. A checkpoint of those alone lies in 'raw'.
    """
    folder = tmp_path_factory.mktemp('model')
    config = run_config.from_values({
        'data_dir': data_dir, 'model_dir': str(folder), 'model_name': CONDCONV_4E,
        'input_image_size': 32, 'width_coefficient': 0.25})
    config.save()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        model_builder_factory.get_model_builder(CONDCONV_4E).build_model(
            tf.zeros([1, 32, 32, 3]), CONDCONV_4E, training=False,
            override_params=config.model_overrides)
        variables = tf.global_variables()
        session.run(tf.global_variables_initializer())
        (folder / 'raw').mkdir()
        tf.train.Saver().save(session, str(folder / 'raw' / 'model.ckpt-0'))

        ema = tf.train.ExponentialMovingAverage(0.99)
        ema.apply(variables)
        session.run(tf.variables_initializer(
            [ema.average(variable) for variable in variables]))
        for variable in variables:
            average = ema.average(variable)
            if variable.op.name.endswith('/dense/bias') and variable.shape == [4]:
                average.load(ROUTING_BIASES, session)
            elif variable.op.name.endswith('/dense/kernel') and variable.shape[1] == 4:
                # Only the last expert looks at the image.
                average.load(session.run(variable) * [0, 0, 0, 1], session)
        tf.train.Saver().save(session, str(folder / 'model.ckpt'), global_step=7)
    return str(folder)


@pytest.fixture(scope='module')
def routing(model_dir, data_dir):
    return inspect(checkpoint=model_dir, data_dir=data_dir, batch_size=32)


@pytest.mark.slow
def test_routing_statistics(routing, model_dir, data_dir):
    assert (routing['model'], routing['image_size'], routing['num_classes']) == (CONDCONV_4E, 32, 3)
    assert routing['total']['trainable_params'] < 2000000  # the width is config.json's
    found = routing['routing']
    assert found['checkpoint'] == os.path.join(model_dir, 'model.ckpt-7')
    assert (found['weights'], found['num_images'], found['dead_below']) == ('ema', NUM_IMAGES, 0.01)
    assert found['num_dead'] == {f'block_{i}': 1 for i in range(8, 16)}
    assert len(found['experts']) == 8 * 4
    for expert in found['experts']:
        undecided, on, off, depends = (expert['expert'] == i for i in range(4))
        assert expert['is_dead'] == off
        if not depends:
            assert expert['mean'] == pytest.approx(0.5 if undecided else float(on), abs=1e-6)
            assert expert['entropy'] == pytest.approx(float(undecided), abs=1e-6)
            assert expert['std'] < 1e-6
        else:
            assert 0 < expert['min'] < expert['mean'] < expert['max'] < 1
            assert expert['std'] > 1e-6 and 0 < expert['entropy'] <= 1


@pytest.mark.slow
def test_padding_of_the_last_batch_is_no_image(routing, model_dir, data_dir):
    exact = inspect(checkpoint=os.path.join(model_dir, 'model.ckpt-7'), data_dir=data_dir,
                    batch_size=NUM_IMAGES)['routing']
    for padded, expert in zip(routing['routing']['experts'], exact['experts']):
        for key in ('mean', 'std', 'entropy'):
            assert padded[key] == pytest.approx(expert[key], abs=1e-5)


@pytest.mark.slow
def test_routing_through_the_command(model_dir, data_dir):
    arguments = [f'--checkpoint={model_dir}', f'--data_dir={data_dir}', '--batch_size=8']
    process = run(*arguments, '--csv')
    assert (process.returncode, process.stderr) == (0, '')
    rows = list(csv.DictReader(io.StringIO(process.stdout)))
    assert len(rows) == 32 and rows[2]['is_dead'] == 'True' and float(rows[0]['mean']) == 0.5

    process = run(*arguments)
    parts, experts, *notes = process.stdout.rstrip('\n').split('\n\n')
    assert parts.split()[0] == 'part' and len(experts.split('\n')) == 33
    assert experts.split('\n')[3].split() == [
        'block_8', '2', '0.000', '0.000', '0.000', '0.000', '0.000', 'dead']
    note = notes[-1].replace('\n', ' ')
    assert '8 images, computed with the ema weights' in note
    assert 'every image: 1 in block_8, 1 in' in note


@pytest.mark.slow
def test_checkpoints_that_do_not_fit_are_refused(model_dir, data_dir):
    with pytest.raises(UserError, match='not efficientnet-condconv-b0-8e'):
        inspect('condconv-b0-8e', checkpoint=model_dir, data_dir=data_dir)
    with pytest.raises(UserError, match='has 3 classes, not 5; change --num_label_classes'):
        inspect(num_classes=5, checkpoint=model_dir, data_dir=data_dir)
    # Without config.json nobody knows the width.
    with pytest.raises(UserError, match='not the raw weights of this network'):
        inspect('condconv-b0-4e', num_classes=3, image_size=32, batch_size=2, data_dir=data_dir,
                checkpoint=os.path.join(model_dir, 'raw'))


@pytest.mark.slow
def test_raw_weights_are_used_where_there_is_no_average(model_dir, data_dir, tmp_path):
    raw_dir = os.path.join(model_dir, 'raw')
    with open(os.path.join(model_dir, run_config.CONFIG_FILE)) as file:
        config = file.read()
    for name in os.listdir(raw_dir):
        os.symlink(os.path.join(raw_dir, name), str(tmp_path / name))
    (tmp_path / run_config.CONFIG_FILE).write_text(config)
    found = inspect(checkpoint=str(tmp_path / 'model.ckpt-0'), data_dir=data_dir,
                    batch_size=4)['routing']
    assert found['weights'] == 'raw' and set(found['num_dead'].values()) == {0}


@pytest.mark.slow
def test_bad_images_are_told(model_dir, tmp_path):
    data_dir = write_images(tmp_path / 'label', 4 * 8 + 1, label=9)
    with pytest.raises(UserError, match='has label 9, outside 1..3'):
        inspect(checkpoint=model_dir, data_dir=data_dir, batch_size=64)

    data_dir = write_images(tmp_path / 'cut', 4)
    with open(os.path.join(data_dir, schema.shard_name(schema.VALIDATION, 1, 2)), 'r+b') as file:
        file.truncate(os.path.getsize(file.name) - 10)
    with pytest.raises(UserError, match='validation-00001-of-00002: record 1 cannot be read'):
        inspect(checkpoint=model_dir, data_dir=data_dir, batch_size=4)
