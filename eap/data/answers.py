"""Answer sets of a batch of examples, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from eap.data.dataset import Example


@dataclass(frozen=True, eq=False)
class Answers:
    """Answer sets of a batch, as masks over all tokens that are an answer of any of its examples.

    Attributes:
        token_ids: ids of these tokens.
        correct, incorrect: masks of the tokens in each example's answer sets.
        rows: index of each example in its data set.
    """

    token_ids: Int[Tensor, " n_tokens"]
    correct: Bool[Tensor, "batch n_tokens"]
    incorrect: Bool[Tensor, "batch n_tokens"]
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, examples: Sequence[Example], rows: Sequence[int], device: torch.device
    ) -> "Answers":
        """Answers of a batch; `rows` are the indices of the examples in their data set."""
        token_ids = sorted({t for e in examples for t in (*e.correct, *e.incorrect)})
        column = {token: i for i, token in enumerate(token_ids)}
        masks = torch.zeros(2, len(examples), len(token_ids), dtype=torch.bool)
        columns: dict[int, list[int]] = {}  # by answer set, because many examples share one
        for row, example in enumerate(examples):
            for mask, answer_set in zip(masks, (example.correct, example.incorrect), strict=True):
                if id(answer_set) not in columns:
                    columns[id(answer_set)] = [column[token] for token in answer_set]
                mask[row, columns[id(answer_set)]] = True
        correct, incorrect = masks.to(device)
        ids = torch.tensor(token_ids, dtype=torch.long, device=device)
        return cls(ids, correct, incorrect, tuple(rows))

    def among_themselves(self) -> "Answers":
        """The same answers for logits that have only the columns `token_ids`, in their order."""
        order = torch.arange(len(self.token_ids), device=self.token_ids.device)
        return replace(self, token_ids=order)
