"""Ranks by collective, once the library is initialized (docs/npu_bridge.md, section 6)."""
import os

from npu_bridge.double import device
from npu_bridge.double import record


def _number(variable, default):
    if not device.is_initialised():
        raise RuntimeError('hccl is not initialised: no session has run on the device yet')
    return int(os.environ.get(variable) or default)


def get_rank_size(group='hccl_world_group'):
    return _number('RANK_SIZE', 1)


def get_local_rank_size(group='hccl_world_group'):
    return _number('RANK_SIZE', 1)


def get_rank_id(group='hccl_world_group'):
    return _number('RANK_ID', 0)


def get_local_rank_id(group='hccl_world_group'):
    return _number('RANK_ID', 0)


def get_world_rank_from_group_rank(group, group_rank_id):
    return group_rank_id


def get_group_rank_from_world_rank(world_rank_id, group):
    return world_rank_id


def create_group(group, rank_num, rank_ids):
    record.write('call', name='create_group',
                 arguments={'group': group, 'rank_num': rank_num, 'rank_ids': rank_ids})


def destroy_group(group):
    record.write('call', name='destroy_group', arguments={'group': group})
