"""Learning-rate schedules, optimizers, weight decay and the moving average of the weights."""
import tensorflow.compat.v1 as tf
from tensorflow.python.training.saving import saveable_object

import lars_optimizer
from training import adamw

# The floor of the polynomial schedule: a constant of the LARS recipe, in force for every optimizer,
# as it was in the scripts this one must be comparable with.
_POLY_END_LEARNING_RATE = 0.1

# Up to 64 KiB, a kernel on an NPU takes as long to start as to run.
_MAX_SMALL_SIZE = 16 * 1024

_NOT_REGULARIZED = ('batch_normalization', 'bias', 'beta', 'gamma')


def learning_rate_at(position, schedule, peak, steps_per_epoch, total_steps, decay_factor=0.97,
                     decay_epochs=2.4, warmup_epochs=5.0):
    """The learning rate at a step, a float32 scalar tensor.

    Args:
      position: a number tensor, the global step; more or less if a run has changed its batch size.
      schedule: 'exponential' (times `decay_factor` every `decay_epochs`, in steps), 'cosine' (to 0
        at `total_steps`), 'poly' (quadratic to 0.1 at `total_steps` + 1) or 'constant'.
      peak: the learning rate when the warm-up ends.
      steps_per_epoch: need not be whole.
      total_steps: steps of the training, warm-up included.
      decay_factor, decay_epochs: of the exponential schedule.
      warmup_epochs: epochs of linear rise from 0 (arXiv:1706.02677, section 2.2).

    Raises:
      ValueError: no such schedule.
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
            # Below 1 only if training ends within the warm-up.
            max(total_steps - warmup_steps + 1, 1), _POLY_END_LEARNING_RATE, power=2.0)
    elif schedule == 'constant':
        rate = tf.constant(peak, tf.float32)
    else:
        raise ValueError(f'Unknown learning-rate schedule {schedule!r}.')
    if not warmup_steps:
        return rate
    return tf.where(step < warmup_steps, peak * step / warmup_steps, rate)


def range_test_rate_at(step, lowest, highest, total_steps):
    """The learning rate of a range test at a step, a float32 scalar tensor.

    It rises exponentially from `lowest` at step 0 to `highest` at the last step (arXiv:1506.01186,
    section 3.3, where it rises linearly).
    """
    return tf.train.exponential_decay(lowest, step, total_steps - 1, highest / lowest)


def build_optimizer(settings, learning_rate, global_step):
    """Returns the optimizer that the settings ask for.

    Args:
      settings: `OptimizationConfig`.
      learning_rate: a float or scalar tensor.
      global_step: the variable that counts updates.

    Raises:
      ValueError: no such optimizer.
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
    raise ValueError(f'Unknown optimizer {name!r}.')


class SplitOptimizer(tf.train.Optimizer):
    """Updates the head's variables with one optimizer and all others with another.

    A learning rate of the head's own cannot be a factor on its gradients: RMSProp and LARS divide
    by the gradient's size.

    Args:
      head, rest: tf.train.Optimizers of one kind, so that slots have the names they always had.
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
        # Both read the learning rate before the step is counted.
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
    """weight_decay * sum of |w|^2 / 2 over all variables but those of batch norm."""
    losses = [tf.nn.l2_loss(variable) for variable in variables
              if 'batch_normalization' not in variable.name]
    # Weighted before they are added: the sum alone exceeds 65504, the largest float16.
    return tf.reduce_sum(weight_decay * tf.stack(losses))


class MovingAverage:
    """The moving average of the weights, in checkpoints as `<variable>/ExponentialMovingAverage`.

    The numbers are those of `tf.train.ExponentialMovingAverage`, which for each variable takes two
    kernels a step. Here all small variables together have one average, and take three kernels and
    a reshape for each that has several axes. Large variables have averages of their own: to
    concatenate them would take a CPU longer than it saves.

    Unless a session restores them, averages start with the values of the variables: local variables
    are initialized after global ones have been initialized or restored.

    Args:
      variables: what is averaged. Replicas have the same values of those that are trainable; of the
        others, which are statistics of batches, the mean over the replicas is averaged.
      decay: share of the old average that a step keeps.
      num_updates: the global step, or None. Young averages keep less: (1 + n) / (10 + n).
    """

    def __init__(self, variables, decay, num_updates=None):
        self._decay = decay
        self._num_updates = num_updates
        groups = [(variable.op.name, [variable]) for variable in variables
                  if not _is_small(variable)]
        groups.append(('small', [variable for variable in variables if _is_small(variable)]))
        # An average, the weights that it begins with, and the statistics behind them.
        self._averages = []
        for name, group in groups:
            weights = [variable for variable in group if variable.trainable]
            statistics = [variable for variable in group if not variable.trainable]
            if group:
                average = self._create(name, weights + statistics)
                self._averages.append((average, weights, statistics))

    @staticmethod
    def _create(name, variables):
        """Returns the variable that holds the averages of some variables."""
        shape = (variables[0].shape if len(variables) == 1 else
                 [sum(variable.shape.num_elements() for variable in variables)])
        # Local, as savers save global variables by themselves.
        average = tf.get_variable(
            f'{name}/ExponentialMovingAverage', shape, tf.float32, tf.zeros_initializer(),
            trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES])
        tf.distribute.get_replica_context().merge_call(_add_to_session, (average, variables))
        return average

    def apply(self):
        """The op that moves all averages one step."""
        decay = self._decay
        if self._num_updates is not None:
            # Not `read_value`, whose op TensorFlow's optimizer takes for the one that the learning
            # rate reads before the step.
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
    """Lets initializers fill an average, unless it is restored, and savers save its parts."""
    copies = strategy.experimental_local_results(average)
    of_copies = zip(*map(strategy.experimental_local_results, averaged))

    def fill(copy, variables):
        return tf.cond(tf.is_variable_initialized(copy), tf.no_op,
                       lambda: tf.group(tf.assign(copy, _concatenated(variables))))

    # As tf.train.init_from_checkpoint does it.
    average._initializer_op = tf.group(*map(fill, copies, of_copies))
    tf.add_to_collection(tf.GraphKeys.SAVEABLE_OBJECTS, _NamedParts(copies, averaged))


class _NamedParts(saveable_object.SaveableObject):
    """Saves the parts of an average under the names of their own, in their shapes.

    Args:
      copies: the average of each replica.
      averaged: the variables whose averages are the parts, in order.
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
    """average -= rate * (average - values), where values are the weights and the statistics."""
    values = _concatenated([*weights, *statistics])
    if hasattr(average, 'handle'):
        return tf.raw_ops.ResourceApplyGradientDescent(
            var=average.handle, alpha=rate, delta=average - values)
    reference = average._ref()
    return tf.raw_ops.ApplyGradientDescent(
        var=reference, alpha=rate, delta=tf.subtract(reference, values))


def _concatenated(values):
    """The only one of `values`, or all their numbers one after another; variables as they are."""
    tensors = [value._ref() if hasattr(value, '_ref') else value for value in values]
    if len(tensors) == 1:
        return tensors[0]
    return tf.concat([tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])
                      for tensor in tensors], 0)
