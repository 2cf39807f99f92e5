"""model_builder_factory.create_model: the networks in graphs of other people."""
import json
import os
import re

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from config import run_config
from export import trained_model
import model_builder_factory
from weights import pytorch
from weights.network_weights import NetworkWeights

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), 'docs')
NAME = 'efficientnet-condconv-b0-4e'
NARROW = {'width_coefficient': 0.25, 'depth_coefficient': 0.25}
IMAGES = np.random.RandomState(0).randint(0, 256, [2, 32, 32, 3]).astype(np.uint8)


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
    """A run of a narrow network of 7 classes, trained with AdvProp's normalization.

    Its averaged weights are not its trained ones.
    """
    folder = str(tmp_path_factory.mktemp('library') / 'run')
    config = run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': folder, 'model_name': NAME, 'num_label_classes': 7,
        'normalization': 'advprop', 'input_image_size': 32, 'batch_norm_epsilon': 0.02, **NARROW})
    os.makedirs(folder)
    config.save()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        config.builder.build_model(tf.zeros([1, 32, 32, 3]), NAME, False, config.model_overrides)
        average = tf.train.ExponentialMovingAverage(0.5)
        variables = tf.global_variables()
        average.apply(variables)
        session.run(tf.global_variables_initializer())
        session.run([tf.assign(average.average(variable), variable * 0.9 + 0.01)
                     for variable in variables])
        tf.train.Saver().save(session, os.path.join(folder, 'model.ckpt-3'))
    return folder


def test_logits_are_those_of_an_export(model_dir):
    """Logits use the averaged weights and the run's multipliers, normalization and epsilon."""
    trained = trained_model.from_checkpoint(os.path.join(model_dir, 'model.ckpt-3'))
    with tf.Graph().as_default(), tf.Session() as session:
        expected = trained.outputs(tf.constant(IMAGES))['logits']
        trained.restore(session)
        expected = session.run(expected)
    model = model_builder_factory.create_model(NAME, checkpoint=model_dir)
    with tf.Graph().as_default(), tf.Session() as session:
        logits = [model(tf.constant(IMAGES.astype(dtype))) for dtype in ('uint8', 'float64')]
        model.restore(session)
        for output in session.run(logits):
            np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_every_call_of_a_graph_has_the_same_variables(model_dir):
    """In training too, from whatever scope; what else the graph holds is left alone."""
    model = model_builder_factory.create_model(NAME, checkpoint=model_dir)
    with tf.Graph().as_default() as graph, tf.Session() as session:
        with tf.variable_scope('mine'):
            first = model(tf.constant(IMAGES))
        first_endpoints, variables = model.endpoints, list(model.variables)
        other = tf.get_variable('other', [], initializer=tf.ones_initializer())
        assert all(variable.op.name.startswith(f'mine/{NAME}/') for variable in variables)
        assert not graph.get_collection(tf.GraphKeys.UPDATE_OPS)
        with tf.variable_scope('elsewhere'):
            second = model(tf.constant(IMAGES))
            model(tf.constant(IMAGES), training=True)
        assert tf.global_variables() == variables + [other] and model.variables == variables
        assert model.endpoints['features'] is not first_endpoints['features']
        assert len(graph.get_collection(tf.GraphKeys.UPDATE_OPS)) >= 20
        session.run(other.initializer)
        model.restore(session)
        np.testing.assert_array_equal(*session.run([first, second]))
        assert session.run(other) == 1
    # Another graph has variables of its own; two models of a name keep apart.
    with tf.Graph().as_default():
        model(tf.constant(IMAGES))
        assert len(model.variables) == len(variables)
        with pytest.raises(ValueError, match='in another tf.variable_scope'):
            model_builder_factory.create_model(NAME, checkpoint=model_dir)(tf.constant(IMAGES))


def test_without_a_checkpoint_restore_gives_initial_values():
    model = model_builder_factory.create_model('efficientnet-b0', 0, override_params=NARROW)
    with tf.Graph().as_default(), tf.Session() as session:
        with pytest.raises(ValueError, match='call it on images before restore'):
            model.restore(session)
        features = model(tf.placeholder_with_default(IMAGES, [None, None, None, 3]))
        model.restore(session)
        variances = [variable for variable in model.variables
                     if variable.op.name.endswith('moving_variance')]
        assert all((value == 1).all() for value in session.run(variances))
        assert session.run(features).shape == (2, features.shape[1].value)
    assert 'head' not in model.endpoints


