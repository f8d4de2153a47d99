"""Batches of token ids, grouped by length and by the first position at which prompts differ.

A batch computes the positions from the earliest first difference of its rows to the end of the
longest row. Grouping rows that agree in both avoids padding; small groups are merged if one larger
batch costs less than two small ones.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eap.data.answers import Answers
from eap.data.dataset import Dataset
from eap.data.example import Example, first_difference
from eap.data.spans import check_spans
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.runtime.errors import UserError
from eap.runtime.ranges import whole

StartOf = Callable[[Example], int]
"""Function that gives the first position at which an example's ablated run can differ."""

# Fixed cost of a batch, as a number of tokens.
BATCH_OVERHEAD = 64


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that run together, padded on the right, divided where the prompts begin to differ.

    Attributes:
        prefix: tokens before `start`, equal in both prompts; [batch, start].
        clean, corrupted: remaining tokens of the two prompts; [batch, pos].
        last: index of each row's last token in the remaining tokens.
        answers: answers of the examples, with their rows in the data set.
    """

    prefix: Int[Tensor, "batch start"]
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    answers: Answers

    @property
    def rows(self) -> tuple[int, ...]:
        """Index of each example in its data set."""
        return self.answers.rows

    @property
    def n_positions(self) -> int:
        """Number of positions that every run computes."""
        return self.clean.shape[1]

    def __len__(self) -> int:
        return len(self.last)


@dataclass(frozen=True)
class Group:
    """Rows that may share a batch, which computes positions `start` to `end`."""

    start: int
    end: int
    rows: tuple[int, ...]

    @property
    def n_positions(self) -> int:
        """Number of positions that every run computes."""
        return self.end - self.start

    @property
    def cost(self) -> int:
        """Cost of the group as a batch, in tokens."""
        return BATCH_OVERHEAD + len(self.rows) * self.n_positions

    def merged(self, other: "Group") -> "Group":
        """Group with the rows of both groups."""
        start, end = min(self.start, other.start), max(self.end, other.end)
        return Group(start, end, self.rows + other.rows)


def check_dataset(model: Model, dataset: Dataset) -> None:
    """Check that a model can run a data set.

    Raises:
        UserError: one of them is something else (a name, a list, a loader), there are no examples,
            or an example has empty prompts, prompts of different lengths, no answer at all, a token
            that the weights do not have, or more tokens than the model has positions.
    """
    graph_config(model)
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"the data set is {type(dataset).__name__}; give what eap.load_dataset returns, or "
            "eap.Dataset('name', examples) with a list of eap.Example"
        )
    if not dataset.examples:
        raise UserError("there are no examples to run")
    d_vocab = len(model.W_E)
    n_positions = model.n_positions
    for row, example in enumerate(dataset.examples):
        n = len(example.clean)
        if not n or len(example.corrupted) not in (0, n):
            raise UserError(
                f"example {row}: the prompts have {n} and {len(example.corrupted)} tokens; they "
                "must be equally long, and not empty"
            )
        if not example.correct and not example.incorrect:
            raise UserError(f"example {row} has neither a correct nor an incorrect answer")
        if n_positions is not None and n > n_positions:
            raise UserError(
                f"example {row} has {n} tokens; {model.name} takes at most {n_positions}"
            )
        sets = (example.clean, example.corrupted, example.correct, example.incorrect)
        tokens = [token for ids in sets for token in ids]
        largest, smallest = max(tokens), min(tokens)
        if smallest < 0:
            raise UserError(f"example {row} has token {smallest}; token ids begin at 0")
        if largest >= d_vocab:
            raise UserError(
                f"example {row} has token {largest}, but the weights have {d_vocab} tokens: this "
                f"tokenizer does not belong to {model.name}"
            )


def named_spans(model: Model, dataset: Dataset) -> tuple[str, ...]:
    """Names of the spans of a data set's prompts.

    Raises:
        UserError: the data set has no spans, its spans do not tile a prompt, or as for
            `check_dataset`.
    """
    check_dataset(model, dataset)
    check_spans(
        dataset.span_names, [(example.spans, len(example.clean)) for example in dataset.examples]
    )
    return dataset.span_names


def check_pairs(dataset: Dataset, what: str) -> None:
    """Check that every example has a corrupted prompt, which `what` needs.

    Raises:
        UserError: an example has none.
    """
    if not dataset.has_pairs:
        unpaired = sum(not example.corrupted for example in dataset.examples)
        raise UserError(
            f"{what} needs a corrupted prompt for every clean one, and {unpaired} of "
            f"{len(dataset)} examples have none: ablation='zero' or a mean (eap.Mean.over_dataset("
            "model, dataset, prompts='clean')) needs none, and eap.data.corrupt makes pairs"
        )


def one_group(examples: Sequence[Example], start_of: StartOf = first_difference) -> Group:
    """Group of all examples."""
    start = min(start_of(example) for example in examples)
    end = max(len(example.clean) for example in examples)
    return Group(start, end, tuple(range(len(examples))))


def group_examples(
    examples: Sequence[Example], start_of: StartOf = first_difference
) -> list[Group]:
    """Groups by first difference and length, merged as long as that lowers the total cost."""
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        rows_of[start_of(example), len(example.clean)].append(row)
    groups = [Group(start, end, tuple(rows)) for (start, end), rows in sorted(rows_of.items())]
    while len(groups) > 1:
        savings = [
            left.cost + right.cost - left.merged(right).cost for left, right in pairwise(groups)
        ]
        best = max(range(len(savings)), key=savings.__getitem__)
        if savings[best] < 0:
            break
        groups[best : best + 2] = [groups[best].merged(groups[best + 1])]
    return groups


def plan_batches(
    examples: Sequence[Example], batch_size: int, start_of: StartOf = first_difference
) -> list[tuple[int, ...]]:
    """Divide the examples into batches of at most `batch_size` rows.

    Raises:
        UserError: a batch size out of range.
    """
    batch_size = whole("batch_size", batch_size)
    return [
        group.rows[first : first + batch_size]
        for group in group_examples(examples, start_of)
        for first in range(0, len(group.rows), batch_size)
    ]


def load_batch(
    examples: Sequence[Example],
    rows: Sequence[int],
    device: torch.device,
    start_of: StartOf = first_difference,
) -> Batch:
    """Make the tensors of one batch."""
    chosen = [examples[row] for row in rows]
    start = min(start_of(example) for example in chosen)
    # Without a pair, the corrupted tokens are never read (`check_pairs`).
    pairs = [(example.clean, example.corrupted or example.clean) for example in chosen]
    clean, corrupted = (
        pad_sequence([torch.tensor(ids[start:]) for ids in prompts], batch_first=True).to(device)
        for prompts in zip(*pairs, strict=True)
    )
    return Batch(
        prefix=torch.tensor([example.clean[:start] for example in chosen], device=device).long(),
        clean=clean,
        corrupted=corrupted,
        last=torch.tensor([len(example.clean) - 1 - start for example in chosen], device=device),
        answers=Answers.of(chosen, rows, device),
    )
