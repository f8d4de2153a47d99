"""The one exception for input that a person can correct, and what its message quotes."""


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what would be right.

    Scripts print the message as ``error: ...`` and exit with status 2; in a notebook it is a
    ``ValueError``.

    Example:
        >>> try:
        ...     eap.load_dataset("ioii", model.tokenizer)
        ... except eap.UserError as error:
        ...     message = str(error)
    """


def quoted(text: object, most: int = 100) -> str:
    """A person's text as a message shows it: on one line, at most `most` characters of it.

    Characters that are shown as escapes count as what is shown; a few more may stand.
    """
    shown = repr(text if len(str(text)) <= most else f"{str(text)[: most - 3]}...")
    return shown if len(shown) <= most + 20 else f"{shown[: most + 17]}..."


def first_line(error: BaseException, most: int = 300) -> str:
    """Kind and first line of another library's error, without its advice to run foreign code."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else ""
    if "weights_only" in line:
        line = "the .bin file holds more than tensors; save the weights as safetensors"
    return f"{type(error).__name__}: {line[:most]}" if line else type(error).__name__
