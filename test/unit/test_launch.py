"""What the launcher of test/train_*.sh decides; its processes, with a shell in place of main.py."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from common.errors import UserError
from config import runtime_settings
from config import settings
from runtime import launch_options
from runtime import main_flags
from runtime import placement
from runtime import precision
from runtime import supervisor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SINGLE = launch_options.LaunchScript('single.sh', 'Trains alone.', 'full', 1)
SEVERAL = launch_options.LaunchScript('several.sh', 'Trains together.', 'performance', 8, '1000')
DATA = '--data_path=/data'


# Options -----------------------------------------------------------------------------------------

def test_the_launcher_needs_the_standard_library_only():
    script = ("import sys, runtime.launch; print(sorted(sys.modules.keys() & "
              "{'absl', 'numpy', 'tensorflow'}))")
    assert subprocess.run([sys.executable, '-c', script], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE).stdout == '[]\n'


def test_options_keep_what_was_given():
    options = launch_options.parse(SEVERAL, [
        DATA, '--model_name==a=\n', '--profiling=1', '--autotune=false', '--rank_size=4', '--',
        '--', '--help'])
    assert options.model_name == '=a=\n' and options.rank_size == 4
    assert options.profiling == '1' and options.autotune == ''
    assert options.main_flags == ('--', '--help')


def test_steps_have_a_default_unless_epochs_are_given():
    assert launch_options.parse(SEVERAL, [DATA]).train_steps == '1000'
    assert launch_options.parse(SEVERAL, [DATA, '--train_epochs=2']).train_steps == ''
    assert launch_options.parse(SINGLE, [DATA]).train_steps == ''


def test_help_comes_first_unless_a_mistake_does():
    assert launch_options.parse(SINGLE, ['--batch_size=none', '-h', 'word']) is None
    with pytest.raises(UserError, match="^unexpected argument 'word'"):
        launch_options.parse(SINGLE, ['word', '--help'])


@pytest.mark.parametrize('words, message', [
    (['--=x'], '--: no such flag'),
    (['--main_flags=x'], '--main_flags: no such flag. --help lists the options; flags of main.py'),
    (['--rank_size=2'], '--rank_size: no such flag.'),
    ([DATA, '--network_name=b0', '--network_name=b1'], '--network_name=b1: names of one'),
    (['--tpu=x'], '--tpu: a flag for TPUs; leave it out.'),
    ([DATA, '--batch_size=1\n'], '--batch_size=1\n: not'),
    ([DATA, '--batch_size=1234567890'], '--batch_size=1234567890'),
    ([DATA, '--train_steps=١'], '--train_steps=١'),
    ([DATA, '--train_epochs=1.'], '--train_epochs=1.'),
    ([DATA, '--data_dump_step=1-2-3'], '--data_dump_step=1-2-3'),
    ([DATA, '--', '-model_dir'], '-model_dir after --')])
def test_values_that_are_refused(words, message):
    with pytest.raises(UserError) as refusal:
        launch_options.parse(SINGLE, words)
    assert message in str(refusal.value)


# Flags of main.py --------------------------------------------------------------------------------

def compose(kind='full', *words, is_on_npus=False):
    script = SINGLE if kind == 'full' else SEVERAL
    return main_flags.compose(kind, launch_options.parse(script, [DATA, *words]), ROOT, '/out',
                              '/out/0/ckpt', is_on_npus)


def test_flags_in_their_order():
    assert compose('performance', '--over_dump=True', '--', '-x', is_on_npus=True) == [
        f'--flagfile={ROOT}/recipes/condconv_b0_8e.flags', '--data_dir=/data',
        '--model_dir=/out/0/ckpt', '--accelerator=npu',
        f'--flagfile={ROOT}/recipes/performance.flags', '--iterations_per_loop=100',
        '--save_checkpoints_steps=1000',
        '--log_step_count_steps=100', '--train_steps=1000', '--over_dump=True',
        '--dump_dir=/out/overflow_dump', '-x']


def test_a_network_without_a_recipe():
    flags = compose('full', '--model_name=efficientnet-b7')
    assert flags[0] == '--data_dir=/data' and '--accelerator=stock' in flags


@pytest.mark.parametrize('steps, every', [('5', 1), ('10', 1), ('29', 2), ('100000', 100)])
def test_ten_measurements_or_more(steps, every):
    assert f'--log_step_count_steps={every}' in compose('full', f'--train_steps={steps}')


def test_the_recipe_is_that_of_the_network_that_main_trains():
    assert main_flags.DEFAULT_MODEL_NAME == settings.ModelConfig().model_name
    assert main_flags.DEFAULT_BATCH_SIZE == settings.DataConfig().batch_size
    epochs, = (field for field in settings.by_group()['run'] if field.name == 'train_epochs')
    assert f'default: {main_flags.DEFAULT_EPOCHS}, ' in epochs.metadata['help']
    for name in ('b0', 'condconv_b0_4e', 'condconv_b0_8e', 'condconv_b0_8e_depth'):
        with open(f'{ROOT}/recipes/{name}.flags') as file:
            assert f'--batch_size={main_flags.RECIPE_BATCH_SIZE}\n' in file.readlines()
    known = {
        field for group in vars(settings).values() if hasattr(group, '__dataclass_fields__')
        for field in group.__dataclass_fields__}
    flags = compose('full', '--over_dump=1', '--profiling=1', '--autotune=1', '--data_dump_step=1',
                    '--train_steps=1', '--batch_size=1', '--ckpt_path=x',
                    '--precision_mode=force_fp32')
    assert {flag[2:].split('=')[0] for flag in flags} - {'flagfile'} <= known


def test_modes_that_need_loss_scaling():
    assert [name for name, mode in precision.MODES.items() if not mode.makes_float16] == [
        'allow_mix_precision_bf16', 'allow_fp32_to_bf16', 'force_fp32', 'must_keep_origin_dtype']
    assert [name for name, mode in precision.MODES.items() if mode.on_stock == precision.MIXED] == [
        'allow_mix_precision', 'allow_mix_precision_fp16']
    assert runtime_settings.PRECISION_MODES == tuple(precision.MODES)


# Places ------------------------------------------------------------------------------------------

def test_hosts_share_the_ranks():
    place = placement.place(6, 'a,b,c', '1')
    assert place.ranks == range(2, 4)
    assert place.addresses() == [
        'a:23450', 'a:23451', 'b:23452', 'b:23453', 'c:23454', 'c:23455']


def test_this_host_is_found(monkeypatch):
    assert placement.place(2, '198.51.100.1,127.0.0.1', '').ranks == range(1, 2)
    monkeypatch.setattr(socket, 'gethostname', lambda: 'of-no-address')
    assert placement.place(2, 'of-no-address,198.51.100.1', '').ranks == range(0, 1)


def test_ports_are_free_and_in_a_row(monkeypatch):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        monkeypatch.setattr(placement, '_FREE_PORTS', [port - 1])
        with pytest.raises(UserError, match='no 2 consecutive free ports'):
            placement.Placement(2, range(2)).addresses()


@pytest.mark.parametrize('cores, num_ranks, shares', [
    ({4, 1, 9}, 2, [{1}, {4, 9}]), ({0, 1, 2, 3}, 2, [{0, 1}, {2, 3}])])
def test_cores_are_shared_out(monkeypatch, cores, num_ranks, shares):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: cores)
    place = placement.Placement(8, range(3, 3 + num_ranks))
    assert placement.share_cores(place) == {3 + index: share for index, share in enumerate(shares)}


def test_environments(monkeypatch):
    for name in ('JOB_ID', 'DEVICE_ID', 'ASCEND_DEVICE_ID', 'ASCEND_GLOBAL_LOG_LEVEL'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('JOB_ID', '')
    monkeypatch.setenv('TF_CONFIG', '{}')
    monkeypatch.setenv('RANK_TABLE_FILE', '/table')
    monkeypatch.setenv('HCCL_EXEC_TIMEOUT', '7')
    single = placement.single_environment('5')
    assert 'TF_CONFIG' not in single and 'RANK_TABLE_FILE' not in single
    assert single['ASCEND_DEVICE_ID'] == '5' and single['JOB_ID'] == '10087'
    assert single['ASCEND_GLOBAL_LOG_LEVEL'] == '3' and 'HCCL_CONNECT_TIMEOUT' not in single
    npu = placement.npu_environment(placement.place(4, 'a,b', '1'), 3)
    assert 'TF_CONFIG' not in npu and npu['RANK_TABLE_FILE'] == '/table'
    assert (npu['RANK_ID'], npu['RANK_SIZE'], npu['ASCEND_DEVICE_ID']) == ('3', '4', '1')
    assert (npu['HCCL_CONNECT_TIMEOUT'], npu['HCCL_EXEC_TIMEOUT']) == ('3600', '7')
    worker = placement.worker_environment(['a:1', 'b:2'], 1)
    assert json.loads(worker['TF_CONFIG']) == {
        'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 1}}
    assert 'ASCEND_DEVICE_ID' not in worker


# Processes ---------------------------------------------------------------------------------------

def make_rank(folder, number, script):
    return supervisor.Rank(number, ['bash', '-c', script], dict(os.environ),
                           str(folder / str(number) / f'train_{number}.log'))


def test_ranks_that_all_succeed(tmp_path, capfd):
    ranks = [make_rank(tmp_path, rank, f'echo words of {rank}; exit 0') for rank in range(2)]
    supervisor.run(ranks)
    assert capfd.readouterr() == ('words of 0\n', '')
    supervisor.run(ranks)
    for name in ('train_1.log', 'train_1.log.previous'):
        assert (tmp_path / '1' / name).read_text() == 'words of 1\n'


@pytest.mark.parametrize('script, exit_code', [('exit 9', 9), ('kill -KILL $$', 137)])
def test_a_rank_that_fails_ends_the_others(tmp_path, capfd, script, exit_code):
    start_secs = time.monotonic()
    with pytest.raises(supervisor.RankError) as failure:
        supervisor.run([make_rank(tmp_path, 0, 'trap "" TERM; sleep 50; sleep 50'),
                        make_rank(tmp_path, 1, f'seq 100; {script}')])
    assert time.monotonic() - start_secs < 10
    assert failure.value.exit_code == exit_code
    assert str(failure.value) == (f'rank 1 ended with exit code {exit_code}; the end of its log is '
                                  f'above ({tmp_path}/1/train_1.log)')
    assert capfd.readouterr().err.split() == [str(number) for number in range(81, 101)]


def test_the_last_error_of_a_log_is_in_the_message(tmp_path, capfd):
    with pytest.raises(supervisor.RankError, match='^rank 0 ended with exit code 3; b: error: two'):
        supervisor.run([make_rank(
            tmp_path, 0, 'echo a: error: one; echo b: error: two; echo more; exit 3')])
    assert not capfd.readouterr().err


def test_what_a_rank_leaves_running_ends_with_it(tmp_path):
    supervisor.run([make_rank(tmp_path, 0, f'sleep 600 & echo $! > {tmp_path}/pid')])
    pid = int((tmp_path / 'pid').read_text())
    # A zombie is left where nobody reaps orphans.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / '0').write_text('in the way')
    with pytest.raises(UserError, match='train_0.log: cannot be written'):
        supervisor.run([make_rank(tmp_path, 0, 'exit 0')])


def test_ranks_are_told_to_save_when_the_launcher_is_killed(tmp_path):
    """By the watcher, as nobody else is left."""
    launcher = os.fork()
    if not launcher:
        supervisor.run([make_rank(
            tmp_path, 0, f'trap "echo saved > {tmp_path}/saved; exit" TERM; '
            f'touch {tmp_path}/begun; while true; do sleep 0.1; done')])
        os._exit(1)
    await_file(tmp_path / 'begun')
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    await_file(tmp_path / 'saved')


def await_file(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
