"""The losses of --loss against NumPy, and the same function in training and evaluation."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from config import optimization_settings
from config import run_config
from runtime import stock
from training import losses
from training import model_fn as model_fns

NUM_CLASSES = 6
SOFTMAX, BINARY = optimization_settings.LOSSES


def numpy_loss(name, logits, targets, label_smoothing=0.0):
    logits = np.asarray(logits, np.float64)
    targets = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    if name == SOFTMAX:
        return (targets * (np.log(np.exp(logits).sum(1, keepdims=True)) - logits)).sum(1)
    probabilities = 1 / (1 + np.exp(-logits))
    return -(targets * np.log(probabilities)
             + (1 - targets) * np.log(1 - probabilities)).sum(1)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1])
@pytest.mark.parametrize('name', [SOFTMAX, BINARY])
def test_losses_and_their_gradients_are_numpys(name, label_smoothing):
    random = np.random.RandomState(0)
    logits = random.normal(scale=3, size=[8, NUM_CLASSES]).astype(np.float32)
    one_hot = np.eye(NUM_CLASSES)[random.randint(NUM_CLASSES, size=8)]
    share = random.uniform(size=[8, 1])
    mixed = (share * one_hot + (1 - share) * one_hot[::-1]).astype(np.float32)
    with tf.Session() as session:
        tensor = tf.constant(logits)
        loss = losses.of_examples(name, tensor, tf.constant(mixed), label_smoothing)
        found, gradient = session.run([loss, tf.gradients(loss, tensor)[0]])
    np.testing.assert_allclose(found, numpy_loss(name, logits, mixed, label_smoothing), rtol=1e-5)
    for index in range(NUM_CLASSES):
        step = 1e-5 * np.eye(NUM_CLASSES)[index]
        slope = (numpy_loss(name, logits + step, mixed, label_smoothing)
                 - numpy_loss(name, logits - step, mixed, label_smoothing)) / 2e-5
        np.testing.assert_allclose(gradient[:, index], slope, atol=1e-5)


def test_confident_logits_have_a_finite_binary_cross_entropy():
    logits = np.array([[90.0, -90.0, -90.0], [-90.0, 90.0, 90.0]], np.float32)
    with tf.Session() as session:
        found = session.run(losses.of_examples(
            BINARY, tf.constant(logits), tf.constant([[1.0, 0, 0], [1.0, 0, 0]]), 0.0))
    np.testing.assert_allclose(found, [0.0, 270.0], atol=1e-6)


@pytest.mark.parametrize('name', [SOFTMAX, BINARY])
def test_evaluation_measures_what_training_minimizes(tmp_path, name):
    config = run_config.from_values(dict(
        data_dir='synthetic', model_dir=str(tmp_path), model_name='efficientnet-lite0',
        width_coefficient=0.25, depth_coefficient=0.25, batch_size=4,
        num_label_classes=NUM_CLASSES, train_steps=1, survival_prob=1.0, dropout_rate=0.0,
        weight_decay=0.0, label_smoothing=0.1, loss=name))
    labels = np.array([0, 3, 3, 5])
    images = np.random.RandomState(0).randint(0, 256, [4, 32, 32, 3]).astype(np.float32)
    params = model_fns.make_params(config, stock.StockRuntime(config))
    for mode, weight, label_smoothing in (
            (tf.estimator.ModeKeys.TRAIN, np.ones(4), 0.1),
            (tf.estimator.ModeKeys.EVAL, np.array([1.0, 1.0, 1.0, 0.0]), 0.0)):
        with tf.Graph().as_default() as graph, tf.Session() as session:
            tf.set_random_seed(1)
            spec = model_fns.model_fn(
                images, {'label': tf.constant(labels, tf.int32),
                         'weight': tf.constant(weight, tf.float32)}, mode, params)
            session.run(tf.global_variables_initializer())
            logits = graph.get_tensor_by_name('efficientnet-lite0/head/dense/BiasAdd:0')
            loss, logits = session.run([spec.loss, logits])
        expected = numpy_loss(name, logits, np.eye(NUM_CLASSES)[labels], label_smoothing)
        assert loss == pytest.approx(np.average(expected, weights=weight), rel=1e-4)
