"""Saves checkpoints: writes each one, reads it back, and only then lists it as the newest."""
import contextlib
import tempfile
import threading

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import store
from common.files import check_room
from common.files import check_still_there
from common.files import readable_errors
from common.files import whole_file
from training import nan_guard
from training import summaries
from training import tensor_names


def make_hook(config, runtime, after_round=None, measured=contextlib.nullcontext):
    """Returns the hook that saves the checkpoints of a run; see `CheckpointHook`."""
    kind = AsyncCheckpointHook if runtime.saves_in_background else CheckpointHook
    return kind(config, runtime.keeps_checkpoints, after_round, measured)


class RunSaver(store.Saver):
    """Saves all variables of a training, and restores all except those that start from scratch.

    Args:
      anew: global variables that are initialized instead of restored, because the checkpoint lacks
        them or has values that belong to other settings.
    """

    def __init__(self, anew=()):
        self._anew = list(anew)
        self._restorer = self._start = self._meta_graph = None
        super().__init__(sharded=True, max_to_keep=None, defer_build=True, save_relative_paths=True)

    def build(self):
        super().build()
        if self._anew:
            self._restorer = store.Saver(
                [variable for variable in tf.global_variables() if variable not in self._anew]
                + tf.get_collection(tf.GraphKeys.SAVEABLE_OBJECTS))
            self._start = tf.variables_initializer(self._anew)

    def export_meta_graph(self, filename=None, **options):
        """Writes the graph as of the first call: it is final, and to describe it takes a second."""
        if not self._meta_graph:
            self._meta_graph = super().export_meta_graph(**options).SerializeToString()
        with whole_file(filename, 'wb') as file:
            file.write(self._meta_graph)

    def restore(self, sess, save_path):
        if not self._anew:
            super().restore(sess, save_path)
            return
        self._restorer.restore(sess, save_path)
        sess.run(self._start)


class CheckpointHook(tf.train.CheckpointSaverHook):
    """Saves at intervals, at the end of each round of training, and at the end of the session.

    A checkpoint that is unreadable or has non-finite values is removed before the `checkpoint` file
    lists it. That file lists at most --keep_checkpoint_max checkpoints; each save removes the
    oldest. A save takes one session.run.

    Args:
      config: `run_config.Config` of this rank.
      is_kept: whether this rank keeps what it saves. Ranks that share model_dir with rank 0 save
        into a temporary directory, because saving averages batch statistics over all ranks.
      after_round: function of a checkpoint's path prefix, called between two steps at the end of
        each round; returns whether to end the session. None to do nothing.
      measured: function that returns a context manager for the time for which training waits for
        a save.

    Raises:
      UserError: a file cannot be written, or a variable is not finite.
    """
    # TensorFlow's hook lists a file that was never read back, runs global_step separately, writes
    # graph.pbtxt at the start (seconds), and saves again the checkpoint it was restored from.

    def __init__(self, config, is_kept=True, after_round=None,
                 measured=contextlib.nullcontext):
        model_dir = config.run.model_dir
        # The directory is removed together with this object.
        self._temporary_dir = None if is_kept else tempfile.TemporaryDirectory(prefix='worker-')
        super().__init__(model_dir if is_kept else self._temporary_dir.name,
                         save_secs=config.run.save_checkpoints_secs,
                         save_steps=config.run.save_checkpoints_steps)
        self._config = config
        self._after_round = after_round
        self._measured = measured
        self._step = None

    def begin(self):
        summaries.event_file(self._checkpoint_dir)
        super().begin()
        self._step_after = tf.get_default_graph().get_tensor_by_name(f'{tensor_names.STEP}:0')

    def after_create_session(self, session, coord):
        self._step = int(session.run(self._global_step_tensor))
        # A checkpoint contains the graph about twice, an event file once.
        graph = tf.get_default_graph().as_graph_def(add_shapes=True).SerializeToString()
        self._num_bytes = 2 * len(graph) + sum(
            (variable.shape.num_elements() or 0) * variable.dtype.base_dtype.size
            for variable in tf.global_variables())
        check_room(self._checkpoint_dir, self._num_bytes + len(graph))
        summaries.add_graph(self._summary_writer, graph)
        restored = store.newest_listed(self._config.run.model_dir)
        if store.step_in_name(restored) != self._step:
            self._save_measured(session)
        self._timer.update_last_triggered_step(self._step)

    def before_run(self, run_context):
        return tf.train.SessionRunArgs(self._step_after)

    def after_run(self, run_context, run_values):
        earlier_step, self._step = self._step, int(run_values.results)
        ends_round = self._config.ends_round(earlier_step, self._step)
        if ends_round or self._timer.should_trigger_for_step(self._step):
            self._timer.update_last_triggered_step(self._step)
            self._save_measured(run_context.session)
        if ends_round and self._after_round and not run_context.stop_requested:
            self._wait()
            if self._after_round(f'{self._save_path}-{self._step}'):
                run_context.request_stop()
            # --save_checkpoints_secs excludes the time of the evaluation.
            self._timer.update_last_triggered_step(self._step)

    def end(self, session):
        if self._step != self._timer.last_triggered_step():
            self._save_measured(session)
        self._wait()

    def _save_measured(self, session):
        with self._measured():
            self._save(session, self._step)

    def _save(self, session, step):
        self._write(session, step)

    def _wait(self):
        """Waits until the checkpoint of the last `_save` is complete; raises its error, if any."""

    def join(self):
        """Waits until no checkpoint is being written; raises nothing."""

    def _write(self, session, step):
        logging.info('Saving a checkpoint of step %d in %s.', step, self._checkpoint_dir)
        check_still_there(self._checkpoint_dir)
        check_room(self._checkpoint_dir, self._num_bytes)
        with readable_errors():
            checkpoint = self._saved(session, step)
            # All ranks check, so that they stop together.
            nan_guard.check_saved(checkpoint, self._config.run.model_dir)
            if self._temporary_dir:
                store.remove(checkpoint)
                return
            store.add_newest(checkpoint, self._config.run.keep_checkpoint_max)

    def _saved(self, session, step):
        """Saves a checkpoint without listing it; returns its path prefix."""
        try:
            return self._get_saver().save(
                session, self._save_path, global_step=step, write_state=False)
        except (tf.errors.OpError, ValueError):
            # TensorFlow raises ValueError if the directory no longer exists.
            check_still_there(self._checkpoint_dir)
            store.remove_unfinished(self._checkpoint_dir)
            store.remove(f'{self._save_path}-{step}')
            raise


class AsyncCheckpointHook(CheckpointHook):
    """Saves in a thread while training continues; the next step raises the thread's error, if any.

    The variables in a checkpoint may stem from steps that are a few apart.
    """

    _thread = _error = None

    def after_run(self, run_context, run_values):
        self._raise_error()
        super().after_run(run_context, run_values)

    def _save(self, session, step):
        self._wait()
        # Creates the saver here: TensorFlow looks it up in the default graph, which is per thread.
        self._get_saver()
        self._thread = threading.Thread(target=self._write_now, args=(session, step))
        self._thread.start()

    def _write_now(self, session, step):
        try:
            self._write(session, step)
        except Exception as error:  # after_run or _wait raises it.
            self._error = error

    def _wait(self):
        self.join()
        self._raise_error()

    def join(self):
        if self._thread:
            self._thread.join()

    def _raise_error(self):
        if self._error:
            raise self._error
