"""Log lines that say what a program waits for, and how long that took."""
import contextlib
import time

from absl import logging

from common.quantities import secs_text


@contextlib.contextmanager
def stage(what):
    """Logs that `what` begins and, when the with block is over, how long it took.

    Args:
      what: str without a full stop, such as 'Building the evaluation graph'.
    """
    logging.info('%s.', what)
    start_secs = time.monotonic()
    yield
    logging.info('%s took %s.', what, secs_text(time.monotonic() - start_secs))
