"""How far training is: a live line on a terminal, plain lines in a log."""
import contextlib
import logging as standard_logging
import os
import sys
from typing import NamedTuple
from typing import Optional

from absl import logging
import tensorflow.compat.v1 as tf
import tqdm

_BAR_FORMAT = '{desc} {percentage:3.0f}%|{bar}|'
_BAR_COLUMNS = 8            # minimum width of percentage and bar
_DEFAULT_COLUMNS = 80       # width of a terminal that does not report it


class Progress(NamedTuple):
    """Where training is. Values that are not known yet are None.

    Attributes:
      step, total_steps: the current global step and the last one.
      epoch, total_epochs: the same in epochs, with a fraction.
      loss, top_1, learning_rate: of the last step.
      images_per_sec: of all ranks together.
      input_stall: share of the time for which the device waited for input.
      eta_secs: seconds until training ends, without evaluations.
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
        """The text of a log line."""
        rate = '-' if self.images_per_sec is None else f'{self.images_per_sec:.1f}'
        stall = '' if self.input_stall is None else f'  input stall {self.input_stall:.0%}'
        return (f'step {self.step}/{self.total_steps}  epoch {self.epoch:.2f}  '
                f'loss {self.loss:.4f}  top-1 {self.top_1:.3f}  lr {self.learning_rate:.3g}  '
                f'{rate} images/s  ETA {self._eta}{stall}')

    def fitted_line(self, columns):
        """Returns the text for a terminal, without the least important parts if it is narrow."""
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
        """Called when a log line is due."""
        logging.info('%s', progress.line)


class LiveLine:
    """Shows progress as one line at the bottom of a terminal; has the methods of `Lines`."""

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
        # Negative after a step that overflowed and was taken back.
        self._bar.update(progress.step - self._bar.n)

    report = update

    def close(self):
        """Leaves a plain line in place of the live one."""
        if self._bar is not None:
            self._bar.close()
            logging.info('%s', self._last.line)

    def _columns(self):
        # The last column stays free: some terminals start a new line after it.
        return (os.get_terminal_size(self._stream.fileno()).columns or _DEFAULT_COLUMNS) - 1


class _AboveLiveLine(standard_logging.Handler):
    """Stands in for a handler and writes its records above the live line."""

    def __init__(self, handler):
        super().__init__(handler.level)
        self.format = handler.format

    def emit(self, record):
        tqdm.tqdm.write(self.format(record), file=sys.stderr)


def _stream_of(handler):
    # absl's handler wraps the one that has the stream, so tqdm.contrib.logging does not find it.
    return getattr(getattr(handler, 'python_handler', handler), 'stream', None)


@contextlib.contextmanager
def shown(is_shown=True):
    """Context of a training session; gives the `Lines` or `LiveLine` that its hooks report to.

    On a terminal, log records of absl and TensorFlow appear above the live line meanwhile.
    """
    if not (is_shown and sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'):
        yield Lines()
        return
    live = LiveLine(sys.stderr)
    loggers = standard_logging.getLogger(), tf.get_logger()
    kept_handlers = [logger.handlers for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers = [
                _AboveLiveLine(handler) if _stream_of(handler) is sys.stderr else handler
                for handler in logger.handlers]
        yield live
    finally:
        for logger, handlers in zip(loggers, kept_handlers):
            logger.handlers = handlers
        live.close()
