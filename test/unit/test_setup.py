"""setup.sh and run_tests.sh as a user runs them, in a copy of the repository's top.

Stubs stand in for Python, so that nothing is downloaded: what matters is which interpreter gets
chosen, when .venv is remade and what reaches pip. The real installation is proven by each CI run.
"""
from glob import glob
import os
import shutil
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILES = ('setup.sh', 'test/run_tests.sh', *(
    f'requirements{name}.{suffix}' for name in ('', '-dev', '-export', '-report')
    for suffix in ('txt', 'lock')))

STUB = r'''#!/bin/bash
case "$*" in
    *version_info*) printf '%s\n' {version} "$0" "$0" ;;
    '-c import tensorflow;'*) [[ '{tensorflow}' ]] && echo '{tensorflow}' ;;
    '-m venv '*) mkdir -p "${{!#}}/bin" && cp "$0" "${{!#}}/bin/python" ;;
    '-m '*) echo "$*" >>'{calls}'; echo 'WARNING: noise' >&2; sleep {delay}; [[ ! -e '{fault}' ]] ;;
    '-c import PIL' | '-c import tqdm') exit 1 ;;
esac
'''

# Where setup.sh would find a Python 3.7 of this machine, whatever PATH and HOME say.
PYTHONS_OF_THIS_MACHINE = [
    path for folder in ('/bin', '/*/bin', '/usr/*/bin', '/usr/local/*/bin', '/opt/*/bin',
                        '/opt/*/*/bin', '/opt/*/envs/*/bin', '/usr/local/*/envs/*/bin')
    for path in glob(f'{folder}/python3.7')]


