"""How all-reduces are fused (docs/npu_bridge.md section 6): recorded, without effect."""
from npu_bridge.double import record


def set_split_strategy_by_idx(idx_list, group='hccl_world_group'):
    record.write('call', name='set_split_strategy_by_idx',
                 arguments={'idx_list': idx_list, 'group': group})


def set_split_strategy_by_size(data_size_list, group='hccl_world_group'):
    record.write('call', name='set_split_strategy_by_size',
                 arguments={'data_size_list': data_size_list, 'group': group})
