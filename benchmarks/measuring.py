"""Measurement functions of the benchmarks, and the pairs and edges to measure on."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eap.data.dataset import Dataset, Example
from eap.graph.graph import Graph

ALL_METRICS = ("logit_diff", "prob_diff", "kl", "js")
"""Metrics that are measured together."""


@dataclass(frozen=True)
class Row:
    """One measurement; `value` is a ratio unless `unit` says otherwise.

    Attributes:
        part: part of the table.
        what: what is measured.
        value, low, high: median, minimum and maximum.
        unit: unit of the value.
        target: target for the value.
        detail: further measurements.
    """

    part: str
    what: str
    value: float
    low: float
    high: float
    unit: str = "x"
    target: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def seconds(run: Callable[[], object]) -> float:
    """Time of one call in seconds."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def side_by_side(
    ours: Callable[[], object], other: Callable[[], object], repeats: int
) -> list[tuple[float, float]]:
    """Times of two functions in seconds, in alternation; the first call of each is not counted."""
    ours(), other()
    return [(seconds(ours), seconds(other)) for _ in range(repeats)]


def ratio(part: str, what: str, pairs: Sequence[tuple[float, float]], **options: Any) -> Row:
    """Ratio of the other time to ours; above 1, ours is faster."""
    ratios = [other / own for own, other in pairs]
    detail = {
        "seconds": statistics.median(own for own, _ in pairs),
        "other_seconds": statistics.median(other for _, other in pairs),
    }
    return Row(
        part, what, statistics.median(ratios), min(ratios), max(ratios), detail=detail, **options
    )


def plain_value(part: str, what: str, values: Sequence[float], **options: Any) -> Row:
    """A quantity that is not a ratio of two runs."""
    return Row(part, what, statistics.median(values), min(values), max(values), **options)


# ---- what is measured on -------------------------------------------------------------------------


def random_pairs(
    n: int, first_difference: int, n_positions: int, low: int = 1000, high: int = 50_000
) -> Dataset:
    """Random prompts that differ in one token, with one right and one wrong answer.

    Args:
        n: number of pairs.
        first_difference: position at which the two prompts differ.
        n_positions: number of tokens per prompt.
        low, high: range of token ids, from `low` to below `high`.
    """
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(low, high, (n, n_positions), generator=generator)
    corrupted = clean.clone()
    corrupted[:, first_difference] += 1
    answers = torch.randint(low, high, (n, 2), generator=generator).tolist()
    examples = [
        Example(tuple(c), tuple(d), (a,), (b,))
        for c, d, (a, b) in zip(clean.tolist(), corrupted.tolist(), answers, strict=True)
    ]
    return Dataset("random", tuple(examples))


def some_edges(graph: Graph, share: float, generator: torch.Generator) -> Tensor:
    """A share of the edges: from random senders to all q (or k, or v) inputs of a layer."""
    config = graph.config
    chosen = torch.zeros_like(graph.edge_exists)
    groups = [config.receivers(layer, kind) for layer in range(config.n_layers) for kind in "qkv"]
    groups += [slice(c, c + 1) for c in map(config.mlp_receiver, range(config.n_layers))]
    groups += [slice(config.logits_receiver, config.logits_receiver + 1)]
    for columns in groups:
        senders = torch.rand(graph.n_forward, generator=generator) < share
        chosen[senders, columns] = True
    return chosen & graph.edge_exists


def tensors(
    data: Dataset, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean and corrupted tokens, [pair, position]; correct and incorrect answers, [pair]."""
    clean, corrupted = (
        torch.tensor([getattr(e, side) for e in data.examples], device=device)
        for side in ("clean", "corrupted")
    )
    right, wrong = (
        torch.tensor([getattr(e, side)[0] for e in data.examples], device=device)
        for side in ("correct", "incorrect")
    )
    return clean, corrupted, right, wrong


def logit_diff_loss(right: Tensor, wrong: Tensor) -> Callable[[Tensor], Tensor]:
    """Sum over examples of the logit difference."""
    rows = torch.arange(len(right), device=right.device)
    return lambda logits: (logits[rows, right] - logits[rows, wrong]).sum()


def floor_runs(bare: Any, data: Dataset) -> tuple[Callable[[], object], Callable[[], object]]:
    """The bare model's forward pass, and its forward and backward pass to the embedding."""
    clean, _, right, wrong = tensors(data, bare.device)
    loss = logit_diff_loss(right, wrong)
    embedding = bare.get_input_embeddings()(clean)

    def forward() -> None:
        with torch.no_grad():
            bare(clean, use_cache=False)

    def both() -> None:
        start = embedding.detach().requires_grad_()
        logits = bare(inputs_embeds=start, use_cache=False).logits
        torch.autograd.grad(loss(logits[:, -1]), start)

    return forward, both
