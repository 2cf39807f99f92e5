"""test/train_*.sh: what reaches main.py, what they leave, and that nothing outlives them."""
import glob
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from conftest import ROOT
from conftest import TINY
import psutil
import pytest
import tensorflow.compat.v1 as tf

from checkpoints import store
from common.files import held
from config import run_config
from config import runtime_settings
from run_log import event_log

SCRIPTS = tuple(f'train_{kind}_{devices}.sh' for kind in ('full', 'performance')
                for devices in ('1p', '8p'))
JOB = ('JOB_ID', 'RANK_SIZE', 'RANK_ID', 'ASCEND_DEVICE_ID', 'RANK_TABLE_FILE', 'TF_CONFIG',
       'HCCL_CONNECT_TIMEOUT')

# In place of Python: writes down how main.py was called, and ends or stays as it is told.
STUB = '''#!{python}
import json, os, sys, time
if sys.argv[1].endswith('main.py'):
    rank = os.environ['RANK_ID']
    with open(os.path.join({folder!r}, rank + '.json'), 'w') as file:
        json.dump(dict(flags=sys.argv[2:], pid=os.getpid(), cwd=os.getcwd(),
                       environment=dict(os.environ),
                       cores=sorted(os.sched_getaffinity(0))), file)
    print('rank', rank, 'has begun', flush=True)
    ending = os.environ.get('STUB_ENDING_' + rank, 'exit 0')
    if ending == 'stay':
        time.sleep(600)
    elif ending.startswith('save'):
        time.sleep(1)
    print('last words of rank', rank, flush=True)
    sys.exit(int(ending.split()[1]))
elif 'npu_bridge' in sys.argv[-1]:
    print(os.environ.get('STUB_HAS_NPU', 'False'))
'''


@pytest.fixture
def stub(tmp_path):
    """A function from a script and its options to (CompletedProcess, what each rank was told)."""
    record = tmp_path / 'record'
    record.mkdir()
    path = tmp_path / 'stub python'
    path.write_text(STUB.format(python=sys.executable, folder=str(record)))
    path.chmod(0o755)

    def run_script(script, *options, **environment):
        process = begin(script, *options, PYTHON37=str(path), **environment)
        output, errors = process.communicate(timeout=60)
        completed = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
        return completed, told()

    def told():
        return {int(name[:-len('.json')]): json.loads((record / name).read_text())
                for name in sorted(os.listdir(record))}

    run_script.python, run_script.told = str(path), told
    return run_script


