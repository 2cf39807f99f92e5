"""docs/npu_bridge.md section 8: collectives. All ranks are taken to hold the same tensors."""
import os as _os

import tensorflow.compat.v1 as _tf

from npu_bridge.double import device as _device


def allreduce(tensor, reduction, fusion=1, fusion_id=-1, group='hccl_world_group'):
    """All ranks hold the same tensor: a sum is the tensor times RANK_SIZE."""
    ranks = int(_os.environ.get('RANK_SIZE') or 1)
    _device.mark_collective('allreduce')
    reduced = {
        'min': lambda: tensor,
        'max': lambda: tensor,
        'sum': lambda: tensor * _tf.cast(ranks, tensor.dtype),
        'prod': lambda: tensor ** _tf.cast(ranks, tensor.dtype),
    }
    if reduction not in reduced:
        raise ValueError(f'reduction {reduction} is none of {", ".join(reduced)}')
    return _tf.identity(reduced[reduction](), name='HcomAllReduce')


def allgather(tensor, rank_size, group='hccl_world_group'):
    """The tensor of every rank along the first axis."""
    _device.mark_collective('allgather')
    return _tf.concat([tensor] * rank_size, axis=0, name='HcomAllGather')


def broadcast(tensor, root_rank, fusion=2, fusion_id=0, group='hccl_world_group'):
    """Takes and returns a list."""
    _device.mark_collective('broadcast', len(tensor))
    return [_tf.identity(item, name='HcomBroadcast') for item in tensor]
