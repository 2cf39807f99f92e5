"""Shows the progress of training and evaluations: a live line on a terminal, or log lines."""
import contextlib
import logging as standard_logging
import os
import sys
import time
from typing import NamedTuple
from typing import Optional

from absl import logging
import tensorflow.compat.v1 as tf
import tqdm

_BAR_FORMAT = '{desc} {percentage:3.0f}%|{bar}|'
_BAR_COLUMNS = 8            # minimum width of percentage and bar
_DEFAULT_COLUMNS = 80       # width of a terminal that does not report it
_MAX_SILENCE_SECS = 30      # between two log lines


class Progress(NamedTuple):
    """Progress of training. Values that are not known yet are None.

    Attributes:
      step, total_steps: the current and the last global step.
      epoch, total_epochs: the same in epochs, as floats.
      loss, top_1, learning_rate: values of the last step.
      smoothed_loss: moving average of the loss that weights recent steps more.
      images_per_sec: sum over all ranks.
      input_stall: fraction of the time for which the device waited for input, in [0, 1].
      eta_secs: seconds until the run ends, including the remaining saves and evaluations.
    """
    step: int
    total_steps: int
    epoch: float
    total_epochs: float
    loss: float
    top_1: float
    learning_rate: float
    smoothed_loss: Optional[float] = None
    images_per_sec: Optional[float] = None
    input_stall: Optional[float] = None
    eta_secs: Optional[float] = None

    @property
    def line(self):
        """The text of a log line."""
        stall = '' if self.input_stall is None else f'  input stall {self.input_stall:.0%}'
        return (f'step {self.step}/{self.total_steps}  epoch {self.epoch:.2f}  '
                f'loss {self._loss(4)}  top-1 {self.top_1:.3f}  lr {self.learning_rate:.3g}  '
                f'{_rate(self.images_per_sec)}  ETA {_eta(self.eta_secs)}{stall}')

    def fitted_line(self, columns):
        """Returns the text for a terminal; a narrow one gets only the most important parts."""
        parts = {'epoch': f'epoch {self.epoch:.2f}/{self.total_epochs:.4g}',
                 'step': f'step {self.step}/{self.total_steps}', 'loss': f'loss {self._loss(3)}',
                 'top_1': f'top-1 {self.top_1:.3f}',
                 'learning_rate': f'lr {self.learning_rate:.2g}'}
        rate, stall = self.images_per_sec, self.input_stall
        if rate is not None:
            parts['images_per_sec'] = f'{rate:.{0 if rate >= 100 else 1}f} images/s'
        if stall is not None:
            parts['input_stall'] = f'input stall {stall:.0%}'
        parts['eta'] = f'ETA {_eta(self.eta_secs)}'
        for name, shorter in (('epoch', f'epoch {self.epoch:.2f}'), ('learning_rate', ''),
                              ('input_stall', ''), ('loss', f'loss {self.loss:.3f}'),
                              ('epoch', '')):
            if len(_joined(parts)) > columns and name in parts:
                parts[name] = shorter
        return _joined(parts)

    @property
    def fraction(self):
        """The fraction of the steps that are done, in [0, 1]."""
        return self.step / self.total_steps

    def _loss(self, digits):
        smoothed = self.smoothed_loss
        return f'{self.loss:.{digits}f}' + (
            '' if smoothed is None else f' (smoothed {smoothed:.{digits}f})')


class EvaluationProgress(NamedTuple):
    """Progress of an evaluation; has the same text properties as `Progress`.

    Attributes:
      what: str, such as 'Evaluating step 40, ema weights:'.
      num_images: number of images evaluated so far.
      total_images: number of images to evaluate, or None if unknown.
      images_per_sec: None until the second batch.
    """
    what: str
    num_images: int
    total_images: Optional[int] = None
    images_per_sec: Optional[float] = None

    @property
    def line(self):
        """The text of a log line."""
        total, eta_secs = '', None
        if self.total_images:
            total = f'/{self.total_images}'
            if self.images_per_sec:
                eta_secs = (self.total_images - self.num_images) / self.images_per_sec
        return (f'{self.what}  {self.num_images}{total} images  {_rate(self.images_per_sec)}  '
                f'ETA {_eta(eta_secs)}')

    def fitted_line(self, columns):
        """Returns the text for a terminal, truncated to `columns` characters."""
        return self.line[:columns]

    @property
    def fraction(self):
        """The fraction of the images that are evaluated, in [0, 1]; 0 if unknown."""
        return self.num_images / self.total_images if self.total_images else 0.0


