"""Indirect object identification: "Then, Ann and Bob went to the park. Bob gave a ball to" -> " Ann".

The corrupted prompt names a third person in place of the repeated subject, so that neither name is
repeated and neither is the better answer.
"""

import re
from functools import partial
from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, changed_word, draw_pairs, keep_all
from eap.data.tasks.words import words
from eap.data.vocabulary import Vocabulary

NAMES = words("names.txt")
PLACES = tuple("park museum library market station airport garden beach theatre church".split())
OBJECTS = tuple("book ring letter ball drink map ticket camera key basket".split())

# {A} and {B} are the two people in order of appearance, {S} is the person named again.
TEMPLATES = (
    "Then, {A} and {B} walked to the {place}. {S} handed a {object} to",
    "Then, {A} and {B} spent the day at the {place}. {S} gave a {object} to",
    "Then, {A} and {B} met at the {place}, and {S} offered a {object} to",
    "When {A} and {B} found a {object} near the {place}, {S} passed it to",
    "After {A} and {B} came back from the {place}, {S} lent a {object} to",
    "While {A} and {B} waited outside the {place}, {S} showed a {object} to",
    "Once {A} and {B} had left the {place}, {S} sold a {object} to",
    "Yesterday, {A} and {B} talked for hours at the {place}. Later {S} said goodbye to",
)


def generate(
    random: Random, vocabulary: Vocabulary, keep: Keep = keep_all, *, n: int = 1000
) -> list[dict[str, str]]:
    """Up to `n` different pairs, about half of which name the subject first."""
    names, places, objects = (
        vocabulary.one_token_words(words) for words in (NAMES, PLACES, OBJECTS)
    )
    if len(names) < 3 or not places or not objects:
        raise ValueError("too few names, places or objects are one token")

    def draw(_: int) -> dict[str, str]:
        indirect_object, subject, third = random.sample(names, 3)
        first, second = random.sample([indirect_object, subject], 2)
        template, place, thing = (random.choice(words) for words in (TEMPLATES, places, objects))

        fill = partial(template.format, A=first, B=second, place=place, object=thing)
        return {
            "clean": fill(S=subject),
            "corrupted": fill(S=third),
            "corrupted_hard": fill(S=indirect_object),
            "correct_idx": str(vocabulary.token(f" {indirect_object}")),
            "incorrect_idx": str(vocabulary.token(f" {subject}")),
        }

    return draw_pairs(n, draw, keep)


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """The indirect object, and the subject (the name that the corrupted prompt replaces)."""
    clean, corrupted = (re.findall(r"\w+", row[side]) for side in ("clean", "corrupted"))
    differing = {a for a, b in zip(clean, corrupted, strict=False) if a != b}
    if len(clean) != len(corrupted) or len(differing) != 1:
        raise ValueError("clean and corrupted must differ in one word, the repeated name")
    (subject,) = differing
    first, second = _people(row, subject)
    indirect_object = first.group() if second.group() == subject else second.group()
    return (f" {indirect_object}",), (f" {subject}",)


def _people(row: Row, subject: str) -> tuple[re.Match[str], re.Match[str]]:
    """Matches of the two names where both people are named."""
    pair = re.search(rf"\w+ and {subject}\b|\b{subject} and \w+", row["clean"])
    if pair is None:
        raise ValueError(f"no 'X and {subject}' or '{subject} and X' that names both people")
    first, _, second = re.compile(r"\w+").finditer(row["clean"], *pair.span())
    return first, second


def roles(row: Row) -> tuple[int, ...]:
    """Characters at which the names, the text between them and the repeated name begin or end."""
    start, end = changed_word(row)
    first, second = _people(row, row["clean"][start:end])
    if second.end() > start:
        raise ValueError("the repeated name does not follow the two people")
    return first.start(), first.end(), second.start(), second.end(), start, end


TASK = Task(
    name="ioi",
    display_name="IOI",
    metric="logit_diff",
    cross_task_metric="logit_diff",
    columns=("corrupted",),  # the corrupted prompt tells which name is the subject
    generate=generate,
    answers=answers,
    answer_ids={"correct_idx": "correct", "incorrect_idx": "incorrect"},
    order=1,
    main=True,
    circuit_size=800,
    role_names=(
        "before",
        "first name",
        "and",
        "second name",
        "middle",
        "repeated name",
        "rest",
        "last",
    ),
    roles=roles,
)
