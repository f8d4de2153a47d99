"""Files and objects as people have them: the tokens that are meant, or one line that says why not.

Each case is data, the pairs that it means (None: it must be refused), and what a refusal must speak
of where one is allowed (of data that mean pairs, where two readings are possible).
"""

from __future__ import annotations

import datetime
import decimal
import json
import re

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from models.tokenizers import byte_tokenizer

import eap

MERGES = [("h", "e"), ("Ġ", "he"), ("m", "e"), ("Ġ", "me"), ("T", "r"), ("Tr", "u"), ("Tru", "e"),
          ("F", "a"), ("Fa", "l"), ("Fal", "s"), ("Fals", "e")]  # fmt: skip
BOS, EOS, PAD = range(3)


def tokenizer_with(pad=None):
    tokenizer = byte_tokenizer(MERGES, special=("<s>", "</s>", "<pad>"))
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


TOKENIZER, PADS, ENDS = tokenizer_with(), tokenizer_with("<pad>"), tokenizer_with("</s>")
ROW = {"clean": "I say", "corrupted": "U say", "correct": " he", "incorrect": " me"}
ROW2 = {"clean": "I cry", "corrupted": "U cry", "correct": " me", "incorrect": " he"}
ROWS = [ROW, ROW2]


def ids(text):
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


I_SAY, U_SAY = map(list, (ids("I say"), ids("U say")))


def pair(correct=(" he",), incorrect=(" me",), clean="I say", corrupted="U say"):
    answers = [[a if isinstance(a, int) else ids(a)[0] for a in side]
               for side in (correct, incorrect)]  # fmt: skip
    prompts = [(BOS, *ids(text)) if text else () for text in (clean, corrupted)]
    return eap.Example(*prompts, *answers)


PAIRS = [pair(), pair([" me"], [" he"], "I cry", "U cry")]
OF_IDS = [pair([20], [21])]


def table(rows=ROWS, **options):
    return pd.DataFrame(rows).to_csv(index=False, **options)


def answers(correct, incorrect=" me", **columns):
    return [{**ROW, "correct": correct, "incorrect": incorrect, **columns}]


def prompts(clean, corrupted, **columns):
    row = {"clean": clean, "corrupted": corrupted, "correct_idx": 20, "incorrect_idx": 21}
    return [{**row, **columns}]


def lines(rows, **options):
    return "\n".join(json.dumps(row, **options) for row in rows)


# Name of the file: its content, the pairs, what a refusal speaks of.
FILES = {
    "utf-16.csv": (table().encode("utf-16"), None, "UTF-8"),
    "latin-1.csv": (table().replace("say", "sé").encode("latin-1"), None, "UTF-8"),
    "carriage-returns.csv": (table(lineterminator="\r"), PAIRS, ""),
    "blank-end.csv": (f"{table()}\n\n", PAIRS, ""),
    "comment.csv": (f"# my pairs\n{table()}", None, "column|cells"),
    "excel.csv": (f"sep=,\n{table()}", None, "column|cells"),
    "bars.csv": (table(sep="|"), None, "separat"),
    "newline.csv": (
        table([{**ROW, "clean": "I\nsay", "corrupted": "U\nsay"}]),
        [pair(clean="I\nsay", corrupted="U\nsay")], "",
    ),
    "lists-of-texts.csv": (table(answers([" he"], [" me", "x"])),
                           [pair([" he"], [" me", "x"])], ""),
    "lists-as-json.csv": (table(answers('[" he"]', '[" me"]')), PAIRS[:1], ""),
    "lists-of-booleans.csv": (table(answers([True], [False])), [pair(["True"], ["False"])], ""),
    "lists-of-numbers.csv": (table(answers([5], [7])), [pair(["5"], ["7"])], "correct_idx"),
    "nested-ids.csv": (table(prompts("I say", "U say", correct_idx=[[20]])), OF_IDS, ""),
    "ids.csv": (table(prompts(I_SAY, U_SAY)), OF_IDS, ""),
    "arrays-of-ids.csv": (table(prompts(np.array(I_SAY), np.array(U_SAY))), OF_IDS, ""),
    "long-arrays.csv": (table(prompts(np.arange(2000) % 90, np.arange(2000) % 80)), None, "_idx"),
    "tensors.csv": (table(prompts(torch.tensor(I_SAY), torch.tensor(U_SAY))), None, "_idx"),
    "masks.csv": (table(prompts([*I_SAY, 9], [*U_SAY, 9], attention_mask=[1] * 5 + [0])),
                  OF_IDS, ""),
    "prompts-alone.csv": ("clean,correct,incorrect\nI say, he, me\n", [pair(corrupted="")], ""),
    "auto-circuit.json": (json.dumps({"seq_labels": ["a"], "prompts": [
        {"clean": row["clean"], "corrupt": row["corrupted"], "answers": [row["correct"]],
         "wrong_answers": [row["incorrect"]]} for row in ROWS]}), PAIRS, ""),
    "bom.json": (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), PAIRS, ""),
    "not-a-number.json": (json.dumps(answers(" he", float("nan"))), [pair(incorrect=[])], ""),
    "null.json": (json.dumps([{**ROW, "corrupted": None}]), [pair(corrupted="")], ""),
    "trailing-comma.json": (json.dumps(ROWS)[:-1] + ",]", None, "JSON"),
    "values.json": (json.dumps([list(ROW.values())]), None, "list of objects"),
    "one.json": (json.dumps(ROW), PAIRS[:1], ""),
    "ids-as-text.jsonl": (lines(prompts(str(I_SAY), str(U_SAY))), OF_IDS, ""),
    "indented.jsonl": (json.dumps(ROWS, indent=1), PAIRS, ""),
    "null.jsonl": (f"{lines(ROWS)}\nnull\n", None, "line 3"),
    "rows.ndjson": (lines(ROWS), PAIRS, ""),
    "lines.txt": (lines(ROWS), PAIRS, ""),
    "rows.npz": (b"PK", None, "save it"),
    "rows.arrow": (b"ARROW1", None, "Parquet"),
}  # fmt: skip

