"""Options of test/train_*.sh with anything in them: handed on as they are, never evaluated."""
import json
import os
import subprocess
import sys

from conftest import ROOT
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies
import pytest

# In place of Python: adds what it is called with to the end of a file.
STUB = '''#!{python} -S
import json, sys
with open({record!r}, 'a') as file:
    file.write(json.dumps(sys.argv[1:]) + '\\n')
'''
# What a shell would act on, and letters between.
TEXTS = strategies.lists(strategies.one_of(
    strategies.sampled_from([
        ' ', '"', "'", '\n', '\t', '\\', '-', '--', '=', '*', '?', '[a]', '{a,b}', '~', '$HOME',
        '$(touch EVIL)', '`touch EVIL`', '; touch EVIL;', '| touch EVIL', '&', '> EVIL', '< x', '#',
        '!', '$((1/0))', 'a[$(touch EVIL)]', '%s', '%n', '\x1b', 'é', '火', '\u202e', '../']),
    strategies.characters(blacklist_categories=('Cs',), blacklist_characters='\0')),
    min_size=1, max_size=8).map(''.join).filter(lambda text: not text.startswith('EVIL'))
OPTIONS = strategies.tuples(
    strategies.sampled_from(['train_full_1p.sh', 'train_performance_1p.sh']),
    strategies.fixed_dictionaries({'data_path': TEXTS}),
    strategies.dictionaries(strategies.sampled_from(['model_name', 'ckpt_path']), TEXTS),
    strategies.lists(TEXTS, max_size=3))
# Options whose values are checked; with anything in them the script ends with one line.
CHECKED = strategies.tuples(
    strategies.sampled_from([
        'batch_size', 'train_steps', 'train_epochs', 'precision_mode', 'over_dump', 'profiling',
        'data_dump_flag', 'data_dump_step', 'autotune', 'rank_size', 'hosts', 'host_index']), TEXTS)
FLAG_OF = {'data_path': 'data_dir', 'model_name': 'model_name', 'ckpt_path': 'init_checkpoint'}
QUIETLY = dict(deadline=None, derandomize=True, database=None,
               suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder to start the scripts in, whose name is none that a shell likes."""
    folder = tmp_path_factory.mktemp('options') / "it's a \"place\" $(touch EVIL)"
    folder.mkdir()
    stub = folder / 'stub python'
    stub.write_text(STUB.format(python=sys.executable, record=str(folder / 'record')))
    stub.chmod(0o755)
    return folder


def run(place, script, *options):
    """CompletedProcess of a script, and what main.py was called with."""
    record = place / 'record'
    record.write_text('')
    completed = subprocess.run(
        ['bash', os.path.join(ROOT, 'test', script), f'--output_path={place}/out', *options],
        cwd=str(place), env={**os.environ, 'PYTHON37': str(place / 'stub python')},
        capture_output=True, timeout=60)
    assert sorted(os.listdir(str(place))) in (
        ['out', 'record', 'stub python'], ['record', 'stub python']), 'a value was evaluated'
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    return completed, [call[1:] for call in calls if call[0].endswith('main.py')]


@pytest.mark.slow
@settings(max_examples=30, **QUIETLY)
@given(OPTIONS)
def test_values_arrive_as_they_were_given(place, case):
    script, required, optional, main_flags = case
    values = {**required, **optional}
    completed, calls = run(place, script, *(f'--{name}={value}' for name, value in values.items()),
                           '--', *main_flags)
    assert completed.returncode == 0, completed.stderr
    flags, = calls
    for name, value in values.items():
        assert f'--{FLAG_OF[name]}={value}' in flags
    assert flags[len(flags) - len(main_flags):] == main_flags


@pytest.mark.slow
@settings(max_examples=60, **QUIETLY)
@given(CHECKED)
def test_what_is_no_value_of_an_option_is_one_line(place, case):
    name, value = case
    completed, calls = run(place, 'train_full_8p.sh', '--data_path=/data', '--rank_size=1',
                           f'--{name}={value}')
    if calls:  # by chance it was one, such as 7
        assert completed.returncode == 0 and value.isascii()
        return
    assert completed.returncode == 1
    assert completed.stderr.startswith(b'train_full_8p.sh: error: ')
    assert b'line ' not in completed.stderr.split(b'\n')[0].replace(value.encode(), b'')


@pytest.mark.parametrize('script', ['setup.sh', 'quickstart.sh'])
@pytest.mark.parametrize('option', ['--no such', '-$(touch EVIL)', '-`touch EVIL`', "-'", '-\n'])
def test_other_scripts_evaluate_nothing(place, script, option):
    completed = subprocess.run(['bash', os.path.join(ROOT, script), option], cwd=str(place),
                               capture_output=True, timeout=60)
    assert completed.returncode == 2 and b'unknown option' in completed.stderr
    assert not os.path.exists(str(place / 'EVIL'))


def test_the_quick_start_has_one_folder(place):
    completed = subprocess.run(['bash', os.path.join(ROOT, 'quickstart.sh'), 'my', 'folder'],
                               cwd=str(place), capture_output=True, timeout=60)
    assert completed.returncode == 2 and b'2 arguments given; give one OUTPUT_DIR' in (
        completed.stderr)
    assert not os.path.exists(str(place / 'my'))
