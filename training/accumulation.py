"""Gradient accumulation: one step of several micro-batches, computed one after another.

Only the activations of one micro-batch are in memory at a time. The graph holds the network once
for each micro-batch: a loop would be a While, which devices do not take.
"""
import functools

import tensorflow.compat.v1 as tf


def micro_batches(features, labels, number, batch_axis=0):
    """Splits a batch.

    Args:
      features: a tensor.
      labels: a tensor [batch, ...], or a dict of such tensors.
      number: micro-batches, all of one size; 1 leaves the batch as it is.
      batch_axis: that of `features`.

    Returns:
      a list of (features, labels), one a micro-batch.
    """
    if number == 1:
        return [(features, labels)]
    parts = zip(tf.split(features, number, batch_axis),
                *[tf.split(each, number) for each in tf.nest.flatten(labels)])
    return [(images, tf.nest.pack_sequence_as(labels, rest)) for images, *rest in parts]


def later(build, batches):
    """Returns functions, one a batch, that build a network again, with the variables it has.

    Args:
      build: function of (features, labels).
      batches: of `micro_batches`, without the first.

    Returns:
      functions of an operation, behind which the network starts -> what `build` returns.
    """
    def build_behind(done, features, labels):
        with tf.control_dependencies([done]):
            features = tf.identity(features)
        with tf.variable_scope(tf.get_variable_scope(), reuse=True):
            return build(features, labels)

    return [functools.partial(build_behind, features=features, labels=labels)
            for features, labels in batches]


def means(measures):
    """Returns name -> mean, of dicts of scalars with the same names."""
    if len(measures) == 1:
        return measures[0]
    return {name: tf.add_n([each[name] for each in measures]) / len(measures)
            for name in measures[0]}


class AccumulatedGradients(tf.train.Optimizer):
    """Adds up the gradients of several losses, each computed when those before it are done.

    Args:
      optimizer: the tf.train.Optimizer that computes and applies gradients.
      losses: functions of an operation, behind which the network of a loss starts -> the loss, a
        scalar. The first gets None.
    """

    def __init__(self, optimizer, losses):
        super().__init__(use_locking=False, name='AccumulatedGradients')
        self._optimizer = optimizer
        self._losses = losses

    def compute_gradients(self, loss, *args, **kwargs):
        """As tf.train.Optimizer, but that `loss` is a factor on the losses.

        It is 1.0, times the scale of an optimizer around this one that scales the loss.
        """
        sums, done = None, None
        for build in self._losses:
            scaled_loss = build(done) * loss
            gradients, variables = zip(*self._optimizer.compute_gradients(
                scaled_loss, *args, **kwargs))
            # Added at once, so that there are two sets of gradients and not one a micro-batch.
            sums = gradients if sums is None else list(map(tf.add, sums, gradients))
            done = tf.group(scaled_loss, *sums, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        return list(zip(sums, variables))

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        return self._optimizer.apply_gradients(grads_and_vars, global_step, name)
