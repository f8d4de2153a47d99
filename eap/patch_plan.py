"""The plan of exact patching: which edges, in which order, how much at a time, at what cost."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.batches import check_dataset
from eap.data.dataset import Dataset
from eap.graph import Graph, GraphConfig
from eap.metrics import Metric, get_metrics
from eap.model.model import Model
from eap.prepared import Work
from eap.runtime.memory import Shapes, choose_batch_size, patching_operations, patching_tokens


@dataclass(frozen=True)
class Unit:
    """A piece of work: edges from some senders into a layer's q, k or v, its MLP, or the logits.

    Attributes:
        batch: number of the batch.
        layer: of the receivers (the last one for the logits).
        kind: 'q', 'k', 'v', 'mlp' or 'logits'.
        start, stop: of the senders.
    """

    batch: int
    layer: int
    kind: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be done, in which order, and how much at a time.

    Attributes:
        work: the data set, cut into batches.
        edges: that are patched.
        units: all there is to do.
        tokens_per_run: how many tokens are stacked in one run.
    """

    work: Work
    edges: Bool[Tensor, "n_forward n_backward"]
    units: list[Unit]
    tokens_per_run: int

    @property
    def batch_size(self) -> int:
        """Of the largest batch."""
        return max(len(rows) for rows in self.work.rows_of)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this plan's progress from another's: units are known by their number."""
        units = repr([(unit, self.work.rows_of[unit.batch]) for unit in self.units])
        return {
            "metrics": [metric.name for metric in self.work.metrics],
            "ablation": self.work.ablation.provenance(),
            "batch_size": self.batch_size,
            "tokens_per_run": self.tokens_per_run,
            "units": hashlib.sha256(units.encode()).hexdigest()[:16],
            "edges": hashlib.sha256(self.edges.numpy().tobytes()).hexdigest()[:16],
        }


def make_plan(
    model: Model,
    dataset: Dataset,
    metrics: Sequence[str | Metric],
    edges: Bool[Tensor, "n_forward n_backward"] | None,
    batch_size: int | None,
    memory_budget: int | None,
    *,
    ablation: str | Ablation | None = None,
    expanded_kv: bool = False,
    tokens_per_run: int | None = None,
) -> Plan:
    """The work that `patch_edges` does for these arguments (which see).

    `tokens_per_run` is how many tokens are stacked in one run; None: as many as the budget allows.
    """
    chosen, where = get_metrics(metrics), get_ablation(ablation)
    check_dataset(model, dataset)
    config = replace(model.config, expanded_kv=expanded_kv)
    graph = Graph.from_config(config)
    some = graph.edge_exists if edges is None else graph.with_edges(edges).in_graph
    if batch_size is None:
        batch_size = choose_batch_size(
            model, dataset.examples, purpose="patching", budget=memory_budget
        )
    work = Work.plan(model, dataset, chosen, where, config, batch_size)
    if tokens_per_run is None:
        tokens_per_run = patching_tokens(model, dataset.examples, batch_size, memory_budget)
    return Plan(work, some, plan_units(work, some, tokens_per_run), tokens_per_run)


def plan_units(
    work: Work, edges: Bool[Tensor, "n_forward n_backward"], tokens_per_run: int
) -> list[Unit]:
    """All work, batch by batch and layer by layer, in pieces of about one projection's size."""
    config = work.config
    last = config.n_layers - 1
    units = []
    for number, group in enumerate(work.groups()):
        step = max(1, tokens_per_run // (len(group.rows) * group.n_positions))
        inside = [
            (layer, kind) for layer in range(config.n_layers) for kind in ("q", "k", "v", "mlp")
        ]
        for layer, kind in [*inside, (last, "logits")]:
            some = edges[:, receivers_of(config, layer, kind)].any(dim=1)
            n_senders = len(some) if kind == "logits" else config.mlp_sender(layer)
            for start in range(0, n_senders, step):
                stop = min(start + step, n_senders)
                if some[start:stop].any():
                    units.append(Unit(number, layer, kind, start, stop))
    return units


def receivers_of(config: GraphConfig, layer: int, kind: str) -> slice:
    """The receivers of a unit."""
    if kind in "qkv":
        return config.receivers(layer, kind)
    column = config.mlp_receiver(layer) if kind == "mlp" else config.logits_receiver
    return slice(column, column + 1)


def count_operations(plan: Plan, units: Sequence[Unit]) -> int:
    """Multiply-adds of matrix products that some units take."""
    return sum(costs_of(plan, units))


def costs_of(plan: Plan, units: Sequence[Unit]) -> list[int]:
    """Of each unit, its multiply-adds."""
    work = plan.work
    model, groups = work.model, work.groups()
    answers_only = all(metric.answers_only for metric in work.metrics)
    shapes = Shapes.of(model)
    costs = []
    for unit in units:
        group = groups[unit.batch]
        columns = receivers_of(work.config, unit.layer, unit.kind)
        n_edges = int(plan.edges[unit.start : unit.stop, columns].sum())
        one = patching_operations(
            shapes, unit.layer, unit.kind,
            n_positions=group.n_positions, n_keys=group.end,
            n_tokens=2 if answers_only else model.W_U.shape[0],
        )  # fmt: skip
        costs.append(n_edges * len(group.rows) * one)
    return costs
