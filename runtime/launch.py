"""Starts one main.py process per rank of this host, and prints the result lines at the end.

    python -m runtime.launch --script=train_full_8p.sh --kind=full --rank_size=8 ... -- OPTIONS

test/train_*.sh call it; `launch_options` has their options. It runs under any Python from 3.7 on
with the standard library only, because main.py has its own interpreter.
"""
import argparse
import fcntl
import glob
import os
import re
import shutil
import subprocess
import sys
import time

from common.errors import UserError
from common.paths import LOCK_FILE
from runtime import launch_options
from runtime import main_flags
from runtime import placement
from runtime import supervisor

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_FINDS_NPU_BRIDGE = """
import importlib.util
print(importlib.util.find_spec("npu_bridge") is not None)"""


def main(words):
    """Runs the command line; returns the exit code, or becomes the result lines' program."""
    supervisor.exit_on_signals()
    separator = words.index('--') if '--' in words else len(words)
    arguments = _arguments(words[:separator])
    try:
        # -m requires the repository as the working directory; paths are relative to the user's.
        os.chdir(arguments.working_dir)
        os.environ['PWD'] = arguments.working_dir
        script = launch_options.LaunchScript(
            arguments.script, arguments.summary, arguments.kind, arguments.rank_size,
            arguments.default_steps)
        options = launch_options.parse(script, words[separator + 1:])
        if options is None:
            print(launch_options.usage(script), end='')
            return 0
        _train(script.kind, options)
    except supervisor.RankError as error:
        return _fail(arguments.script, error, error.exit_code)
    except UserError as error:
        return _fail(arguments.script, error)
    except OSError as error:
        return _fail(arguments.script, ': '.join(filter(None, (error.filename, error.strerror))))
    return 0


def _fail(script, message, exit_code=1):
    # Bytes, because arguments need not be valid text.
    sys.stderr.buffer.write(os.fsencode(f'{script}: error: {message}\n'))
    return exit_code


def _arguments(words):
    parser = argparse.ArgumentParser(
        'runtime.launch', description='Runs test/train_*.sh. Their options follow --.')
    parser.add_argument('--helpfull', action='help', help='the same as --help')
    parser.add_argument('--script', required=True, help='name of the script, for its messages')
    parser.add_argument('--working_dir', required=True, help="the user's working directory")
    parser.add_argument('--summary', required=True, help='what the script does, for its --help')
    parser.add_argument('--kind', required=True, choices=('full', 'performance'))
    parser.add_argument('--rank_size', required=True, type=int, help='default number of ranks')
    parser.add_argument('--default_steps', default='', help='default number of steps')
    return parser.parse_args(words)


def _train(kind, options):
    start_secs = time.monotonic()
    python = _find_python()
    place = placement.place(options.rank_size, options.hosts, options.host_index)
    cores = placement.share_cores(place) if options.bind_core else {}
    device = placement.device_id()
    is_on_npus = _is_on_npus(python, options)
    environments = _environments(place, device, is_on_npus)
    output_dir = _make_output_dir(options.output_path or os.path.join(ROOT, 'test', 'output'))
    # A single device keeps its number on the host; several are numbered across all hosts.
    folders = {rank: device if place.world_size == 1 else str(rank) for rank in (0, *place.ranks)}
    logs = {rank: os.path.join(output_dir, folder, f'train_{folder}.log')
            for rank, folder in folders.items()}
    model_dir = os.path.join(output_dir, folders[0], 'ckpt')
    if kind == 'performance':
        # A measurement starts from scratch; a full training resumes.
        model_dir += '_perf'
        _check_not_in_use(model_dir)
        if 0 in place.ranks:
            _remove_run(model_dir)
    flags = main_flags.compose(kind, options, ROOT, output_dir, model_dir, is_on_npus)
    command = [python, os.path.join(ROOT, 'main.py'), *flags]
    supervisor.run([
        supervisor.Rank(rank, command, environments[rank], logs[rank], cores.get(rank))
        for rank in place.ranks])
    if 0 in place.ranks:
        os.chdir(ROOT)
        os.execvp(python, [
            python, '-m', 'report.modelzoo', f'--model_dir={model_dir}', f'--log_file={logs[0]}',
            f'--kind={kind}', *['--bound'] * bool(options.bind_core),
            f'--e2e_secs={int(time.monotonic() - start_secs)}'])


def _find_python():
    """Returns the interpreter of main.py: PYTHON37, that of setup.sh, or the host's python3.7."""
    named = os.environ.get('PYTHON37')
    if named:
        return os.path.abspath(named) if os.sep in named else named
    own = os.path.join(ROOT, '.venv', 'bin', 'python')
    if os.access(own, os.X_OK):
        return own
    if _output_of('python3.7', 'import tensorflow') is not None:
        return 'python3.7'
    raise UserError('no Python 3.7 with TensorFlow found; run "bash setup.sh" once (on an Ascend '
                    'host "bash setup.sh --system")')


def _is_on_npus(python, options):
    chosen = re.findall('\0--?accelerator[=\0]([^\0]*)', '\0'.join(['', *options.main_flags]))
    if chosen and chosen[-1] in ('stock', 'host'):
        return False
    # If the probe itself fails, main.py reports what is wrong with npu_bridge.
    return _output_of(python, _FINDS_NPU_BRIDGE) != 'False\n'


def _output_of(python, code):
    """Returns the output of a few lines of Python; None if they fail."""
    try:
        return subprocess.run([python, '-c', code], check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _environments(place, device, is_on_npus):
    """Returns a dict of rank -> environment."""
    if place.world_size == 1:
        return {0: placement.single_environment(device)}
    if is_on_npus:
        if place.hosts and not os.environ.get('RANK_TABLE_FILE'):
            raise UserError('RANK_TABLE_FILE: not set; name the JSON file that lists the devices '
                            'of all hosts')
        return {rank: placement.npu_environment(place, rank) for rank in place.ranks}
    addresses = place.addresses()
    return {rank: placement.worker_environment(addresses, rank) for rank in place.ranks}


def _make_output_dir(path):
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'--output_path={path}: cannot be created ({error.strerror}); choose '
                        'another one') from error
    return os.path.realpath(path)


def _check_not_in_use(model_dir):
    """Raises UserError if a process trains in model_dir, which is about to be removed."""
    path = os.path.join(model_dir, LOCK_FILE)
    if not os.path.isfile(path) or not os.path.getsize(path):
        return
    with open(path, 'rb') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.fsdecode(lock.read()).strip()
            raise UserError(f'{model_dir}: in use by {owner}; wait until it ends, or choose '
                            'another --output_path') from error


def _remove_run(model_dir):
    for path in (model_dir, *glob.glob(f'{glob.escape(model_dir)}_rank_*')):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
