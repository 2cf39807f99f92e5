"""NPURunConfig and the configs it takes (docs/npu_bridge.md sections 2 and 3)."""
import json as _json
import os as _os

import tensorflow.compat.v1 as _tf

from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases

_RUN_CONFIG_ARGUMENTS = (
    'model_dir', 'tf_random_seed', 'save_summary_steps', 'save_checkpoints_steps',
    'save_checkpoints_secs', 'session_config', 'keep_checkpoint_max',
    'keep_checkpoint_every_n_hours', 'log_step_count_steps', 'train_distribute', 'eval_distribute')
_DEFAULT_SAVE_CHECKPOINTS_STEPS = 100


class _Arguments:
    """Keeps its constructor's arguments as attributes with a leading underscore."""

    def _keep(self, arguments):
        for name, value in arguments.items():
            setattr(self, f'_{name}', value)


class ProfilingConfig(_Arguments):
    """Section 3. The options are passed through unparsed."""

    @_record.constructor(_releases.signature('ProfilingConfig'))
    def __init__(self, **arguments):
        self._keep(arguments)


class DumpConfig(_Arguments):
    """Section 3. Every check of the values is the compiled side's."""

    @_record.constructor(_releases.signature('DumpConfig'))
    def __init__(self, **arguments):
        self._keep(arguments)


class DynamicInputConfig(_Arguments):
    """Section 3."""

    @_record.constructor(_releases.signature('DynamicInputConfig'))
    def __init__(self, **arguments):
        self._keep(arguments)


class MemoryConfig(_Arguments):
    """Section 1, from r1.9.0 on."""

    @_record.constructor(_releases.signature('MemoryConfig'))
    def __init__(self, **arguments):
        self._keep(arguments)


class ExperimentalConfig(_Arguments):
    """Section 1, from r1.9.0 on."""

    @_record.constructor(_releases.signature('ExperimentalConfig'))
    def __init__(self, **arguments):
        self._keep(arguments)


class NPURunConfig(_tf.estimator.RunConfig, _Arguments):
    """Section 2."""

    @_record.constructor(_releases.signature('NPURunConfig'))
    def __init__(self, **arguments):
        _check_iterations(arguments['iterations_per_loop'], arguments['mix_compile_mode'])
        _check_cluster(arguments['distribute'], arguments['mix_compile_mode'])
        for name, kind in _CONFIG_ARGUMENTS:
            if arguments[name] is not None and not isinstance(arguments[name], kind):
                raise ValueError(f'{name} must be a {kind.__name__}, got {arguments[name]!r}')
        _check_modes(arguments['horovod_mode'], arguments['graph_run_mode'])
        self._keep(arguments)
        self.iterations_per_loop = arguments['iterations_per_loop']
        stock = {name: arguments[name] for name in _RUN_CONFIG_ARGUMENTS if name in arguments}
        if stock['save_checkpoints_steps'] is None and stock['save_checkpoints_secs'] is None:
            stock['save_checkpoints_steps'] = _DEFAULT_SAVE_CHECKPOINTS_STEPS
        super().__init__(**stock)


_CONFIG_ARGUMENTS = (('dump_config', DumpConfig), ('dynamic_input_config', DynamicInputConfig))


def _check_iterations(iterations_per_loop, mix_compile_mode):
    if not isinstance(iterations_per_loop, int):
        raise TypeError(f'iterations_per_loop must be an int, got {iterations_per_loop!r}')
    if iterations_per_loop < 1:
        raise ValueError(f'iterations_per_loop must be positive, got {iterations_per_loop}')
    if not isinstance(mix_compile_mode, bool):
        kind = TypeError if _releases.since('r1.15.0') else ValueError
        raise kind(f'mix_compile_mode must be a bool, got {mix_compile_mode!r}')
    if mix_compile_mode and iterations_per_loop != 1:
        raise ValueError('iterations_per_loop must be 1 with mix_compile_mode')


def _check_cluster(distribute, mix_compile_mode):
    has_cluster = bool(_json.loads(_os.environ.get('TF_CONFIG') or '{}').get('cluster'))
    has_servers = any(kind.__name__.startswith('ParameterServerStrategy')
                      for kind in type(distribute).__mro__)
    if has_cluster != has_servers:
        raise ValueError("TF_CONFIG's cluster and distribute=ParameterServerStrategy go together")
    if has_cluster and not mix_compile_mode:
        raise ValueError("TF_CONFIG's cluster needs mix_compile_mode=True")


def _check_modes(horovod_mode, graph_run_mode):
    if not isinstance(horovod_mode, bool):
        raise ValueError(f'horovod_mode must be a bool, got {horovod_mode!r}')
    if not isinstance(graph_run_mode, int):
        raise TypeError(f'graph_run_mode must be an int, got {graph_run_mode!r}')
    if graph_run_mode not in (0, 1):
        raise ValueError(f'graph_run_mode must be 0 or 1, got {graph_run_mode}')


def set_npu_default_config(session_config):
    """Section 1: what every session gets from r1.9.0 on; the given ConfigProto itself stays."""
    config = _tf.ConfigProto()
    if session_config is not None:
        config.CopyFrom(session_config)
    rewriting = config.graph_options.rewrite_options
    if not any(entry.name == 'NpuOptimizer' for entry in rewriting.custom_optimizers):
        rewriting.custom_optimizers.add().name = 'NpuOptimizer'
    config.allow_soft_placement = True
    rewriting.remapping = 2
    config.graph_options.optimizer_options.global_jit_level = _tf.OptimizerOptions.OFF
    return config


_releases.drop_later_names(globals())
