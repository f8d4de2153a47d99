"""Rows of ids that a tokenizer filled up to one length: padding is no text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tokenizers import byte_tokenizer

from eap.data.dataset import load_dataset
from eap.runtime.errors import UserError

SPECIAL = ("<s>", "</s>", "<pad>")
BOS, EOS, PAD = range(3)


def tokenizer_with(pad):
    tokenizer = byte_tokenizer(special=SPECIAL)
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


def load(tokenizer, *prompts, **columns):
    rows = [
        {"clean_idx": prompt, "corrupted_idx": [prompt[0], *prompt[1:]], **columns}
        for prompt in prompts
    ]
    for row in rows:  # another last token of the text
        place = max(i for i, token in enumerate(row["clean_idx"]) if token > PAD)
        row["corrupted_idx"][place] = 99
        row |= {"correct_idx": 20, "incorrect_idx": 21}
    dataset = load_dataset("ids", tokenizer, data=rows, prepend_bos=False)
    return [list(example.clean) for example in dataset]


@pytest.mark.parametrize("ends", [(0, 0), (0, 3), (3, 0), (2, 1)])
def test_a_padding_token_of_its_own_is_left_out_at_both_ends(ends):
    text = [30, 31, PAD, 32]
    first, last = ends
    assert load(tokenizer_with("<pad>"), [PAD] * first + text + [PAD] * last) == [text]


def test_what_stands_before_a_bos_is_padding():
    for pad, token in (("<pad>", PAD), ("</s>", EOS)):
        assert load(tokenizer_with(pad), [token, token, BOS, 30, 31]) == [[BOS, 30, 31]]


@pytest.mark.parametrize("pad", ["</s>", None])
def test_an_end_of_text_that_pads_is_refused_where_it_may_be_text(pad):
    """GPT-2's idiom, `tokenizer.pad_token = tokenizer.eos_token`, here or when rows were made."""
    tokenizer = tokenizer_with(pad)
    assert load(tokenizer, [EOS, 30, 31], [EOS, 40, 41]) == [[EOS, 30, 31], [EOS, 40, 41]]
    for prompts in ([[30, 31, EOS]], [[EOS, EOS, 30, 31]], [[EOS, 30, 31], [40, 30, 31]]):
        with pytest.raises(UserError, match=r"may be padding or text.*attention_mask"):
            load(tokenizer, *prompts)


@pytest.mark.parametrize(
    "mask",
    [[0, 1, 1, 1, 0], [0.0, 1.0, 1.0, 1.0, 0.0], "[0, 1, 1, 1, 0]", torch.tensor([0, 1, 1, 1, 0]),
     np.array([False, True, True, True, False]), [[0, 1, 1, 1, 0]]],
)  # fmt: skip
@pytest.mark.parametrize("column", ["attention_mask", "clean_attention_mask"])
def test_an_attention_mask_says_what_is_text(mask, column):
    tokenizer = tokenizer_with("</s>")
    masks = {column: mask}
    if column == "clean_attention_mask":
        masks["corrupted_attention_mask"] = mask
    assert load(tokenizer, [EOS, EOS, 30, 31, EOS], **masks) == [[EOS, 30, 31]]


@pytest.mark.parametrize(
    "mask", [[1], [0, 0, 0], [1, 0, 1], [1, 2, 1], [1, 10, 0], ["a", 1, 1], "all", True]
)
def test_what_is_no_mask_of_the_prompt_is_refused(mask):
    with pytest.raises(UserError, match="attention mask of the clean prompt"):
        load(tokenizer_with("<pad>"), [30, 31, 32], attention_mask=mask)


def test_what_a_tokenizer_returns_is_a_prompt_and_a_column_of_prompts():
    tokenizer = tokenizer_with("</s>")
    texts = (["I say", "They say so"], ["U say", "Them say so"])
    right = [tokenizer.encode(text, add_special_tokens=False) for text in texts[0]]
    for side in ("right", "left"):
        tokenizer.padding_side = side
        clean, corrupted = (
            tokenizer(group, padding=True, add_special_tokens=False) for group in texts
        )
        columns = {"clean": clean, "corrupted": corrupted, "correct_idx": [20] * 2}
        parts = ("input_ids", "attention_mask")
        rows = [
            {"clean": {p: clean[p][i] for p in parts},
             "corrupted": {p: corrupted[p][i] for p in parts}, "correct_idx": 20}
            for i in range(2)
        ]  # fmt: skip
        for data in (columns, rows):
            dataset = load_dataset("ids", tokenizer, data=data, prepend_bos=False)
            assert [list(example.clean) for example in dataset] == right


def test_special_tokens_that_a_tokenizer_added_are_no_answers_and_no_text():
    row = {"clean": "I say", "corrupted": "U say", "incorrect_idx": 21}
    with pytest.raises(UserError, match=r"correct_idx .* has the BOS token 0"):
        load_dataset("x", tokenizer_with(None), data=[{**row, "correct_idx": [BOS, 20]}])
    ends = byte_tokenizer(special=("<end>", "<end>"), bos="<end>")  # GPT-2's: an end is an answer
    (example,) = load_dataset("x", ends, data=[{**row, "correct_idx": ends.eos_token_id}])
    assert example.correct == (ends.eos_token_id,)
    for text in ("<pad>I say", "I say<pad>"):
        padded = {**row, "clean": text, "correct_idx": 20}
        with pytest.raises(UserError, match="begins or ends with the padding token"):
            load_dataset("x", tokenizer_with("<pad>"), data=[padded])


def test_ids_as_a_library_prints_them_are_refused_and_other_brackets_are_text():
    tokenizer = tokenizer_with(None)
    for printed in (str(torch.tensor([30, 31])), str(np.arange(2000)), "array([30, 31])"):
        row = {"clean": printed, "corrupted": printed.replace("1", "2"), "correct_idx": 20}
        with pytest.raises(UserError, match="clean_idx"):
            load_dataset("ids", tokenizer, data=[row])
    (text,) = load_dataset(
        "x", tokenizer, data=[{"clean": "[1, 2]", "corrupted": "[3, 2]", "correct": "7"}]
    )
    assert tokenizer.decode(text.clean[1:]) == "[1, 2]"
