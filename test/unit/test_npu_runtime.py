"""Every setting reaches the session of every release, or says why not; see docs/npu_bridge.md."""
import contextlib
import dataclasses
import glob
import importlib
import json
import logging
import os
import re
import shutil
import sys
from unittest import mock

from absl import logging as absl_logging
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_lib

import boot_modelarts
from checkpoints import restore
from checkpoints import store
from common import object_storage
from common.errors import UserError
from config import run_config
from run_log import event_log
import runtime as runtimes
from runtime import npu
from runtime import npu_env
from runtime import rank_table
from training import accumulation
from training import ending
from training import hooks
from training import model_fn as model_fns
from training import nan_guard
from training import saving
from training import summaries
from training import tensor_names
from training import time_left
from training.evaluation_session import EvaluationSession

TEST_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RELEASES = ('dev', 'r1.3.0', 'r1.5.0', 'r1.8.0', 'r1.9.0', 'r1.10.0', 'r1.11.0', 'r1.12.0',
            'r1.13.0', 'r1.15.0')
JOB = ('JOB_ID', 'RANK_SIZE', 'RANK_ID', 'RANK_TABLE_FILE', 'ASCEND_DEVICE_ID', 'DEVICE_ID',
       'CM_WORKER_SIZE', 'TF_CONFIG', 'DUMP_GE_GRAPH', 'DUMP_GRAPH_PATH', 'TUNE_BANK_PATH')


def from_release(first):
    return RELEASES[RELEASES.index(first):]


def before_release(first):
    return RELEASES[:RELEASES.index(first)]


@pytest.fixture
def make_config(tmp_path):
    """make_config(setting=value, ...) -> Config."""
    def make(**values):
        return run_config.from_values({
            'data_dir': str(tmp_path / 'data'), 'model_dir': str(tmp_path / 'model'),
            'train_steps': 4, 'mode': 'train', **values})
    return make


class Machine:
    """An NPU host with one release of npu_bridge; `config` of the runtime is in `runtime`."""

    def __init__(self, record, runtime):
        self._record = record
        self.runtime = runtime

    def events(self, event, **fields):
        found = [line for line in map(json.loads, self._record.read_text().splitlines())
                 if line['event'] == event]
        return [line for line in found if fields.items() <= line.items()]

    def train(self, max_steps=1, make_hooks=lambda steps_per_run: [], after_round=None,
              measured=contextlib.nullcontext):
        os.makedirs(self.runtime.config.run.model_dir, exist_ok=True)
        self.runtime.train(
            model_fn, {'runtime': self.runtime}, batches, max_steps, lambda steps_per_run: [
                *make_hooks(steps_per_run), saving.make_hook(
                    self.runtime.config, self.runtime, after_round, measured)])
        return self.events('session', kind='train')

    def state(self, *names):
        reader = tf.train.load_checkpoint(self.runtime.config.run.model_dir)
        return [reader.get_tensor(name).item() for name in names]


@pytest.fixture
def machine(monkeypatch, tmp_path, make_config):
    """machine(release, setting=value, ...) -> Machine, of one card unless the environment says."""
    monkeypatch.syspath_prepend(os.path.join(TEST_DIR, 'fakes'))
    fake_npu = importlib.import_module('fake_npu')
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        for name in JOB:
            os.environ.pop(name, None)

        def start(release='r1.8.0', **values):
            record = tmp_path / f'{release}.jsonl'
            record.write_text('')
            stack.enter_context(fake_npu.installed(release, record))
            return Machine(record, runtimes.select(make_config(accelerator='npu', **values)))
        yield start


# A model whose weight falls by 1 with each applied step, from 100.

def batches():
    return tf.data.Dataset.from_tensors(([1.0], [0.0])).repeat().batch(2, drop_remainder=True)


def model_fn(features, labels, mode, params):
    weight = tf.get_variable('weight', initializer=100.0)
    loss = tf.reduce_mean(weight * features)
    if mode == tf.estimator.ModeKeys.EVAL:
        return params['runtime'].estimator_spec(
            mode=mode, loss=loss, eval_metric_ops={'weight': tf.metrics.mean(weight)})
    for name in tensor_names.PROGRESS:
        tf.identity(loss, name)
    optimizer, loss_scale = params['runtime'].wrap_optimizer(
        tf.train.GradientDescentOptimizer(1.0))
    if loss_scale is not None:
        summaries.add_scalars({'loss_scale': loss_scale})
    with tf.control_dependencies([loss]):
        gradients = optimizer.compute_gradients(loss)
        nan_guard.add_gradient_norms(gradients)
        train_op = optimizer.apply_gradients(gradients, tf.train.get_or_create_global_step())
    with tf.control_dependencies([train_op]):
        tf.cast(tf.train.get_global_step(), tf.int32, name=tensor_names.STEP)
    return params['runtime'].estimator_spec(mode=mode, loss=loss, train_op=train_op)


# Settings ----------------------------------------------------------------------------------------

def tuned(release):
    return ({'auto_tune_mode': 'RL,GA'} if release in before_release('r1.11.0')
            else {'aoe_mode': '2'})


@pytest.mark.parametrize('release', RELEASES)
def test_what_no_flag_asks_for(machine, release):
    session, = machine(release).train()
    settings = session['settings']
    assert session['entries'] == 1 and not session['refused']
    assert settings['precision_mode'] == 'allow_mix_precision'
    assert settings['enable_data_pre_proc'] is settings['hcom_parallel'] is True
    assert settings['iterations_per_loop'] == 1
    assert not settings['enable_dump'] and not settings['enable_dump_debug']
    assert not {'profiling_mode', 'auto_tune_mode', 'aoe_mode', 'dump_path', 'op_select_implmode',
                'precision_mode_v2'} & set(settings)
    assert session['remapping'] == session['memory_optimization'] == 2
    assert session['environment']['JOB_ID'] == '10087'
    assert session['environment']['RANK_SIZE'] == '1'
    assert session['environment']['ASCEND_DEVICE_ID'] == '0'
    assert 'DUMP_GE_GRAPH' not in session['environment']


