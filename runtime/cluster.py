"""Several workers without NPUs, joined by TensorFlow's own collectives.

TF_CONFIG describes the workers, as for any tf.distribute job:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Worker 0 is the chief: it saves, evaluates and reports. All workers share one model_dir.
https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""
import atexit
import contextlib
import json
import os
import re

import tensorflow.compat.v1 as tf
from tensorflow.python.distribute import distribute_coordinator

from common.errors import UserError

_VARIABLE = 'TF_CONFIG'
_ADDRESS = re.compile(r'([^\s:]+|\[[^\s\]]+\]):(?P<port>[0-9]{1,5})')


class Cluster:
    """The rank of this process among the workers, and the strategy that joins them.

    Create it before TensorFlow runs anything: the strategy starts a server in this process.
    TF_CONFIG is removed from the environment, because an Estimator that evaluates alone reads it
    too; `described` restores it for a while.

    Attributes:
      rank: rank of this process; 0 without TF_CONFIG.
      world_size: number of workers; 1 without TF_CONFIG.
      strategy: a MultiWorkerMirroredStrategy, or None for a single process.

    Raises:
      UserError: TF_CONFIG does not describe a list of workers and this process's index in it.
    """

    def __init__(self):
        self._description = os.environ.get(_VARIABLE, '')
        self.rank, self.world_size = rank_and_size()
        self.strategy = None
        if self.world_size > 1:
            self.strategy = tf.distribute.experimental.MultiWorkerMirroredStrategy()
            # Clearing the server earlier than interpreter shutdown avoids errors about modules that
            # are already gone.
            atexit.register(distribute_coordinator._thread_local.__dict__.clear)
        os.environ.pop(_VARIABLE, None)

    @contextlib.contextmanager
    def described(self):
        """Restores TF_CONFIG within the context."""
        os.environ[_VARIABLE] = self._description
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def rank_and_size():
    """Returns (rank, number of workers) of TF_CONFIG; UserError if it is invalid."""
    description = os.environ.get(_VARIABLE, '')
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
