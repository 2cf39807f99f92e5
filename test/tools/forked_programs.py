"""Runs the programs of the repository, a process each, without importing TensorFlow each time.

As a script it is the process that all the others are forked from: it has imported everything, and
done nothing yet. It reads a JSON object a line from standard input, runs what that names, and
answers with the exit code. `ForkedPrograms` is the other end.
"""
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODULES = (
    'main', 'export_model', 'predict', 'inspect_model_architecture', 'boot_modelarts',
    'dataset.create', 'dataset.inspect', 'dataset.sample', 'report.modelzoo', 'report.html_report',
    'export.onnx', 'onnxruntime', 'benchmarks.contest', 'benchmarks.input_pipeline',
    'benchmarks.scaling', 'benchmarks.augmentation_ops', 'benchmarks.dataset_create',
    'benchmarks.finetune', 'benchmarks.input_cost')
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWNET = 0x40000000
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


class Ended(NamedTuple):
    """How a program ended; the exit code of one that a signal ended is negative."""
    returncode: int
    stdout: str
    stderr: str
    secs: float


class ForkedPrograms:
    """`run('main.py', '--mode=train', ...)` -> `Ended`; to be closed."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, universal_newlines=True,
            env={**os.environ, 'PYTHONPATH': ROOT, 'TF_CPP_MIN_LOG_LEVEL': '2'})

    def run(self, program, *arguments, timeout_secs=60, cwd=ROOT, is_confined=False,
            **environment):
        """Runs a script, or a module as `python -m` does, without what root may do beyond others.

        A program that takes longer is killed, and its exit code is -SIGKILL. One that is confined
        has the umask 027, and reaches no other machine.
        """
        with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
            paths = [f'/proc/{os.getpid()}/fd/{file.fileno()}' for file in (out, err)]
            start = time.monotonic()
            print(json.dumps(dict(program=program, arguments=arguments, cwd=str(cwd), paths=paths,
                                  timeout_secs=timeout_secs, is_confined=is_confined,
                                  environment=environment)),
                  file=self._server.stdin, flush=True)
            returncode = int(self._server.stdout.readline())
            secs = time.monotonic() - start
            for file in (out, err):
                file.seek(0)
            return Ended(returncode, out.read(), err.read(), secs)

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def _serve():
    answers = os.fdopen(os.dup(1), 'w')
    for name in MODULES:
        __import__(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            answers.close()
            _become(request)
        print(_wait(child, request['timeout_secs']), file=answers, flush=True)


def _wait(child, timeout_secs):
    deadline = time.monotonic() + timeout_secs
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if time.monotonic() > deadline:
            # What it has started ends with it.
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)


def _become(request):
    """Runs the program in this process, and ends it."""
    code = 70
    try:
        os.setpgid(0, 0)
        for number, path in enumerate((os.devnull, *request['paths'])):
            file = os.open(path, os.O_RDWR)
            os.dup2(file, number)
            os.close(file)
        os.chdir(request['cwd'])
        os.environ.update(request['environment'])
        tempfile.tempdir = None
        _give_up_reading_everything()
        if request['is_confined']:
            os.umask(0o027)
            _refuse_connections()
        program = request['program']
        sys.argv = [program, *request['arguments']]
        sys.path[0] = ROOT
        sys.path[1:1] = filter(None, request['environment'].get('PYTHONPATH', '').split(os.pathsep))
        try:
            if program.endswith('.py'):
                runpy.run_path(os.path.join(ROOT, program), run_name='__main__')
            else:
                sys.modules.pop(program, None)
                runpy.run_module(program, run_name='__main__', alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        import atexit
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _refuse_connections():
    """A network of its own, with nothing in it; where that is not permitted, no Internet socket."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0:
        return
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ('127.0.0.1', '::1'):
            raise AssertionError(f'a connection to {address}')
        return connect(self, address)

    socket.socket.connect = refuse


def _give_up_reading_everything():
    """Takes from root that file modes do not bind it."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        # Effective, permitted, inheritable of the first 32 capabilities, then of the others.
        for index in range(3):
            sets[index] &= ~(1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH)
        libc.capset(header, sets)


if __name__ == '__main__':
    _serve()
