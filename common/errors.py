"""The exception for a user's mistake, and how messages quote other exceptions."""


class UserError(Exception):
    """Something the user can put right. The message is one sentence: what is wrong and the cure."""


def first_line(error):
    """Returns the first line of what an exception of TensorFlow or Python says, or its type.

    Of an operating system's error these are the system's own words, without number and path.
    """
    text = getattr(error, 'strerror', None) or getattr(error, 'message', error)
    return next(iter(str(text).splitlines()), type(error).__name__)
