"""Several processes without an NPU: workers of TensorFlow's own collectives.

TF_CONFIG says who they are, as for any tf.distribute job:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Worker 0 is the chief: it saves, evaluates and reports. All workers see the same model_dir.
https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""
import atexit
import contextlib
import json
import os
import re
import shutil
import tempfile
import time

import tensorflow.compat.v1 as tf
from tensorflow.python.distribute import distribute_coordinator

from checkpoints import store
from common.errors import UserError
from runtime import checkpoint_hooks

_VARIABLE = 'TF_CONFIG'
_ADDRESS = re.compile(r'([^\s:]+|\[[^\s\]]+\]):(?P<port>[0-9]{1,5})')
_POLL_SECS = 0.2
_SAVE_TIMEOUT_SECS = 1800


class Cluster:
    """This process's place among the workers, and the strategy that joins them.

    Made before anything else of TensorFlow runs: the strategy starts a server in this process.
    TF_CONFIG is taken out of the environment, for an Estimator that evaluates alone reads it too;
    `described` puts it back for a while.

    Attributes:
      rank, world_size: of this process, and how many there are; 0 and 1 without TF_CONFIG.
      strategy: None for a single process.

    Raises:
      UserError: TF_CONFIG does not describe workers and which of them this is.
    """

    def __init__(self):
        self._description = os.environ.get(_VARIABLE, '')
        self.rank, self.world_size = _place(self._description)
        self.strategy = None
        if self.world_size > 1:
            self.strategy = tf.distribute.experimental.MultiWorkerMirroredStrategy()
            # Left to the interpreter's end, the server there complains that modules are gone.
            atexit.register(distribute_coordinator._thread_local.__dict__.clear)
        os.environ.pop(_VARIABLE, None)

    @contextlib.contextmanager
    def described(self):
        """TF_CONFIG is in the environment."""
        os.environ[_VARIABLE] = self._description
        try:
            yield
        finally:
            del os.environ[_VARIABLE]

    def saver_hook(self, model_dir, save_steps, listeners):
        """The hook that saves checkpoints; for each worker a new one each session.

        TensorFlow 1.15 adds its own only together with summaries. All workers save, since what
        they save is in part the mean over all of them (batch norm's statistics), and all but the
        chief throw it away.
        """
        if self.rank == 0:
            return checkpoint_hooks.CheckpointHook(
                model_dir, save_steps=save_steps, listeners=listeners)
        folder = tempfile.mkdtemp(prefix='worker-')
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return checkpoint_hooks.CheckpointHook(
            folder, restored_dir=model_dir, save_steps=save_steps,
            listeners=[*listeners, _Discard(folder)])

    @staticmethod
    def wait_for_checkpoint(model_dir, step):
        """Waits until the chief has saved `step`, as the next session of all workers starts there.

        Raises:
          UserError: it has not come in half an hour.
        """
        deadline = time.monotonic() + _SAVE_TIMEOUT_SECS
        while store.step_in_name(tf.train.latest_checkpoint(model_dir) or '') < step:
            if time.monotonic() > deadline:
                raise UserError(f'Worker 0 has saved no checkpoint of step {step} in {model_dir}; '
                                'all workers need to see the same --model_dir.')
            time.sleep(_POLL_SECS)


class _Discard(tf.train.CheckpointSaverListener):
    """Empties the folder after each save."""

    def __init__(self, folder):
        self._folder = folder

    def after_save(self, session, global_step_value):
        for path in tf.gfile.Glob(os.path.join(self._folder, 'model.ckpt-*')):
            tf.gfile.Remove(path)


def _place(description):
    """(rank, number of workers) by the text of TF_CONFIG; UserError where it does not fit."""
    if not description:
        return 0, 1
    try:
        fields = json.loads(description)
        jobs, task = fields.get('cluster', {}), fields.get('task', {})
        workers, kind = jobs.get('worker', []), task.get('type', 'worker')
        rank = task.get('index', 0)
    except (ValueError, AttributeError) as error:
        raise UserError(f'TF_CONFIG={description} is not the JSON of a cluster and a task '
                        f'({error}); correct or unset it.') from error
    if not jobs:
        return 0, 1
    if set(jobs) != {'worker'} or kind != 'worker' or not isinstance(workers, list):
        raise UserError('TF_CONFIG names jobs other than "worker"; list all processes as workers, '
                        'the first of them is the chief.')
    for worker in workers:
        match = isinstance(worker, str) and _ADDRESS.fullmatch(worker)
        if not match or not 0 < int(match['port']) < 65536:
            raise UserError(f'TF_CONFIG names the worker {worker!r}, which is not like '
                            '10.0.0.1:2222; correct or unset it.')
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < len(workers):
        raise UserError(f'TF_CONFIG gives this process the index {rank} of {len(workers)} workers; '
                        'indices count from 0.')
    return rank, len(workers)
