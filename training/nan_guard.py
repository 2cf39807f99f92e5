"""Stops a training whose numbers are not finite any more, and keeps such weights from being saved.

Each step adds up the squares of every gradient, which is one pass over them, so that the step is
known at which a number was not finite first (or above 1e19), and the variable. Where the loss is
scaled, steps whose gradients overflow are skipped by the optimizer: they are counted, not an error,
unless there is no end to it.
"""
from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.python.training import training_util

from checkpoints import repair
from checkpoints import store
from common.errors import UserError

# Names of tensors in the training graph: of `watch` and of the model_fn.
_SQUARES, _LOSS, _CROSS_ENTROPY = 'gradient_squares', 'loss', 'cross_entropy'

# A scale of 2 ** 15 that is halved after every second overflow is 1 after 30.
MAX_SKIPPED_IN_A_ROW = 50


def watch(gradients_and_variables):
    """Adds a vector that `FiniteHook` fetches to the graph: half of each gradient's squared norm.

    Args:
      gradients_and_variables: as of compute_gradients; the gradients are dense.

    Returns:
      the Euclidean norm of all gradients together, a scalar.
    """
    halves = tf.stack([tf.cast(tf.nn.l2_loss(gradient), tf.float32)
                       for gradient, _ in gradients_and_variables], name=_SQUARES)
    tf.get_default_graph().get_collection_ref(_SQUARES)[:] = [
        variable.op.name for _, variable in gradients_and_variables]
    return tf.sqrt(2.0 * tf.reduce_sum(halves))


class Overflows:
    """The steps that the optimizer has skipped, since a gradient of the scaled loss overflowed.

    Attributes:
      total: of all sessions of this run.
      in_a_row: since the last step that was made.
    """

    def __init__(self):
        self.total = self.in_a_row = 0

    def add(self, tried, made):
        """Counts what a session.run did; raises UserError where there is no end to it."""
        skipped = int(tried - made)
        self.in_a_row = self.in_a_row + skipped if made == 0 else 0
        if skipped:
            self.total += skipped
            logging.info('Overflow: %d of %d steps skipped, %d so far. The loss scale adapts.',
                         skipped, tried, self.total)
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f'{self.in_a_row} steps in a row were skipped, as their gradients overflowed. '
                'Lower --loss_scale (dynamic lowers it by itself) or --base_learning_rate; '
                '--over_dump finds the operator on an NPU.')


class FiniteHook(tf.train.SessionRunHook):
    """Raises a UserError after the step whose loss or gradients were not finite.

    Of several steps in one session.run it sees the last: NaN does not go away.

    Args:
      model_dir: where the last good checkpoint is.
      steps_per_run: steps that one session.run makes.
      overflows: `Overflows` where the optimizer skips steps, else None.
    """

    def __init__(self, model_dir, steps_per_run=1, overflows=None):
        self._model_dir = model_dir
        self._steps_per_run = steps_per_run
        self._overflows = overflows

    def begin(self):
        graph = tf.get_default_graph()
        self._tensors = {name: graph.get_tensor_by_name(f'{name}:0')
                         for name in (_SQUARES, _LOSS, _CROSS_ENTROPY)}
        self._variable_names = graph.get_collection(_SQUARES)
        # What TensorFlow's hooks fetch: to an NPU another tensor is another graph to compile.
        self._global_step = training_util._get_or_create_global_step_read()

    def after_create_session(self, session, coord):
        self._step = session.run(self._global_step)

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._tensors)

    def after_run(self, run_context, run_values):
        values = run_values.results
        if self._overflows:
            earlier_step = self._step
            self._step = run_context.session.run(self._global_step)
            self._overflows.add(self._steps_per_run, self._step - earlier_step)
        if not np.isfinite(values[_LOSS]):
            self._fail(run_context.session, self._loss_part(values), values)
        # An overflow of a scaled gradient was skipped.
        if not self._overflows and not np.isfinite(values[_SQUARES]).all():
            self._fail(run_context.session, f'the loss is {values[_LOSS]:.6g}', values)

    @staticmethod
    def _loss_part(values):
        part = _CROSS_ENTROPY
        if np.isfinite(values[_CROSS_ENTROPY]):
            part = 'weight decay'
        return f'the loss is {values[_LOSS]}, by its part {part}'

    def _fail(self, session, loss_text, values):
        bad = [name for name, total in zip(self._variable_names, values[_SQUARES])
               if not np.isfinite(total)]
        gradient_text = 'all gradients are finite'
        if bad:
            # Variables are in the order of the layers, and NaN goes from the loss backwards.
            gradient_text = (f'{len(bad)} of {len(self._variable_names)} gradients are not finite, '
                             f'nearest to the loss that of {bad[-1]}')
        step = session.run(self._global_step)
        if not np.isfinite(values[_LOSS]):
            _distrust_checkpoint_of(step - 1, self._model_dir)
        raise _error(f'after step {step}', f'{loss_text}; {gradient_text}', self._model_dir)


class SaveGuard(tf.train.CheckpointSaverListener):
    """Lets no checkpoint be saved that holds a number which is not finite; UserError names it.

    Args:
      model_dir: where the last good checkpoint is.
      looks_again: whether training goes on while a checkpoint is written, so that the numbers have
        to be finite afterwards, too; else one goes back by that checkpoint.
    """

    def __init__(self, model_dir, looks_again=False):
        self._model_dir = model_dir
        self._looks_again = looks_again

    def begin(self):
        graph = tf.get_default_graph()
        self._tensors = {}
        for variable in tf.global_variables():
            if variable.dtype.base_dtype.is_floating:
                # Of a variable that several workers have, this worker's copy.
                own = getattr(variable, 'values', [variable])[0]
                self._tensors[variable.op.name] = graph.as_graph_element(own)

    def before_save(self, session, global_step_value):
        bad = self._not_finite(session)
        if bad:
            raise _error(f'at step {global_step_value}, which was not saved',
                         f'{len(bad)} variables are not finite, {bad[0]} first', self._model_dir)

    def after_save(self, session, global_step_value):
        if not self._looks_again:
            return
        try:
            is_good = not self._not_finite(session)
        except (RuntimeError, tf.errors.OpError):
            # The training has failed and closed the session.
            is_good = False
        if not is_good:
            _distrust_checkpoint_of(global_step_value, self._model_dir)

    def _not_finite(self, session):
        """Names of the variables that hold a number which is not finite."""
        # A sum is not finite if a number is not; the rare one that overflows is looked at closely.
        with np.errstate(over='ignore', invalid='ignore'):
            return [name for name, value in session.run(self._tensors).items()
                    if not np.isfinite(np.sum(value)) and not np.isfinite(value).all()]


def _distrust_checkpoint_of(step, model_dir):
    """Goes back by a checkpoint, if the last one is of `step`: its weights, large but finite, are
    those whose loss is not, and would end the next run at once."""
    checkpoint = store.latest(model_dir)
    if checkpoint and store.step_of(checkpoint) == step:
        earlier = repair.one_before(checkpoint)
        if earlier:
            repair.go_back_to(earlier)


def _error(when, what, model_dir):
    checkpoint = store.latest(model_dir)
    kept = f'{checkpoint} is the last good checkpoint' if checkpoint else 'no checkpoint was saved'
    return UserError(
        f'Training stopped {when}: {what}; {kept}. Lower --base_learning_rate or lengthen '
        '--lr_warmup_epochs, and where tensors are float16 use --loss_scale=dynamic (in a new '
        '--model_dir, with --init_checkpoint), then start again.')
