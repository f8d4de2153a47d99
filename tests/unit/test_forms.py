"""One meaning for a cell: the same rows are the same tokens, whatever the form of the data."""

from __future__ import annotations

import re

import pytest
from forms import FORMS
from models.tokenizers import byte_tokenizer

from eap.data.dataset import Example, load_dataset
from eap.runtime.errors import UserError

TOKENIZER = byte_tokenizer()


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def pairs(**columns):
    """Three pairs with prompts as text, and these columns."""
    clean, corrupted = ("The hat is", "A mat, is", "Is it"), ("The cat is", "A rat, is", "Is at")
    named = zip(clean, corrupted, *columns.values(), strict=True)
    return [dict(zip(("clean", "corrupted", *columns), row, strict=True)) for row in named]


def expected(*answers):
    """The examples of `pairs` with these answers: of each a correct and an incorrect one."""
    bos = TOKENIZER.bos_token_id
    begin = () if bos is None else (bos,)
    return tuple(
        Example((*begin, *ids(row["clean"])), (*begin, *ids(row["corrupted"])), *sides)
        for row, sides in zip(pairs(), answers, strict=True)
    )


def texts(*answers):
    return expected(*[[[ids(t)[0] for t in side] for side in sides] for sides in answers])


def id_pairs(**columns):
    """The same prompts as token ids."""
    prompts = [{side: ids(row[side]) for side in ("clean", "corrupted")} for row in pairs()]
    rows = zip(*columns.values(), strict=True)
    return [
        {**prompt, **dict(zip(columns, row, strict=True))}
        for prompt, row in zip(prompts, rows, strict=True)
    ]


KINDS = {
    "texts": (
        pairs(correct=["!", "a|b", " c"[1:]], incorrect=["?", "c", "d"]),
        texts("!?", ("ab", "c"), "cd"),
    ),
    "words that look like nothing": (
        pairs(correct=["N", "n", "0"], incorrect=["?", "c", "1"]),
        texts("N?", "nc", "01"),
    ),
    "lists of texts": (
        pairs(correct=[["!"], ["a", "b"], ["c"]], incorrect=[["?"], ["c"], ["d"]]),
        texts("!?", ("ab", "c"), "cd"),
    ),
    "numbers": (pairs(correct=[5, 6, 7], incorrect=[1, 2, 3]), texts("51", "62", "73")),
    "numbers of ids": (
        pairs(correct_idx=[5, 6, 7], incorrect_idx=[1, 2, 3]),
        expected([[5], [1]], [[6], [2]], [[7], [3]]),
    ),
    "lists of ids": (
        pairs(correct_idx=[[5], [6, 8], [7]], incorrect_idx=[[1], [2], [3, 4]]),
        expected([[5], [1]], [[6, 8], [2]], [[7], [3, 4]]),
    ),
    "prompts of ids": (
        id_pairs(correct_idx=[5, 6, 7], incorrect_idx=[1, 2, 3]),
        expected([[5], [1]], [[6], [2]], [[7], [3]]),
    ),
    "prompts and lists of ids": (
        id_pairs(correct=[[5], [6, 8], [7]], incorrect=[[1], [2], [3]]),
        expected([[5], [1]], [[6, 8], [2]], [[7], [3]]),
    ),
    "no incorrect answer": (
        pairs(correct=["!", "a", "c"], incorrect=["?", None, "d"]),
        texts("!?", ("a", ""), "cd"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_are_the_same_tokens_in_every_form(kind, form, tmp_path):
    rows, examples = KINDS[kind]
    assert load_dataset("own", TOKENIZER, data=FORMS[form](rows, tmp_path)).examples == examples


@pytest.mark.parametrize("form", FORMS)
def test_true_and_false_are_those_words_in_every_form(form, tmp_path):
    rows = pairs(correct=[True, False, True], incorrect=[False, True, False])
    words = {True: "True", False: "False"}
    written = [{n: words[c] if isinstance(c, bool) else c for n, c in row.items()} for row in rows]
    assert said(FORMS[form](rows, tmp_path)) == said(written)
    assert "'True' is" in said(rows)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_in_a_list_are_texts_or_refused_by_the_column_of_ids(form, tmp_path):
    rows = pairs(correct=[[5], [6], [7]], incorrect=[[1], [2], [3]])
    data = FORMS[form](rows, tmp_path)
    if "csv" in form or form in ("tsv", "semicolons"):  # the list is a text there
        with pytest.raises(UserError, match="correct_idx"):
            load_dataset("own", TOKENIZER, data=data)
    else:
        assert load_dataset("own", TOKENIZER, data=data).examples == texts("51", "62", "73")


@pytest.mark.parametrize("form", FORMS)
def test_prompts_alone_are_read_in_every_form(form, tmp_path):
    rows = [{n: c for n, c in row.items() if n != "corrupted"} for row in KINDS["texts"][0]]
    dataset = load_dataset("own", TOKENIZER, data=FORMS[form](rows, tmp_path))
    assert [e.clean for e in dataset] == [e.clean for e in KINDS["texts"][1]]
    assert not dataset.has_pairs
    assert "3 prompts" in dataset.summary()


@pytest.mark.parametrize("form", FORMS)
def test_padding_is_left_out_where_a_mask_says_so(form, tmp_path):
    rows = id_pairs(correct_idx=[5, 6, 7], incorrect_idx=[1, 2, 3])
    longest = max(len(row["clean"]) for row in rows)
    for row in rows:
        n = longest - len(row["clean"])
        row["attention_mask"] = [1] * (longest - n) + [0] * n
        row |= {side: [*row[side], *[0] * n] for side in ("clean", "corrupted")}
    dataset = load_dataset("own", TOKENIZER, data=FORMS[form](rows, tmp_path))
    assert dataset.examples == expected([[5], [1]], [[6], [2]], [[7], [3]])


def said(data):
    with pytest.raises(UserError) as error:
        load_dataset("own", TOKENIZER, data=data)
    return re.search(r"(line|row) \d+: (the .*?)( \(|$)", str(error.value)).group(2)
