"""How images are spread over the experts of a CondConv block."""
import numpy as np

DEAD_BELOW = 0.01
_ROUTING_WEIGHTS = '/routing_weights'


def routing_weights(endpoints):
    """Block -> routing weights, a tensor [images, experts], among the endpoints of a network."""
    return {name[:-len(_ROUTING_WEIGHTS)]: tensor for name, tensor in endpoints.items()
            if name.endswith(_ROUTING_WEIGHTS)}


def binary_entropy(weights):
    """Entropy of routing weights in bits, of the same shape: 1 at 0.5, 0 where wholly on or off."""
    tiny = np.finfo(np.float64).tiny  # 0 log 0 is 0
    weights = np.asarray(weights, np.float64)
    return -(weights * np.log2(weights + tiny) + (1 - weights) * np.log2(1 - weights + tiny))


def describe(block, weights):
    """Yields a record for each expert of a block from its routing weights [images, experts].

    Yields:
      dict of 'block', 'expert', the 'mean', standard deviation 'std', 'min' and 'max' of its weight
      over the images, the mean 'entropy' of the weight in bits, and 'is_dead': whether the weight
      is below DEAD_BELOW on every image.
    """
    weights = np.asarray(weights, np.float64)
    entropy = binary_entropy(weights)
    for index, values in enumerate(weights.T):
        yield {'block': block, 'expert': index, 'mean': float(values.mean()),
               'std': float(values.std()), 'min': float(values.min()), 'max': float(values.max()),
               'entropy': float(entropy[:, index].mean()),
               'is_dead': bool(values.max() < DEAD_BELOW)}