@pytest.mark.parametrize('release', RELEASES)
def test_what_every_flag_asks_for(machine, tmp_path, release):
    """And a second run in the same folders works."""
    mixlist = tmp_path / 'mixlist.json'
    mixlist.write_text('{"white-list": {"to-add": ["ReduceMeanD"]}}')
    values = dict(
        npu_dump_data=True, dump_step='0|2-3', dump_mode='all', npu_profiling=True,
        npu_dump_graph=True, npu_auto_tune=True, op_select_implmode='high_precision',
        hcom_parallel=False, enable_data_pre_proc=False)
    if release in from_release('r1.5.0'):
        values['modify_mixlist'] = str(mixlist)
    if release in from_release('r1.12.0'):
        values['deterministic'] = True
    for _ in range(2):
        started = machine(release, **values)
        session = started.train()[-1]
        for path in glob.glob(str(tmp_path / 'model' / 'model.ckpt*')):
            os.remove(path)
        os.remove(tmp_path / 'model' / 'checkpoint')
    settings, folder = session['settings'], str(tmp_path / 'model')
    assert not session['refused']
    expected = {
        'precision_mode': 'allow_mix_precision', 'enable_dump': True,
        'dump_path': f'{folder}/dump/0', 'dump_step': '0|2-3', 'dump_mode': 'all',
        'profiling_mode': True, 'op_select_implmode': 'high_precision', 'hcom_parallel': False,
        'enable_data_pre_proc': False, 'work_path': f'{folder}/tuning/0', **tuned(release)}
    if 'modify_mixlist' in values:
        expected['modify_mixlist'] = str(mixlist)
    if 'deterministic' in values:
        expected['deterministic'] = 1
    assert {name: settings.get(name) for name in expected} == expected
    assert ('auto_tune_mode' in settings) != ('aoe_mode' in settings)
    options = json.loads(settings['profiling_options'])
    assert options['output'] == f'{folder}/profiling/0'
    assert options['fp_point'] == options['bp_point'] == ''
    assert {options[key] for key in ('training_trace', 'task_trace', 'hccl', 'aicpu')} == {'on'}
    environment = session['environment']
    assert environment['DUMP_GE_GRAPH'] == '2'
    assert environment['DUMP_GRAPH_PATH'] == f'{folder}/graphs/0'
    assert environment['TUNE_BANK_PATH'] == f'{folder}/tuning/0'
    assert os.path.exists(f'{folder}/graphs/0/ge_proto_00000_train_Build.txt')
    assert os.path.exists(f'{folder}/dump/0/0/dump')
    assert os.path.exists(f'{folder}/profiling/0/PROF_000001_train/summary')


@pytest.mark.parametrize('release', RELEASES)
@pytest.mark.parametrize('mode', ['force_fp32', 'allow_fp32_to_fp16'])
def test_precision_mode_and_over_dump(machine, tmp_path, release, mode):
    session, = machine(release, precision_mode=mode, over_dump=True,
                       dump_dir=str(tmp_path / 'overflow')).train()
    settings = session['settings']
    assert settings['precision_mode'] == session['engine']['precision_mode'] == mode
    assert settings['enable_dump_debug'] is True and settings['enable_dump'] is False
    assert settings['dump_debug_mode'] == 'all'
    assert settings['dump_path'] == str(tmp_path / 'overflow' / '0')


@pytest.mark.parametrize('values, releases', [
    ({'modify_mixlist': 'mixlist.json'}, before_release('r1.5.0')),
    ({'deterministic': True}, before_release('r1.12.0'))])
def test_what_a_release_cannot_honour_is_refused(machine, tmp_path, monkeypatch, values, releases):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mixlist.json').write_text('{}')
    name, = values
    for release in (releases[0], releases[-1]):
        with pytest.raises(UserError, match=f'{name}.* a later CANN'):
            machine(release, **values)
    later = RELEASES[RELEASES.index(releases[-1]) + 1]
    assert machine(later, **values).train()


@pytest.mark.parametrize('values, words', [
    ({'npu_dump_data': True, 'over_dump': True}, 'mutually exclusive'),
    ({'dump_step': '5-5'}, 'does not rise'),
    ({'dump_step': '1,2'}, 'neither a step nor a range'),
    ({'loss_scale': '0.5'}, 'must be none, dynamic'),
    ({'loss_scale': 'much'}, 'must be none, dynamic'),
    ({'modify_mixlist': '/no/such.json'}, '--modify_mixlist=/no/such.json: does not exist'),
    ({'modify_mixlist': 'x', 'precision_mode': 'force_fp16'}, 'allow_mix_precision'),
    ({'modify_mixlist': 'x', 'precision_mode_v2': 'fp16'}, 'allow_mix_precision'),
    ({'precision_mode': 'force_fp16', 'precision_mode_v2': 'fp16'}, 'mutually exclusive'),
    ({'obs_dir': '/m/obs', 'model_dir': '/m'}, 'inside model_dir'),
    ({'obs_dir': './m/obs', 'model_dir': 'm/'}, 'inside model_dir'),
    ({'obs_dir': 'm', 'model_dir': os.path.abspath('m')}, 'inside model_dir')])
def test_settings_that_cannot_be(make_config, values, words):
    with pytest.raises(UserError, match=words):
        make_config(**values)


@pytest.mark.parametrize('values, manager, arguments', [
    ({}, 'ExponentialUpdateLossScaleManager', {'init_loss_scale': 32768}),
    ({'precision_mode': 'force_fp16'}, 'ExponentialUpdateLossScaleManager', {}),
    ({'precision_mode': 'force_fp32', 'loss_scale': '1024'}, 'FixedLossScaleManager',
     {'loss_scale': 1024.0}),
    ({'precision_mode': 'force_fp32'}, None, {}),
    ({'loss_scale': 'none'}, None, {})])
@pytest.mark.parametrize('release', ['dev', 'r1.15.0'])
def test_loss_scale(machine, release, values, manager, arguments):
    started = machine(release, **values)
    started.train(2)
    assert started.state('global_step', 'weight') == [2, 98]
    calls = {call['name']: call['arguments'] for call in started.events('call')}
    assert 'NPUDistributedOptimizer' in calls
    managers = {name for name in calls if name.endswith('LossScaleManager')}
    assert managers == ({manager} if manager else set())
    if manager:
        assert arguments.items() <= calls[manager].items()
        assert calls['NPULossScaleOptimizer'] == {
            'opt': 'NPUDistributedOptimizer', 'loss_scale_manager': manager,
            'is_distributed': False}


@pytest.mark.parametrize('release', ['dev', 'r1.15.0'])
def test_a_checkpoint_without_a_dynamic_scale_is_told(machine, tmp_path, release):
    """The scale is a variable then; restoring it from a run without one was a traceback."""
    machine(release, loss_scale='1024').train(1)
    with pytest.raises(tf.errors.OpError) as raised:
        machine(release).train(2)
    explained = ending.explanation(raised.value, lambda error: None, str(tmp_path / 'model'))
    assert re.search('has no .*another --loss_scale.*--init_checkpoint=', str(explained))
    assert machine(release, loss_scale='none').train(2)


def whole_model_fn(features, labels, mode, params):
    def measured(features, labels):
        weight = tf.get_variable('weight', [], initializer=tf.constant_initializer(100.0))
        return {tensor_names.CROSS_ENTROPY: tf.reduce_mean(weight * features),
                tensor_names.TOP_1: tf.constant(0.0)}

    config = params['config']
    first, *rest = accumulation.micro_batches(
        features, labels, config.optimization.gradient_accumulation_steps)
    return model_fns.train_spec(
        measured(*first), config, params['runtime'], accumulation.later(measured, rest))


@pytest.mark.parametrize('release', ['dev', 'r1.15.0'])
def test_a_loss_scale_starts_anew_where_it_has_changed(machine, release):
    """From fixed to dynamic, dynamic as before, then dynamic of another precision."""
    earlier, scales = None, []
    for step, values in enumerate([
            dict(loss_scale='1024'), dict(), dict(), dict(precision_mode='force_fp16')]):
        started = machine(release, log_gradient_norm=True, **values)
        os.makedirs(started.runtime.config.run.model_dir, exist_ok=True)
        earlier = started.runtime.config.continued(earlier, step)
        started.runtime.train(
            whole_model_fn, dict(config=earlier, runtime=started.runtime), batches, step + 1,
            lambda _, made=started: [saving.make_hook(made.runtime.config, made.runtime)])
        assert started.state('global_step') == [step + 1]
        reader = tf.train.load_checkpoint(started.runtime.config.run.model_dir)
        scales.append({name: reader.get_tensor(name).item()
                       for name in reader.get_variable_to_shape_map()
                       if name.split('/')[-1] in ('loss_scale', 'good_steps')})
    fixed, first, second, third = scales
    assert not fixed or set(fixed) < set(first)
    name, = [name for name in first if name.endswith('good_steps')]
    assert [scale[name] for scale in (first, second, third)] == [1, 2, 1]


