"""How far training is: a live line on a terminal, plain lines in a log."""
import contextlib
import os
import sys
from typing import NamedTuple
from typing import Optional

from absl import logging
import tensorflow.compat.v1 as tf
import tqdm

_BAR_FORMAT = '{desc} {percentage:3.0f}%|{bar}|'
_BAR_COLUMNS = 8            # that percentage and bar take at least
_UNKNOWN_COLUMNS = 80       # of a terminal that does not say


class Progress(NamedTuple):
    """Where training is. What is not known yet is None.

    Attributes:
      step, total_steps: global steps; where training ends.
      epoch, total_epochs: the same in epochs, with a fraction.
      loss, top_1, learning_rate: of the last step.
      images_per_sec: of all ranks together.
      input_stall: the share of the time for which the device waited for input.
      eta_secs: seconds until training ends, evaluations not counted.
    """
    step: int
    total_steps: int
    epoch: float
    total_epochs: float
    loss: float
    top_1: float
    learning_rate: float
    images_per_sec: Optional[float] = None
    input_stall: Optional[float] = None
    eta_secs: Optional[float] = None

    @property
    def line(self):
        """For a log."""
        rate = '-' if self.images_per_sec is None else f'{self.images_per_sec:.1f}'
        stall = '' if self.input_stall is None else f'  input stall {self.input_stall:.0%}'
        return (f'step {self.step}/{self.total_steps}  epoch {self.epoch:.2f}  '
                f'loss {self.loss:.4f}  top-1 {self.top_1:.3f}  lr {self.learning_rate:.3g}  '
                f'{rate} images/s  ETA {self._eta}{stall}')

    def fitted_line(self, columns):
        """For a terminal: what is least missed is left out where there is no room for it."""
        parts = {'epoch': f'epoch {self.epoch:.2f}/{self.total_epochs:.4g}',
                 'step': f'step {self.step}/{self.total_steps}', 'loss': f'loss {self.loss:.3f}',
                 'top_1': f'top-1 {self.top_1:.3f}',
                 'learning_rate': f'lr {self.learning_rate:.2g}'}
        rate, stall = self.images_per_sec, self.input_stall
        if rate is not None:
            parts['images_per_sec'] = f'{rate:.{0 if rate >= 100 else 1}f} images/s'
        if stall is not None:
            parts['input_stall'] = f'input stall {stall:.0%}'
        parts['eta'] = f'ETA {self._eta}'
        for name, shorter in (('epoch', f'epoch {self.epoch:.2f}'), ('learning_rate', ''),
                              ('input_stall', ''), ('epoch', '')):
            if len(_joined(parts)) > columns and name in parts:
                parts[name] = shorter
        return _joined(parts)

    @property
    def _eta(self):
        if self.eta_secs is None:
            return '-'
        hours, rest = divmod(int(self.eta_secs), 3600)
        return f'{hours}:{rest // 60:02d}:{rest % 60:02d}'


def _joined(parts):
    return ' '.join(filter(None, parts.values()))


class Lines:
    """Shows progress as lines of the log."""

    def update(self, progress):
        """Called after each session.run."""

    def report(self, progress):
        """Called when a line is due."""
        logging.info('%s', progress.line)


class LiveLine:
    """Shows progress as one line at the bottom of a terminal, above which everything else goes."""

    def __init__(self, stream):
        self._stream = stream
        self._bar = None
        self._last = None

    def update(self, progress):
        self._last = progress
        columns = self._columns()
        text = progress.fitted_line(columns)
        if self._bar is None:
            self._bar = tqdm.tqdm(
                total=progress.total_steps, initial=progress.step, file=self._stream, leave=False,
                bar_format='{desc}', miniters=1, desc=text)
        self._bar.bar_format = _BAR_FORMAT if len(text) + _BAR_COLUMNS <= columns else '{desc}'
        self._bar.set_description_str(text, refresh=False)
        self._bar.ncols = columns
        # A step that overflowed is taken back.
        self._bar.update(progress.step - self._bar.n)

    def report(self, progress):
        self.update(progress)

    def close(self):
        """Leaves a plain line in place of the live one."""
        if self._bar is not None:
            self._bar.close()
            logging.info('%s', self._last.line)

    def _columns(self):
        # The last column stays free: some terminals begin a new line after it.
        return (os.get_terminal_size(self._stream.fileno()).columns or _UNKNOWN_COLUMNS) - 1

    # What `sys.stderr` needs: its lines appear above the live one.

    def write(self, text):
        if self._bar is None:
            return self._stream.write(text)
        with tqdm.tqdm.get_lock():
            self._bar.clear(nolock=True)
            self._stream.write(text)
            if text.endswith('\n'):
                self._bar.refresh(nolock=True)
        return len(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def shown(is_shown=True):
    """Context of a training session; gives the `Lines` or `LiveLine` that its hooks report to.

    On a terminal what is logged meanwhile, or written to sys.stderr, goes above the live line.
    """
    stream = sys.stderr
    if not (is_shown and stream.isatty() and os.environ.get('TERM') != 'dumb'):
        yield Lines()
        return
    live = LiveLine(stream)
    handlers = [handler for handler in (logging.get_absl_handler().python_handler,
                                        *tf.get_logger().handlers)
                if getattr(handler, 'stream', None) is stream]
    try:
        sys.stderr = live
        for handler in handlers:
            handler.setStream(live)
        yield live
    finally:
        sys.stderr = stream
        for handler in handlers:
            handler.setStream(stream)
        live.close()
