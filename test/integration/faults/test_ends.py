"""How any program ends: out of memory, without a reader, with a flagfile that has no end."""
import errno
import os
import subprocess
import sys

from conftest import ROOT
import pytest

PROGRAM = '''
import os
import sys

from absl import flags
import tensorflow.compat.v1 as tf

from common import app

flags.DEFINE_string('error', '', 'Raised.')
flags.DEFINE_integer('batch_size', 3, 'Images.')


def main(_):
    if flags.FLAGS.error:
        raise eval(flags.FLAGS.error)
    print('x' * 100000)


app.run(main)
'''


@pytest.fixture
def run_it(programs, tmp_path):
    """run_it(flag, ...) -> how a program of a few lines ended, which is run in tmp_path."""
    path = tmp_path / 'program.py'
    path.write_text(PROGRAM)
    return lambda *flags, cwd=tmp_path: programs.run(str(path), *flags, cwd=cwd)


def tensorflow_error(kind, text):
    return f'tf.errors.{kind}(None, None, {text!r})'


@pytest.mark.parametrize('error, words', [
    ('MemoryError()', 'out of memory (MemoryError); lower --batch_size, or'),
    ('MemoryError("Unable to allocate 9 GiB")', 'out of memory (Unable to allocate 9 GiB); lower'),
    (f'OSError({errno.ENOMEM}, os.strerror({errno.ENOMEM}))', 'out of memory (Cannot allocate'),
    (tensorflow_error('ResourceExhaustedError', 'OOM when allocating tensor\n [[node x]]'),
     'out of memory (OOM when allocating tensor); lower --batch_size'),
    (tensorflow_error('InternalError', 'CUDA_ERROR_OUT_OF_MEMORY'), 'out of memory ('),
    (tensorflow_error('ResourceExhaustedError', '/x; No space left on device'),
     '/x; No space left on device; make room'),
    (tensorflow_error('ResourceExhaustedError', '/x; Too many open files'),
     '/x; Too many open files; raise the limit'),
    (tensorflow_error('NotFoundError', '/x; No such file or directory\n [[node]]'),
     '/x; No such file or directory; restore'),
    (f'OSError({errno.ELOOP}, os.strerror({errno.ELOOP}), "/x")', '/x; Too many levels of symbol'),
    (f'OSError({errno.ENAMETOOLONG}, os.strerror({errno.ENAMETOOLONG}), "/x")',
     '/x; File name too long; choose a shorter path'),
    ('RecursionError()', 'nested too deeply')])
def test_what_the_user_can_change_is_one_sentence(run_it, error, words):
    ended = run_it(f'--error={error}')
    assert ended.returncode == 1
    line, = ended.stderr.splitlines()
    assert line.startswith('program.py: error: ') and words in line


@pytest.mark.parametrize('error', ['ValueError(3)', 'BrokenPipeError()',
                                   tensorflow_error('InternalError', 'x')])
def test_what_is_a_fault_of_the_program_keeps_its_traceback(run_it, error):
    ended = run_it(f'--error={error}')
    assert ended.returncode == 1 and 'Traceback' in ended.stderr


@pytest.mark.parametrize('text, flag, words', [
    ('', '/dev/zero', 'is not a regular file'), ('', '/dev/stdin', 'is not a regular file'),
    ('', 'fifo', 'is not a regular file'), ('', 'folder', 'is a directory'),
    ('', 'loop', 'Too many levels of symbolic links'), ('', 'nothing', 'No such file or directory'),
    ('--flagfile=file', 'file', '=file includes itself'),
    ('--flagfile=./other', 'file', 'includes itself'),
    ('--flagfile=other\n' * 2 + '--flagfile=many\n' * 200, 'many', 'includes itself'),
    ('--flagfile=leaf\n' * 200, 'file', 'is one of more than 100 files'),
    ('x' * (1 << 21), 'file', 'is too large')])
def test_a_flagfile_without_an_end_is_one_sentence(run_it, tmp_path, text, flag, words):
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to('loop')
    (tmp_path / 'leaf').write_text('--batch_size=4')
    (tmp_path / 'other').write_text('--flagfile=file\n' if flag == 'file' else '')
    if text:
        (tmp_path / flag).write_text(text)
    ended = run_it(f'--flagfile={flag}')
    assert ended.returncode == 2
    line, = ended.stderr.splitlines()
    assert 'error: --flagfile=' in line and words in line


def test_a_flagfile_may_be_named_twice(run_it, tmp_path):
    (tmp_path / 'leaf').write_text('--batch_size=4')
    (tmp_path / 'file').write_text('--flagfile=leaf\n--flagfile=leaf\n# --flagfile=file\n')
    assert run_it('--flagfile', 'file', '--', '--flagfile=nothing').returncode in (0, 1)
    assert run_it('--flagfile=file').returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize('flags', [[], ['--help']])
def test_without_a_reader_a_program_ends_quietly(tmp_path, flags):
    (tmp_path / 'program.py').write_text(PROGRAM)
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, str(tmp_path / 'program.py'), *flags], stdout=writer,
                           stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': ROOT})
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b'')


@pytest.mark.slow
def test_a_working_directory_that_is_gone_is_named(tmp_path):
    (tmp_path / 'program.py').write_text(PROGRAM)
    (tmp_path / 'gone').mkdir()
    ended = subprocess.run(
        ['bash', '-c', f'cd {tmp_path}/gone; rmdir {tmp_path}/gone; {sys.executable} '
         f'{tmp_path}/program.py'], capture_output=True,
        env={**os.environ, 'PYTHONPATH': ROOT}, text=True)
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.splitlines()[-1].startswith(
        'program.py: error: the working directory does not exist')
    assert 'Traceback' not in ended.stderr
