"""What a cell of data means: the one place that says what an answer, a label or a token id is.

A cell arrives in the types of its source (a CSV's text, JSON's values, NumPy's numbers, a tensor).
`plain` gives it Python's own types and loses none; the other functions say what it means, whatever
the form. The name of a column is the only sign that its numbers are token ids.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pandas as pd

from eap.runtime.errors import quoted

Cell = Any
"""None (missing), a bool, int, float, str, a list or dict of these; else it means nothing."""

# A longer text is not looked at as a list.
LONGEST_LIST = 100_000
NUMBER = r"[0-9]{1,9}(?:\.0*)?"
# How libraries print numbers that they leave some of out, or that are an object of theirs.
PRINTED = re.compile(r"\s*(?:(?:tensor|array)\(\[.*|\[[0-9\s,.]*\.\.\.[0-9\s,.]*\])\s*", re.DOTALL)
NUMBERS = re.compile(rf"\[\s*{NUMBER}(?:(?:\s*,\s*|\s+){NUMBER})*\s*\]")


class UnfitRowError(ValueError):
    """A row that cannot be used; `kind` is what is counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def plain(value: Any) -> Cell:
    """A value in Python's own types, whether NumPy's, pandas', Arrow's or a tensor."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or value is pd.NA or value is pd.NaT or isinstance(value, bool):
        return value if isinstance(value, bool) else None
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == int(value) else float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    for method in ("tolist", "as_py", "to_list"):
        if callable(getattr(value, method, None)) and not isinstance(value, type):
            inner = getattr(value, method)()
            return inner if type(inner) is type(value) else plain(inner)
    return value


def is_missing(cell: Cell) -> bool:
    """Whether nothing stands in a cell."""
    return cell is None or (isinstance(cell, str) and not cell)


def as_text(cell: Cell, what: str) -> str:
    """The text of a cell: a number as it is written, a whole one without a point, True and False.

    Raises:
        UnfitRowError: it is something else, or not whole characters.
    """
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():  # whole numbers beside missing ones
        cell = int(cell)
    if not isinstance(cell, bool | int | float | str):
        raise UnfitRowError("bad cells", f"{what} is {quoted(cell)}, neither text nor a number")
    text = cell if isinstance(cell, str) else str(cell)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnfitRowError("half characters", f"{what} has half a character: {quoted(text)}")
    return text


def as_label(cell: Cell, what: str) -> str:
    """The text of a label that a task reads: 1 and 0 for True and False, 52 for 52.0."""
    if isinstance(cell, list):
        return repr(cell)
    text = as_text(cell, what)
    if text.strip() in ("True", "False"):
        return str(int(text.strip() == "True"))
    whole = re.fullmatch(r"\s*(\d{1,9})\.0*\s*", text)
    return whole.group(1) if whole else text


# ---- answers -------------------------------------------------------------------------------------


def answer_texts(cell: Cell, side: str) -> tuple[str, ...]:
    """The answers of a cell as texts: of text, what `|` separates; of a list, each entry.

    A list that a CSV holds as text (`['a', 'b']`) is that list.

    Raises:
        UnfitRowError: it is neither, or may be token ids.
    """
    if isinstance(cell, str):
        items = _quoted_list(cell, side)
        if items is None:
            return tuple(answer for answer in as_text(cell, side).split("|") if answer)
    else:
        items = cell if isinstance(cell, list) else [cell]
    if any(isinstance(item, list) for item in items):
        raise UnfitRowError(
            "bad answers",
            f"{side} is {quoted(cell)}, lists within a list; token ids are in {side}_idx",
        )
    texts = (as_text(item, f"the {side} answer") for item in items)
    return tuple(text for text in texts if text)


def _quoted_list(text: str, side: str) -> list[Cell] | None:
    """The entries of a list that is written as text; None: the text is no list."""
    if not (text.startswith("[") and text.endswith("]")) or len(text) > LONGEST_LIST:
        return None
    items = _literal(text)
    if not isinstance(items, list):
        return None
    if items and all(isinstance(item, str | bool | None) for item in items):
        return items
    raise UnfitRowError(
        "bad answers",
        f"{side} is the text {quoted(text)}, which looks like a list; answers are separated by |, "
        f"token ids are in {side}_idx",
    )


def _literal(text: str) -> Any:
    """What a text is in JSON or Python; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


