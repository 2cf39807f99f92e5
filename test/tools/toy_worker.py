"""Trains a network without batch norm through the stock runtime, alone or as TF_CONFIG says.

    toy_worker.py MODEL_DIR ROWS_PER_WORKER MAX_STEPS [SETTINGS]

SETTINGS is a JSON object. Loss, weight decay, optimizer and moving average are the program's own.
"""
import json
import sys

import numpy as np
import tensorflow.compat.v1 as tf

from checkpoints import store
from config import run_config
import runtime as runtimes
from training import accumulation
from training import model_fn as model_fns
from training import saving
from training import tensor_names

NUM_FEATURES = 5
NUM_CLASSES = 3


def network(features):
    random = np.random.RandomState(1)
    outputs = features
    for name, width in (('hidden', 8), ('logits', NUM_CLASSES)):
        shape = [outputs.shape[-1].value, width]
        kernel = tf.get_variable(
            f'{name}/kernel', shape, initializer=tf.constant_initializer(random.normal(size=shape)))
        outputs = tf.matmul(tf.tanh(outputs), kernel)
    return outputs


def measured(features, labels):
    logits = network(features)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    is_correct = tf.equal(tf.argmax(logits, 1, output_type=tf.int32), labels)
    return {tensor_names.CROSS_ENTROPY: tf.reduce_mean(cross_entropy),
            tensor_names.TOP_1: tf.reduce_mean(tf.cast(is_correct, tf.float32))}


def model_fn(features, labels, mode, params):
    config = params['config']
    first, *rest = accumulation.micro_batches(
        features, labels, config.optimization.gradient_accumulation_steps)
    return model_fns.train_spec(measured(*first), config, params['runtime'],
                                accumulation.later(measured, rest))


def main(model_dir, rows_per_worker, max_steps, settings):
    batch_size = rows_per_worker // settings.get('gradient_accumulation_steps', 1)
    runtime = runtimes.select(run_config.from_values({
        'data_dir': model_dir, 'model_dir': model_dir, 'batch_size': batch_size,
        'num_train_images': 100, 'train_steps': 100, 'base_learning_rate': 1.0,
        'lr_warmup_epochs': 0.0, 'moving_average_decay': 0.9, 'weight_decay': 0.01,
        'save_checkpoints_steps': 100, 'accelerator': 'stock', **settings}))

    def input_fn():
        random = np.random.RandomState(2)
        rows = random.normal(size=[96, NUM_FEATURES]).astype(np.float32)
        labels = random.randint(NUM_CLASSES, size=96).astype(np.int32)
        start_step = store.step_of(store.latest(model_dir))
        options = tf.data.Options()
        options.experimental_distribute.auto_shard = False
        # Worker by worker, the rows that one worker alone has in a step.
        batches = tf.data.Dataset.from_tensor_slices((rows, labels)).repeat().batch(
            rows_per_worker, drop_remainder=True).shard(runtime.world_size, runtime.rank)
        return batches.skip(start_step).with_options(options)

    params = {'config': runtime.config, 'runtime': runtime}
    runtime.train(model_fn, params, input_fn, max_steps,
                  lambda _: [saving.make_hook(runtime.config, runtime)])


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(*sys.argv[4:] or ['{}']))
