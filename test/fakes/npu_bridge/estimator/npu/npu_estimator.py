"""NPUEstimator and NPUEstimatorSpec (docs/npu_bridge.md sections 4 and 5)."""
import inspect as _inspect
import os as _os
import random as _random
import string as _string

import tensorflow.compat.v1 as _tf

from npu_bridge.double import device as _device
from npu_bridge.double import record as _record
from npu_bridge.double import releases as _releases
from npu_bridge.estimator.npu import npu_common as _npu_common
from npu_bridge.estimator.npu import npu_config as _npu_config
from npu_bridge.estimator.npu import npu_hook as _npu_hook

_OPTIMIZERS = ('pruning', 'function', 'constfold', 'shape', 'arithmetic', 'loop', 'dependency',
               'layout')


class NPUEstimatorSpec(_tf.estimator.EstimatorSpec):
    """Section 5: an EstimatorSpec with a host_call, (function, tensors)."""

    def __new__(cls, mode, predictions=None, loss=None, train_op=None, eval_metric_ops=None,
                export_outputs=None, training_chief_hooks=None, training_hooks=None, scaffold=None,
                evaluation_hooks=None, prediction_hooks=None, host_call=None):
        if host_call is not None:
            _check_host_call(host_call)
        spec = super().__new__(
            cls, mode=mode, predictions=predictions, loss=loss, train_op=train_op,
            eval_metric_ops=eval_metric_ops, export_outputs=export_outputs,
            training_chief_hooks=training_chief_hooks, training_hooks=training_hooks,
            scaffold=scaffold, evaluation_hooks=evaluation_hooks, prediction_hooks=prediction_hooks)
        spec.host_call = host_call
        return spec


def _check_host_call(host_call):
    if not isinstance(host_call, (tuple, list)) or len(host_call) != 2:
        raise ValueError('host_call must be a pair of a function and its tensors')
    function, tensors = host_call
    if not callable(function):
        raise TypeError('host_call[0] must be callable')
    if not isinstance(tensors, (tuple, list, dict)):
        raise ValueError('host_call[1] must be a list, a tuple or a dict')
    parameters = _inspect.signature(function).parameters.values()
    takes_any = any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
                    for parameter in parameters)
    if not takes_any and len(tensors) != len(parameters):
        raise RuntimeError(
            f'host_call: {len(tensors)} tensors for a function of {len(parameters)} arguments')


class NPUEstimator(_tf.estimator.Estimator):
    """Section 4."""

    @_record.constructor()
    def __init__(self, model_fn=None, model_dir=None, config=None, params=None, job_start_file='',
                 warm_start_from=None):
        if not isinstance(config, _npu_config.NPURunConfig):
            raise ValueError(f'config must be an NPURunConfig, got {config!r}')
        if model_dir and config.model_dir and model_dir != config.model_dir:
            raise ValueError(f'model_dir is given twice: {model_dir} and {config.model_dir}')
        if model_fn is None:
            raise ValueError('model_fn must be given')
        self.__load_job_info(job_start_file, warm_start_from)
        _check_modes(config)
        model_dir = model_dir or config.model_dir or _random_folder()
        if config.session_config is None:
            config = config.replace(session_config=_tf.ConfigProto(allow_soft_placement=True))
        _append_entry(config)
        super().__init__(
            model_fn=_Adapted(model_fn, config, model_dir, self.__rank_size), model_dir=model_dir,
            config=config, params=params, warm_start_from=warm_start_from or (
                _os.environ.get('LOCAL_CHECKPOINT_DIR') or _os.environ.get('RESTORE_FROM')))

    def __load_job_info(self, job_start_file, warm_start_from):
        """JOB_ID must be set: to dev its absence is an attribute that is not there."""
        if _os.environ.get('JOB_ID'):
            self.__job_info = _os.environ['JOB_ID']
        elif _releases.since('r1.3.0'):
            raise ValueError('JOB_ID is not set in the environment')
        if not warm_start_from:
            self.__job_info  # noqa: B018
        rank_size = _npu_common.NPUBasics(job_start_file).rank_size
        self.__rank_size = int(rank_size) if rank_size.isdigit() else 1


def _check_modes(config):
    if getattr(config, '_mstune_mode', None) is not None and not config._work_path:
        raise ValueError('mstune_mode needs work_path')
    profiling = config._profiling_config
    if profiling and profiling._enable_profiling and not profiling._profiling_options:
        if not _releases.since('r1.8.0'):
            raise ValueError('profiling_options must be set when profiling is enabled')


def _random_folder():
    letters = ''.join(_random.choice(_string.ascii_letters) for _ in range(10))
    path = _os.path.join(_os.getcwd(), f'model_dir_{letters}')
    _os.mkdir(path)
    return path


# The session config (section 4) -----------------------------------------------------------------

def _append_entry(config):
    """Extends the given ConfigProto itself, whatever it holds already."""
    rewriting = config.session_config.graph_options.rewrite_options
    rewriting.optimizers.extend(_OPTIMIZERS)
    if not _releases.since('r1.5.0'):
        rewriting.optimizers.append('memory')
    rewriting.optimizers.append('GradFusionOptimizer')
    entry = rewriting.custom_optimizers.add()
    entry.name = 'NpuOptimizer'
    for key, (field, value) in _settings(config).items():
        attribute = entry.parameter_map[key]
        if field == 's':
            attribute.s = _tf.compat.as_bytes(str(value))
        elif field == 'b':
            attribute.b = bool(value)
        else:
            attribute.i = int(value)


