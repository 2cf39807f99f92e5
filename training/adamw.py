"""AdamW: Adam with decoupled weight decay (arXiv:1711.05101)."""
import tensorflow.compat.v1 as tf


class AdamWOptimizer(tf.train.AdamOptimizer):
    """tf.train.AdamOptimizer that also multiplies weights by 1 - learning_rate * weight_decay.

    The t-th update of a variable w with gradient g and moments m and v:
        w <- w - rate d w
        m <- beta1 m + (1 - beta1) g;   v <- beta2 v + (1 - beta2) g^2
        w <- w - rate sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

    Args:
      learning_rate: a float or scalar tensor.
      global_step: the variable that counts updates, from 0.
      weight_decay: d in the formula.
      beta1, beta2, epsilon: as in the formula.
      skip_list: texts; a variable whose name contains one of them is not decayed.
    """
    # The class overrides private methods of TensorFlow 1.15, which stores the powers of beta1 and
    # beta2 in variables. The names of these variables depend on the loss scale and on whether the
    # head has an optimizer of its own, so a checkpoint would fit only the settings that it was
    # saved with. Here the powers are computed from global_step, which counts the same updates.

    def __init__(self, learning_rate, global_step, weight_decay=0.0, beta1=0.9, beta2=0.999,
                 epsilon=1e-8, skip_list=()):
        super().__init__(learning_rate, beta1, beta2, epsilon)
        self._weight_decay = weight_decay
        self._skip_list = tuple(skip_list)
        num_updates = tf.cast(global_step, tf.float32) + 1.0
        self._powers = tf.pow(beta1, num_updates), tf.pow(beta2, num_updates)

    def _create_slots(self, var_list):
        for variable in var_list:
            self._zeros_slot(variable, 'm', self._name)
            self._zeros_slot(variable, 'v', self._name)

    def _prepare(self):
        super()._prepare()
        self._decay_rate = self._lr_t * self._weight_decay

    def _get_beta_accumulators(self):
        return self._powers

    def _finish(self, update_ops, name_scope):
        return tf.group(*update_ops, name=name_scope)

    def _apply_dense(self, grad, var):
        with tf.control_dependencies(self._decay(tf.raw_ops.ApplyGradientDescent, var, var._ref)):
            return super()._apply_dense(grad, var)

    def _resource_apply_dense(self, grad, handle):
        with tf.control_dependencies(self._decay(
                tf.raw_ops.ResourceApplyGradientDescent, handle, lambda: handle.handle)):
            return super()._resource_apply_dense(grad, handle)

    def _decay(self, apply_gradient_descent, variable, operand):
        """Returns a list with the op that decays a variable, or an empty list."""
        if not self._weight_decay or any(text in variable.op.name for text in self._skip_list):
            return []
        return [apply_gradient_descent(
            var=operand(), alpha=self._decay_rate, delta=variable)]
