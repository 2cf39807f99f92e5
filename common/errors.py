"""The one exception for a user's mistake. Any room may raise it; entry points print it.

And what its sentence quotes of another exception.
"""


class UserError(Exception):
    """Something the user can put right. The message is one sentence: what is wrong and the cure."""


def first_line(error):
    """What an exception of TensorFlow or of Python says, without what follows on further lines."""
    lines = str(getattr(error, 'message', error)).splitlines()
    return lines[0] if lines else type(error).__name__
