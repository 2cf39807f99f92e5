"""An optimizer wrapper that joins the gradients of biases and batch norms into one tensor."""
import tensorflow.compat.v1 as tf


class VectorGradients(tf.train.Optimizer):
    """Joins the gradients of all rank-1 variables into one, paired with the first of them.

    An outer optimizer that processes each gradient then processes one tensor instead of 139 of
    efficientnet-condconv-b0's 229, most of which have a few hundred elements.

    Args:
      optimizer: the tf.train.Optimizer that computes and applies gradients.
    """

    def __init__(self, optimizer):
        super().__init__(use_locking=False, name='VectorGradients')
        self._optimizer = optimizer
        self._vectors = []

    def compute_gradients(self, *args, **kwargs):
        """Returns pairs of gradient and variable, as tf.train.Optimizer; the joined one first."""
        pairs = self._optimizer.compute_gradients(*args, **kwargs)
        of_vectors = [(gradient, variable) for gradient, variable in pairs
                      if gradient is not None and variable.shape.rank == 1]
        if len(of_vectors) < 2:
            return pairs
        gradients, self._vectors = zip(*of_vectors)
        others = [(gradient, variable) for gradient, variable in pairs
                  if gradient is None or variable.shape.rank != 1]
        return [(tf.concat(gradients, 0), self._vectors[0]), *others]

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        """Applies the pairs that `compute_gradients` returned, as tf.train.Optimizer."""
        pairs = list(grads_and_vars)
        if self._vectors:
            (gradient, _), *others = pairs
            sizes = [variable.shape[0].value for variable in self._vectors]
            pairs = [*zip(tf.split(gradient, sizes), self._vectors), *others]
        return self._optimizer.apply_gradients(pairs, global_step, name)

    def get_slot(self, var, name):
        return self._optimizer.get_slot(var, name)

    def get_slot_names(self):
        return self._optimizer.get_slot_names()

    def variables(self):
        return self._optimizer.variables()
