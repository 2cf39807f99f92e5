"""Clipping and accumulation of gradients, through the training step of a run."""
import itertools
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from benchmarks import step_operations
from config import run_config
from runtime import stock
from training import accumulation
from training import model_fn as model_fns
from training import tensor_names

MODEL = 'efficientnet-condconv-b0-8e'


def make_runtime(**values):
    return stock.StockRuntime(run_config.from_values(dict(
        data_dir='synthetic', model_dir='/tmp/never_made', model_name=MODEL, lr_schedule='constant',
        lr_warmup_epochs=0.0, num_train_images=96, base_learning_rate=1.0, train_steps=9,
        **values)))


def trained(build_spec, num_steps, start=None):
    """Returns what a checkpoint holds after some steps, and the scalars that the last step shows.

    Args:
      build_spec: function without arguments that builds the training step.
      start: path prefix of a checkpoint with all variables to start from, made if it is not there.
    """
    with tf.Graph().as_default() as graph, tf.Session() as session:
        tf.set_random_seed(1)
        tf.train.get_or_create_global_step()
        spec = build_spec()
        shown = {name: graph.get_tensor_by_name(f'{name}:0') for name in tensor_names.PROGRESS}
        shown.update((operation.name.split('/')[-1], operation.outputs[0])
                     for operation in graph.get_operations()
                     if operation.name.startswith(tensor_names.SCALARS))
        session.run(tf.global_variables_initializer())
        if start:
            saver = tf.train.Saver(tf.global_variables())
            (saver.restore if os.path.exists(f'{start}.index') else saver.save)(session, start)
        session.run(tf.local_variables_initializer())
        for _ in range(num_steps):
            _, values = session.run([spec.train_op, shown])
        return {variable.op.name: session.run(variable)
                for variable in tf.global_variables() + tf.local_variables()}, values


@pytest.mark.parametrize('clip_norm, factor', [(2.0, 2 / 5), (7.0, 1), (0.0, 1)])
def test_clipping_spans_the_head_and_the_rest(clip_norm, factor):
    """One factor for both, by the norm of 3 and 4; the head moves ten times as far."""
    runtime = make_runtime(
        gradient_clip_norm=clip_norm, optimizer='sgd', head_learning_rate_multiplier=10.0,
        batch_size=128, weight_decay=0.0, moving_average_decay=0.0)

    def build():
        body, head = (tf.get_variable(f'{MODEL}/{part}/kernel', initializer=[0.0, 0.0])
                      for part in ('body', 'head'))
        loss = tf.reduce_sum(body * [3.0, 0.0]) + tf.reduce_sum(head * [0.0, -4.0])
        return model_fns.train_spec(
            {tensor_names.CROSS_ENTROPY: loss, tensor_names.TOP_1: tf.constant(0.0)},
            runtime.config, runtime)

    variables, shown = trained(build, 2)
    rate = 128 / 256
    np.testing.assert_allclose(variables[f'{MODEL}/body/kernel'], [-2 * rate * factor * 3, 0],
                               rtol=1e-5)
    np.testing.assert_allclose(variables[f'{MODEL}/head/kernel'], [0, 2 * 10 * rate * factor * 4],
                               rtol=1e-5)
    assert shown['gradient_norm'] == pytest.approx(5)


def measured(features, labels):
    """A network with a hidden layer and a head, and what training measures of it."""
    random = np.random.RandomState(1)
    for name, shape in ((f'{MODEL}/body/kernel', [5, 8]), (f'{MODEL}/head/kernel', [8, 3])):
        kernel = tf.get_variable(name, shape, initializer=tf.constant_initializer(
            random.normal(size=shape)))
        features = tf.matmul(tf.tanh(features), kernel)
    return {tensor_names.CROSS_ENTROPY: tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=features)),
            tensor_names.TOP_1: tf.reduce_mean(tf.cast(
                tf.equal(tf.argmax(features, 1, output_type=tf.int32), labels), tf.float32))}


