"""Replaces the compiled half of npu_bridge: checks the settings and the graph of every session.

The first run of a session computes, checks and records its settings; a session that never runs is
not recorded. When a session on the device closes, the event 'runs' lists the distinct sets of
fetches, targets and feeds that it ran, each a graph to compile, and how often. TensorFlow on the
CPU gets the session config without the NPU's entries.
"""
import collections
import json
import os
import sys
import weakref

import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_lib

from npu_bridge.double import record
from npu_bridge.double import releases
from npu_bridge.double import settings as settings_lib

LOOP_OP = 'IterationOp'
LOOP_VARIABLE = 'npu_runconfig/iterations_per_loop'

# Section 10, and the variables of collectives and tuning.
_ENVIRONMENT = (
    'JOB_ID', 'RANK_SIZE', 'RANK_ID', 'POD_NAME', 'ASCEND_DEVICE_ID', 'DEVICE_ID', 'DEVICE_INDEX',
    'RANK_INDEX', 'RANK_TABLE_FILE', 'CM_CHIEF_IP', 'CM_CHIEF_PORT', 'CM_CHIEF_DEVICE',
    'CM_WORKER_IP', 'CM_WORKER_SIZE', 'FUSION_TENSOR_SIZE', 'HCCL_CONNECT_TIMEOUT',
    'HCCL_EXEC_TIMEOUT', 'DUMP_GE_GRAPH',
    'DUMP_GRAPH_LEVEL', 'DUMP_GRAPH_PATH', 'PRINT_MODEL', 'PROFILING_MODE', 'PROFILING_OPTIONS',
    'AOE_MODE', 'REPEAT_TUNE', 'ENABLE_TUNE_BANK', 'TUNE_BANK_PATH', 'TE_PARALLEL_COMPILER',
    'ASCEND_GLOBAL_LOG_LEVEL', 'ASCEND_GLOBAL_EVENT_ENABLE', 'ASCEND_SLOG_PRINT_TO_STDOUT',
    'TF_CONFIG')

# Section 9: options of the engine, which hold until its last session is gone.
_ENGINE_KEYS = ('precision_mode', 'precision_mode_v2', 'graph_run_mode', 'profiling_mode',
                'profiling_options', 'auto_tune_mode', 'aoe_mode', 'mstune_mode')

# Graph -> what the Python half reports of it.
_modes = weakref.WeakKeyDictionary()
_collectives = weakref.WeakKeyDictionary()

_sessions = weakref.WeakSet()
_overflow_reads = 0


def mark_mode(graph, mode):
    """Records that a model_fn built `graph` in `mode`."""
    _modes[graph] = mode


def mark_collective(kind, count=1):
    """Records that `count` tensors of the default graph go through a collective."""
    _collectives.setdefault(tf.get_default_graph(), collections.Counter())[kind] += count


def is_initialised():
    """Returns whether the process has a session on the device; collectives need one (section 6)."""
    return bool(_live_sessions())


def _live_sessions():
    return [session for session in _sessions if not session._closed]


def overflow_flag():
    """Returns the hardware's overflow flag as a bool tensor (section 7).

    The environment variable FAKE_NPU_OVERFLOW_STEPS lists the reads of the flag that overflow; 1 is
    the first read of this process. global_step cannot count them: an overflow leaves it unchanged.
    """
    def read():
        global _overflow_reads
        _overflow_reads += 1
        overflowing = os.environ.get('FAKE_NPU_OVERFLOW_STEPS', '').split(',')
        return str(_overflow_reads) in overflowing
    flag = tf.numpy_function(read, [], tf.bool, name='NpuGetFloatStatus')
    flag.set_shape([])
    return flag


# Sessions ---------------------------------------------------------------------------------------

def _init(stock):
    def __init__(self, target='', graph=None, config=None):  # noqa: N807
        self._npu_config = config
        stock(self, target, graph, _without_npu(config))
    return __init__


