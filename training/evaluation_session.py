"""One graph and one session, in which any number of checkpoints are evaluated."""
import itertools

import tensorflow.compat.v1 as tf

from checkpoints import restore


class EvaluationSession:
    """Evaluates checkpoints without building a graph for each; a context manager.

    On an NPU a new graph takes minutes to compile. The session may be open beside that of training.
    Its graph has no collective: only one rank evaluates.

    Args:
      estimator: the Estimator whose model_fn and session config are used.
      input_fn: function that returns the Dataset to evaluate on.
      seed: of the graph's random operations, or None.

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
            # Each run takes a batch, whatever the metrics read of it.
            self._update = tf.group(*[update for _, update in metrics.values()],
                                    *tf.nest.flatten((features, labels)))
            self._reset_metrics = tf.local_variables_initializer()
        self._start_input = iterator.initializer
        self._savers = {}
        self._session = tf.Session(graph=self.graph, config=estimator.config.session_config)
        # A device that refuses the session says so here, before hours of training.
        self._session.run(self._reset_metrics)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._session.close()

    def evaluate(self, checkpoint, weights, before_batch=lambda number: None):
        """Evaluates a checkpoint on all batches.

        Args:
          checkpoint: path prefix.
          weights: `restore.RAW` or `restore.EMA`.
          before_batch: function that is called with the number of batches so far, before each one;
            what it raises ends the evaluation.

        Returns:
          dict of name -> value of each metric.
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
        """The Saver that restores these weights; it is made for the first checkpoint."""
        if weights not in self._savers:
            with self.graph.as_default():
                self._savers[weights] = restore.weights_saver(weights, checkpoint)
        return self._savers[weights]
