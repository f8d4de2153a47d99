"""Definition of a task."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from eap.data.vocabulary import Vocabulary

Row = Mapping[str, str]
"""Row of a task's CSV: a clean and a corrupted prompt, and the columns that determine answers."""

Keep = Callable[[Row], bool]
"""Filter of possible pairs, True for pairs to keep."""

AnswerSets = tuple[tuple[str, ...], tuple[str, ...]]
"""Texts of the correct and of the incorrect answers, including a space before the answer."""


def keep_all(row: Row) -> bool:
    """Filter that keeps every pair."""
    return True


# Number of consecutive draws without a new pair after which drawing stops.
ENOUGH_DRAWS = 2000


def draw_pairs(
    n: int, draw: Callable[[int], dict[str, str] | None], keep: Keep
) -> list[dict[str, str]]:
    """Draw up to `n` pairs with different clean prompts; fewer if no more are found.

    Args:
        n: number of pairs.
        draw: function from the number of pairs so far to a new pair; None: nothing was drawn.
        keep: filter of the pairs.
    """
    rows: dict[str, dict[str, str]] = {}
    fruitless = 0
    while len(rows) < n and fruitless < ENOUGH_DRAWS:
        before, row = len(rows), draw(len(rows))
        if row is not None and keep(row):
            rows[row["clean"]] = row
        fruitless = 0 if len(rows) > before else fruitless + 1
    return list(rows.values())


def replacements(
    random: Random,
    vocabulary: Vocabulary,
    template: str,
    kinds: Mapping[str, str],
    answers: Mapping[str, Sequence[str | int]],
) -> list[tuple[str, str]]:
    """Words, each with another at random that fills as many tokens of a prompt.

    Args:
        random: random number generator.
        vocabulary: vocabulary of the tokenizer.
        template: text of the prompts, with a place for a word.
        kinds: kind of each word, such as the country of a capital.
        answers: answers of each kind. Words of kinds without an answer are left out, and kinds that
            share an answer do not replace one another.
    """
    words = [word for word in kinds if answers.get(kinds[word])]
    lengths = [len(ids) for ids in vocabulary.encode_all([template.format(w) for w in words])]
    pairs = []
    for word, length in zip(words, lengths, strict=True):
        fitting = (w for w, n in zip(words, lengths, strict=True) if n == length)
        own = set(answers[kinds[word]])
        others = [other for other in fitting if own.isdisjoint(answers[kinds[other]])]
        if others:
            pairs.append((word, random.choice(others)))
    return pairs


@dataclass(frozen=True)
class Task:
    """Task: how its pairs are generated, and how a row of its CSV is read.

    Attributes:
        name: name used by files and scripts.
        display_name: name in figures.
        metric: metric of the Pareto study.
        cross_task_metric: metric of the cross-task study.
        columns: columns that a CSV must have in addition to `clean` and `corrupted`.
        generate: function `(random, vocabulary, keep) -> rows` that generates rows that fit the
            vocabulary, in random order.
        answers: function `(row, vocabulary) -> texts` of the correct and incorrect answers; raises
            `ValueError` with a description of what is wrong with the row.
        answer_ids: columns of token ids, with the answer set ('correct' or 'incorrect') whose ids
            they repeat.
        variant_of: name of the task that this task is a variant of; the two count as one task where
            tasks are the sample.
        order: order of the task in scripts and figures; tasks without an order come last, by name.
        main: whether the task is one of the six tasks of the paper's main figures.
        first_token: whether answers of several tokens are represented by their first token.
        pieces: whether answers are tokens on their own, even if the tokenizer would write prompt
            and answer as one token (GPT-2 has the token " 1300", but the answer to " 13" is "00").
        circuit_size: number of edges of the circuit in the cross-task study on GPT-2 small.
        role_names: names of the spans of its prompts, from the first token on; the last span is the
            last token.
        roles: function `row -> characters` of the clean prompt at which the roles begin, except the
            first and the last; raises `ValueError` with a description of what is not found.
    """

    name: str
    display_name: str
    metric: str
    cross_task_metric: str
    columns: tuple[str, ...]
    generate: Callable[[Random, Vocabulary, Keep], list[dict[str, str]]]
    answers: Callable[[Row, Vocabulary], AnswerSets]
    answer_ids: Mapping[str, str] = field(default_factory=dict)
    variant_of: str = ""
    order: int = 1000
    main: bool = False
    first_token: bool = False
    pieces: bool = False
    circuit_size: int = 500
    role_names: tuple[str, ...] = ()
    roles: Callable[[Row], Sequence[int]] | None = None


def changed_word(row: Row) -> tuple[int, int]:
    """Characters at which the first word that differs from the corrupted prompt begins and ends.

    Raises:
        ValueError: the prompts have different numbers of words, or the same words.
    """
    words, others = (list(re.finditer(r"\w+", row[side])) for side in ("clean", "corrupted"))
    pairs = zip(words, others, strict=False)
    changed = next((a for a, b in pairs if a.group() != b.group()), None)
    if len(words) != len(others) or changed is None:
        raise ValueError("clean and corrupted must have equally many words, not all the same")
    return changed.span()
