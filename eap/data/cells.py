"""Cells of data: the one place that defines what an answer, a label or a token id is.

A cell arrives in the type of its source (text of a CSV, a JSON value, a NumPy number, a tensor).
`plain` converts it to Python's own types without loss; the other functions interpret it, whatever
its form. Only the name of a column can mark its numbers as token ids.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pandas as pd

from eap.runtime.errors import quoted

Cell = Any
"""None (missing), a bool, int, float or str, or a list or dict of these; others have no meaning."""

# Longest text that may be read as a list.
LONGEST_LIST = 100_000
NUMBER = r"[0-9]{1,9}(?:\.0*)?"
# Numbers as libraries print them: abbreviated, or as an object of the library.
PRINTED = re.compile(r"\s*(?:(?:tensor|array)\(\[.*|\[[0-9\s,.]*\.\.\.[0-9\s,.]*\])\s*", re.DOTALL)
# A text in quotes, and the space after it.
QUOTED = re.compile(r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")\s*""")
NUMBERS = re.compile(rf"\[\s*{NUMBER}(?:(?:\s*,\s*|\s+){NUMBER})*\s*\]")


class UnfitRowError(ValueError):
    """Row that cannot be used; rows are counted by `kind`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def plain(value: Any) -> Cell:
    """Convert a value of NumPy, pandas, Arrow or a tensor to Python's own types."""
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
    """Whether a cell is empty."""
    return cell is None or (isinstance(cell, str) and not cell)


def as_text(cell: Cell, what: str) -> str:
    """Text of a cell; whole numbers are written without a point, and booleans as True and False.

    Raises:
        UnfitRowError: the cell is neither text nor a number, or has half of a character.
    """
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():  # pandas turns ints beside gaps into floats
        cell = int(cell)
    if not isinstance(cell, bool | int | float | str):
        raise UnfitRowError("bad cells", f"{what} is {quoted(cell)}, neither text nor a number")
    text = cell if isinstance(cell, str) else str(cell)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnfitRowError("half characters", f"{what} has half a character: {quoted(text)}")
    return text


def as_label(cell: Cell, what: str) -> str:
    """Text of a label that a task reads: 1 and 0 for True and False, 52 for 52.0."""
    if isinstance(cell, list):
        return repr(cell)
    text = as_text(cell, what)
    if text.strip() in ("True", "False"):
        return str(int(text.strip() == "True"))
    whole = re.fullmatch(r"\s*(\d{1,9})\.0*\s*", text)
    return whole.group(1) if whole else text


# ---- answers -------------------------------------------------------------------------------------


def answer_texts(cell: Cell, side: str) -> tuple[str, ...]:
    """Answers of a cell as texts: separated by `|` in a text, or one per entry of a list.

    Text that is a list in a CSV (`['a', 'b']`) counts as that list.

    Raises:
        UnfitRowError: the cell is neither, or may hold token ids.
    """
    items = cell if isinstance(cell, list) else [cell]
    if isinstance(cell, str):
        written = written_list(cell)
        if written is None:
            return tuple(answer for answer in as_text(cell, side).split("|") if answer)
        if not written or not all(isinstance(item, str | bool | None) for item in written):
            raise UnfitRowError(
                "bad answers",
                f"{side} is the text {quoted(cell)}, which looks like a list; answers are "
                f"separated by |, token ids are in {side}_idx",
            )
        items = written
    if any(isinstance(item, list) for item in items):
        raise UnfitRowError(
            "bad answers",
            f"{side} is {quoted(cell)}, lists within a list; token ids are in {side}_idx",
        )
    texts = (as_text(item, f"the {side} answer") for item in items)
    return tuple(text for text in texts if text)


def written_list(text: str) -> list[Cell] | None:
    """Entries of a list that is written as text, in JSON or Python; None: the text is not a list.

    NumPy prints texts without commas between them. Python would join them, so they are not a list.
    """
    if not (text.startswith("[") and text.endswith("]")) or len(text) > LONGEST_LIST:
        return None
    if "''" in QUOTED.sub("'", text):
        return None
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            items = read(text)
            return items if isinstance(items, list) else None
    return None


