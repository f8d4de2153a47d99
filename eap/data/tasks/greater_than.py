"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any of "33" .. "99".

The corrupted prompt begins in year 01, after which nearly every answer is right. If a tokenizer has
one token per digit, only the last digit is asked for: "... from the year 1356 to the year 135" ->
any of "7" .. "9", corrupted 1350.

Prices and sequences of years ask the same question in other settings; the shared code is here.
"""

import re
from functools import partial
from random import Random

from eap.data.tasks.task import AnswerSets, Keep, Row, Task, draw_pairs, keep_all
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import quoted

EVENTS = tuple(
    """war siege battle campaign strike drought plague voyage conflict trial feud reign study project
    mission crisis tour debate search journey dispute marriage alliance rule boom storm flood peace
    revolt protest season career race program test process work course run show""".split()
)
TEMPLATE = "The {word} lasted from the year {start} to the year {head}"

# Numbers before the last two digits of years and prices.
HEADS = range(11, 18)


def number_pairs(
    random: Random,
    vocabulary: Vocabulary,
    keep: Keep = keep_all,
    *,
    template: str,
    words: tuple[str, ...],
    n: int = 1000,
) -> list[dict[str, str]]:
    """Up to `n` different pairs of a template, in which all askable last pieces are as frequent.

    Args:
        random: random number generator.
        vocabulary: vocabulary of the tokenizer.
        keep: filter of the pairs.
        template: text with places for `word`, `start` and `head`.
        words: words to choose from.
        n: number of pairs.
    """
    digits = vocabulary.digits_per_piece
    base = 10**digits
    lowest = 1 if digits == 2 else 0  # last piece in the corrupted prompt
    # If a piece has one digit, the head includes the tens: 13 -> 130 .. 139.
    scale = 100 // base
    all_heads = [head * scale + tens for head in HEADS for tens in range(scale)]
    last = range(2, 99) if digits == 2 else range(1, 9)
    split = vocabulary.splits_numbers(
        head * base + label for head in all_heads for label in (lowest, *last)
    )
    begin = [head for head in all_heads if head * base + lowest in split]
    valid = {label: [head for head in begin if head * base + label in split] for label in last}
    labels = [label for label in last if valid[label]]
    if not labels:
        raise ValueError(f"no number from {HEADS[0]}00 to {HEADS[-1]}99 is split as the task needs")
    fitting = vocabulary.one_token_words(words)
    if not fitting:
        raise ValueError(f"none of its words ({words[0]}, {words[1]}, ..) is one token")

    def draw(number: int) -> dict[str, str]:
        label = labels[number % len(labels)]
        head, word = random.choice(valid[label]), random.choice(fitting)
        clean, corrupted = (
            template.format(word=word, start=f"{head}{end:0{digits}d}", head=head)
            for end in (label, lowest)
        )
        return {"clean": clean, "corrupted": corrupted, "correct_idx": str(label)}

    pairs = draw_pairs(n, draw, keep)
    random.shuffle(pairs)
    return pairs


generate = partial(number_pairs, template=TEMPLATE, words=EVENTS)
"""Up to `n` pairs with years of the 12th to the 18th century."""


def _last_numbers(row: Row) -> tuple[re.Match[str], re.Match[str]]:
    """The last whole number of the clean prompt, and the number that the prompt ends within."""
    numbers = list(re.finditer(r"\d+", row["clean"]))
    if len(numbers) < 2 or len(numbers[-2].group()) - len(numbers[-1].group()) not in (1, 2):
        raise ValueError("the clean prompt must end in the first digits of a number")
    return numbers[-2], numbers[-1]


def answers(row: Row, vocabulary: Vocabulary) -> AnswerSets:
    """All last pieces above the label, and all others.

    The number of digits in a piece follows from the prompt, which ends in all digits before it.
    """
    digits = vocabulary.digits_per_piece
    start, head = (number.group() for number in _last_numbers(row))
    asked = len(start) - len(head)
    if asked != digits:
        raise ValueError(
            f"the prompt asks for {asked} digit(s) at once, and this tokenizer has {digits} to a token"
        )
    label = int(row["correct_idx"]) if row["correct_idx"].strip().isdigit() else -1
    if not 0 <= label < 10**digits - 1:
        raise ValueError(f"label {quoted(row['correct_idx'])} is not in 0 .. {10**digits - 2}")
    if int(start[-digits:]) != label:
        raise ValueError(f"label {label} is not how {start} ends")
    pieces = [f"{piece:0{digits}d}" for piece in range(10**digits)]
    return tuple(pieces[label + 1 :]), tuple(pieces[: label + 1])


def roles(row: Row) -> tuple[int, int, int, int]:
    """Characters at which the last whole number, its year, its end and the last number begin."""
    start, head = _last_numbers(row)
    return start.start(), start.start() + len(head.group()), start.end(), head.start()


TASK = Task(
    name="greater-than",
    display_name="Greater-Than",
    metric="prob_diff",
    cross_task_metric="prob_diff",
    columns=("correct_idx",),
    generate=generate,
    answers=answers,
    order=2,
    main=True,
    pieces=True,
    circuit_size=200,
    # Of the last two numbers; the century is all digits of a number that are not asked for.
    role_names=("before", "start century", "start year", "between", "end century", "last"),
    roles=roles,
)
