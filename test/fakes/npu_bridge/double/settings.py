"""The settings that the compiled half reads from a ConfigProto, and those that it refuses.

See docs/npu_bridge.md: section 4 for the order of entries, sections 3, 7 and 9 for the refusals.
"""
import collections
import json
import os
import re

from npu_bridge.double import releases

ENTRY = 'NpuOptimizer'

# fatal: the process aborts without a Python exception; else session.run raises InternalError.
Refusal = collections.namedtuple('Refusal', 'reason fatal')

Effective = collections.namedtuple('Effective', 'settings ignored refusal')


def entries(config):
    """Returns the NpuOptimizer entries of a ConfigProto, in order."""
    return [entry for entry in config.graph_options.rewrite_options.custom_optimizers
            if entry.name == ENTRY]


def effective(config):
    """Returns the `Effective` settings of a ConfigProto.

    settings: dict of key -> value. A value in the wrong field of its key (section 9) is silently
    read as the field's default. ignored: the keys that this release does not read.
    """
    settings = {
        'enable_data_pre_proc': False,
        'hcom_parallel': releases.since('r1.10.0'),
        'iterations_per_loop': 1,
        'use_off_line': True,
    }
    ignored = []
    for entry in entries(config):
        new = {}
        for key, field in releases.read_fields().items():
            if key in entry.parameter_map:
                value = getattr(entry.parameter_map[key], field)
                new[key] = value.decode() if field == 's' else value
        ignored += sorted(set(entry.parameter_map) - set(new))
        settings.update(new)
        if _profiles(settings) and releases.since('r1.8.0'):
            settings['profiling_options'] = (
                settings.get('profiling_options') or _DEFAULT_PROFILING_OPTIONS)
        for check, abort in _CHECKS:
            reason = check(settings, new)
            if reason:
                return Effective(settings, ignored, Refusal(reason, abort))
    return Effective(settings, ignored, None)


_DEFAULT_PROFILING_OPTIONS = json.dumps({
    'output': './', 'training_trace': 'on', 'task_trace': 'on', 'hccl': 'on', 'aicpu': 'on',
    'aic_metrics': 'PipeUtilization'})


def _profiles(settings):
    return settings.get('profiling_mode', False)


def _dumps(settings):
    return settings.get('enable_dump', False) or settings.get('enable_dump_debug', False)


# Each check takes the settings so far and those of the current entry; it returns a reason or None.

def _dump_path(settings, _):
    """Section 3: both kinds of dump need an existing directory."""
    path = settings.get('dump_path')
    if not _dumps(settings):
        return None
    if not path:
        return 'dump is on, dump_path is absent'
    return _unusable_folder('dump_path', path)


def _unusable_folder(key, path):
    if not os.path.isdir(path):
        return f'{key} {path} is not a folder'
    if not os.access(path, os.R_OK | os.W_OK):
        return f'{key} {path} is not readable and writable'
    return None


def dump_steps(text):
    """Returns the steps of `0|5|10-20` as a list of ranges; ValueError otherwise (section 3)."""
    groups = text.split('|')
    if len(groups) > 100:
        raise ValueError('more than 100 groups')
    ranges = []
    for group in groups:
        match = re.fullmatch(r'(\d+)(?:-(\d+))?', group)
        if not match:
            raise ValueError(f'{group!r} is neither a step nor a range')
        first = int(match.group(1))
        last = int(match.group(2) or first)
        if match.group(2) and last <= first:
            raise ValueError(f'{group} does not rise')
        ranges.append(range(first, last + 1))
    return ranges


def _dump_step(settings, _):
    if settings.get('enable_dump') and 'dump_step' in settings:
        try:
            dump_steps(settings['dump_step'])
        except ValueError as error:
            return f'dump_step: {error}'
    return None


def _allowed(key, values, applies=lambda settings: True):
    def check(settings, _):
        if applies(settings) and settings.get(key) and settings[key] not in values:
            return f'{key}={settings[key]} is none of {", ".join(values)}'
        return None
    return check


def _one_dump(settings, _):
    """Section 3: enable_dump and enable_dump_debug are mutually exclusive."""
    if settings.get('enable_dump') and settings.get('enable_dump_debug'):
        return 'enable_dump and enable_dump_debug are both on'
    return None


def _profiling_without_options(settings, _):
    """Section 3: refused up to r1.7; `effective` adds the default from r1.8 on."""
    if _profiles(settings) and not settings.get('profiling_options'):
        return 'profiling_mode is on, profiling_options is absent'
    return None