@pytest.mark.parametrize('is_async', [False, True])
@pytest.mark.parametrize('change', [os.rename, lambda folder, _: shutil.rmtree(folder)])
def test_a_model_dir_that_goes_away_is_named(machine, tmp_path, change, is_async):
    model_dir = str(tmp_path / 'model')

    class Changes(tf.train.SessionRunHook):
        def before_run(self, run_context):
            if store.step_of(store.latest(model_dir)) == 2:
                change(model_dir, f'{model_dir}2')

    with pytest.raises(UserError, match=f'^{model_dir}: removed or renamed while it was in use'):
        machine('r1.8.0', save_checkpoints_steps=1, use_async_checkpointing=is_async).train(
            9, lambda _: [Changes()])
    assert not os.path.exists(model_dir)


@pytest.mark.parametrize('num_steps, num_built', [(4, 1), (5, 2), (3, 1)])
def test_every_stage_that_begins_ends(machine, tmp_path, caplog, num_steps, num_built):
    """The loops of 4 steps may leave none to the second session, which then builds nothing."""
    caplog.set_level('INFO', 'absl')
    started = machine('r1.8.0', iterations_per_loop=4, train_steps=num_steps)
    stages = hooks.StagesHook(lambda: store.latest(started.runtime.config.run.model_dir))

    def make_batches():
        stages.begin_building()
        return batches()

    os.makedirs(started.runtime.config.run.model_dir)
    started.runtime.train(
        model_fn, {'runtime': started.runtime}, make_batches, num_steps,
        lambda _: [stages, saving.make_hook(started.runtime.config, started.runtime)])
    lines = [record.getMessage() for record in caplog.records]
    for stage in ('Building the training graph', 'Compiling the graph in the first step'):
        assert lines.count(f'{stage}.') == num_built
        assert len([line for line in lines if line.startswith(f'{stage} took ')]) == num_built


# Options of later releases ----------------------------------------------------------------------

@pytest.mark.parametrize('release', ['r1.12.0', 'r1.13.0', 'r1.15.0'])
@pytest.mark.parametrize('mode, is_scaled', [
    ('fp16', True), ('origin', False), ('mixed_float16', True), ('mixed_bfloat16', False)])
def test_precision_mode_v2_comes_alone(machine, release, mode, is_scaled):
    if release == 'r1.12.0':
        with pytest.raises(UserError, match='--precision_mode_v2: not supported.*a later CANN'):
            machine(release, precision_mode_v2=mode)
        return
    started = machine(release, precision_mode_v2=mode)
    settings = started.train()[0]['settings']
    assert settings['precision_mode_v2'] == mode
    assert not {'precision_mode', 'modify_mixlist'} & set(settings)
    assert bool(started.events('call', name='NPULossScaleOptimizer')) == is_scaled


@pytest.mark.parametrize('release', RELEASES)
def test_the_mixlist_goes_with_mixed_precision(machine, tmp_path, release):
    """The file is ours by default, in releases that know such files."""
    knows = release in from_release('r1.5.0')
    settings = machine(release).train()[0]['settings']
    assert ('modify_mixlist' in settings) == knows
    if knows:
        with open(settings['modify_mixlist']) as file:
            assert 'ReduceSumD' in json.load(file)['black-list']['to-add']
    for name, value in (('modify_mixlist', 'none'), ('precision_mode', 'force_fp16')):
        started = machine(release, model_dir=str(tmp_path / name), **{name: value})
        assert 'modify_mixlist' not in started.train()[-1]['settings']


@pytest.mark.parametrize('mode, calls', [('auto', []), ('saturate', [0]), ('inf_nan', [1])])
def test_how_numbers_overflow(machine, mode, calls):
    started = machine('r1.13.0', overflow_mode=mode)
    assert [call['arguments']['mode'] for call in started.events(
        'call', name='set_device_sat_mode')] == calls
    if calls:
        with pytest.raises(UserError, match=f'--overflow_mode={mode} .*a later CANN'):
            machine('r1.12.0', overflow_mode=mode)
    else:
        machine('r1.12.0', overflow_mode=mode)


def test_compiled_operators_are_kept_beside_the_run(machine, tmp_path, caplog):
    settings = machine(model_dir=str(tmp_path / 'run')).train()[-1]['settings']
    assert settings['op_compiler_cache_mode'] == 'enable'
    assert settings['op_compiler_cache_dir'] == str(tmp_path / 'run_op_cache' / '0')
    settings = machine(model_dir=str(tmp_path / 'run2'),
                       op_cache_dir=str(tmp_path / 'kept')).train()[-1]['settings']
    assert settings['op_compiler_cache_dir'] == str(tmp_path / 'kept' / '0')
    (tmp_path / 'file').write_text('')
    for name, folder in ('a', tmp_path / 'file'), ('b', 'obs://bucket/cache'):
        with caplog.at_level(logging.INFO):
            settings = machine(model_dir=str(tmp_path / name),
                               op_cache_dir=str(folder)).train()[-1]['settings']
        assert 'op_compiler_cache_mode' not in settings
        assert f'Compiled operators are not cached ({folder}' in caplog.text


def test_any_other_argument_of_the_release_is_an_option(machine):
    settings = machine('r1.13.0', npu_option=(
        'stream_sync_timeout=60', 'op_debug_config=a=b', 'external_weight=True',
        'jit_compile=false')).train()[0]['settings']
    assert settings['stream_sync_timeout'] == 60 and settings['op_debug_config'] == 'a=b'
    assert settings['external_weight'] is True and settings['jit_compile'] == 'false'


@pytest.mark.parametrize('option, words', [
    ('precision_mode=x', 'precision_mode is set by --precision_mode'),
    ('hccl_timeout=5', 'HCCL_EXEC_TIMEOUT'),
    ('stream_sync_timeout=1', 'has no stream_sync_timeout; choose one of .*buffer_optimize'),
    ('graph_run_mode=x', 'not a int; give one, like the default 1'),
    ('graph_run_mode=True', 'a int'), ('mix_compile_mode=1', 'a bool'),
    ('buffer_optimize=1', 'a str'), ('buffer_optimize', 'the form NAME=VALUE')])
def test_an_option_that_cannot_be_is_one_sentence(machine, option, words):
    with pytest.raises(UserError, match=words):
        machine('r1.8.0', npu_option=(option,))


# Loops -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('release', ['dev', 'r1.8.0', 'r1.15.0'])
@pytest.mark.parametrize('loop, total, overflows, sessions', [
    (4, 8, '', [4]),           # the loop fits
    (4, 10, '', [4, 1]),       # it does not
    (4, 8, '2', [4, 1]),       # a skipped step leaves room for less than a loop
    (4, 10, '3,5,9', [4, 1]),
    (16, 10, '', [1]),         # no loop fits
    (1, 5, '2', [1])])