@pytest.mark.parametrize('arguments, message', [
    (dict(model_name='efficientnet-b9'), "'efficientnet-b9'; choose one of efficientnet-b0, "),
    (dict(override_params={'depth': 3}), "override_params: unknown key 'depth'; choose from "),
    (dict(model_name='efficientnet-b0'), f'contains {NAME}, not efficientnet-b0; create that'),
    (dict(num_classes=8), 'has 7 classes, not 8; leave num_classes out'),
    (dict(checkpoint='/nowhere/model.ckpt-1'), '/nowhere/model.ckpt-1'),
    (dict(checkpoint=__file__), 'test_create_model.py')])
def test_what_does_not_fit_is_one_sentence(model_dir, arguments, message):
    with pytest.raises((ValueError, UserError)) as caught:
        model_builder_factory.create_model(**{
            'model_name': NAME, 'checkpoint': model_dir, **arguments})
    assert message in str(caught.value) and '\n' not in str(caught.value)


def run_example(number, **paths):
    """Runs a code block of docs/as_a_library.md; returns its variables.

    Args:
      number: of the block, from 0.
      **paths: replacements of the folders that the text names by their first part.
    """
    with open(os.path.join(DOCS, 'as_a_library.md'), encoding='utf-8') as file:
        blocks = re.findall(r'```python\n(.*?)```', file.read(), re.DOTALL)
    assert len(blocks) == 6
    block = re.sub(r"'/(runs|weights)/", lambda match: f"'{paths[match.group(1)]}/", blocks[number])
    variables = {}
    with tf.Graph().as_default():
        exec(block, variables)
    return variables


@pytest.mark.slow
def test_the_examples_with_a_checkpoint_run(model_dir, tmp_path):
    os.symlink(model_dir, str(tmp_path / '4e'))
    features = run_example(0, runs=tmp_path)['features']
    assert features.shape[0] == 2 and np.isfinite(features).all() and features.std() > 0
    found = run_example(1, runs=tmp_path)
    assert found['losses'][0] != found['losses'][1] and np.isfinite(found['losses']).all()
    found = run_example(3, runs=tmp_path)
    variables = found['teacher'].variables, found['student'].variables
    assert not set(variables[0]) & set(variables[1]) and len(variables[0]) == len(variables[1])
    assert 0 < found['distance'] < 10


@pytest.mark.slow
def test_the_example_with_an_estimator_starts_from_the_checkpoint(model_dir, tmp_path):
    """After a step with a learning rate of 0.01, weights are still near those of the run."""
    os.symlink(model_dir, str(tmp_path / '4e'))
    run_example(2, runs=tmp_path)
    trained, started = (tf.train.load_checkpoint(str(tmp_path / name))
                        for name in ('species', '4e'))
    assert trained.get_tensor('global_step') == 1
    names = [name for name, shape in started.get_variable_to_shape_map().items()
             if name.endswith('condconv_kernel') and len(shape) == 2]
    assert names
    for name in names:
        average = started.get_tensor(f'{name}/ExponentialMovingAverage')
        assert np.abs(trained.get_tensor(name) - average).max() < 0.01
        assert np.abs(started.get_tensor(name) - average).max() > 0.01


@pytest.mark.slow
def test_the_example_with_weights_of_timm_runs(tmp_path, golden_dir):
    with open(os.path.join(golden_dir, 'variables', 'efficientnet-b0.json')) as file:
        shapes = {name.split('/', 1)[1]: shape for name, shape, _ in json.load(file)['variables']}
    values = {name: np.full(shape, index / 1000, np.float32)
              for index, (name, shape) in enumerate(shapes.items())}
    pytorch.write(NetworkWeights('efficientnet-b0', 1000, values),
                  str(tmp_path / 'tf_efficientnet_b0.safetensors'), enable_ema=True)
    model = run_example(4, weights=tmp_path)['model']
    with tf.Graph().as_default(), tf.Session() as session:
        model(tf.zeros([1, 32, 32, 3]))
        model.restore(session)
        for variable, value in zip(model.variables, session.run(model.variables)):
            np.testing.assert_array_equal(value, values[variable.op.name.split('/', 1)[1]])


def test_the_example_of_a_network_with_condconv_layers_runs():
    found = run_example(5)
    assert found['outputs'].shape == [8, 16, 16, 32] and found['logits'].shape == [8, 10]
    with found['logits'].graph.as_default(), tf.Session() as session:
        session.run(tf.global_variables_initializer())
        assert session.run(found['logits']).std() > 0
