"""The losses that --loss offers."""
import tensorflow.compat.v1 as tf

from config import optimization_settings


def of_examples(name, logits, targets, label_smoothing):
    """Returns the loss of each example, [batch].

    'cross_entropy' is the softmax cross entropy. 'binary_cross_entropy' treats each class as a
    binary decision with a sigmoid s and sums over the classes:
    -sum_k [t_k log s(x_k) + (1 - t_k) log(1 - s(x_k))].

    Args:
      name: str, a key of `optimization_settings.LOSSES`.
      logits: float [batch, classes].
      targets: float [batch, classes], one-hot labels, possibly mixed.
      label_smoothing: float in [0, 1), the share s of the targets that is spread over all K
        classes: t becomes (1 - s) t + s / K (arXiv:1512.00567, section 7).

    Source: "ResNet strikes back", arXiv:2110.00476 (binary cross entropy).
    """
    if label_smoothing:
        num_classes = targets.shape.as_list()[-1]
        targets = targets * (1.0 - label_smoothing) + label_smoothing / num_classes
    if name == optimization_settings.BINARY_CROSS_ENTROPY:
        # timm averages over the classes by default. The sum keeps gradients as large as those of
        # the cross entropy, relative to weight decay and the epsilon of RMSProp.
        return tf.reduce_sum(
            tf.nn.sigmoid_cross_entropy_with_logits(logits=logits, labels=targets), 1)
    # tf.nn.softmax_cross_entropy_with_logits_v2 would add reshapes, which are not needed here.
    return tf.raw_ops.SoftmaxCrossEntropyWithLogits(features=logits, labels=targets).loss
