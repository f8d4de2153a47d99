"""The one exception for input that a person can correct."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what would be right.

    Scripts print it as ``error: ...`` and exit with status 2; in a notebook it is a ``ValueError``.
    """
