"""The reference network: names, shapes, logits, gradients, batch-norm updates."""
import json
import os

import golden_weights
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from condconv_layers import CondConvImplementation
import efficientnet_builder
import model_builder_factory

LOGIT_MODELS = ('efficientnet-b0', 'efficientnet-condconv-b0-4e')
LABELS = (0, 1, 500, 999)
# Ways to compute the network: (uses_cpu_layers, condconv_implementation).
IMPLEMENTATIONS = [(False, 'fold'), (False, 'loop'), (True, 'fold')]


def build(images, model_name, training=False, uses_cpu_layers=False, **overrides):
    return model_builder_factory.get_model_builder(model_name).build_model(
        images, model_name, training=training, override_params=overrides,
        uses_cpu_layers=uses_cpu_layers)


def load_weights(session, statistics=None):
    """Sets all variables in one go: `Variable.load` would take half a minute for as many."""
    variables = {variable.op.name: variable for variable in tf.global_variables()}
    values = {name: golden_weights.weight(name, variable.shape.as_list())
              for name, variable in variables.items()}
    if statistics:
        values.update({name: statistics[f'stat:{name}'] for name in variables
                       if f'stat:{name}' in statistics.files})
    initializers = {name: variable.initializer for name, variable in variables.items()}
    session.run(list(initializers.values()), {
        initializer.inputs[1]: values[name] for name, initializer in initializers.items()})


def normalized_images(model_name):
    builder = model_builder_factory.get_model_builder(model_name)
    images = golden_weights.patch_images(4, 224)
    return ((images - np.float32(builder.MEAN_RGB)) / np.float32(builder.STDDEV_RGB)).astype(
        np.float32)


# One of each family; building all of them takes a minute.
QUICK_MODELS = ('efficientnet-b0', 'efficientnet-condconv-b0-8e', 'efficientnet-lite0',
                'efficientnet-edgetpu-S')


@pytest.mark.parametrize('model_name', [
    pytest.param(name, marks=() if name in QUICK_MODELS else pytest.mark.slow)
    for name in model_builder_factory.MODEL_NAMES])
def test_variables_and_endpoints_are_the_references(model_name, golden_dir):
    with open(os.path.join(golden_dir, 'variables', f'{model_name}.json')) as file:
        golden = json.load(file)
    size = model_builder_factory.get_model_input_size(model_name)
    with tf.Graph().as_default():
        _, endpoints = build(tf.placeholder(tf.float32, [1, size, size, 3]), model_name)
        trainable = {variable.op.name for variable in tf.trainable_variables()}
        variables = [[variable.op.name, variable.shape.as_list(), variable.op.name in trainable]
                     for variable in tf.global_variables()]
        assert variables == golden['variables']
        for name, shape in golden['endpoint_shapes_batch_1'].items():
            assert endpoints[name].shape.as_list() == shape, name


def implementations_of(model_names):
    """(model, uses_cpu_layers, condconv_implementation): the last only where there is CondConv."""
    return [(name, *implementation) for name in model_names for implementation in IMPLEMENTATIONS
            if 'condconv' in name or implementation[1] == 'fold']


@pytest.mark.slow
@pytest.mark.parametrize(
    'model_name, uses_cpu_layers, condconv_implementation', implementations_of(LOGIT_MODELS))
def test_inference_is_the_references(
        model_name, uses_cpu_layers, condconv_implementation, golden_dir):
    golden = np.load(os.path.join(golden_dir, 'logits', f'golden_calibrated_{model_name}.npz'))
    with tf.Graph().as_default(), tf.Session() as session:
        images = tf.placeholder(
            tf.float32, [4 if condconv_implementation == 'loop' else None, 224, 224, 3])
        logits, endpoints = build(images, model_name, uses_cpu_layers=uses_cpu_layers,
                                  condconv_implementation=condconv_implementation)
        load_weights(session, golden)
        routing = [value for name, value in endpoints.items() if name.endswith('/routing_weights')]
        names = [name[:-len('_mean_hw')] for name in golden.files if name.endswith('_mean_hw')]
        means = [tf.reduce_mean(endpoints[name], [1, 2]) for name in names]
        values = session.run([logits, endpoints['pooled_features'], routing, means],
                             {images: normalized_images(model_name)})
    assert_close(values[0], golden['logits'])
    assert_close(values[1], golden['pooled_features'])
    assert len(values[2]) == sum(name.startswith('routing_') for name in golden.files)
    for index, weights in enumerate(values[2]):
        assert_close(weights, golden[f'routing_{index}'])
    for name, mean in zip(names, values[3]):
        assert_close(mean, golden[f'{name}_mean_hw'])