@pytest.mark.parametrize('values', [
    dict(optimizer='adamw', gradient_clip_norm=0.5, weight_decay=0.1),
    dict(optimizer='rmsprop', weight_decay=0.1, head_learning_rate_multiplier=3.0),
    dict(optimizer='lars', gradient_clip_norm=0.5)], ids=str)
def test_micro_batches_equal_one_batch(values):
    """Three of 4 against one of 12: variables, slots, averages, and all that is shown."""
    def trained_with(number):
        runtime = make_runtime(batch_size=12 // number, gradient_accumulation_steps=number,
                               moving_average_decay=0.9, **values)
        assert runtime.config.global_batch_size == 12

        def build():
            random = np.random.RandomState(2)
            first, *rest = accumulation.micro_batches(
                tf.constant(random.normal(size=[12, 5]), tf.float32),
                tf.constant(random.randint(3, size=12), tf.int32), number)
            return model_fns.train_spec(measured(*first), runtime.config, runtime,
                                        accumulation.later(measured, rest))

        return trained(build, 3)

    (one, one_shown), (three, three_shown) = trained_with(1), trained_with(3)
    assert set(one) == set(three) and one_shown.keys() == three_shown.keys()
    assert one['global_step'] == three['global_step'] == 3
    for name, value in itertools.chain(one.items(), one_shown.items()):
        np.testing.assert_allclose({**three, **three_shown}[name], value, rtol=2e-5, atol=1e-6,
                                   err_msg=name)


@pytest.mark.slow
def test_micro_batches_of_a_network_equal_one_batch(tmp_path):
    """With its batch norm frozen, what the classifier learns and each number that is shown."""
    def trained_with(number):
        runtime = make_runtime(
            batch_size=6 // number, gradient_accumulation_steps=number, freeze='all_but_classifier',
            dropout_rate=0.0, survival_prob=1.0, input_image_size=32, width_coefficient=0.25,
            depth_coefficient=0.25, num_label_classes=10, transpose_input=number > 1)
        images = np.random.RandomState(1).randint(256, size=[6, 32, 32, 3]).astype(np.uint8)
        if number > 1:
            images = images.transpose([1, 2, 3, 0])
        return trained(lambda: model_fns.model_fn(
            tf.constant(images), {'label': tf.range(6)}, tf.estimator.ModeKeys.TRAIN,
            model_fns.make_params(runtime.config, runtime)), 2, str(tmp_path / 'start'))

    (one, one_shown), (two, two_shown) = trained_with(1), trained_with(2)
    assert set(one) == set(two) and one_shown.keys() == two_shown.keys()
    name = f'{MODEL}/head/dense/kernel'
    for key, value in {name: one[name], **one_shown}.items():
        np.testing.assert_allclose({**two, **two_shown}[key], value, rtol=1e-4, atol=1e-5,
                                   err_msg=key)


@pytest.mark.slow
def test_a_micro_batch_waits_for_the_one_before():
    """Its statistics come after the gradients and the statistics of the one before."""
    runtime = make_runtime(batch_size=2, gradient_accumulation_steps=2, input_image_size=32,
                           width_coefficient=0.25, depth_coefficient=0.25, num_label_classes=10)
    with tf.Graph().as_default() as graph:
        tf.train.get_or_create_global_step()
        model_fns.model_fn(
            tf.zeros([4, 32, 32, 3], tf.uint8), {'label': tf.zeros([4], tf.int32)},
            tf.estimator.ModeKeys.TRAIN, model_fns.make_params(runtime.config, runtime))
        updates = [update.op for update in tf.get_collection(tf.GraphKeys.UPDATE_OPS)]
    first, second = updates[:len(updates) // 2], updates[len(updates) // 2:]
    assert first and [each.inputs[0] for each in first] == [each.inputs[0] for each in second]
    # The statistics of the stem are the first to be computed.
    needed = step_operations.needed_by(second[:1])
    assert needed.issuperset(first)
    is_backward = [operation in needed for operation in graph.get_operations()
                   if operation.type.startswith('FusedBatchNormGrad')]
    assert sum(is_backward) * 2 == len(is_backward) > 0
