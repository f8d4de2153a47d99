"""Country-capital: " Paris, the capital of" -> " France".

The corrupted prompt names the capital of another country, with the same number of tokens. A country
is represented by its first token.
"""

import re
from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, keep_all, replacements
from eap.data.tasks.words import word_pairs
from eap.data.vocabulary import Vocabulary

CAPITALS = dict(word_pairs("capitals.csv"))
"""Country of each capital."""

TEMPLATE = " {}, the capital of"


def generate(random: Random, vocabulary: Vocabulary, keep: Keep = keep_all) -> list[dict[str, str]]:
    """One pair for every capital that can be replaced by another with equally many tokens."""
    first = {}
    for country in CAPITALS.values():
        tokens = vocabulary.continuation(f" {country}")[:1]
        if tokens and not vocabulary.lacks(country, tokens):
            first[country] = tokens
    rows = [
        {
            "clean": TEMPLATE.format(capital),
            "capital": capital,
            "country": CAPITALS[capital],
            "country_idx": str(first[CAPITALS[capital]][0]),
            "corrupted": TEMPLATE.format(other),
            "corrupted_capital": other,
            "corrupted_country": CAPITALS[other],
            "corrupted_country_idx": str(first[CAPITALS[other]][0]),
        }
        for capital, other in replacements(random, vocabulary, TEMPLATE, CAPITALS, first)
    ]
    rows = [row for row in rows if keep(row)]
    random.shuffle(rows)
    return rows


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """The country of the capital, and the country of the corrupted capital."""
    for column in ("country", "corrupted_country"):
        if not row[column].strip():
            raise ValueError(f"{column} is empty")
    return (f" {row['country'].strip()}",), (f" {row['corrupted_country'].strip()}",)


def roles(row: Row) -> tuple[int, int]:
    """Characters at which the capital begins and ends, before ", the capital of"."""
    match = re.fullmatch(r"\s*(.+?), the capital of\s*", row["clean"])
    if match is None:
        raise ValueError("the clean prompt must be like ' Paris, the capital of'")
    return match.span(1)


TASK = Task(
    name="fact-retrieval-comma",
    display_name="Country-Capital",
    metric="logit_diff",
    cross_task_metric="prob_diff",
    columns=("country", "corrupted_country"),
    generate=generate,
    answers=answers,
    answer_ids={"country_idx": "correct", "corrupted_country_idx": "incorrect"},
    first_token=True,
    order=5,
    main=True,
    circuit_size=500,
    role_names=("before", "capital", "rest", "last"),
    roles=roles,
)
