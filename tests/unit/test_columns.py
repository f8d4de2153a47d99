"""Names of columns, spaces after commas, keys of JSON, classes: what a table may be like."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pandas as pd
import pytest
from own_rows import COLUMNS, EXPECTED, ROWS, TOKENIZER, frame, refusal, write

from eap.data.dataset import load_dataset


@pytest.mark.parametrize(
    "names",
    [
        ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),
        ("clean", "corrupt", "answers", "wrong_answers"),
        ("Clean", "CORRUPTED", "Correct", "Incorrect"),
        (" clean", "corrupted ", "correct", "incorrect\t"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "json", "frame"])
def test_columns_as_other_tools_call_them(names, form, tmp_path):
    renamed = frame().rename(columns=dict(zip(COLUMNS, names, strict=True)))
    data = renamed
    if form != "frame":
        content = (
            renamed.to_csv(index=False) if form == "csv" else renamed.to_json(orient="records")
        )
        data = write(tmp_path / f"x.{form}", content)
    assert load_dataset("own", TOKENIZER, data=data).examples == EXPECTED


def test_a_name_of_ours_goes_before_another_tools():
    rows = [{**row, "answers": "x", "clean_prefix": "y", "corrupt": "z"} for row in ROWS]
    assert load_dataset("own", TOKENIZER, data=rows).examples == EXPECTED
    ids = {"clean": "The hat is", "corrupted": "The cat is", "correct_idx": 7, "answers": "!"}
    assert load_dataset("own", TOKENIZER, data=[ids]).examples[0].correct == (7,)


def test_the_label_of_greater_than_is_read_by_either_name():
    prompts = {side: f"The war lasted from the year 135{d} to the year 135"
               for side, d in (("clean", 6), ("corrupted", 0))}  # fmt: skip
    examples = [
        load_dataset("greater-than", TOKENIZER, data=[{**prompts, name: label}]).examples
        for name in ("correct_idx", "label")
        for label in (6, "6", 6.0, "6.0", np.int64(6))
    ]
    assert all(one == examples[0] for one in examples)
    assert len(examples[0][0].correct) == 3


HEADER = "clean, corrupted, correct, incorrect\n"


@pytest.mark.parametrize(
    "text",
    [HEADER + "The hat is, The cat is, !, ?\n", HEADER.replace(", ", ",") + "A hat, A cat, !, ?\n"],
)
def test_spaces_after_commas_that_may_belong_to_answers_are_refused(text, tmp_path):
    assert "has a space after each comma" in refusal(write(tmp_path / "x.csv", text))


@pytest.mark.parametrize(
    "text",
    [
        HEADER + '"The hat is", "The cat is", "!", "?"\n"A mat, is", "A rat, is", "a|b", "c"\n',
        HEADER + 'The hat is,The cat is,!,?\n"A mat, is","A rat, is",a|b,c\n',
    ],
)
def test_spaces_after_commas_that_mean_nothing_are_left_out(text, tmp_path):
    assert load_dataset("own", TOKENIZER, data=write(tmp_path / "x.csv", text)).examples == EXPECTED


@pytest.mark.parametrize("letter", ["\u2028", "\u0085", "\x1c", "\f"])
def test_json_lines_end_at_line_feeds_alone(letter, tmp_path):
    ends = {side: f"{letter}!" if side in COLUMNS[:2] else "" for side in COLUMNS}
    rows = [{side: text + ends[side] for side, text in row.items()} for row in ROWS]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    data = write(tmp_path / "x.jsonl", lines)
    expected = load_dataset("own", TOKENIZER, data=rows).examples
    assert load_dataset("own", TOKENIZER, data=data).examples == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"clean": {"0": "a", "1": "b"}, "corrupted": {"0": "c"}, "correct": {"0": "d"}},
         "only one of clean and corrupted has a row '1'"),
        ({"clean": ["a", "b"], "corrupted": ["c"], "correct": ["d"]}, "columns of several lengths"),
        ({"train": ROWS, "test": ROWS}, "several lists of rows (train, test)"),
        ('[{"clean": "a", "clean": "b"}]', "two entries 'clean'"),
        ('{"clean": "a", "clean": "b"}\n{}', "two entries 'clean'"),
    ],
)  # fmt: skip
def test_json_that_may_mean_two_things_is_refused(document, message, tmp_path):
    text = document if isinstance(document, str) else json.dumps(document)
    assert message in refusal(write(tmp_path / "x.json", text))


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
def test_json_as_pandas_writes_it(orient, tmp_path):
    data = write(tmp_path / "x.json", frame().to_json(orient=orient))
    assert load_dataset("own", TOKENIZER, data=data).examples == EXPECTED


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_one_object_of_token_ids_is_one_row(name, tmp_path):
    row = {"clean_idx": [30, 31], "corrupted_idx": [30, 32], "correct_idx": [7, 8]}
    (example,) = load_dataset("own", TOKENIZER, data=write(tmp_path / name, json.dumps(row)))
    assert (example.clean[-2:], example.correct) == ((30, 31), (7, 8))


@pytest.mark.parametrize(
    "cell", ["[5]", "[5, 6]", "[]", [[5]], {"a": 1}, b"x", {"a"}, pd.Timestamp(0)]
)
def test_answers_that_may_be_ids_or_nothing_are_refused_by_their_column(cell):
    said = refusal([{**ROWS[0], "correct": cell}])
    assert "correct" in said
    assert "tokens" not in said


def test_classes_are_answers_by_their_names(tmp_path):
    names = datasets.ClassLabel(names=["!", "?"])
    features = datasets.Features({**dict.fromkeys(COLUMNS[:2], datasets.Value("string")),
                                  **dict.fromkeys(COLUMNS[2:], names)})  # fmt: skip
    rows = [{**ROWS[0], "correct": 0, "incorrect": 1}]
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(tmp_path / "x.parquet")
    for data in (table, table.with_format("arrow"), table.data.table, tmp_path / "x.parquet",
                 frame().head(1).astype("category")):  # fmt: skip
        assert load_dataset("own", TOKENIZER, data=data).examples == EXPECTED[:1]
