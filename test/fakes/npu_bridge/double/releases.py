"""Names and arguments of npu_bridge by release (docs/npu_bridge.md, sections 1 to 3, 7, 9).

The environment variable FAKE_NPU_BRIDGE_RELEASE chooses the release at import.
"""
import collections
import inspect
import os

SUPPORTED = ('dev', 'r1.3.0', 'r1.5.0', 'r1.7.0', 'r1.8.0', 'r1.9.0', 'r1.10.0', 'r1.11.0',
             'r1.12.0', 'r1.13.0', 'r1.15.0')
CURRENT = os.environ.get('FAKE_NPU_BRIDGE_RELEASE') or 'r1.8.0'
if CURRENT not in SUPPORTED:
    raise ImportError(f'FAKE_NPU_BRIDGE_RELEASE={CURRENT} is none of {", ".join(SUPPORTED)}.')

REQUIRED = inspect.Parameter.empty

# An argument's default and its field of parameter_map ('s', 'b', 'i'); the field is None for an
# argument that is no setting of the session.
Argument = collections.namedtuple('Argument', 'default field')


def _order(release):
    return [0] if release == 'dev' else [int(part) for part in release[1:].split('.')]


def since(release):
    """Returns whether the chosen release is `release` or a later one."""
    return _order(CURRENT) >= _order(release)


# Constructor -> release -> its changes as (name, default, field). Added arguments follow the older
# ones (sections 2, 3, 7). The arguments of MemoryConfig and ExperimentalConfig are assumed: the
# contract does not list them.
_HISTORY = {
    'NPURunConfig': {
        'dev': {'added': (
            ('iterations_per_loop', 1, 'i'),
            ('profiling_config', None, None),
            ('model_dir', None, None),
            ('tf_random_seed', None, None),
            ('save_summary_steps', 0, None),
            ('save_checkpoints_steps', None, None),
            ('save_checkpoints_secs', None, None),
            ('session_config', None, None),
            ('keep_checkpoint_max', 5, None),
            ('keep_checkpoint_every_n_hours', 10000, None),
            ('log_step_count_steps', 100, None),
            ('distribute', None, None),
            ('enable_data_pre_proc', True, 'b'),
            ('precision_mode', None, 's'),
            ('enable_reduce_precision', False, 'b'),
            ('variable_format_optimize', True, 'b'),
            ('mix_compile_mode', False, 'b'),
            ('hcom_parallel', False, 'b'),
            ('graph_memory_max_size', None, 's'),
            ('variable_memory_max_size', None, 's'),
            ('auto_tune_mode', None, 's'),
            ('dump_config', None, None),
            ('stream_max_parallel_num', None, 's'),
            ('is_tailing_optimization', False, 'b'),
            ('horovod_mode', False, 'b'),
            ('graph_run_mode', 1, 'i'),
            ('op_debug_level', 0, 'i'),
            ('enable_scope_fusion_passes', None, 's'),
            ('enable_exception_dump', 0, 'i'),
            ('op_select_implmode', None, 's'),
            ('optypelist_for_implmode', None, 's'),
            ('dynamic_input_config', None, None),
            ('mstune_mode', None, 's'),
            ('work_path', None, 's'),
            ('buffer_optimize', 'l2_optimize', 's'),
            ('enable_small_channel', 0, 'i'),
            ('fusion_switch_file', None, 's'),
            ('enable_compress_weight', False, 'b'),
            ('compress_weight_conf', None, 's'),
            ('op_compiler_cache_mode', None, 's'),
            ('op_compiler_cache_dir', None, 's'),
            ('debug_dir', None, 's'),
            ('hcom_multi_mode', False, 'b'),
            ('dynamic_input', False, 'b'),
            ('dynamic_graph_execute_mode', 'dynamic_execute', 's'),
            ('dynamic_inputs_shape_range', None, 's'),
            ('train_distribute', None, None),
            ('eval_distribute', None, None),
            ('local_rank_id', None, 'i'),
            ('local_device_list', None, 's'),
            ('session_device_id', None, 'i'))},
        'r1.3.0': {'added': (('distribute_config', None, 's'), ('op_tune_mode', None, 's'))},
        'r1.5.0': {
            'added': (('aoe_mode', None, 's'), ('modify_mixlist', None, 's'),
                      ('op_precision_mode', None, 's')),
            'removed': ('mstune_mode', 'op_tune_mode')},
        'r1.7.0': {'added': (('device_type', None, 's'), ('hccl_timeout', None, 'i'),
                             ('op_wait_timeout', None, 'i'), ('op_execute_timeout', None, 'i'))},
        'r1.8.0': {'added': (('soc_config', None, 's'), ('HCCL_algorithm', None, 's'))},
        'r1.9.0': {'added': (('customize_dtypes', None, 's'), ('op_debug_config', None, 's'),
                             ('memory_config', None, None), ('experimental_config', None, None))},
        'r1.10.0': {
            'added': (('jit_compile', True, 'b'), ('topo_sorting_mode', None, 'i')),
            'changed': (('hcom_parallel', True, 'b'),)},
        'r1.11.0': {
            'added': (('aoe_config_file', None, 's'), ('insert_op_file', None, 's'),
                      ('external_weight', None, 'b')),
            'removed': ('auto_tune_mode',),
            'changed': (('jit_compile', False, 'b'),)},
        'r1.12.0': {
            'added': (('stream_sync_timeout', -1, 'i'), ('event_sync_timeout', -1, 'i'),
                      ('deterministic', 0, 'i'), ('frozen_variable', None, 'b'),
                      ('variable_placement', None, 's')),
            'removed': ('jit_compile',),
            'changed': (('variable_format_optimize', None, 'b'), ('op_debug_level', None, 'i'),
                        ('dynamic_input', None, 'b'))},
        'r1.13.0': {'added': (('es_cluster_config', None, 's'), ('jit_compile', 'auto', 's'),
                              ('precision_mode_v2', None, 's'))},
        'r1.15.0': {
            'added': (('ac_parallel_enable', None, 's'),),
            'changed': (('enable_exception_dump', 2, 'i'),)},
    },
    'ProfilingConfig': {
        'dev': {'added': (('enable_profiling', False, None), ('profiling_options', None, None))},
    },
    'DumpConfig': {
        'dev': {'added': (
            ('enable_dump', False, 'b'), ('dump_path', None, 's'), ('dump_step', None, 's'),
            ('dump_mode', 'output', 's'), ('enable_dump_debug', False, 'b'),
            ('dump_debug_mode', 'all', 's'))},
        'r1.10.0': {'added': (('dump_data', 'tensor', 's'), ('dump_layer', None, 's'))},
    },
    'DynamicInputConfig': {
        'dev': {'added': (('input_shape', REQUIRED, 's'), ('dynamic_dims', REQUIRED, 's'),
                          ('dynamic_node_type', REQUIRED, 'i'))},
    },
    'MemoryConfig': {
        'r1.9.0': {'added': (('atomic_clean_policy', 0, 'i'), ('static_memory_policy', None, 'i'))},
    },
    'ExperimentalConfig': {
        'r1.9.0': {'added': (('logical_device_cluster_deploy_mode', 'LB', 's'),
                             ('logical_device_id', None, 's'))},
    },
    'FixedLossScaleManager': {
        'dev': {'added': (('loss_scale', REQUIRED, None),)},
        'r1.5.0': {'added': (('enable_overflow_check', True, None),)},
    },
}


