"""The one exception for input that a person can correct, and how their text is quoted in it."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what would be right.

    Scripts print it as ``error: ...`` and exit with status 2; in a notebook it is a ``ValueError``.
    """


def quoted(text: object, most: int = 100) -> str:
    """A person's text as a message shows it: on one line, at most `most` characters of it."""
    shown = repr(text if len(str(text)) <= most else f"{str(text)[: most - 3]}...")
    return shown if len(shown) <= 2 * most else f"{shown[: 2 * most]}..."
