"""docs/npu_bridge.md section 8: ops with a Python face. LARS and LARSV2 are not modelled."""
import tensorflow.compat.v1 as _tf


def dropout(x, keep_prob, noise_shape=None, seed=None, name=None):
    """Keeps each element with probability `keep_prob`; 1.0 as a float returns x itself."""
    x = _tf.convert_to_tensor(x)
    if isinstance(keep_prob, float):
        if not 0 < keep_prob <= 1:
            raise ValueError(f'keep_prob must be in (0, 1], got {keep_prob}')
        if keep_prob == 1.0:
            return x
    return _tf.nn.dropout(x, rate=1 - keep_prob, noise_shape=noise_shape, seed=seed, name=name)


def initialize_system(name=None):
    return _tf.no_op(name=name or 'InitializeSystem')


def shutdown_system(name=None):
    return _tf.no_op(name=name or 'ShutdownSystem')


def LARS(*args, **kwargs):  # noqa: N802
    raise NotImplementedError('The double of npu_bridge has no LARS.')


def LARSV2(*args, **kwargs):  # noqa: N802
    raise NotImplementedError('The double of npu_bridge has no LARSV2.')
