"""Layer-wise adaptive rate scaling (LARS, arXiv:1708.03888), an optimizer for large batches."""
import tensorflow.compat.v1 as tf


class LARSOptimizer(tf.train.Optimizer):
    """Momentum with a learning rate that is scaled per variable by |weights| / |gradient|.

    For a variable w with gradient g, weight decay d and momentum m:
        g <- g + d w;   rate <- learning_rate * eeta |w| / (|g| + d |w| + epsilon)
        v <- m v + rate g;   w <- w - v
    where |g| is the norm before weight decay is added, and rate is learning_rate if |w| or |g| is
    0. Both reference and resource variables are supported.

    Args:
      learning_rate: a float or scalar tensor.
      momentum: m, decay of the accumulated gradients, at least 0.
      weight_decay: d.
      eeta: the trust coefficient.
      epsilon: added to the denominator.
      skip_list: strings; variables whose name contains one of them get neither weight decay nor
        scaling.
      use_nesterov: whether to use Nesterov momentum.
      name: scope of the update ops and slots.

    Raises:
      ValueError: momentum is negative.
    """

    def __init__(self, learning_rate, momentum=0.9, weight_decay=1e-4, eeta=0.001, epsilon=0.0,
                 skip_list=(), use_nesterov=False, name='LARSOptimizer'):
        super().__init__(use_locking=False, name=name)
        if momentum < 0:
            raise ValueError(f'momentum={momentum}: must not be negative.')
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._eeta = eeta
        self._epsilon = epsilon
        self._skip_list = tuple(skip_list)
        self._use_nesterov = use_nesterov

    def _create_slots(self, var_list):
        for variable in var_list:
            self._zeros_slot(variable, 'momentum', self._name)

    def _prepare(self):
        self._learning_rate_tensor = tf.convert_to_tensor(self._learning_rate, name='learning_rate')

    def _apply_dense(self, grad, var):
        return self._apply(tf.raw_ops.ApplyMomentum, grad, var, lambda variable: variable._ref())

    def _resource_apply_dense(self, grad, handle):
        return self._apply(
            tf.raw_ops.ResourceApplyMomentum, grad, handle, lambda variable: variable.handle)

    def _apply(self, apply_momentum, grad, var, operand):
        # The accumulator includes the rate, so that a change of rate affects only later gradients.
        return apply_momentum(
            var=operand(var), accum=operand(self.get_slot(var, 'momentum')), lr=1.0,
            grad=self._step(grad, var), momentum=self._momentum, use_nesterov=self._use_nesterov)

    def _step(self, grad, var):
        """Returns (gradient + weight decay * variable) * learning rate of this variable."""
        rate = self._learning_rate_tensor
        if any(text in var.op.name for text in self._skip_list):
            return rate * grad
        weight_norm, grad_norm = tf.norm(var), tf.norm(grad)
        trust_ratio = self._eeta * weight_norm / (
            grad_norm + self._weight_decay * weight_norm + self._epsilon)
        is_defined = tf.logical_and(weight_norm > 0, grad_norm > 0)
        scale = tf.where(is_defined, trust_ratio, tf.ones_like(trust_ratio))
        return rate * scale * (grad + self._weight_decay * var)