# ---- token ids -----------------------------------------------------------------------------------


def is_id_list(cell: Cell) -> bool:
    """Whether a cell is a list of whole numbers, possibly as text in a CSV ([5, 6] or [5 6])."""
    if isinstance(cell, str):
        return len(cell) <= LONGEST_LIST and NUMBERS.fullmatch(cell.strip()) is not None
    return isinstance(cell, list) and bool(cell) and all(_whole(item) is not None for item in cell)


def prompt_ids(cell: Cell, what: str) -> tuple[int, ...]:
    """Token ids of a prompt, from a list of numbers that may have a batch axis of size one.

    Raises:
        UnfitRowError: the cell is not such a list.
    """
    return _whole_numbers(_unbatched(_listed(cell)), cell, what)


def answer_ids(cell: Cell, what: str) -> tuple[int, ...]:
    """Token ids of answers, from a number, a list of numbers, or a list of lists of one number.

    Raises:
        UnfitRowError: the cell is none of these, or an answer has several tokens.
    """
    items = _listed(cell)
    if items and all(isinstance(item, list) for item in items):
        if any(len(item) != 1 for item in items):
            raise UnfitRowError(
                "answers of several tokens",
                f"{what} is {quoted(cell)}, lists of several tokens; an answer is a single token",
            )
        items = [item[0] for item in items]
    return tuple(dict.fromkeys(_whole_numbers(items, cell, what)))


def _listed(cell: Cell) -> list[Any]:
    """Entries of a list, which may be written as text; a cell that is no list is the only entry."""
    text = cell.strip() if isinstance(cell, str) else ""
    if len(text) <= LONGEST_LIST and NUMBERS.fullmatch(text):
        return text[1:-1].replace(",", " ").split()
    if text.startswith("["):
        with suppress(ValueError, RecursionError):
            return json.loads(text[:LONGEST_LIST])
    return cell if isinstance(cell, list) else [cell]


def _unbatched(items: list[Any]) -> list[Any]:
    """Entries without a batch axis of size one."""
    return items[0] if len(items) == 1 and isinstance(items[0], list) else items


def _whole_numbers(items: list[Any], cell: Cell, what: str) -> tuple[int, ...]:
    numbers = [_whole(item) for item in items]
    ids = tuple(number for number in numbers if number is not None)
    if len(ids) < len(numbers):
        raise UnfitRowError(
            "bad ids", f"{what} is {quoted(cell)}, not a token id or a list of them"
        )
    return ids


def _whole(value: Any) -> int | None:
    """Whole number of at least 0, or None; pandas writes numbers beside gaps with a point."""
    if isinstance(value, str):
        text = value.strip()
        return int(float(text)) if re.fullmatch(NUMBER, text) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return int(value) if is_whole else None


# ---- padding -------------------------------------------------------------------------------------


def masked(ids: Sequence[int], mask: Cell, what: str) -> tuple[int, ...]:
    """Ids that an attention mask keeps, which must be consecutive.

    Raises:
        UnfitRowError: the mask does not fit the ids, or keeps no ids or several runs of ids.
    """
    bits = [int(bit) if isinstance(bit, bool) else _whole(bit) for bit in _unbatched(_listed(mask))]
    kept = "".join(str(bit) for bit in bits)
    if len(bits) != len(ids) or {*bits} - {0, 1} or not re.fullmatch("0*1+0*", kept):
        raise UnfitRowError(
            "bad masks",
            f"the attention mask of the {what} prompt is {quoted(mask)}; it needs {len(ids)} "
            "numbers 0 or 1, the ones side by side",
        )
    return tuple(token for token, bit in zip(ids, bits, strict=True) if bit)


def count_padding(ids: Sequence[int], padding: int) -> tuple[int, int]:
    """Numbers of padding tokens at the beginning and at the end of ids."""
    real = [place for place, token in enumerate(ids) if token != padding]
    return (real[0], len(ids) - 1 - real[-1]) if real else (len(ids), 0)
