"""Evaluates any number of checkpoints in one graph and one session."""
import itertools

import tensorflow.compat.v1 as tf

from checkpoints import restore


class EvaluationSession:
    """Evaluates checkpoints in one graph, which an NPU takes minutes to compile; context manager.

    The session may be open at the same time as that of training. The graph has no collective
    operations, because only one rank evaluates.

    Args:
      estimator: the Estimator that provides model_fn and session config.
      input_fn: function that returns the Dataset to evaluate on.
      seed: seed of the graph's random operations, or None.

    Attributes:
      graph: the tf.Graph.

    Raises:
      tf.errors.OpError: the session cannot be opened.
    """

    def __init__(self, estimator, input_fn, seed=None):
        mode = tf.estimator.ModeKeys.EVAL
        with tf.Graph().as_default() as self.graph:
            tf.set_random_seed(seed)
            iterator = tf.data.make_initializable_iterator(input_fn())
            features, labels = iterator.get_next()
            spec = estimator.model_fn(features, labels, mode, estimator.config)
            metrics = spec.eval_metric_ops
            self._values = {name: value for name, (value, _) in metrics.items()}
            # Each session.run must consume a batch, even if no metric reads it.
            self._update = tf.group(*[update for _, update in metrics.values()],
                                    *tf.nest.flatten((features, labels)))
            self._reset_metrics = tf.local_variables_initializer()
        self._start_input = iterator.initializer
        self._savers = {}
        self._session = tf.Session(graph=self.graph, config=estimator.config.session_config)
        # If the device refuses the session, this raises now and not after hours of training.
        self._session.run(self._reset_metrics)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.close()

    def evaluate(self, checkpoint, weights, before_batch=lambda number: None):
        """Evaluates a checkpoint on all batches and returns a dict of metric name -> value.

        Args:
          checkpoint: path prefix.
          weights: `restore.RAW` or `restore.EMA`.
          before_batch: function called before each batch with the number of batches done; an
            exception that it raises ends the evaluation.
        """
        self._saver(checkpoint, weights).restore(self._session, checkpoint)
        self._session.run(self._reset_metrics)
        self._session.run(self._start_input)
        for number in itertools.count():
            before_batch(number)
            try:
                self._session.run(self._update)
            except tf.errors.OutOfRangeError:
                return self._session.run(self._values)

    def _saver(self, checkpoint, weights):
        """Returns the Saver that restores these weights, created for the first checkpoint."""
        if weights not in self._savers:
            with self.graph.as_default():
                self._savers[weights] = restore.weights_saver(weights, checkpoint)
        return self._savers[weights]
