"""All names of npu_bridge (docs/npu_bridge.md section 1).

There is no __all__: from r1.3.0 on `from npu_bridge.npu_init import *` rebinds tf, os and session,
later backend too. From r1.9.0 on the import gives every session of the process an entry.
"""
# ruff: noqa: F401
import os

from hccl.manage.api import create_group
from hccl.manage.api import destroy_group
from hccl.manage.api import get_group_rank_from_world_rank
from hccl.manage.api import get_local_rank_id
from hccl.manage.api import get_local_rank_size
from hccl.manage.api import get_rank_id
from hccl.manage.api import get_rank_size
from hccl.manage.api import get_world_rank_from_group_rank
from hccl.split.api import set_split_strategy_by_idx
from hccl.split.api import set_split_strategy_by_size
import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.client import session
from tensorflow.python.keras import backend

from npu_bridge.double import device as _device
from npu_bridge.double import releases as _releases
from npu_bridge.estimator import npu_ops
from npu_bridge.estimator import npu_unary_ops
from npu_bridge.estimator.npu import keras_to_npu
from npu_bridge.estimator.npu import npu_config as _npu_config
from npu_bridge.estimator.npu import npu_hook as _npu_hook
from npu_bridge.estimator.npu import npu_optimizer as _npu_optimizer
from npu_bridge.estimator.npu import npu_rnn
from npu_bridge.estimator.npu import npu_scope
from npu_bridge.estimator.npu import npu_strategy
from npu_bridge.estimator.npu import util
from npu_bridge.estimator.npu.npu_config import DumpConfig
from npu_bridge.estimator.npu.npu_config import DynamicInputConfig
from npu_bridge.estimator.npu.npu_config import NPURunConfig
from npu_bridge.estimator.npu.npu_config import ProfilingConfig
from npu_bridge.estimator.npu.npu_estimator import NPUEstimator
from npu_bridge.estimator.npu.npu_estimator import NPUEstimatorSpec
from npu_bridge.estimator.npu.npu_hook import NPUBroadcastGlobalVariablesHook
from npu_bridge.estimator.npu.npu_hook import NPUCheckpointSaverHook
from npu_bridge.estimator.npu.npu_hook import NPUOutputTensorHook
from npu_bridge.estimator.npu.npu_loss_scale_manager import ExponentialUpdateLossScaleManager
from npu_bridge.estimator.npu.npu_loss_scale_manager import FixedLossScaleManager
from npu_bridge.estimator.npu.npu_loss_scale_optimizer import NPULossScaleOptimizer
from npu_bridge.estimator.npu.npu_optimizer import NPUDistributedOptimizer
from npu_bridge.estimator.npu.npu_optimizer import NPUOptimizer
from npu_bridge.hccl import hccl_ops

for _module, _names in (
        (_npu_config, ('MemoryConfig', 'ExperimentalConfig')),
        (_npu_hook, ('TellMeStepOrLossHook',)),
        (_npu_optimizer, ('npu_distributed_optimizer_wrapper', 'npu_allreduce'))):
    for _name in _names:
        if hasattr(_module, _name):
            globals()[_name] = getattr(_module, _name)


def npu_config_proto(config_proto=None):
    """Adds an NpuOptimizer entry if there is none (section 4: remapping, memory_optimization)."""
    config_proto = config_proto or tf.compat.v1.ConfigProto()
    rewriting = config_proto.graph_options.rewrite_options
    adds = not any(entry.name == 'NpuOptimizer' for entry in rewriting.custom_optimizers)
    if adds:
        rewriting.custom_optimizers.add().name = 'NpuOptimizer'
    if adds or not _releases.since('r1.9.0'):
        rewriting.remapping = RewriterConfig.OFF
        if _releases.since('r1.8.0'):
            rewriting.memory_optimization = RewriterConfig.OFF
    npu_graph_options(config_proto.graph_options)
    return config_proto


def npu_graph_options(graph_options=None):
    """XLA off."""
    graph_options = graph_options or tf.compat.v1.GraphOptions()
    npu_optimizer_options(graph_options.optimizer_options)
    return graph_options


def npu_optimizer_options(optimizer_options=None):
    """XLA off."""
    optimizer_options = optimizer_options or tf.compat.v1.OptimizerOptions()
    optimizer_options.global_jit_level = tf.compat.v1.OptimizerOptions.OFF
    return optimizer_options


def npu_run_config_init(run_config=None):
    """Gives a RunConfig an NPU session_config."""
    run_config = run_config or tf.estimator.RunConfig()
    return run_config.replace(session_config=npu_config_proto(run_config.session_config))


def npu_hooks_append(hooks_list=()):
    """Section 6: appends the broadcast hook, if it is given a list."""
    if isinstance(hooks_list, list):
        hooks_list.append(_npu_hook.NPUBroadcastGlobalVariablesHook(0))
    return hooks_list


def npu_tf_optimizer(opt):
    """Section 6."""
    return NPUDistributedOptimizer(opt)


def init_resource(config=None):
    """Section 6: from here on the collectives answer. Returns (session, shutdown op)."""
    resource = session.Session(graph=tf.Graph(), config=npu_config_proto(config))
    with resource.graph.as_default():
        resource.run(npu_ops.initialize_system())
        return resource, npu_ops.shutdown_system()


def shutdown_resource(sess, npu_shutdown):
    sess.run(npu_shutdown)


def close_session(sess):
    sess.close()


def get_npu_rank_id():
    return get_rank_id()


def get_npu_local_rank_id():
    return get_local_rank_id()


def get_npu_rank_size():
    return get_rank_size()


def _not_modelled(name):
    def function(*args, **kwargs):
        raise NotImplementedError(f'The double of npu_bridge has no {name}.')
    function.__name__ = name
    return function


npu_keras_optimizer = _not_modelled('npu_keras_optimizer')
npu_callbacks_append = _not_modelled('npu_callbacks_append')
npu_clear_session = _not_modelled('npu_clear_session')
set_keras_session_npu_config = _not_modelled('set_keras_session_npu_config')


def _with_default_entry(stock):
    def __init__(self, target='', graph=None, config=None):  # noqa: N807
        stock(self, target, graph, _npu_config.set_npu_default_config(config))
    return __init__


if _releases.since('r1.9.0'):
    _device.patch(session.Session, '__init__', _with_default_entry)
    _device.patch(session.InteractiveSession, '__init__', _with_default_entry)

_releases.drop_later_names(globals())
