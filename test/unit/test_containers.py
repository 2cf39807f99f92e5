"""The files that make containers; no Docker is needed."""
import glob
import json
import os
import re
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DOCKERFILES = ('Dockerfile', 'Dockerfile.ascend')


def read(name):
    with open(os.path.join(ROOT, name)) as file:
        return file.read()


def test_the_linter_finds_nothing():
    linted = subprocess.run(['hadolint', *DOCKERFILES], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert (linted.returncode, linted.stdout) == (0, '')


@pytest.mark.parametrize('name', DOCKERFILES)
def test_setup_finds_every_file_that_it_reads(name):
    """Setup runs before the rest is copied, so that an edit does not install everything again."""
    patterns = re.search(r'^COPY (setup\.sh .*) \./\nRUN bash setup\.sh', read(name), re.MULTILINE)
    copied = {os.path.basename(path) for pattern in patterns.group(1).split()
              for path in glob.glob(os.path.join(ROOT, pattern))}
    suffixes = ('', '-dev', '-export', '-report')
    assert copied == {'setup.sh', *(f'requirements{suffix}.{kind}' for suffix in suffixes
                                    for kind in ('txt', 'lock'))}


def test_python_is_a_version_that_setup_accepts():
    assert re.search(r'^FROM python:3\.7\.\d+-slim', read('Dockerfile'), re.MULTILINE)


def test_what_the_image_leaves_out_is_read_by_no_program():
    left_out = [line.rstrip('*') for line in read('.dockerignore').splitlines()
                if re.match(r'[a-z]', line)]
    assert {'docs', 'test/unit', 'test/fakes'} <= set(left_out)
    tracked = subprocess.run(
        ['git', 'ls-files'], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    programs = [path for path in tracked if path.endswith(('.py', '.sh'))
                and not path.startswith(('test/', 'benchmarks/'))]
    assert len(programs) > 80
    assert not [path for path in programs if path.startswith(tuple(left_out))]


def entry_point():
    return json.loads(re.search(r'^ENTRYPOINT (.*)', read('Dockerfile.ascend'), re.M).group(1))


def start(environment, *arguments):
    command = [word.replace('/opt/condconv/.venv/bin/python', sys.executable)
               for word in entry_point()]
    assert command != entry_point()
    return subprocess.run([*command, *arguments], capture_output=True, text=True,
                          env={'PATH': '/usr/bin:/bin', **environment})


def test_the_ascend_image_sources_cann_and_runs_python(tmp_path):
    files = [tmp_path / name for name in ('cann.sh', 'plugin.sh')]
    files[0].write_text('export FIRST=1\n')
    files[1].write_text('export SECOND="$FIRST$FIRST"\nfalse\n')
    ended = start({'CANN_SET_ENV': ' '.join(map(str, files))}, '-c',
                  'import os, sys; print(os.environ["SECOND"], sys.argv[1:]); sys.exit(3)', 'a b')
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "11 ['a b']\n", '')
    assert start({'CANN_SET_ENV': ''}, '-c', 'print(5)').stdout == '5\n'


def test_the_ascend_image_refuses_to_run_without_cann(tmp_path):
    ended = start({'CANN_SET_ENV': f'{tmp_path}/set_env.sh'}, '-c', 'print(5)')
    assert (ended.returncode, ended.stdout) == (1, '')
    assert ended.stderr.count('\n') == 1 and f'{tmp_path}/set_env.sh: no such file' in ended.stderr
