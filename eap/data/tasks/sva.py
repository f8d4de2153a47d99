"""Subject-verb agreement: "The pilot near the chefs" -> a singular verb (" is", " likes", ..).

The corrupted prompt has the subject in the other number. Every pair occurs in both directions, so
the corrupted baseline is minus the clean one.
"""

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
    people = [(noun, f"{noun}s") for noun in ANIMATE]
    things = [(noun, f"{noun}s") for noun in INANIMATE]
    # Between subject and verb there may be another noun of either number, with a verb of its own.
    others = [(noun, 0) for noun in ATTRACTORS] + [(f"{noun}s", 1) for noun in ATTRACTORS]

    def pairs(
        template: str, subjects: list[tuple[str, str]], *between: list[str]
    ) -> list[tuple[str, str]]:
        return [
            (template.format(singular, *rest), template.format(plural, *rest))
            for (singular, plural), *rest in product(subjects, *between)
        ]

    def relative(template: str, subjects: list[tuple[str, str]]) -> list[tuple[str, str]]:
        # The inner verb agrees with the inner noun.
        return [
            (template.format(s, noun, verb[number]), template.format(p, noun, verb[number]))
            for (s, p), (noun, number), verb in product(subjects, others, LIKING)
        ]

    def coordinated(thing: str) -> list[tuple[str, str]]:
        return [
            (f"The {s} {verb[0]} {thing} and", f"The {p} {verb[1]} {thing} and")
            for (s, p), verb in product(people, LIKING)
        ]

    nouns = [noun for noun, _ in others]
    inner = [(noun, f"{noun}s") for noun in ATTRACTORS]
    prepositions = ["near", "behind", "beside", "with", "above", "below"]
    heads = [noun[0] for noun in people] + [noun[1] for noun in people]
    thing_heads = [noun[0] for noun in things] + [noun[1] for noun in things]
    return {
        "simple_agrmt": pairs("The {}", people),
        "sent_comp": pairs("The {1} said the {0}", people, [noun for noun, _ in inner]),
        "vp_coord": coordinated("the dog"),
        "long_vp_coord": coordinated("many different foreign songs"),
        "prep_anim": pairs("The {} {} the {}", people, prepositions, nouns),
        "prep_inanim": pairs("The {} {} the {}", things, ["by", "from", "about"], nouns),
        "subj_rel": [
            (f"The {s} that {verb[0]} the {noun}", f"The {p} that {verb[1]} the {noun}")
            for (s, p), verb, noun in product(people, LIKING, nouns)
        ],
        "obj_rel_across_anim": relative("The {} that the {} {}", people),
        "obj_rel_across_inanim": relative("The {} that the {} {}", things),
        "obj_rel_no_comp_across_anim": relative("The {} the {} {}", people),
        "obj_rel_no_comp_across_inanim": relative("The {} the {} {}", things),
        "obj_rel_within_anim": pairs("The {1} that the {0}", inner, heads),
        "obj_rel_within_inanim": pairs("The {1} that the {0}", inner, thing_heads),
        "obj_rel_no_comp_within_anim": pairs("The {1} the {0}", inner, heads),
        "obj_rel_no_comp_within_inanim": pairs("The {1} the {0}", inner, thing_heads),
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
    pairs = [
        (f" {singular}", f" {plural}")
        for singular, plural in VERB_PAIRS
        if vocabulary.is_one_token(f" {singular}") and vocabulary.is_one_token(f" {plural}")
    ]
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
