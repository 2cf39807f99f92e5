"""Clips gradients by their global norm, computed after the gradients of all ranks are averaged."""
import tensorflow.compat.v1 as tf


def reduced(gradients_and_variables):
    """Returns the pairs with gradients summed over the replicas of a tf.distribute strategy.

    Optimizers sum only when they apply gradients, too late for the norm. Without a strategy the
    pairs are returned unchanged: an NPU's optimizer reduces gradients when it computes them.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients_and_variables
    gradients, variables = zip(*gradients_and_variables)

    def add_up(strategy, *values):
        return strategy.extended.batch_reduce_to(
            tf.distribute.ReduceOp.SUM, list(zip(values, variables)))

    return list(zip(context.merge_call(add_up, gradients), variables))


def clipped(gradients_and_variables, norm, clip_norm):
    """Returns pairs for apply_gradients whose global norm is at most `clip_norm`.

    Args:
      gradients_and_variables: the result of `reduced`.
      norm: their global norm, a scalar; if it is not finite, all gradients become NaN.
      clip_norm: a float.

    Returns:
      (gradient, variable) pairs, each gradient divided by the number of replicas, over which
      apply_gradients sums.
    """
    gradients, variables = zip(*gradients_and_variables)
    gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, norm)
    num_replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    if num_replicas > 1:
        gradients = [gradient / num_replicas for gradient in gradients]
    return list(zip(gradients, variables))
