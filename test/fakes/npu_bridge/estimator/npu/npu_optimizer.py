"""Optimizers for several devices (docs/npu_bridge.md sections 6 and 7).

RANK_SIZE ranks cannot be had in one process: all ranks are taken to have the same gradients, so the
sum of HcomAllReduce divided by RANK_SIZE is the gradient itself.
"""
import os as _os

import tensorflow.compat.v1 as _tf

from npu_bridge.double import device as _device
from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases
from npu_bridge.estimator.npu import npu_loss_scale_optimizer as _loss_scale

# "Later" than dev is taken to be r1.3.0.
_ALLREDUCE_TYPES = {_tf.float32, _tf.float16, _tf.int8, _tf.int16, _tf.int32} | (
    {_tf.int64, _tf.bfloat16} if _releases.since('r1.3.0') else set())


def _rank_size():
    return int(_os.environ.get('RANK_SIZE') or 1)


def _averaged(grads_and_vars, name):
    """HcomAllReduce(sum) / RANK_SIZE of each gradient; slices are gathered, None passes."""
    with _tf.name_scope(f'{name}_Allreduce'):
        return [(_average(gradient), variable) for gradient, variable in grads_and_vars]


def _average(gradient):
    if gradient is None:
        return None
    if gradient.dtype.base_dtype not in _ALLREDUCE_TYPES:
        raise TypeError(f'HcomAllReduce: {gradient.dtype.name} is not an allowed type')
    if isinstance(gradient, _tf.IndexedSlices):
        _device.mark_collective('allgather')
        return gradient
    _device.mark_collective('allreduce')
    return _tf.identity(gradient, name='HcomAllReduce')


class NPUDistributedOptimizer(_tf.train.Optimizer):
    """Averages the gradients of all ranks; with RANK_SIZE unset or 1 it is transparent."""

    @_record.constructor()
    def __init__(self, optimizer, is_weight_update_sharding=False, name=None):
        super().__init__(use_locking=False, name=name or f'Distributed{type(optimizer).__name__}')
        self._optimizer = optimizer
        self._is_weight_update_sharding = is_weight_update_sharding

    def compute_gradients(self, *args, **kwargs):
        gradients = self._optimizer.compute_gradients(*args, **kwargs)
        if _rank_size() <= 1:
            return gradients
        if self._is_weight_update_sharding:
            if not _os.environ.get('DEVICE_ID'):
                raise ValueError('is_weight_update_sharding needs DEVICE_ID')
            if _rank_size() > len(gradients):
                raise ValueError('is_weight_update_sharding: fewer gradients than RANK_SIZE')
        return _averaged(gradients, self.get_name())

    def apply_gradients(self, *args, **kwargs):
        return self._optimizer.apply_gradients(*args, **kwargs)

    def get_slot(self, *args, **kwargs):
        return self._optimizer.get_slot(*args, **kwargs)

    def get_slot_names(self, *args, **kwargs):
        return self._optimizer.get_slot_names(*args, **kwargs)

    def variables(self, *args, **kwargs):
        return self._optimizer.variables(*args, **kwargs)


class NPUOptimizer(_tf.train.Optimizer):
    """Both wrappers in one. On dev a None gradient fails in apply_gradients."""

    @_record.constructor()
    def __init__(self, opt, loss_scale_manager=None, is_distributed=False, is_loss_scale=False,
                 is_tailing_optimization=False, name=None):
        if is_loss_scale and loss_scale_manager is None:
            raise ValueError('is_loss_scale needs a loss_scale_manager')
        super().__init__(use_locking=False, name=name or f'NPUOptimizer{type(opt).__name__}')
        self._opt = opt
        self._loss_scale_manager = loss_scale_manager if is_loss_scale else None
        self._is_distributed = is_distributed

    def compute_gradients(self, loss, *args, **kwargs):
        manager = self._loss_scale_manager
        if manager:
            loss = _loss_scale.scaled(loss, manager)
        gradients = self._opt.compute_gradients(loss, *args, **kwargs)
        if self._is_distributed and _rank_size() > 1:
            gradients = _averaged(gradients, self.get_name())
        return _loss_scale.unscaled(gradients, manager) if manager else gradients

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        if _releases.since('r1.3.0'):
            grads_and_vars = [(gradient, variable) for gradient, variable in grads_and_vars
                              if gradient is not None]
        if not self._loss_scale_manager:
            return self._opt.apply_gradients(grads_and_vars, global_step=global_step, name=name)
        return _loss_scale.apply_unless_overflow(
            self._opt, self._loss_scale_manager, grads_and_vars, self._is_distributed, global_step,
            name)


def npu_distributed_optimizer_wrapper(optimizer):
    """Section 6: patches the compute_gradients of the given object, and returns it."""
    _record.write('call', name='npu_distributed_optimizer_wrapper', release=_releases.CURRENT,
                  arguments={'optimizer': optimizer})
    stock = optimizer.compute_gradients

    def compute_gradients(*args, **kwargs):
        gradients = stock(*args, **kwargs)
        return _averaged(gradients, type(optimizer).__name__) if _rank_size() > 1 else gradients

    optimizer.compute_gradients = compute_gradients
    return optimizer


def npu_allreduce(values, reduction='sum', *args, **kwargs):
    """Values of equal ranks: a sum is the value times RANK_SIZE, min and max are the value."""
    factor = _rank_size() if reduction == 'sum' else 1
    return [value * factor for value in values]


_releases.drop_later_names(globals())
