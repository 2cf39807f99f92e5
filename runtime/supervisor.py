"""Runs the processes of a job's ranks: none of them outlives the others or this process."""
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from common.errors import UserError

_POLL_SECS = 0.2
# How long ranks that were told to end may take to save a checkpoint.
_SAVE_TIMEOUT_SECS = 60
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_NOT_FOUND, _NOT_STARTED = 127, 126
_NUM_LAST_LINES = 20


class Rank(NamedTuple):
    """A rank of this host.

    Attributes:
      number: in the job.
      command: list of words.
      environment: dict, the whole of it.
      log_path: file for all that the process prints. One that is there gets the ending .previous.
      cores: set of the processor's cores to keep to; None for all.
    """
    number: int
    command: list
    environment: dict
    log_path: str
    cores: set = None


class RankError(UserError):
    """A rank failed, with an `exit_code` that is to be that of the job."""

    def __init__(self, message, exit_code):
        super().__init__(message)
        self.exit_code = exit_code


def exit_on_signals():
    """Makes SIGINT, SIGTERM and SIGHUP raise SystemExit with 128 + the signal's number.

    A signal that is ignored stays so: under nohup, or SIGINT in a script's background.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)


def _exit(number, frame):
    sys.exit(128 + number)


def run(ranks):
    """Runs all ranks until they have ended, and shows the first one's log on stdout as it grows.

    Whatever ends this process, even SIGKILL, the ranks get SIGTERM, and SIGKILL a minute later.

    Raises:
      RankError: a rank failed. The others were killed, because they would wait for it for ever. If
        a signal ended it they had a minute: rank 0 then saves a checkpoint with all of them.
      UserError: a log cannot be written.
    """
    # Whoever ignores it, as some daemons do for their children, never learns of exit codes.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    watcher, lifeline = _start_watcher()
    processes = []
    try:
        for rank in ranks:
            processes.append(_start(rank, lifeline))
        # It shows the first rank's last words, too, and then ends.
        processes.append(_follow(ranks[0].log_path, processes[0].pid))
        failed, exit_code = _await_first_failure(list(zip(ranks, processes)))
    finally:
        os.close(lifeline)
        # Any child is reaped: to the watcher a zombie is still there.
        while os.wait()[0] != watcher:
            pass
        for process in processes:
            process.wait()
    if failed:
        raise RankError(f'rank {failed.number} ended with exit code {exit_code}; '
                        f'{_last_error(failed.log_path)} ({failed.log_path})', exit_code)


def _start_watcher():
    """Forks a process that ends the ranks when this one is gone, however that came about.

    Returns:
      Its pid, and the descriptor to which each rank writes its process group, a line each. The
      watcher acts when nobody has that open any more.
    """
    reader, lifeline = os.pipe()
    watcher = os.fork()
    if watcher:
        os.close(reader)
        return watcher, lifeline
    try:
        # Out of reach of the terminal's Ctrl-C.
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
    """Returns how many of the process groups are there to receive a signal."""
    received = 0
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            received += 1
    return received


def _start(rank, lifeline):
    def prepare():
        # By itself and before it becomes main.py: at no time is it unknown to the watcher.
        os.write(lifeline, b'%d\n' % os.getpid())
        # As a shell starts what is in the background. main.py has handlers of its own.
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        if rank.cores:
            os.sched_setaffinity(0, rank.cores)

    with _new_log(rank.log_path) as log:
        try:
            # A process group of its own: what it starts, compilers of operators say, ends with it.
            return subprocess.Popen(
                rank.command, env=rank.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=prepare)
        except OSError as error:
            raise RankError(
                f'rank {rank.number} cannot be started, {rank.command[0]}: {error.strerror}; '
                'correct PYTHON37 or the limits of this host',
                _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_STARTED) from error


def _new_log(path):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isfile(path):
            os.replace(path, f'{path}.previous')
        return open(path, 'wb')
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}); choose another '
                        '--output_path') from error


def _follow(path, pid):
    # A process of its own, so that a reader of stdout who pauses or leaves holds nothing up.
    return subprocess.Popen(
        ['tail', '-n', '+1', '-f', f'--pid={pid}', f'--sleep-interval={_POLL_SECS}', '--', path],
        stdin=subprocess.DEVNULL, start_new_session=True)


def _await_first_failure(running):
    """Waits until all have ended, or one has failed and the others are killed.

    Args:
      running: list of (Rank, its process).

    Returns:
      The Rank that failed and its exit code as a shell counts it, or (None, 0).
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
    """Returns the last error that a log names; without one prints the log's end to stderr."""
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
    return 'above is the end'
