"""One pair of prompts as token ids, with the answers to compare."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eap.data.cells import UnfitRowError, answer_ids, plain, prompt_ids
from eap.runtime.errors import UserError, quoted

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """Pair of prompts of equal length as token ids, with the two sets of answer tokens.

    To make an example by hand, give each part as a tuple, list, array or tensor of ids (a prompt
    may have a batch axis of size one); an answer may be a single number.

    Attributes:
        clean: tokens of the clean prompt, from its first token on.
        corrupted: tokens of the corrupted prompt; empty: there is no corrupted prompt, and
            ablations that need a pair (resample) refuse the example.
        correct: tokens of the correct answers.
        incorrect: tokens of the incorrect answers; empty for metrics that need none.
        spans: positions of the first tokens of the prompt's spans, if the data set has spans (see
            `eap.data.spans`).

    Raises:
        UserError: a part does not consist of token ids.

    Example:
        >>> pair = eap.Example(clean=(5, 7, 9), corrupted=(5, 8, 9), correct=(11,), incorrect=(12,))
    """

    clean: TokenIds
    corrupted: TokenIds
    correct: TokenIds
    incorrect: TokenIds
    spans: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, part in vars(self).items():
            object.__setattr__(self, name, _as_ids(name, part))

    @classmethod
    def of_ids(cls, *parts: TokenIds) -> "Example":
        """Make an example without checks, from parts known to be token ids; nothing is copied."""
        example = cls.__new__(cls)
        vars(example).update(zip(cls.__match_args__, parts, strict=True))
        return example


def _as_ids(name: str, part: Any) -> TokenIds:
    if type(part) is tuple and set(map(type, part)) <= {int}:
        return part  # `check_dataset` checks that the model has these ids
    cell = plain(part)
    if cell is None or cell == []:
        return ()
    if isinstance(cell, str):
        raise UserError(
            f"{name} of the example is the text {quoted(cell)}; an example holds token ids: "
            "eap.load_dataset makes them from text"
        )
    read = answer_ids if name in ("correct", "incorrect") else prompt_ids
    try:
        return read(cell, f"{name} of the example")
    except UnfitRowError as error:
        raise UserError(str(error)) from None


def first_difference(example: Example) -> int:
    """First position at which the prompts differ; the last if they are equal, 0 without a pair."""
    if not example.corrupted:
        return 0
    pairs = zip(example.clean, example.corrupted, strict=True)
    differing = (i for i, (clean, corrupted) in enumerate(pairs) if clean != corrupted)
    return next(differing, len(example.clean) - 1)


def statistics(examples: Sequence[Example]) -> Mapping[str, Any]:
    """Counts of lengths, first differences and answer-set sizes: {what: {value: count}}."""
    return {
        "tokens": Counter(len(e.clean) for e in examples),
        "first difference": Counter(first_difference(e) for e in examples),
        "differing positions": Counter(
            sum(a != b for a, b in zip(e.clean, e.corrupted, strict=False)) for e in examples
        ),
        "correct answers": Counter(len(e.correct) for e in examples),
    }