def _without_npu(config):
    """Returns a copy of a ConfigProto without the NPU's entries."""
    if not isinstance(config, tf.ConfigProto):
        return config
    plain = tf.ConfigProto()
    plain.CopyFrom(config)
    rewriting = plain.graph_options.rewrite_options
    others = [entry for entry in rewriting.custom_optimizers if entry.name != settings_lib.ENTRY]
    del rewriting.custom_optimizers[:]
    rewriting.custom_optimizers.extend(others)
    rewriting.optimizers[:] = [
        name for name in rewriting.optimizers if name != 'GradFusionOptimizer']
    return plain


def _do_run(stock):
    def do_run(self, handle, target_list, fetch_list, feed_dict, options, run_metadata):
        if not hasattr(self, '_npu_settings'):
            self._npu_settings = _compile(self)
            self._npu_steps = 0
            self._npu_runs = collections.Counter()
        if handle is None:
            self._npu_runs[_names(fetch_list), _names(target_list), _names(feed_dict)] += 1
            for op in target_list:
                if op.name == LOOP_OP and self._npu_settings:
                    _run_all_but_the_last_step(self, stock, op, feed_dict)
        return stock(self, handle, target_list, fetch_list, feed_dict, options, run_metadata)
    return do_run


def _names(items):
    return tuple(sorted(item.name for item in items or ()))


def _close(stock):
    def close(self):
        if getattr(self, '_npu_settings', None) and not self._closed:
            record.write('runs', kind=_kind(self.graph), sets=[
                {'fetches': fetches, 'targets': targets, 'feeds': feeds, 'count': count}
                for (fetches, targets, feeds), count in self._npu_runs.items()])
        stock(self)
    return close


def _run_all_but_the_last_step(session, stock, loop_op, feeds):
    """Section 2: one session.run of the op called exactly IterationOp makes N device steps.

    SetIterationsVarHook loaded N - 1 into its variable. Fetches come from the last step.
    """
    steps = 1
    if session._npu_settings['iterations_per_loop'] > 1:
        variable = session.graph.get_tensor_by_name(f'{LOOP_VARIABLE}/read:0')
        steps += int(stock(session, None, [], [variable], {}, None, None)[0])
    for _ in range(steps - 1):
        stock(session, None, [loop_op], [], feeds, None, None)
    _write_dump(session._npu_settings, range(session._npu_steps, session._npu_steps + steps))
    session._npu_steps += steps


def _compile(session):
    """Checks and records a session at its first run; returns its settings, None off the device."""
    config = getattr(session, '_npu_config', None) or tf.ConfigProto()
    settings, ignored, refusal = settings_lib.effective(config)
    on_device = bool(settings_lib.entries(config)) and settings['use_off_line']
    kind = _kind(session.graph)
    inputs = _inputs(session.graph)
    if not on_device:
        settings, refusal = {}, None
    elif not refusal:
        refusal = _refuse_graph(session.graph, kind, inputs, settings)
    engine = {key: settings[key] for key in _ENGINE_KEYS if key in settings}
    if on_device and _live_sessions():
        engine = _live_sessions()[0]._npu_engine
    rewriting = config.graph_options.rewrite_options
    record.write(
        'session', release=releases.CURRENT, kind=kind, on_device=on_device,
        entries=len(settings_lib.entries(config)), settings=settings, ignored=ignored,
        engine=engine,
        allow_soft_placement=config.allow_soft_placement, remapping=rewriting.remapping,
        memory_optimization=rewriting.memory_optimization, optimizers=list(rewriting.optimizers),
        inputs=inputs,
        loop_op=any(op.name == LOOP_OP for op in session.graph.get_operations()),
        collectives=_collectives.get(session.graph, {}),
        environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        refused=refusal and refusal.reason, fatal=bool(refusal and refusal.fatal))
    if refusal:
        _refuse(refusal)
    if not on_device:
        return None
    session._npu_engine = engine
    _sessions.add(session)
    _write_files(settings, kind)
    return settings


