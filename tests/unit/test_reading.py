"""What people have -> rows: formats, separators, damaged files; rows that do not fit."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from random import Random

import datasets
import numpy as np
import pandas as pd
import pytest
from own_rows import COLUMNS, EXPECTED, ROWS, TOKENIZER, frame, refusal, write

from eap.data.cells import answer_ids, answer_texts, prompt_ids
from eap.data.dataset import Dataset, Example, load_dataset
from eap.data.tasks import TASKS
from eap.runtime.errors import UserError


def said_of(data, task):
    """What a refusal says; nothing where there is none."""
    try:
        load_dataset(task, TOKENIZER, data=data)
    except UserError as error:
        return str(error)
    return ""


# ---- formats -------------------------------------------------------------------------------------


FILES = {
    "rows.csv": lambda: frame().to_csv(index=False),
    "indexed.csv": lambda: frame().to_csv(),
    "crlf.csv": lambda: frame().to_csv(index=False, lineterminator="\r\n"),
    "bom.csv": lambda: b"\xef\xbb\xbf" + frame().to_csv(index=False).encode(),
    "blank-lines.csv": lambda: frame().to_csv(index=False).replace("\n", "\n\n"),
    "rows.tsv": lambda: frame().to_csv(index=False, sep="\t"),
    "tabs.csv": lambda: frame().to_csv(index=False, sep="\t"),
    "semicolons.csv": lambda: frame().to_csv(index=False, sep=";"),
    "list.json": lambda: json.dumps(ROWS),
    "list-in-a.csv": lambda: json.dumps(ROWS, indent=2),
    "prompts.json": lambda: json.dumps({"name": "hats", "prompts": ROWS}),
    "frame.json": lambda: frame().to_json(),
    "rows.jsonl": lambda: "\n".join(map(json.dumps, ROWS)),
    "rows.csv.gz": lambda: gzip.compress(frame().to_csv(index=False).encode()),
    "rows.csv.bz2": lambda: bz2.compress(frame().to_csv(index=False).encode()),
    "rows.jsonl.xz": lambda: lzma.compress("\n".join(map(json.dumps, ROWS)).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_every_format_are_the_same_rows(name, tmp_path):
    path = write(tmp_path / name, FILES[name]())
    for given in ({"data": path}, {"path": str(path)}):
        dataset = load_dataset("own", TOKENIZER, **given)
        assert dataset.examples == EXPECTED
        assert dataset.provenance["source"] == str(path)
        assert len(dataset.provenance["sha256"]) == 64


def test_parquet_and_objects_are_the_same_rows(tmp_path):
    frame().to_parquet(tmp_path / "rows.parquet")
    lists = frame().assign(correct=[["!"], ["a", "b"]])
    arrays = frame().assign(correct=[np.array(["!"]), np.array(["a", "b"])])
    for data in (
        tmp_path / "rows.parquet",
        frame(),
        frame().set_index(pd.Index([7, 7])),
        lists,
        arrays,
        datasets.Dataset.from_list(ROWS),
        tuple(ROWS),
    ):
        dataset = load_dataset("own", TOKENIZER, data=data)
        assert dataset.examples == EXPECTED
        assert dataset.provenance["source"]
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    assert "choose one of train" in refusal(splits)


def test_data_and_path_are_one_too_many(tmp_path):
    assert "one of them" in refusal(ROWS, path=tmp_path / "x.csv")


@pytest.mark.parametrize(
    "data", [5, "", b"", [], [1], {"clean": "a"}, object(), [{3: "a"}], list(EXPECTED)]
)
def test_what_is_no_data_is_refused(data):
    refusal(data)


# ---- cells and columns ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("The nurse ran, the man said,The king ran, the boy said, she, he", "line 2 has 6 cells"),
        ("The hat is,The cat is,!,?,", "line 2 has 5 cells and the header 4"),
        ("The hat is,The cat is,!", "line 2 has 3 cells and the header 4"),
        ('"The hat is,The cat is,!,?', "line 2 is not valid CSV"),
    ],
)
def test_cells_that_shift_the_columns_are_refused_by_that(row, message, tmp_path):
    path = write(tmp_path / "own.csv", f"{','.join(COLUMNS)}\n{row}\n")
    said = refusal(path)
    assert message in said
    assert "tokens" not in said


def test_a_line_is_counted_as_an_editor_does(tmp_path):
    text = f'{",".join(COLUMNS)}\n"The\nhat is","The\ncat is",!,?\nA hat is,A long cat is,!,?\n'
    assert "line 5: the clean prompt has" in refusal(write(tmp_path / "own.csv", text))


def test_words_that_look_like_nothing_are_words(tmp_path):
    text = "clean,corrupted,correct,incorrect\nNaN is,NUL is,N,n\n"
    (example,) = load_dataset("own", TOKENIZER, data=write(tmp_path / "x.csv", text)).examples
    assert TOKENIZER.decode(list(example.clean[1:])) == "NaN is"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("corrupted,correct,incorrect", "no column clean"),
        ("clean,corrupted,answer,other", "correct_idx and incorrect_idx as token ids"),
        ("clean,clean,corrupted,correct", "two columns 'clean'"),
        ("clean|corrupted|correct|incorrect", "separated by '|'"),
    ],
)
def test_columns_that_are_missing_are_named(columns, message, tmp_path):
    cells = columns.replace("clean", "a").replace("corrupted", "b")
    assert message in refusal(write(tmp_path / "own.csv", f"{columns}\n{cells}\n"))


def test_token_ids_are_taken_as_they_are():
    clean, corrupted = EXPECTED[0].clean, EXPECTED[0].corrupted
    for row in (
        {"clean": list(clean), "corrupted": list(corrupted), "correct": [7], "incorrect": [8, 9]},
        {"clean_idx": str(list(clean)), "corrupted_idx": str(list(corrupted)),
         "correct_idx": "7", "incorrect_idx": "[8, 9]"},
        {"clean": "The hat is", "corrupted": "The cat is", "correct_idx": 7.0,
         "incorrect_idx": np.array([8, 9])},
    ):  # fmt: skip
        (example,) = load_dataset("own", TOKENIZER, data=[row]).examples
        assert example == Example(clean, corrupted, (7,), (8, 9))


@pytest.mark.parametrize(
    "cell",
    ["1e999", "[1e999]", "-" * 3000 + "1", "x", "-1", "[-1]", "1,2", "[[1, 2]]", "[1", "1" * 5000,
     "__import__('os')", "1_0", "[1, ]", 10**6, [10**6], [True], [1.5], "inf", "nan"],
)  # fmt: skip
def test_ids_that_are_none_are_refused_in_one_line(cell):
    row = {"clean": "The hat", "corrupted": "The cat", "correct_idx": cell, "incorrect_idx": "5"}
    assert "correct_idx" in refusal([row])
    ioi = {
        "clean": "Then, Ann and Bob ran. Bob gave it to",
        "corrupted": "Then, Ann and Bob ran. Tom gave it to",
        "correct_idx": cell,
    }
    refusal([ioi], "ioi")


@pytest.mark.parametrize(
    ("cell", "ids"),
    [(7, (7,)), (7.0, (7,)), ("7", (7,)), ("7.0", (7,)), ([7, 8.0], (7, 8)), ("[7, 8]", (7, 8)),
     ("[ 7 , 8.0 ]", (7, 8)), ("[7 8]", (7, 8)), ("[]", ()), ([[7], [8]], (7, 8)),
     ("[[7]]", (7,)), ([7, 7], (7,))],
)  # fmt: skip
def test_ids_of_answers_have_one_meaning_in_every_writing(cell, ids):
    assert answer_ids(cell, "x") == ids


def test_ids_of_a_prompt_may_have_a_batch_axis_and_repeat():
    assert prompt_ids([[7, 7, 8]], "x") == prompt_ids("[7, 7, 8]", "x") == (7, 7, 8)


def test_texts_without_commas_between_them_as_numpy_prints_them_are_not_joined():
    printed = str(np.array([" Mary", " Ann"]))
    assert answer_texts(printed, "correct") == (printed,)
    assert answer_texts("[' Mary', ' ', \" 'n' 'n'\"]", "correct") == (" Mary", " ", " 'n' 'n'")


@pytest.mark.parametrize(
    "cell", ["[" * 3000, "-" * 3000 + "1", "['a'", "[1]", "['\\x']", "[]", "['a' 'b']"]
)
def test_lists_of_words_that_are_none_are_refused_in_one_line(cell):
    row = {"clean": ", ants and other", "corrupted": ", cows and other"}
    row |= {"answers": cell, "corrupted_answers": "['a']"}
    assert "not a list of words" in refusal([row], "hypernymy-comma")


def test_a_message_quotes_little_of_a_long_cell():
    long = "a " * 50_000
    assert len(refusal([{**ROWS[0], "clean": long}])) < 500


# ---- files that are none -------------------------------------------------------------------------


def test_what_is_no_file_is_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for data, message in {
        tmp_path: "folder",
        "": "empty",
        "a\0b.csv": "NUL",
        "https://example.org/x.csv": "address",
        "x" * 5000: "cannot be read",
        tmp_path / "pipe.csv": "not a regular file",
        tmp_path / "none.csv": "no data at",
        "~nobody-here/x.csv": "no data at",
    }.items():
        assert message in refusal(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv.gz", b"clean,corrupted", "not a complete .gz"),
        ("x.csv.gz", gzip.compress(b"clean" * 1000, mtime=0)[:20], "not a complete .gz"),
        ("x.csv.bz2", b"", "empty"),
        ("x.csv.xz", b"\0\1", "not a complete .xz"),
        ("x.zip", b"PK", "unpack it"),
        ("x.xlsx", b"PK", "save the sheet"),
        ("x.csv", b"", "empty"),
        ("x.csv", "clean,corrupted".encode("utf-16"), "is text in UTF-16, not a table of pairs"),
        ("x.csv", b"PK\x03\x04\xff", "is a zip file"),
        ("x.csv", "clean\nThé".encode("latin-1"), "not UTF-8 text (byte 8)"),
        ("x.jsonl", b'{"clean": "a"},\n{"clean": "b"}\n', "it ends in a comma"),
        ("x.csv", b"clean\0,corrupted\n", "NUL"),
        ("x.json", b'{"a": 1}', "not a list of objects"),
        ("x.json", b"[[1]]", "not a list of objects"),
        ("x.json", b"[" * 100_000, "neither JSON nor JSON lines"),
        ("x.jsonl", b'{"clean": "a"}\n{"clean": ', "line 2 is not a JSON object"),
        ("x.parquet", b"PAR1 and no more", "not complete Parquet"),
        ("x.csv", json.dumps(ROWS * 500)[:-5].encode(), "neither JSON nor JSON lines"),
    ],
)
def test_damaged_files_are_refused_in_one_line(name, content, message, tmp_path):
    said = refusal(write(tmp_path / name, content))
    assert message in said
    assert len(said) < 400


def test_no_damage_to_a_file_ends_in_anything_but_one_line(tmp_path):
    """A byte changed, cut out or put in, in files of every format."""
    frame().to_parquet(tmp_path / "whole.parquet")
    whole = [FILES[name]() for name in ("rows.csv", "rows.tsv", "list.json", "rows.jsonl")]
    whole = [w if isinstance(w, bytes) else w.encode() for w in whole]
    whole.append((tmp_path / "whole.parquet").read_bytes())
    inserted = (b'"', b",", b"\n", b"[", b"{", b"\0", b"\xff", b"null", b"1e999", b"\\ud800", b"|")
    source = Random(0)
    for _ in range(500):
        content = bytearray(source.choice(whole))
        for _ in range(source.randrange(1, 4)):
            place = source.randrange(len(content) + 1)
            length = source.choice((0, 1, 20, 10**6))
            content[place : place + length] = source.choice(inserted)
        path = write(tmp_path / f"x.{source.choice(('csv', 'json', 'parquet'))}", bytes(content))
        said = said_of(path, source.choice(("own", "ioi", "sva", "hypernymy-comma")))
        assert "\n" not in said
        assert len(said) < 700


ODD = ("", None, float("nan"), 5, -1, 1.5, True, [], {}, [1], ["a"], [None], [[1]], b"x", object())
ODD += (float("inf"), pd.NaT, pd.Timestamp(0), (1, 2), 10**30, "\ud800")


@pytest.mark.parametrize("task", ["own", *TASKS])
def test_no_cell_ends_in_anything_but_one_line(task):
    columns = [*COLUMNS, "correct_idx", "incorrect_idx", "clean_idx", "label", "plural", "answers"]
    for column in columns:
        for cell in ODD:
            for row in ({**ROWS[0], column: cell}, {"clean": "a", "corrupted": "b", column: cell}):
                assert "\n" not in said_of([row], task)


def test_rows_may_lack_cells():
    rows = [ROWS[0], {name: ROWS[1][name] for name in COLUMNS[:3]}]
    dataset = load_dataset("own", TOKENIZER, data=rows)
    assert [len(example.incorrect) for example in dataset.examples] == [1, 0]
    mixed = [ROWS[0], {"clean": "The hut is", "corrupted": "The cut is", "correct_idx": 7}]
    assert load_dataset("own", TOKENIZER, data=mixed).examples[1].correct == (7,)


# ---- rows that do not fit ------------------------------------------------------------------------


def test_rows_that_do_not_fit_are_refused_with_their_number_or_dropped_and_counted():
    bad = [
        {**ROWS[0], "corrupted": "The long cat is"},
        {**ROWS[0], "correct": "two tokens"},
        {**ROWS[0], "correct": ""},
    ]
    rows = [*ROWS, *bad]
    message = refusal(rows)
    assert "row 3: the clean prompt has" in message
    assert "3 of 5 rows do not fit" in message
    assert "--drop_unfit" in message
    dataset = load_dataset("own", TOKENIZER, data=rows, drop_unfit=True)
    assert dataset.examples == EXPECTED
    assert sum(dataset.provenance["dropped"].values()) == 3
    assert "dropped 1 unequal lengths" in dataset.summary()
    assert "none of the 3 rows fits" in refusal(bad)
    assert "only 0 pairs fit" in refusal(bad, drop_unfit=True)


def test_a_row_needs_no_incorrect_answer_and_says_so():
    rows = [{**ROWS[0], "incorrect": ""}, {"clean": "A b", "corrupted": "A c", "correct": "d"}]
    dataset = load_dataset("own", TOKENIZER, data=rows)
    assert [example.incorrect for example in dataset.examples] == [(), ()]
    assert "2 without an incorrect answer" in dataset.summary()
    assert "no correct answer" in refusal([{**ROWS[0], "correct": ""}])


def test_a_pair_with_the_opposite_answer_is_refused_and_a_repeated_one_is_not():
    opposite = {**ROWS[0], "correct": "?", "incorrect": "!"}
    assert "row 2: the same pair as row 1, with the opposite answer" in refusal([ROWS[0], opposite])
    assert len(load_dataset("own", TOKENIZER, data=[ROWS[0], ROWS[0]])) == 2
    turned = {**opposite, "clean": "The cat is", "corrupted": "The hat is"}
    assert len(load_dataset("own", TOKENIZER, data=[ROWS[0], turned])) == 2


def test_every_earlier_row_of_a_pair_is_compared():
    other = {**ROWS[0], "correct": "?", "incorrect": ""}
    opposite = {**ROWS[0], "correct": "!", "incorrect": "?"}
    plain = {**ROWS[0], "correct": "!", "incorrect": ""}
    assert len(load_dataset("own", TOKENIZER, data=[plain, other])) == 2
    assert "row 3: the same pair as row 2" in refusal([plain, other, opposite])


# ---- heads and tokenizers ------------------------------------------------------------------------


def test_the_head_of_a_head_is_what_it_has():
    whole = Dataset("own", EXPECTED * 5)
    first = whole.head(3).head(5)
    assert len(first) == first.provenance["head"] == first.provenance["pairs"] == 3
    assert first.provenance["tokens_sha256"] == first.tokens_sha256 != whole.tokens_sha256
    assert len(whole.head(100)) == 10
    for n in (0, -1, 2.0, True, "3"):
        with pytest.raises(UserError, match="whole number from 1"):
            whole.head(n)


@pytest.mark.parametrize("tokenizer", [None, "gpt2", 5, len])
def test_what_is_no_tokenizer_is_refused(tokenizer):
    with pytest.raises(UserError, match="tokenizer"):
        load_dataset("ioi", tokenizer)
