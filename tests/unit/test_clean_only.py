"""Prompts without a corrupted one: what needs a pair says so, the rest works; and pairs made."""

from __future__ import annotations

import json
import os
import sys

import pandas as pd
import pytest
import torch
from models.tokenizers import byte_tokenizer
from running import call
from transformers import Qwen2Config, Qwen2ForCausalLM

import eap
import eap_circuits
from eap.commands.check_data import tokenizer_of
from eap.data.counterparts import corrupt
from eap.data.tasks.ioi import NAMES
from eap.runtime.errors import UserError

ROWS = [
    {"clean": f"When {a} and {b} went to the store, {b} gave a drink to", "correct": f" {a}",
     "incorrect": f" {b}"}
    for a, b in (("Mary", "John"), ("Anna", "Paul"), ("Tom", "Kate"))
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return eap.load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return eap.load_dataset("own", model.tokenizer, data=ROWS)


def test_zero_and_mean_ablation_need_no_pair(model, prompts):
    """The same numbers as with pairs, whose corrupted prompts these ablations do not read."""
    made = corrupt(ROWS, model.tokenizer, "names")
    pairs = eap.load_dataset("own", model.tokenizer, data=made.rows)
    assert [e.clean for e in pairs] == [e.clean for e in prompts]
    for ablation in ("zero", eap.Mean.over_dataset(model, prompts, prompts="clean")):
        graphs = [eap.attribute(model, d, ablation=ablation) for d in (prompts, pairs)]
        assert torch.equal(graphs[0].scores.nan_to_num(), graphs[1].scores.nan_to_num())
        values = [
            eap.faithfulness(model, [graphs[0].top_n(100)], d, ablation=ablation).circuits
            for d in (prompts, pairs)
        ]
        assert torch.equal(*values)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, d: eap.attribute(m, d),
        lambda m, d: eap.attribute(m, d, method="EAP"),
        lambda m, d: eap.attribute(m, d, method="CEAP"),
        lambda m, d: eap.attribute(m, d, method="exact"),
        lambda m, d: eap.evaluate_baselines(m, d),
        lambda m, d: eap.patch_nodes(m, d),
        lambda m, d: eap.learn_ranking(m, d, steps=1),
        lambda m, d: eap.Mean.over_dataset(m, d),
    ],
)
def test_what_needs_a_pair_says_what_does_not(model, prompts, run):
    with pytest.raises(UserError, match=r"3 of 3 examples have none.*'zero'.*corrupt") as error:
        run(model, prompts)
    assert len(str(error.value)) < 400
    half = eap.Dataset("half", (*prompts.examples[:2], eap.Example((5, 6), (5, 7), 3, 4)))
    with pytest.raises(UserError, match="2 of 3 examples"):
        run(model, half)


def test_a_method_that_needs_a_pair_says_so_under_another_ablation(model, prompts):
    with pytest.raises(UserError, match="CEAP needs a corrupted prompt"):
        eap.attribute(model, prompts, method="CEAP", ablation="zero")


def test_a_row_of_a_table_of_pairs_needs_its_corrupted_prompt(model):
    rows = [{**ROWS[0], "corrupted": ROWS[0]["clean"].replace("John", "Paul")}, ROWS[1]]
    with pytest.raises(UserError, match="row 2: the corrupted prompt is empty"):
        eap.load_dataset("own", model.tokenizer, data=rows)


# ---- pairs made ----------------------------------------------------------------------------------


def test_one_word_is_exchanged_for_one_of_as_many_tokens_everywhere(model):
    made = corrupt(ROWS, model.tokenizer, "names", seed=3)
    assert len(made) == 3
    assert made.summary() == "3 of 3 rows have a corrupted prompt"
    for row, source, (old, new) in zip(made.rows, ROWS, made.exchanged, strict=True):
        assert {name: row[name] for name in source} == source
        assert row["corrupted"] == source["clean"].replace(old, new)
        assert {old, new} <= set(NAMES)
        assert new not in source["clean"]
    dataset = eap.load_dataset("own", model.tokenizer, data=made.rows)
    assert dataset.has_pairs
    assert made.rows == corrupt(ROWS, model.tokenizer, "names", seed=3).rows
    assert made.rows != corrupt(ROWS, model.tokenizer, "names", seed=4).rows


