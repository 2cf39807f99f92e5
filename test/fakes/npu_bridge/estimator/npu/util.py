"""Checks, and the loop of raw sessions (docs/npu_bridge.md section 2, iterations_per_loop)."""
import tensorflow.compat.v1 as _tf

from npu_bridge.double import device as _device

# Name in scope npu_runconfig -> value for n steps.
_LOOP_VARIABLES = {
    'iterations_per_loop': lambda n: n - 1,
    'loop_cond': lambda n: 0,
    'zero': lambda n: 0,
    'one': lambda n: 1,
}


def check_positive_integer(value, name):
    if not isinstance(value, int):
        raise TypeError(f'{name} must be an int, got {value!r}')
    if value < 1:
        raise ValueError(f'{name} must be positive, got {value}')


def create_loop_variables():
    """Makes the four local variables that drive the loop on the device."""
    with _tf.variable_scope('npu_runconfig', reuse=_tf.AUTO_REUSE):
        return {
            name: _tf.get_variable(
                name, initializer=_tf.zeros([], _tf.int64), trainable=False, use_resource=False,
                collections=[_tf.GraphKeys.LOCAL_VARIABLES])
            for name in _LOOP_VARIABLES}


def load_loop_variables(session, variables, n):
    for name, variable in variables.items():
        variable.load(_LOOP_VARIABLES[name](n), session)


class IterationPerLoop:
    """The loop in two parts, for graphs that are finalized before the session exists."""

    def create_iteration_per_loop_var(self, train_op):
        if not isinstance(train_op, _tf.Operation):
            raise ValueError(f'train_op must be a tf.Operation, got {train_op!r}')
        self._variables = create_loop_variables()
        return _tf.group(train_op, name=_device.LOOP_OP)

    def load_iteration_per_loop_var(self, sess, iterations_per_loop=1):
        check_positive_integer(iterations_per_loop, 'iterations_per_loop')
        load_loop_variables(sess, self._variables, iterations_per_loop)


def set_iteration_per_loop(sess, train_op, iterations_per_loop=1):
    """Returns the op that runs `train_op` so many times a session.run, for a raw session."""
    if not isinstance(train_op, _tf.Operation):
        raise ValueError(f'train_op must be a tf.Operation, got {train_op!r}')
    check_positive_integer(iterations_per_loop, 'iterations_per_loop')
    if iterations_per_loop == 1:
        return train_op
    loop = IterationPerLoop()
    loop_op = loop.create_iteration_per_loop_var(train_op)
    loop.load_iteration_per_loop_var(sess, iterations_per_loop)
    return loop_op
