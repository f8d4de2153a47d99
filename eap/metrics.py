"""Metrics: per example, of the logits at the last token.

Every task's answer is two sets of token ids per example, *correct* and *incorrect*, so one
implementation of each metric serves all tasks. A metric is a function

    metric(logits [batch, d_vocab], clean_logits [batch, d_vocab], answers) -> [batch]

A metric of its own is `Metric("name", function)`; one written for logits of the whole sequence
goes through `from_sequence_metric`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.data.dataset import Example
from eap.errors import UserError


@dataclass(frozen=True, eq=False)
class Answers:
    """The answer sets of a batch, over the tokens that are an answer of any of its examples.

    Attributes:
        token_ids: those tokens.
        correct, incorrect: which of them belong to each example's sets.
        rows: index of each example in its dataset.
    """

    token_ids: Int[Tensor, " n_tokens"]
    correct: Bool[Tensor, "batch n_tokens"]
    incorrect: Bool[Tensor, "batch n_tokens"]
    rows: tuple[int, ...]

    @classmethod
    def of(
        cls, examples: Sequence[Example], rows: Sequence[int], device: torch.device
    ) -> "Answers":
        """The answers of a batch; `rows` are the examples' indices in their dataset."""
        token_ids = sorted({t for e in examples for t in (*e.correct, *e.incorrect)})
        column = {token: i for i, token in enumerate(token_ids)}
        masks = torch.zeros(2, len(examples), len(token_ids), dtype=torch.bool)
        columns: dict[int, list[int]] = {}  # of a set that many examples share, found once
        for row, example in enumerate(examples):
            for mask, answer_set in zip(masks, (example.correct, example.incorrect), strict=True):
                if id(answer_set) not in columns:
                    columns[id(answer_set)] = [column[token] for token in answer_set]
                mask[row, columns[id(answer_set)]] = True
        correct, incorrect = masks.to(device)
        return cls(torch.tensor(token_ids, device=device), correct, incorrect, tuple(rows))

    def among_themselves(self) -> "Answers":
        """The same for logits that have columns for `token_ids` alone, in their order."""
        order = torch.arange(len(self.token_ids), device=self.token_ids.device)
        return replace(self, token_ids=order)


MetricFunction = Callable[
    [Float[Tensor, "batch d_vocab"], Float[Tensor, "batch d_vocab"], Answers],
    Float[Tensor, " batch"],
]


@dataclass(frozen=True)
class Metric:
    """A metric and what the engine may know about it.

    Attributes:
        name: of the metric, as files and scripts have it.
        function: `(logits, clean_logits, answers) -> [batch]`.
        answers_only: it reads the logits of the answer tokens alone (so no others are computed).
        flat_at_clean: its gradient is zero when `logits` are the clean run's.
        differentiable: it can be attributed.
    """

    name: str
    function: MetricFunction
    answers_only: bool = False
    flat_at_clean: bool = False
    differentiable: bool = True

    def __call__(
        self,
        logits: Float[Tensor, "batch n_tokens"],
        clean_logits: Float[Tensor, "batch n_tokens"],
        answers: Answers,
    ) -> Float[Tensor, " batch"]:
        """The metric of each example.

        Raises:
            UserError: the function does not return one number per example.
        """
        values = self.function(logits, clean_logits, answers)
        if values.shape != logits.shape[:1]:
            raise UserError(
                f"metric {self.name!r} returned a tensor {list(values.shape)}; one value per "
                f"example, {list(logits.shape[:1])}, is needed (not a mean over the batch)"
            )
        return values


def logit_diff(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """Mean logit of the correct answers minus that of the incorrect ones."""
    return _set_mean(logits, answers, answers.correct) - _set_mean(
        logits, answers, answers.incorrect
    )


def logit_diff_sum(
    logits: Tensor, clean_logits: Tensor, answers: Answers
) -> Float[Tensor, " batch"]:
    """Summed logits of the correct answers minus those of the incorrect ones.

    For comparison with published hypernymy numbers only: it depends on the sets' sizes, and on a
    constant added to all logits.
    """
    picked = logits[:, answers.token_ids]
    return (picked * answers.correct).sum(-1) - (picked * answers.incorrect).sum(-1)


def prob_diff(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """Summed probability of the correct answers minus that of the incorrect ones."""
    picked = logits.softmax(dim=-1)[:, answers.token_ids]
    return (picked * answers.correct).sum(-1) - (picked * answers.incorrect).sum(-1)


def kl(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """KL(clean run, this run), summed over the vocabulary, in nats."""
    return _kl(clean_logits.log_softmax(dim=-1), logits.log_softmax(dim=-1))


def js(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """Jensen-Shannon divergence of this run and the clean run, in nats (at most log 2)."""
    p, q = clean_logits.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    mixture = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    return (_kl(p, mixture) + _kl(q, mixture)) / 2


def accuracy(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """1 where the correct set has more probability than the incorrect one, else 0."""
    picked = logits[:, answers.token_ids]
    correct = picked.masked_fill(~answers.correct, -torch.inf).logsumexp(dim=-1)
    incorrect = picked.masked_fill(~answers.incorrect, -torch.inf).logsumexp(dim=-1)
    return (correct > incorrect).to(logits.dtype)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("logit_diff", logit_diff, answers_only=True),
        Metric("logit_diff_sum", logit_diff_sum, answers_only=True),
        Metric("prob_diff", prob_diff),
        Metric("kl", kl, flat_at_clean=True),
        Metric("js", js, flat_at_clean=True),
        Metric("accuracy", accuracy, answers_only=True, differentiable=False),
    )
}


def get_metric(metric: str | Metric) -> Metric:
    """A metric by name (a `Metric` is returned as it is); a `UserError` lists the known names."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}; known are {', '.join(METRICS)}")
    return METRICS[metric]


def from_sequence_metric(
    name: str, function: Callable[[Tensor, Tensor, Tensor, Any], Tensor], labels: Any
) -> Metric:
    """A metric written as `function(logits, clean_logits, input_length, labels) -> [batch]`.

    Args:
        name: what to call it.
        function: takes logits `[batch, pos, d_vocab]`, of which it may read the last token's,
            `logits[i, input_length[i] - 1]`; that position is the only one it is given.
        labels: one entry per example of the dataset; the function gets those of its batch (a
            tensor if `labels` is one, else a list).
    """

    def of_last_token(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Tensor:
        rows = list(answers.rows)
        own = labels[rows] if isinstance(labels, Tensor) else [labels[row] for row in rows]
        if isinstance(own, Tensor):
            own = own.to(logits.device)
        input_length = torch.ones(len(rows), dtype=torch.long, device=logits.device)
        return function(logits[:, None], clean_logits[:, None], input_length, own)

    return Metric(name, of_last_token)


def _set_mean(logits: Tensor, answers: Answers, members: Tensor) -> Float[Tensor, " batch"]:
    return (logits[:, answers.token_ids] * members).sum(-1) / members.sum(-1)


def _kl(p: Tensor, q: Tensor) -> Float[Tensor, " batch"]:
    """KL divergence of log-probabilities; a token of probability zero contributes nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(dim=-1)
