"""Several workers without NPUs, joined by TensorFlow's own collectives.

TF_CONFIG describes the workers, as for any tf.distribute job:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Worker 0 is the chief: it saves, evaluates and reports. All workers share one model_dir.
https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""
import atexit
import contextlib
import os
import re
import socket

from absl import logging
import tensorflow.compat.v1 as tf
from tensorflow.python.distribute import distribute_coordinator

from common import json_files
from common.errors import UserError
from common.errors import first_line
from runtime import placement

_VARIABLE = 'TF_CONFIG'
_RESOLVE_SECS = 15
_ADDRESS = re.compile(r'([^\s:]+|\[[^\s\]]+\]):(?P<port>[0-9]{1,5})')


class Cluster:
    """The rank of this process among the workers, and the strategy that joins them.

    Create it before TensorFlow runs anything: the strategy starts a server in this process.
    TF_CONFIG is removed from the environment, because an Estimator that evaluates alone reads it
    too; `described` restores it for a while.

    Attributes:
      rank: rank of this process; 0 without TF_CONFIG.
      world_size: number of workers; 1 without TF_CONFIG.
      ranks_on_host: number of those whose addresses are this machine's.
      strategy: a MultiWorkerMirroredStrategy, or None for a single process.

    Raises:
      UserError: TF_CONFIG does not describe a list of workers and this process's index in it, or
        this process cannot listen at its address.
    """

    def __init__(self):
        self._description = os.environ.get(_VARIABLE, '')
        self.rank, workers = _rank_and_workers(self._description)
        self.world_size = max(1, len(workers))
        self.ranks_on_host, self.strategy = 1, None
        if self.world_size > 1:
            endpoints = [_endpoint(worker) for worker in workers]
            self.ranks_on_host = _check_endpoints(endpoints, self.rank)
            self.strategy = _start(endpoints[self.rank][1])
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


def _start(port):
    """Starts this worker's server and returns the strategy."""
    logging.warning("TensorFlow's server listens on port %d of all network interfaces, without "
                    'authentication: let a firewall admit the other workers only (SECURITY.md).',
                    port)
    try:
        return tf.distribute.experimental.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise _port_error(port, first_line(error)) from error


def _check_endpoints(endpoints, rank):
    """Checks that all hosts resolve, no two workers are the same, and this one is here.

    TensorFlow itself would wait for ever, or end in an abort.

    Returns:
      int, the number of workers on this machine.

    Raises:
      UserError: one of these does not hold, or the port is in use.
    """
    addresses = placement.resolve({host for host, _ in endpoints}, _RESOLVE_SECS)
    seen = {}
    for index, (host, port) in enumerate(endpoints):
        if isinstance(addresses[host], Exception):
            raise UserError(f'TF_CONFIG: the host {host!r} of worker {index} cannot be resolved '
                            f'({first_line(addresses[host])}); correct it or /etc/hosts.')
        for address in addresses[host]:
            if address in ('0.0.0.0', '::'):
                raise UserError(f'TF_CONFIG: the address of worker {index}, {host}:{port}, is not '
                                'one that others can reach; name that of its network interface.')
            other = seen.setdefault((address, port), index)
            if other != index:
                raise UserError(f'TF_CONFIG: workers {other} and {index} have the same address, '
                                f'{host}:{port}; give each worker a port of its own.')
    host, port = endpoints[rank]
    if not placement.is_this_machine(host):
        raise UserError(f'TF_CONFIG: {host}:{port}, the address of worker {rank}, which this '
                        'process is, belongs to another machine; correct the index or the address.')
    with socket.socket() as probe:
        # Without it the connections of a process that has just ended would count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', port))
        except OSError as error:
            raise _port_error(port, error.strerror) from error
    return sum(not addresses[host].isdisjoint(addresses[other]) for other, _ in endpoints)


def _port_error(port, reason):
    return UserError(f'TF_CONFIG: this worker cannot listen on port {port} ({reason}); end the '
                     "process that does, or name another port in every worker's TF_CONFIG.")


def _endpoint(worker):
    """Returns (host, port) of a worker's address."""
    host, _, port = worker.rpartition(':')
    return host.strip('[]'), int(port)


def world_size():
    """Returns the number of workers of TF_CONFIG, 1 without it; UserError if it is invalid."""
    return max(1, len(_rank_and_workers(os.environ.get(_VARIABLE, ''))[1]))


def _rank_and_workers(description):
    """Returns (rank of this process, addresses of all workers) of what TF_CONFIG holds."""
    if not description:
        return 0, []
    fields = json_files.parse(
        os.fsencode(description), f'TF_CONFIG={description[:80]!r}', 'correct or unset it',
        {name: json_files.optional(json_files.OBJECT) for name in ('cluster', 'task')})
    jobs, task = fields.get('cluster') or {}, fields.get('task') or {}
    workers, kind = jobs.get('worker', []), task.get('type', 'worker')
    rank = task.get('index', 0)
    if not jobs:
        return 0, []
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
    return rank, workers
