"""MIB's areas once more, in plain Python on top of the oracle: no code shared with `eap`.

The steps are those of the benchmark: all edges or nodes ranked, int(p * n) of them kept for every
p, faithfulness of means over examples, and trapezoids over p for CPR (f) and CMD (|1 - f|).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eap.data.dataset import Example
from reference import oracle, twins

PERCENTAGES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]


def area_of_ranking(
    family: str, examples: Sequence[Example], ranking: Tensor, *, expanded: bool, from_one: bool
) -> float:
    """Area under faithfulness (of logit_diff), or `from_one` between it and 1; best edges first."""
    exists = twins.edges_of(family, expanded=expanded)
    ordered = sorted(exists.nonzero().tolist(), key=lambda e: -float(ranking[e[0], e[1]]))
    circuits = torch.zeros(len(PERCENTAGES) + 1, *exists.shape, dtype=torch.bool)
    for circuit, percentage in zip(circuits, PERCENTAGES, strict=False):
        for sender, receiver in ordered[: int(percentage * len(ordered))]:
            circuit[sender, receiver] = True
    return _area(family, examples, circuits, expanded=expanded, from_one=from_one)


def area_of_nodes(
    family: str, examples: Sequence[Example], ranking: Tensor, *, from_one: bool
) -> float:
    """The same for all edges among the best nodes, the input ranked and counted as one of them."""
    exists = twins.edges_of(family, expanded=True)
    ordered = sorted(range(len(ranking)), key=lambda node: -float(ranking[node]))
    n_layers = twins.hf_model(family).config.num_hidden_layers
    n_heads = (len(ranking) - 1) // n_layers - 1
    owners: list[int | None] = []  # of every receiver, the node that reads it
    for layer in range(n_layers):
        first = 1 + layer * (n_heads + 1)
        owners += 3 * list(range(first, first + n_heads)) + [first + n_heads]
    owners.append(None)  # the logits are in every circuit
    circuits = torch.zeros(len(PERCENTAGES) + 1, *exists.shape, dtype=torch.bool)
    for circuit, percentage in zip(circuits, PERCENTAGES, strict=False):
        kept = ordered[: int(percentage * len(ranking))]
        if 0 not in kept:  # no path from the input is left
            continue
        for sender, receiver in exists.nonzero().tolist():
            reads = owners[receiver] is None or owners[receiver] in kept
            circuit[sender, receiver] = sender in kept and reads
    return _area(family, examples, circuits, expanded=True, from_one=from_one)


def _area(
    family: str, examples: Sequence[Example], circuits: Tensor, *, expanded: bool, from_one: bool
) -> float:
    """Of circuits for every p, then one without any edge."""
    values = twins.oracle_circuits(family, examples, circuits, ["logit_diff"], expanded=expanded)
    *means, nothing = values[0].mean(dim=1).tolist()
    clean = 0.0
    with oracle.float64():
        for own in examples:
            logits = oracle.last_logits(twins.hf_model(family), own.clean)
            metric = oracle.metric_of("logit_diff", own.correct, own.incorrect)
            clean += float(metric(logits, logits)) / len(examples)
    faithfulness = [(mean - nothing) / (clean - nothing) for mean in means]
    heights = [abs(1 - f) for f in faithfulness] if from_one else faithfulness
    return sum(
        (PERCENTAGES[i + 1] - PERCENTAGES[i]) * (heights[i] + heights[i + 1]) / 2
        for i in range(len(heights) - 1)
    )
