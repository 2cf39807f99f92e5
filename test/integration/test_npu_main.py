"""main.py on the double of npu_bridge: what the flags say is what the sessions are."""
import json
import os
import shutil

from conftest import ROOT
from conftest import TINY
from conftest import assert_is_like_an_export
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from run_log import event_log

pytestmark = pytest.mark.slow

FAKES = os.path.join(ROOT, 'test', 'fakes')
SMALLER = (*TINY, '--eval_batch_size=250', '--batch_size=8')
# Replaces the network of SMALLER where CondConv is no part of the test.
STARTS_FAST = '--model_name=efficientnet-lite0'


@pytest.fixture
def run_npu(run, digits_dir, tmp_path):
    """run_npu(release, flag, ..., VARIABLE=value, ...) -> (CompletedProcess, events recorded)."""
    def run_on(release, *flags, script='main.py', **environment):
        record = tmp_path / 'record'
        record.write_text('')
        path = os.pathsep.join([FAKES, environment.pop('PYTHONPATH', '')])
        completed = run(
            script, f'--data_dir={digits_dir}', f'--model_dir={tmp_path}/run', *SMALLER, *flags,
            PYTHONPATH=path, FAKE_NPU_BRIDGE_RELEASE=release, FAKE_NPU_RECORD=str(record),
            **environment)
        return completed, [json.loads(line) for line in record.read_text().splitlines()]
    return run_on


def sessions(events, kind):
    return [event for event in events if event['event'] == 'session' and event['kind'] == kind]


def sets_run(events, kind):
    """The sets of fetches, targets and feeds of each session of a kind on the device."""
    return [event['sets'] for event in events if event['event'] == 'runs' and event['kind'] == kind]


@pytest.mark.parametrize('release, mode', [
    ('dev', 'train'), ('r1.8.0', 'train_and_eval'), ('r1.15.0', 'train')])
def test_the_settings_of_a_run_are_its_flags(run_npu, tmp_path, release, mode):
    """A loop of 4, 10 steps, the third of which overflows: two loops and three single steps."""
    completed, events = run_npu(
        release, STARTS_FAST, f'--mode={mode}', '--train_steps=10', '--iterations_per_loop=4',
        '--log_step_count_steps=2', '--precision_mode=allow_fp32_to_fp16', '--loss_scale=1024',
        '--npu_dump_data', f'--dump_dir={tmp_path}/dump', '--dump_step=0|9', '--dump_mode=all',
        '--npu_profiling', f'--profiling_dir={tmp_path}/profiling', '--npu_dump_graph',
        '--op_select_implmode=high_performance', f'--obs_dir={tmp_path}/obs',
        '--random_seed=1', '--moving_average_decay=0', '--log_gradient_norm',
        FAKE_NPU_OVERFLOW_STEPS='3')
    assert completed.returncode == 0, completed.stderr
    trained, evaluated = sessions(events, 'train'), sessions(events, 'eval')
    assert [session['settings']['iterations_per_loop'] for session in trained] == [4, 1]
    assert len(evaluated) == (mode == 'train_and_eval')
    for session in trained + evaluated:
        settings = session['settings']
        assert session['entries'] == 1 and not session['refused']
        assert settings['precision_mode'] == 'allow_fp32_to_fp16'
        assert settings['enable_dump'] is True and settings['dump_step'] == '0|9'
        assert settings['dump_path'] == f'{tmp_path}/dump/0' and settings['dump_mode'] == 'all'
        assert settings['profiling_mode'] is True
        assert json.loads(settings['profiling_options'])['output'] == f'{tmp_path}/profiling/0'
        assert settings['op_select_implmode'] == 'high_performance'
        assert session['environment']['DUMP_GRAPH_PATH'] == f'{tmp_path}/run/graphs/0'
    assert all(tensor['static'] for session in trained for tensor in session['inputs'])
    for words in ('.', ' took'):
        assert completed.stderr.count(f'Building the training graph{words}') == 2
    # No session but those of the Estimators is on the device.
    assert not [event for event in sessions(events, 'other') if event['on_device']]

    model_dir = tmp_path / 'run'
    assert store.step_of(store.latest(str(model_dir))) == 10
    progress = [event['step'] for event in event_log.read(str(model_dir))
                if event['event'] == 'train']
    assert progress == [3, 7, 8, 10]
    seen = {value.tag: value.simple_value for path in tf.gfile.Glob(f'{model_dir}/events*')
            for event in tf.train.summary_iterator(path) for value in event.summary.value}
    assert {'main/loss', 'main/cross_entropy', 'main/top_1', 'main/learning_rate',
            'progress/epoch', 'optimizer/gradient_norm', 'input_images'} <= set(seen)
    assert seen['optimizer/loss_scale'] == 1024 and seen['optimizer/skipped_steps'] == 1
    for name in ('checkpoint', 'results.jsonl', 'graphs/0/ge_proto_00000_train_Build.txt',
                 'dump/0/0/dump', 'profiling/0/PROF_000001_train/summary'):
        assert (tmp_path / 'obs' / name).exists(), name