FRAME = pd.DataFrame(ROWS)
HUGGING_FACE = datasets.Dataset.from_list(ROWS)
ENCODED = [ENDS(texts, padding=True, add_special_tokens=False)
           for texts in (["I say", "I s"], ["U say", "U s"])]  # fmt: skip

# What it is: the data, the pairs, what a refusal speaks of.
OBJECTS = {
    "numpy's booleans": (answers(np.bool_(True), np.bool_(False)), [pair(["True"], ["False"])], ""),
    "pandas' booleans": (pd.DataFrame(answers(True, False)).convert_dtypes(),
                         [pair(["True"], ["False"])], ""),
    "numbers": (answers(5, 7), [pair(["5"], ["7"])], ""),
    "arrays of numbers": (answers(np.array([5, 6]), np.array([7])), [pair(["5", "6"], ["7"])], ""),
    "tensors of numbers": (answers(torch.tensor([5, 6]), torch.tensor(7)),
                           [pair(["5", "6"], ["7"])], ""),
    "numbers and texts": (answers((5, " he"), (" me",)), [pair(["5", " he"], [" me"])], ""),
    "whole floats": (answers(5.0, 7.0), [pair(["5"], ["7"])], ""),
    "floats": (answers(1.5, 2.5), None, "tokens"),
    "decimals": (answers(decimal.Decimal(5), decimal.Decimal(7)), [pair(["5"], ["7"])], ""),
    "a date": (answers(datetime.date(2020, 1, 1)), None, "text"),
    "bytes": (answers(b"x"), None, "text"),
    "a dict": (answers({"text": " he"}), None, "text"),
    "a set": (answers({" he"}), None, "text"),
    "nothing in a list": (answers([" he", None]), PAIRS[:1], ""),
    "a bracket": (answers("[", "]"), [pair(["["], ["]"])], ""),
    "two brackets": (answers("[]"), None, "list"),
    "lists of ids": (answers(None, None, correct_idx=[[20]], incorrect_idx=[[21]]), OF_IDS, ""),
    "an answer of two ids": (answers(None, correct_idx=[[20, 22]]), None, "single token"),
    "lists within a list": (answers([[20]], [[21]]), None, "correct_idx"),
    "a boolean as id": (answers(None, None, correct_idx=True), None, "token id"),
    "half an id": (answers(None, None, correct_idx=20.5), None, "token id"),
    "tensors of ids": (answers(None, None, correct_idx=torch.tensor(20),
                               incorrect_idx=torch.tensor([21])), OF_IDS, ""),
    "text beside ids": (answers(" he", " me", correct_idx=99), PAIRS[:1], ""),
    "prompts as tensors": (prompts(torch.tensor([I_SAY]), torch.tensor(U_SAY)), OF_IDS, ""),
    "prompts as floats": (prompts([float(i) for i in I_SAY], U_SAY), OF_IDS, ""),
    "words": (prompts(["I", "say"], ["U", "say"]), None, "list of texts"),
    "a chat": (prompts([{"role": "user", "content": "I"}], "U say"), None, "chat"),
    "ids and texts": (prompts(I_SAY, U_SAY, correct=" he"), None, "correct_idx"),
    "ids and lists of ids": ([{"clean": I_SAY, "corrupted": U_SAY, "correct": [20],
                               "incorrect": [21]}], OF_IDS, ""),
    "ids beyond the vocabulary": (prompts([10**6, 5], [10**6, 6]), None, "vocabulary"),
    "negative ids": (prompts([-100, *I_SAY], [-100, *U_SAY]), None, "token id"),
    "padding alone": (prompts([PAD, PAD], [PAD, PAD]), None, "empty"),
    "encodings": ({"clean": ENCODED[0], "corrupted": ENCODED[1], "correct_idx": [20, 20],
                   "incorrect_idx": [21, 21]}, [*OF_IDS, pair([20], [21], "I s", "U s")], ""),
    "a pair and a prompt": ([ROW, {**ROW2, "corrupted": None}], None, "corrupted"),
    "half a character": ([{**ROW, "clean": "I \ud800say"}], None, "half"),
    "dict of arrays": ({name: FRAME[name].to_numpy() for name in FRAME}, PAIRS, ""),
    "dict of tensors": ({"clean_idx": torch.tensor([I_SAY]), "corrupted_idx": torch.tensor([U_SAY]),
                         "correct_idx": torch.tensor([20]), "incorrect_idx": torch.tensor([21])},
                        OF_IDS, ""),
    "series of dicts": (pd.Series(ROWS), PAIRS, ""),
    "array of dicts": (np.array(ROWS, dtype=object), PAIRS, ""),
    "frame with prompts as index": (FRAME.set_index("clean"), None, "no column clean"),
    "frame of arrow's types": (FRAME.convert_dtypes(dtype_backend="pyarrow"), PAIRS, ""),
    "frame of two levels": (pd.concat({"a": FRAME}, axis=1), None, "column"),
    "chosen columns": (HUGGING_FACE.with_format("torch", columns=["clean"]), PAIRS, ""),
    "streamed tensors": (HUGGING_FACE.to_iterable_dataset().with_format("torch"), PAIRS, ""),
    "another order": (HUGGING_FACE.select([1, 0]), PAIRS[::-1], ""),
    "a transform": (HUGGING_FACE.with_transform(lambda batch: batch), PAIRS, ""),
    "splits": (datasets.DatasetDict({"a": HUGGING_FACE, "b": HUGGING_FACE}), None, "a, b"),
    "arrow's dictionary": (pyarrow.table({name: pyarrow.array(FRAME[name]).dictionary_encode()
                                          for name in FRAME}), PAIRS, ""),
    "examples": (PAIRS, None, "eap.Dataset"),
    "tuples": ([tuple(ROW.values())], None, "dict"),
    "a device": ("/dev/zero", None, "regular file"),
    "other columns of any kind": ([{**ROW, "meta": {"a": [1, {}]}, "image": b"\xff", "x": object}],
                                  PAIRS[:1], ""),
}  # fmt: skip


def check(data, wanted, words, tokenizer=TOKENIZER):
    try:
        found = eap.load_dataset("own", tokenizer, data=data).examples
    except eap.UserError as error:
        said = str(error)
    else:
        assert [*found] == wanted
        return
    assert wanted is None or words, said
    # Not in the file's name, which may have the word.
    assert re.search(words, re.sub(r"/\S*/", "/", said)), said
    assert len(said) <= 400
    assert "\n" not in said


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    content, wanted, words = FILES[name]
    path = tmp_path / f"own.{name.split('.', 1)[1]}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check(path, wanted, words)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects(name):
    check(*OBJECTS[name], PADS if "padding" in name else ENDS if "encod" in name else TOKENIZER)
