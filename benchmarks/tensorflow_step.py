"""The steps of the TensorFlow contenders: batched layers, or the per-example loop."""
import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks import naive_condconv
from benchmarks import protocol
from common.image_sizes import ImageSize
from config import run_config
from config import settings
import model_builder_factory
from tfrecords import schema
from training import model_fn

# With this rate, the loss on the single batch falls within a few steps and rarely jumps.
LEARNING_RATE = 0.002
NUM_CLASSES = schema.IMAGENET.num_classes


def make_config(options):
    """Returns the `Config` of a default training run with a constant learning rate."""
    return run_config.Config(
        data=settings.DataConfig(batch_size=options.batch_size,
                                 num_train_images=schema.IMAGENET.num_images[schema.TRAIN]),
        model=settings.ModelConfig(model_name=options.model_name, num_label_classes=NUM_CLASSES),
        optimization=settings.OptimizationConfig(
            input_image_size=ImageSize.of(options.image_size).written, lr_schedule='constant',
            lr_warmup_epochs=0.0, base_learning_rate=LEARNING_RATE * 256 / options.batch_size),
        run=settings.RunConfig(train_steps=1000),
        runtime=settings.RuntimeConfig())


def build(options, config, runtime):
    """Builds a step in the default graph.

    A variable holds the batch of random images, because other benchmarks measure the input.

    Args:
      options: options of `protocol.parse_options`.
      config: the `Config` from `make_config`.
      runtime: the runtime of the contender; None for the per-example loop.

    Returns:
      (loss, the train op or the logits).
    """
    images = tf.get_variable(
        'images', [options.batch_size, *ImageSize.of(options.image_size), 3], trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES],
        initializer=tf.random_uniform_initializer(0.0, 255.0, seed=0))
    labels = tf.constant(
        np.random.RandomState(0).randint(0, NUM_CLASSES, options.batch_size), tf.int32)
    is_training, is_ours = options.task == protocol.TRAIN, options.contender != protocol.NAIVE
    if is_training and is_ours:
        spec = model_fn.model_fn(
            images, {'label': labels}, tf.estimator.ModeKeys.TRAIN,
            model_fn.make_params(config, runtime))
        return spec.loss, spec.train_op
    builder = model_builder_factory.get_model_builder(options.model_name)
    images = builder.normalize(images)
    if is_training:
        return naive_condconv.build_train_step(
            images, labels, options.model_name, config.learning_rate)
    if is_ours:
        logits, _ = builder.build_model(
            images, options.model_name, training=False, uses_cpu_layers=runtime.computes_on_cpu)
    else:
        logits, _ = naive_condconv.build_model(images, options.model_name, training=False)
    return tf.losses.sparse_softmax_cross_entropy(labels, logits), logits
