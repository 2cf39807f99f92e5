"""Stops training at the first non-finite loss or gradient; removes non-finite checkpoints.

Each step computes the squared norm of every gradient, in one pass over it, so that the error names
the step and the variable. A norm above 1e19 counts as non-finite. With a scaled loss the optimizer
itself detects overflows and skips these steps. Skipped steps are counted and are an error only if
too many follow each other; gradient norms are then computed only on request.
"""
import os

from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf

from checkpoints import repair
from checkpoints import store
from common.errors import UserError
from common.files import check_still_there
from training import tensor_names

# A loss scale of 2 ** 15 that is halved after every second overflow reaches 1 after 30.
MAX_SKIPPED_IN_A_ROW = 50


def add_gradient_norms(gradients_and_variables):
    """Adds half of each gradient's squared norm to the graph, for `NanHook`; returns their norm.

    Args:
      gradients_and_variables: pairs from compute_gradients; the gradients are dense.

    Returns:
      the global (Euclidean) norm of all gradients, a scalar.
    """
    halves = tf.stack([tf.cast(tf.nn.l2_loss(gradient), tf.float32)
                       for gradient, _ in gradients_and_variables],
                      name=tensor_names.GRADIENT_SQUARES)
    tf.get_default_graph().get_collection_ref(tensor_names.GRADIENT_SQUARES)[:] = [
        variable.op.name for _, variable in gradients_and_variables]
    return tf.sqrt(2.0 * tf.reduce_sum(halves))


class NotFiniteError(UserError):
    """Training has produced non-finite numbers."""


class LossScaleSkips:
    """Counts the steps that the optimizer skipped because a scaled gradient overflowed.

    Attributes:
      total: number of skipped steps in all sessions of this run.
      in_a_row: number of steps skipped since the last applied step.
    """

    def __init__(self):
        self.total = self.in_a_row = 0

    def add(self, tried, made):
        """Adds the steps of one session.run.

        Args:
          tried: number of steps that ran.
          made: number of steps that were applied.

        Raises:
          UserError: MAX_SKIPPED_IN_A_ROW steps in a row were skipped.
        """
        skipped = int(tried - made)
        self.in_a_row = self.in_a_row + skipped if made == 0 else 0
        if skipped:
            self.total += skipped
            logging.info('Overflow: %d of %d steps skipped, %d in total.',
                         skipped, tried, self.total)
        if self.in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f'loss scaling: {self.in_a_row} steps in a row were skipped because gradients '
                'overflowed; lower --loss_scale (dynamic lowers it automatically) or '
                '--base_learning_rate. On an NPU, --over_dump finds the operator.')


class NanHook(tf.train.SessionRunHook):
    """Raises NotFiniteError after a step whose loss or gradients are not finite.

    If one session.run makes several steps, the hook checks the last one, because NaN persists.

    Args:
      model_dir: directory of the checkpoints.
      steps_per_run: number of steps that one session.run makes.
      skips: `LossScaleSkips` if the optimizer skips overflowing steps, else None.
      wait_for_save: function that blocks while a checkpoint is being written.
    """

    def __init__(self, model_dir, steps_per_run=1, skips=None, wait_for_save=lambda: None):
        self._model_dir = model_dir
        self._steps_per_run = steps_per_run
        self._skips = skips
        self._wait_for_save = wait_for_save

    def begin(self):
        graph = tf.get_default_graph()
        names = [tensor_names.LOSS, tensor_names.CROSS_ENTROPY, tensor_names.STEP]
        self._variable_names = graph.get_collection(tensor_names.GRADIENT_SQUARES)
        if self._variable_names:
            names.append(tensor_names.GRADIENT_SQUARES)
        self._tensors = {name: graph.get_tensor_by_name(f'{name}:0') for name in names}
        self._global_step = tensor_names.global_step_read()

    def after_create_session(self, session, coord):
        self._step = session.run(self._global_step)

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._tensors)

    def after_run(self, run_context, run_values):
        values = run_values.results
        earlier_step, self._step = self._step, values[tensor_names.STEP]
        if self._skips:
            self._skips.add(self._steps_per_run, self._step - earlier_step)
        loss = values[tensor_names.LOSS]
        if not np.isfinite(loss):
            self._fail(values, f'the loss is {loss} (term: {_non_finite_part(values)})')
        # With loss scaling, the optimizer has skipped a step with non-finite gradients.
        if not self._skips and not np.isfinite(values[tensor_names.GRADIENT_SQUARES]).all():
            self._fail(values, f'the loss is {loss:.6g}')

    def _fail(self, values, loss_text):
        step = values[tensor_names.STEP]
        self._wait_for_save()
        if not np.isfinite(values[tensor_names.LOSS]):
            _discard_checkpoint_of(step - 1, self._model_dir)
        if tensor_names.GRADIENT_SQUARES in values:
            loss_text += f'; {self._describe_gradients(values[tensor_names.GRADIENT_SQUARES])}'
        raise _error(f'after step {step}', loss_text, self._model_dir)

    def _describe_gradients(self, squares):
        bad = [name for name, total in zip(self._variable_names, squares)
               if not np.isfinite(total)]
        if not bad:
            return 'all gradients are finite'
        # Variables are in layer order and NaN spreads backwards from the loss, so the last
        # non-finite gradient is the nearest to the cause.
        return (f'{len(bad)} of {len(squares)} gradients are not finite (nearest to the loss: '
                f'{bad[-1]})')


def _non_finite_part(values):
    is_finite = np.isfinite(values[tensor_names.CROSS_ENTROPY])
    return 'weight decay' if is_finite else tensor_names.CROSS_ENTROPY


def check_saved(checkpoint, model_dir):
    """Raises UserError if a saved checkpoint is unreadable or not finite, and removes it.

    Args:
      checkpoint: path prefix.
      model_dir: directory of the earlier checkpoints.

    Raises:
      NotFiniteError: a variable is not finite; the message names it.
      UserError: the checkpoint cannot be read back.
    """
    step = store.step_in_name(checkpoint)
    try:
        bad = store.not_finite(checkpoint)
    except UserError as error:
        check_still_there(os.path.dirname(checkpoint))
        store.remove(checkpoint)
        raise UserError(f'{checkpoint}: cannot be read back after saving; check the disk and '
                        'rerun. Earlier checkpoints are intact.') from error
    if bad:
        store.remove(checkpoint)
        raise _error(f'at step {step}, which was not saved',
                     f'non-finite variables: {len(bad)} (first: {bad[0]})', model_dir)


def _discard_checkpoint_of(step, model_dir):
    """Rolls back one checkpoint if the newest was saved at `step`.

    Its weights are finite but already give a non-finite loss, which would end the next run at once.
    """
    checkpoint = store.latest(model_dir)
    if checkpoint and store.step_of(checkpoint) == step:
        earlier = repair.previous_intact(checkpoint)
        if earlier:
            repair.roll_back_to(earlier)


def _error(when, what, model_dir):
    checkpoint = store.latest(model_dir)
    kept = f'{checkpoint} is the last good checkpoint' if checkpoint else 'no checkpoint was saved'
    return NotFiniteError(
        f'training stopped {when}: {what}; {kept}. Lower --base_learning_rate or lengthen '
        '--lr_warmup_epochs, with float16 use --loss_scale=dynamic (in a new --model_dir, with '
        '--init_checkpoint), and rerun.')