def test_training_ends_exactly(machine, release, loop, total, overflows, sessions):
    os.environ['FAKE_NPU_OVERFLOW_STEPS'] = overflows
    started = machine(release, iterations_per_loop=loop, train_steps=total)
    trained = started.train(total)
    assert started.state('global_step', 'weight') == [total, 100 - total]
    assert [session['settings']['iterations_per_loop'] for session in trained] == sessions
    assert not started.train(total)[len(trained):]


def test_a_round_ends_with_a_loop_and_the_training_with_a_step(machine):
    started = machine(iterations_per_loop=4, train_steps=15, steps_per_eval=6,
                      mode='train_and_eval')
    rounds = []
    sessions = started.train(15, after_round=rounds.append)
    assert [store.step_in_name(checkpoint) for checkpoint in rounds] == [8, 12]
    assert started.state('global_step') == [15]
    assert [session['settings']['iterations_per_loop'] for session in sessions] == [4, 1]


def test_progress_is_true_whatever_the_loop(machine):
    os.environ['FAKE_NPU_OVERFLOW_STEPS'] = '2'
    started = machine(iterations_per_loop=4, train_steps=13, log_step_count_steps=3, batch_size=8,
                      num_train_images=80)
    model_dir = started.runtime.config.run.model_dir
    writer = summaries.SummaryWriter(model_dir, every_steps=100)
    skips = nan_guard.LossScaleSkips()
    started.train(13, lambda steps_per_run: [
        nan_guard.NanHook(model_dir, steps_per_run, skips),
        hooks.ProgressHook(started.runtime.config, results_dir=model_dir,
                           writer=writer, skips=skips)])
    events = [event for event in event_log.read(model_dir) if event['event'] == 'train']
    # Loops end at 3, 7, 11 as one step is skipped; two single steps follow.
    assert [event['step'] for event in events] == [3, 7, 11, 12, 13]
    assert [event['loss'] for event in events] == [98, 94, 90, 89, 88]
    written = [event for path in glob.glob(f'{model_dir}/events*')
               for event in tf.train.summary_iterator(path)]
    tags = {(value.tag, event.step): value.simple_value
            for event in written for value in event.summary.value}
    assert tags['main/loss', 7] == 94 and tags['progress/epoch', 7] == pytest.approx(0.7)
    assert [tags['optimizer/skipped_steps', step] for step in (3, 7, 11, 12, 13)] == [1] * 5
    assert tags['optimizer/loss_scale', 3] == 2 ** 15
    assert [event['skipped_steps'] for event in events] == [1] * 5


def test_rates_leave_out_saves_and_evaluations(machine, monkeypatch):
    """A step takes a second, a save 50 and an evaluation 1000, on a clock that only they move."""
    clock = mock.Mock(secs=0.0)
    monkeypatch.setattr(hooks.time, 'monotonic', lambda: clock.secs)
    check_saved = nan_guard.check_saved

    def advance(secs):
        clock.secs += secs

    def slowly_checked(*arguments):
        advance(50)
        check_saved(*arguments)
    monkeypatch.setattr(nan_guard, 'check_saved', slowly_checked)

    class Tick(tf.train.SessionRunHook):
        def after_run(self, run_context, run_values):
            advance(1)

    started = machine(train_steps=12, steps_per_eval=2, mode='train_and_eval', batch_size=8,
                      log_step_count_steps=3, num_train_images=40, save_checkpoints_steps=3)
    model_dir = started.runtime.config.run.model_dir
    shown = []
    display = mock.Mock(update=shown.append, report=shown.append)
    left = time_left.TimeLeft(started.runtime.config)
    progress_hook = hooks.ProgressHook(
        started.runtime.config, results_dir=model_dir, display=display, time_left=left)

    def evaluate(checkpoint):
        with left.measured(left.EVALUATION):
            advance(1000)
    started.train(12, lambda steps_per_run: [Tick(), progress_hook], after_round=evaluate,
                  measured=lambda: left.measured(left.SAVE))
    progress_hook.write_stop()
    assert clock.secs > 5000
    rates = {(event['event'], event['step']): event['images_per_sec']
             for event in event_log.read(model_dir)}
    # Rates begin when the first step is over.
    assert rates == {('train', 3): 8, ('train', 6): 8, ('train', 9): 8, ('train', 12): 8,
                     ('epoch', 5): 8, ('epoch', 10): 8, ('train_stop', 12): 8}
    # After the last step there is still its checkpoint to save, and that to evaluate.
    assert [progress.eta_secs for progress in shown][-3:] == [
        2 + 2 * 1050, 1 + 1050, 1050]


def test_rates_leave_out_the_first_run_of_each_session(machine, monkeypatch):
    """It compiles a graph. Here: loops of 4 steps to step 8, then two single steps."""
    clock = mock.Mock(secs=0.0)
    monkeypatch.setattr(hooks.time, 'monotonic', lambda: clock.secs)

    class Tick(tf.train.SessionRunHook):
        """A step takes a second, the first run of a session 600."""

        def __init__(self, steps_per_run):
            self._secs = [600, *[steps_per_run] * 9]

        def after_run(self, run_context, run_values):
            clock.secs += self._secs.pop(0)

    started = machine(train_steps=11, batch_size=8, log_step_count_steps=1, iterations_per_loop=4,
                      num_train_images=80)
    model_dir = started.runtime.config.run.model_dir
    progress_hook = hooks.ProgressHook(started.runtime.config, results_dir=model_dir)
    started.train(11, lambda steps_per_run: [Tick(steps_per_run), progress_hook])
    progress_hook.write_stop()
    rates = {(event['event'], event['step']): event['images_per_sec']
             for event in event_log.read(model_dir)}
    assert rates == {('train', 4): None, ('train', 8): 8, ('train', 9): None, ('train', 10): 8,
                     ('train', 11): 8, ('epoch', 10): 8, ('train_stop', 11): 8}


def test_a_step_that_is_skipped_after_the_last_line_is_counted_by_the_next(machine):
    os.environ['FAKE_NPU_OVERFLOW_STEPS'] = '5'
    started = machine(train_steps=7, log_step_count_steps=3)
    skips = nan_guard.LossScaleSkips()
    model_dir = started.runtime.config.run.model_dir
    for max_steps in (5, 7):
        started.train(max_steps, lambda steps_per_run: [
            nan_guard.NanHook(model_dir, steps_per_run, skips),
            hooks.ProgressHook(started.runtime.config, results_dir=model_dir,
                               skips=skips)])
    counted = {event['step']: event['skipped_steps'] for event in event_log.read(model_dir)
               if event['event'] == 'train'}
    assert counted[3] == 0 and counted[6] == skips.total > 0


