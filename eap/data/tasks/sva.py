"""Subject-verb agreement: "The pilot near the chefs" -> a singular verb (" is", " likes", ..).

The corrupted prompt has the subject in the other number. Every pair occurs in both directions, so
the corrupted baseline is minus the clean one.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, changed_word, keep_all
from eap.data.tasks.words import words
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import quoted

VERBS = words("verbs.txt")
IRREGULAR = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))

ANIMATE = tuple(
    "author pilot doctor farmer manager customer officer teacher lawyer senator".split()
)
INANIMATE = tuple("movie book game song picture painting novel poem report story".split())
ATTRACTORS = tuple("guard chef driver minister dancer parent student worker singer boy".split())
LIKING = tuple(
    (f"{verb}s", verb) for verb in ("like", "love", "hate", "trust", "know", "remember", "help")
)


def third_person(verb: str) -> str:
    """Third-person form, with -s, of a regular verb."""
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return f"{verb}es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}s"


VERB_PAIRS = (*IRREGULAR, *((third_person(verb), verb) for verb in VERBS))
"""Singular and plural form of each verb."""


def constructions() -> dict[str, list[tuple[str, str]]]:
    """Prompts up to the verb, for each construction: (singular subject, plural subject)."""

    def pairs(
        template: str, subjects: Iterable[tuple[str, str]], *between: Iterable[str]
    ) -> list[tuple[str, str]]:
        return [
            (template.format(singular, *rest), template.format(plural, *rest))
            for (singular, plural), *rest in product(subjects, *between)
        ]

    def acting(link: str) -> list[tuple[str, str]]:
        return [
            (f"{noun}{link} {verb[0]}", f"{noun}s{link} {verb[1]}")
            for noun, verb in product(ANIMATE, LIKING)
        ]

    def both_numbers(nouns: tuple[str, ...]) -> tuple[str, ...]:
        return (*nouns, *(f"{noun}s" for noun in nouns))

    people, things, inner = (
        [(noun, f"{noun}s") for noun in nouns] for nouns in (ANIMATE, INANIMATE, ATTRACTORS)
    )
    # Between subject and verb there may be another noun of either number, with a verb of its own.
    nouns = both_numbers(ATTRACTORS)
    clauses = [
        f"{noun[number]} {verb[number]}" for number, noun, verb in product((0, 1), inner, LIKING)
    ]
    prepositions = ("near", "behind", "beside", "with", "above", "below")
    return {
        "simple_agrmt": pairs("The {}", people),
        "sent_comp": pairs("The {1} said the {0}", people, ATTRACTORS),
        "vp_coord": pairs("The {} the dog and", acting("")),
        "long_vp_coord": pairs("The {} many different foreign songs and", acting("")),
        "prep_anim": pairs("The {} {} the {}", people, prepositions, nouns),
        "prep_inanim": pairs("The {} {} the {}", things, ("by", "from", "about"), nouns),
        "subj_rel": pairs("The {} the {}", acting(" that"), nouns),
        "obj_rel_across_anim": pairs("The {} that the {}", people, clauses),
        "obj_rel_across_inanim": pairs("The {} that the {}", things, clauses),
        "obj_rel_no_comp_across_anim": pairs("The {} the {}", people, clauses),
        "obj_rel_no_comp_across_inanim": pairs("The {} the {}", things, clauses),
        "obj_rel_within_anim": pairs("The {1} that the {0}", inner, both_numbers(ANIMATE)),
        "obj_rel_within_inanim": pairs("The {1} that the {0}", inner, both_numbers(INANIMATE)),
        "obj_rel_no_comp_within_anim": pairs("The {1} the {0}", inner, both_numbers(ANIMATE)),
        "obj_rel_no_comp_within_inanim": pairs("The {1} the {0}", inner, both_numbers(INANIMATE)),
    }


def generate(random: Random, vocabulary: Vocabulary, keep: Keep = keep_all) -> list[dict[str, str]]:
    """All pairs of all constructions with equally long prompts, in both directions."""
    rows = []
    for group, pairs in constructions().items():
        encoded = vocabulary.encode_all([text for pair in pairs for text in pair])
        for number, (singular, plural) in enumerate(pairs):
            if len(encoded[2 * number]) == len(encoded[2 * number + 1]):
                rows += [
                    {"clean": singular, "corrupted": plural, "group": group, "plural": "0"},
                    {"clean": plural, "corrupted": singular, "group": group, "plural": "1"},
                ]
    rows = [row for row in rows if keep(row)]
    random.shuffle(rows)
    return rows


@lru_cache(maxsize=8)
def verb_sets(vocabulary: Vocabulary) -> AnswerSets:
    """Singular forms and plural forms of the verbs for which both are single tokens."""
    spaced = [(f" {singular}", f" {plural}") for singular, plural in VERB_PAIRS]
    pairs = [pair for pair in spaced if all(map(vocabulary.is_one_token, pair))]
    if not pairs:
        raise ValueError("no verb has both forms as single tokens in this vocabulary")
    return tuple(singular for singular, _ in pairs), tuple(plural for _, plural in pairs)


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """Verb forms that agree with the subject of the clean prompt, and those that do not."""
    if row["plural"].strip() not in ("0", "1"):
        raise ValueError(f"plural is {quoted(row['plural'])}, neither 0 nor 1")
    singular, plural = verb_sets(vocabulary)
    return (plural, singular) if row["plural"].strip() == "1" else (singular, plural)


TASK = Task(
    name="sva",
    display_name="SVA",
    metric="prob_diff",
    cross_task_metric="prob_diff",
    columns=("plural",),
    generate=generate,
    answers=answers,
    order=4,
    main=True,
    circuit_size=400,
    role_names=("before", "subject", "rest", "last"),
    roles=changed_word,
)
