"""Learning-rate schedules, optimizers, weight decay and the moving average of the weights."""
import tensorflow.compat.v1 as tf
from tensorflow.python.training.saving import saveable_object

import lars_optimizer
from training import adamw

# Final learning rate of the polynomial schedule. It comes from the LARS recipe but applies to every
# optimizer, as in the reference implementation, so that results stay comparable.
_POLY_END_LEARNING_RATE = 0.1

# float32 values, 64 KiB: up to this size an NPU kernel takes as long to start as to run.
_MAX_SMALL_SIZE = 16 * 1024

_NOT_REGULARIZED = ('batch_normalization', 'bias', 'beta', 'gamma')


def learning_rate_at(position, schedule, peak, steps_per_epoch, total_steps, decay_factor=0.97,
                     decay_epochs=2.4, warmup_epochs=5.0):
    """Returns the learning rate at a step, a float32 scalar tensor.

    Args:
      position: a numeric scalar tensor: the global step, plus an offset if the batch size of the
        run has changed.
      schedule: 'exponential' (staircase: times `decay_factor` every `decay_epochs`), 'cosine' (to 0
        at `total_steps`), 'poly' (quadratic to 0.1 at `total_steps` + 1) or 'constant'.
      peak: learning rate at the end of the warm-up.
      steps_per_epoch: a number, not necessarily an integer.
      total_steps: number of training steps, including the warm-up.
      decay_factor, decay_epochs: parameters of the exponential schedule.
      warmup_epochs: epochs of linear increase from 0 (arXiv:1706.02677, section 2.2).

    Raises:
      ValueError: unknown schedule.
    """
    step = tf.cast(position, tf.float32)
    warmup_steps = int(warmup_epochs * steps_per_epoch)
    if schedule == 'exponential':
        rate = tf.train.exponential_decay(
            peak, position, steps_per_epoch * decay_epochs, decay_factor, staircase=True)
    elif schedule == 'cosine':
        rate = 0.5 * peak * (1 + tf.cos(3.141592653589793 * step / total_steps))
    elif schedule == 'poly':
        rate = tf.train.polynomial_decay(
            peak, tf.maximum(position - warmup_steps, 1),
            # The difference is below 0 only if training ends within the warm-up.
            max(total_steps - warmup_steps + 1, 1), _POLY_END_LEARNING_RATE, power=2.0)
    elif schedule == 'constant':
        rate = tf.constant(peak, tf.float32)
    else:
        raise ValueError(f'unknown learning-rate schedule {schedule!r}')
    if not warmup_steps:
        return rate
    return tf.where(step < warmup_steps, peak * step / warmup_steps, rate)


def range_test_rate_at(step, lowest, highest, total_steps):
    """Returns the learning rate of a range test at a step, a float32 scalar tensor.

    It rises exponentially from `lowest` at step 0 to `highest` at the last step, and not linearly
    as in arXiv:1506.01186, section 3.3.
    """
    return tf.train.exponential_decay(lowest, step, total_steps - 1, highest / lowest)


def build_optimizer(settings, learning_rate, global_step):
    """Returns the optimizer that the settings select, a tf.train.Optimizer.

    Args:
      settings: `OptimizationConfig`.
      learning_rate: a float or scalar tensor.
      global_step: the variable that counts updates.

    Raises:
      ValueError: unknown optimizer.
    """
    name = settings.optimizer
    if name == 'rmsprop':
        return tf.train.RMSPropOptimizer(learning_rate, decay=0.9, momentum=0.9, epsilon=1e-3)
    if name == 'momentum':
        return tf.train.MomentumOptimizer(
            learning_rate, momentum=0.9, use_nesterov=settings.nesterov)
    if name == 'sgd':
        return tf.train.GradientDescentOptimizer(learning_rate)
    if name == 'lars':
        return lars_optimizer.LARSOptimizer(
            learning_rate, momentum=0.9, weight_decay=settings.lars_weight_decay,
            epsilon=settings.lars_epsilon, skip_list=_NOT_REGULARIZED)
    if name == 'adamw':
        return adamw.AdamWOptimizer(
            learning_rate, global_step, settings.weight_decay, settings.adam_beta1,
            settings.adam_beta2, settings.adam_epsilon, skip_list=_NOT_REGULARIZED)
    raise ValueError(f'unknown optimizer {name!r}')


