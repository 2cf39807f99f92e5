"""--freeze: which names it means, and that a training step leaves those alone."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from config import freeze
from config import run_config
from runtime import stock
from training.model_fn import model_fn

MODEL = 'efficientnet-condconv-b0-4e'  # scaled down: blocks_0 to blocks_6, CondConv from 5 on


@pytest.mark.parametrize('text, frozen, free', [
    (None, [], ['stem/conv2d', 'head/dense/kernel']),
    ('stem,blocks_1-3', ['stem/conv2d/kernel', 'blocks_1/conv2d/kernel', 'blocks_3/se/conv2d/bias'],
     ['blocks_0/conv2d/kernel', 'blocks_4/conv2d', 'blocks_10/conv2d', 'head/conv2d/kernel']),
    ('blocks_11', ['model/blocks_11/cond_conv2d_1/condconv_kernel', 'blocks_11/dense/kernel'],
     ['model/blocks_1/x', 'blocks_1/x', 'stem/x']),
    ('all_but_head', ['stem/x', 'blocks_15/x', 'model/blocks_15/x'],
     ['head/conv2d/kernel', 'head/dense/bias', 'head/tpu_batch_normalization/gamma']),
    ('all_but_classifier', ['head/conv2d/kernel', 'head/tpu_batch_normalization', 'stem/x'],
     ['head/dense/kernel', 'head/dense/bias'])])
def test_names_of_parts(text, frozen, free):
    parts = freeze.parse(text, num_blocks=16)
    assert all(name in parts for name in frozen)
    assert not any(name in parts for name in free)


@pytest.mark.parametrize('text', ['blocks', 'blocks_16', 'blocks_3-2', 'stem,', 'blocks_a', 'tail',
                                  'all_but_head,stem', 'stem blocks_1'])
def test_other_texts_are_errors_that_list_the_parts(text):
    with pytest.raises(ValueError, match='blocks_0 to blocks_15'):
        freeze.parse(text, num_blocks=16)


@pytest.mark.slow
@pytest.mark.parametrize('freeze, optimizer', [
    ('stem,blocks_0-5', 'rmsprop'), ('all_but_classifier', 'lars')])
def test_frozen_parts_keep_every_value_and_the_rest_moves(
        tmp_path, digits_dir, freeze, optimizer):
    config = run_config.from_values(dict(
        data_dir=digits_dir, model_dir='/tmp/never_made', model_name=MODEL, batch_size=8,
        width_coefficient=0.25, depth_coefficient=0.25, input_image_size=32, lr_warmup_epochs=0.0,
        weight_decay=0.1, moving_average_decay=0.5, base_learning_rate=1.0, freeze=freeze,
        optimizer=optimizer))
    frozen = config.frozen_parts
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        tf.train.get_or_create_global_step()
        images = tf.random_uniform([8, 32, 32, 3], maxval=255.0)
        labels = {'label': tf.constant(np.arange(8), tf.int32)}
        spec = model_fn(images, labels, tf.estimator.ModeKeys.TRAIN, dict(
            config=config, runtime=stock.StockRuntime(config), weights='raw'))
        session.run(tf.global_variables_initializer())
        session.run(tf.local_variables_initializer())
        saver = tf.train.Saver()

        def save():
            """The values of the model's variables as a checkpoint holds them."""
            reader = tf.train.load_checkpoint(saver.save(session, str(tmp_path / 'model')))
            return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
                    if name.startswith(f'{MODEL}/')}

        before = save()
        for _ in range(3):
            session.run(spec.train_op)
        after = save()
    weights = [name for name in before if name.endswith((
        'kernel', 'gamma', 'beta', 'bias', 'moving_mean', 'moving_variance', 'MovingAverage'))]
    is_frozen = {name: name.split('/', 1)[1] in frozen for name in weights}
    for name in weights:
        assert np.array_equal(before[name], after[name]) == is_frozen[name], name
    # Every kind is among both, the batch statistics and the CondConv kernels too.
    for held in (True, False):
        names = ' '.join(name for name in weights if is_frozen[name] == held)
        for word in ('condconv_kernel', 'moving_variance', 'gamma', 'MovingAverage'):
            assert word in names or (freeze == 'all_but_classifier' and not held)
    # Neither gradients nor an optimizer's memory are made for what is frozen.
    slots = [name for name in before if name not in weights]
    assert slots and not any(name.split('/', 1)[1] in frozen for name in slots)
