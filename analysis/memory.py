"""Estimates the memory of a training step from the network's costs, without building a graph."""

# Mode -> bytes per activation value.
MODES = {'float32': 4, 'float16': 2}
_FLOAT32_BYTES = 4
# Slots per weight of the default optimizer, RMSProp: mean square and momentum.
_NUM_SLOTS = 2


def of_training(costs, batch_size):
    """Returns an estimate of the memory of a training step in bytes.

    Weights, gradients, the slots of RMSProp and the moving averages are float32 in every precision
    mode; there is a moving average of each weight and each batch statistic.

    Activations are the tensors of the forward pass that the backward pass reads: the outputs of
    every convolution (read by the following batch norm) and of every activation (read by the next
    convolution), for swish also its argument and its sigmoid; the gated output of squeeze-excite;
    the output of each block; and the mixed CondConv kernels of each image. In float16 they take
    half the bytes. Input images, scratch memory of convolutions, float16 copies of weights and
    short-lived tensors are not counted.

    Args:
      costs: result of `complexity.total`.
      batch_size: number of images per step.

    Returns:
      dict of 'weights', 'gradients', 'optimizer' and 'averages' -> bytes, and of 'activations' and
      'total' -> dict of mode in `MODES` -> bytes.
    """
    all_weights = costs['trainable'] + costs['statistics']
    held = {'weights': _FLOAT32_BYTES * all_weights,
            'gradients': _FLOAT32_BYTES * costs['trainable'],
            'optimizer': _FLOAT32_BYTES * _NUM_SLOTS * costs['trainable'],
            'averages': _FLOAT32_BYTES * all_weights}
    activations = {mode: num_bytes * batch_size * costs['kept']
                   for mode, num_bytes in MODES.items()}
    total = {mode: sum(held.values()) + activations[mode] for mode in MODES}
    return {**held, 'activations': activations, 'total': total}
