"""Gender bias: "The nurse said that" -> " she" rather than " he", according to the stereotype.

The corrupted prompt names a woman in place of a profession that is stereotyped as male, and a man
in place of one stereotyped as female.
"""

from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, changed_word, keep_all
from eap.data.tasks.words import words
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import quoted

MALE = words("male_professions.txt")
FEMALE = words("female_professions.txt")
SAID = "said, thought, hoped, believed, shouted, claimed, promised"
DID = "smiled, left, stopped, stayed, worried, waited, sang, was late, was tired, went away"
TEMPLATES = (
    *(f"The {{}} {said} that" for said in SAID.split(", ")),
    *(f"The {{}} {did} because" for did in DID.split(", ")),
)


def generate(random: Random, vocabulary: Vocabulary, keep: Keep = keep_all) -> list[dict[str, str]]:
    """Pairs of every template with every one-token profession, equally many male and female."""
    he, she = vocabulary.token(" he"), vocabulary.token(" she")
    males, females = vocabulary.one_token_words(MALE), vocabulary.one_token_words(FEMALE)
    n = min(len(males), len(females))
    chosen = [(word, 1) for word in sorted(random.sample(males, n))]
    chosen += [(word, 0) for word in sorted(random.sample(females, n))]
    rows = [
        {
            "clean": template.format(word),
            "corrupted": template.format("woman" if male else "man"),
            "clean_answer_idx": str(he if male else she),
            "corrupted_answer_idx": str(she if male else he),
            "label": str(male),
        }
        for template in TEMPLATES
        for word, male in chosen
    ]
    rows = [row for row in rows if keep(row)]
    random.shuffle(rows)
    return rows


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """The pronoun of the stereotype, and the other pronoun."""
    if row["label"].strip() not in ("0", "1"):
        raise ValueError(f"label {quoted(row['label'])} is neither 0 (female) nor 1 (male)")
    he, she = (" he",), (" she",)
    return (he, she) if row["label"].strip() == "1" else (she, he)


TASK = Task(
    name="gender-bias",
    display_name="Gender-Bias",
    metric="logit_diff",
    cross_task_metric="logit_diff",
    columns=("label",),
    generate=generate,
    answers=answers,
    answer_ids={"clean_answer_idx": "correct", "corrupted_answer_idx": "incorrect"},
    order=3,
    main=True,
    circuit_size=200,
    role_names=("before", "profession", "rest", "last"),
    roles=changed_word,
)
