"""The order of classes by their logits, with one rule for ties in every program.

The rank of a class is the number of classes with a greater logit, plus the number of classes with
an equal logit and a lower index. Probabilities are second best: in float32 different logits may
have equal ones.
"""
import numpy as np
import tensorflow.compat.v1 as tf


def ranked_classes(predictions):
    """Returns the classes of each image, first to last, int64 [batch, classes].

    Args:
        predictions: dict of arrays [batch, classes], 'logits' or else 'probabilities'.
    """
    scores = predictions['logits' if 'logits' in predictions else 'probabilities']
    return np.argsort(-scores, axis=1, kind='stable')


def is_among_first(logits, label, one_hot, counts):
    """Returns whether each example's label is among the first classes, bool [batch, counts].

    An NPU leaves tf.nn.in_top_k to its CPU.

    Args:
        logits: float32 [batch, classes]. With NaN in a row, its label is not.
        label: int32 [batch].
        one_hot: float32 [batch, classes], of the label.
        counts: list of int, at least 1: among the first so many.
    """
    num_classes = logits.shape[1].value
    own_logit = tf.reduce_sum(logits * one_hot, 1, keepdims=True)
    is_not_lower = np.arange(num_classes, dtype=np.int32) >= tf.expand_dims(label, 1)
    # The label and the classes after it; none if own_logit is NaN.
    is_counted = tf.where(is_not_lower, logits <= own_logit, logits < own_logit)
    num_counted = tf.reduce_sum(tf.cast(is_counted, tf.float32), 1, keepdims=True)
    return num_counted > np.float32(num_classes - np.minimum(counts, num_classes))