class SplitOptimizer(tf.train.Optimizer):
    """Updates the head's variables with one optimizer and all others with another.

    Scaling the head's gradients instead would not change its learning rate, because RMSProp and
    LARS divide by the size of the gradient.

    Args:
      head, rest: tf.train.Optimizers of the same class, so that slot names do not depend on the
        split.
      is_head: function of a variable -> whether it belongs to the head.
    """

    def __init__(self, head, rest, is_head):
        super().__init__(use_locking=False, name='SplitOptimizer')
        self._head = head
        self._rest = rest
        self._is_head = is_head

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """Updates all variables, then increments `global_step`; see tf.train.Optimizer."""
        pairs = list(grads_and_vars)
        of_head = [pair for pair in pairs if self._is_head(pair[1])]
        of_rest = [pair for pair in pairs if not self._is_head(pair[1])]
        if not (of_head and of_rest):
            optimizer = self._head if of_head else self._rest
            return optimizer.apply_gradients(pairs, global_step, name)
        # The head is updated first, so that both read the learning rate before global_step changes.
        with tf.control_dependencies([self._head.apply_gradients(of_head)]):
            return self._rest.apply_gradients(of_rest, global_step, name)

    def get_slot(self, var, name):
        optimizer = self._head if self._is_head(var) else self._rest
        return optimizer.get_slot(var, name)

    def get_slot_names(self):
        return self._rest.get_slot_names()

    def variables(self):
        return self._head.variables() + self._rest.variables()


def l2_loss(weight_decay, variables):
    """Returns weight_decay * sum |w|^2 / 2 over all variables except those of batch norm."""
    losses = [tf.nn.l2_loss(variable) for variable in variables
              if 'batch_normalization' not in variable.name]
    # Terms are weighted before the sum, because the sum alone exceeds 65504, the largest float16.
    return tf.reduce_sum(weight_decay * tf.stack(losses))