def arguments(constructor):
    """Returns name -> Argument of a constructor in the chosen release, in order."""
    found = collections.OrderedDict()
    for release, changes in _HISTORY[constructor].items():
        if since(release):
            for name in changes.get('removed', ()):
                del found[name]
            for name, default, field in changes.get('added', ()) + changes.get('changed', ()):
                found[name] = Argument(default, field)
    return found


def signature(constructor):
    """Returns the `inspect.Signature` of a constructor in the chosen release, self included."""
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter('self', keyword)] + [
        inspect.Parameter(name, keyword, default=argument.default)
        for name, argument in arguments(constructor).items()])


# Keys of parameter_map that are not arguments of those constructors (section 9).
_OTHER_FIELDS = {'use_off_line': 'b', 'task_index': 'i', 'profiling_mode': 'b',
                 'profiling_options': 's'}
# Written by npu_bridge, not read by the compiled half (section 2).
_UNREAD = ('enable_reduce_precision', 'min_group_size')


def read_fields():
    """Returns key -> field of the settings that the compiled half of the chosen release reads."""
    fields = dict(_OTHER_FIELDS)
    for constructor in _HISTORY:
        fields.update((name, argument.field) for name, argument in arguments(constructor).items()
                      if argument.field)
    return {key: field for key, field in fields.items() if key not in _UNREAD}


# Public name -> the first release that has it (section 1).
_FIRST_IN = {
    **dict.fromkeys((
        'tf', 'os', 'session', 'npu_config_proto', 'npu_run_config_init', 'npu_graph_options',
        'npu_optimizer_options', 'npu_hooks_append', 'npu_tf_optimizer', 'npu_keras_optimizer',
        'init_resource', 'shutdown_resource', 'close_session', 'set_keras_session_npu_config',
        'get_npu_rank_id', 'get_npu_local_rank_id', 'get_npu_rank_size'), 'r1.3.0'),
    **dict.fromkeys((
        'backend', 'npu_distributed_optimizer_wrapper', 'npu_allreduce', 'npu_callbacks_append',
        'npu_clear_session'), 'r1.6.0'),
    **dict.fromkeys(('MemoryConfig', 'ExperimentalConfig', 'set_npu_default_config'), 'r1.9.0'),
    'set_device_sat_mode': 'r1.13.0',
    'TellMeStepOrLossHook': 'r1.15.0',
}


def drop_later_names(namespace):
    """Deletes from a module's globals() the names that the chosen release does not have yet."""
    for name, release in _FIRST_IN.items():
        if not since(release):
            namespace.pop(name, None)
