"""Loss scales (docs/npu_bridge.md section 7)."""
import tensorflow.compat.v1 as _tf

from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases


class FixedLossScaleManager:
    """A constant. With enable_overflow_check=False overflowing steps are applied too."""

    @_record.constructor(_releases.signature('FixedLossScaleManager'))
    def __init__(self, loss_scale, enable_overflow_check=True):
        if loss_scale < 1:
            raise ValueError(f'loss scale must be at least 1, got {loss_scale}')
        self.enable_overflow_check = enable_overflow_check
        self._loss_scale = _tf.convert_to_tensor(loss_scale, _tf.float32)

    def get_loss_scale(self):
        return self._loss_scale

    def update_loss_scale(self, finite_grads):
        del finite_grads
        return _tf.no_op()


class ExponentialUpdateLossScaleManager:
    """Grows after steps in a row without overflow, shrinks after steps with it; never below 1."""

    enable_overflow_check = True

    @_record.constructor()
    def __init__(self, init_loss_scale, incr_every_n_steps, decr_every_n_nan_or_inf=2, incr_ratio=2,
                 decr_ratio=0.8):
        self._incr_every_n_steps = incr_every_n_steps
        self._decr_every_n_nan_or_inf = decr_every_n_nan_or_inf
        self._incr_ratio = incr_ratio
        self._decr_ratio = decr_ratio
        self._loss_scale = _tf.Variable(
            init_loss_scale, name='loss_scale', dtype=_tf.float32, trainable=False)
        self._good_steps = _tf.Variable(0, name='good_steps', trainable=False)
        self._bad_steps = _tf.Variable(0, name='bad_steps', trainable=False)

    def get_loss_scale(self):
        return self._loss_scale

    def update_loss_scale(self, finite_grads):
        scale = self._loss_scale.read_value()
        good = _tf.where(finite_grads, self._good_steps + 1, 0)
        bad = self._bad_steps + _tf.cast(_tf.logical_not(finite_grads), _tf.int32)
        grows = good >= self._incr_every_n_steps
        shrinks = bad >= self._decr_every_n_nan_or_inf
        shrinks = _tf.logical_and(_tf.logical_not(finite_grads), shrinks)
        grown = scale * self._incr_ratio
        grown = _tf.where(_tf.is_finite(grown), grown, scale)
        shrunk = _tf.maximum(1.0, scale * self._decr_ratio)
        new_scale = _tf.where(grows, grown, _tf.where(shrinks, shrunk, scale))
        changes = _tf.logical_or(grows, shrinks)
        new_good = _tf.where(changes, 0, good)
        new_bad = _tf.where(changes, 0, bad)
        with _tf.control_dependencies([new_scale, new_good, new_bad]):
            return _tf.group(self._loss_scale.assign(new_scale), self._good_steps.assign(new_good),
                             self._bad_steps.assign(new_bad))
