"""Reads and completes the environment variables that describe a job of NPUs.

Sections are those of docs/npu_bridge.md.
"""
import os

from absl import logging

from common.errors import UserError
from runtime import placement
from runtime import rank_table
from runtime.rank_table import WITHOUT_NPUS

# NPUEstimator silently starts from the checkpoint that one of these names (section 4).
_WARM_START_VARIABLES = ('LOCAL_CHECKPOINT_DIR', 'RESTORE_FROM')

_HCCL_TIMEOUT = 'HCCL_EXEC_TIMEOUT'
_CM_VARIABLES = ('CM_CHIEF_IP', 'CM_CHIEF_PORT', 'CM_CHIEF_DEVICE', 'CM_WORKER_IP')
# What CANN's set_env.sh sets. Images and shell profiles set device and log variables anywhere.
_CANN_VARIABLES = ('ASCEND_OPP_PATH', 'ASCEND_TOOLKIT_HOME', 'ASCEND_HOME_PATH')
# A server has eight Ascend 910 at most.
_MOST_DEVICES = 8
_JOB_VARIABLES = ('RANK_SIZE', 'RANK_ID', 'RANK_TABLE_FILE', 'CM_WORKER_SIZE', *_CM_VARIABLES)


def check_unused(num_workers):
    """Raises UserError if the environment asks for NPUs, of a machine without npu_bridge.

    Args:
      num_workers: number of workers in TF_CONFIG. They may have a RANK_SIZE too.
    """
    names = [name for name in ('RANK_TABLE_FILE', 'CM_WORKER_SIZE', *_CANN_VARIABLES)
             if os.environ.get(name)]
    if num_workers == 1 and _number('RANK_SIZE', '1', at_least=1) > 1:
        names.append('RANK_SIZE')
    if names:
        raise UserError(f'{names[0]}={os.environ[names[0]]}: this is set for NPUs, but npu_bridge '
                        'is not installed in this Python; install the TensorFlow adapter of CANN, '
                        f'or {WITHOUT_NPUS}.')


def rank_and_size():
    """Returns (rank, world size) of this process; (0, 1) if none is set (section 10).

    A job of several ranks without a rank table gets one for the devices of this server.

    Raises:
      UserError: a variable is missing, is no number, or contradicts another one.
    """
    size_name = 'CM_WORKER_SIZE' if os.environ.get('CM_WORKER_SIZE') else 'RANK_SIZE'
    if os.environ.get('CM_WORKER_SIZE') and os.environ.get('RANK_SIZE'):
        raise UserError('RANK_SIZE and CM_WORKER_SIZE are both set; unset the one that does not '
                        'belong to how the job is started.')
    if 'cluster' in os.environ.get('TF_CONFIG', ''):
        raise UserError('TF_CONFIG describes a cluster, but NPUs find each other through RANK_SIZE '
                        'and RANK_ID; unset TF_CONFIG or use --accelerator=stock.')
    world_size = _number(size_name, '1', at_least=1)
    if world_size > 1:
        _check_many_ranks(size_name, world_size)
    elif os.environ.get('RANK_TABLE_FILE'):
        # A single rank with a table of several waits for the others in each collective.
        rank_table.check(os.environ['RANK_TABLE_FILE'], world_size)
    rank = _number('RANK_ID', '0', at_least=0)
    if rank >= world_size:
        raise UserError(f'RANK_ID={rank} is not below {size_name}={world_size}; ranks count from '
                        '0.')
    return rank, world_size


def ranks_on_host(rank, world_size):
    """Returns how many ranks of the job run on this server.

    The rank table tells. Where there is none, servers are taken to be full.
    """
    path = os.environ.get('RANK_TABLE_FILE')
    found = rank_table.ranks_beside(path, rank) if path and world_size > 1 else None
    return found or min(world_size, _MOST_DEVICES)


def _number(name, default, at_least):
    text = os.environ.get(name) or default
    if not (text.isascii() and text.isdigit()) or int(text) < at_least:
        raise UserError(f'{name}={text} is not a whole number from {at_least} on; correct or unset '
                        'it.')
    return int(text)


def _check_many_ranks(size_name, world_size):
    if not os.environ.get('RANK_ID'):
        raise UserError(f'{size_name}={world_size} but RANK_ID is not set; give each process its '
                        f'own, from 0 to {world_size - 1}.')
    if size_name == 'RANK_SIZE':
        if not os.environ.get('RANK_TABLE_FILE'):
            os.environ['RANK_TABLE_FILE'] = rank_table.make_for_this_server(world_size)
        rank_table.check(os.environ['RANK_TABLE_FILE'], world_size)
        return
    for name in _CM_VARIABLES:
        if not os.environ.get(name):
            raise UserError(f'CM_WORKER_SIZE={world_size} but {name} is not set; a start without a '
                            'rank table needs all CM_ variables.')


def complete_environment():
    """Sets the variables that NPUEstimator requires and removes its warm-start variables.

    Existing values are kept; removed variables are logged (section 4).
    """
    os.environ['JOB_ID'] = os.environ.get('JOB_ID') or placement.DEFAULT_JOB_ID
    if not os.environ.get('CM_WORKER_SIZE'):
        os.environ['RANK_SIZE'] = os.environ.get('RANK_SIZE') or '1'
    if os.environ.get('RANK_TABLE_FILE'):
        os.environ['RANK_ID'] = os.environ.get('RANK_ID') or '0'
    if not os.environ.get('DEVICE_ID'):
        os.environ['ASCEND_DEVICE_ID'] = os.environ.get('ASCEND_DEVICE_ID') or '0'
    for name in _WARM_START_VARIABLES:
        path = os.environ.pop(name, '')
        if path:
            logging.warning('%s=%s has no effect; use --init_checkpoint=%s to start with the '
                            'weights from there.', name, path, path)


def leave_job():
    """Makes this process independent of the other ranks, before its first session.

    A rank table turns collectives on (section 10): a rank that evaluates alone would wait for ranks
    that have nothing to do.
    """
    for name in _JOB_VARIABLES:
        os.environ.pop(name, None)
    os.environ['RANK_SIZE'] = '1'


def set_hccl_timeout(default_secs):
    """Sets how long ranks wait for each other in a collective, unless the caller has set it."""
    os.environ[_HCCL_TIMEOUT] = os.environ.get(_HCCL_TIMEOUT) or str(default_secs)


def hccl_timeout_secs():
    """Returns what `set_hccl_timeout` has set; UserError if it is no number."""
    return _number(_HCCL_TIMEOUT, '', at_least=1)
