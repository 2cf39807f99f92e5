"""Runs the processes of a job's ranks, and ends all of them when one fails or this process ends."""
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from common.errors import UserError

_POLL_SECS = 0.2
# Time for ranks to save a checkpoint after SIGTERM.
_SAVE_TIMEOUT_SECS = 60
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_NOT_FOUND, _NOT_STARTED = 127, 126
_NUM_LAST_LINES = 20


class Rank(NamedTuple):
    """A rank of this host.

    Attributes:
      number: rank in the job.
      command: list of words.
      environment: complete environment, a dict.
      log_path: file for the output of the process. An existing one is renamed to .previous.
      cores: set of CPU cores that the process is bound to; None for all.
    """
    number: int
    command: list
    environment: dict
    log_path: str
    cores: set = None


class RankError(UserError):
    """A rank failed; the job exits with its `exit_code`."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def exit_on_signals():
    """Makes SIGINT, SIGTERM and SIGHUP raise SystemExit with 128 + the signal's number.

    Ignored signals stay ignored, as under nohup, or SIGINT in the background of a script.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number, frame):
    sys.exit(128 + number)


def run(ranks):
    """Runs all ranks to their end, and copies the first rank's log to stdout as it grows.

    When this process ends for any reason, even SIGKILL, the ranks get SIGTERM, and SIGKILL a minute
    later.

    Raises:
      RankError: a rank failed. The others were killed, because they would wait for it forever. If a
        signal ended the rank, they had a minute to save a checkpoint.
      UserError: a log cannot be written.
    """
    # Some daemons ignore SIGCHLD in their children, which hides exit codes.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    watcher, lifeline = _start_watcher()
    processes = []
    try:
        for rank in ranks:
            processes.append(_start(rank, lifeline))
        # tail ends after the first rank has ended and its last lines are copied.
        processes.append(_follow(ranks[0].log_path, processes[0].pid))
        failed, exit_code = _await_first_failure(list(zip(ranks, processes)))
    finally:
        os.close(lifeline)
        # Every child is reaped, because the watcher counts zombies as running.
        while os.wait()[0] != watcher:
            pass
        for process in processes:
            process.wait()
    if failed:
        raise RankError(f'rank {failed.number} ended with exit code {exit_code}; '
                        f'{_last_error(failed.log_path)} ({failed.log_path})', exit_code)


def _start_watcher():
    """Forks a process that ends the ranks when this process ends for any reason.

    Returns:
      (pid, descriptor). Each rank writes its process group to the descriptor, one line each. The
      watcher acts when no process has the descriptor open any more.
    """
    reader, lifeline = os.pipe()
    watcher = os.fork()
    if watcher:
        os.close(reader)
        return watcher, lifeline
    try:
        # A session of its own, which the terminal's Ctrl-C does not reach.
        os.setsid()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.close(lifeline)
        with open(reader) as lines:
            _end_groups([int(line) for line in lines])
    finally:
        os._exit(0)


def _end_groups(groups):
    _signal_groups(groups, signal.SIGTERM)
    deadline = time.monotonic() + _SAVE_TIMEOUT_SECS
    while _signal_groups(groups, 0):
        if time.monotonic() > deadline:
            _signal_groups(groups, signal.SIGKILL)
            return
        time.sleep(_POLL_SECS)


def _signal_groups(groups, number):
    """Sends a signal to process groups and returns how many of them exist."""
    received = 0
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            received += 1
    return received


def _start(rank, lifeline):
    def prepare():
        # The child itself writes, before it becomes main.py, so that the watcher never misses it.
        os.write(lifeline, b'%d\n' % os.getpid())
        # A shell starts background processes the same way. main.py installs its own handlers.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        if rank.cores:
            os.sched_setaffinity(0, rank.cores)

    with _new_log(rank.log_path) as log:
        try:
            # A process group of its own, so that its children, such as compilers, end with it.
            return subprocess.Popen(
                rank.command, env=rank.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=prepare)
        except OSError as error:
            raise RankError(
                f'rank {rank.number}: {rank.command[0]} cannot be started '
                f'({os.strerror(error.errno)}); correct PYTHON37 or the limits of this host',
                _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_STARTED) from error


def _new_log(path):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isfile(path):
            os.replace(path, f'{path}.previous')
        return open(path, 'wb')
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); choose another '
                        '--output_path') from error


def _follow(path, pid):
    # A separate process, so that a slow or closed reader of stdout does not block the job.
    return subprocess.Popen(
        ['tail', '-n', '+1', '-f', f'--pid={pid}', f'--sleep-interval={_POLL_SECS}', '--', path],
        stdin=subprocess.DEVNULL, start_new_session=True)


def _await_first_failure(running):
    """Waits until all ranks have ended, or until one fails and the others are killed.

    Args:
      running: list of (Rank, process).

    Returns:
      (failed Rank, exit code as a shell reports it), or (None, 0).
    """
    everybody = [process for _, process in running]
    while running:
        time.sleep(_POLL_SECS)
        for rank, process in running:
            code = process.poll()
            if code:
                exit_code = code if code > 0 else 128 - code
                if rank.number > 0 and exit_code in _INTERRUPTED:
                    _await(everybody)
                _signal_groups([each.pid for each in everybody], signal.SIGKILL)
                return rank, exit_code
        running = [(rank, process) for rank, process in running if process.returncode is None]
    return None, 0


def _await(processes):
    deadline = time.monotonic() + _SAVE_TIMEOUT_SECS
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_SECS)


def _last_error(log_path):
    """Returns the last error line of a log; prints the end of a log without one to stderr."""
    last_error, last_lines = None, []
    with open(log_path, 'rb') as log:
        for line in log:
            if b': error: ' in line:
                last_error = line
            last_lines = [*last_lines[1 - _NUM_LAST_LINES:], line]
    if last_error:
        return os.fsdecode(last_error.rstrip(b'\n'))
    sys.stderr.buffer.write(b''.join(last_lines))
    sys.stderr.flush()
    return 'the end of its log is above'