def test_a_session_fetches_few_different_things(machine, monkeypatch):
    """Each set of fetches is a graph to compile: all hooks read the global step the same way."""
    started = machine(iterations_per_loop=2, train_steps=4, save_checkpoints_steps=2,
                      log_step_count_steps=2)
    model_dir = started.runtime.config.run.model_dir
    fetched, run = set(), session_lib.BaseSession.run

    def noted_run(self, fetches, *args, **kwargs):
        if isinstance(fetches, (tf.Tensor, tf.Variable)):
            fetched.add(fetches.name)
        return run(self, fetches, *args, **kwargs)
    monkeypatch.setattr(session_lib.BaseSession, 'run', noted_run)
    started.train(4, lambda steps_per_run: [
        nan_guard.NanHook(model_dir, steps_per_run, nan_guard.LossScaleSkips()),
        hooks.ProgressHook(started.runtime.config, results_dir=model_dir)])
    assert {name for name in fetched if name.startswith('global_step')} == {'global_step/add:0'}


@pytest.mark.parametrize('keep', [2, 5])
def test_checkpoints_are_kept_as_asked(machine, keep):
    started = machine(keep_checkpoint_max=keep, save_checkpoints_steps=1, train_steps=6)
    for max_steps in (4, 6):
        started.train(max_steps)
    model_dir = started.runtime.config.run.model_dir
    kept = sorted(os.path.basename(path) for path in glob.glob(f'{model_dir}/*.index'))
    assert kept == [f'model.ckpt-{step}.index' for step in range(7 - keep, 7)]
    state = tf.train.get_checkpoint_state(model_dir)
    assert [os.path.basename(path) + '.index' for path in state.all_model_checkpoint_paths] == kept


def test_evaluation_is_not_looped_and_has_the_settings(machine):
    started = machine(iterations_per_loop=2, precision_mode='force_fp16', moving_average_decay=0)
    started.train(4)
    runtime = started.runtime
    estimator = runtime.build_estimator(model_fn, {'runtime': runtime})
    with runtime.evaluating(), EvaluationSession(
            estimator, lambda: batches().take(2)) as session:
        metrics = session.evaluate(store.latest(runtime.config.run.model_dir), restore.RAW)
    assert metrics['weight'] == 96
    session, = started.events('session', kind='eval')
    assert session['settings']['precision_mode'] == 'force_fp16'
    assert session['settings']['iterations_per_loop'] == 1


def test_a_device_that_refuses_to_evaluate_is_one_sentence(machine):
    out_of_memory = tf.errors.ResourceExhaustedError(None, None, 'no memory\nmore')
    with pytest.raises(UserError, match=r'\(no memory\); use --eval_accelerator=cpu'):
        with machine().runtime.evaluating():
            raise out_of_memory
    with pytest.raises(tf.errors.ResourceExhaustedError):
        with machine(eval_accelerator='cpu').runtime.evaluating():
            raise out_of_memory


@pytest.mark.parametrize('accelerator, data_formats', [
    ('npu', {b'NCHW'}), ('cpu', {b'NHWC'})])
def test_an_evaluation_is_built_for_where_it_runs(machine, accelerator, data_formats):
    """TensorFlow has no convolutions for CPUs with channels first."""
    runtime = machine(eval_accelerator=accelerator, data_format='channels_first',
                      model_name='efficientnet-lite0', width_coefficient=0.5,
                      depth_coefficient=0.25, num_label_classes=3).runtime
    estimator = runtime.build_estimator(
        model_fns.model_fn, model_fns.make_params(runtime.config, runtime))
    with tf.Graph().as_default() as graph:
        estimator.model_fn(
            tf.zeros([2, 32, 32, 3]), {'label': tf.zeros([2], tf.int32), 'weight': tf.ones([2])},
            tf.estimator.ModeKeys.EVAL, estimator.config)
    assert {operation.get_attr('data_format') for operation in graph.get_operations()
            if operation.type == 'Conv2D'} == data_formats
    entries = estimator.config.session_config.graph_options.rewrite_options.custom_optimizers
    assert len(entries) == (accelerator == 'npu')


@pytest.mark.parametrize('release', ['dev', 'r1.8.0'])
def test_ranks_wait_for_an_evaluation(machine, second_of_two, monkeypatch, release):
    """Longer on a CPU; the caller's own time is kept, and a run without evaluations has none."""
    monkeypatch.chdir(second_of_two.parent)
    def timeout(**values):
        os.environ.pop('HCCL_EXEC_TIMEOUT', None)
        os.environ.update(values.pop('environment', {}))
        session = machine(release, mode='train_and_eval', **values).train()[-1]
        variable = session['environment'].get('HCCL_EXEC_TIMEOUT')
        argument = session['settings'].get('hccl_timeout')
        assert argument == (int(variable) if variable and release == 'r1.8.0' else None)
        return variable
    assert timeout() == '3600'
    assert timeout(eval_accelerator='cpu', model_dir='m1') == '17340'
    assert timeout(environment={'HCCL_EXEC_TIMEOUT': '99'}, model_dir='m2') == '99'


# The job -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('environment, words', [
    ({'RANK_SIZE': 'two'}, 'RANK_SIZE=two'),
    ({'RANK_SIZE': '0'}, 'RANK_SIZE=0'),
    ({'RANK_SIZE': '\u00b2'}, 'RANK_SIZE=\u00b2 is not a whole number'),
    ({'RANK_SIZE': '2'}, 'RANK_ID is not set'),
    ({'RANK_SIZE': '2', 'RANK_ID': '0'}, 'RANK_TABLE_FILE is not set.*hccn.conf'),
    ({'RANK_SIZE': '2', 'RANK_ID': '0', 'RANK_TABLE_FILE': '/no'},
     '/no: does not exist.*--accelerator=stock'),
    ({'RANK_TABLE_FILE': '/no'}, '/no: does not exist.*--accelerator=stock'),
    ({'RANK_SIZE': '1', 'RANK_ID': '3'}, 'RANK_ID=3 is not below'),
    ({'RANK_SIZE': '1', 'RANK_ID': '-1'}, 'RANK_ID=-1'),
    ({'RANK_SIZE': '2', 'CM_WORKER_SIZE': '2'}, 'both set'),
    ({'CM_WORKER_SIZE': '2', 'RANK_ID': '0'}, 'CM_CHIEF_IP is not set'),
    ({'CM_WORKER_SIZE': '1'}, 'needs RANK_SIZE'),
    ({'TF_CONFIG': '{"cluster": {}}'}, 'unset TF_CONFIG')])
def test_half_a_job_is_one_sentence(machine, environment, words):
    os.environ.update(environment)
    with pytest.raises(UserError, match=words):
        machine('r1.8.0')


def test_the_job_of_the_caller_stays(machine):
    os.environ.update({'JOB_ID': '7', 'DEVICE_ID': '5'})
    session, = machine().train()
    assert session['environment']['JOB_ID'] == '7'
    assert 'ASCEND_DEVICE_ID' not in session['environment']


def test_ranks_that_would_train_apart_are_refused(machine, second_of_two):
    assert machine('r1.15.0').runtime._averages()
    del os.environ['RANK_SIZE'], os.environ['RANK_TABLE_FILE']
    os.environ.update({'CM_WORKER_SIZE': '2', 'CM_CHIEF_IP': '10.0.0.1', 'CM_CHIEF_PORT': '6000',
                       'CM_CHIEF_DEVICE': '0', 'CM_WORKER_IP': '10.0.0.2'})
    with pytest.raises(UserError, match='averages gradients by RANK_SIZE only'):
        machine('r1.15.0')


