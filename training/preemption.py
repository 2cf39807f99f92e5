"""Ends a run before its last step: on SIGINT, SIGTERM, at a deadline, or by early stopping.

A training session finishes its step (on an NPU: its loop) and saves a checkpoint. All other work
has nothing to save and ends at once. The exit code is 128 + the signal's number (130 or 143), or 0
at the deadline. Early stopping ends only the training; the run counts as finished.
"""
import contextlib
import enum
import json
import os
import signal
import socket
import threading
import time
import weakref

from absl import logging
import tensorflow.compat.v1 as tf

from common import json_files
from common.files import whole_file

INTERRUPTED = 'interrupted'
OUT_OF_TIME = 'out_of_time'
EARLY_STOPPED = 'early_stopped'

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A scheduler and a launch script may both forward the same signal.
_SAME_REQUEST_SECS = 0.5
_FINALIZER_SECS = 0.05
_STOP_FILE = 'stop.json'
_STOP_FIELDS = {'signal': json_files.optional(json_files.POSITIVE), 'last_run': json_files.INTEGER,
                'status': json_files.optional(json_files.TEXT)}


class Stopped(BaseException):
    """Ends the run. Derives from BaseException so that `except Exception` does not catch it."""


class EndsWhen(enum.Enum):
    """When the run ends after a request; the value completes the log line 'the run ends'."""
    AT_ONCE = ''
    STEP_IS_OVER = ' with a checkpoint after this step'
    RANKS_AGREE = ' after the next step of all ranks'
    EVALUATION_IS_LEFT = ' after the next step of all ranks; this evaluation is aborted'


