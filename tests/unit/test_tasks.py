"""The tasks: what their rows say, for tokenizers of different kinds."""

from collections import defaultdict
from dataclasses import replace
from random import Random

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from eap.data import dataset as dataset_module
from eap.data import tasks
from eap.data.dataset import check_rows, load_dataset
from eap.data.tasks import PARETO_TASKS, TASKS, get_task
from eap.data.tasks.sva import third_person, verb_sets
from eap.data.tasks.task import draw_pairs, keep_all
from eap.data.vocabulary import Vocabulary
from eap.metrics.metric import METRICS, Answers
from eap.model.directory import TOY_MODEL
from eap.runtime.errors import UserError


@pytest.fixture(scope="module")
def toy():
    return Vocabulary(AutoTokenizer.from_pretrained(str(TOY_MODEL)))


@pytest.fixture(scope="module")
def digits(toy):
    """A tokenizer that has the toy's words, but one token for every digit."""
    words = [w for w in toy.tokenizer.get_vocab() if not any(c.isdigit() for c in w)]
    vocabulary = {word: i for i, word in enumerate([*words, "<unk>", *map(str, range(10))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s\d\W]+|\d| ?[^\s\w]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_rows(task, toy):
    first, again = (TASKS[task].generate(Random(3), toy, keep_all) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("task", TASKS)
def test_all_generated_rows_pass_the_check(task, toy):
    rows = TASKS[task].generate(Random(1), toy, keep_all)
    _, problems = check_rows(TASKS[task], rows, toy)
    assert problems == []


@pytest.mark.parametrize("task", ["greater-than", "greater-than-price", "greater-than-sequence"])
def test_a_digit_tokenizer_is_asked_about_the_last_digit(task, digits):
    assert digits.digits_per_piece == 1
    rows = TASKS[task].generate(Random(0), digits, keep_all)
    examples, problems = check_rows(TASKS[task], rows, digits)
    assert problems == []
    assert len(examples) > 100
    for row, example in zip(rows[:50], examples[:50], strict=True):
        label = int(row["correct_idx"])
        assert 1 <= label <= 8
        assert len(example.correct) == 9 - label
        assert len(example.incorrect) == label + 1


def test_a_tokenizer_without_numbers_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    with pytest.raises(UserError, match="greater-than"):
        _ = Vocabulary(plain).digits_per_piece


@pytest.mark.parametrize("task", ["ioi", "gender-bias", "hypernymy-comma", "sva"])
def test_a_tokenizer_without_the_words_is_refused_not_waited_for(task):
    """Every character is a token: no name, noun or verb is one. The reason is given."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.add_tokens(list(" ,.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"))
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    with pytest.raises(UserError, match=f"{task}: (only 0|no) pair"):
        load_dataset(task, plain)


def test_a_new_task_is_one_file(tmp_path, monkeypatch, toy):
    """Found in the folder of tasks; nothing that is there already is touched."""
    (tmp_path / "colours.py").write_text(
        """
from eap.data.tasks.task import Task

def generate(random, vocabulary, keep):
    words = vocabulary.one_token_words(("red", "blue", "green", "black", "white", "brown"))
    pairs = [(a, b) for a in words for b in words if a != b]
    return [{"clean": f"The {a}", "corrupted": f"The {b}"} for a, b in pairs]

def answers(row, vocabulary):
    return (" he",), (" she",)

TASK = Task("colours", "Colours", "logit_diff", "logit_diff", (), generate, answers, order=3)
"""
    )
    before = list(TASKS)
    monkeypatch.setattr(tasks, "TASKS", TASKS.copy())
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    tasks.discover([str(tmp_path)])
    assert [name for name in tasks.TASKS if name != "colours"] == before
    assert list(tasks.TASKS).index("colours") == 2
    monkeypatch.setattr(dataset_module, "TASKS", tasks.TASKS)
    assert len(load_dataset("colours", toy.tokenizer)) >= 20


def test_a_task_of_a_name_that_is_taken_is_refused():
    tasks.register(TASKS["ioi"])  # the same one: nothing to do
    with pytest.raises(UserError, match="'ioi' already"):
        tasks.register(replace(TASKS["sva"], name="ioi"))
    assert next(iter(TASKS)) == "ioi"
    assert tuple(TASKS)[:6] == PARETO_TASKS


def test_pairs_are_drawn_until_there_are_no_new_ones():
    source = Random(0)
    rows = draw_pairs(
        100, lambda _: {"clean": str(source.randrange(7))}, lambda row: row["clean"] != "3"
    )
    assert sorted(row["clean"] for row in rows) == ["0", "1", "2", "4", "5", "6"]


def test_ioi_rows_name_the_subject_twice_and_a_third_person_once(toy):
    task = get_task("ioi")
    for row in task.generate(Random(0), toy, keep_all)[:100]:
        (indirect_object,), (subject,) = task.answers(row, toy)
        clean, corrupted = row["clean"], row["corrupted"]
        assert clean.count(subject.strip()) >= 2
        assert indirect_object.strip() in clean.split(subject)[0] + corrupted
        assert clean.split()[-2:] == corrupted.split()[-2:]
        changed = [(a, b) for a, b in zip(clean.split(), corrupted.split(), strict=True) if a != b]
        assert len(changed) == 1


def test_published_ioi_wording_is_read(toy):
    row = {
        "clean": "Then, Mary and John were working at the park. John decided to give a ball to",
        "corrupted": "Then, Mary and John were working at the park. Tom decided to give a ball to",
    }
    assert get_task("ioi").answers(row, toy) == ((" Mary",), (" John",))


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("walk", "walks"),
        ("watch", "watches"),
        ("carry", "carries"),
        ("play", "plays"),
        ("go", "goes"),
    ],
)
def test_the_third_person_is_spelled_right(verb, expected):
    assert third_person(verb) == expected


def test_verb_forms_come_in_pairs(toy):
    singular, plural = verb_sets(toy)
    assert len(singular) == len(plural) > 50
    assert not set(singular) & set(plural)


# ---- the toy model does the tasks ----------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_toy_model_does_the_task_on_held_out_pairs(task, toy):
    model = AutoModelForCausalLM.from_pretrained(str(TOY_MODEL), dtype=torch.float32)
    dataset = load_dataset(task, toy.tokenizer, head=300)
    values = {}
    of_length = defaultdict(list)
    for place, example in enumerate(dataset.examples):
        of_length[len(example.clean)].append(place)
    for side in ("clean", "corrupted"):
        stacked = torch.empty(len(dataset), model.config.vocab_size)
        for places in of_length.values():
            prompts = torch.tensor([getattr(dataset.examples[place], side) for place in places])
            with torch.no_grad():
                stacked[places] = model(prompts).logits[:, -1]
        answers = Answers.of(dataset.examples, range(len(dataset)), torch.device("cpu"))
        for name in ("accuracy", TASKS[task].metric, "prob_diff"):
            values[side, name] = METRICS[name](stacked, stacked, answers).mean().item()
    assert values["clean", "accuracy"] >= (0.98 if task == "ioi" else 0.95)
    assert values["clean", TASKS[task].metric] > values["corrupted", TASKS[task].metric]
    if task == "greater-than":
        assert values["clean", "prob_diff"] >= 0.8
        assert values["corrupted", "prob_diff"] < 0