def _refuse(refusal):
    if refusal.fatal:
        print(f'[FATAL] TF_ADAPTER: {refusal.reason}', file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(134)
    raise tf.errors.InternalError(None, None, refusal.reason)


def _kind(graph):
    """Returns train, eval, predict or export; other for graphs that no NPUEstimator built."""
    mode = _modes.get(graph)
    if mode == tf.estimator.ModeKeys.PREDICT:
        fed = any(op.type == 'Placeholder' for op in graph.get_operations())
        return 'export' if fed else 'predict'
    if mode:
        return mode
    return 'train' if graph.get_collection(tf.GraphKeys.TRAIN_OP) else 'other'


def _inputs(graph):
    """Returns the outputs of the graph's iterators; static: fit for the device (section 4)."""
    return [
        {'name': tensor.name, 'dtype': tensor.dtype.name, 'shape': str(tensor.shape),
         'static': tensor.shape.is_fully_defined() and tensor.dtype != tf.string}
        for op in graph.get_operations() if op.type.startswith('IteratorGetNext')
        for tensor in op.outputs]


def _refuse_graph(graph, kind, inputs, settings):
    """Returns the `Refusal` of a graph, or None (sections 2 to 4)."""
    types = [op.type for op in graph.get_operations()]
    if settings['iterations_per_loop'] > 1 and 'OneShotIterator' in types:
        return settings_lib.Refusal('a one-shot iterator with iterations_per_loop over 1', True)
    if settings.get('dynamic_dims') and types.count('IteratorGetNext') > 1:
        return settings_lib.Refusal('dynamic input with more than one IteratorGetNext', False)
    for tensor in inputs if kind == 'train' else []:
        if not tensor['static']:
            return settings_lib.Refusal('{name} ({dtype}, {shape}) is not static'.format(**tensor),
                                        False)
    reason = _no_collectives(graph)
    return settings_lib.Refusal(reason, False) if reason else None


def _no_collectives(graph):
    """Section 10: a rank table, or from r1.11 on the CM variables, turns collectives on."""
    if graph not in _collectives:
        return None
    if releases.since('r1.11.0') and 'CM_CHIEF_IP' in os.environ:
        return None
    table = os.environ.get('RANK_TABLE_FILE', '')
    if not os.path.isfile(table):
        return f'collectives without a rank table: RANK_TABLE_FILE={table} is no file'
    if not (os.environ.get('RANK_ID') or os.environ.get('POD_NAME')):
        return 'collectives without RANK_ID'
    return None


# Files ------------------------------------------------------------------------------------------
# Empty files in place of those that the engine writes.

def _write_files(settings, kind):
    if os.environ.get('DUMP_GE_GRAPH') in ('1', '2', '3'):
        _touch(os.environ.get('DUMP_GRAPH_PATH') or '.', f'ge_proto_00000_{kind}_Build.txt')
    if settings.get('profiling_mode'):
        _touch(json.loads(settings['profiling_options'])['output'], f'PROF_000001_{kind}/summary')


def _write_dump(settings, steps):
    if settings.get('enable_dump'):
        wanted = [steps]
        if 'dump_step' in settings:
            wanted = settings_lib.dump_steps(settings['dump_step'])
        for step in steps:
            if any(step in group for group in wanted):
                _touch(settings['dump_path'], f'{step}/dump')


def _touch(folder, name):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, 'w').close()


# Patching ---------------------------------------------------------------------------------------

def patch(owner, name, wrap):
    """Replaces a method of a session class by `wrap(stock)`, which keeps the original in .stock."""
    stock = _stock(owner, name)
    patched = wrap(stock)
    patched.stock = stock
    setattr(owner, name, patched)


def _stock(owner, name):
    function = owner.__dict__[name]
    return getattr(function, 'stock', function)


def install():
    """Patches TensorFlow's sessions to run on this device."""
    patch(session_lib.BaseSession, '__init__', _init)
    patch(session_lib.BaseSession, '_do_run', _do_run)
    patch(session_lib.BaseSession, 'close', _close)


def uninstall():
    """Restores TensorFlow's own sessions."""
    for owner, name in (
            (session_lib.BaseSession, '__init__'), (session_lib.BaseSession, '_do_run'),
            (session_lib.BaseSession, 'close'),
            (session_lib.Session, '__init__'), (session_lib.InteractiveSession, '__init__')):
        setattr(owner, name, _stock(owner, name))