def _profiling_options(settings, _):
    """Section 3: the keys and values of the JSON object."""
    text = settings.get('profiling_options')
    if not _profiles(settings) or not text or text == _DEFAULT_PROFILING_OPTIONS:
        return None
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        return f'profiling_options {text!r} is no JSON object'
    if 'output' not in options:
        return 'profiling_options has no output'
    for key in ('task_trace', 'aicpu', 'hccl'):
        if options.get(key, 'on') not in ('on', 'off'):
            return f'profiling_options: {key} is neither on nor off'
    if options.get('training_trace', 'on') != 'on':
        return 'profiling_options: training_trace, when given, must be on'
    if 'training_trace' in options and not {'fp_point', 'bp_point'} <= set(options):
        return 'profiling_options: training_trace needs fp_point and bp_point'
    return _unusable_folder('profiling output', options['output'])


def _precision_mode(settings, new):
    """Section 7: only r1.15 is known to check the value."""
    if not releases.since('r1.15.0'):
        return None
    return _allowed('precision_mode', (
        'force_fp32', 'allow_fp32_to_fp16', 'force_fp16', 'must_keep_origin_dtype',
        'allow_mix_precision', 'cube_fp16in_fp32out', 'allow_mix_precision_fp16',
        'allow_mix_precision_bf16', 'allow_fp32_to_bf16'))(settings, new)


def _precision_mode_v2(settings, _):
    if settings.get('precision_mode') and settings.get('precision_mode_v2'):
        return 'precision_mode and precision_mode_v2 are both set'
    return None


def _modify_mixlist(_, new):
    """Section 7: the path of a JSON file; needs allow_mix_precision in the same entry."""
    path = new.get('modify_mixlist')
    if not path:
        return None
    if new.get('precision_mode') != 'allow_mix_precision':
        return 'modify_mixlist needs precision_mode=allow_mix_precision in the same entry'
    try:
        with open(path) as file:
            lists = json.load(file)
    except (OSError, ValueError) as error:
        return f'modify_mixlist: {error}'
    if not isinstance(lists, dict) or not set(lists) <= {'black-list', 'white-list', 'gray-list'}:
        return f'modify_mixlist {path} has other keys than black-list, white-list, gray-list'
    for name, changes in lists.items():
        if not isinstance(changes, dict) or not set(changes) <= {'to-add', 'to-remove'}:
            return f'modify_mixlist {path}: {name} has other keys than to-add, to-remove'
    return None


def _optypelist(settings, _):
    if settings.get('optypelist_for_implmode') and not settings.get('op_select_implmode'):
        return 'optypelist_for_implmode needs op_select_implmode'
    return None


def _tuning_without_path(settings, _):
    """Section 9: aoe_mode comes with work_path. The double requires it."""
    if settings.get('aoe_mode'):
        return _unusable_folder('work_path', settings.get('work_path', ''))
    return None


def _device_numbers(settings, _):
    if settings.get('session_device_id', 0) < 0:
        return 'session_device_id is negative'
    if not 0 <= settings.get('local_rank_id', 0) <= 7:
        return 'local_rank_id is not in 0..7'
    return None


def _dynamic_input_keys(settings, _):
    """Section 3: all three keys together or none."""
    found = {'input_shape', 'dynamic_dims', 'dynamic_node_type'} & set(settings)
    if 0 < len(found) < 3:
        return f'dynamic input has {", ".join(sorted(found))} alone'
    if found and settings['iterations_per_loop'] != 1:
        return 'dynamic input needs iterations_per_loop=1'
    return None


def _dynamic_loop(settings, _):
    """Section 2."""
    if settings.get('dynamic_input') and settings['iterations_per_loop'] > 1:
        return 'dynamic_input needs iterations_per_loop=1'
    return None


# (check, whether this release aborts the process). Where the contract does not say, the double
# raises an InternalError.
_CHECKS = (
    (_dump_path, not releases.since('r1.6.0')),
    (_dump_step, True),
    (_allowed('dump_mode', ('input', 'output', 'all'), _dumps), True),
    (_allowed('dump_debug_mode', ('aicore_overflow', 'atomic_overflow', 'all'),
              lambda settings: settings.get('enable_dump_debug')), True),
    (_one_dump, False),
    (_profiling_without_options, True),
    (_profiling_options, False),
    (_precision_mode, False),
    (_precision_mode_v2, False),
    (_modify_mixlist, False),
    (_allowed('op_select_implmode', ('high_precision', 'high_performance')), False),
    (_optypelist, False),
    (_allowed('buffer_optimize', ('l2_optimize', 'off_optimize')), False),
    (_allowed('aoe_mode', ('1', '2', '4')), False),
    (_tuning_without_path, False),
    (_device_numbers, False),
    (_dynamic_input_keys, False),
    (_dynamic_loop, True),
)
