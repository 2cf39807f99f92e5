"""Log lines at the beginning and end of each slow stage of a program."""
import contextlib
import time

from absl import logging

from common.quantities import secs_text


@contextlib.contextmanager
def stage(what):
    """Logs `what` at the beginning of the with block, and its duration at the end.

    Args:
      what: str without a period, such as 'Building the evaluation graph'.
    """
    logging.info('%s.', what)
    start_secs = time.monotonic()
    yield
    logging.info('%s took %s.', what, secs_text(time.monotonic() - start_secs))
