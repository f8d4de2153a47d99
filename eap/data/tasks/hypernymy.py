"""Hypernymy: ", robins and other" -> " birds".

The corrupted prompt names a member of another class, with the same number of tokens; the names of
that class are the incorrect answers.
"""

import re
from collections import defaultdict
from random import Random

from eap.data.cells import written_list
from eap.data.tasks.task import AnswerSets, Keep, Row, Task, keep_all
from eap.data.tasks.words import word_pairs
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import quoted

# Members of each class, by the accepted names of the class.
CLASSES = {
    tuple(names.split()): tuple(members.split(", ")) for names, members in word_pairs("classes.csv")
}

TEMPLATE = ", {} and other"


def generate(random: Random, vocabulary: Vocabulary, keep: Keep = keep_all) -> list[dict[str, str]]:
    """One pair for every member that can be replaced by a member of another class."""
    accepted = {
        names: [name for name in names if vocabulary.is_one_token(f" {name}")] for names in CLASSES
    }
    members = [
        (member, names)
        for names, members_of in CLASSES.items()
        if accepted[names]
        for member in members_of
    ]
    prompts = vocabulary.encode_all([TEMPLATE.format(member) for member, _ in members])
    same_length = defaultdict(list)
    for (member, names), prompt in zip(members, prompts, strict=True):
        same_length[len(prompt)].append((member, names))
    rows = []
    for (member, names), prompt in zip(members, prompts, strict=True):
        others = [
            (other, other_names)
            for other, other_names in same_length[len(prompt)]
            if not set(accepted[other_names]) & set(accepted[names])
        ]
        if not others:
            continue
        other, other_names = random.choice(others)
        rows.append(
            {
                "clean": TEMPLATE.format(member),
                "h1": member,
                "hypernym": names[0],
                "answers": str(accepted[names]),
                "answers_idx": str([vocabulary.token(f" {name}") for name in accepted[names]]),
                "corrupted": TEMPLATE.format(other),
                "c1": other,
                "corrupted_hypernym": other_names[0],
                "corrupted_answers": str(accepted[other_names]),
                "corrupted_answers_idx": str(
                    [vocabulary.token(f" {n}") for n in accepted[other_names]]
                ),
            }
        )
    rows = [row for row in rows if keep(row)]
    random.shuffle(rows)
    return rows


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """The names of the class, and the names of the corrupted class."""
    return _names(row, "answers"), _names(row, "corrupted_answers")


def _names(row: Row, column: str) -> tuple[str, ...]:
    """Words of a list that is written as text."""
    names = written_list(row[column].strip())
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(
            f"{column} is {quoted(row[column])}, not a list of words such as ['birds', 'bird']"
        )
    return tuple(f" {name.strip()}" for name in names)


def roles(row: Row) -> tuple[int, int]:
    """Characters at which the member begins and ends, between ", " and " and other"."""
    match = re.fullmatch(r"\W*(.+?) and other\s*", row["clean"])
    if match is None:
        raise ValueError("the clean prompt must be like ', robins and other'")
    return match.span(1)


TASK = Task(
    name="hypernymy-comma",
    display_name="Hypernymy",
    metric="prob_diff",
    cross_task_metric="logit_diff",
    columns=("answers", "corrupted_answers"),
    generate=generate,
    answers=answers,
    answer_ids={"answers_idx": "correct", "corrupted_answers_idx": "incorrect"},
    order=6,
    main=True,
    circuit_size=1600,
    role_names=("before", "member", "rest", "last"),
    roles=roles,
)
