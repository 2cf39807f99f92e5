"""Loss scaling (docs/npu_bridge.md section 7)."""
import os as _os

import tensorflow.compat.v1 as _tf

from npu_bridge.double import device as _device
from npu_bridge.double import record as _record


def scaled(loss, manager):
    """The loss times the scale; a loss may be given as a function."""
    loss = loss() if callable(loss) else loss
    return loss * _tf.cast(manager.get_loss_scale(), loss.dtype.base_dtype)


def unscaled(grads_and_vars, manager):
    factor = 1 / manager.get_loss_scale()
    return [(_times(gradient, factor), variable) for gradient, variable in grads_and_vars]


def _times(gradient, factor):
    if gradient is None:
        return None
    if isinstance(gradient, _tf.IndexedSlices):
        return _tf.IndexedSlices(
            _times(gradient.values, factor), gradient.indices, gradient.dense_shape)
    return gradient * _tf.cast(factor, gradient.dtype.base_dtype)


def apply_unless_overflow(optimizer, manager, grads_and_vars, is_distributed, global_step, name):
    """Skips the whole update, global_step included, when the overflow flag is set.

    With is_distributed the flag is all-reduced, as all ranks must skip the same steps.
    """
    if not manager.enable_overflow_check:
        return optimizer.apply_gradients(grads_and_vars, global_step=global_step, name=name)
    with _tf.control_dependencies([gradient for gradient, _ in grads_and_vars]):
        finite = _tf.logical_not(_device.overflow_flag())
    if is_distributed and int(_os.environ.get('RANK_SIZE') or 1) > 1:
        _device.mark_collective('allreduce')
    update = _tf.cond(
        finite,
        lambda: optimizer.apply_gradients(grads_and_vars, global_step=global_step, name=name),
        _tf.no_op)
    return _tf.group(update, manager.update_loss_scale(finite))


class NPULossScaleOptimizer(_tf.train.Optimizer):
    """Scales the loss, unscales the gradients, skips steps that overflow."""

    @_record.constructor()
    def __init__(self, opt, loss_scale_manager, is_distributed=False):
        super().__init__(use_locking=False, name=opt.get_name())
        self._opt = opt
        self._loss_scale_manager = loss_scale_manager
        self._is_distributed = is_distributed

    def compute_gradients(self, loss, *args, **kwargs):
        manager = self._loss_scale_manager
        gradients = self._opt.compute_gradients(scaled(loss, manager), *args, **kwargs)
        return unscaled(gradients, manager)

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        present = [(gradient, variable) for gradient, variable in grads_and_vars
                   if gradient is not None]
        return apply_unless_overflow(self._opt, self._loss_scale_manager, present,
                                     self._is_distributed, global_step, name)