@pytest.mark.parametrize('name', ['LOCAL_CHECKPOINT_DIR', 'RESTORE_FROM'])
def test_the_environment_names_no_weights_to_start_with(machine, caplog, name):
    os.environ[name] = '/left/over'
    with caplog.at_level(logging.WARNING):
        started = machine()
    assert f'{name}=/left/over' in caplog.text and '--init_checkpoint' in caplog.text
    started.train(2)
    assert started.state('weight') == [98]


def server_list(*ranks):
    devices = [{'device_id': str(rank), 'device_ip': f'192.168.100.{101 + rank}',
                'rank_id': str(rank)} for rank in ranks]
    return {'server_list': [{'server_id': '10.0.0.1', 'device': devices}]}


def group_list(*devices):
    """The older form, as ModelArts writes it."""
    return {'group_list': [{'instance_list': [
        {'pod_name': f'pod{device}', 'server_id': '10.0.0.1', 'devices': [
            {'device_id': device, 'device_ip': '192.168.100.101'}]} for device in devices]}]}


@pytest.fixture
def second_of_two(machine, tmp_path):
    """The environment of rank 1 of 2, with a rank table."""
    table = tmp_path / 'ranks.json'
    table.write_text(json.dumps(server_list(0, 1)))
    os.environ.update({'RANK_SIZE': '2', 'RANK_ID': '1', 'RANK_TABLE_FILE': str(table)})
    return table


@pytest.mark.parametrize('text, words', [
    ('', 'not JSON.*--accelerator=stock'),
    ('[' * 200000, 'ranks.json: .*--accelerator=stock'),
    ('[]', r'the file: \[\] is not a dict.*--accelerator=stock'),
    ('{"server_list": 5}', 'server_list: 5 is not a list'),
    ('{"server_list": []}', r'lists the ranks \[\], not 0 to 1'),
    ('{"server_list": [{"device": {"rank_id": "0"}}]}', 'is not a list'),
    ('{"server_list": [{"device": ["0", "1"]}]}', "device: '0' is not a dict"),
    ('{"server_list": [{"device": [{"rank_id": Infinity}]}]}',
     'Infinity is not finite.*--accelerator=stock'),
    ('{"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": 1.9}]}]}', "rank_id: '1.9'"),
    ('{"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": true}]}]}', "rank_id: 'True'"),
    ('{"group_list": [{"instance_list": [{"devices": 1.9}]}]}', 'devices: 1.9 is not a list'),
    (json.dumps(server_list(*range(200))), r'lists the ranks \[0, 1, 2, 3, 4, 5, ...\], not 0'),
    (json.dumps(server_list(0)), r'lists the ranks \[0\], not 0 to 1.*RANK_SIZE=2'),
    (json.dumps(server_list(0, 0)), r'lists the ranks \[0, 0\]'),
    (json.dumps({'server_list': [{'device': [{}]}]}), 'rank_id'),
    (json.dumps({'group_list': [{'instance_list': [{'rank_id': '1'}, {'rank_id': '0'}]}]}), None),
    (json.dumps(group_list('0', '1')), None),
    (json.dumps(group_list('0')), r'lists the ranks \[0\], not 0 to 1'),
    (json.dumps({'of_tomorrow': []}), None)])
def test_a_rank_table_lists_the_ranks(machine, second_of_two, text, words):
    second_of_two.write_text(text)
    if words is None:
        assert machine().runtime.world_size == 2
    else:
        with pytest.raises(UserError, match=words):
            machine()


INSTANCES = [{'rank_id': str(rank), 'server_id': f'10.0.0.{rank // 2}'} for rank in range(4)]


TWO_SERVERS = {'server_list': [*server_list(*range(8))['server_list'],
                               *server_list(*range(8, 12))['server_list']]}


@pytest.mark.parametrize('table, rank, num_ranks, expected', [
    (server_list(*range(8)), 3, 8, 8), (TWO_SERVERS, 3, 12, 8), (TWO_SERVERS, 9, 12, 4),
    ({'group_list': [{'instance_list': INSTANCES}]}, 2, 4, 2),
    (group_list('0', '1'), 1, 2, 2),    # two pods of one server
    ({'group_list': [{'instance_list': [{'devices': [{}] * 8}] * 2}]}, 12, 16, 8),
    ({'of_tomorrow': []}, 3, 4, 4), ({'of_tomorrow': []}, 3, 16, 8)])
def test_a_rank_table_tells_how_many_ranks_share_a_server(
        machine, tmp_path, table, rank, num_ranks, expected):
    path = tmp_path / 'ranks.json'
    path.write_text(json.dumps(table))
    os.environ.update({'RANK_SIZE': str(num_ranks), 'RANK_ID': str(rank),
                       'RANK_TABLE_FILE': str(path)})
    assert machine().runtime.ranks_on_host == expected


def test_a_server_without_a_rank_table_has_one_made(machine, tmp_path, monkeypatch):
    hccn = tmp_path / 'hccn.conf'
    monkeypatch.setattr(rank_table, 'HCCN_FILE', str(hccn))
    os.environ.update({'RANK_SIZE': '2', 'RANK_ID': '0'})
    hccn.write_text('address_0=192.168.100.101\nnetmask_0=255.255.255.0\n')
    for os.environ['RANK_SIZE'] in ('1' * 18, '2'):
        with pytest.raises(UserError, match='no address of device 1.*--accelerator=stock'):
            machine()
    hccn.write_text('address_1=192.168.101.101\naddress_0=192.168.100.101\nnetmask_0=255.0.0.0\n')
    started = machine()
    with open(os.environ['RANK_TABLE_FILE']) as file:
        server, = json.load(file)['server_list']
    assert server['device'] == [
        {'device_id': '0', 'device_ip': '192.168.100.101', 'rank_id': '0'},
        {'device_id': '1', 'device_ip': '192.168.101.101', 'rank_id': '1'}]
    session, = started.train()
    assert session['collectives']['broadcast'] == 1 and not session['refused']


@pytest.mark.parametrize('release', ['dev', 'r1.15.0'])
def test_a_rank_of_several(machine, second_of_two, tmp_path, release):
    started = machine(release, batch_size=16, npu_dump_data=True)
    runtime = started.runtime
    assert (runtime.rank, runtime.world_size) == (1, 2)
    assert runtime.config.global_batch_size == 32
    assert runtime.config.run.model_dir == str(tmp_path / 'model_rank_1')
    session, = started.train(2)
    assert started.state('weight') == [98]
    assert session['settings']['dump_path'].endswith('/dump/1')
    assert session['collectives']['allreduce'] >= 1 and session['collectives']['broadcast'] == 1
    call, = started.events('call', name='NPULossScaleOptimizer')
    assert call['arguments']['is_distributed'] is True


