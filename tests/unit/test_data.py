"""Where data comes from, the check that it passes, and every kind of bad input."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import eap
from eap.data.batches import first_difference, group_examples, plan_batches
from eap.data.dataset import DATA, Dataset, Example, check_rows, load_dataset
from eap.data.reading import read_rows
from eap.data.tasks import TASKS
from eap.data.tasks.split import HELD_OUT, is_held_out
from eap.data.vocabulary import Vocabulary
from eap.model.directory import TOY_MODEL
from eap.runtime.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(str(TOY_MODEL))


# ---- shipped data --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_shipped_toy_row_passes_the_check(task, tokenizer):
    rows = read_rows(DATA / task / "toy.csv").rows
    examples, problems = check_rows(TASKS[task], rows, Vocabulary(tokenizer))
    assert problems == []
    assert len(examples) == len(rows)


@pytest.mark.parametrize("task", HELD_OUT)
def test_toy_data_is_held_out_of_training(task):
    rows = read_rows(DATA / task / "toy.csv").rows
    assert all(is_held_out(task, row) for row in rows)


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("ioi", 1000),
        ("greater-than", 1000),
        ("greater-than-price", 1000),
        ("greater-than-sequence", 700),
        ("gender-bias", 400),
        ("fact-retrieval-comma", 180),
        ("hypernymy-comma", 190),
        ("sva", 6000),
    ],
)
@pytest.mark.parametrize("family", ["toy", "gpt2"])
def test_shipped_files_have_the_promised_sizes(task, least, family):
    frame = pd.read_csv(DATA / task / f"{family}.csv", dtype=str, keep_default_na=False)
    assert len(frame) >= least
    assert not frame.duplicated(["clean", "corrupted"]).any()
    assert (frame["clean"] != frame["corrupted"]).all()
    assert (frame["clean"] == frame["clean"].str.rstrip()).all()


@pytest.mark.parametrize("family", ["toy", "gpt2"])
def test_shipped_files_are_balanced_and_varied(family):
    def read(task):
        return pd.read_csv(DATA / task / f"{family}.csv", dtype=str, keep_default_na=False)

    males, females = read("gender-bias")["label"].value_counts()
    assert males == females
    assert read("hypernymy-comma")["hypernym"].nunique() >= 24
    sva = read("sva")
    assert sva["group"].nunique() >= 13
    singular, plural = sva["plural"].value_counts()
    assert singular == plural
    pairs = set(zip(sva["clean"], sva["corrupted"], strict=True))
    assert all((corrupted, clean) in pairs for clean, corrupted in pairs)
    labels = read("greater-than")["correct_idx"].value_counts()
    assert labels.max() - labels.min() <= 1
    assert {int(label) for label in labels.index} <= set(range(2, 99))


def test_head_keeps_the_first_pairs_and_says_so(tokenizer):
    whole, first = load_dataset("ioi", tokenizer), load_dataset("ioi", tokenizer, head=7)
    assert first.examples == whole.examples[:7]
    assert first.provenance["head"] == 7


def test_the_bos_is_prepended_once_and_only_if_asked(tokenizer):
    bos = tokenizer.bos_token_id
    with_bos = load_dataset("ioi", tokenizer, head=3)
    without = load_dataset("ioi", tokenizer, head=3, prepend_bos=False)
    for own, other in zip(with_bos.examples, without.examples, strict=True):
        assert own.clean == (bos, *other.clean)
        assert bos not in other.clean


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_disjoint_and_not_empty(task, tokenizer):
    for example in load_dataset(task, tokenizer, head=50).examples:
        assert example.correct
        assert example.incorrect
        assert not set(example.correct) & set(example.incorrect)
        assert len(example.clean) == len(example.corrupted)


def test_greater_than_labels_split_all_hundred_numbers(tokenizer):
    for example in load_dataset("greater-than", tokenizer, head=20).examples:
        assert len(example.correct) + len(example.incorrect) == 100
        assert len({*example.correct, *example.incorrect}) == 100


# ---- data of one's own ---------------------------------------------------------------------------


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "own.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


GOOD = "When Ann and Bob"
HEADER = "clean,corrupted,correct,incorrect\n"
PROMPT = "Then, Mary and John met. {} gave a ball to"
ROW = f'"{PROMPT.format("John")}","{PROMPT.format("Tom")}", Mary, John\n'


def test_a_generic_csv_is_a_task_of_its_own(tmp_path, tokenizer):
    path = write(tmp_path, HEADER + ROW)
    dataset = load_dataset("my-task", tokenizer, path=path)
    (example,) = dataset.examples
    assert tokenizer.decode([example.correct[0]]) == " Mary"
    assert tokenizer.decode([example.incorrect[0]]) == " John"
    assert dataset.provenance["sha256"]


def test_a_copy_of_a_task_file_with_an_index_column_loads(tmp_path, tokenizer):
    frame = pd.read_csv(DATA / "ioi" / "toy.csv", dtype=str).head(5)
    path = tmp_path / "copy.csv"
    frame.to_csv(path)  # with pandas' unnamed index, as published files have it
    assert load_dataset("ioi", tokenizer, path=path).examples == (
        load_dataset("ioi", tokenizer, head=5).examples
    )


def test_list_columns_are_parsed_and_never_evaluated(tmp_path, tokenizer):
    text = (
        "clean,corrupted,answers,corrupted_answers\n"
        '", robins and other",", apples and other","__import__(\'os\').abort()","[\'fruits\']"\n'
    )
    with pytest.raises(UserError, match=r"line 2.*not a list of words"):
        load_dataset("hypernymy-comma", tokenizer, path=write(tmp_path, text))


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("ioi", "clean,correct_idx\na,3\n", "no column corrupted"),
        ("ioi", "", "not a CSV"),
        ("ioi", HEADER, "no rows"),
        ("ioi", b"clean,corrupted\n\xff\xfe,b\n", "not UTF-8"),
        ("own", HEADER + "The man said,The old man said, he, she\n", r"line 2.*tokens"),
        ("own", HEADER + "The man said,The woman said,, he\n", r"line 2.*no correct answer"),
        ("own", HEADER + "The man said,The woman said, he, he\n", r"line 2.*both"),
        ("own", HEADER + "The man said,The woman said, qqxzj, she\n", r"line 2.*tokens"),
        ("own", HEADER + "The man said,The man said, he, she\n", r"line 2.*the same"),
        ("own", HEADER + "The man said ,The woman said , he, she\n", r"line 2.*space"),
        ("own", HEADER + ",The woman said, he, she\n", r"line 2.*empty"),
        (
            "greater-than",
            "clean,corrupted,correct_idx\nThe war lasted from the year 1732 to the year 17,"
            "The war lasted from the year 1701 to the year 17,132\n",
            r"line 2.*label '132' is not in",
        ),
        (
            "greater-than",
            "clean,corrupted,correct_idx\nThe war lasted from the year 1732 to the year 17,"
            "The war lasted from the year 1701 to the year 17,33\n",
            r"line 2.*label 33 is not how 1732 ends",
        ),
        (
            "gender-bias",
            "clean,corrupted,label\nThe nurse said that,The man said that,2\n",
            "label",
        ),
        ("sva", "clean,corrupted,plural\nThe author,The authors,x\n", "plural"),
        (
            "ioi",
            'clean,corrupted,correct_idx\n"Then, Mary and John met. John gave a ball to",'
            '"Then, Mary and John met. Tom gave a ball to",3\n',
            r"line 2.*with this tokenizer",
        ),
    ],
)
def test_bad_files_are_refused_with_the_row_and_the_reason(
    tmp_path, tokenizer, task, text, message
):
    with pytest.raises(UserError, match=message):
        load_dataset(task, tokenizer, path=write(tmp_path, text))


def test_a_missing_file_and_an_unknown_task_are_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no data at"):
        load_dataset("ioi", tokenizer, path=tmp_path / "none.csv")
    with pytest.raises(UserError, match="greater-than-sequence"):
        load_dataset("iio", tokenizer)


# ---- batches -------------------------------------------------------------------------------------


@st.composite
def example_lists(draw):
    examples = []
    for _ in range(draw(st.integers(1, 30))):
        n = draw(st.integers(1, 9))
        first = draw(st.integers(0, n))
        clean = tuple(range(n))
        corrupted = tuple(t if i < first else t + 1 for i, t in enumerate(clean))
        examples.append(Example(clean, corrupted, (1,), (2,)))
    return examples


@settings(deadline=None, max_examples=40)
@given(example_lists(), st.integers(1, 7))
def test_every_row_is_in_one_batch_and_no_batch_is_too_large(examples, batch_size):
    plan = plan_batches(examples, batch_size)
    assert sorted(row for rows in plan for row in rows) == list(range(len(examples)))
    assert max(map(len, plan)) <= batch_size


@settings(deadline=None, max_examples=40)
@given(example_lists())
def test_a_group_computes_all_that_differs(examples):
    for group in group_examples(examples):
        for row in group.rows:
            assert group.start <= first_difference(examples[row])
            assert group.end >= len(examples[row].clean)


def test_a_batch_size_below_one_is_refused():
    for size in (0, -1, 2.0, True, "2"):
        with pytest.raises(UserError, match="whole number from 1"):
            plan_batches([Example((1,), (2,), (1,), (2,))], size)
    assert plan_batches([Example((1,), (2,), (1,), (2,))], np.int64(2)) == [(0,)]


@pytest.mark.parametrize("verb", ["attribute", "evaluate_baselines", "patch_edges", "patch_nodes"])
def test_what_is_no_data_set_and_what_is_no_model_is_refused(verb):
    """A list of examples, a loader, a name; each says what is wanted."""
    model, run = eap.load_model("toy", device="cpu"), getattr(eap, verb)
    dataset = load_dataset("ioi", model.tokenizer, head=2)
    for wrong in (list(dataset.examples), torch.utils.data.DataLoader([1]), "ioi", None):
        with pytest.raises(UserError, match=r"eap\.load_dataset (returns|makes)"):
            run(model, wrong)
    for wrong in ("toy", None, model.bridge):
        with pytest.raises(UserError, match=r"eap\.load_model"):
            run(wrong, dataset)


T = torch.tensor


@pytest.mark.parametrize(
    "parts",
    [
        ([5, 6, 7], [5, 9, 7], [3], [4]),
        (T([5, 6, 7]), T([[5, 9, 7]]), T([3]), T(4)),
        (np.array([5, 6, 7]), np.array([5.0, 9.0, 7.0]), np.int64(3), 4),
    ],
)
def test_an_example_made_by_hand_holds_plain_ids(parts):
    made = Example(*parts)
    assert made == Example((5, 6, 7), (5, 9, 7), (3,), (4,))
    assert all(type(i) is int for part in vars(made).values() for i in part)
    assert hash(made)


@pytest.mark.parametrize(
    "parts",
    [
        ("[5, 6, 7]", (5, 9, 7), (3,), (4,)),
        ((5, 6, 7), (5, 9, 7), (3,), T([-4])),
        ((5, 6, 7), (5, 9, 7), (3,), ("b",)),
        ((5, 6, 7), (5, 9, 7.5), (3,), (4,)),
        ((5, 6, 7), (5, 9, 7), (True,), (4,)),
        ((5, 6, 7), (5, 9, 7), ((3, 4),), (4,)),
        (((5, 6), (7, 8)), (5, 9, 7), (3,), (4,)),
    ],
)
def test_an_example_of_what_is_no_ids_is_refused(parts):
    with pytest.raises(UserError, match=" of the example "):
        Example(*parts)


def test_a_data_set_is_a_sequence_that_prints_in_one_line(tokenizer):
    dataset = load_dataset("ioi", tokenizer, head=7)
    assert [*dataset] == [*dataset.examples]
    assert dataset[2] is dataset.examples[2]
    part = dataset[1:4]
    assert part.examples == dataset.examples[1:4]
    assert part.provenance["pairs"] == 3
    assert part.provenance["tokens_sha256"] == part.tokens_sha256 != dataset.tokens_sha256
    assert repr(dataset) == f"<Dataset {dataset.summary()}>"
    assert len(repr(dataset[:1])) < 200
    for n in (np.int64(3), np.uint8(3), 3):
        assert len(dataset.head(n)) == 3
    assert isinstance(Dataset("x", list(dataset)).examples, tuple)


def test_a_data_set_of_examples_has_a_hash_of_its_tokens():
    first, other = (Dataset("own", (Example((1, 2), (1, 3), (4,), (n,)),)) for n in (5, 6))
    assert first.tokens_sha256 == Dataset("another", first.examples).tokens_sha256
    assert first.tokens_sha256 != other.tokens_sha256
