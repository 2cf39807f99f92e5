"""Clips gradients by their global norm, that of all ranks' gradients after they are averaged."""
import tensorflow.compat.v1 as tf


def reduced(gradients_and_variables):
    """Sums the gradients over the replicas of a tf.distribute strategy.

    Optimizers do so while they apply gradients, which is too late for a norm. Without a strategy
    the pairs stay as they are: an NPU's optimizer reduces while it computes them.
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
    """Scales gradients that `reduced` returned so that their global norm is `clip_norm` at most.

    Args:
      gradients_and_variables: as of `reduced`.
      norm: their global norm, a scalar; if it is not finite, all gradients become NaN.
      clip_norm: a float.

    Returns:
      pairs for apply_gradients, which sums over the replicas: each has its share.
    """
    gradients, variables = zip(*gradients_and_variables)
    gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, norm)
    num_replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    if num_replicas > 1:
        gradients = [gradient / num_replicas for gradient in gradients]
    return list(zip(gradients, variables))