# ---- token ids -----------------------------------------------------------------------------------


def is_id_list(cell: Cell) -> bool:
    """Whether a cell is a list of whole numbers, as such or as a CSV holds it ([5, 6] or [5 6])."""
    if isinstance(cell, str):
        return len(cell) <= LONGEST_LIST and NUMBERS.fullmatch(cell.strip()) is not None
    return isinstance(cell, list) and bool(cell) and all(_whole(item) is not None for item in cell)


def prompt_ids(cell: Cell, what: str) -> tuple[int, ...]:
    """The token ids of a prompt: a list of numbers, which may have a batch axis of one.

    Raises:
        UnfitRowError: it is none.
    """
    listed = _listed(cell)
    if isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], list):
        listed = listed[0]
    return _whole_numbers(listed, cell, what)


def answer_ids(cell: Cell, what: str) -> tuple[int, ...]:
    """The token ids of answers: a number, a list of numbers, or of lists of one number each.

    Raises:
        UnfitRowError: it is none of these, or an answer has several tokens.
    """
    listed = _listed(cell)
    if isinstance(listed, list) and listed and all(isinstance(item, list) for item in listed):
        if any(len(item) != 1 for item in listed):
            raise UnfitRowError(
                "answers of several tokens",
                f"{what} is {quoted(cell)}, lists of several tokens; an answer is a single token",
            )
        listed = [item[0] for item in listed]
    return tuple(dict.fromkeys(_whole_numbers(listed, cell, what)))


def _listed(cell: Cell) -> Any:
    """A cell as a list, if it is one as text; else as it is."""
    text = cell.strip() if isinstance(cell, str) else ""
    if not text.startswith("["):
        return cell
    if NUMBERS.fullmatch(text) and len(text) <= LONGEST_LIST:
        return text[1:-1].replace(",", " ").split()
    try:
        return json.loads(text[:LONGEST_LIST])
    except (ValueError, RecursionError):
        return cell


def _whole_numbers(listed: Any, cell: Cell, what: str) -> tuple[int, ...]:
    numbers = [_whole(item) for item in (listed if isinstance(listed, list) else [listed])]
    ids = tuple(number for number in numbers if number is not None)
    if len(ids) < len(numbers):
        raise UnfitRowError(
            "bad ids", f"{what} is {quoted(cell)}, not a token id or a list of them"
        )
    return ids


def _whole(value: Any) -> int | None:
    """A whole number of at least 0; pandas writes those beside missing ones with a point."""
    if isinstance(value, str):
        text = value.strip()
        return int(float(text)) if re.fullmatch(NUMBER, text) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return int(value) if is_whole else None


# ---- padding -------------------------------------------------------------------------------------


def masked(ids: Sequence[int], mask: Cell, what: str) -> tuple[int, ...]:
    """The ids that an attention mask keeps: one run of them.

    Raises:
        UnfitRowError: it is no mask of these ids, or keeps none, or several runs.
    """
    bits = _listed(mask)
    bits = [int(bit) if isinstance(bit, bool) else _whole(bit) for bit in _flat(bits)]
    kept = "".join(str(bit) for bit in bits)
    if len(bits) != len(ids) or not re.fullmatch("0*1+0*", kept):
        raise UnfitRowError(
            "bad masks",
            f"the attention mask of the {what} prompt is {quoted(mask)}; it needs {len(ids)} "
            "numbers 0 or 1, the ones side by side",
        )
    return tuple(token for token, bit in zip(ids, bits, strict=True) if bit)


def _flat(bits: Any) -> list[Any]:
    if isinstance(bits, list) and len(bits) == 1 and isinstance(bits[0], list):
        return bits[0]
    return bits if isinstance(bits, list) else [bits]


def count_padding(ids: Sequence[int], padding: int) -> tuple[int, int]:
    """How many padding tokens ids begin and end with."""
    real = [place for place, token in enumerate(ids) if token != padding]
    return (real[0], len(ids) - 1 - real[-1]) if real else (len(ids), 0)