def test_numbers_and_words_of_a_list(model):
    rows = [
        {"clean": "The war lasted from the year 1732 to the year 17", "correct": "45"},
        {"clean": "No number stands here and no", "correct": " book"},
        {"clean": "The books that the boy likes", "correct": " two words"},
    ]
    numbers = corrupt(rows, model.tokenizer, "numbers")
    assert numbers.left_out == {"without one of the numbers": 1, "answers of several tokens": 1}
    assert "1 of 3 rows have a corrupted prompt; left out: 1 " in repr(numbers)
    ((old, new),) = numbers.exchanged
    assert len(old) == len(new)
    words = corrupt(rows[:1], model.tokenizer, ["war", "siege", "battle"])
    assert words.exchanged[0][0] == "war"
    with pytest.raises(UserError, match="0 of 1 rows have a corrupted prompt"):
        corrupt(rows[1:2], model.tokenizer, "names")


def test_a_number_within_another_is_left_alone(model):
    rows = [{"clean": "It costs 3.17 or 1,17 in the year 17 and the year", "correct": " 1"}]
    (row,) = corrupt(rows, model.tokenizer, "numbers").rows
    assert row["corrupted"].startswith("It costs 3.17 or 1,17 in the year ")
    assert " 17 " not in row["corrupted"]


@pytest.mark.parametrize("words", ["name", [], ["one"], ["a", ""], ["a", "a"], 5, [1, 2], b"names"])
def test_words_that_are_none_are_refused(model, words):
    with pytest.raises(UserError, match=r"give 'names', 'numbers'|a string or a list of strings"):
        corrupt(ROWS, model.tokenizer, words)


def test_rows_with_corrupted_prompts_are_left_alone(model):
    with pytest.raises(UserError, match="has corrupted prompts already"):
        corrupt([{**ROWS[0], "corrupted": "x"}], model.tokenizer, "names")


@pytest.mark.parametrize(("tokenizer", "says"), [(None, "has no tokenizer"), ({}, "is dict; give")])
def test_what_is_no_tokenizer_is_refused(tokenizer, says):
    with pytest.raises(UserError, match=says):
        corrupt(ROWS, tokenizer, "names")


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def check_data(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eap", "check-data", *map(str, arguments)])
        try:
            eap_circuits.command()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def test_check_data_makes_pairs_that_experiments_read(check_data, tmp_path, capsys):
    source, made = tmp_path / "prompts.csv", tmp_path / "pairs.csv"
    pd.DataFrame(ROWS).to_csv(source, index=False)
    assert check_data(source, "--corrupt", "names", "--save", made) == 0
    said = capsys.readouterr().out
    assert "3 of 3 rows have a corrupted prompt" in said
    assert f"wrote {made}" in said
    assert list(pd.read_csv(made)) == ["clean", "correct", "incorrect", "corrupted"]
    assert check_data(made) == 0
    for wrong in (["--save", made], ["--corrupt", "names", "--save", tmp_path / "x.txt"]):
        assert check_data(source, *wrong) == 2


def test_experiments_look_at_columns_before_they_load_a_model(tmp_path, capsys):
    source = tmp_path / "prompts.json"
    source.write_text(json.dumps(ROWS))
    other = tmp_path / "other.csv"
    other.write_text("clean,corrupted,answer\na,b,c\n")
    for path, message in ((source, "no column corrupted"), (other, "no column correct")):
        nowhere = ("--model", "./no-such-model", "--output", tmp_path)
        assert call("pareto.py", "--task", "own", "--data", path, *nowhere) == 2
        assert message in capsys.readouterr().err


def test_check_data_alone_asks_for_a_file(check_data, capsys):
    assert check_data() == 2
    assert "error: no data file: give one" in capsys.readouterr().err
    assert check_data("--task", "ioi", "--show", 0) == 0


def test_check_data_and_experiments_have_one_tokenizer(tmp_path):
    """Qwen's class joins no digits; the saved tokenizer, which the model was trained with, does."""
    saved = byte_tokenizer([("1", "7"), ("3", "2")])
    config = Qwen2Config(
        vocab_size=len(saved), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    saved.save_pretrained(tmp_path)
    ours = eap.load_model(tmp_path, device="cpu").tokenizer
    theirs = tokenizer_of(str(tmp_path))
    assert theirs.encode("in 1732") == ours.encode("in 1732") == saved.encode("in 1732")
    assert (theirs.bos_token, theirs.eos_token) == (ours.bos_token, ours.eos_token)
    os.mkfifo(tmp_path / "added_tokens.json")
    with pytest.raises(UserError, match=r"'added_tokens\.json' is not a regular file"):
        tokenizer_of(str(tmp_path))
