"""What a training step holds in memory, estimated from the network's costs: no graph is built."""

# Mode -> bytes of a value of an activation.
MODES = {'float32': 4, 'float16': 2}
_FLOAT32_BYTES = 4
# Slots of each weight in the default optimizer, RMSProp: mean square and momentum.
_NUM_SLOTS = 2


def of_training(costs, batch_size):
    """Returns what a training step holds, in bytes; an estimate.

    Weights, gradients, the slots of RMSProp and the moving averages are float32 in every precision
    mode; a moving average exists for each weight and each batch statistic.

    Activations are the tensors of the forward pass that the backward pass reads, which cannot be
    freed in between: the outputs of every convolution (which the batch norm behind it reads) and of
    every activation (which the next convolution reads), of a swish also its argument and its
    sigmoid; the gated output of squeeze-excite; each block's output; the mixed CondConv kernels of
    each image. float16 holds them in half the bytes. Not counted are input images, scratch memory
    of convolutions, float16 copies of weights, and the tensors that live for one operation only.

    Args:
      costs: `complexity.total` of a network.
      batch_size: images.

    Returns:
      dict: 'weights', 'gradients', 'optimizer' and 'averages' -> bytes, and 'activations' and
      'total' -> mode of `MODES` -> bytes.
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
