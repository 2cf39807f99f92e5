"""How a run ends before its last step: on SIGINT or SIGTERM, or when its time is up.

A training session goes on to the end of its step (on an NPU: of its loop), and saves a checkpoint.
Everything else has nothing to save, and is over at once. Exit codes are 128 + the signal's number,
130 and 143, and 0 when the time is up.
"""
import contextlib
import json
import os
import signal
import socket
import threading
import time
import weakref

from absl import logging
import tensorflow.compat.v1 as tf

INTERRUPTED = 'interrupted'
OUT_OF_TIME = 'out_of_time'

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A scheduler and a launch script may both pass the same wish on.
_SAME_WISH_SECS = 0.5
_FINALIZER_SECS = 0.05
_BALLOT_FILE = 'stop.json'


class Stopped(BaseException):
    """The run ends here. As with KeyboardInterrupt, no `except Exception` is meant."""


class Stop:
    """Whether, and why, the run is to end: a context manager for the main thread.

    `Stopped` leaves it, and goes no further.

    While the main thread is in TensorFlow, which may take minutes, Python calls no handler of a
    signal. So the signals also go to a thread, by way of a socket: it says that they have arrived,
    and a second one ends the process then and there.

    Args:
      deadline: seconds since 1970, or None.
      is_alone: whether this is the only rank. Several ranks must end at the same step, see
        `StopHook`, so that the clock of one of them decides nothing by itself.

    Attributes:
      is_awaited: whether other ranks wait for this one's next step, so that it goes on until they
        have agreed. To be set between sessions of training.
    """

    def __init__(self, deadline=None, is_alone=True):
        self._deadline = deadline
        self._is_alone = is_alone
        self._signal = None
        self._is_out_of_time = False
        self._is_training = False
        self._is_agreed = is_alone
        self.is_awaited = False

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._raise)
        self._wakeup_fd = signal.set_wakeup_fd(self._writer.fileno())
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, kind, error, traceback):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._writer.close()
        # What it interrupts may fail in cleaning up: a variable scope half entered, for one.
        while error and not isinstance(error, Stopped):
            error = error.__context__
        return error is not None

    @property
    def status(self):
        """INTERRUPTED, OUT_OF_TIME, or None for a run that ends by itself."""
        if self._signal is not None:
            return INTERRUPTED
        return OUT_OF_TIME if self._is_out_of_time else None

    @property
    def is_settled(self):
        """Whether the run is to end and, if there are several ranks, all of them know."""
        return self.status is not None and self._is_agreed

    @property
    def exit_code(self):
        return 0 if self._signal is None else 128 + self._signal

    def must_end(self):
        """Looks at the clock: whether this rank has to end, or has been told so by another one."""
        is_late = self._deadline is not None and time.time() >= self._deadline
        if is_late and self._is_alone:
            self._is_out_of_time = True
        return is_late or self.status is not None

    def check(self):
        """Raises Stopped if the run is to end here. For where there is nothing to save."""
        if self.must_end() and self.status is not None and self._may_leave():
            raise Stopped

    @contextlib.contextmanager
    def at_step_end(self):
        """While this is entered the signals are left to `StopHook`."""
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False

    def as_dict(self):
        """The reason, for other ranks."""
        return {'signal': self._signal}

    def adopt(self, reason):
        """Takes the reason on which all ranks end for this one's own, unless it has one."""
        self._is_agreed = True
        if self.status is None:
            self._signal = reason['signal']
            self._is_out_of_time = self._signal is None

    def _handle(self, number, frame):
        is_first, self._signal = self._signal is None, self._signal or number
        if is_first:
            self._raise(signal.SIGALRM, frame)

    def _raise(self, number, frame):
        """Raises Stopped; a little later if in a finalizer, which would print it and lose it."""
        del number
        if self._is_training or not self._may_leave():
            return
        if _is_in_finalizer(frame):
            signal.setitimer(signal.ITIMER_REAL, _FINALIZER_SECS)
        else:
            raise Stopped

    def _may_leave(self):
        return self._is_agreed or not self.is_awaited

    def _listen(self):
        first_secs = None
        with self._reader:
            for number in iter(self._receive, None):
                if number not in _SIGNALS:
                    continue
                name = signal.Signals(number).name
                if first_secs is None:
                    first_secs = time.monotonic()
                    when = ''
                    if self._is_training:
                        when = ' with a checkpoint when this step is over'
                    elif not self._may_leave():
                        when = ' when all ranks have made their next step'
                    logging.warning(
                        '%s: the run ends%s. A second signal ends it at once.', name, when)
                elif time.monotonic() - first_secs > _SAME_WISH_SECS:
                    logging.warning('%s again: the run ends at once.', name)
                    os._exit(128 + number)

    def _receive(self):
        try:
            data = self._reader.recv(1)
        except OSError:
            return None
        return data[0] if data else None


def _is_in_finalizer(frame):
    while frame:
        if frame.f_code.co_name == '__del__' or frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


class StopHook(tf.train.SessionRunHook):
    """Ends a training session at the end of a step, where the checkpoint hook then saves.

    Several ranks have to make the same number of steps, or one would wait for the others for ever.
    None can be more than a step ahead, since each step takes part of all of them. So whoever wants
    to end after a step writes down that the next one is the last, before it begins that; and all
    look for it when that one is over.

    Args:
      stop: `Stop`.
      leader_dir: folder that all ranks see; None for a rank that is alone.
      rank: of this process.
    """

    def __init__(self, stop, leader_dir=None, rank=0):
        self._stop = stop
        self._ballot = leader_dir and os.path.join(leader_dir, _BALLOT_FILE)
        self._rank = rank
        self._runs = 0

    def begin(self):
        # Nobody has made a step of this session before rank 0 begins it.
        if self._ballot and self._rank == 0 and tf.gfile.Exists(self._ballot):
            tf.gfile.Remove(self._ballot)

    def after_create_session(self, session, coord):
        if not self._ballot and self._stop.must_end():
            coord.request_stop()

    def after_run(self, run_context, run_values):
        self._runs += 1
        if self._is_last_run():
            run_context.request_stop()

    def _is_last_run(self):
        if not self._ballot:
            return self._stop.must_end()
        if not tf.gfile.Exists(self._ballot):
            if self._stop.must_end():
                self._vote()
            return False
        with tf.gfile.GFile(self._ballot) as file:
            ballot = json.load(file)
        if self._runs < ballot['last_run']:
            return False
        self._stop.adopt(ballot)
        return True

    def _vote(self):
        tf.gfile.MakeDirs(os.path.dirname(self._ballot))
        partial_path = f'{self._ballot}.{self._rank}'
        with tf.gfile.GFile(partial_path, 'w') as file:
            json.dump({**self._stop.as_dict(), 'last_run': self._runs + 1}, file)
        tf.gfile.Rename(partial_path, self._ballot, overwrite=True)


class StopEvaluationHook(tf.train.SessionRunHook):
    """Leaves an evaluation when time is up, since part of one says nothing."""

    def __init__(self, stop):
        self._stop = stop

    def after_run(self, run_context, run_values):
        self._stop.check()