def _rate(images_per_sec):
    return '- images/s' if images_per_sec is None else f'{images_per_sec:.1f} images/s'


def _eta(secs):
    if secs is None:
        return '-'
    hours, rest = divmod(int(secs), 3600)
    return f'{hours}:{rest // 60:02d}:{rest % 60:02d}'


def _joined(parts):
    return ' '.join(filter(None, parts.values()))


class Lines:
    """Logs progress: the first step, each step that is due, and at least one line every 30 s."""

    def __init__(self):
        self._line_secs = None    # when the last line was written

    def begin(self):
        """Prepares for a new session, whose first step is always logged."""
        self._line_secs = None

    def update(self, progress):
        """Logs `progress` if the last line is 30 s old; to be called after each session.run.

        Args:
          progress: a `Progress` or an `EvaluationProgress`.
        """
        now = time.monotonic()
        if self._line_secs is None or now - self._line_secs >= _MAX_SILENCE_SECS:
            self.report(progress)

    def report(self, progress):
        """Logs `progress`; to be called when a log line is due."""
        self._line_secs = time.monotonic()
        logging.info('%s', progress.line)

    def begin_evaluation(self):
        """Prepares for an evaluation, which logs its first line after 30 s."""
        self._line_secs = time.monotonic()

    def end_evaluation(self):
        """Restarts the interval between log lines, after an evaluation, even a failed one."""
        self._line_secs = time.monotonic()


class LiveLine:
    """Shows progress in one line at the bottom of a terminal; has the methods of `Lines`."""

    def __init__(self, stream):
        self._stream = stream
        self._bar = None
        self._last_step = None    # the last `Progress`; `close` logs it

    def begin(self):
        """Does nothing, because every step is shown."""

    def update(self, progress):
        columns = self._columns()
        text = progress.fitted_line(columns)
        if isinstance(progress, Progress):
            self._last_step = progress
        if self._bar is None:
            self._bar = tqdm.tqdm(
                total=1.0, file=self._stream, leave=False, bar_format='{desc}', miniters=0,
                desc=text)
        self._bar.bar_format = _BAR_FORMAT if len(text) + _BAR_COLUMNS <= columns else '{desc}'
        self._bar.set_description_str(text, refresh=False)
        self._bar.ncols = columns
        # The difference is negative after a step that loss scaling skipped, and after evaluations.
        self._bar.update(progress.fraction - self._bar.n)

    report = update

    begin_evaluation = begin

    def end_evaluation(self):
        """Shows the last step again."""
        if self._last_step:
            self.update(self._last_step)

    def close(self):
        """Removes the live line and logs the last training step, if there was one."""
        if self._bar is not None:
            self._bar.close()
        if self._last_step:
            logging.info('%s', self._last_step.line)

    def _columns(self):
        # The last column stays free, because some terminals start a new line after it.
        return (os.get_terminal_size(self._stream.fileno()).columns or _DEFAULT_COLUMNS) - 1


@contextlib.contextmanager
def evaluating(display, what, batch_size, total_images):
    """Context of an evaluation; yields a function to call with the number of batches so far.

    The rate excludes the first batch, which includes the compilation of the graph.

    Args:
      display: `Lines` or `LiveLine`.
      what: str, see `EvaluationProgress`.
      batch_size: images per batch.
      total_images: number of images to evaluate, or None if unknown.
    """
    first_end_secs = None

    def show(number):
        nonlocal first_end_secs
        num_images, rate = number * batch_size, None
        if number == 1:
            first_end_secs = time.monotonic()
        elif number > 1:
            rate = (number - 1) * batch_size / (time.monotonic() - first_end_secs)
        display.update(EvaluationProgress(
            what, min(num_images, total_images or num_images), total_images, rate))

    display.begin_evaluation()
    try:
        yield show
    finally:
        display.end_evaluation()


class _AboveLiveLine(standard_logging.Handler):
    """Replaces a log handler and writes its records above the live line."""

    def __init__(self, handler):
        super().__init__(handler.level)
        self.format = handler.format

    def emit(self, record):
        tqdm.tqdm.write(self.format(record), file=sys.stderr)


def _stream_of(handler):
    # absl's handler wraps the handler with the stream, so tqdm.contrib.logging does not find it.
    return getattr(getattr(handler, 'python_handler', handler), 'stream', None)


@contextlib.contextmanager
def shown(is_shown=True):
    """Context of a training session or an evaluation; yields its `Lines` or `LiveLine`.

    A `LiveLine` is used if stderr is a terminal. Log records of absl and TensorFlow then appear
    above it.

    Args:
      is_shown: bool, whether a `LiveLine` may be used.
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