def test_a_second_run_goes_on_and_exports(run_npu, run, tmp_path):
    """And it evaluates on the CPU, without a session of the device; its images are wide."""
    for steps in ('2', '4'):
        completed, events = run_npu(
            'r1.12.0', '--mode=train_and_eval', '--eval_accelerator=cpu', '--steps_per_eval=2',
            f'--train_steps={steps}', '--over_dump', '--deterministic',
            '--use_async_checkpointing', f'--export_dir={tmp_path}/export',
            '--input_image_size=24x40', '--advprop_preprocessing')
        assert completed.returncode == 0, completed.stderr
        assert completed.stderr.count('--use_async_checkpointing') == 1
        assert ', npu_bridge (not installed as a package' in completed.stderr
        assert 'allow_mix_precision, loss scale dynamic' in completed.stderr
    assert 'Resuming from step 2 of 4' in completed.stderr
    assert [event['step'] for event in event_log.read(str(tmp_path / 'run'))
            if event['event'] == 'eval' and event['weights'] == 'ema'] == [2, 4]
    session, = sessions(events, 'train')
    assert not sessions(events, 'eval')
    assert session['settings']['enable_dump_debug'] is True
    assert session['settings']['deterministic'] == 1
    assert session['settings']['precision_mode'] == 'allow_mix_precision'
    assert sorted(os.listdir(tmp_path / 'export')) == ['2', '4']
    description = json.loads(
        (tmp_path / 'export' / '4' / 'assets.extra' / 'export.json').read_text())
    assert description['image_size'] == '24x40' and description['normalization'] == 'advprop'
    assert not [event for event in sessions(events, 'other') if event['on_device']]
    assert_is_like_an_export(run, tmp_path / 'run', tmp_path / 'export' / '4', tmp_path)


def test_a_range_test_sees_each_step(run_npu, tmp_path):
    completed, events = run_npu('r1.12.0', STARTS_FAST, '--mode=lr_range', '--lr_range_steps=20',
                                '--iterations_per_loop=10', '--moving_average_decay=0')
    assert completed.returncode == 0, completed.stderr
    session, = sessions(events, 'train')
    assert session['settings']['iterations_per_loop'] == 1
    folder = tmp_path / 'run' / 'lr_range'
    assert [event['step'] for event in event_log.read(str(folder))
            if event['event'] == 'train'] == list(range(1, 21))
    assert (folder / 'lr_range.png').exists()


@pytest.mark.parametrize('environment, flags, words', [
    ({'RANK_SIZE': '8'}, [], 'RANK_ID is not set'),
    ({}, ['--deterministic'], '--deterministic: not supported')])
def test_what_cannot_be_is_one_sentence(run_npu, tmp_path, environment, flags, words):
    completed, _ = run_npu('r1.8.0', '--train_steps=2', *flags, **environment)
    assert completed.returncode == 1
    line, = [line for line in completed.stderr.splitlines() if 'error:' in line]
    assert words in line and 'Traceback' not in completed.stderr
    assert not (tmp_path / 'run').exists()


