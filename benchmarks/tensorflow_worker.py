"""A TensorFlow contender as `benchmarks.protocol` wants it: ours or the naive one.

Under an interpreter that has intel-tensorflow, the first one is that of oneDNN's kernels.
"""
import time

import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks import naive_condconv
from benchmarks import protocol
from dataset import schema
import model_builder_factory
from runtime import host
from training import config as configs
from training import model_fn
from training import settings

# The loss on the one batch falls within a few steps, and seldom jumps on the way.
LEARNING_RATE = 0.002
NUM_CLASSES = schema.IMAGENET.num_classes


def make_config(options):
    """The `Config` of a default training run, but with a constant learning rate."""
    return configs.Config(
        data=settings.DataConfig(batch_size=options.batch_size,
                                 num_train_images=schema.IMAGENET.num_images[schema.TRAIN]),
        model=settings.ModelConfig(model_name=options.model_name, num_label_classes=NUM_CLASSES),
        optimization=settings.OptimizationConfig(
            input_image_size=options.image_size, lr_schedule='constant', lr_warmup_epochs=0.0,
            base_learning_rate=LEARNING_RATE * 256 / options.batch_size),
        run=settings.RunConfig(train_steps=1000),
        runtime=settings.RuntimeConfig())


def build(options, config, runtime):
    """Builds the graph of a step in the default graph: (loss, what else a step runs).

    The one batch of random images is in a variable: reading images is another benchmark's subject.
    """
    images = tf.get_variable(
        'images', [options.batch_size, *[options.image_size] * 2, 3], trainable=False,
        collections=[tf.GraphKeys.LOCAL_VARIABLES],
        initializer=tf.random_uniform_initializer(0.0, 255.0, seed=0))
    labels = tf.constant(
        np.random.RandomState(0).randint(0, NUM_CLASSES, options.batch_size), tf.int32)
    is_training, is_ours = options.task == protocol.TRAIN, options.contender != protocol.NAIVE
    if is_training and is_ours:
        spec = model_fn.model_fn(
            images, {'label': labels}, tf.estimator.ModeKeys.TRAIN,
            dict(config=config, runtime=runtime, weights='raw'))
        return spec.loss, spec.train_op
    builder = model_builder_factory.get_model_builder(options.model_name)
    images = builder.normalize(images)
    if is_training:
        return naive_condconv.build_train_step(
            images, labels, options.model_name, config.learning_rate)
    if is_ours:
        logits, _ = builder.build_model(
            images, options.model_name, training=False,
            override_params={'formulation': runtime.formulation})
    else:
        logits, _ = naive_condconv.build_model(images, options.model_name, training=False)
    return tf.losses.sparse_softmax_cross_entropy(labels, logits), logits


def main():
    options = protocol.parse_options()
    tf.get_logger().setLevel('ERROR')
    tf.set_random_seed(1)
    start = time.monotonic()
    config = make_config(options)
    # The naive contender runs as TensorFlow comes, ours as main.py runs it.
    runtime, session_config = None, None
    if options.contender != protocol.NAIVE:
        runtime = host.HostRuntime(config)
        session_config = runtime.session_config
    fetches = build(options, config, runtime)
    # What a training run has in its graph as well.
    if options.task == protocol.TRAIN:
        tf.train.Saver()
    init_op = tf.group(tf.global_variables_initializer(), tf.local_variables_initializer())
    build_secs = time.monotonic() - start

    start = time.monotonic()
    session = tf.Session(config=session_config)
    session.run(init_op)
    # The stem's kernel and the newest variable: the last moving average or optimizer slot.
    watched = tf.trainable_variables()[0], tf.global_variables()[-1]
    initial_values = session.run(watched) if options.task == protocol.TRAIN else []
    loss_first = float(session.run(fetches)[0])
    first_step_secs = time.monotonic() - start

    def check():
        """That every step did all of its work."""
        for initial, value in zip(initial_values, session.run(watched)):
            if np.array_equal(initial, value):
                raise RuntimeError('The weights did not move.')

    protocol.serve(lambda: float(session.run(fetches)[0]), dict(
        build_secs=build_secs, first_step_secs=first_step_secs, loss_first=loss_first,
        step_nodes=count_step_nodes(session, fetches),
        graph_nodes=len(tf.get_default_graph().get_operations())), check)


def count_step_nodes(session, fetches):
    """Nodes that a step runs: those of its graph after pruning and TensorFlow's optimisations."""
    metadata = tf.RunMetadata()
    session.run(fetches, options=tf.RunOptions(output_partition_graphs=True),
                run_metadata=metadata)
    return sum(len(graph.node) for graph in metadata.partition_graphs)


if __name__ == '__main__':
    main()
