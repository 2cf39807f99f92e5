"""Statistics of the routing weights of CondConv blocks."""
import numpy as np

DEAD_BELOW = 0.01
_ROUTING_WEIGHTS = '/routing_weights'


def routing_weights(endpoints):
    """Returns block -> routing weights [images, experts] from the endpoints of a network."""
    return {name[:-len(_ROUTING_WEIGHTS)]: tensor for name, tensor in endpoints.items()
            if name.endswith(_ROUTING_WEIGHTS)}


def binary_entropy(weights):
    """Returns the entropy of each routing weight in bits: 1 for weight 0.5, 0 for 0 and 1."""
    tiny = np.finfo(np.float64).tiny  # 0 log 0 is 0
    weights = np.asarray(weights, np.float64)
    return -(weights * np.log2(weights + tiny) + (1 - weights) * np.log2(1 - weights + tiny))


def describe(block, weights):
    """Yields statistics of each expert of a block.

    Args:
      block: name of the block.
      weights: routing weights, float [images, experts].

    Yields:
      dict of 'block', 'expert', 'mean', 'std', 'min' and 'max' of the expert's weight over the
      images, its mean 'entropy' in bits, and 'is_dead', whether the weight is below DEAD_BELOW for
      every image.
    """
    weights = np.asarray(weights, np.float64)
    entropy = binary_entropy(weights)
    for index, values in enumerate(weights.T):
        yield {'block': block, 'expert': index, 'mean': float(values.mean()),
               'std': float(values.std()), 'min': float(values.min()), 'max': float(values.max()),
               'entropy': float(entropy[:, index].mean()),
               'is_dead': bool(values.max() < DEAD_BELOW)}
