"""Hooks, those of NPUEstimator included (docs/npu_bridge.md sections 4 to 6)."""
import tensorflow.compat.v1 as _tf
from tensorflow.python.ops import summary_ops_v2 as _summary_ops_v2

from npu_bridge.double import device as _device
from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases
from npu_bridge.estimator.npu import npu_saver as _npu_saver
from npu_bridge.estimator.npu import util as _util


class NPUBroadcastGlobalVariablesHook(_tf.train.SessionRunHook):
    """Section 6: sends the trainable variables, and no others, from one rank. Here: says so."""

    def __init__(self, root_rank, index=0):
        self._root_rank = root_rank
        self._variables = []

    def begin(self):
        self._variables = _tf.trainable_variables()
        _device.mark_collective('broadcast', len(self._variables))

    def after_create_session(self, session, coord):
        _record.write('broadcast', root_rank=self._root_rank,
                      variables=[variable.name for variable in self._variables])


class NPUCheckpointSaverHook(_tf.train.CheckpointSaverHook):
    """Section 4: saves all variables with its own saver, at the first run that reached its step.

    keep_checkpoint_max, the Estimator's, counts from r1.14 on; before, five are kept.
    """

    def __init__(self, checkpoint_dir, save_secs=None, save_steps=None,
                 checkpoint_basename='model.ckpt', listeners=None, keep_checkpoint_max=5):
        if not _releases.since('r1.14.0'):
            keep_checkpoint_max = 5
        super().__init__(
            checkpoint_dir, save_secs=save_secs, save_steps=save_steps,
            saver=_npu_saver.NPUSaver(max_to_keep=keep_checkpoint_max),
            checkpoint_basename=checkpoint_basename, listeners=listeners)

    def after_run(self, run_context, run_values):
        step = run_context.session.run(self._global_step_tensor)
        _tf.logging.info('global_step...%d', step)
        if self._timer.should_trigger_for_step(step):
            self._timer.update_last_triggered_step(step)
            if self._save(run_context.session, step):
                run_context.request_stop()


class NPUInfeedOutfeedSessionHook(_tf.train.SessionRunHook):
    """Section 5: runs host_call's function on what came out of the outfeed, once for each step.

    The real one does so in a thread of its own; here it is done when session.run returns.
    """

    def __init__(self, outfeed_size, host_ops):
        self._outfeed_size = outfeed_size
        self._host_ops = host_ops

    def begin(self):
        self._open_ops = _summary_ops_v2.summary_writer_initializer_op()
        self._flush_ops = [_summary_ops_v2.flush(writer=op.inputs[0]) for op in self._open_ops]

    def after_create_session(self, session, coord):
        session.run(self._open_ops)

    def after_run(self, run_context, run_values):
        self._drain(run_context.session)

    def end(self, session):
        self._drain(session)
        session.run(self._flush_ops)

    def _drain(self, session):
        for _ in range(session.run(self._outfeed_size)):
            session.run(self._host_ops)


class NPULogOutfeedSessionHook(_tf.train.SessionRunHook):
    """Section 4: prints what LogSummary ops sent. There are none here."""


class SetIterationsVarHook(_tf.train.SessionRunHook):
    """Section 2, iterations_per_loop: loads the variables of the loop."""

    def __init__(self, iterations_per_loop):
        self._iterations_per_loop = iterations_per_loop

    def begin(self):
        self._variables = _util.create_loop_variables()

    def after_create_session(self, session, coord):
        _util.load_loop_variables(session, self._variables, self._iterations_per_loop)


class NPUOutputTensorHook(_tf.train.SessionRunHook):
    """Section 1 names it; not modelled."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError('The double of npu_bridge has no NPUOutputTensorHook.')


class TellMeStepOrLossHook(_tf.train.SessionRunHook):
    """Section 1 names it, from r1.15.0 on; not modelled."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError('The double of npu_bridge has no TellMeStepOrLossHook.')


_releases.drop_later_names(globals())