@pytest.mark.parametrize('release', ['dev', 'r1.15.0'])
def test_micro_batches_are_reduced_clipped_and_skipped_as_one(machine, second_of_two, release):
    """A gradient of 1 is clipped to 0.25, after the loss scale of 1024 is removed."""
    os.environ['FAKE_NPU_OVERFLOW_STEPS'] = '2'
    num_reductions = []
    for number in (1, 2):
        started = machine(
            release, loss_scale='1024', gradient_clip_norm=0.25, optimizer='sgd',
            base_learning_rate=1.0, lr_schedule='constant', lr_warmup_epochs=0.0, weight_decay=0.0,
            batch_size=128 // number, gradient_accumulation_steps=number)
        config = started.runtime.config
        assert config.learning_rate == 1
        os.makedirs(config.run.model_dir)
        started.runtime.train(
            whole_model_fn, dict(config=config, runtime=started.runtime), batches, 3,
            lambda _, made=started: [saving.make_hook(made.runtime.config, made.runtime)])
        assert started.state('global_step', 'weight') == [3, 100 - 3 * 0.25]
        session, = started.events('session', kind='train')
        num_reductions.append(session['collectives']['allreduce'])
        shutil.rmtree(config.run.model_dir)
    assert num_reductions[0] == num_reductions[1] >= 1


# Choosing ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('release', ['r1.8.0', 'r1.9.0', 'r1.15.0'])
def test_other_sessions_stay_on_the_host(machine, release):
    constructors = (tf.Session.__init__, tf.InteractiveSession.__init__)
    started = machine(release)
    assert (tf.Session.__init__, tf.InteractiveSession.__init__) == constructors
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.constant(1))
    assert not started.events('session')[-1]['on_device']
    assert started.train()[0]['on_device']


def test_auto_takes_the_npu_that_is_there(machine, make_config):
    machine('r1.8.0')
    assert isinstance(runtimes.select(make_config()), npu.NPURuntime)
    assert not isinstance(runtimes.select(make_config(accelerator='stock')), npu.NPURuntime)


def test_without_npu_bridge(make_config, caplog):
    with caplog.at_level(logging.INFO), mock.patch.dict(os.environ, {
            'ASCEND_DEVICE_ID': '1', 'ASCEND_GLOBAL_LOG_LEVEL': '3', 'RANK_SIZE': '1'}):
        assert not isinstance(runtimes.select(make_config()), npu.NPURuntime)
    assert not caplog.records
    with pytest.raises(UserError, match='npu_bridge: not installed.*--accelerator=stock'):
        runtimes.select(make_config(accelerator='npu'))


@pytest.mark.parametrize('name, value', [
    ('RANK_TABLE_FILE', '/table'), ('CM_WORKER_SIZE', '1'), ('RANK_SIZE', '2'),
    ('ASCEND_OPP_PATH', '/opp'), ('ASCEND_TOOLKIT_HOME', '/cann'), ('ASCEND_HOME_PATH', '/cann')])
def test_an_environment_for_npus_without_npu_bridge_is_refused(
        make_config, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f'{name}={value}: .*not installed.*--accelerator=stock'):
        runtimes.select(make_config())
    for accelerator in ('stock', 'host'):
        assert runtimes.select(make_config(accelerator=accelerator)).world_size == 1


def test_workers_of_tf_config_may_have_a_rank_size(monkeypatch):
    monkeypatch.setenv('RANK_SIZE', '2')
    npu_env.check_unused(num_workers=2)


@pytest.mark.parametrize('cause', [
    'raise OSError("libge_runner.so: cannot open")', 'import no_such_part', '_tf_adapter.load()',
    'import sys; sys.exit(0)', ''])
def test_a_broken_npu_bridge_is_told(make_config, monkeypatch, tmp_path, cause):
    package = tmp_path / 'broken' / 'npu_bridge'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('')
    (package / 'npu_init.py').write_text(cause)
    monkeypatch.syspath_prepend(str(tmp_path / 'broken'))
    with mock.patch.dict(os.environ), mock.patch.dict(sys.modules):
        for accelerator in ('auto', 'npu'):
            with pytest.raises(UserError, match='npu_bridge: installed, but.*--accelerator=stock'):
                runtimes.select(make_config(accelerator=accelerator))


# Off the NPU -------------------------------------------------------------------------------------

def test_stock_tensorflow_says_which_flags_do_nothing(make_config, caplog):
    with caplog.at_level(logging.INFO):
        runtimes.select(make_config(accelerator='stock', precision_mode='force_fp32'))
        assert not caplog.records
        with mock.patch.dict(os.environ):
            runtimes.select(make_config(
                accelerator='stock', precision_mode='allow_mix_precision', loss_scale='128',
                npu_auto_tune=True, iterations_per_loop=10, deterministic=True,
                hcom_parallel=False, enable_data_pre_proc=False, dump_mode='all'))
    line, = caplog.records
    for name in ('precision_mode', 'loss_scale', 'npu_auto_tune', 'iterations_per_loop',
                 'deterministic', 'hcom_parallel', 'enable_data_pre_proc', 'dump_mode'):
        assert f'--{name}' in line.getMessage()


def test_mixed_precision_on_a_gpu(make_config, monkeypatch, caplog):
    monkeypatch.setattr(tf.test, 'is_gpu_available', lambda: True)
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    runtime = runtimes.select(make_config(accelerator='stock'))
    assert runtime.wrap_optimizer(optimizer) == (optimizer, None)
    with caplog.at_level(logging.INFO):
        runtime = runtimes.select(make_config(
            accelerator='stock', precision_mode='allow_mix_precision', loss_scale='128'))
    assert not caplog.records
    try:
        with tf.Graph().as_default():
            wrapped, loss_scale = runtime.wrap_optimizer(optimizer)
            assert type(wrapped).__name__ == 'MixedPrecisionLossScaleOptimizer'
            with tf.Session() as session:
                assert session.run(loss_scale) == 128
    finally:
        tf.train.experimental.disable_mixed_precision_graph_rewrite()


def test_stock_tensorflow_dumps_profiles_and_writes_graphs(make_config, tmp_path):
    config = make_config(accelerator='stock', npu_dump_data=True, dump_step='1|3-4',
                         npu_profiling=True, npu_dump_graph=True, log_step_count_steps=2)
    for max_steps in (3, 5):
        runtime = runtimes.select(config)
        runtime.train(model_fn, {'runtime': runtime}, batches, max_steps,
                      lambda _, runtime=runtime: [saving.make_hook(runtime.config, runtime)])
    folder = tmp_path / 'model'
    dumps = [os.path.basename(path) for path in glob.glob(f'{folder}/dump/0/*/run_*')]
    assert len(dumps) == 3
    assert glob.glob(f'{folder}/dump/0/*/run_*/*/weight*')
    with open(glob.glob(f'{folder}/profiling/0/timeline-*.json')[0]) as file:
        assert json.load(file)['traceEvents']
    graph = tf.GraphDef.FromString((folder / 'graphs' / '0' / 'train.pb').read_bytes())
    assert 'weight' in {node.name for node in graph.node}


def test_asynchronous_checkpoints_of_stock_tensorflow(make_config, tmp_path):
    runtime = runtimes.select(make_config(
        accelerator='stock', use_async_checkpointing=True, save_checkpoints_steps=2,
        train_steps=5))
    runtime.train(model_fn, {'runtime': runtime}, batches, 5,
                  lambda _: [saving.make_hook(runtime.config, runtime)])
    reader = tf.train.load_checkpoint(str(tmp_path / 'model'))
    assert [reader.get_tensor(name) for name in ('global_step', 'weight')] == [5, 95]


# Copies ------------------------------------------------------------------------------------------

