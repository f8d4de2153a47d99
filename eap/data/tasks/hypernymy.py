"""Hypernymy: ", robins and other" -> " birds".

The corrupted prompt names a member of another class, with the same number of tokens; the names of
that class are the incorrect answers.
"""

import re
from random import Random

from eap.data.cells import written_list
from eap.data.tasks.task import AnswerSets, Keep, Row, Task, keep_all, replacements
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
    accepted = {names[0]: vocabulary.one_token_words(names) for names in CLASSES}
    ids = {name: [vocabulary.token(f" {n}") for n in names] for name, names in accepted.items()}
    class_of = {member: names[0] for names, members in CLASSES.items() for member in members}
    rows = [
        {
            "clean": TEMPLATE.format(member),
            "h1": member,
            "hypernym": class_of[member],
            "answers": str(accepted[class_of[member]]),
            "answers_idx": str(ids[class_of[member]]),
            "corrupted": TEMPLATE.format(other),
            "c1": other,
            "corrupted_hypernym": class_of[other],
            "corrupted_answers": str(accepted[class_of[other]]),
            "corrupted_answers_idx": str(ids[class_of[other]]),
        }
        for member, other in replacements(random, vocabulary, TEMPLATE, class_of, accepted)
    ]
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
