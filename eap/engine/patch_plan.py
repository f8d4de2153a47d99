"""Plan of exact patching: the edges, their order, the amount at a time, and the cost."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.batches import named_spans
from eap.data.dataset import Dataset
from eap.engine.prepared import Demand, Work
from eap.graph import Graph, GraphConfig
from eap.metrics.metric import Metric, get_metrics
from eap.model.model import Model
from eap.model.shapes import graph_config, shapes_of
from eap.runtime.cost import patching_operations
from eap.runtime.memory import Extent, patching_need
from eap.runtime.resources import Resources


@dataclass(frozen=True)
class Unit:
    """Unit of work: edges from some senders into a layer's q, k or v, its MLP, or the logits.

    Attributes:
        batch: number of the batch.
        layer: layer of the receivers (the last layer for the logits).
        kind: kind of the receivers: 'q', 'k', 'v', 'mlp' or 'logits'.
        start, stop: range of the senders.
        span: number of the span at whose positions the senders are ablated; 0 without spans.
    """

    batch: int
    layer: int
    kind: str
    start: int
    stop: int
    span: int = 0


@dataclass(frozen=True, eq=False)
class Plan:
    """Plan of the work: what is patched, in which order, and how much at a time.

    Attributes:
        work: data set, divided into batches.
        edges: mask of the edges to patch.
        units: all units of work.
        span_names: names of the spans, at each of which senders are ablated separately; empty:
            senders are ablated at all positions at once.
    """

    work: Work
    edges: Bool[Tensor, "*span n_forward n_backward"]
    units: list[Unit]
    span_names: tuple[str, ...] = ()

    def edges_of(self, unit: Unit) -> Bool[Tensor, "n n_receivers"]:
        """Mask of the edges that a unit patches."""
        edges = self.edges[unit.span] if self.span_names else self.edges
        return edges[unit.start : unit.stop, receivers_of(self.work.config, unit.layer, unit.kind)]

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the plan's progress, in which units are known by their number."""
        units = repr([(unit, self.work.rows_of[unit.batch]) for unit in self.units])
        return {
            "metrics": [metric.name for metric in self.work.metrics],
            "ablation": self.work.ablation.provenance(),
            "batch_size": self.work.batch_size,
            "units": hashlib.sha256(units.encode()).hexdigest()[:16],
            "edges": hashlib.sha256(self.edges.numpy().tobytes()).hexdigest()[:16],
            **({"spans": list(self.span_names)} if self.span_names else {}),
        }


def make_plan(
    model: Model,
    dataset: Dataset,
    metrics: str | Metric | Sequence[str | Metric],
    edges: Bool[Tensor, "*span n_forward n_backward"] | None,
    limits: Resources,
    *,
    ablation: str | Ablation | None = None,
    expanded_kv: bool = False,
    spans: bool = False,
) -> Plan:
    """Plan the work of `patch_edges`, from the same arguments."""
    measured, ablated = get_metrics(metrics), get_ablation(ablation)
    config = graph_config(model, expanded_kv=expanded_kv)
    names = named_spans(model, dataset) if spans else ()
    graph = Graph.from_config(config, names)
    if edges is not None and edges.ndim < graph.in_graph.ndim:  # the same at every span
        edges = edges.expand(len(names), -1, -1)
    patched = graph.edge_exists if edges is None else graph.with_edges(edges).in_graph
    n_results = len(measured) * max(1, len(names)) * config.n_forward * config.n_backward
    demand = Demand("exact patching", patching_need, n_results)
    work = Work.plan(model, dataset, measured, ablated, config, limits, demand)
    for extent in extents_of(work):
        work.runs_at_once(extent)  # fails early if not even one run fits
    return Plan(work, patched, plan_units(work, patched, len(names)), names)


def extents_of(work: Work) -> list[Extent]:
    """Sizes of all batches."""
    return [work.extent(number) for number in range(len(work.rows_of))]


def plan_units(
    work: Work, edges: Bool[Tensor, "*span n_forward n_backward"], n_spans: int = 0
) -> list[Unit]:
    """Divide the work, batch by batch and layer by layer, into units of about one projection.

    Units do not depend on the free memory, so that an interrupted run finds the same units again. A
    span that ends before the batch's first difference has no units, because nothing changes there.
    """
    config = work.config
    last = config.n_layers - 1
    units = []
    for number, extent in enumerate(extents_of(work)):
        step = max(1, work.budget.enough_tokens // (extent.n_rows * extent.n_positions))
        inside = [
            (layer, kind) for layer in range(config.n_layers) for kind in ("q", "k", "v", "mlp")
        ]
        for span in range(max(1, n_spans)):
            if n_spans and not _is_computed(work, number, span):
                continue
            of_span = edges[span] if n_spans else edges
            for layer, kind in [*inside, (last, "logits")]:
                sends = of_span[:, receivers_of(config, layer, kind)].any(dim=1)
                n_senders = len(sends) if kind == "logits" else config.mlp_sender(layer)
                for start in range(0, n_senders, step):
                    stop = min(start + step, n_senders)
                    if sends[start:stop].any():
                        units.append(Unit(number, layer, kind, start, stop, span))
    return units


def _is_computed(work: Work, number: int, span: int) -> bool:
    """Whether a batch computes any position of a span, that is, one after its first difference."""
    extent, examples = work.extent(number), work.dataset.examples
    start = extent.n_keys - extent.n_positions
    for row in work.rows_of[number]:
        bounds = (*examples[row].spans, len(examples[row].clean))
        if max(bounds[span], start) < bounds[span + 1]:
            return True
    return False


def receivers_of(config: GraphConfig, layer: int, kind: str) -> slice:
    """Indices of the receivers of a unit."""
    if kind in "qkv":
        return config.receivers(layer, kind)
    column = config.mlp_receiver(layer) if kind == "mlp" else config.logits_receiver
    return slice(column, column + 1)


def count_operations(plan: Plan, units: Sequence[Unit]) -> int:
    """Multiply-adds of the matrix products of some units, in total."""
    return sum(costs_of(plan, units))


def costs_of(plan: Plan, units: Sequence[Unit]) -> list[int]:
    """Multiply-adds of each of some units."""
    work = plan.work
    extents, shapes = extents_of(work), shapes_of(work.model)
    answers_only = all(metric.answers_only for metric in work.metrics)
    n_columns = 2 if answers_only else shapes.d_vocab
    costs = []
    for unit in units:
        extent = extents[unit.batch]
        n_edges = int(plan.edges_of(unit).sum())
        one = patching_operations(shapes, extent, unit.layer, unit.kind, n_columns=n_columns)
        costs.append(n_edges * extent.n_rows * one)
    return costs
