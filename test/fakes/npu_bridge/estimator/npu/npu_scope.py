"""docs/npu_bridge.md sections 7 and 8: scopes that mark their ops with an attribute."""
import contextlib as _contextlib

import tensorflow.compat.v1 as _tf


@_contextlib.contextmanager
def _marked(attribute):
    mark = {attribute: _tf.AttrValue(b=True)}
    with _tf.get_default_graph()._attr_scope(mark):
        yield


def keep_dtype_scope():
    """The ops keep their type whatever the precision mode."""
    return _marked('_keep_dtype')


def without_npu_compile_scope():
    """The ops stay on the host; only with mix_compile_mode=True."""
    return _marked('_without_npu_compile')