def _settings(config):
    """Key -> (field, value). What has no value, and None for a default, is not written."""
    settings = {'min_group_size': ('b', True), 'enable_dump': ('b', False),
                'enable_dump_debug': ('b', False)}
    settings.update(_given('NPURunConfig', config))
    if not _releases.since('r1.13.0') and config._precision_mode is None:
        default = 'allow_fp32_to_fp16' if config._graph_run_mode == 1 else 'force_fp16'
        settings['precision_mode'] = ('s', default)
    if config._profiling_config and config._profiling_config._enable_profiling:
        settings['profiling_mode'] = ('b', True)
        if config._profiling_config._profiling_options:
            settings['profiling_options'] = ('s', config._profiling_config._profiling_options)
    for name in ('DumpConfig', 'DynamicInputConfig', 'MemoryConfig', 'ExperimentalConfig'):
        part = getattr(config, _ATTRIBUTES[name], None)
        if part:
            settings.update(_given(name, part))
    if config._dump_config and config._dump_config._dump_mode is None:
        settings.pop('dump_debug_mode', None)
    return settings


_ATTRIBUTES = {'DumpConfig': '_dump_config', 'DynamicInputConfig': '_dynamic_input_config',
               'MemoryConfig': '_memory_config', 'ExperimentalConfig': '_experimental_config'}


def _given(constructor, config):
    values = {name: (argument.field, getattr(config, f'_{name}'))
              for name, argument in _releases.arguments(constructor).items() if argument.field}
    return {name: (field, value) for name, (field, value) in values.items() if value is not None}


# The model_fn ------------------------------------------------------------------------------------

class _Adapted:
    """A model_fn that adds to the spec of the given one what the device needs."""

    def __init__(self, model_fn, config, model_dir, rank_size):
        self._model_fn = model_fn
        self._config = config
        self._model_dir = model_dir
        self._rank_size = rank_size

    def __call__(self, features, labels, mode, params, config):
        offered = {'labels': labels, 'mode': mode, 'params': params, 'config': config}
        wanted = _inspect.signature(self._model_fn).parameters
        spec = self._model_fn(features=features, **{
            name: value for name, value in offered.items() if name in wanted})
        _device.mark_mode(_tf.get_default_graph(), mode)
        if mode == _tf.estimator.ModeKeys.PREDICT:
            return spec
        if not isinstance(spec, _tf.estimator.EstimatorSpec):
            raise RuntimeError('model_fn must return an NPUEstimatorSpec or an EstimatorSpec')
        training = mode == _tf.estimator.ModeKeys.TRAIN
        fields, hooks = (self._for_training if training else self._for_evaluation)(spec)
        _record.write('model_fn', mode=mode, hooks=[type(hook).__name__ for hook in hooks],
                      host_call=bool(getattr(spec, 'host_call', None)))
        return _tf.estimator.EstimatorSpec(**{**spec._asdict(), **fields})

    def _for_training(self, spec):
        """Sections 2, 4 and 5: the op called exactly IterationOp, and NPUEstimator's hooks."""
        config = self._config
        hooks = []
        if self._rank_size > 1 and not config._horovod_mode:
            hooks.append(_npu_hook.NPUBroadcastGlobalVariablesHook(0))
        if config.save_checkpoints_steps or config.save_checkpoints_secs:
            hooks.append(_npu_hook.NPUCheckpointSaverHook(
                self._model_dir, save_secs=config.save_checkpoints_secs,
                save_steps=config.save_checkpoints_steps,
                keep_checkpoint_max=config.keep_checkpoint_max))
        loss, outfeed_ops, outfeed_hooks = _outfeed(spec, after=spec.train_op)
        hooks += outfeed_hooks
        if config.iterations_per_loop > 1:
            hooks.append(_npu_hook.SetIterationsVarHook(config.iterations_per_loop))
        train_op = _tf.group(spec.train_op, *outfeed_ops, name=_device.LOOP_OP)
        hooks += spec.training_hooks
        return {'loss': loss, 'train_op': train_op, 'training_hooks': hooks}, hooks

    def _for_evaluation(self, spec):
        loss, _, hooks = _outfeed(spec, after=spec.loss)
        hooks += spec.evaluation_hooks
        return {'loss': loss, 'evaluation_hooks': hooks}, hooks


def _outfeed(spec, after):
    """Section 5: (loss that forces the outfeed, ops that feed it, hooks that empty it)."""
    if not isinstance(spec, NPUEstimatorSpec):
        return spec.loss, [], []
    hooks = [_npu_hook.NPULogOutfeedSessionHook()]
    if not spec.host_call:
        return spec.loss, [], hooks
    function, structure = spec.host_call
    keys = sorted(structure) if isinstance(structure, dict) else range(len(structure))
    tensors = [_tf.convert_to_tensor(structure[key]) for key in keys]
    channel = _tf.FIFOQueue(-1, [tensor.dtype.base_dtype for tensor in tensors])
    with _tf.control_dependencies([after]):
        # Copies: what was read from a variable would change with it while it waits in the channel.
        enqueue = channel.enqueue([_tf.raw_ops.DeepCopy(x=tensor) for tensor in tensors])
    with _tf.control_dependencies([enqueue]):
        loss = _tf.identity(spec.loss)
    received = channel.dequeue()
    received = received if isinstance(received, list) else [received]
    for tensor, sent in zip(received, tensors):
        tensor.set_shape(sent.shape)
    if isinstance(structure, dict):
        host_ops = function(**dict(zip(keys, received)))
    else:
        host_ops = function(*received)
    host_hook = _npu_hook.NPUInfeedOutfeedSessionHook(
        channel.size(), _tf.group(*_tf.nest.flatten(host_ops)))
    return loss, [enqueue], [host_hook] + hooks