@pytest.mark.parametrize('with_moxing', [False, True])
def test_folders_are_copied(tmp_path, monkeypatch, with_moxing):
    if with_moxing:
        monkeypatch.syspath_prepend(os.path.join(TEST_DIR, 'fakes_moxing'))
        monkeypatch.setenv('FAKE_OBS_ROOT', str(tmp_path))
    (tmp_path / 'source' / 'deep').mkdir(parents=True)
    (tmp_path / 'source' / 'one').write_text('1')
    (tmp_path / 'source' / 'deep' / 'two').write_text('2')
    target = 'obs://target' if with_moxing else str(tmp_path / 'target')
    with mock.patch.dict(sys.modules):
        for _ in range(2):
            object_storage.copy_folder(str(tmp_path / 'source'), target)
        with pytest.raises(UserError, match='/no/such: cannot be copied'):
            object_storage.copy_folder('/no/such', target)
    assert (tmp_path / 'target' / 'one').read_text() == '1'
    assert (tmp_path / 'target' / 'deep' / 'two').read_text() == '2'


@pytest.mark.parametrize('target', ['{0}/source', '{0}//source', '{0}/link', '{0}/x/../source',
                                    '{0}/link/deep', '{0}/source/new'])
def test_no_folder_is_copied_over_or_into_itself(tmp_path, target):
    (tmp_path / 'source' / 'deep').mkdir(parents=True)
    (tmp_path / 'source' / 'one').write_text('1')
    (tmp_path / 'x').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'source')
    with pytest.raises(UserError, match='cannot be in .* itself'):
        object_storage.copy_folder(str(tmp_path / 'source'), target.format(tmp_path))
    assert (tmp_path / 'source' / 'one').read_text() == '1'
    assert sorted(os.listdir(tmp_path / 'source')) == ['deep', 'one']


def test_a_full_disk_is_no_wrong_address(tmp_path):
    (tmp_path / 'source').mkdir()
    full = tf.errors.ResourceExhaustedError(None, None, 'x; No space left on device')
    with mock.patch.object(tf.gfile, 'MakeDirs', side_effect=full):
        with pytest.raises(UserError, match='x; No space left on device; make room'):
            object_storage.copy_folder(str(tmp_path / 'source'), str(tmp_path / 'target'))


def test_folders_outside_of_the_run_are_copied_by_their_names(make_config, tmp_path):
    config = make_config(npu_dump_data=True, npu_profiling=True, obs_dir=str(tmp_path / 'copy'),
                         dump_dir=f'{tmp_path}/dumps/', profiling_dir=f'{tmp_path}/profiles/')
    for path in (tmp_path / 'model', tmp_path / 'dumps' / '0', tmp_path / 'profiles' / '0'):
        path.mkdir(parents=True)
        (path / f'of_{path.parent.name}').write_text('')
    ending.copy_results(config, rank=0, leader_dir=config.run.model_dir)
    assert os.path.exists(tmp_path / 'copy' / 'dumps' / '0' / 'of_dumps')
    assert os.path.exists(tmp_path / 'copy' / 'profiles' / '0' / 'of_profiles')


@pytest.mark.parametrize('with_moxing', [False, True])
def test_two_ranks_copy_each_file_once(make_config, tmp_path, monkeypatch, with_moxing):
    if with_moxing:
        monkeypatch.syspath_prepend(os.path.join(TEST_DIR, 'fakes_moxing'))
        monkeypatch.setenv('FAKE_OBS_ROOT', str(tmp_path))
    model_dir = tmp_path / 'model'
    config = dataclasses.replace(make_config(
        npu_dump_data=True, npu_profiling=True, dump_dir=f'{model_dir}/dump',
        profiling_dir=f'{tmp_path}/profiles',
        obs_dir='obs://copy' if with_moxing else str(tmp_path / 'copy')), num_ranks=2)
    files = ['model.ckpt-1.index', 'archive/best', 'dump/0/a', 'dump/1/b']
    for path in (*(model_dir / file for file in files), tmp_path / 'model_rank_1' / 'model.ckpt-1',
                 tmp_path / 'profiles' / '1' / 'c'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('x')
    copied = {}
    with mock.patch.dict(sys.modules):
        for rank in (0, 1):
            ending.copy_results(config, rank, str(model_dir))
            copied[rank] = {str(path.relative_to(tmp_path / 'copy'))
                            for path in (tmp_path / 'copy').rglob('*') if path.is_file()}
            shutil.rmtree(tmp_path / 'copy')
    assert copied == {0: set(files) - {'dump/1/b'}, 1: {'dump/1/b', 'profiles/1/c'}}


def test_what_is_copied_already_is_not_copied_again(tmp_path):
    (tmp_path / 'source').mkdir()
    for name in ('same', 'longer', 'newer'):
        (tmp_path / 'source' / name).write_text('x')
    object_storage.copy_folder(str(tmp_path / 'source'), str(tmp_path / 'target'))
    (tmp_path / 'source' / 'longer').write_text('xy')
    os.utime(tmp_path / 'source' / 'longer', (0, 0))
    (tmp_path / 'source' / 'newer').write_text('z')
    os.utime(tmp_path / 'source' / 'newer', (2 ** 32, 2 ** 32))
    with mock.patch.object(tf.gfile, 'Copy', side_effect=tf.gfile.Copy) as copy:
        object_storage.copy_folder(str(tmp_path / 'source'), str(tmp_path / 'target'))
    assert copy.call_count == 2
    assert (tmp_path / 'target' / 'longer').read_text() == 'xy'
    assert (tmp_path / 'target' / 'newer').read_text() == 'z'


def test_what_is_copied_and_what_a_device_leaves_have_a_size(make_config, tmp_path):
    config = make_config(npu_dump_data=True, obs_dir=str(tmp_path / 'copy'),
                         dump_dir=f'{tmp_path}/dumps')
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'checkpoint').write_bytes(bytes(2500))
    (tmp_path / 'dumps' / '0').mkdir(parents=True)
    (tmp_path / 'dumps' / '0' / 'dump').write_bytes(bytes(1400000))
    with mock.patch.object(absl_logging, 'info') as info:
        ending.copy_results(config, rank=0, leader_dir=str(tmp_path / 'model'))
    lines = [call[0][0] % call[0][1:] for call in info.call_args_list]
    assert lines[0] == f'Dumps: 1 file, 1.4 MB in {tmp_path}/dumps/0.'
    assert lines[1] == f'Copying {tmp_path}/model (1 file, 2.5 kB) to {tmp_path}/copy.'
    assert lines[2].startswith(lines[1][:-1] + ' took ')


@pytest.mark.parametrize('size_name', ['RANK_SIZE', 'CM_WORKER_SIZE'])
@pytest.mark.parametrize('rank_size, copies', [('1', 3), ('2', 2)])
def test_data_are_fetched_once_for_all_ranks_of_a_job(
        tmp_path, monkeypatch, size_name, rank_size, copies):
    for name in ('RANK_SIZE', 'CM_WORKER_SIZE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(size_name, rank_size)
    with mock.patch.object(object_storage, 'copy_folder') as copy_folder:
        for job in ('1', '1', '2'):
            monkeypatch.setenv('JOB_ID', job)
            boot_modelarts._fetch('obs://bucket', str(tmp_path / 'data'))
    assert copy_folder.call_count == copies
