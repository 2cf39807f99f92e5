"""Weights and images made from names and seeds, as those of the golden logits were."""
import zlib

import numpy as np

# Standard deviation of a variable by the last part of its name, from its shape.
_STDDEV = {
    'moving_mean': lambda shape: 0.1,
    'gamma': lambda shape: 0.1,
    'beta': lambda shape: 0.1,
    'bias': lambda shape: 0.1,
    'condconv_kernel': lambda shape: shape[1] ** -0.25,
    'depthwise_condconv_kernel': lambda shape: 0.3,
    'depthwise_kernel': lambda shape: np.sqrt(2.0 / (shape[0] * shape[1])),
}


def weight(name, shape):
    """The float32 weight of the variable `name` (without ':0')."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0xffffffff)
    leaf = name.rsplit('/', 1)[-1]
    if leaf == 'moving_variance':
        return (1.0 + random.uniform(0, 1, shape)).astype(np.float32)
    values = random.standard_normal(shape)
    if leaf == 'kernel':
        values *= _kernel_stddev(shape)
    else:
        values *= _STDDEV[leaf](shape)
    return (values + (leaf == 'gamma')).astype(np.float32)


def _kernel_stddev(shape):
    if len(shape) == 4:
        return np.sqrt(2.0 / np.prod(shape[:3]))
    is_router = shape[1] in (4, 8)
    return np.sqrt((64.0 if is_router else 1.0) / shape[0])


def patch_images(batch_size, size):
    """Images float32 in [0, 255) whose coarse patches, and so their logits, differ clearly."""
    random = np.random.RandomState(0)
    noise = random.uniform(0, 255, (batch_size, size, size, 3))
    patches = random.uniform(0, 255, (batch_size, 7, 7, 3))
    patches *= np.linspace(0.2, 1.0, batch_size).reshape([-1, 1, 1, 1])
    patches = patches.repeat(size // 7, axis=1).repeat(size // 7, axis=2)
    return (0.8 * patches + 0.2 * noise).astype(np.float32)
