"""Faithfulness curves: the metric of circuits of many sizes, selected by several methods."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch

from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.graph import selection
from eap.graph.graph import Graph
from eap.metrics.metric import direction_note, get_metric
from eap.model.model import Model
from eap.runtime.errors import UserError
from eap.statistics.measures import faithfulness_errors, normalised

# Number of pairs that suffices for the band of random circuits.
RANDOM_PAIRS = 200


def pareto_sizes(end: int, n_edges: int, sizes: Sequence[int] | None = None) -> list[int]:
    """Circuit sizes: 30 to 90 in steps of 10, then in steps of 100 to below `end`; or `sizes`.

    Raises:
        UserError: a given size is above `n_edges`, or there is no size to measure.
    """
    if sizes:
        if max(sizes) > n_edges:
            raise UserError(f"--sizes {max(sizes)}: the graph has {n_edges:,} edges")
        return sorted(set(sizes))
    sizes = [*range(30, min(100, end), 10), *range(100, end, 100)]
    sizes = [size for size in sizes if size <= n_edges]
    if not sizes:
        raise UserError(
            f"no size to measure: sizes begin at 30, below --end ({end}) and up to all "
            f"{n_edges:,} edges"
        )
    return sizes


def proportional_sizes(proportion: float, n_steps: int, n_edges: int) -> list[int]:
    """At most `n_steps` evenly spaced sizes, up to a share of all `n_edges`."""
    largest = max(1, int(proportion * n_edges))
    return sorted({max(1, largest * step // n_steps) for step in range(1, n_steps + 1)})


def greedy_by_random_scores(
    graph: Graph, sizes: Sequence[int], count: int, *, seed: int
) -> list[list[Graph]]:
    """For every size, `count` circuits with at least that many edges after pruning.

    Circuits are selected greedily by random scores; circuits of one random ranking are nested.
    """
    generator = torch.Generator().manual_seed(seed)
    of_sizes: list[list[Graph]] = [[] for _ in sizes]
    for _ in range(count):
        random = replace(graph, scores=torch.rand(graph.scores.shape, generator=generator))
        order = selection.greedy_order(random, graph.n_edges)
        for circuits, n in zip(of_sizes, sizes, strict=True):
            circuits.append(_smallest_pruned(random, order, n))
    return of_sizes


def _smallest_pruned(graph: Graph, order: selection.Order, n: int) -> Graph:
    """The smallest circuit of an order's first edges with at least `n` edges after pruning."""

    def beginning(m: int) -> Graph:
        return graph.with_edges(selection.first_edges(graph, order[:, :m])).prune()

    # The circuits are nested, so their sizes increase with m.
    select = bisect_left(range(graph.n_edges), n, key=lambda m: beginning(m).count_edges())
    return beginning(select)


