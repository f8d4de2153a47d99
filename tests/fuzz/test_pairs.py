"""Whatever a file of pairs holds: pairs of one's own, or one line that says what is wrong."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import CELLS, campaign, damaged, result_or_refusal
from transformers import AutoTokenizer

import eap
from eap.model.directory import TOY_MODEL

COLUMNS = ("clean", "corrupted", "correct", "incorrect")
ROW = ("When Mary and John went, John gave to", "When Mary and John went, Mary gave to",
       " Mary", " John")  # fmt: skip
CSV = "\n".join([",".join(COLUMNS), *[",".join(f'"{cell}"' for cell in ROW)] * 2]).encode()
JSON = json.dumps([dict(zip(COLUMNS, ROW, strict=True))] * 2).encode()
LINES = b"\n".join([json.dumps(dict(zip(COLUMNS, ROW, strict=True))).encode()] * 2)

IDS = st.lists(st.integers(-2, 10**5) | st.booleans() | st.none(), max_size=4)
VALUES = CELLS | IDS | st.none() | st.floats() | st.dictionaries(st.text(max_size=3), CELLS)


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(TOY_MODEL)


def read(data, *, drop_unfit: bool = False) -> None:
    """Pairs, whose prompts are not empty and have answers, or a refusal."""
    found = result_or_refusal(
        lambda: eap.load_dataset("mine", tokenizer(), data=data, drop_unfit=drop_unfit)
    )
    if found is None:
        return
    assert len(found) >= 1
    for pair in found.examples:
        assert len(pair.clean) > 0
        assert len(pair.corrupted) in (0, len(pair.clean))  # without its column there is none


@campaign
@given(
    st.sampled_from([("csv", CSV), ("json", JSON), ("jsonl", LINES), ("tsv", CSV)]),
    st.data(),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, kind, data):
    suffix, whole = kind
    path = tmp_path_factory.getbasetemp() / f"pairs.{suffix}"
    path.write_bytes(data.draw(damaged(whole)))
    read(path, drop_unfit=data.draw(st.booleans()))


@campaign
@given(
    st.lists(st.dictionaries(st.sampled_from([*COLUMNS, "x", ""]), VALUES, max_size=5), max_size=3),
    st.booleans(),
)
@example([{"clean": "x" * 5000, "corrupted": 1e90}], False)
@example([{"clean": "\u202e" * 300, "corrupted": "\u202e" * 301}], False)
@example([{"a\nb": "x"}], False)
def test_odd_records_are_read_or_refused(records, drop_unfit):
    whole = dict(zip(COLUMNS, ROW, strict=True))
    read([whole, *({**whole, **record} for record in records)], drop_unfit=drop_unfit)


@campaign
@given(VALUES | st.binary(max_size=20))
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_data_is_refused(value):
    read(value)