class Sandbox:
    """A copy of the top of the repository, with a HOME and a PATH that hold no Python 3.7."""

    def __init__(self, folder):
        self.top = folder / 'a clone'
        self.home = folder / 'home'
        self.bin = folder / 'bin'
        self.calls_file = folder / 'calls'
        self.fault = folder / 'fault'
        (self.top / 'test').mkdir(parents=True)
        for name in FILES:
            shutil.copy(os.path.join(ROOT, name), str(self.top / name))
        self.home.mkdir()
        self.bin.mkdir()
        self.environment = {'PATH': f'{self.bin}:/usr/bin:/bin', 'HOME': str(self.home),
                            'PIP_NO_INDEX': '1'}

    def script(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def stub(self, path, version='3.7', tensorflow='', delay=0):
        return self.script(path, STUB.format(
            version=version, tensorflow=tensorflow, calls=self.calls_file, fault=self.fault,
            delay=delay))

    def popen(self, *arguments, **environment):
        return subprocess.Popen(
            ['bash', *arguments], env={**self.environment, **environment}, cwd=str(self.home),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)

    def run(self, *arguments, script='setup.sh', **environment):
        process = self.popen(str(self.top / script), *arguments, **environment)
        process.out, process.err = process.communicate()
        return process

    def set_up(self, *arguments, **environment):
        """Runs setup.sh, which has to succeed; returns the calls that reached pip."""
        if self.calls_file.exists():
            self.calls_file.unlink()
        process = self.run(*arguments, **environment)
        assert process.returncode == 0, process.err
        assert process.err == ''
        assert process.out.endswith(f'ready: {self.top}/.venv/bin/python\n')
        return self.calls()

    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


@pytest.fixture
def ready(sandbox):
    """A sandbox with a working Python 3.7 on PATH, in which setup.sh has run."""
    sandbox.stub(sandbox.bin / 'python3.7')
    sandbox.set_up()
    return sandbox


def test_help_and_unknown_options(sandbox):
    shown = sandbox.run('--help')
    assert (shown.returncode, shown.err) == (0, '')
    assert all(word in shown.out for word in ('--dev', '--system', 'PYTHON37'))

    refused = sandbox.run('--bogus')
    assert (refused.returncode, refused.out) == (2, '')
    assert "'--bogus'" in refused.err
    assert refused.err.count('\n') == 1
    assert not (sandbox.top / '.venv').exists()


@pytest.mark.skipif(PYTHONS_OF_THIS_MACHINE, reason='this machine has a Python 3.7 in the system')
def test_no_python_found(sandbox):
    shim = sandbox.script(sandbox.bin / 'python3.7', '#!/bin/sh\nexit 127\n')
    newer = sandbox.stub(sandbox.bin / 'python3', version='3.12')
    process = sandbox.run()
    assert process.returncode == 3
    assert f'{shim}: does not run' in process.err
    assert f'{newer}: is Python 3.12' in process.err
    assert all(way in process.err for way in ('pyenv install', 'conda create', './configure'))
    assert not (sandbox.top / '.venv').exists()


@pytest.mark.parametrize('name', ['python3.7', 'python3', 'python'])
def test_finds_python_on_path(sandbox, name):
    stub = sandbox.stub(sandbox.bin / name)
    assert f'from {stub}\n' in sandbox.run().out


@pytest.mark.parametrize('prefix', [
    '.pyenv/versions/3.7.16', 'miniconda3', 'mambaforge/envs/tf', '.conda/envs/tf',
    '.asdf/installs/python/3.7.9', '.local/share/uv/python/cpython-3.7.9-linux-x86_64-gnu',
    '.local/share/mise/installs/python/3.7'])
def test_finds_python_at_home_behind_a_broken_shim(sandbox, prefix):
    sandbox.script(sandbox.bin / 'python3.7', '#!/bin/sh\nexit 127\n')
    stub = sandbox.stub(sandbox.home / prefix / 'bin/python3.7')
    assert f'from {stub}\n' in sandbox.run().out


@pytest.mark.parametrize('variable, prefix', [
    ('PYENV_ROOT', 'versions/3.7.16'), ('CONDA_PREFIX', '.'), ('CONDA_PREFIX', 'envs/tf'),
    ('MAMBA_ROOT_PREFIX', 'envs/tf'), ('ASDF_DATA_DIR', 'installs/python/3.7.9')])
def test_finds_python_where_a_variable_points(sandbox, tmp_path, variable, prefix):
    sandbox.stub(tmp_path / 'else where' / prefix / 'bin/python3.7')
    process = sandbox.run(**{variable: str(tmp_path / 'else where')})
    assert f'from {tmp_path}/else where/' in process.out


@pytest.mark.parametrize('command, place', [
    ('pyenv', 'versions/3.7.16/bin/python3.7'), ('conda', 'envs/tf/bin/python3.7')])
def test_finds_python_where_a_tool_says(sandbox, tmp_path, command, place):
    sandbox.script(sandbox.bin / command, f'#!/bin/sh\necho "{tmp_path}/root"\n')
    stub = sandbox.stub(tmp_path / 'root' / place)
    assert f'from {stub}\n' in sandbox.run().out


@pytest.mark.skipif(PYTHONS_OF_THIS_MACHINE, reason='this machine has a Python 3.7 in the system')
def test_finds_python_of_uv(sandbox, tmp_path):
    stub = sandbox.stub(tmp_path / 'uv has it' / 'python3.7')
    sandbox.script(sandbox.bin / 'uv', f'#!/bin/sh\necho "{stub}"\n')
    assert f'from {stub}\n' in sandbox.run().out


def test_python37_decides_or_is_refused(sandbox, tmp_path):
    sandbox.stub(sandbox.bin / 'python3.7')
    mine = sandbox.stub(tmp_path / 'my python')
    newer = sandbox.stub(tmp_path / 'newer', version='3.11')

    for wrong, reason in ((newer, 'is Python 3.11'), (tmp_path / 'absent', 'does not run')):
        process = sandbox.run(PYTHON37=str(wrong))
        assert process.returncode == 3
        assert process.err.startswith(f'setup: error: PYTHON37={wrong}: {reason}')
        assert process.err.count('\n') == 1

    assert f'from {mine}\n' in sandbox.run(PYTHON37=str(mine)).out
    assert sandbox.set_up(PYTHON37=str(mine)) == []
    assert f'from {sandbox.bin}' in sandbox.run(PYTHON37=str(sandbox.bin / 'python3.7')).out


def test_installs_quietly_then_does_nothing(sandbox):
    sandbox.stub(sandbox.bin / 'python3.7')
    calls = sandbox.set_up()
    assert len(calls) == 2
    assert calls[0].endswith(f'install --require-hashes -r {sandbox.top}/requirements.lock')
    assert calls[1] == '-m pip check'
    assert 'noise' in (sandbox.top / '.venv/setup.log').read_text()

    assert sandbox.set_up() == []


def test_works_without_home(sandbox):
    sandbox.stub(sandbox.bin / 'python3.7')
    del sandbox.environment['HOME']
    sandbox.set_up()


def test_dev_is_added_and_stays(ready):
    install, _ = ready.set_up('--dev')
    assert install.endswith(f'install --require-hashes -r {ready.top}/requirements-dev.lock')
    assert ready.set_up() == ready.set_up('--dev') == []


def test_changed_requirements_are_installed(ready):
    (ready.top / '.venv/kept').touch()
    with open(str(ready.top / 'requirements.txt'), 'a') as requirements:
        requirements.write('one-more==1.0\n')
    assert ready.set_up() != []
    assert (ready.top / '.venv/kept').exists()


def _forget_stamp(sandbox):
    (sandbox.top / '.venv/setup.stamp').unlink()


def _break_python(sandbox):
    python = sandbox.top / '.venv/bin/python'
    python.unlink()
    python.symlink_to('/nowhere/python3.7')


def _move(sandbox):
    clone, sandbox.top = sandbox.top, sandbox.top.parent / 'moved'
    clone.rename(sandbox.top)


def _fail_in_pip(sandbox):
    sandbox.fault.touch()
    process = sandbox.run('--dev')
    sandbox.fault.unlink()
    assert process.returncode == 1
    assert 'noise' in process.err
    assert 'installing from the package index failed' in process.err


def _kill_in_pip(sandbox):
    sandbox.stub(sandbox.top / '.venv/bin/python', delay=0.5)
    process = sandbox.popen(str(sandbox.top / 'setup.sh'), '--dev')
    sandbox.calls_file.unlink()
    while not sandbox.calls():
        time.sleep(0.02)
    process.kill()
    process.communicate()


@pytest.mark.parametrize('spoil', [_forget_stamp, _break_python, _move, _fail_in_pip, _kill_in_pip])
def test_remakes_a_spoilt_venv(ready, spoil):
    leftover = ready.top / '.venv/leftover'
    leftover.touch()
    spoil(ready)
    ready.run()
    assert not (ready.top / '.venv/leftover').exists()
    assert ready.set_up() == []


def test_two_at_once_take_turns(sandbox):
    sandbox.stub(sandbox.bin / 'python3.7', delay=0.3)
    processes = [sandbox.popen(str(sandbox.top / 'setup.sh')) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum('creating .venv' in output for output in outputs) == 1


def test_system_installs_only_what_the_host_lacks(sandbox):
    sandbox.stub(sandbox.bin / 'python3.7')
    sandbox.stub(sandbox.bin / 'python3', tensorflow='1.15.0')
    install, = sandbox.set_up('--system')
    listed = sandbox.top / '.venv/missing.lock'
    assert install.endswith(f'install --require-hashes --no-deps -r {listed}')
    entries = [line.split()[0] for line in listed.read_text().splitlines() if line[0] != ' ']
    assert entries == ['pillow==9.5.0', 'tqdm==4.68.2'] and '--hash=sha256:' in listed.read_text()
    # The choice holds for the scripts that run setup.sh without options.
    assert sandbox.set_up() == []
    calls = sandbox.set_up('--dev')
    assert not any(f'{sandbox.top}/requirements' in call for call in calls)
    listed = (sandbox.top / '.venv/requirements-dev.txt').read_text()
    assert 'pytest==' in listed
    assert 'requirements.txt' not in listed


def test_system_replaces_an_own_venv(ready):
    ready.stub(ready.bin / 'python3', tensorflow='1.15.0')
    assert 'creating .venv' in ready.run('--system').out


@pytest.mark.parametrize('tensorflow, reason', [
    ('2.11.0', 'has TensorFlow 2.11.0'), ('', 'has no TensorFlow that can be imported')])
def test_system_refuses_other_tensorflows(sandbox, tensorflow, reason):
    stub = sandbox.stub(sandbox.bin / 'python3.7', tensorflow=tensorflow)
    for environment in ({}, {'PYTHON37': str(stub)}):
        process = sandbox.run('--system', **environment)
        assert process.returncode == 3
        assert f'{stub}: {reason}' in process.err
        assert not (sandbox.top / '.venv').exists()


def test_system_sees_the_packages_of_a_real_host(sandbox):
    pytest.importorskip('tensorflow')
    assert sandbox.set_up('--system', PYTHON37=sys.executable) == []
    python = str(sandbox.top / '.venv/bin/python')
    program = 'import numpy, sys; print(numpy.__file__); print(sys.prefix)'
    found = subprocess.check_output([python, '-c', program], universal_newlines=True).split('\n')
    import numpy
    assert found[:2] == [numpy.__file__, str(sandbox.top / '.venv')]


def test_run_tests_hands_arguments_to_pytest(ready):
    def arguments(*options):
        process = ready.run(*options, script='test/run_tests.sh')
        assert process.returncode == 0, process.err
        return ready.calls()[-1]

    assert arguments().startswith('-m pytest -n 2 ')
    assert arguments('--fast').endswith(' -m not slow')
    assert arguments('test/unit/test_x.py', '-k', 'a b').endswith(' test/unit/test_x.py -k a b')
    (ready.home / 'test_here.py').touch()
    assert arguments('test_here.py::test_it').endswith(f' {ready.home}/test_here.py::test_it')