def test_the_boot_file_of_modelarts(run_npu, digits_dir, tmp_path):
    """The data come from OBS and the results go there, from a run that fails as well."""
    (tmp_path / 'bucket').mkdir()
    os.symlink(digits_dir, tmp_path / 'bucket' / 'ILSVRC2012')
    for flag, words in (('--base_learning_rate=-1', '--base_learning_rate'),
                        ('--data_url=/no/such', '--data_url=/no/such'),
                        ('--train_url=/dev/null/x', '--train_url=/dev/null/x')):
        completed, _ = run_npu('r1.8.0', '--train_url=obs://results', '--data_url=obs://bucket',
                               f'--data_dir={tmp_path}/local', flag, script='boot_modelarts.py')
        assert completed.returncode == 1 and words in completed.stderr.splitlines()[-1]
        assert not os.path.exists(tmp_path / 'local')
    flags = ('--mode=train', '--data_url=obs://bucket', '--train_url=obs://results',
             f'--modelarts_data_dir={tmp_path}/local')
    environment = dict(script='boot_modelarts.py', FAKE_OBS_ROOT=str(tmp_path),
                       PYTHONPATH=os.path.join(ROOT, 'test', 'fakes_moxing'))
    (tmp_path / 'raw' / 'n01440764').mkdir(parents=True)
    for name, words in (('raw', 'no shards (train-?????-of-?????, validation-'),
                        ('missing', 'cannot be listed')):
        completed, _ = run_npu('r1.8.0', *flags, f'--data_url=obs://{name}', **environment)
        assert completed.returncode == 1
        line = completed.stderr.splitlines()[-1]
        assert f'--data_url=obs://{name}' in line and words in line
        assert not os.path.exists(tmp_path / 'local')
    completed, events = run_npu('r1.8.0', '--train_steps=2', *flags, **environment)
    assert completed.returncode == 0, completed.stderr
    assert sessions(events, 'train')[0]['on_device']
    assert store.step_of(store.latest(str(tmp_path / 'results'))) == 2

    for name in os.listdir(tmp_path / 'local'):
        if name.startswith('train'):
            with open(tmp_path / 'local' / name, 'r+b') as file:
                # Beyond the records that are looked at before a run begins.
                file.seek(os.path.getsize(file.name) // 2)
                file.write(b'broken')
    shutil.rmtree(tmp_path / 'bucket')
    os.rename(tmp_path / 'local', tmp_path / 'bucket')
    completed, _ = run_npu('r1.8.0', '--train_steps=300', *flags, **environment)
    assert completed.returncode == 1, completed.stderr
    assert [event['status'] for event in event_log.read(str(tmp_path / 'results'))
            if event['event'] == 'run_stop'] == ['finished', 'failed']


def test_two_ranks_train_together_and_rank_0_evaluates_alone(run_npu, tmp_path):
    """Rank 1 was killed two steps after rank 0's last checkpoint, from which both go on.

    However many evaluations there are, a run compiles one training graph and one evaluation graph.
    """
    table = tmp_path / 'ranks.json'
    table.write_text(json.dumps({'server_list': [{'device': [
        {'device_id': str(rank), 'device_ip': '10.0.0.1', 'rank_id': str(rank)}
        for rank in range(2)]}]}))
    job = {'RANK_SIZE': '2', 'RANK_TABLE_FILE': str(table)}
    for rank, steps in (('0', 2), ('1', 4)):
        completed, _ = run_npu('r1.8.0', '--mode=train', f'--train_steps={steps}', RANK_ID=rank,
                               **job)
        assert completed.returncode == 0, completed.stderr
    recorded = {}
    for rank in '10':
        completed, recorded[rank] = run_npu(
            'r1.8.0', '--mode=train_and_eval', '--train_steps=8', '--steps_per_eval=2',
            '--save_checkpoints_steps=4', '--log_step_count_steps=2', RANK_ID=rank, **job)
        assert completed.returncode == 0, completed.stderr
        assert 'Resuming from step 2 of 8' in completed.stderr
        trained, = sessions(recorded[rank], 'train')
        assert trained['environment'].items() >= {**job, 'RANK_ID': rank}.items()
        assert trained['collectives'] and trained['settings']['hccl_timeout'] == 3600
    follower = tmp_path / 'run_rank_1'
    assert store.step_of(store.latest(str(follower))) == 8
    assert not (follower / 'results.jsonl').exists() and not (follower / 'archive').exists()
    assert not sessions(recorded['1'], 'eval')
    assert [event['step'] for event in event_log.read(str(tmp_path / 'run'))
            if event['event'] == 'eval' and event['weights'] == 'raw'] == [2, 4, 6, 8]

    evaluated, = sessions(recorded['0'], 'eval')
    assert not evaluated['collectives']
    assert evaluated['settings']['iterations_per_loop'] == 1
    evaluating, = sets_run(recorded['0'], 'eval')
    # Two kinds of weights, each restored by a graph of its own; four batches and the data's end.
    assert sorted(each['count'] for each in evaluating) == [4, 4, 8, 8, 9, 40]
    training, = sets_run(recorded['0'], 'train')
    assert sets_run(recorded['1'], 'train') == [training]
    step, = [each for each in training if 'IterationOp' in each['targets']]
    saved, = [each for each in training if each['feeds'] and each['fetches']]
    # Before each evaluation and at the end; nothing else runs as often as the steps.
    assert (step['count'], saved['count']) == (6, 3)
    assert not [each for each in training if each['count'] >= 6 and each is not step]
