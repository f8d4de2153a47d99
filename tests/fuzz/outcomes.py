"""How many examples are tried, and the only outcomes that are allowed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from eap import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
"""`make fuzz N=5000` gives more; the same examples each time."""

campaign = settings(max_examples=EXAMPLES, deadline=None)

ODD_CELLS = st.sampled_from(
    ["", " ", "nan", "NaN", "inf", "-inf", "1e999", "-1", "0", "1e-320", "0x10", "1_000", "1,5",
     "٣", "None", "null", "true", "[]", "{}", "\x00", "\ufeff", "\u202e", '"', "'", "a\nb", "|",
     "||", " |", "=1+1", "9" * 400, "x" * 5000, "\ud800"]
)  # fmt: skip
"""What people, spreadsheets and other programs leave in a cell."""

CELLS = ODD_CELLS | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)


def result_or_refusal(work: Callable[[], Any], errors: type[Exception] = UserError) -> Any:
    """What the work gives; None if it refuses in one line of at most 400 characters."""
    try:
        return work()
    except errors as error:
        refusal = str(error)
    assert refusal.strip()
    assert "\n" not in refusal
    assert len(refusal) <= 400
    return None


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A whole file with bytes changed, cut out, repeated, or cut off."""
    content = bytearray(whole)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)
    ):
        content[place % len(content)] = value
    first, last = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    what = draw(st.sampled_from(["nothing", "cut out", "repeat", "cut off"]))
    if what == "cut out":
        del content[first:last]
    elif what == "repeat":
        content[first:first] = content[first:last]
    elif what == "cut off":
        del content[first:]
    return bytes(content)
