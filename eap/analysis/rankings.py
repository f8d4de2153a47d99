"""Quality of a ranking of edges: the two areas of MIB, and the accuracy of circuits.

Circuits of growing size are selected from the ranking and measured. MIB (Mueller et al. 2025, arXiv
2504.13151) summarises the curve of faithfulness over size in two numbers:

* CPR, the area under the curve, for circuits of the most helpful edges. CPR grows without bound if
  a circuit overshoots the whole model, so never read CPR alone;
* CMD, the area between the curve and 1, for circuits of the edges with the largest absolute scores.

The third number is the area under the accuracy (the share of examples that a circuit decides
correctly) over the logarithm of the size. Overshoot does not raise it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
from jaxtyping import Float

from eap.ablation import Ablation, get_ablation
from eap.circuits import evaluate, evaluate_baselines, has_expanded_kv
from eap.data.dataset import Dataset
from eap.engine.signature import sign
from eap.graph.graph import Graph
from eap.graph.selection import By
from eap.metrics.metric import METRICS, Metric, get_metric, warn_of_direction
from eap.model.model import Model
from eap.model.verbs import verb
from eap.runtime.errors import UserError, quoted
from eap.runtime.notebooks import html_table
from eap.runtime.ranges import whole
from eap.runtime.resources import ResourceOptions
from eap.statistics.intervals import (
    Interval,
    interval_of_distances,
    interval_of_faithfulness,
    interval_of_means,
)
from eap.statistics.measures import SHARES, area, circuit_sizes, normalised

Values = Float[np.ndarray, "size example"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Circuits of growing size from one ranking, with their values on every example.

    Attributes:
        by: order of the edges: 'helpful' or 'magnitude'.
        shares: sizes as shares of all edges.
        sizes: numbers of edges (or nodes) selected.
        n_edges: numbers of edges after pruning.
        values: metric of each circuit on every example.
        right: 1 if the circuit decides the example correctly, else 0.
        clean, ablated: metric of the clean run and of the ablated run on every example.
    """

    by: str
    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    n_edges: tuple[int, ...]
    values: Values
    right: Values
    clean: Float[np.ndarray, " example"]
    ablated: Float[np.ndarray, " example"]

    @property
    def faithfulness(self) -> Float[np.ndarray, " size"]:
        """Normalised faithfulness: means over examples first, then the ratio."""
        return normalised(self.values.mean(axis=1), self.clean.mean(), self.ablated.mean())

    @property
    def accuracy(self) -> Float[np.ndarray, " size"]:
        """Share of examples that each circuit decides correctly."""
        return self.right.mean(axis=1)

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per size: share, size, n_edges, value, faithfulness, accuracy."""
        return pd.DataFrame(
            {
                "by": self.by,
                "share": self.shares,
                "size": self.sizes,
                "n_edges": self.n_edges,
                "value": self.values.mean(axis=1),
                "faithfulness": self.faithfulness,
                "accuracy": self.accuracy,
            }
        )


@dataclass(frozen=True, eq=False)
class Areas:
    """Areas of one ranking, each with a 95% interval over examples.

    Attributes:
        metric: name of the metric.
        n_ranked: number of edges (or nodes) that sizes are shares of.
        cpr: area under faithfulness, with the most helpful edges first; that of the whole model is
            1 (.999).
        cmd: area between faithfulness and 1, with edges ordered by magnitude; 0 is best.
        accuracy: mean accuracy over the logarithm of the size, with the most helpful edges first;
            NaN if some examples have no incorrect answers.
        helpful, magnitude: curves by the two orders of edges.
        provenance: origin of the values and of the ranking.

    Example:
        >>> areas = eap.areas(model, graph, dataset)
        >>> 0 <= areas.cmd.value
        True
    """

    metric: str
    n_ranked: int
    cpr: Interval
    cmd: Interval
    accuracy: Interval
    helpful: Curve
    magnitude: Curve
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """Make a table of both curves, with a row per size."""
        return pd.concat([self.helpful.to_frame(), self.magnitude.to_frame()], ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """Make a table with a row per area: area, value, low, high."""
        rows = {"CPR": self.cpr, "CMD": self.cmd, "accuracy": self.accuracy}
        return pd.DataFrame([{"area": name, **vars(area)} for name, area in rows.items()])

    def __repr__(self) -> str:
        """One line; `to_frame` has the curves."""
        return f"Areas({self.metric}, {self.n_ranked:,} ranked: {self})"

    def _repr_html_(self) -> str:
        """Table with a row per area, for notebooks."""
        rows = self.summary().round(4)
        title = f"Areas by {self.metric}, 95% intervals"
        return html_table(title, [*rows.columns], rows.itertuples(index=False))

    def __str__(self) -> str:
        edges_left = " ".join(map(str, self.helpful.n_edges))
        return f"CPR {self.cpr}, CMD {self.cmd}, accuracy {self.accuracy}, edges left {edges_left}"


@verb
def areas(
    model: Model,
    graph: Graph,
    dataset: Dataset,
    *,
    metric: str | Metric = "logit_diff",
    shares: Sequence[float] = SHARES,
    ablation: str | Ablation | None = None,
    level: str = "edge",
    selection: str | None = None,
    rank_input: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
    **resources: Unpack[ResourceOptions],
) -> Areas:
    """CPR, CMD and the accuracy area of a ranking of edges or nodes, as defined by MIB.

    For every share p, the best int(p * n) of n edges are selected and pruned; areas are computed by
    the trapezoidal rule over the nominal p. Edges are counted as in the graph. MIB counts a k and a
    v for every query head. To compare with its numbers on a model whose query heads share key/value
    heads, give a graph from `attribute(..., expanded_kv=True)`.

    Args:
        model: loaded model (`eap.load_model`).
        graph: graph with the scores to rank by, from any method; its circuit does not matter.
        dataset: pairs of prompts on which circuits are measured (`eap.load_dataset`).
        metric: metric of the faithfulness; MIB uses logit_diff.
        shares: sizes as shares of all edges, in increasing order, ending at 1.
        ablation: activation that edges outside a circuit carry; None: that on the corrupted prompt.
        level: 'edge' or 'node'. With 'node', heads and MLPs are ranked by the graph's node scores
            and counted, and a circuit has all edges among the selected nodes.
        selection: rule that selects edges: 'top_n', or 'greedy' from the logits; None: 'top_n', but
            'greedy' for a method that uses no metric (IFR, whose best edges are not connected; MIB
            does the same).
        rank_input: whether to rank and count the input among the nodes, as MIB does; a circuit
            without the input is empty.
        n_resamples: number of bootstrap resamples of the examples.
        seed: seed of the bootstrap.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Raises:
        UserError: as for `eap.evaluate`; also for an unknown level or selection, a graph without
            the scores, shares that do not increase, or equal clean and ablated means.

    Example:
        >>> areas = eap.areas(model, graph, dataset)
        >>> list(areas.summary()["area"])
        ['CPR', 'CMD', 'accuracy']
    """
    metric, ablation = get_metric(metric), get_ablation(ablation)
    n_resamples, seed = whole("n_resamples", n_resamples), whole("seed", seed)
    if selection is None:
        selection = default_selection(graph, level)
    graph = with_direction(graph, metric)
    n_ranked = count_ranked(graph, level=level, rank_input=rank_input)
    sizes = circuit_sizes(n_ranked, shares)
    circuits = cut_circuits(graph, sizes, level=level, selection=selection, rank_input=rank_input)
    decides = all(example.incorrect for example in dataset)
    metrics = [metric]
    if decides and metric.name != "accuracy":
        metrics.append(get_metric("accuracy"))
    together = [circuit for own in circuits.values() for circuit in own]
    measured = evaluate(model, together, dataset, metrics=metrics, ablation=ablation, **resources)
    baselines = evaluate_baselines(model, dataset, metrics=[metric], ablation=ablation, **resources)
    clean, ablated = (runs[metric.name].double().numpy() for runs in baselines)
    warn_of_direction(metric, float(clean.mean()), float(ablated.mean()))
    values = measured[metric.name].double().numpy()
    right = measured["accuracy"].double().numpy() if decides else np.full_like(values, np.nan)
    by_ranking = zip(circuits.items(), np.split(values, 2), np.split(right, 2), strict=True)
    helpful, magnitude = (
        Curve(
            by=by,
            shares=tuple(shares),
            sizes=tuple(sizes),
            n_edges=tuple(circuit.count_edges() for circuit in own),
            values=values_by,
            right=right_by,
            clean=clean,
            ablated=ablated,
        )
        for (by, own), values_by, right_by in by_ranking
    )
    area_of = partial(area, shares=shares)
    draws: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    return Areas(
        metric=metric.name,
        n_ranked=n_ranked,
        cpr=interval_of_faithfulness(helpful.values, clean, ablated, area_of, **draws),
        cmd=interval_of_distances(magnitude.values, clean, ablated, area_of, **draws),
        accuracy=interval_of_means(helpful.right, partial(area_of, log=True)),
        helpful=helpful,
        magnitude=magnitude,
        provenance=sign(
            model, dataset, metric=metric, method="areas", ablation=ablation, level=level,
            expanded_kv=has_expanded_kv(graph, model), ranking=graph.provenance,
            settings={"shares": list(shares), "selection": selection, "rank_input": rank_input,
                      **draws},
        ),
    )  # fmt: skip


def default_selection(graph: Graph, level: str = "edge") -> str:
    """'greedy' for edges scored by a method that uses no metric, else 'top_n'."""
    asked_for_none = "metric" in graph.provenance and graph.provenance["metric"] is None
    return "greedy" if level == "edge" and asked_for_none else "top_n"


def count_ranked(graph: Graph, *, level: str = "edge", rank_input: bool = False) -> int:
    """Number of edges, or of nodes with a score, that sizes are shares of."""
    if level != "node" or graph.node_scores is None:
        return graph.n_edges
    return int((~graph.node_scores.isnan())[..., 0 if rank_input else 1 :].sum())


def cut_circuits(
    graph: Graph,
    sizes: Sequence[int],
    *,
    level: str = "edge",
    selection: str = "top_n",
    rank_input: bool = False,
) -> dict[By, list[Graph]]:
    """Pruned circuits of every size, ordered by 'helpful' and by 'magnitude'.

    Raises:
        UserError: an unknown level or selection, or a graph without the scores.
    """
    if level not in ("edge", "node") or selection not in ("top_n", "greedy"):
        raise UserError(
            f"circuits are selected by level 'edge' or 'node', and by 'top_n' or 'greedy', not by "
            f"{quoted(str(level), 50)} and {quoted(str(selection), 50)}"
        )
    if level == "node" and selection == "greedy":
        raise UserError("nodes are selected by 'top_n' alone; 'greedy' adds edge by edge")
    if level == "edge" and rank_input:
        raise UserError("rank_input is for nodes only; leave it out for edges")
    select = getattr(graph, selection)
    if level == "node":
        select = partial(graph.top_n_nodes, rank_input=rank_input)
    rankings: tuple[By, ...] = ("helpful", "magnitude")
    return {by: [select(n, by=by).prune() for n in sizes] for by in rankings}


def with_direction(graph: Graph, metric: Metric) -> Graph:
    """The graph with `higher_is_better` filled in if it was unknown.

    Files of other programs do not record it. It is then taken from the metric that the provenance
    names, or from the metric that circuits are measured by.

    Raises:
        UserError: that metric does not say whether high values are better.
    """
    if graph.higher_is_better is not None:
        return graph
    name = graph.provenance.get("metric")
    scored_by = METRICS.get(str(name), metric if name in (None, metric.name) else None)
    if scored_by is None:
        raise UserError(
            f"areas depend on whether high values of {quoted(str(name), 40)} are better: set it "
            "with dataclasses.replace(graph, higher_is_better=True), or False as for a loss"
        )
    return replace(graph, higher_is_better=scored_by.direction("areas"))