def begin(script, *options, cwd=None, **environment):
    """Starts a script as a user does: in a process group of its own, without a job around it."""
    inherited = {name: value for name, value in os.environ.items() if name not in JOB}
    return subprocess.Popen(
        ['bash', os.path.join(ROOT, 'test', script), *options], cwd=cwd,
        env={**inherited, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, start_new_session=True,
        preexec_fn=heed_signals)


def heed_signals():
    """Where the tests run in the background or under nohup, and a shell cannot undo that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def value_of(flags, name):
    values = [flag.split('=', 1)[1] for flag in flags if flag.startswith(f'--{name}=')]
    return values[-1] if values else None


# What reaches main.py ----------------------------------------------------------------------------

@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('option, flag', [
    ('--data_path=/some where/$(touch x)', '--data_dir=/some where/$(touch x)'),
    ('--model_name=efficientnet-b0', '--model_name=efficientnet-b0'),
    ('--network_name=efficientnet-b0', '--model_name=efficientnet-b0'),
    ('--mode=train', '--mode=train'),
    ('--learning_rate=.016', '--base_learning_rate=.016'),
    ('--learning_rate=1e-3', '--base_learning_rate=1e-3'),
    ('--loss_scale=dynamic', '--loss_scale=dynamic'), ('--loss_scale=128', '--loss_scale=128'),
    ('--batch_size=17', '--batch_size=17'),
    ('--train_steps=300', '--train_steps=300'),
    ('--train_epochs=.5', '--train_epochs=.5'),
    ('--ckpt_path=/runs/other', '--init_checkpoint=/runs/other'),
    ('--precision_mode=force_fp32', '--precision_mode=force_fp32'),
    ('--over_dump=True', '--over_dump=True'),
    ('--data_dump_flag=true', '--npu_dump_data=true'),
    ('--data_dump_step=0|5|10-20', '--dump_step=0|5|10-20'),
    ('--profiling=True', '--npu_profiling=True'),
    ('--autotune=True', '--npu_auto_tune=True')])
def test_each_option_reaches_main(stub, tmp_path, script, option, flag):
    few = ['--rank_size=2'] if '8p' in script else []
    completed, told = stub(script, '--data_path=/data', f'--output_path={tmp_path}/out', *few,
                           option)
    assert completed.returncode == 0, completed.stderr
    assert sorted(told) == list(range(2 if few else 1))
    for rank in told.values():
        assert flag in rank['flags']
        assert value_of(rank['flags'], 'model_dir').startswith(f'{tmp_path}/out/0/ckpt')


@pytest.mark.parametrize('option, flag, folder', [
    ('over_dump', 'dump_dir', 'overflow_dump'), ('data_dump_flag', 'dump_dir', 'data_dump'),
    ('profiling', 'profiling_dir', 'profiling'), ('autotune', 'tune_dir', 'tuning')])
def test_what_a_device_leaves_goes_to_output_path(stub, tmp_path, option, flag, folder):
    for value in ('True', 'False'):
        _, told = stub('train_full_1p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                       f'--{option}={value}')
        wanted = f'{tmp_path}/out/{folder}' if value == 'True' else None
        assert value_of(told[0]['flags'], flag) == wanted


def test_the_two_kinds(stub, tmp_path):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out', '--train_steps=500')
    full = stub('train_full_1p.sh', *options)[1][0]['flags']
    assert '--mode=train_and_eval' in full and value_of(full, 'log_step_count_steps') == '50'
    assert any(re.search(r'recipes/condconv_b0_8e\.flags$', flag) for flag in full)
    performance = stub('train_performance_1p.sh', *options)[1][0]['flags']
    assert f'--flagfile={ROOT}/recipes/performance.flags' in performance
    assert value_of(performance, 'save_checkpoints_steps') == '500'
    assert value_of(performance, 'iterations_per_loop') == '50'
    assert value_of(full, 'model_dir') != value_of(performance, 'model_dir')
    defaults = stub('train_performance_1p.sh', *options[:2])[1][0]['flags']
    assert value_of(defaults, 'train_steps') == '1000'
    epochs = stub('train_performance_1p.sh', *options[:2], '--train_epochs=2')[1][0]['flags']
    assert value_of(epochs, 'train_epochs') == '2' and value_of(epochs, 'train_steps') is None


def test_flags_of_main_come_last(stub, tmp_path):
    _, told = stub('train_full_1p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                   '--batch_size=8', '--', '--batch_size=9', '--eval_name=a b')
    assert told[0]['flags'][-2:] == ['--batch_size=9', '--eval_name=a b']


def test_paths_mean_what_they_mean_to_the_caller(stub, tmp_path):
    (tmp_path / 'here').mkdir()
    process = begin('train_full_1p.sh', '--data_path=data', '--output_path=-out',
                    cwd=tmp_path / 'here', PYTHON37=stub.python)
    assert process.wait(timeout=60) == 0
    rank = stub.told()[0]
    assert rank['cwd'] == str(tmp_path / 'here')
    assert value_of(rank['flags'], 'data_dir') == 'data'
    assert value_of(rank['flags'], 'model_dir') == f'{tmp_path}/here/-out/0/ckpt'
    assert (tmp_path / 'here' / '-out' / '0' / 'train_0.log').exists()


# The job -----------------------------------------------------------------------------------------

def test_the_environment_of_one_device(stub, tmp_path):
    _, told = stub('train_full_1p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                   ASCEND_DEVICE_ID='5', RANK_TABLE_FILE='/left/over', TF_CONFIG='{}', JOB_ID='7')
    environment = told[0]['environment']
    assert {name: environment.get(name) for name in JOB} == {
        'JOB_ID': '7', 'RANK_SIZE': '1', 'RANK_ID': '0', 'ASCEND_DEVICE_ID': '5',
        'RANK_TABLE_FILE': None, 'TF_CONFIG': None, 'HCCL_CONNECT_TIMEOUT': None}
    assert (tmp_path / 'out' / '5' / 'train_5.log').read_text().startswith('rank 0 has begun')
    assert value_of(told[0]['flags'], 'model_dir') == f'{tmp_path}/out/5/ckpt'


def test_the_device_that_only_device_id_names(stub, tmp_path):
    _, told = stub('train_full_1p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                   DEVICE_ID='5', CM_WORKER_SIZE='1')
    environment = told[0]['environment']
    assert environment['DEVICE_ID'] == '5' and 'ASCEND_DEVICE_ID' not in environment
    assert 'CM_WORKER_SIZE' not in environment
    assert (tmp_path / 'out' / '5' / 'train_5.log').exists()


def test_the_environment_of_eight_npus(stub, tmp_path):
    completed, told = stub('train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                           STUB_HAS_NPU='True', RANK_TABLE_FILE='/table')
    assert completed.returncode == 0, completed.stderr
    assert sorted(told) == list(range(8))
    for rank, call in told.items():
        environment = call['environment']
        assert {name: environment.get(name) for name in JOB} == {
            'JOB_ID': '10087', 'RANK_SIZE': '8', 'RANK_ID': str(rank),
            'ASCEND_DEVICE_ID': str(rank), 'RANK_TABLE_FILE': '/table', 'TF_CONFIG': None,
            'HCCL_CONNECT_TIMEOUT': '3600'}
        assert value_of(call['flags'], 'accelerator') == 'npu'
        assert (tmp_path / 'out' / str(rank) / f'train_{rank}.log').exists()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='there is one core')
@pytest.mark.parametrize('value', ['True', '1'])
def test_bound_ranks_share_out_the_cores_that_there_are(stub, tmp_path, value):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=2')
    cores = sorted(os.sched_getaffinity(0))
    _, told = stub('train_full_8p.sh', *options, f'--bind_core={value}')
    assert told[0]['cores'] + told[1]['cores'] == cores
    # To nproc this is the number of cores.
    _, again = stub('train_full_8p.sh', *options, f'--bind_core={value}', OMP_NUM_THREADS='1')
    assert again[0]['cores'] + again[1]['cores'] == cores
    assert abs(len(told[0]['cores']) - len(told[1]['cores'])) <= 1
    _, told = stub('train_full_8p.sh', *options, '--bind_core=0')
    assert told[0]['cores'] == told[1]['cores'] == cores


def test_more_ranks_than_cores_cannot_be_bound(stub, tmp_path):
    num_ranks = len(os.sched_getaffinity(0)) + 1
    completed, told = stub('train_full_8p.sh', '--data_path=/data', f'--rank_size={num_ranks}',
                           f'--output_path={tmp_path}/out', '--bind_core=True')
    assert completed.returncode == 1 and not told
    assert f'too few for {num_ranks} ranks' in completed.stderr


def test_the_second_of_two_npu_hosts(stub, tmp_path):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=4',
               '--hosts=10.0.0.1,10.0.0.2', '--host_index=1')
    completed, _ = stub('train_full_8p.sh', *options, STUB_HAS_NPU='True')
    assert completed.returncode == 1 and 'RANK_TABLE_FILE: not set' in completed.stderr
    completed, told = stub('train_full_8p.sh', *options, STUB_HAS_NPU='True',
                           RANK_TABLE_FILE='/table')
    assert completed.returncode == 0, completed.stderr
    assert {rank: call['environment']['ASCEND_DEVICE_ID'] for rank, call in told.items()} == {
        2: '0', 3: '1'}


def test_workers_without_npus(stub, tmp_path):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=2')
    for more in ((), ('--', '--accelerator=host'), ('--', '--accelerator', 'stock')):
        _, told = stub('train_performance_8p.sh', *options, *more, STUB_HAS_NPU=str(bool(more)))
        described = [json.loads(call['environment']['TF_CONFIG']) for call in told.values()]
        assert [description['task'] for description in described] == [
            {'type': 'worker', 'index': 0}, {'type': 'worker', 'index': 1}]
        workers = described[0]['cluster']['worker']
        assert more or value_of(told[0]['flags'], 'accelerator') == 'stock'
        assert described[1]['cluster'] == described[0]['cluster'] and len(set(workers)) == 2
        assert all(re.fullmatch(r'127\.0\.0\.1:\d+', worker) for worker in workers)


def test_which_of_the_hosts_this_is(stub, tmp_path):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=2')
    _, told = stub('train_full_8p.sh', *options, '--hosts=198.51.100.1,localhost')
    assert list(told) == [1]
    assert json.loads(told[1]['environment']['TF_CONFIG'])['cluster']['worker'] == [
        '198.51.100.1:23450', 'localhost:23451']
    completed, _ = stub('train_full_8p.sh', *options, '--hosts=127.0.0.1,localhost')
    assert completed.returncode == 1 and '2 of them are this machine' in completed.stderr
    assert '--host_index' in completed.stderr


# Mistakes ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize('option', ['-h', '--help'])
def test_help(stub, script, option):
    completed, told = stub(script, option)
    assert completed.returncode == 0 and not completed.stderr and not told
    for name in ('data_path', 'output_path', 'train_steps', 'train_epochs', 'batch_size',
                 'precision_mode', 'over_dump', 'data_dump_flag', 'data_dump_step', 'profiling',
                 'autotune', 'ckpt_path', 'model_name', 'mode', 'learning_rate', 'loss_scale'):
        assert f'--{name}=' in completed.stdout
    for name in 'rank_size', 'bind_core':
        assert (f'--{name}=' in completed.stdout) == ('8p' in script)


@pytest.mark.parametrize('options, words', [
    ([], '--data_path: not given'),
    (['--data_path=/data', '--output_path=~/out'], '--output_path=~/out'),
    (['--data_path='], '--data_path: empty'),
    (['--data_path=/data', '--batch_size=0'], '--batch_size=0'),
    (['--data_path=/data', '--batch_size=many'], '--batch_size=many'),
    (['--data_path=/data', '--train_steps=-3'], '--train_steps=-3'),
    (['--data_path=/data', '--train_epochs=0.0'], '--train_epochs=0.0'),
    (['--data_path=/data', '--train_epochs=1', '--train_steps=1'], 'mutually exclusive'),
    (['--data_path=/data', '--', '--model_dir=/x'], '--model_dir=/x after --: results are'),
    (['--data_path=/data', '--over_dump=yes'], '--over_dump=yes'),
    (['--data_path=/data', '--over_dump=True', '--data_dump_flag=True'], 'mutually exclusive'),
    (['--data_path=/data', '--data_dump_step=5|'], '--data_dump_step=5|'),
    (['--data_path=/data', '--precision_mode=fp8'], '--precision_mode=fp8'),
    (['--data_path=/data', '--rank_size=8'], '--rank_size: no such flag'),
    (['--data_path=/data', '--bind_core=True'], '--bind_core: no such flag'),
    (['--data_path=/data', '--learning_rate=0'], '--learning_rate=0: not'),
    (['--data_path=/data', '--learning_rate=e5'], '--learning_rate=e5: not'),
    (['--data_path=/data', '--loss_scale=some'], '--loss_scale=some: neither'),
    (['--data_path=/data', '--mode=test'], '--mode=test: unknown; choose one of train, eval'),
    (['--data_path=/data', '--model_name=a', '--network_name=b'], 'keep one of them'),
    (['--data_path=/data', '--kind=full'],
     'flags of main.py follow after " -- "'),
    (['--data_path=/data', '--weight_decay=0'],
     '--weight_decay: no such flag. --help lists the options; flags of main.py follow '
     'after " -- "'),
    (['--data_path=/data', '--PATH=/x'], '--PATH: no such flag'),
    (['--data_path=/data', '--profilings=True'], '--profilings: no such flag'),
    (['--data_path=/data', '--a[$(touch /tmp/x)]=1'], 'no such flag'),
    (['--data_path', '/data'], "unexpected argument '--data_path'"),
    (['/data'], "unexpected argument '/data'")])
def test_a_mistake_is_one_line(stub, tmp_path, options, words):
    completed, told = stub('train_full_1p.sh', f'--output_path={tmp_path}/out', *options)
    assert completed.returncode == 1 and not told
    line, = completed.stderr.splitlines()
    assert words in line and line.startswith('train_full_1p.sh: error: ')
    assert not completed.stdout and not (tmp_path / 'out').exists()


def test_a_measurement_is_one_of_training(stub, tmp_path):
    completed, told = stub('train_performance_1p.sh', '--data_path=/data', '--mode=eval')
    assert completed.returncode == 1 and not told and 'use train_full_1p.sh' in completed.stderr


@pytest.mark.parametrize('options, words', [
    (['--rank_size=two'], '--rank_size=two'),
    (['--rank_size=20000'], '--rank_size=20000: above the limit of 4096'),
    (['--rank_size=2', '--hosts=,'], '--hosts=,: not a list'),
    (['--rank_size=2', '--hosts=a,'], '--hosts=a,: not a list'),
    (['--rank_size=3', '--hosts=a,b'], 'not a multiple of the 2 hosts'),
    (['--rank_size=2', '--hosts=a,b', '--host_index=2'], '--host_index=2: not below 2'),
    (['--rank_size=2', '--hosts=a;b'], '--hosts=a;b'),
    (['--rank_size=2', '--hosts=198.51.100.1,198.51.100.2'], '0 of them are this machine')])
def test_a_mistake_about_ranks_is_one_line(stub, tmp_path, options, words):
    completed, told = stub('train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                           *options)
    assert completed.returncode == 1 and not told
    line, = completed.stderr.splitlines()
    assert words in line


def test_every_precision_mode_of_main_is_known(stub, tmp_path):
    for mode in runtime_settings.PRECISION_MODES:
        completed, told = stub('train_full_1p.sh', '--data_path=/data',
                               f'--output_path={tmp_path}/out', f'--precision_mode={mode}')
        assert completed.returncode == 0, completed.stderr
        assert f'--precision_mode={mode}' in told[0]['flags']


def test_an_output_path_that_cannot_be_made(stub, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    completed, told = stub('train_full_1p.sh', '--data_path=/data',
                           f'--output_path={tmp_path}/file/out')
    assert completed.returncode == 1 and not told
    assert f'{tmp_path}/file/out: cannot be created' in completed.stderr.splitlines()[-1]


@pytest.fixture
def clone(tmp_path):
    """What the scripts need of a clone that was not set up, on a machine without TensorFlow."""
    for folder in ('common', 'runtime', 'test'):
        (tmp_path / 'clone' / folder).mkdir(parents=True)
        for path in pathlib.Path(ROOT, folder).glob('*.*'):
            (tmp_path / 'clone' / folder / path.name).write_bytes(path.read_bytes())

    def run_script(*options, **environment):
        return subprocess.run(
            ['bash', str(tmp_path / 'clone' / 'test' / 'train_full_1p.sh'), *options],
            env={'PATH': '/usr/bin:/bin', **environment}, capture_output=True, text=True)

    return run_script


def test_without_python_the_cure_is_said(clone):
    """On a machine whose python3.7 is a shim that fails."""
    completed = clone('--data_path=/data')
    assert completed.returncode == 1
    assert 'run "bash setup.sh" once' in completed.stderr.splitlines()[-1]


def test_without_tensorflow_there_is_help_and_options_are_checked(clone):
    for environment in ({}, {'PYTHON37': '/no/such/python'}):
        completed = clone('--help', **environment)
        assert completed.returncode == 0
        assert completed.stdout.startswith('Usage: bash train_full_1p.sh --data_path=DIR')
        completed = clone('--data_path=/data', '--batch_size=0', **environment)
        assert completed.returncode == 1 and '--batch_size=0' in completed.stderr


def test_without_any_python_the_cure_is_said(clone, tmp_path):
    (tmp_path / 'bin').mkdir()
    for name in ('bash', 'basename', 'dirname'):
        (tmp_path / 'bin' / name).symlink_to(shutil.which(name))
    completed = clone('--data_path=/data', PATH=str(tmp_path / 'bin'))
    assert completed.returncode == 1
    line, = completed.stderr.splitlines()
    assert 'run "bash setup.sh" once' in line


def test_an_interpreter_that_does_not_exist(stub, tmp_path):
    process = begin('train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                    '--rank_size=2', PYTHON37='/no/such/python')
    _, errors = process.communicate(timeout=60)
    line, = errors.splitlines()
    assert process.returncode == 127 and '/no/such/python cannot be started (No such file' in line


# Endings -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('exit_code', [1, 2, 75])
def test_the_exit_code_is_that_of_main(stub, tmp_path, exit_code):
    completed, _ = stub('train_full_1p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                        STUB_ENDING_0=f'exit {exit_code}')
    assert completed.returncode == exit_code
    assert f'rank 0 ended with exit code {exit_code}' in completed.stderr
    assert 'last words of rank 0' in completed.stderr
    assert 'rank 0 has begun' in completed.stdout


def assert_gone(told, timeout_secs=10):
    pids = [call['pid'] for call in told.values()]
    deadline = time.monotonic() + timeout_secs
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < deadline, f'{pids} are still there'
        time.sleep(0.1)


def wait_for_ranks(stub, count):
    deadline = time.monotonic() + 20
    while True:
        try:
            told = stub.told()
        except ValueError:  # a record that is being written
            told = {}
        if len(told) == count:
            return told
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_rank_that_dies_ends_the_others(stub, tmp_path):
    start_secs = time.monotonic()
    completed, told = stub(
        'train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=4',
        STUB_ENDING_0='stay', STUB_ENDING_1='stay', STUB_ENDING_2='exit 9', STUB_ENDING_3='exit 0')
    assert time.monotonic() - start_secs < 15
    assert completed.returncode == 9
    assert 'rank 2 ended with exit code 9' in completed.stderr
    assert 'last words of rank 2' in completed.stderr
    assert f'{tmp_path}/out/2/train_2.log' in completed.stderr
    assert_gone(told)


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGKILL'])
def test_nothing_outlives_the_script(stub, tmp_path, name):
    process = begin('train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                    '--rank_size=3', PYTHON37=stub.python,
                    **{f'STUB_ENDING_{rank}': 'stay' for rank in range(3)})
    told = wait_for_ranks(stub, 3)
    number = getattr(signal, name)
    # A terminal's Ctrl-C reaches the whole group, a scheduler's signal the script alone.
    os.killpg(process.pid, number) if name == 'SIGINT' else process.send_signal(number)
    assert process.wait(timeout=15) == (-number if name == 'SIGKILL' else 128 + number)
    assert_gone(told)


@pytest.mark.parametrize('name', ['SIGINT', 'SIGHUP'])
def test_a_script_in_the_background_ignores_what_it_was_started_to_ignore(stub, tmp_path, name):
    """As a shell starts what ends in &, and nohup what is to stay."""
    command = ['bash', os.path.join(ROOT, 'test', 'train_full_1p.sh'), '--data_path=/data',
               f'--output_path={tmp_path}/out']
    process = subprocess.Popen(
        command, env={**os.environ, 'PYTHON37': stub.python, 'STUB_ENDING_0': 'save 0'},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_IGN))
    wait_for_ranks(stub, 1)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=15) == 0
    assert 'last words' in (tmp_path / 'out' / '0' / 'train_0.log').read_text()


def test_exit_codes_are_known_where_a_daemon_ignores_its_children(stub, tmp_path):
    process = subprocess.run(
        ['bash', os.path.join(ROOT, 'test', 'train_full_1p.sh'), '--data_path=/data',
         f'--output_path={tmp_path}/out'],
        env={**os.environ, 'PYTHON37': stub.python, 'STUB_ENDING_0': 'exit 7'},
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert process.returncode == 7


def test_a_reader_who_leaves_ends_nothing(stub, tmp_path):
    process = begin('train_full_1p.sh', '--data_path=/data', f'--output_path={tmp_path}/out',
                    PYTHON37=stub.python, STUB_ENDING_0='save 0')
    process.stdout.close()
    assert process.wait(timeout=15) == 0
    assert 'last words' in (tmp_path / 'out' / '0' / 'train_0.log').read_text()


def test_a_log_of_before_is_kept(stub, tmp_path):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out')
    stub('train_full_1p.sh', *options, STUB_ENDING_0='exit 3')
    stub('train_full_1p.sh', *options)
    assert 'last words' in (tmp_path / 'out' / '0' / 'train_0.log.previous').read_text()


def test_a_measurement_begins_anew_and_a_training_does_not(stub, tmp_path):
    options = ('--data_path=/data', f'--output_path={tmp_path}/out')
    for name in ('ckpt', 'ckpt_perf'):
        (tmp_path / 'out' / '0' / name).mkdir(parents=True)
        (tmp_path / 'out' / '0' / name / 'checkpoint').write_text('')
    stub('train_full_1p.sh', *options)
    stub('train_performance_1p.sh', *options)
    assert (tmp_path / 'out' / '0' / 'ckpt' / 'checkpoint').exists()
    assert not (tmp_path / 'out' / '0' / 'ckpt_perf').exists()


# Real runs ---------------------------------------------------------------------------------------

SMALL = ('--', *(flag for flag in TINY if not flag.startswith(('--model_name', '--batch_size'))))
NETWORK = ('--model_name=efficientnet-condconv-b0-4e', '--batch_size=32')


def figures(output_dir, case):
    """CaseName.log as a dict; the result lines stand in the log of rank 0, too."""
    path, = (output_dir / '0').glob(f'efficientnet-condconv-b0-4e*_bs32_{case}.log')
    found = dict(line.split(' = ') for line in path.read_text().splitlines())
    assert found['CaseName'] == path.stem
    return found


def assert_results(output_dir, output, case, model_dir):
    found = figures(output_dir, case)
    for line in (f"Final Performance images/sec : {found['ActualFPS']}",
                 f"Final Train Accuracy : {found['TrainAccuracy']}",
                 f"E2E Training Duration sec : {found['E2ETrainingTime']}"):
        assert line in output.splitlines()
    assert float(found['ActualFPS']) > 0
    # In milliseconds, for the batches of all ranks.
    assert float(found['TrainingTime']) * float(found['ActualFPS']) == pytest.approx(
        1000 * 32 * int(found['RankSize']), rel=1e-3)
    assert 0 <= float(found['TrainAccuracy']) <= 1
    assert int(found['E2ETrainingTime']) > 0
    log = (output_dir / '0' / 'train_0.log').read_text()
    lines = re.findall(r'^INFO:tensorflow:loss = [\d.]+, step = \d+$', log, re.MULTILINE)
    num_logged = sum(event['event'] == 'train' for event in event_log.read(str(model_dir)))
    assert len(lines) == num_logged >= 10
    assert re.search(r'^INFO:tensorflow:global_step/sec: [\d.]+$', log, re.MULTILINE)
    return found


def test_a_rank_that_was_interrupted_leaves_the_others_time_to_save(stub, tmp_path):
    """But not for ever: all take part in what rank 0 saves."""
    completed, _ = stub(
        'train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=3',
        STUB_ENDING_0='save 143', STUB_ENDING_1='exit 143', STUB_ENDING_2='save 143')
    assert completed.returncode == 143
    for rank in (0, 2):
        assert f'last words of rank {rank}' in (
            tmp_path / 'out' / str(rank) / f'train_{rank}.log').read_text()
    stub('train_full_8p.sh', '--data_path=/data', f'--output_path={tmp_path}/out', '--rank_size=2',
         STUB_ENDING_0='exit 143', STUB_ENDING_1='stay')
    assert 'last words' not in (tmp_path / 'out' / '1' / 'train_1.log').read_text()


def test_a_measurement_does_not_remove_a_folder_in_which_somebody_trains(stub, tmp_path):
    model_dir = tmp_path / '0' / 'ckpt_perf'
    model_dir.mkdir(parents=True)
    options = ('train_performance_1p.sh', '--data_path=/data', f'--output_path={tmp_path}')
    with held(str(model_dir)):
        completed, told = stub(*options)
        assert completed.returncode == 1 and f'process {os.getpid()} on' in completed.stderr
        assert not told and model_dir.exists()
    assert stub(*options)[0].returncode == 0 and not model_dir.exists()


@pytest.mark.slow
def test_a_full_run_on_one_device(digits_dir, tmp_path):
    process = begin('train_full_1p.sh', f'--data_path={digits_dir}', f'--output_path={tmp_path}',
                    '--train_steps=20', *NETWORK, *SMALL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = assert_results(tmp_path, output, '1p_acc', tmp_path / '0' / 'ckpt')
    assert found['RankSize'] == '1'
    assert 'ema weights: top-1 ' + found['TrainAccuracy'] in output
    process = begin('train_full_1p.sh', f'--data_path={digits_dir}', f'--output_path={tmp_path}',
                    '--mode=eval', *NETWORK, *SMALL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert 'ema weights: top-1 ' + found['TrainAccuracy'] in output
    evaluations = [event for event in event_log.read(str(tmp_path / '0' / 'ckpt'))
                   if event['event'] == 'eval' and event['weights'] == 'ema']
    assert len({event['time'] for event in evaluations}) > 1


@pytest.mark.slow
def test_a_mistake_that_main_finds_is_one_line(digits_dir, tmp_path):
    process = begin('train_full_1p.sh', '--data_path=/no/such', f'--output_path={tmp_path}',
                    '--train_steps=20', *NETWORK, *SMALL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    line, = errors.splitlines()
    assert '/no/such: does not exist' in line


@pytest.mark.slow
def test_a_full_run_on_two_workers_survives_the_death_of_one(digits_dir, tmp_path):
    options = ('train_full_8p.sh', f'--data_path={digits_dir}', f'--output_path={tmp_path}',
               '--rank_size=2', '--train_steps=40', *NETWORK, *SMALL, '--save_checkpoints_steps=5',
               '--steps_per_eval=16')
    if len(os.sched_getaffinity(0)) > 1:
        options = (options[0], '--bind_core=True', *options[1:])
    process = begin(*options)
    model_dir = str(tmp_path / '0' / 'ckpt')
    deadline = time.monotonic() + 200
    while not os.path.isdir(model_dir) or store.step_of(store.latest(model_dir)) < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    victim, = [child for child in children
               if child.environ().get('RANK_ID') == '1' and 'main.py' in ' '.join(child.cmdline())]
    victim.kill()
    killed_secs = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed_secs < 10
    assert process.returncode == 128 + signal.SIGKILL and 'rank 1 ended' in errors
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE
                   for child in children)

    process = begin(*options)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert re.search(r'Resuming from step \d\d? of 40', output)
    found = assert_results(tmp_path, output, '2p_acc', model_dir)
    assert found['RankSize'] == '2'
    assert ('_bindcore_bs32_' in found['CaseName']) == ('--bind_core=True' in options)
    assert store.step_of(store.latest(model_dir)) == 40
    evaluated = {event['step'] for event in event_log.read(model_dir) if event['event'] == 'eval'}
    assert {32, 40} <= evaluated
    types = {node.op for path in glob.glob(f'{model_dir}/eval_raw/events*')
             for event in tf.train.summary_iterator(path) if event.graph_def
             for node in tf.GraphDef.FromString(event.graph_def).node}
    # Rank 0 evaluates alone: the other one would never answer.
    assert 'Conv2D' in types and not [kind for kind in types if 'Collective' in kind]
    assert not [name for name in os.listdir(model_dir) if name.startswith('tmp_')]


@pytest.mark.slow
def test_a_measurement_on_two_hosts(digits_dir, tmp_path):
    """On images that are wider than high."""
    processes = [begin(
        'train_performance_8p.sh', f'--data_path={digits_dir}', f'--output_path={tmp_path}',
        '--rank_size=2', '--hosts=127.0.0.1,127.0.0.2', f'--host_index={index}', '--train_steps=20',
        *NETWORK, *SMALL, '--input_image_size=24x40') for index in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_results(tmp_path, outputs[0][0], '2p_perf', tmp_path / '0' / 'ckpt_perf')
    assert run_config.load(str(tmp_path / '0' / 'ckpt_perf')).image_size == (24, 40)
    assert 'Final' not in outputs[1][0]