def assert_close(value, golden, tolerance=1e-3):
    assert np.abs(value - golden).max() <= tolerance * np.abs(golden).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    'model_name, uses_cpu_layers, condconv_implementation', implementations_of(LOGIT_MODELS))
def test_training_is_the_references(
        model_name, uses_cpu_layers, condconv_implementation, golden_dir):
    golden = np.load(os.path.join(golden_dir, 'logits', f'golden_{model_name}.npz'))
    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = build(tf.constant(normalized_images(model_name)), model_name, training=True,
                          dropout_rate=0.0, survival_prob=1.0, uses_cpu_layers=uses_cpu_layers,
                          condconv_implementation=condconv_implementation)
        cross_entropy = tf.losses.softmax_cross_entropy(
            tf.one_hot(LABELS, 1000), logits, label_smoothing=0.1)
        trainable = tf.trainable_variables()
        l2 = 1e-5 * tf.add_n([tf.nn.l2_loss(variable) for variable in trainable
                              if 'batch_normalization' not in variable.name])
        norms = {variable.op.name: tf.norm(gradient) for variable, gradient in zip(
            trainable, tf.gradients(cross_entropy + l2, trainable))}
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        load_weights(session)
        values = session.run([logits, cross_entropy, l2, norms, updates])
        statistics = {variable.op.name: variable for variable in tf.global_variables()}
        sums = session.run([tf.reduce_sum(statistics[name]) for name in golden['moving_names']])
    assert_close(values[0], golden['train_logits'])
    np.testing.assert_allclose(values[1], golden['train_cross_entropy'], rtol=1e-5)
    np.testing.assert_allclose(values[2], golden['train_l2'], rtol=1e-5)
    np.testing.assert_allclose(sums, golden['moving_sums_after_one_update'], rtol=1e-4, atol=1e-5)
    # Where batch norm cancels a gradient what is left is rounding; hence the absolute part.
    np.testing.assert_allclose([values[3][name] for name in golden['train_var_names']],
                               golden['train_grad_norms'], rtol=1e-3,
                               atol=1e-4 * golden['train_grad_norms'].max())


