"""Spans of data: roles of the tasks as tokens, columns of one's own, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import random_examples, tiny_tokenizer
from transformers import AutoTokenizer

from eap.data.checking import check_rows
from eap.data.dataset import DATA, Dataset, load_dataset
from eap.data.example import Example
from eap.data.reading import read_rows
from eap.data.spans import bracketed, check_spans, first_tokens, roles_of
from eap.data.tasks import TASKS
from eap.data.vocabulary import Vocabulary
from eap.model.directory import TOY_MODEL
from eap.runtime.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(TOY_MODEL))


def test_spans_of_tokens_are_of_the_pairs_that_are_taken(tokenizer):
    """Prompts of ioi have several lengths; the first alone has one."""
    with pytest.raises(UserError, match="prompts of one length"):
        load_dataset("ioi", tokenizer, head=20, spans="tokens")
    one = load_dataset("ioi", tokenizer, head=1, spans="tokens")
    assert len(one.span_names) == len(one.examples[0].clean)
    roles = load_dataset("ioi", tokenizer, head=2, spans="roles")
    assert roles.provenance["spans"]["kind"] == "roles"
    auto = roles.with_spans("auto")
    assert auto.provenance["spans"] == {"kind": "auto", "names": list(auto.span_names)}


def texts(tokenizer, dataset: Dataset, row: int = 0) -> dict[str, str]:
    """What each span of an example says."""
    example = dataset.examples[row]
    ends = (*example.spans[1:], len(example.clean))
    return {
        name: tokenizer.decode(list(example.clean[start:end]), skip_special_tokens=True).strip()
        for name, start, end in zip(dataset.span_names, example.spans, ends, strict=True)
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_row_of_the_shipped_files_has_the_roles(task, tokenizer):
    vocabulary, rows = Vocabulary(tokenizer), read_rows(DATA / task / "toy.csv").rows[:300]
    names, roles = roles_of(TASKS[task], list(rows[0]), vocabulary)
    examples, problems = check_rows(TASKS[task], rows, vocabulary, roles=roles, prepend_bos=True)
    assert problems == []
    check_spans(names, [(example.spans, len(example.clean)) for example in examples])
    assert {example.spans[-1] - len(example.clean) for example in examples} == {-1}


@pytest.mark.parametrize("task", TASKS)
def test_every_row_for_gpt2_has_the_roles_in_its_text(task):
    rows, find = read_rows(DATA / task / "gpt2.csv").rows, TASKS[task].roles
    n_roles = len(TASKS[task].role_names)
    for cells in rows:
        row = {name: str(cell) for name, cell in cells.items()}
        starts = find(row)
        bounds = (0, *starts, len(row["clean"]))
        assert len(starts) == n_roles - 2  # the first begins at 0, the last with the last token
        assert all(a <= b for a, b in pairwise(bounds))
        said = [row["clean"][a:b].strip() for a, b in pairwise(bounds)]
        if task == "ioi":
            assert said[2] == "and"
            assert said[5] in (said[1], said[3])
        elif task in ("fact-retrieval-comma", "hypernymy-comma"):
            assert said[1] == row["capital" if task.startswith("fact") else "h1"]
        elif task.startswith("greater-than"):
            assert said[1].isdigit()
            assert len(said[1]) == len(said[2]) == 2
        elif task == "sva":  # the noun that the verb agrees with, whose number is corrupted
            words = zip(row["clean"].split(), row["corrupted"].split(), strict=True)
            assert said[1] == next(clean for clean, other in words if clean != other)
        else:
            assert said[1] == row["clean"].split()[1]


def test_roles_are_the_words_that_they_say(tokenizer):
    said = {
        task: texts(tokenizer, load_dataset(task, tokenizer, spans="roles", head=1))
        for task in TASKS
    }
    assert said["ioi"] == {
        "before": "Then,",
        "first name": "Kate",
        "and": "and",
        "second name": "Bill",
        "middle": "walked to the church.",
        "repeated name": "Bill",
        "rest": "handed a camera",
        "last": "to",
    }
    assert said["greater-than"]["start century"] == said["greater-than"]["last"] == "17"
    assert said["greater-than"]["start year"] == "93"
    assert said["greater-than-sequence"]["before"] == "1561, 1562, 1565, 1589,"
    assert said["greater-than-price"]["between"] == "to $"
    assert said["gender-bias"]["profession"] == "rapper"
    assert said["fact-retrieval-comma"] == {
        "before": "",
        "capital": "Panama City",
        "rest": ", the capital",
        "last": "of",
    }
    assert said["hypernymy-comma"]["member"] == "hotels"
    assert said["sva"]["subject"] == "books"


IOI = {
    "clean": "Then, Mary and John were working at the park. John decided to give a ball to",
    "corrupted": "Then, Mary and John were working at the park. Tom decided to give a ball to",
}


def test_roles_are_found_in_published_wording_or_the_row_is_left_out(tokenizer):
    unfit = {
        "clean": "At the park John thanked Mary and John",
        "corrupted": "At the park Tom thanked Mary and John",
    }
    with pytest.raises(UserError, match="does not follow"):
        load_dataset("ioi", tokenizer, data=[IOI, unfit], spans="roles")
    dataset = load_dataset("ioi", tokenizer, data=[IOI, unfit], spans="roles", drop_unfit=True)
    assert len(dataset) == 1
    assert dataset.provenance["dropped"] == {"without roles": 1}
    assert texts(tokenizer, dataset)["middle"] == "were working at the park."
    assert load_dataset("ioi", tokenizer, data=[IOI]).span_names == ()


OWN = {"clean": "The nurse said that", "corrupted": "The man said that", "correct": " she"}


def test_columns_hold_the_parts_of_the_prompt(tokenizer):
    row = OWN | {"span:who": "The nurse", "span:nothing": "", "span:what": " said that"}
    dataset = load_dataset("my-task", tokenizer, data=[row], spans="roles")
    assert dataset.span_names == ("who", "nothing", "what")
    assert texts(tokenizer, dataset) == {"who": "The nurse", "nothing": "", "what": "said that"}
    with pytest.raises(UserError, match="joined"):
        load_dataset("my-task", tokenizer, data=[row | {"span:who": "The"}], spans="roles")
    split = row | {"span:who": "The nu", "span:what": "rse said that"}
    with pytest.raises(UserError, match="no token begins"):
        load_dataset("my-task", tokenizer, data=[split], spans="roles")
    with pytest.raises(UserError, match="span:<name>"):
        load_dataset("my-task", tokenizer, data=[OWN], spans="roles")


def test_spans_of_prompts_of_ids_are_numbers_of_tokens(tokenizer):
    row = {
        "clean_idx": [5, 6, 7],
        "corrupted_idx": [5, 8, 7],
        "correct_idx": [9],
        "incorrect_idx": [8],
    }
    row |= {"span:a": 0, "span:b": 1, "span:c": 3}
    dataset = load_dataset("my-task", tokenizer, data=[row], spans="roles")
    assert dataset.examples[0].spans == (0, 2, 4)  # behind the BOS
    padding = {"clean_idx": [0, 0, 5, 6, 7], "corrupted_idx": [0, 0, 5, 8, 7]}
    padded = row | padding | {"attention_mask": [0, 0, 1, 1, 1], "span:b": 1.0, "span:c": "3"}
    dataset = load_dataset("my-task", tokenizer, data=[padded], spans="roles")
    assert dataset.examples[0].spans == (0, 2, 4)  # counted without padding
    by_hand = Example([5, 6], [5, 7], 8, 9, torch.tensor([0, 1, 1]))
    assert by_hand.spans == (0, 1, 1)
    assert "spans" not in repr(by_hand)  # which seeds the resamples
    with pytest.raises(UserError, match="first tokens"):
        load_dataset("my-task", tokenizer, data=[row | {"span:b": 4}], spans="roles")


def test_spans_that_need_no_text(tokenizer):
    dataset = load_dataset("ioi", tokenizer, spans="auto", head=5)
    assert texts(tokenizer, dataset)["difference"] == "Bill"
    with pytest.raises(UserError, match="one length"):
        load_dataset("ioi", tokenizer, spans="tokens")
    one = Dataset("x", random_examples([4, 4], [1, 3])).with_spans("tokens")
    assert one.span_names == ("0", "1", "2", "3")
    assert one.head(1).examples[0].spans == (0, 1, 2, 3)
    at_last = Dataset("x", random_examples([4], [3])).with_spans("auto").examples[0]
    assert at_last.spans == (0, 3, 3, 3)
    for call in (
        lambda: one.with_spans("roles"),
        lambda: load_dataset("ioi", tokenizer, spans="x"),
    ):
        with pytest.raises(UserError, match="'auto' or 'tokens'"):
            call()


@given(st.lists(st.sampled_from(["w3", "w4", "w5"]), min_size=1, max_size=8), st.data())
def test_a_part_begins_at_its_token(words, data):
    vocabulary, text = Vocabulary(tiny_tokenizer()), " ".join(words)
    number = data.draw(st.integers(0, len(words) - 1))
    character = sum(len(word) + 1 for word in words[:number])
    for ids, n_special in ((vocabulary.encode(text), 0), ((0, *vocabulary.encode(text)), 1)):
        assert first_tokens(text, [character], ids, vocabulary) == (number + n_special,)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_automatic_spans_tile_every_prompt(lengths, data):
    differences = [data.draw(st.integers(0, length - 1)) for length in lengths]
    dataset = Dataset("x", random_examples(lengths, differences)).with_spans("auto")
    check_spans(dataset.span_names, [(e.spans, len(e.clean)) for e in dataset.examples])
    for example in dataset.examples:
        assert all(a <= b for a, b in pairwise(example.spans))


@pytest.mark.parametrize("spans", [(), (0,), (1, 2), (0, 9), (2, 1)])
def test_spans_that_do_not_tile_are_refused(spans):
    with pytest.raises(UserError, match="example 0: its 2 spans begin"):
        check_spans(("a", "b"), [(spans, 4)])


def test_brackets_leave_empty_spans_out():
    assert bracketed(["The", " war"], ("a", "b", "c"), (0, 1, 1)) == "[a: The] [c:  war]"
