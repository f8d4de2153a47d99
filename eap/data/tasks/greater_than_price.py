"""Greater-than for prices: "The price of that lamp ranges from $ 1732 to $ 17" -> "33" .. "99"."""

from random import Random

from eap.data.tasks.greater_than import ROLE_NAMES, answers, number_pairs, roles
from eap.data.tasks.task import Keep, Task, keep_all
from eap.data.vocabulary import Vocabulary

ITEMS = tuple(
    """lamp watch phone bike table chair guitar piano sofa bed desk mirror jacket coat necklace ring
    bag camera tent stove boat engine""".split()
)
TEMPLATE = "The price of that {word} ranges from $ {start} to $ {head}"


def generate(
    random: Random, vocabulary: Vocabulary, keep: Keep = keep_all, *, n: int = 1000
) -> list[dict[str, str]]:
    """Up to `n` pairs with prices."""
    hundreds = range(11, 18)
    return number_pairs(
        random, vocabulary, template=TEMPLATE, words=ITEMS, heads=hundreds, keep=keep, n=n
    )


TASK = Task(
    name="greater-than-price",
    display_name="Greater-Than (Price)",
    metric="prob_diff",
    cross_task_metric="prob_diff",
    columns=("correct_idx",),
    generate=generate,
    answers=answers,
    variant_of="greater-than",
    order=7,
    pieces=True,
    circuit_size=300,
    role_names=ROLE_NAMES,
    roles=roles,
)
