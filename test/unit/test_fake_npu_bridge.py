"""The double of npu_bridge behaves as docs/npu_bridge.md says; sections are that file's."""
import contextlib
import glob
import importlib
import inspect
import json
import logging
import os
import subprocess
import sys

import pytest
import tensorflow.compat.v1 as tf

FAKES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'fakes')
RELEASES = ('dev', 'r1.3.0', 'r1.5.0', 'r1.7.0', 'r1.8.0', 'r1.9.0', 'r1.10.0', 'r1.11.0',
            'r1.12.0', 'r1.13.0', 'r1.15.0')


def from_release(first):
    return RELEASES[RELEASES.index(first):]


def before_release(first):
    return RELEASES[:RELEASES.index(first)]


class Double:
    """One release, imported: its modules, and what it recorded."""

    def __init__(self, record):
        self._record = record

    @staticmethod
    def module(name):
        return importlib.import_module(f'npu_bridge.{name}')

    def __getattr__(self, name):
        return getattr(self.module('npu_init'), name)

    def events(self, event, **fields):
        lines = self._record.read_text().splitlines() if self._record.exists() else []
        found = [line for line in map(json.loads, lines) if line['event'] == event]
        return [line for line in found if fields.items() <= line.items()]


@pytest.fixture
def load(monkeypatch, tmp_path):
    """load(release) -> Double. JOB_ID is set, RANK_SIZE is 1, and the folder is a fresh one."""
    monkeypatch.syspath_prepend(FAKES)
    fake_npu = importlib.import_module('fake_npu')
    for name in ('RANK_ID', 'RANK_TABLE_FILE', 'CM_CHIEF_IP', 'CM_WORKER_SIZE', 'TF_CONFIG',
                 'DEVICE_ID', 'DUMP_GE_GRAPH', 'FAKE_NPU_OVERFLOW_STEPS', 'LOCAL_CHECKPOINT_DIR',
                 'RESTORE_FROM'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('JOB_ID', '10087')
    monkeypatch.setenv('RANK_SIZE', '1')
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        def load_release(release='r1.8.0'):
            record = tmp_path / f'{release}.jsonl'
            stack.enter_context(fake_npu.installed(release, record))
            return Double(record)
        yield load_release


# A model whose weight falls by 1 with each applied step, from 100.

def dataset():
    return tf.data.Dataset.from_tensors(([1.0], [0.0])).repeat().batch(2, drop_remainder=True)


def plain(optimizer):
    return optimizer


def model_with(spec, wrap=plain, host=None, **fields):
    """A model_fn. `wrap` is put around its optimizer; `host` gets the step and the loss."""
    def model_fn(features, labels, mode):
        weight = tf.get_variable('weight', initializer=100.0)
        loss = tf.reduce_mean(weight * features)
        if mode == tf.estimator.ModeKeys.PREDICT:
            return spec(mode, predictions={'loss': weight * features})
        step = tf.train.get_global_step()
        # The gradient does not depend on the weight, so the update might overtake the loss.
        with tf.control_dependencies([loss]):
            train_op = wrap(tf.train.GradientDescentOptimizer(1.0)).minimize(loss, step)
        host_call = (host, [tf.reshape(step, [1]), tf.reshape(loss, [1])]) if host else None
        return spec(mode, loss=loss, train_op=train_op, host_call=host_call, **fields)
    return model_fn


def estimator_of(double, wrap=plain, host=None, **config):
    config = double.NPURunConfig(**{'model_dir': 'model', **config})
    return double.NPUEstimator(model_with(double.NPUEstimatorSpec, wrap, host), config=config)


def state(estimator, *names):
    return [estimator.get_variable_value(name).item() for name in names]


# Signatures and names ---------------------------------------------------------------------------

# Argument -> the releases whose NPURunConfig takes it, and its default there (section 2).
ARGUMENTS = {
    'iterations_per_loop': (RELEASES, 1),
    'save_summary_steps': (RELEASES, 0),
    'precision_mode': (RELEASES, None),
    'auto_tune_mode': (before_release('r1.11.0'), None),
    'mstune_mode': (('dev', 'r1.3.0'), None),
    'op_tune_mode': (('r1.3.0',), None),
    'distribute_config': (from_release('r1.3.0'), None),
    'aoe_mode': (from_release('r1.5.0'), None),
    'modify_mixlist': (from_release('r1.5.0'), None),
    'op_precision_mode': (from_release('r1.5.0'), None),
    'hccl_timeout': (from_release('r1.7.0'), None),
    'HCCL_algorithm': (from_release('r1.8.0'), None),
    'memory_config': (from_release('r1.9.0'), None),
    'topo_sorting_mode': (from_release('r1.10.0'), None),
    'external_weight': (from_release('r1.11.0'), None),
    'deterministic': (from_release('r1.12.0'), 0),
    'precision_mode_v2': (from_release('r1.13.0'), None),
    'ac_parallel_enable': (('r1.15.0',), None),
    'jit_compile': (('r1.10.0', 'r1.11.0', 'r1.13.0', 'r1.15.0'), None),
}
DEFAULTS = (
    ('hcom_parallel', 'r1.9.0', False), ('hcom_parallel', 'r1.10.0', True),
    ('jit_compile', 'r1.10.0', True), ('jit_compile', 'r1.11.0', False),
    ('jit_compile', 'r1.13.0', 'auto'), ('op_debug_level', 'r1.11.0', 0),
    ('op_debug_level', 'r1.12.0', None), ('variable_format_optimize', 'r1.12.0', None),
    ('dynamic_input', 'r1.12.0', None), ('enable_exception_dump', 'r1.13.0', 0),
    ('enable_exception_dump', 'r1.15.0', 2))
COUNTS = dict(zip(RELEASES, (51, 53, 54, 58, 60, 64, 66, 68, 72, 75, 76)))


@pytest.mark.parametrize('release', RELEASES)
def test_signatures_are_those_of_the_release(load, release):
    double = load(release)
    shown = inspect.signature(double.NPURunConfig).parameters
    assert len(shown) == COUNTS[release]
    assert set(shown) & set(ARGUMENTS) == {
        name for name, (releases, _) in ARGUMENTS.items() if release in releases}
    for name, (releases, default) in ARGUMENTS.items():
        if release in releases and name != 'jit_compile':
            assert shown[name].default == default, name
    for name, at, default in DEFAULTS:
        if at == release:
            assert shown[name].default == default, name
    assert inspect.getfullargspec(double.NPURunConfig.__init__).args[:2] == [
        'self', 'iterations_per_loop']
    dump = inspect.signature(double.DumpConfig).parameters
    assert ('dump_data' in dump) == (release in from_release('r1.10.0'))
    fixed = inspect.signature(double.FixedLossScaleManager).parameters
    assert ('enable_overflow_check' in fixed) == (release in from_release('r1.5.0'))
    with pytest.raises(TypeError, match='nonsense'):
        double.NPURunConfig(nonsense=1)
    with pytest.raises(TypeError, match='enable_options'):
        double.ProfilingConfig(enable_profiling=True, enable_options='training_trace')


# Name -> its first release (section 1). r1.6.0 is not modelled, so its names are r1.7.0's here.
FIRST_IN = {
    'NPUEstimator': 'dev', 'npu_ops': 'dev', 'npu_unary_ops': 'dev', 'get_rank_id': 'dev',
    'set_split_strategy_by_idx': 'dev', 'RewriterConfig': 'dev', 'tf': 'r1.3.0', 'os': 'r1.3.0',
    'session': 'r1.3.0', 'npu_config_proto': 'r1.3.0', 'npu_tf_optimizer': 'r1.3.0',
    'npu_distributed_optimizer_wrapper': 'r1.7.0', 'npu_allreduce': 'r1.7.0',
    'MemoryConfig': 'r1.9.0', 'ExperimentalConfig': 'r1.9.0', 'TellMeStepOrLossHook': 'r1.15.0',
}


@pytest.mark.parametrize('release', RELEASES)
def test_a_star_import_brings_the_names_of_the_release(load, release):
    load(release)
    names = {'tf': tf}
    exec('from npu_bridge.npu_init import *', names)
    for name, first in FIRST_IN.items():
        assert (name in names) == (release in from_release(first) or name == 'tf'), name
    # From r1.3.0 on the script's tf is not what it imported.
    assert (names['tf'] is tf) == (release == 'dev')


def test_an_unknown_release_is_refused(load):
    with pytest.raises(ImportError, match='r2.0.0 is none of dev'):
        load('r2.0.0')


def test_nothing_is_left_behind(load, monkeypatch):
    sys.path.remove(FAKES)
    fake_npu = sys.modules['fake_npu']
    with fake_npu.installed('r1.9.0'):
        importlib.import_module('npu_bridge.npu_init')
        assert hasattr(tf.Session.__init__, 'stock')
    assert not hasattr(tf.Session.__init__, 'stock')
    assert not hasattr(tf.Session._do_run, 'stock')
    with pytest.raises(ImportError):
        importlib.import_module('npu_bridge')
    sys.path.insert(0, FAKES)


# Checks in Python -------------------------------------------------------------------------------

CLUSTER = json.dumps({'cluster': {'worker': ['localhost:1']},
                      'task': {'type': 'worker', 'index': 0}})


@pytest.mark.parametrize('release, arguments, error', [
    ('dev', {'iterations_per_loop': '4'}, TypeError),
    ('r1.15.0', {'iterations_per_loop': 0}, ValueError),
    ('dev', {'mix_compile_mode': 1}, ValueError),
    ('r1.8.0', {'mix_compile_mode': 1}, ValueError),
    ('r1.15.0', {'mix_compile_mode': 1}, TypeError),
    ('r1.8.0', {'mix_compile_mode': True, 'iterations_per_loop': 2}, ValueError),
    ('r1.8.0', {'dump_config': {'enable_dump': True}}, ValueError),
    ('r1.8.0', {'dynamic_input_config': 1}, ValueError),
    ('r1.8.0', {'horovod_mode': 1}, ValueError),
    ('r1.8.0', {'graph_run_mode': 2}, ValueError),
    ('r1.8.0', {'graph_run_mode': -1}, ValueError),
    ('r1.8.0', {'graph_run_mode': '1'}, TypeError),
    ('r1.8.0', {'save_checkpoints_steps': 1, 'save_checkpoints_secs': 1}, ValueError),
    ('r1.11.0', {'auto_tune_mode': 'RL,GA'}, TypeError),
    ('dev', {'aoe_mode': '2'}, TypeError),
])
def test_run_config_refuses(load, release, arguments, error):
    with pytest.raises(error):
        load(release).NPURunConfig(**arguments)


def test_run_config_and_the_cluster_of_tf_config(load, monkeypatch):
    double = load()
    monkeypatch.setenv('TF_CONFIG', CLUSTER)
    with pytest.raises(ValueError, match='go together'):
        double.NPURunConfig()
    servers = tf.distribute.experimental.ParameterServerStrategy
    with pytest.raises(ValueError, match='mix_compile_mode'):
        double.NPURunConfig(distribute=servers())


def test_run_config_defaults(load):
    double = load()
    assert double.NPURunConfig().save_checkpoints_steps == 100
    assert double.NPURunConfig(save_checkpoints_steps=0).save_checkpoints_steps == 0
    assert double.NPURunConfig(save_checkpoints_secs=5).save_checkpoints_steps is None
    assert double.NPURunConfig(log_step_count_steps=None).log_step_count_steps is None
    assert double.NPURunConfig(precision_mode='anything').iterations_per_loop == 1


@pytest.mark.parametrize('release, environment, error, words', [
    ('dev', {'JOB_ID': ''}, AttributeError, '_NPUEstimator__job_info'),
    ('r1.3.0', {'JOB_ID': ''}, ValueError, 'JOB_ID'),
    ('r1.15.0', {'JOB_ID': ''}, ValueError, 'JOB_ID'),
    ('dev', {'RANK_SIZE': ''}, AttributeError, "'int' object has no attribute 'isdigit'"),
    ('r1.11.0', {'CM_WORKER_SIZE': '1'}, ValueError, 'CM_WORKER_SIZE'),
])
def test_estimator_needs_the_job_in_the_environment(load, monkeypatch, release, environment, error,
                                                    words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=words):
        estimator_of(load(release))


def test_estimator_without_rank_size_takes_one_from_r1_3_on(load, monkeypatch):
    monkeypatch.delenv('RANK_SIZE')
    assert estimator_of(load('r1.3.0')).model_dir == 'model'


def test_estimator_arguments(load):
    double = load('r1.7.0')
    model_fn = model_with(double.NPUEstimatorSpec)
    with pytest.raises(ValueError, match='NPURunConfig'):
        double.NPUEstimator(model_fn, config=tf.estimator.RunConfig())
    with pytest.raises(ValueError, match='NPURunConfig'):
        double.NPUEstimator(model_fn)
    with pytest.raises(ValueError, match='twice'):
        double.NPUEstimator(model_fn, model_dir='a', config=double.NPURunConfig(model_dir='b'))
    assert double.NPUEstimator(model_fn, model_dir='a', config=double.NPURunConfig(
        model_dir='a')).model_dir == 'a'
    folder = double.NPUEstimator(model_fn, config=double.NPURunConfig()).model_dir
    assert os.path.dirname(folder) == os.getcwd()
    with pytest.raises(TypeError, match='use_tpu'):
        double.NPUEstimator(model_fn, config=double.NPURunConfig(), use_tpu=False)
    with pytest.raises(ValueError, match='profiling_options'):
        estimator_of(double, profiling_config=double.ProfilingConfig(enable_profiling=True))


def test_mstune_mode_needs_work_path_on_dev(load):
    with pytest.raises(ValueError, match='work_path'):
        estimator_of(load('dev'), mstune_mode='2')


@pytest.mark.parametrize('host_call, error', [
    ('fn', ValueError),
    ((1, []), TypeError),
    ((lambda a: a, 1), ValueError),
    ((lambda a: a, [1, 2]), RuntimeError),
    ((lambda a: a, {'a': 1, 'b': 2}), RuntimeError),
])
def test_host_call_is_checked(load, host_call, error):
    double = load()
    with tf.Graph().as_default(), pytest.raises(error):
        loss = tf.constant(1.0)
        double.NPUEstimatorSpec('eval', loss=loss, host_call=host_call)


def test_tpu_arguments_of_the_spec_are_unknown(load):
    double = load()
    for name in ('eval_metrics', 'scaffold_fn'):
        with pytest.raises(TypeError, match=name):
            double.NPUEstimatorSpec('eval', **{name: None})


def test_model_fn_must_return_an_estimator_spec(load):
    double = load()
    estimator = double.NPUEstimator(lambda features, labels: None,
                                    config=double.NPURunConfig(model_dir='model'))
    with pytest.raises(RuntimeError, match='NPUEstimatorSpec'):
        estimator.train(dataset, steps=1)


# Settings ---------------------------------------------------------------------------------------

def config_of(*entries):
    """A ConfigProto with an NpuOptimizer entry for each dict of key -> value."""
    config = tf.ConfigProto()
    for settings in entries:
        entry = config.graph_options.rewrite_options.custom_optimizers.add()
        entry.name = 'NpuOptimizer'
        for key, value in settings.items():
            if isinstance(value, bool):
                entry.parameter_map[key].b = value
            elif isinstance(value, int):
                entry.parameter_map[key].i = value
            else:
                entry.parameter_map[key].s = value.encode()
    return config


def settings_of(double, config):
    return double.module('double.settings').effective(config).settings


def appended(double, *entries, **arguments):
    """The settings in force once an NPUEstimator has appended its entry to hand-made ones."""
    config = config_of(*entries)
    estimator_of(double, session_config=config, **arguments)
    return settings_of(double, config)


@pytest.mark.parametrize('release, survives', [
    ('dev', False), ('r1.12.0', False), ('r1.13.0', True)])
def test_the_entry_of_the_estimator_wins(load, release, survives):
    """Section 4, and defects 1 and 2 of section 12."""
    double = load(release)
    by_hand = {'precision_mode': 'allow_mix_precision', 'fusion_switch_file': 'f',
               'enable_dump_debug': False, 'hcom_parallel': not survives}
    settings = appended(double, by_hand)
    assert settings['precision_mode'] == (
        'allow_mix_precision' if survives else 'allow_fp32_to_fp16')
    assert settings['fusion_switch_file'] == 'f'
    assert settings['hcom_parallel'] == (release in from_release('r1.10.0'))
    assert settings['enable_dump'] is False and settings['enable_dump_debug'] is False
    settings = appended(double, by_hand, precision_mode='force_fp32', iterations_per_loop=10)
    assert settings['precision_mode'] == 'force_fp32'
    assert settings['iterations_per_loop'] == 10


def test_inference_is_float16_by_default(load):
    assert appended(load(), graph_run_mode=0)['precision_mode'] == 'force_fp16'


def test_dump_and_profiling_settings(load, tmp_path):
    double = load('r1.10.0')
    options = json.dumps({'output': str(tmp_path), 'task_trace': 'on'})
    settings = appended(
        double, dump_config=double.DumpConfig(True, str(tmp_path), '0|5-7', dump_mode=None),
        profiling_config=double.ProfilingConfig(True, options), op_debug_level=1)
    assert settings['enable_dump'] is True
    assert settings['dump_path'] == str(tmp_path) and settings['dump_step'] == '0|5-7'
    assert settings['dump_data'] == 'tensor'
    # A dump_mode of None silently drops dump_debug_mode.
    assert 'dump_mode' not in settings and 'dump_debug_mode' not in settings
    assert settings['profiling_mode'] is True and settings['profiling_options'] == options
    assert settings['op_debug_level'] == 1


def test_two_estimators_on_one_config_leave_two_entries(load):
    double = load('r1.3.0')
    config = tf.ConfigProto()
    estimator_of(double, session_config=config)
    once = list(config.graph_options.rewrite_options.optimizers)
    assert once[-2:] == ['memory', 'GradFusionOptimizer']
    estimator_of(double, session_config=config)
    assert list(config.graph_options.rewrite_options.optimizers) == 2 * once
    assert len(config.graph_options.rewrite_options.custom_optimizers) == 2


def test_a_wrong_field_is_read_as_its_default_and_a_wrong_name_is_ignored(load):
    double = load()
    found = double.module('double.settings').effective(config_of({
        'precision_mode': True, 'iterations_per_loop': '8', 'sump_mode': 'all',
        'use_off_line': False, 'jit_compile': True, 'min_group_size': True}))
    assert found.settings == {
        'precision_mode': '', 'iterations_per_loop': 0, 'use_off_line': False,
        'enable_data_pre_proc': False, 'hcom_parallel': False}
    assert found.ignored == ['jit_compile', 'min_group_size', 'sump_mode']


def test_the_default_profiling_options_come_with_r1_8(load):
    assert 'PipeUtilization' in settings_of(load('r1.8.0'), config_of({'profiling_mode': True}))[
        'profiling_options']


# What is set, a dict an entry; the releases; whether the process dies; words of the reason.
HERE = '{here}'
MIX = {'precision_mode': 'allow_mix_precision'}
DUMP = {'enable_dump': True, 'dump_path': HERE}
DEBUG = {'enable_dump_debug': True, 'dump_path': HERE}


def profiling(**options):
    return {'profiling_mode': True, 'profiling_options': json.dumps({'output': '/tmp', **options})}


REFUSED = [
    ([{'enable_dump': True}], ('dev', 'r1.5.0'), True, 'dump_path is absent'),
    ([{'enable_dump': True}], ('r1.7.0', 'r1.15.0'), False, 'dump_path is absent'),
    ([{'enable_dump_debug': True, 'dump_path': HERE + '/no'}], ('r1.8.0',), False, 'not a folder'),
    # The first entry is judged before the second one turns the dump off.
    ([{'enable_dump': True}, {'enable_dump': False}], ('r1.8.0',), False, 'dump_path is absent'),
    ([{**DUMP, 'dump_step': '5-5'}], ('dev', 'r1.15.0'), True, 'does not rise'),
    ([{**DUMP, 'dump_step': '1,2'}], ('r1.8.0',), True, 'neither a step nor a range'),
    ([{**DUMP, 'dump_step': '|'.join(map(str, range(101)))}], ('r1.8.0',), True, '100 groups'),
    ([{**DUMP, 'dump_mode': 'both'}], ('r1.15.0',), True, 'dump_mode=both'),
    ([{**DEBUG, 'dump_debug_mode': 'none'}], ('r1.15.0',), True, 'dump_debug_mode=none'),
    ([{**DUMP, **DEBUG}], ('r1.8.0',), False, 'both on'),
    ([{'profiling_mode': True}], ('dev', 'r1.7.0'), True, 'profiling_options is absent'),
    ([{'profiling_mode': True, 'profiling_options': 'training_trace:task_trace'}], ('r1.8.0',),
     False, 'no JSON object'),
    ([profiling(output='/nowhere')], ('r1.8.0',), False, 'not a folder'),
    ([profiling(training_trace='off')], ('r1.8.0',), False, 'must be on'),
    ([profiling(training_trace='on')], ('r1.8.0',), False, 'fp_point and bp_point'),
    ([{'precision_mode': 'fp16'}], ('r1.15.0',), False, 'precision_mode=fp16'),
    ([{**MIX, 'precision_mode_v2': 'mixed_float16'}], ('r1.13.0',), False, 'both set'),
    ([MIX, {'modify_mixlist': HERE + '/list.json'}], ('r1.5.0', 'r1.15.0'), False, 'same entry'),
    ([{**MIX, 'modify_mixlist': HERE + '/none.json'}], ('r1.8.0',), False, 'No such file'),
    ([{'op_select_implmode': 'fast'}], ('r1.8.0',), False, 'op_select_implmode=fast'),
    ([{'optypelist_for_implmode': 'Pooling'}], ('r1.8.0',), False, 'needs op_select_implmode'),
    ([{'buffer_optimize': 'l3'}], ('r1.8.0',), False, 'buffer_optimize=l3'),
    ([{'aoe_mode': '5', 'work_path': HERE}], ('r1.8.0',), False, 'aoe_mode=5'),
    ([{'aoe_mode': '2'}], ('r1.8.0',), False, 'work_path'),
    ([{'session_device_id': -1}], ('r1.8.0',), False, 'negative'),
    ([{'local_rank_id': 8}], ('r1.8.0',), False, '0..7'),
    ([{'dynamic_dims': '1;2'}], ('r1.8.0',), False, 'alone'),
    ([{'dynamic_input': True, 'iterations_per_loop': 2}], ('r1.8.0',), True, 'per_loop=1'),
]
ACCEPTED = [
    ([{**DUMP, 'dump_step': '0|5|10-20'}], RELEASES),
    ([{'dump_step': 'nonsense', 'dump_mode': 'nonsense', 'dump_debug_mode': 'nonsense'}], RELEASES),
    ([{**DUMP, 'dump_debug_mode': 'nonsense'}], RELEASES),
    ([{'precision_mode': 'fp16'}], before_release('r1.15.0')),
    ([{'modify_mixlist': 'x'}], ('dev', 'r1.3.0')),
    ([{**MIX, 'modify_mixlist': HERE + '/list.json'}], RELEASES),
    ([{**MIX, 'precision_mode_v2': 'mixed_float16'}], before_release('r1.13.0')),
    ([{'profiling_mode': True}], from_release('r1.8.0')),
    ([profiling(training_trace='on', fp_point='', bp_point='', hccl='off')], RELEASES),
]


def test_refusals(load, tmp_path):
    (tmp_path / 'list.json').write_text('{"white-list": {"to-add": ["ReduceMeanD"]}}')
    cases = [(entries, release, fatal, words) for entries, releases, fatal, words in REFUSED
             for release in releases]
    cases += [(entries, release, None, None) for entries, releases in ACCEPTED
              for release in releases]
    for release in RELEASES:
        effective = load(release).module('double.settings').effective
        for entries, at, fatal, words in cases:
            if at == release:
                text = json.dumps(entries).replace(HERE, str(tmp_path))
                refusal = effective(config_of(*json.loads(text))).refusal
                assert (refusal and refusal.fatal) == fatal, (release, entries, refusal)
                assert not refusal or words in refusal.reason, (release, entries, refusal)


def test_a_refusal_is_an_internal_error_from_session_run(load):
    double = load()
    with tf.Graph().as_default(), tf.Session(config=config_of({'enable_dump': True})) as session:
        with pytest.raises(tf.errors.InternalError, match='dump_path is absent'):
            session.run(tf.constant(1))
    line, = double.events('session')
    assert line['refused'] == 'dump is on, dump_path is absent' and not line['fatal']


def test_sessions_off_the_device_are_recorded_and_left_alone(load):
    double = load()
    off_line = {'use_off_line': False, 'enable_dump': True}
    for config in (None, config_of(off_line)):
        with tf.Graph().as_default(), tf.Session(config=config) as session:
            assert session.run(tf.constant(1)) == 1
    assert [line['on_device'] for line in double.events('session', kind='other')] == [False, False]
    assert config_of(off_line).graph_options.rewrite_options.custom_optimizers


@pytest.mark.parametrize('release', ['r1.8.0', 'r1.9.0'])
def test_every_session_is_on_the_device_from_r1_9_on(load, release):
    double = load(release)
    assert double.NPURunConfig
    for make in (tf.Session, tf.InteractiveSession):
        with tf.Graph().as_default():
            session = make()
            session.run(tf.constant(1))
            session.close()
    for line in double.events('session'):
        assert line['on_device'] == line['allow_soft_placement'] == (release == 'r1.9.0')
        assert line['remapping'] == (2 if release == 'r1.9.0' else 0)


def test_npu_config_proto_adds_one_entry(load):
    config = load().npu_config_proto(tf.ConfigProto())
    assert config.graph_options.rewrite_options.remapping == 2
    assert config.graph_options.rewrite_options.memory_optimization == 2
    assert len(config.graph_options.rewrite_options.custom_optimizers) == 1


def test_engine_options_hold_while_a_session_lives(load):
    double = load()
    with tf.Graph().as_default():
        one = tf.constant(1)
        with tf.Session(config=config_of({'precision_mode': 'force_fp16'})) as session:
            session.run(one)
            with tf.Session(config=config_of(MIX)) as late:
                late.run(one)
        with tf.Session(config=config_of(MIX)) as alone:
            alone.run(one)
    assert [line['engine'] for line in double.events('session')] == [
        {'precision_mode': 'force_fp16'}, {'precision_mode': 'force_fp16'}, MIX]


# Training ---------------------------------------------------------------------------------------

def test_a_loop_overshoots_and_logs_by_calls(load, caplog):
    """Section 2: max_steps=6 with a loop of 4 ends at 8, its checkpoints come late."""
    double = load()
    estimator = estimator_of(double, iterations_per_loop=4, log_step_count_steps=2,
                             save_checkpoints_steps=6)
    with caplog.at_level(logging.INFO, logger='tensorflow'):
        estimator.train(dataset, max_steps=6)
        estimator.train(dataset, max_steps=16)
    assert state(estimator, 'global_step', 'weight') == [16, 84]
    saved = {int(path.rsplit('-', 1)[1][:-6]) for path in glob.glob('model/*.index')}
    assert saved == {0, 8, 16}
    lines = [record.getMessage() for record in caplog.records]
    # Two calls a train(), of which each first one is logged.
    assert sum(line.startswith('loss = ') for line in lines) == 2
    assert [line for line in lines if line.startswith('global_step...')] == [
        f'global_step...{step}' for step in (4, 8, 12, 16)]
    first, second = double.events('session')
    assert first['kind'] == second['kind'] == 'train'
    assert first['loop_op'] and first['settings']['iterations_per_loop'] == 4
    hooks = double.events('model_fn')[0]['hooks']
    assert hooks == ['NPUCheckpointSaverHook', 'NPULogOutfeedSessionHook', 'SetIterationsVarHook']


@pytest.mark.parametrize('scope, steps', [('', 6), ('scope', 2)])
def test_a_loop_in_a_raw_session_needs_the_exact_name(load, scope, steps):
    util = load().module('estimator.npu.util')
    config = config_of({'iterations_per_loop': 3})
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        counter = tf.Variable(0)
        train_op = tf.group(counter.assign_add(1))
        session.run(tf.global_variables_initializer())
        with pytest.raises(ValueError, match='Operation'):
            util.set_iteration_per_loop(session, counter, 3)
        assert util.set_iteration_per_loop(session, train_op, 1) is train_op
        with tf.name_scope(scope):
            loop = util.set_iteration_per_loop(session, train_op, 3)
        session.run(loop)
        session.run(loop)
        assert session.run(counter) == steps


def test_hooks_in_the_order_that_a_session_sees_them(load, monkeypatch, tmp_path):
    (tmp_path / 'ranks.json').write_text('{}')
    for name, value in (('RANK_SIZE', '2'), ('RANK_ID', '0'), ('RANK_TABLE_FILE', 'ranks.json')):
        monkeypatch.setenv(name, value)
    double = load()
    seen = []
    base = tf.train.MonitoredSession.__mro__[1]
    stock = base.__init__

    def spy(self, session_creator, hooks, *args, **kwargs):
        seen.extend(type(hook).__name__ for hook in hooks)
        stock(self, session_creator, hooks, *args, **kwargs)

    monkeypatch.setattr(base, '__init__', spy)
    estimator = double.NPUEstimator(
        model_with(double.NPUEstimatorSpec, double.NPUDistributedOptimizer,
                   host=lambda step, loss: tf.no_op(), training_hooks=[tf.train.SessionRunHook()]),
        config=double.NPURunConfig(model_dir='model', iterations_per_loop=2))
    estimator.train(dataset, max_steps=2)
    assert seen == [
        'StepCounterHook', '_DatasetInitializerHook', 'StopAtStepHook', 'NanTensorHook',
        'LoggingTensorHook', 'NPUBroadcastGlobalVariablesHook', 'NPUCheckpointSaverHook',
        'NPUInfeedOutfeedSessionHook', 'NPULogOutfeedSessionHook', 'SetIterationsVarHook',
        'SessionRunHook']
    assert state(estimator, 'weight') == [98]
    assert double.events('broadcast')[0]['variables'] == ['weight:0']
    assert double.events('session')[0]['collectives'] == {'allreduce': 1, 'broadcast': 1}


def test_collectives_need_a_rank_table(load, monkeypatch):
    monkeypatch.setenv('RANK_SIZE', '8')
    double = load()
    with pytest.raises(tf.errors.InternalError, match='RANK_TABLE_FILE= is no file'):
        estimator_of(double, double.NPUDistributedOptimizer).train(dataset, max_steps=1)


def test_ranks_answer_once_there_is_a_session(load, monkeypatch):
    monkeypatch.setenv('RANK_SIZE', '8')
    double = load()
    with pytest.raises(RuntimeError, match='not initialised'):
        double.get_rank_id()
    session, shutdown = double.init_resource()
    assert (double.get_rank_id(), double.get_rank_size(), double.get_npu_rank_size()) == (0, 8, 8)
    double.shutdown_resource(session, shutdown)
    double.close_session(session)


@pytest.mark.parametrize('release', ['dev', 'r1.15.0'])
def test_overflowing_steps_are_skipped(load, monkeypatch, release):
    """Section 7: the third step is tried again; the scale of the manager moves as it says."""
    double = load(release)
    monkeypatch.setenv('FAKE_NPU_OVERFLOW_STEPS', '3,4')

    def wrap(optimizer):
        manager = double.ExponentialUpdateLossScaleManager(1024, 3, 2, incr_ratio=4, decr_ratio=0.5)
        return double.NPULossScaleOptimizer(double.NPUDistributedOptimizer(optimizer), manager)

    estimator = estimator_of(double, wrap, iterations_per_loop=2)
    estimator.train(dataset, max_steps=4)
    # Steps 1, 2 good, 3, 4 bad: the scale halves. 5, 6 good: too few to grow.
    assert state(estimator, 'global_step', 'weight', 'loss_scale', 'good_steps', 'bad_steps') == [
        4, 96, 512, 2, 0]
    call, = double.events('call', name='ExponentialUpdateLossScaleManager')
    assert call['arguments'] == {'init_loss_scale': 1024, 'incr_every_n_steps': 3,
                                 'decr_every_n_nan_or_inf': 2, 'incr_ratio': 4, 'decr_ratio': 0.5}
    estimator.train(dataset, steps=2)
    assert state(estimator, 'loss_scale', 'good_steps') == [2048, 1]


@pytest.mark.parametrize('arguments, skipped', [({}, 1), ({'enable_overflow_check': False}, 0)])
def test_a_fixed_scale_skips_too_unless_told_not_to(load, monkeypatch, arguments, skipped):
    double = load()
    monkeypatch.setenv('FAKE_NPU_OVERFLOW_STEPS', '1')
    with tf.Graph().as_default(), tf.Session() as session:
        weight = tf.Variable(100.0)
        step = tf.train.get_or_create_global_step()
        optimizer = double.NPULossScaleOptimizer(
            tf.train.GradientDescentOptimizer(1.0), double.FixedLossScaleManager(512, **arguments))
        gradients = optimizer.compute_gradients(3 * weight)
        train_op = optimizer.apply_gradients(gradients, step)
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            session.run(train_op)
        assert session.run([gradients[0][0], step, weight]) == [
            3, 3 - skipped, 100 - 3 * (3 - skipped)]
    with pytest.raises(ValueError, match='at least 1'):
        double.FixedLossScaleManager(0.5)


def test_optimizers_of_one_and_of_many_ranks(load, monkeypatch):
    double = load('dev')
    with tf.Graph().as_default():
        weight, unused = tf.Variable([1.0, 2.0]), tf.Variable(1.0)
        exact = tf.Variable(1.0, dtype=tf.float64)
        stock = tf.train.GradientDescentOptimizer(1.0)
        wrapped = double.NPUDistributedOptimizer(stock)
        assert wrapped.compute_gradients(weight, [weight])[0][0].name.startswith('gradients')
        monkeypatch.setenv('RANK_SIZE', '8')
        gradient, missing = [gradient for gradient, _ in wrapped.compute_gradients(
            tf.reduce_sum(weight), [weight, unused])]
        assert '_Allreduce/' in gradient.name and missing is None
        with pytest.raises(TypeError, match='float64'):
            wrapped.compute_gradients(exact, [exact])
        sharded = double.NPUDistributedOptimizer(stock, is_weight_update_sharding=True)
        with pytest.raises(ValueError, match='DEVICE_ID'):
            sharded.compute_gradients(weight, [weight])
        manager = double.FixedLossScaleManager(8)
        with pytest.raises(ValueError, match='loss_scale_manager'):
            double.NPUOptimizer(stock, is_loss_scale=True)
        both = double.NPUOptimizer(stock, manager, is_distributed=True, is_loss_scale=True)
        with pytest.raises((TypeError, ValueError)):
            both.minimize(tf.reduce_sum(weight), var_list=[weight, unused])
        both.minimize(tf.reduce_sum(weight), var_list=[weight])


def test_host_call_runs_for_each_step(load):
    double = load()
    from tensorflow.contrib import summary  # Takes long, so not above.

    folders = iter(['1_train', '2_eval'])

    def host(step, loss):
        with summary.create_file_writer(next(folders)).as_default():
            with summary.always_record_summaries():
                summary.scalar('loss', loss[0], step=step[0])
                return summary.all_summary_ops()

    estimator = estimator_of(double, host=host, iterations_per_loop=2)
    estimator.train(dataset, max_steps=4)
    estimator.evaluate(dataset, steps=1)
    assert [event.summary.value[0].simple_value
            for path in sorted(glob.glob('?_*/*'))
            for event in tf.train.summary_iterator(path) if event.summary.value
            ] == [100, 99, 98, 97, 96]
    train, evaluation = double.events('model_fn')
    assert train['host_call'] and train['hooks'] == [
        'NPUCheckpointSaverHook', 'NPUInfeedOutfeedSessionHook', 'NPULogOutfeedSessionHook',
        'SetIterationsVarHook']
    assert evaluation['hooks'] == ['NPUInfeedOutfeedSessionHook', 'NPULogOutfeedSessionHook']


@pytest.mark.parametrize('release, kept', [('r1.8.0', 5), ('r1.15.0', 2)])
def test_keep_checkpoint_max_is_honoured_late(load, release, kept):
    double = load(release)
    estimator = estimator_of(double, save_checkpoints_steps=1, keep_checkpoint_max=2)
    estimator.train(dataset, max_steps=6)
    assert len(glob.glob('model/*.index')) == kept


def serving_input():
    features = tf.placeholder(tf.float32, [None, 1])
    return tf.estimator.export.TensorServingInputReceiver(features, features)


@pytest.mark.parametrize('release', ['dev', 'r1.9.0', 'r1.15.0'])
def test_kinds_of_session(load, release):
    double = load(release)
    estimator = estimator_of(double)
    estimator.train(dataset, max_steps=1)
    assert estimator.evaluate(dataset, steps=2)['loss'] == 99
    assert next(estimator.predict(dataset))['loss'] == 99
    estimator.export_saved_model('exported', serving_input)
    assert [line['kind'] for line in double.events('session')] == [
        'train', 'eval', 'predict', 'export']
    assert all(line['on_device'] and line['entries'] == 1 for line in double.events('session'))


def test_the_files_that_a_device_leaves(load, monkeypatch, tmp_path):
    double = load()
    for name in ('dump', 'profile'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv('DUMP_GE_GRAPH', '2')
    monkeypatch.setenv('DUMP_GRAPH_PATH', 'graphs')
    options = json.dumps({'output': 'profile', 'task_trace': 'on'})
    estimator = estimator_of(
        double, dump_config=double.DumpConfig(True, 'dump', '1|3-9'), iterations_per_loop=2,
        profiling_config=double.ProfilingConfig(True, options))
    estimator.train(dataset, max_steps=4)
    assert os.listdir('graphs') == ['ge_proto_00000_train_Build.txt']
    assert os.listdir('profile') == ['PROF_000001_train']
    assert sorted(os.listdir('dump')) == ['1', '3']
    line, = double.events('session')
    assert line['environment']['DUMP_GE_GRAPH'] == '2' and line['environment']['JOB_ID'] == '10087'


@pytest.mark.parametrize('element, words', [
    (lambda: dataset().unbatch().batch(2), r'\(\?, 1\)'),
    (lambda: dataset().map(lambda x, y: (x, tf.as_string(y))), 'string'),
])
def test_training_wants_static_shapes_and_no_strings(load, element, words):
    double = load()
    estimator = estimator_of(double)
    with pytest.raises(tf.errors.InternalError, match=words):
        estimator.train(element, max_steps=1)
    line, = double.events('session')
    assert not all(tensor['static'] for tensor in line['inputs'])


def test_a_fatal_refusal_ends_the_process(load, monkeypatch):
    double = load()
    monkeypatch.setattr(os, '_exit', lambda code: sys.exit(f'exit {code}'))
    with pytest.raises(SystemExit, match='exit 134'):
        estimator_of(double, iterations_per_loop=2).train(
            lambda: tf.data.make_one_shot_iterator(dataset()).get_next(), max_steps=2)
    line, = double.events('session')
    assert line['fatal'] and 'one-shot' in line['refused']


SCRIPT = '''
import tensorflow.compat.v1 as tf
from npu_bridge.npu_init import npu_config_proto
config = npu_config_proto()
entry = config.graph_options.rewrite_options.custom_optimizers[0]
entry.parameter_map['enable_dump'].b = True
entry.parameter_map['dump_path'].s = b'.'
entry.parameter_map['dump_step'].s = b'all'
try:
    tf.Session(config=config).run(tf.constant(1))
except Exception:
    print('seen')
'''


@pytest.mark.slow
def test_a_process_of_its_own(tmp_path):
    """By PYTHONPATH and environment alone: release r1.8.0, an abort that no Python code sees."""
    record = tmp_path / 'record.jsonl'
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], cwd=str(tmp_path), capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': FAKES, 'FAKE_NPU_RECORD': str(record)})
    assert done.returncode == 134 and 'seen' not in done.stdout, done.stderr
    assert '[FATAL]' in done.stderr
    line, = map(json.loads, record.read_text().splitlines())
    assert line['release'] == 'r1.8.0' and line['fatal'] and line['settings']['dump_step'] == 'all'


def test_moxing_copies_and_records(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FAKES + '_moxing')
    monkeypatch.setenv('FAKE_OBS_ROOT', str(tmp_path / 'obs'))
    monkeypatch.setenv('FAKE_MOXING_RECORD', str(tmp_path / 'copies'))
    (tmp_path / 'run' / 'sub').mkdir(parents=True)
    (tmp_path / 'run' / 'sub' / 'file').write_text('x')
    moxing = importlib.import_module('moxing')
    moxing.file.copy_parallel(str(tmp_path / 'run'), 'obs://bucket/run')
    assert (tmp_path / 'obs' / 'bucket' / 'run' / 'sub' / 'file').read_text() == 'x'
    assert moxing.file.exists('obs://bucket/run/sub/file')
    assert json.loads((tmp_path / 'copies').read_text()) == {
        'copy_parallel': [str(tmp_path / 'run'), 'obs://bucket/run']}
    with pytest.raises(FileNotFoundError, match='obs://bucket/none'):
        moxing.file.copy_parallel('obs://bucket/none', str(tmp_path))
    for name in ('moxing', 'moxing.file'):
        del sys.modules[name]
