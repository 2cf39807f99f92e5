"""Assigns the ranks of a job to hosts, and composes the environment of each rank.

Standard library only, because the launcher imports it.
"""
import dataclasses
import json
import os
import random
import re
import socket
import threading
import time

from common.errors import UserError

# NPUEstimator requires a JOB_ID; its value does not matter without a scheduler.
DEFAULT_JOB_ID = '10087'

_HOSTS = re.compile(r'[\[\]A-Za-z0-9.:_-]+(,[\[\]A-Za-z0-9.:_-]+)*')
# First port of TensorFlow's workers on several hosts; each rank uses the next one.
_SEVERAL_HOSTS_FIRST_PORT = 23450
_FREE_PORTS = range(20000, 30000)
_PORT_ATTEMPTS = 100
# With --max_bad_records, a rank reads all its records first and may connect long after the others.
_HCCL_CONNECT_TIMEOUT_SECS = '3600'


@dataclasses.dataclass(frozen=True)
class Placement:
    """The ranks of this host among all ranks of a job.

    Attributes:
      world_size: number of ranks on all hosts.
      ranks: range of the ranks on this host.
      hosts: tuple of the names or addresses of all hosts; empty for a single host.
    """
    world_size: int
    ranks: range
    hosts: tuple = ()

    def addresses(self):
        """Returns the list of addresses, host:port, at which TensorFlow's workers listen.

        Raises:
          UserError: this host has too few free ports.
        """
        if not self.hosts:
            first_port = _first_free_port(self.world_size)
        else:
            first_port = _SEVERAL_HOSTS_FIRST_PORT
        return [f'{self._host_of(rank)}:{first_port + rank}' for rank in range(self.world_size)]

    def _host_of(self, rank):
        return self.hosts[rank // len(self.ranks)] if self.hosts else '127.0.0.1'


def place(world_size, hosts_text, host_index_text):
    """Finds the ranks of this host.

    Args:
      world_size: number of ranks on all hosts.
      hosts_text: value of --hosts, or empty.
      host_index_text: value of --host_index, or empty to find this host by its addresses.

    Raises:
      UserError: the ranks do not divide evenly among the hosts, or none or several of the hosts are
        this machine.
    """
    if not hosts_text:
        return Placement(world_size, range(world_size))
    if not _HOSTS.fullmatch(hosts_text):
        raise UserError(f'--hosts={hosts_text}: not a list of hosts; write it like '
                        '10.0.0.1,10.0.0.2')
    hosts = tuple(hosts_text.split(','))
    if world_size % len(hosts):
        raise UserError(f'--rank_size={world_size}: not a multiple of the {len(hosts)} hosts; '
                        'change one of the two')
    host_index = int(host_index_text) if host_index_text else _find_host_index(hosts)
    if host_index >= len(hosts):
        raise UserError(f'--host_index={host_index_text}: not below {len(hosts)}, the number of '
                        'hosts; the first host is 0')
    num_here = world_size // len(hosts)
    return Placement(
        world_size, range(host_index * num_here, (host_index + 1) * num_here), hosts)


def _find_host_index(hosts):
    found = [index for index, host in enumerate(hosts) if is_this_machine(host)]
    if len(found) != 1:
        raise UserError(f"--hosts={','.join(hosts)}: {len(found)} of them are this machine; give "
                        '--host_index')
    return found[0]


def is_this_machine(host):
    """Returns whether a host name or address belongs to this machine."""
    if host == socket.gethostname():
        return True
    try:
        return any(_can_bind(*entry) for entry in _look_up(host))
    except OSError:
        return False


def _look_up(host):
    # A str would have to be a valid internationalized name; bytes need not.
    return socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM)


def _can_bind(family, kind, protocol, _, address):
    """Returns whether an address can be bound, which is true for addresses of this machine only."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
        return True
    except OSError:
        return False


def resolve(hosts, timeout_secs):
    """Returns a dict of host -> set of its addresses, or the exception of a failed lookup.

    Args:
      hosts: set of names or addresses.
      timeout_secs: limit for all lookups together; an unreachable name server takes longer.
    """
    found = {host: TimeoutError(f'no answer within {timeout_secs} s') for host in hosts}

    def resolve_one(host):
        try:
            found[host] = {entry[-1][0] for entry in _look_up(host)}
        except (OSError, ValueError) as error:
            found[host] = error

    threads = [threading.Thread(target=resolve_one, args=[host], daemon=True) for host in hosts]
    deadline = time.monotonic() + timeout_secs
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(found)


def share_cores(placement):
    """Divides the cores that this process may use evenly among the ranks of this host.

    Returns:
      dict of rank -> set of core numbers.

    Raises:
      UserError: there are fewer cores than ranks.
    """
    cores, num_ranks = sorted(os.sched_getaffinity(0)), len(placement.ranks)
    if len(cores) < num_ranks:
        raise UserError(f'--bind_core=True: {len(cores)} cores are too few for {num_ranks} ranks; '
                        'leave it out')
    return {rank: set(cores[len(cores) * index // num_ranks:len(cores) * (index + 1) // num_ranks])
            for index, rank in enumerate(placement.ranks)}


def _first_free_port(count):
    for _ in range(_PORT_ATTEMPTS):
        first_port = random.choice(_FREE_PORTS)
        if all(map(_is_free, range(first_port, first_port + count))):
            return first_port
    raise UserError(f'no {count} consecutive free ports found; stop other servers on this host')


def _is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(('', port))
        except OSError:
            return False
    return True


def device_id():
    """Returns the number of the single device as text, as in the names of its directory and log.

    Raises:
      UserError: the environment variable is not a number.
    """
    number = os.environ.get('ASCEND_DEVICE_ID') or os.environ.get('DEVICE_ID') or '0'
    if not re.fullmatch('[0-9]{1,4}', number):
        raise UserError(f'ASCEND_DEVICE_ID or DEVICE_ID={number}: not a whole number; correct or '
                        'unset it')
    return number


def single_environment(device):
    """Returns the environment of a single process, without the variables of a job."""
    environment = _rank_environment(0, 1)
    for name in ('TF_CONFIG', 'RANK_TABLE_FILE', 'CM_WORKER_SIZE'):
        environment.pop(name, None)
    # npu_bridge prefers ASCEND_DEVICE_ID to DEVICE_ID, which the caller may have set.
    if not environment.get('DEVICE_ID'):
        environment['ASCEND_DEVICE_ID'] = device
    return environment


def npu_environment(placement, rank):
    """Returns the environment of a rank on an NPU that communicates through HCCL."""
    environment = _rank_environment(rank, placement.world_size)
    environment.pop('TF_CONFIG', None)
    environment['ASCEND_DEVICE_ID'] = str(rank - placement.ranks[0])
    environment['HCCL_CONNECT_TIMEOUT'] = (
        environment.get('HCCL_CONNECT_TIMEOUT') or _HCCL_CONNECT_TIMEOUT_SECS)
    return environment


def worker_environment(addresses, rank):
    """Returns the environment of a rank that is a worker of stock TensorFlow (see `cluster`)."""
    return {**_rank_environment(rank, len(addresses)), 'TF_CONFIG': json.dumps(
        {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': rank}})}


def _rank_environment(rank, world_size):
    defaults = {'JOB_ID': DEFAULT_JOB_ID, 'ASCEND_GLOBAL_LOG_LEVEL': '3',
                'ASCEND_SLOG_PRINT_TO_STDOUT': '0'}
    return {**os.environ, 'RANK_SIZE': str(world_size), 'RANK_ID': str(rank),
            **{name: os.environ.get(name) or value for name, value in defaults.items()}}
