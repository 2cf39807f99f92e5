"""Gradient accumulation: one training step over several micro-batches, computed in sequence.

Only the activations of one micro-batch are in memory at a time. The graph contains one copy of the
network per micro-batch, because NPUs do not support the While operation of a loop.
"""
import functools

import tensorflow.compat.v1 as tf


def micro_batches(features, labels, number, batch_axis=0):
    """Returns a batch split into micro-batches, as a list of (features, labels).

    Args:
      features: a tensor.
      labels: a tensor [batch, ...], or a dict of such tensors.
      number: number of micro-batches; divides the batch size. 1 returns the batch unchanged.
      batch_axis: the axis of `features` to split.
    """
    if number == 1:
        return [(features, labels)]
    parts = zip(tf.split(features, number, batch_axis),
                *[tf.split(each, number) for each in tf.nest.flatten(labels)])
    return [(images, tf.nest.pack_sequence_as(labels, rest)) for images, *rest in parts]


def later(build, batches):
    """Returns one function per batch that builds another copy of a network with shared variables.

    Args:
      build: function of (features, labels) that builds the network.
      batches: the micro-batches after the first, from `micro_batches`.

    Returns:
      list of functions: operation that must finish before the network starts -> result of `build`.
    """
    def build_behind(done, features, labels):
        with tf.control_dependencies([done]):
            features = tf.identity(features)
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            return build(features, labels)

    return [functools.partial(build_behind, features=features, labels=labels)
            for features, labels in batches]


def means(measures):
    """Returns a dict of name -> mean over several dicts of scalars with the same names."""
    if len(measures) == 1:
        return measures[0]
    return {name: tf.add_n([each[name] for each in measures]) / len(measures)
            for name in measures[0]}


class AccumulatedGradients(tf.train.Optimizer):
    """Wraps an optimizer so that it sums the gradients of several losses, computed in sequence.

    Args:
      optimizer: the tf.train.Optimizer that computes and applies gradients.
      losses: functions: operation that must finish before the network starts (None for the first)
        -> the loss, a scalar.
    """

    def __init__(self, optimizer, losses):
        super().__init__(use_locking=False, name='AccumulatedGradients')
        self._optimizer = optimizer
        self._losses = losses

    def compute_gradients(self, loss, *args, **kwargs):
        """Returns (summed gradient, variable) pairs; see tf.train.Optimizer.

        Args:
          loss: factor on all losses: 1.0, times the loss scale if an outer optimizer applies one.
          *args, **kwargs: passed to the wrapped optimizer.
        """
        sums, done = None, None
        for build in self._losses:
            scaled_loss = build(done) * loss
            gradients, variables = zip(*self._optimizer.compute_gradients(
                scaled_loss, *args, **kwargs))
            # Immediate summation keeps two sets of gradients in memory instead of one per
            # micro-batch.
            sums = gradients if sums is None else list(map(tf.add, sums, gradients))
            done = tf.group(scaled_loss, *sums, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        return list(zip(sums, variables))

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        return self._optimizer.apply_gradients(grads_and_vars, global_step, name)
