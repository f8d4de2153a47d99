"""What a task is."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from eap.data.vocabulary import Vocabulary

Row = Mapping[str, str]
"""One line of a task's CSV: a clean and a corrupted prompt, and what its answers follow from."""

Keep = Callable[[Row], bool]
"""Which of the pairs that could be made are wanted."""

AnswerSets = tuple[tuple[str, ...], tuple[str, ...]]
"""Texts of the correct and of the incorrect answers, with the space before them if there is one."""


def keep_all(row: Row) -> bool:
    """Every pair is wanted."""
    return True


# So many draws in a row that give nothing new: there is nothing more to draw.
ENOUGH_DRAWS = 2000


def draw_pairs(
    n: int, draw: Callable[[int], dict[str, str] | None], keep: Keep
) -> list[dict[str, str]]:
    """`n` pairs with different clean prompts, or as many as there are.

    Args:
        n: number of them.
        draw: given how many there are, draws a pair, or None if what it drew is none.
        keep: filter of the pairs that are wanted.
    """
    rows: dict[str, dict[str, str]] = {}
    fruitless = 0
    while len(rows) < n and fruitless < ENOUGH_DRAWS:
        before, row = len(rows), draw(len(rows))
        if row is not None and keep(row):
            rows[row["clean"]] = row
        fruitless = 0 if len(rows) > before else fruitless + 1
    return list(rows.values())


@dataclass(frozen=True)
class Task:
    """A task: how its pairs are made, and how a row of its CSV is read.

    Attributes:
        name: name as files and scripts have it.
        display_name: name as figures have it.
        metric: metric of the Pareto study.
        cross_task_metric: metric of the cross-task study.
        columns: columns that a CSV must have beside `clean` and `corrupted`.
        generate: `(random, vocabulary, keep) -> rows` that fit the vocabulary, in random order.
        answers: `(row, vocabulary) -> texts` of the correct and incorrect answers; raises
            `ValueError` with what is wrong with the row.
        answer_ids: columns of token ids, and the answer set ('correct' or 'incorrect') they repeat.
        variant_of: name of the task that it is a variant of: both count as one where tasks are the
            sample.
        order: order of the tasks in scripts and figures; those without one come last, by name.
        main: one of the six tasks of the paper's main figures.
        first_token: answers of several tokens are represented by their first one.
        pieces: answers are tokens in their own right, also where the tokenizer would write prompt
            and answer as one token (GPT-2 has " 1300" in one, but the answer "00" is that of "
            13").
        circuit_size: edges of the cross-task study's circuit on GPT-2 small.
        role_names: names of the spans of its prompts, from the first token on; the last is the last
            token.
        roles: `row -> characters` of the clean prompt at which the roles begin, all but the first
            and the last; raises `ValueError` with what is not found.
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
    """Where the first word of the clean prompt that the corrupted one changes begins and ends.

    Raises:
        ValueError: the prompts have different numbers of words, or the same words.
    """
    words, others = (list(re.finditer(r"\w+", row[side])) for side in ("clean", "corrupted"))
    pairs = zip(words, others, strict=False)
    changed = next((a for a, b in pairs if a.group() != b.group()), None)
    if len(words) != len(others) or changed is None:
        raise ValueError("clean and corrupted must be the same words but for some")
    return changed.span()
