"""Growth of run times: measured exponents, compared with those predicted from operation counts."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from limits import operations_of
from measuring import Row, seconds, some_edges
from shape import Bench

import eap
from eap.analysis.stability import bootstrap, stability_of_size
from eap.graph.graph import Graph
from eap.patching import patch_edges

Case = tuple[str, list[int], list[Callable[[], object]], float | None]
"""Growing quantity, sizes, one run per size, and exponent (None: predicted from operations)."""


def exponent(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """Slope of a line fitted to the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(amounts), 1)[0])


def cases(bench: Bench) -> Iterator[Case]:
    """Yield one quantity at a time, so that models of other shapes are not kept in memory."""
    model = bench.model

    def eap_ig(bench: Bench, *data: int) -> Callable[[], object]:
        return partial(eap.attribute, bench.model, bench.data(*data), batch_size=16)

    numbers = [8, 16, 32, 64]
    yield "EAP-IG with examples", numbers, [eap_ig(bench, n, 1) for n in numbers], None
    # A prompt of n + 1 tokens runs n of them: all that follow the first.
    runs = [eap_ig(bench, 8, 1, n + 1) for n in numbers]
    yield "EAP-IG with sequence length", numbers, runs, None
    for what, shapes in (
        ("layers", [(n, 12) for n in (3, 6, 12)]),
        ("heads", [(12, n) for n in (4, 8, 16)]),
    ):
        sizes = [shape[what == "heads"] for shape in shapes]
        yield f"EAP-IG with {what}", sizes, [eap_ig(Bench(*own), 16, 1) for own in shapes], None

    data = bench.data(16, 1)
    graph = eap.attribute(model, data, method="EAP")
    circuit, numbers = graph.greedy(300).prune(), [4, 16, 48]
    runs = [partial(eap.evaluate, model, [circuit] * n, data) for n in numbers]
    yield "evaluation with circuits", numbers, runs, None

    generator, few = torch.Generator().manual_seed(0), bench.data(8, 10)
    chosen = [some_edges(graph, share, generator) for share in (0.01, 0.02, 0.04, 0.08)]
    runs = [partial(patch_edges, model, few, metrics=["logit_diff"], edges=c) for c in chosen]
    yield "exact patching with edges", [int(c.sum()) for c in chosen], runs, None

    numbers, runs = [25, 50, 100, 200], []
    for n in numbers:
        found = bootstrap(model, data, method="EAP", n_resamples=n, sizes=[300], null=False)
        runs.append(partial(stability_of_size, found.graph, found.resamples, 300))
    yield "stability with bootstrap samples", numbers, runs, 1.0  # no matrix product to speak of

    configs = [eap.GraphConfig(n, 25, 1600, 25) for n in (12, 24, 48)]
    runs, edges = [], []
    for config in configs:
        scores = torch.randn(config.n_forward, config.n_backward, generator=generator)
        large = replace(Graph.from_config(config), scores=scores)
        edges.append(large.n_edges)
        runs.append(partial(_cut_out, large))
    yield "greedy search and pruning with edges", edges, runs, 1.0  # sorting adds a logarithm


def _cut_out(graph: Graph) -> Graph:
    return graph.greedy(graph.n_edges // 25).prune()


def growth(bench: Bench, repeats: int) -> list[Row]:
    """Fit exponents to medians; the spread is over fits to single repetitions."""
    rows = []
    for what, sizes, runs, known in cases(bench):
        for run in runs:
            run()
        times = [[seconds(run) for run in runs] for _ in range(repeats)]
        each = [exponent(sizes, row) for row in times]
        medians = [statistics.median(own) for own in zip(*times, strict=True)]
        predicted = known
        if predicted is None:
            predicted = exponent(sizes, [operations_of(run) for run in runs])
        detail: dict[str, Any] = {"predicted": predicted, "sizes": sizes, "seconds": medians}
        value, target = exponent(sizes, medians), f"<= {predicted + 0.1:.2f}"
        row = Row("growth", what, value, min(each), max(each), "exponent", target, detail)
        rows.append(row)
    return rows
