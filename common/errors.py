"""The exception for a user's mistake, and short texts of other exceptions."""


class UserError(Exception):
    """A mistake that the user can correct.

    The message has the form `thing: what is wrong; what to do.` Any module may raise it; entry
    points print it without a traceback.
    """


class DiskFullError(UserError):
    """No space is left; the same command succeeds once there is some."""


def first_line(error):
    """Returns the first line of an exception's message, or its type if it has none.

    For an operating system error, that is the system's text without number and path.
    """
    return _lines(error)[0]


def last_line(error):
    """Returns the last line of an exception's message, or its type if it has none."""
    return _lines(error)[-1]


def _lines(error):
    # TensorFlow's errors have a message without the stack of the operation.
    text = str(getattr(error, 'strerror', None) or getattr(error, 'message', None) or error)
    return [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