class MovingAverage:
    """Moving average of the weights, saved as `<variable>/ExponentialMovingAverage`.

    The values equal those of `tf.train.ExponentialMovingAverage`. Averages that are not restored
    from a checkpoint start with the values of the variables.

    Args:
      variables: variables to average. Trainable ones are equal on all replicas; the others are
        batch statistics, whose mean over the replicas is averaged.
      decay: share of the old average that a step keeps, in [0, 1].
      num_updates: the global step n, or None. It limits the decay to (1 + n) / (10 + n) at first.
    """
    # TensorFlow's class takes two kernels per variable and step. Here all small variables share one
    # average, which takes three kernels, plus one reshape for each variable with several axes.
    # Large variables have separate averages: their concatenation would cost a CPU more time than it
    # saves. Averages are local variables, which are initialized after the global ones have been
    # initialized or restored.

    def __init__(self, variables, decay, num_updates=None):
        self._decay = decay
        self._num_updates = num_updates
        groups = [(variable.op.name, [variable]) for variable in variables
                  if not _is_small(variable)]
        groups.append(('small', [variable for variable in variables if _is_small(variable)]))
        # Each item: an average and the variables in it, first weights, then batch statistics.
        self._averages = []
        for name, group in groups:
            weights = [variable for variable in group if variable.trainable]
            statistics = [variable for variable in group if not variable.trainable]
            if group:
                average = self._create(name, weights + statistics)
                self._averages.append((average, weights, statistics))

    @staticmethod
    def _create(name, variables):
        """Creates the variable that holds the averages of some variables, and returns it."""
        shape = (variables[0].shape if len(variables) == 1 else
                 [sum(variable.shape.num_elements() for variable in variables)])
        # A local variable, because savers would save a global one under its own name as well.
        average = tf.get_variable(
            f'{name}/ExponentialMovingAverage', shape, tf.float32, tf.zeros_initializer(),
            trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
        tf.distribute.get_replica_context().merge_call(_add_to_session, (average, variables))
        return average

    def apply(self):
        """Returns the op that updates all averages."""
        decay = self._decay
        if self._num_updates is not None:
            # Grappler would merge `read_value` with the read of the learning rate, which precedes
            # the step.
            num_updates = tf.cast(self._num_updates, tf.float32)
            decay = tf.minimum(decay, (1.0 + num_updates) / (10.0 + num_updates))
        rate = 1.0 - decay

        def move(strategy, average, weights, statistics):
            means = [strategy.extended.reduce_to(tf.distribute.ReduceOp.MEAN, each, average)
                     for each in statistics]
            return tf.group(strategy.extended.update(average, _move, args=(weights, means, rate)))

        moves = []
        for average, weights, statistics in self._averages:
            moves.append(tf.distribute.get_replica_context().merge_call(
                move, (average, weights, [_concatenated(statistics)] if statistics else [])))
        return tf.group(*moves)


def _is_small(variable):
    return variable.shape.num_elements() <= _MAX_SMALL_SIZE


def _add_to_session(strategy, average, averaged):
    """Registers an average with initializers, which skip it if restored, and with savers."""
    copies = strategy.experimental_local_results(average)
    of_copies = zip(*map(strategy.experimental_local_results, averaged))

    def fill(copy, variables):
        return tf.cond(tf.is_variable_initialized(copy), tf.no_op,
                       lambda: tf.group(tf.assign(copy, _concatenated(variables))))

    # tf.train.init_from_checkpoint replaces the private initializer in the same way.
    average._initializer_op = tf.group(*map(fill, copies, of_copies))
    tf.add_to_collection(tf.GraphKeys.SAVEABLE_OBJECTS, _NamedParts(copies, averaged))


class _NamedParts(saveable_object.SaveableObject):
    """Saves the parts of an average under separate names, each in the shape of its variable.

    Args:
      copies: the copies of the average, one per replica.
      averaged: the variables in the average, in order.
    """

    def __init__(self, copies, averaged):
        shapes = [variable.shape.as_list() for variable in averaged]
        sizes = [variable.shape.num_elements() for variable in averaged]
        parts = tf.split(copies[0], sizes) if len(sizes) > 1 else [copies[0]]
        specs = [saveable_object.SaveSpec(tf.reshape(part, shape), '',
                                          variable.op.name + '/ExponentialMovingAverage')
                 for part, shape, variable in zip(parts, shapes, averaged)]
        super().__init__(copies[0], specs, copies[0].op.name)
        self._copies = copies

    def restore(self, restored_tensors, restored_shapes):
        return tf.group(*[tf.assign(copy, _concatenated(restored_tensors))
                          for copy in self._copies])


def _move(average, weights, statistics, rate):
    """Returns the op average -= rate * (average - values), with values = weights + statistics."""
    values = _concatenated([*weights, *statistics])
    if hasattr(average, 'handle'):
        return tf.raw_ops.ResourceApplyGradientDescent(
            var=average.handle, alpha=rate, delta=average - values)
    reference = average._ref()
    return tf.raw_ops.ApplyGradientDescent(
        var=reference, alpha=rate, delta=tf.subtract(reference, values))


def _concatenated(values):
    """Returns the only item of `values` unchanged, or all items flattened and concatenated."""
    tensors = [value._ref() if hasattr(value, '_ref') else value for value in values]
    if len(tensors) == 1:
        return tensors[0]
    return tf.concat([tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])
                      for tensor in tensors], 0)