@pytest.mark.slow
def test_unknown_batch_size_gives_the_same_logits():
    images = np.random.RandomState(0).uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)
    outputs = []
    for batch_size in (None, 3):
        with tf.Graph().as_default(), tf.Session() as session:
            placeholder = tf.placeholder(tf.float32, [batch_size, 64, 64, 3])
            logits, _ = build(placeholder, 'efficientnet-condconv-b0-4e', num_classes=7)
            load_weights(session)
            outputs.append(session.run(logits, {placeholder: images}))
    assert outputs[0].shape == (3, 7)
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_unknown_batch_size_trains_with_the_same_batch_norm_update():
    images = np.random.RandomState(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    statistics = []
    for batch_size in (None, 2):
        with tf.Graph().as_default(), tf.Session() as session:
            placeholder = tf.placeholder(tf.float32, [batch_size, 32, 32, 3])
            build(placeholder, 'efficientnet-b0', training=True, survival_prob=1.0)
            load_weights(session)
            session.run(tf.get_collection(tf.GraphKeys.UPDATE_OPS), {placeholder: images})
            statistics.append(session.run(
                'efficientnet-b0/stem/tpu_batch_normalization/moving_variance:0'))
    np.testing.assert_allclose(*statistics, rtol=1e-6)


def test_channels_first_has_the_same_variables_and_transposed_shapes():
    shapes = {}
    for data_format, image_shape in (('channels_last', [2, 64, 64, 3]),
                                     ('channels_first', [2, 3, 64, 64])):
        with tf.Graph().as_default():
            _, endpoints = build(tf.placeholder(tf.float32, image_shape),
                                 'efficientnet-condconv-b0-4e', data_format=data_format)
            variables = [(variable.name, variable.shape) for variable in tf.global_variables()]
            shapes[data_format] = variables, endpoints['features'].shape.as_list()
    assert shapes['channels_first'][0] == shapes['channels_last'][0]
    assert shapes['channels_last'][1] == [2, 2, 2, 320]
    assert shapes['channels_first'][1] == [2, 320, 2, 2]


@pytest.mark.parametrize('name, value, supported', [
    ('data_format', 'channels_first', 'channels_last'),
    ('batch_norm_variance', 'as_fused', 'published')])
def test_what_cpu_layers_lack_is_refused(name, value, supported):
    with pytest.raises(ValueError, match=f'{value}: not supported by CPU.* {supported}'):
        build(tf.placeholder(tf.float32, [2, 3, 64, 64]), 'efficientnet-b0', uses_cpu_layers=True,
              **{name: value})


def test_fine_tuning_leaves_batch_norm_in_inference_mode():
    with tf.Graph().as_default():
        builder = model_builder_factory.get_model_builder('efficientnet-b0')
        builder.build_model(tf.zeros([2, 32, 32, 3]), 'efficientnet-b0', training=True,
                            fine_tuning=True)
        assert not tf.get_collection(tf.GraphKeys.UPDATE_OPS)


def test_features_only_has_no_head():
    with tf.Graph().as_default():
        builder = model_builder_factory.get_model_builder('efficientnet-condconv-b0-4e')
        features, endpoints = builder.build_model_base(
            tf.zeros([2, 64, 64, 3]), 'efficientnet-condconv-b0-4e', training=False)
        assert features.shape.as_list() == [2, 2, 2, 320]
        assert 'head' not in endpoints


def test_dropout_and_stochastic_depth_act_in_training_only():
    images = np.random.RandomState(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    for training, is_random in ((True, True), (False, False)):
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(1)
            logits, _ = build(tf.constant(images), 'efficientnet-b0', training=training,
                              survival_prob=0.5, num_classes=5)
            load_weights(session)
            first, second = session.run(logits), session.run(logits)
            assert np.array_equal(first, second) != is_random


def test_unknown_names_and_keys_list_what_exists():
    with pytest.raises(ValueError, match='efficientnet-b17.*efficientnet-condconv-b0-8e-depth'):
        model_builder_factory.get_model_builder('efficientnet-b17')
    with pytest.raises(ValueError, match='dropout_rat.*dropout_rate'):
        efficientnet_builder.get_model_params('efficientnet-b0', {'dropout_rat': 0.1})
    with pytest.raises(ValueError, match='relu7.*relu6'):
        efficientnet_builder.get_model_params('efficientnet-b0', {'relu_fn': 'relu7'})
    with pytest.raises(ValueError, match="'unheard-of'.*fold, loop, experts_depthwise, experts"):
        efficientnet_builder.get_model_params(
            'efficientnet-b0', {'condconv_implementation': 'unheard-of'})
    with pytest.raises(ValueError, match='channels_middle.*channels_last'):
        efficientnet_builder.get_model_params('efficientnet-b0', {'data_format': 'channels_middle'})


@pytest.mark.parametrize('implementation', CondConvImplementation)
def test_an_implementation_may_be_named_by_its_value(implementation):
    for value in (implementation, implementation.value):
        params = efficientnet_builder.get_model_params(
            'efficientnet-b0', {'condconv_implementation': value})
        assert params.condconv_implementation is implementation


def test_stage_strings():
    block = efficientnet_builder.decode_stage('r4_k5_s22_e6_i112_o192_se0.25_cc')
    assert (block.num_repeat, block.kernel_size, block.strides) == (4, 5, (2, 2))
    assert block.condconv and block.id_skip and not block.fused_conv and block.se_ratio == 0.25
    for text in ('r1_k3', 'r1_k3_s11_e1_i32_o16_x', 'r1_k3_s11_e1_i32_o16_f1_cc'):
        with pytest.raises(ValueError):
            efficientnet_builder.decode_stage(text)


def test_model_dir_gets_the_parameters(tmp_path):
    with tf.Graph().as_default():
        builder = model_builder_factory.get_model_builder('efficientnet-b0')
        builder.build_model(tf.zeros([1, 32, 32, 3]), 'efficientnet-b0', training=False,
                            override_params={'num_classes': 3}, model_dir=str(tmp_path))
    assert 'num_classes: 3\n' in (tmp_path / 'model_params.txt').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('model_name', [
    'efficientnet-b1', 'efficientnet-condconv-b0-8e', 'efficientnet-condconv-b0-8e-depth',
    'efficientnet-lite0', 'efficientnet-edgetpu-S'])
def test_logits_are_those_of_the_last_commit(model_name, golden_dir, regenerates_goldens):
    """No reference figures exist here: a failure means that our own old checkpoints differ."""
    path = os.path.join(golden_dir, 'own', 'logits.json')
    images = golden_weights.patch_images(2, 63) / 128 - 1
    with tf.Graph().as_default(), tf.Session() as session:
        logits, _ = build(tf.constant(images, tf.float32), model_name, num_classes=5)
        load_weights(session)
        values = session.run(logits).tolist()
    with open(path) as file:
        golden = json.load(file)
    if regenerates_goldens:
        with open(path, 'w') as file:
            json.dump({**golden, model_name: values}, file, indent=1, sort_keys=True)
    else:
        assert_close(np.array(values), np.array(golden[model_name]))
