"""What users and their scripts hold on to stays: flags, files, events, exit codes, commands.

test/golden/own/surface.json has all of it. A new flag or a changed default shows as a difference,
and `pytest --regenerate_goldens` writes the file again.
"""
import json
import os
import re
import shlex
import subprocess
import xml.etree.ElementTree

import pytest

from run_log import event_log

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAMS = (
    'main.py', 'export_model.py', 'predict.py', 'inspect_model_architecture.py',
    'boot_modelarts.py', 'dataset.create', 'dataset.inspect', 'dataset.sample', 'training.report',
    'training.modelzoo', 'weights.convert', 'export.offline')
SCRIPTS = ('test/train_full_1p.sh', 'test/train_full_8p.sh', 'test/train_performance_1p.sh',
           'test/train_performance_8p.sh', 'setup.sh', 'quickstart.sh', 'test/run_tests.sh')
# Every file that is run, for its --help.
ENTRY_POINTS = tuple(
    path for path in subprocess.run(
        ['git', 'grep', '-l', "__name__ == '__main__'", '--', '*.py', ':!test'], cwd=ROOT,
        check=True, stdout=subprocess.PIPE, text=True).stdout.split())
# Those that are over before any work is done.
SHORT_COMMANDS = tuple(
    [program, *words] for program in PROGRAMS
    for words in ([], ['--help'], ['--no_such_flag=1'], ['--no_such_flag'])) + (
    ['main.py', 'word'], ['main.py', '--model_dir=/m', '--data_dir=/no/such/folder'],
    ['main.py', '--batch_size=nan'], ['main.py', '--batch_size=0'],
    ['main.py', '--flagfile=/no/such/file'],
    ['inspect_model_architecture.py', '--compare=all'],
    ['predict.py', '--saved_model=/no/such/model', 'a.jpg'],
    ['export_model.py', '--ckpt_dir=/no/such/run', '--output_dir=/tmp'])
SHORT_SCRIPTS = tuple(
    [script, *words] for script in SCRIPTS
    for words in (['--help'], ['--no_such_option=1'], ['--no_such_option'])
    # These hand what they do not know to pytest.
    if not (script == 'test/run_tests.sh' and words != ['--help'])) + tuple(
    [script] for script in SCRIPTS[:4])


@pytest.fixture(scope='module')
def surface(golden_dir, regenerates_goldens):
    """Part -> what was written down of it; what tests put in there is written down anew."""
    path = os.path.join(golden_dir, 'own', 'surface.json')
    recorded = {}
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            recorded = json.load(file)
    yield recorded
    if regenerates_goldens:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(recorded, file, indent=1, ensure_ascii=False, sort_keys=True)
            file.write('\n')


@pytest.fixture
def check(surface, regenerates_goldens):
    """Function of a part's name and what it is now: compares it with what was written down."""
    def compare(name, found):
        if regenerates_goldens:
            surface[name] = found
        assert found == surface[name]

    return compare


def flags_of(programs, program):
    """Flag -> its default and its help, of those that --help lists."""
    text = programs.run(program, '--helpxml').stdout
    flags = [flag for flag in xml.etree.ElementTree.fromstring(text).iter('flag')
             if flag.findtext('key') == 'yes']
    return {flag.findtext('name'): [flag.findtext('default'), flag.findtext('meaning')]
            for flag in flags}


@pytest.mark.parametrize('program', PROGRAMS)
def test_every_flag_has_its_default_and_its_help(programs, check, program):
    found = flags_of(programs, program)
    assert found
    check(f'flags of {program}', found)


@pytest.mark.parametrize('path', ENTRY_POINTS)
def test_every_program_explains_all_of_its_flags(programs, path):
    with open(os.path.join(ROOT, path)) as file:
        names = re.findall(r"(?:DEFINE_\w+|add_argument)\(\s*'(?:--)?(\w+)'", file.read())
    program = path if os.sep not in path else path[:-len('.py')].replace(os.sep, '.')
    for flag in ('--help', '--helpfull'):
        shown = programs.run(program, flag)
        assert shown.returncode == 0 and 'Traceback' not in shown.stderr, shown.stderr
        assert set(names) <= set(re.findall(r'--(?:\[no\])?(\w+)', shown.stdout))
        assert not re.search(r'as\s+above|As\s+of\s+main', shown.stdout)


def test_a_contest_explains_the_flags_that_its_module_defines(programs):
    assert '--pytorch_python' in programs.run('benchmarks.train_step', '--help').stdout


def test_a_flag_that_does_not_exist_is_refused_with_what_to_do(programs):
    refused = programs.run('predict.py', '--use_tpu', '--saved_model=x', 'a.jpg')
    assert (refused.returncode, refused.stderr.strip()) == (
        2, 'predict.py: error: --use_tpu: a flag for TPUs; leave it out. See --helpfull for every '
        'flag.')


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_can_be_executed(script):
    assert os.access(os.path.join(ROOT, script), os.X_OK)


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_has_its_options(check, script):
    completed = subprocess.run(['bash', script, '--help'], cwd=ROOT, check=True, text=True,
                               stdout=subprocess.PIPE)
    check(f'help of {script}', completed.stdout.splitlines())


def shape(value):
    """The keys of JSON, with the type of what is not an object."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return type(value).__name__


@pytest.mark.slow
def test_config_json_has_its_keys(check, trained_dir):
    with open(os.path.join(trained_dir, 'config.json')) as file:
        check('config.json', shape(json.load(file)))


@pytest.mark.slow
def test_a_run_writes_the_events_that_it_always_wrote(check, trained_dir):
    found = {}
    for event in event_log.read(trained_dir):
        found.setdefault(event['event'], {}).update(shape(event))
    check('results.jsonl of a run', found)


def test_events_have_their_fields(check):
    check('events', {name: {key: [field.kind, field.always] for key, field in fields.items()}
                     for name, (_, fields) in event_log.EVENTS.items()})


def test_exit_codes_of_programs(programs, check):
    check('exit codes of programs', {
        ' '.join(command): programs.run(*command).returncode for command in SHORT_COMMANDS})


def test_exit_codes_of_scripts(check):
    check('exit codes of scripts', {
        ' '.join(command): subprocess.run(
            ['bash', *command], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL).returncode for command in SHORT_SCRIPTS})


def test_commands_that_the_readme_had_still_parse(programs, surface):
    """The list is that of the README before the folders moved: only ever add to it."""
    for command in surface['commands']:
        _, *words = shlex.split(command)
        program = words.pop(0)
        if program == '-m':
            program = words.pop(0)
        names = {re.sub('^--(no)?', '', word.split('=')[0])
                 for word in words if word.startswith('--')} - {'flagfile'}
        text = programs.run(program, '--helpfull').stdout
        known = set(re.findall(r'^\s+--(?:\[no\])?(\w+)', text, re.MULTILINE))
        assert known and names <= known, command
