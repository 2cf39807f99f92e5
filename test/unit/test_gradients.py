"""Clipping and accumulation of gradients, through the training step of a run."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from config import run_config
from runtime import stock
from training import model_fn as model_fns
from training import tensor_names

MODEL = 'efficientnet-condconv-b0-8e'


def make_runtime(**values):
    return stock.StockRuntime(run_config.from_values(dict(
        data_dir='synthetic', model_dir='/tmp/never_made', model_name=MODEL, lr_schedule='constant',
        lr_warmup_epochs=0.0, num_train_images=96, base_learning_rate=1.0, train_steps=9,
        **values)))


def trained(build_spec, num_steps):
    """Returns what a checkpoint holds after some steps, and the scalars that the last step shows.

    Args:
      build_spec: function without arguments that builds the training step.
    """
    with tf.Graph().as_default() as graph, tf.Session() as session:
        tf.set_random_seed(1)
        tf.train.get_or_create_global_step()
        spec = build_spec()
        shown = {name: graph.get_tensor_by_name(f'{name}:0') for name in tensor_names.PROGRESS}
        shown.update((operation.name.split('/')[-1], operation.outputs[0])
                     for operation in graph.get_operations()
                     if operation.name.startswith(tensor_names.SCALARS))
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
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
