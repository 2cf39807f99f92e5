"""Translates flags into the arguments of NPURunConfig in the installed release of npu_bridge.

Sections are those of docs/npu_bridge.md.
"""
import ast
import inspect
import json
import os

from absl import logging

from common.errors import UserError
from common.paths import make_rank_dir
from runtime import npu_env
from runtime import precision

DEFAULT_PRECISION_MODE = 'allow_mix_precision'
_MIXLIST = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'recipes',
                        'npu_mixlist.json')

# Argument of NPURunConfig -> the flag that sets it. --npu_option sets all others.
_SET_BY = {
    'model_dir': '--model_dir', 'iterations_per_loop': '--iterations_per_loop',
    'tf_random_seed': '--random_seed', 'save_summary_steps': '--save_summary_steps',
    'save_checkpoints_steps': '--save_checkpoints_steps',
    'save_checkpoints_secs': '--save_checkpoints_secs',
    'keep_checkpoint_max': '--keep_checkpoint_max',
    'log_step_count_steps': '--log_step_count_steps', 'session_config': 'no flag',
    'precision_mode': '--precision_mode', 'precision_mode_v2': '--precision_mode_v2',
    'modify_mixlist': '--modify_mixlist', 'enable_data_pre_proc': '--enable_data_pre_proc',
    'hcom_parallel': '--hcom_parallel', 'op_select_implmode': '--op_select_implmode',
    'deterministic': '--deterministic', 'dump_config': '--npu_dump_data',
    'profiling_config': '--npu_profiling', 'auto_tune_mode': '--npu_auto_tune',
    'aoe_mode': '--npu_auto_tune', 'work_path': '--npu_auto_tune',
    'op_compiler_cache_mode': '--op_cache_dir', 'op_compiler_cache_dir': '--op_cache_dir',
    'hccl_timeout': 'the environment variable HCCL_EXEC_TIMEOUT'}


def arguments(config, bridge, rank, waits_for_evaluation):
    """Returns the arguments of NPURunConfig that flags set, as a dict.

    Args:
      config: `run_config.Config`.
      bridge: namespace returned by `npu.load_bridge`.
      rank: rank of this process.
      waits_for_evaluation: whether the other ranks wait while rank 0 evaluates.

    Raises:
      UserError: the installed release lacks an argument, or a directory cannot be created.
    """
    settings, known = config.runtime, inspect.signature(bridge.NPURunConfig).parameters
    asked = {
        **_precision(settings, known),
        'enable_data_pre_proc': settings.enable_data_pre_proc is not False,
        'hcom_parallel': settings.hcom_parallel is not False,
        'op_select_implmode': settings.op_select_implmode,
        'deterministic': 1 if settings.deterministic else None,
        'dump_config': _dump_config(settings, bridge, rank),
        'profiling_config': _profiling_config(settings, bridge, rank),
        **_tuning(settings, known, rank)}
    asked = {name: value for name, value in asked.items() if value is not None}
    for name in asked:
        if name not in known:
            raise UserError(f'--{name}: not supported by the installed npu_bridge; leave it out or '
                            'install a later CANN.')
    asked.update(_op_cache(settings.op_cache_dir, rank))
    if waits_for_evaluation and 'hccl_timeout' in known:
        asked['hccl_timeout'] = npu_env.hccl_timeout_secs()
    return {**asked, **_options(settings.npu_option, known)}


def _precision(settings, known):
    """Returns one of the two mutually exclusive precision modes, with its mixlist."""
    if settings.precision_mode_v2:
        return {'precision_mode_v2': settings.precision_mode_v2}
    mode, mixlist = settings.precision_mode or DEFAULT_PRECISION_MODE, settings.modify_mixlist
    if mixlist == precision.NO_MIXLIST:
        mixlist = None
    elif not mixlist and mode == DEFAULT_PRECISION_MODE and 'modify_mixlist' in known:
        mixlist = _MIXLIST
    return {'precision_mode': mode, 'modify_mixlist': mixlist}


def _dump_config(settings, bridge, rank):
    """Returns the DumpConfig that the flags ask for, or None (section 3)."""
    if settings.npu_dump_data:
        return bridge.DumpConfig(
            enable_dump=True, dump_path=make_rank_dir(settings.dump_dir, rank),
            dump_step=settings.dump_step, dump_mode=settings.dump_mode)
    if settings.over_dump:
        return bridge.DumpConfig(
            enable_dump_debug=True, dump_path=make_rank_dir(settings.dump_dir, rank),
            dump_debug_mode='all')
    return None


def _profiling_config(settings, bridge, rank):
    """Returns the ProfilingConfig that the flags ask for, or None (section 3)."""
    if not settings.npu_profiling:
        return None
    return bridge.ProfilingConfig(
        enable_profiling=True,
        profiling_options=json.dumps({
            'output': make_rank_dir(settings.profiling_dir, rank),
            'training_trace': 'on', 'task_trace': 'on', 'hccl': 'on', 'aicpu': 'on',
            'fp_point': '', 'bp_point': '', 'aic_metrics': 'PipeUtilization'}))


def _tuning(settings, known, rank):
    """Returns the tuning arguments: auto_tune_mode up to r1.10, then aoe_mode (section 9)."""
    if not settings.npu_auto_tune:
        return {}
    mode = {'aoe_mode': '2'}
    if 'auto_tune_mode' in known:
        mode = {'auto_tune_mode': 'RL,GA'}
    return {**mode, 'work_path': make_rank_dir(settings.tune_dir, rank)}


def _op_cache(folder, rank):
    """Returns the arguments that cache compiled operators; none if the directory cannot be made."""
    try:
        path = make_rank_dir(folder, rank)
    except UserError as error:
        logging.info('Compiled operators are not cached (%s); choose another --op_cache_dir.',
                     str(error).rstrip('.'))
        return {}
    return {'op_compiler_cache_mode': 'enable', 'op_compiler_cache_dir': path}


def _options(options, known):
    """Returns the arguments given with --npu_option as a dict; UserError for an invalid one."""
    found = {}
    for option in options:
        name, _, text = option.partition('=')
        if name in _SET_BY:
            raise UserError(f'--npu_option={option}: {name} is set by {_SET_BY[name]}; use that.')
        if name not in known:
            free = ', '.join(sorted(set(known) - set(_SET_BY)))
            raise UserError(f'--npu_option={option}: the installed npu_bridge has no {name}; '
                            f'choose one of {free}.')
        value, default = _parsed(text), known[name].default
        if default is not None and type(value) is not type(default):
            raise UserError(f'--npu_option={option}: not a {type(default).__name__}; give one, '
                            f'like the default {default!r}.')
        found[name] = value
    return found


def _parsed(text):
    """Returns a text as the Python int, float, bool or None that it spells, else as it is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if value is None or isinstance(value, (int, float)) else text