def faithfulness_curves(
    model: Model,
    graphs: Mapping[str, Graph],
    dataset: Dataset,
    *,
    metric: str,
    sizes: Sequence[int],
    n_random: int = 0,
    seed: int = 0,
    batch_size: int | None = None,
    memory_budget: int | None = None,
    quiet: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure each method's circuits, selected greedily by absolute score and pruned.

    Args:
        model: loaded model (`eap.load_model`).
        graphs: scored graphs by method name.
        dataset: pairs of prompts (`eap.load_dataset`).
        metric: name of the metric.
        sizes: numbers of edges to select, one table row each.
        n_random: number of circuits with random scores per size.
        seed: random seed of the random circuits, and of the sample of pairs to measure them on.
        batch_size: number of pairs per batch; None: as many as the budget allows.
        memory_budget: memory budget in bytes, besides the weights; None: half of the free memory.
        quiet: whether to hide the progress bar.

    Returns:
        Two tables with one row per size. The curves, in the published schema: baseline and
        corrupted_baseline (means of the metric on the clean and the corrupted run), edges
        (selected), and for each method X edges_X (after pruning) and loss_X (mean of the metric).
        The bands: edges, total_edges, and for each method stderr_X (standard error of loss_X over
        examples) and stderr_share_X (standard error of the normalised faithfulness, a ratio). With
        random circuits, the bands also have edges_random and loss_random (means over circuits, on a
        sample of 200 pairs), loss_random_low and loss_random_high (minimum and maximum over
        circuits), and baseline_random and corrupted_baseline_random (on the same sample).
    """
    by_method = {
        name: [circuit.prune() for circuit in graph.greedy_circuits(sizes)]
        for name, graph in graphs.items()
    }
    first = next(iter(graphs.values()))
    circuits = [circuit for selected in by_method.values() for circuit in selected]
    options: dict[str, Any] = {
        "metric": metric,
        "batch_size": batch_size,
        "memory_budget": memory_budget,
        "quiet": quiet,
    }
    measured = faithfulness(model, circuits, dataset, **options)
    clean, ablated = measured.clean.numpy(), measured.ablated.numpy()  # [example]
    values = measured.circuits.numpy()  # [circuit, example]

    table: dict[str, Any] = {
        "baseline": float(clean.mean()),
        "corrupted_baseline": float(ablated.mean()),
        "edges": list(sizes),
    }
    bands: dict[str, Any] = {"edges": list(sizes), "total_edges": first.n_edges}
    well_posed = clean.mean() != ablated.mean()
    for number, (name, selected) in enumerate(by_method.items()):
        of_circuits = values[number * len(sizes) : (number + 1) * len(sizes)]
        table[f"edges_{name}"] = [circuit.count_edges() for circuit in selected]
        table[f"loss_{name}"] = of_circuits.mean(axis=1)
        bands[f"stderr_{name}"] = _standard_error(of_circuits)
        bands[f"stderr_share_{name}"] = (
            faithfulness_errors(of_circuits, clean, ablated) if well_posed else np.nan
        )
    if n_random:
        rows = sorted(Random(seed).sample(range(len(dataset)), min(RANDOM_PAIRS, len(dataset))))
        sample = replace(dataset, examples=tuple(dataset.examples[row] for row in rows))
        drawn = greedy_by_random_scores(first, sizes, n_random, seed=seed)
        random = [circuit for of_size in drawn for circuit in of_size]
        of_random = faithfulness(model, random, sample, **options).circuits.numpy().mean(axis=1)
        of_random = of_random.reshape(len(sizes), n_random)
        bands["edges_random"] = [np.mean([c.count_edges() for c in of_size]) for of_size in drawn]
        bands["loss_random"] = of_random.mean(axis=1)
        bands["loss_random_low"] = of_random.min(axis=1)
        bands["loss_random_high"] = of_random.max(axis=1)
        bands["baseline_random"] = float(clean[rows].mean())
        bands["corrupted_baseline_random"] = float(ablated[rows].mean())
    return pd.DataFrame(table), pd.DataFrame(bands)


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over examples (the last axis); NaN for one example."""
    n = values.shape[-1]
    return values.std(axis=-1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(values), np.nan)


def curve_summary(frame: pd.DataFrame, methods: Sequence[str]) -> str:
    """Normalised faithfulness by number of edges, as a printable table."""
    clean, corrupted = frame["baseline"].iloc[0], frame["corrupted_baseline"].iloc[0]
    if clean == corrupted:
        return "cannot normalise: the clean and the corrupted run have the same mean"
    table = pd.DataFrame({"edges": frame["edges"]})
    for name in methods:
        table[name] = normalised(frame[f"loss_{name}"], clean, corrupted).round(3)
    return table.to_string(index=False)


def baseline_note(frame: pd.DataFrame, metric: str) -> str | None:
    """A warning about the baselines of a curve, or None."""
    clean, corrupted = frame["baseline"].iloc[0], frame["corrupted_baseline"].iloc[0]
    if clean == corrupted:
        return None
    note = direction_note(get_metric(metric), clean, corrupted)
    return note and f"note: {note}"
