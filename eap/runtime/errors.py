"""The exception for input that a user can correct, and functions that quote values in messages."""


class UserError(ValueError):
    """Invalid input. The message is one line that says what is wrong, and what would be right.

    Scripts print the message as ``error: ...`` and exit with status 2; in a notebook it is a
    ``ValueError``.

    Example:
        >>> try:
        ...     eap.load_dataset("ioii", model.tokenizer)
        ... except eap.UserError as error:
        ...     message = str(error)
    """


def quoted(text: object, most: int = 100) -> str:
    """Text of a user for a message, on one line and cut to about `most` characters.

    Escaped characters count with the length of the escape, so the result may be a little longer.
    """
    shown = repr(text if len(str(text)) <= most else f"{str(text)[: most - 3]}...")
    return shown if len(shown) <= most + 20 else f"{shown[: most + 17]}..."


def first_line(error: BaseException, most: int = 300) -> str:
    """Kind and first line of another library's error, without advice to run foreign code."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else ""
    if "weights_only" in line:
        line = "the .bin file holds more than tensors; save the weights as safetensors"
    return f"{type(error).__name__}: {line[:most]}" if line else type(error).__name__
