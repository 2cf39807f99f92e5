"""Stock TensorFlow on the CPU or GPU of this machine."""
import tensorflow.compat.v1 as tf

from user_error import UserError


class HostRuntime:
    """Runs a model_fn with the stock Estimator, in one process."""

    rank = 0
    num_ranks = 1

    def __init__(self, config):
        self._run = config.run
        self._random_seed = config.data.random_seed
        if config.optimization.data_format == 'channels_first' and not tf.test.is_gpu_available():
            raise UserError('--data_format=channels_first needs a GPU or an NPU, TensorFlow has no '
                            'such convolutions for CPUs; use channels_last.')

    def build_estimator(self, model_fn, params):
        """An Estimator on the run's model_dir."""
        session_config = tf.ConfigProto(allow_soft_placement=True)
        session_config.gpu_options.allow_growth = True
        return tf.estimator.Estimator(model_fn, params=params, config=tf.estimator.RunConfig(
            model_dir=self._run.model_dir,
            tf_random_seed=self._random_seed,
            save_checkpoints_steps=self._run.save_checkpoints_steps,
            keep_checkpoint_max=self._run.keep_checkpoint_max,
            save_summary_steps=self._run.log_step_count_steps,
            # The run loop's own progress line says what the Estimator's two lines would.
            log_step_count_steps=None,
            session_config=session_config))

    @staticmethod
    def estimator_spec(**fields):
        return tf.estimator.EstimatorSpec(**fields)

    @staticmethod
    def wrap_optimizer(optimizer):
        return optimizer

    @staticmethod
    def train(estimator, input_fn, max_steps, hooks):
        """Trains until global step `max_steps`, from the last checkpoint if there is one."""
        estimator.train(input_fn, hooks=hooks, max_steps=max_steps)

    @staticmethod
    def evaluate(estimator, input_fn, checkpoint, name):
        """Evaluates a checkpoint on the whole of `input_fn`; returns the dict of metrics."""
        return estimator.evaluate(input_fn, checkpoint_path=checkpoint, name=name)
