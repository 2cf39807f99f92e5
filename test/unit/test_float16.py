"""What mixed precision may hold in float16 is far from its largest number."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from benchmarks import step_operations
from config import run_config
from runtime import stock
from training import inputs
from training import model_fn as model_fns
from training import tensor_names

LARGEST = 30000     # float16 ends at 65504
STEPS = 50
TENSORS_PER_RUN = 1000


def too_large(session, tensors):
    """Names of the tensors in which the largest number is above LARGEST."""
    found = []
    for start in range(0, len(tensors), TENSORS_PER_RUN):
        part = tensors[start:start + TENSORS_PER_RUN]
        found += [tensor.name for tensor, value in zip(part, session.run(part))
                  if not np.abs(value).max(initial=0.0) <= LARGEST]
    return found


@pytest.mark.slow
def test_no_tensor_of_a_step_is_near_the_end_of_float16(tmp_path):
    """Of the loss and the gradients, without a loss scale: at the start and after some steps.

    At 32 pixels a batch norm of the last blocks has two values a channel, and gradients explode.
    """
    runtime = stock.StockRuntime(run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': str(tmp_path), 'mode': 'train', 'train_steps': STEPS,
        'model_name': 'efficientnet-condconv-b0-8e-depth', 'batch_size': 4,
        'input_image_size': 96, 'lr_warmup_epochs': 0.0, 'random_seed': 1}))
    runtime.computes_on_cpu, runtime.fuses_batch_norm_update = False, True
    with tf.Graph().as_default() as graph, tf.Session() as session:
        tf.set_random_seed(1)
        tf.train.create_global_step()
        dataset = inputs.make_input(runtime.config, is_training=True).dataset()
        iterator = tf.data.make_initializable_iterator(dataset)
        spec = model_fns.model_fn(
            *iterator.get_next(), tf.estimator.ModeKeys.TRAIN,
            model_fns.make_params(runtime.config, runtime))
        operations = step_operations.needed_by([graph.get_operation_by_name(name) for name in (
            tensor_names.LOSS, tensor_names.GRADIENT_SQUARES)])
        tensors = [tensor for operation in operations for tensor in operation.outputs
                   if tensor.dtype == tf.float32]
        session.run([tf.global_variables_initializer(), iterator.initializer])
        session.run(tf.local_variables_initializer())
        assert len(tensors) > 2000 and too_large(session, tensors) == []
        for _ in range(STEPS):
            session.run(spec.train_op)
        assert too_large(session, tensors) == []
