"""The one exception for a user's mistake. Any room may raise it; entry points print it."""


class UserError(Exception):
    """Something the user can put right. The message is one sentence: what is wrong and the cure."""