class StopRequest:
    """Records whether and why the run must end; a context manager for the main thread.

    `Stopped` ends the context and is not raised any further. A second signal ends the process at
    once.

    Args:
      deadline: seconds since 1970, or None.
      is_alone: whether this is the only rank. Several ranks must agree on the step at which they
        end (see `StopHook`), so the clock of one rank alone does not end the run.
    """
    # Python calls no signal handler while the main thread is in TensorFlow, possibly for minutes.
    # Signals therefore also reach a thread through a socket; it logs them and handles the second.

    def __init__(self, deadline=None, is_alone=True):
        self._deadline = deadline
        self._reason = None    # a signal's number, OUT_OF_TIME or EARLY_STOPPED
        self._is_agreed = is_alone
        self._ends_when = EndsWhen.AT_ONCE

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
        # The clean-up of interrupted code may raise another exception, for example in a
        # half-entered variable scope; Stopped is then in its context.
        while error and not isinstance(error, Stopped):
            error = error.__context__
        return error is not None

    @property
    def status(self):
        """INTERRUPTED, OUT_OF_TIME, EARLY_STOPPED, or None if nothing ends the run early."""
        return INTERRUPTED if isinstance(self._reason, int) else self._reason

    @property
    def exit_code(self):
        return 128 + self._reason if self.status == INTERRUPTED else 0

    @property
    def is_settled(self):
        """Whether the run must end and all ranks know it."""
        return self._reason is not None and self._is_agreed

    def must_end(self):
        """Checks the deadline and returns whether this rank must end, at once or by agreement."""
        is_late = self._deadline is not None and time.time() >= self._deadline
        if is_late and self._is_agreed and self._reason is None:
            self._reason = OUT_OF_TIME
        return is_late or self._reason is not None

    def stop_early(self):
        """Ends the training but not the run; the work after the last step is still done."""
        if self._reason is None:
            self._reason = EARLY_STOPPED

    def check(self):
        """Raises Stopped if the run must end now; for code that has nothing to save."""
        when, must_end = self._when(), self.must_end()
        if self.status == EARLY_STOPPED:
            return
        if when is EndsWhen.EVALUATION_IS_LEFT:
            # With several ranks, the deadline of one rank ends its evaluation but not the run.
            is_requested = must_end
        else:
            is_requested = must_end and self._reason is not None
        if is_requested and when is not EndsWhen.RANKS_AGREE:
            raise Stopped

    @contextlib.contextmanager
    def at_step_end(self):
        """Context of a training session, in which `StopHook` handles requests.

        From its end until `end_of_training`, other ranks wait for the next step of this rank.
        """
        self._ends_when = EndsWhen.STEP_IS_OVER
        try:
            yield
        finally:
            self._ends_when = EndsWhen.RANKS_AGREE

    @contextlib.contextmanager
    def between_steps(self):
        """Context of an evaluation inside a training session, right after a save.

        A request ends the evaluation at its next `check`. It also ends the run if this is the only
        rank; otherwise the run continues until the ranks agree.
        """
        self._ends_when = EndsWhen.EVALUATION_IS_LEFT
        try:
            yield
        except Stopped:
            if self._is_agreed:
                raise
            logging.info('Evaluation aborted; the next run evaluates its last checkpoint.')
        finally:
            self._ends_when = EndsWhen.STEP_IS_OVER

    def end_of_training(self):
        """Lets requests end the run at once again, as no rank waits for another step."""
        self._ends_when = EndsWhen.AT_ONCE

    def as_dict(self):
        """Returns the reason as a dict for the stop file."""
        return {'signal': self._reason if self.status == INTERRUPTED else None,
                'status': self.status}

    def accept(self, reason):
        """Accepts the reason that the ranks agreed on, unless this rank has its own.

        Args:
          reason: dict from `as_dict` of the rank that wrote the stop file.
        """
        self._is_agreed = True
        if self._reason is None:
            is_early = reason.get('status') == EARLY_STOPPED
            self._reason = reason.get('signal') or (EARLY_STOPPED if is_early else OUT_OF_TIME)

    def _when(self):
        """Returns when the run ends if a request arrives now, an `EndsWhen`."""
        waits_for_step = self._ends_when is EndsWhen.STEP_IS_OVER
        return EndsWhen.AT_ONCE if self._is_agreed and not waits_for_step else self._ends_when

    def _handle(self, number, frame):
        if self.status != INTERRUPTED:
            self._reason = number
            self._raise(signal.SIGALRM, frame)

    def _raise(self, number, frame):
        """Raises Stopped; waits while in a finalizer, where Python prints and drops exceptions."""
        del number
        if self._when() is not EndsWhen.AT_ONCE:
            return
        if _is_in_finalizer(frame):
            signal.setitimer(signal.ITIMER_REAL, _FINALIZER_SECS)
        else:
            raise Stopped

    def _listen(self):
        first_secs = None
        with self._reader:
            for number in iter(self._receive, None):
                if number not in _SIGNALS:
                    continue
                name = signal.Signals(number).name
                if first_secs is None:
                    first_secs = time.monotonic()
                    logging.warning('%s: the run ends%s. A second signal ends it at once.', name,
                                    self._when().value)
                elif time.monotonic() - first_secs > _SAME_REQUEST_SECS:
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
    """Ends a training session after a step; the checkpoint hook then saves.

    Args:
      stop: `StopRequest`.
      leader_dir: directory that all ranks can access; None for a single rank.
      rank: rank of this process.
    """
    # All ranks must make the same number of steps, or one would wait forever for the others. No
    # rank can be more than one step ahead, because every step involves all ranks. A rank that must
    # end therefore writes the stop file before its next step, which becomes the last one; all ranks
    # look for the file after that step.

    def __init__(self, stop, leader_dir=None, rank=0):
        self._stop = stop
        self._stop_file = leader_dir and os.path.join(leader_dir, _STOP_FILE)
        self._rank = rank
        self._runs = 0

    def begin(self):
        # Any file is from an earlier session: no rank makes a step before rank 0 begins this one.
        if self._stop_file and self._rank == 0 and tf.gfile.Exists(self._stop_file):
            tf.gfile.Remove(self._stop_file)

    def after_create_session(self, session, coord):
        if not self._stop_file and self._stop.must_end():
            coord.request_stop()

    def before_run(self, run_context):
        # An evaluation since the last session.run may have requested early stopping.
        if (self._stop_file and self._stop.status == EARLY_STOPPED
                and not tf.gfile.Exists(self._stop_file)):
            self._write_stop_file()

    def after_run(self, run_context, run_values):
        self._runs += 1
        if self._is_last_run():
            run_context.request_stop()

    def _is_last_run(self):
        if not self._stop_file:
            return self._stop.must_end()
        if not tf.gfile.Exists(self._stop_file):
            if self._stop.must_end():
                self._write_stop_file()
            return False
        agreed = json_files.read(self._stop_file, 'remove the file', _STOP_FIELDS)
        if self._runs < agreed['last_run']:
            return False
        self._stop.accept(agreed)
        return True

    def _write_stop_file(self):
        tf.gfile.MakeDirs(os.path.dirname(self._stop_file))
        # Several ranks may write the stop file at the same time.
        own_file = f'{self._stop_file}.{self._rank}'
        with whole_file(own_file) as file:
            json.dump({**self._stop.as_dict(), 'last_run': self._runs + 1}, file)
        tf.gfile.Rename(own_file, self._stop_file, overwrite=True)
