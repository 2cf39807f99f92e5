"""The order of classes by their logits, with one rule for ties in every program.

The rank of a class is the number of classes with a greater logit, plus the number of classes with
an equal logit and a lower index. Logits are preferred to probabilities, because different logits
may have equal probabilities in float32.
"""
import numpy as np
import tensorflow.compat.v1 as tf


def ranked_classes(predictions):
    """Returns the classes of each image by descending score, int64 [batch, classes].

    Args:
        predictions: dict of arrays [batch, classes], 'logits' or else 'probabilities'.
    """
    scores = predictions['logits' if 'logits' in predictions else 'probabilities']
    return np.argsort(-scores, axis=1, kind='stable')


def is_among_first(logits, label, one_hot, counts):
    """Returns whether each example's label is among the top k classes, bool [batch, counts].

    tf.nn.in_top_k is not used, because an NPU runs it on the host's CPU.

    Args:
        logits: float32 [batch, classes]. A row with NaN counts as wrong.
        label: int32 [batch].
        one_hot: float32 [batch, classes], one-hot labels.
        counts: list of int from 1 on, the values of k.
    """
    num_classes = logits.shape[1].value
    own_logit = tf.reduce_sum(logits * one_hot, 1, keepdims=True)
    is_not_lower = np.arange(num_classes, dtype=np.int32) >= tf.expand_dims(label, 1)
    # The label and the classes after it; none if own_logit is NaN.
    is_counted = tf.where(is_not_lower, logits <= own_logit, logits < own_logit)
    num_counted = tf.reduce_sum(tf.cast(is_counted, tf.float32), 1, keepdims=True)
    return num_counted > np.float32(num_classes - np.minimum(counts, num_classes))
