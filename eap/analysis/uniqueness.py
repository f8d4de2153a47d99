"""Second circuits: is a circuit the only one of its size that performs the task?

Two circuits with few edges in common can be equally faithful (arXiv 2605.12671). The search learns
rankings (`eap.learn_ranking`) in which the edges of the first circuit have a price, for several
prices, and selects circuits of the first one's size from them. Among the circuits that are as
faithful as the first, it keeps the one that shares the fewest edges with the first. A circuit does
not count if the edges that it shares with the first are as faithful on their own, because its other
edges then do nothing. There may be circuits that the search does not find, so a circuit is at most
unique *within the search*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd
import torch

from eap.ablation import Ablation
from eap.analysis.compare import nodes
from eap.analysis.stability import mean_jaccard
from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.engine.recipe import Recipe
from eap.graph.contents import check_plain
from eap.graph.graph import Graph
from eap.metrics.metric import Metric
from eap.model.model import Model
from eap.model.verbs import verb
from eap.runtime.errors import UserError
from eap.runtime.ranges import real
from eap.runtime.resources import ResourceOptions
from eap.soft.learning import learn_ranking

RECIPE = Recipe(steps=1000, loss="faithfulness", k="log", pairs=4)
"""Default recipe of the search; its loss is a share of the task, and so are the prices."""

PRICES = (0.25, 0.35, 0.5)
"""Prices of the whole first circuit, for a loss that is 1 if nothing of the task is left."""


@dataclass(frozen=True)
class Likeness:
    """Overlap of two circuits, by their edges or by their nodes.

    Attributes:
        iou: intersection over union.
        chance: intersection over union of random sets of the same sizes.
    """

    iou: float
    chance: float


@dataclass(frozen=True, eq=False)
class SecondCircuit:
    """Result of the search of `second_circuit`.

    Attributes:
        first: given circuit, pruned.
        second: circuit with the smallest overlap with the first, among those that are as faithful
            and that are more faithful than the edges they share with the first; None: there is
            none.
        verdict: 'not unique', 'unique within the search', or 'the first circuit does not do the
            task': a circuit without edges, with faithfulness 0, is as faithful.
        edges, nodes: overlap of the two circuits; None without a second circuit.
        faithfulness: faithfulness of 'first', 'second' and their 'common' edges, and of the model
            'without first' (the edges that only the first circuit has are ablated), 'without
            second', and 'without both' (all edges of either are ablated).
        standard_errors: standard errors of `faithfulness`.
        searched: table with a row per circuit that was tried: price, selection, edges,
            faithfulness, iou, and common (faithfulness of the edges it shares with the first).
        provenance: origin of the results.
    """

    first: Graph
    second: Graph | None
    verdict: str
    edges: Likeness | None
    nodes: Likeness | None
    faithfulness: dict[str, float]
    standard_errors: dict[str, float]
    searched: pd.DataFrame
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per circuit and ablated model.

        The columns are name, faithfulness and standard_error.
        """
        return pd.DataFrame({
            "name": list(self.faithfulness),
            "faithfulness": list(self.faithfulness.values()),
            "standard_error": list(self.standard_errors.values()),
        })  # fmt: skip

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in self.faithfulness.items())
        if self.edges is None or self.nodes is None:
            return f"{self.verdict}; faithfulness: {shares}"
        return (
            f"{self.verdict}; IoU of edges {self.edges.iou:.3f} (chance {self.edges.chance:.3f}), "
            f"of nodes {self.nodes.iou:.3f} (chance {self.nodes.chance:.3f}); faithfulness: "
            f"{shares}"
        )


@verb
def second_circuit(
    model: Model,
    dataset: Dataset,
    first: Graph,
    *,
    metric: str | Metric = "logit_diff",
    ablation: str | Ablation | None = None,
    recipe: Recipe = RECIPE,
    prices: Sequence[float] = PRICES,
    tolerance: float = 0.1,
    largest_overlap: float = 0.5,
    measured_on: Dataset | None = None,
    **resources: Unpack[ResourceOptions],
) -> SecondCircuit:
    """Search for a second circuit of the same size and faithfulness that shares few edges.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: examples that rankings are learned on.
        first: first circuit.
        metric: metric of the faithfulness.
        ablation: activation that an ablated edge carries; None: that on the corrupted prompt.
        recipe: loss, optimizer and steps of the learned rankings.
        prices: costs that the whole first circuit adds to the loss; one ranking is learned for
            each.
        tolerance: largest difference of `|1 - f|` between two circuits that count as equally
            faithful.
        largest_overlap: largest IoU of edges at which the first circuit counts as not unique.
        measured_on: examples that faithfulness is measured on; None: those of `dataset`.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Raises:
        UserError: as for `eap.learn_ranking`; also for an empty circuit, no prices, a price that is
            not above 0, or a tolerance or overlap out of range.

    Example:
        >>> recipe = eap.Recipe(steps=3, loss="faithfulness")
        >>> first = graph.greedy(30).prune()
        >>> found = eap.second_circuit(model, dataset, first, recipe=recipe, prices=[0.5])
    """
    check_plain(first, "second circuits support")
    first = first.prune()
    n_edges, others = first.count_edges(), measured_on or dataset
    if not n_edges:
        raise UserError("no path of the first circuit leads from the input to the logits")
    if not prices:
        raise UserError("at least one price of the first circuit is needed")
    prices = [real("prices", price) for price in prices]
    tolerance = real("tolerance", tolerance)
    largest_overlap = real("largest_overlap", largest_overlap)
    limits: dict[str, Any] = {"metric": metric, "ablation": ablation, **resources}
    circuits: list[Graph] = []
    rows: list[dict[str, Any]] = []
    for price in prices:
        ranking = learn_ranking(
            model, dataset, metric=metric, recipe=recipe, ablation=ablation,
            prices=price * first.in_graph / n_edges, expanded_kv=first.config.expanded_kv,
            **resources,
        )  # fmt: skip
        for selection in ("top_n", "greedy"):
            circuits.append(getattr(ranking, selection)(n_edges).prune())
            rows.append({"price": price, "selection": selection})
    tried = [first, *circuits, *(first & circuit for circuit in circuits)]
    of_first, *measured = faithfulness(model, tried, others, **limits).normalised.tolist()
    searched = pd.DataFrame(rows).assign(
        edges=[circuit.count_edges() for circuit in circuits],
        faithfulness=measured[: len(circuits)],
        iou=[_likeness(first, circuit, level="edge").iou for circuit in circuits],
        common=measured[len(circuits) :],
    )

    def as_faithful(value: Any, other: Any) -> Any:
        return abs(1 - value) <= abs(1 - other) + tolerance

    equal = as_faithful(searched.faithfulness, of_first)
    equal &= ~as_faithful(searched.common, searched.faithfulness)
    second = circuits[searched.iou[equal].idxmin()] if equal.any() else None
    named = {"first": first}
    if second is not None:
        full = first.full()
        named |= {
            "second": second,
            "common": first & second,
            "without first": full - (first - second),
            "without second": full - (second - first),
            "without both": full - (first | second),
        }
    tested = faithfulness(model, list(named.values()), others, **limits)
    edges = None if second is None else _likeness(first, second, level="edge")
    verdict = "unique within the search"
    if as_faithful(0.0, of_first):
        verdict = "the first circuit does not do the task"
    elif edges is not None and edges.iou <= largest_overlap:
        verdict = "not unique"
    search = {"prices": list(prices), "tolerance": tolerance, "largest_overlap": largest_overlap}
    return SecondCircuit(
        first=first,
        second=second,
        verdict=verdict,
        edges=edges,
        nodes=None if second is None else _likeness(first, second, level="node"),
        faithfulness=dict(zip(named, tested.normalised.tolist(), strict=True)),
        standard_errors=dict(zip(named, tested.standard_error.tolist(), strict=True)),
        searched=searched,
        provenance=ranking.provenance | {"second_circuit": search},
    )


def _likeness(first: Graph, second: Graph, *, level: str) -> Likeness:
    of_nodes, exists = level == "node", first.edge_exists
    members = [nodes(one) if of_nodes else one.in_graph[exists] for one in (first, second)]
    return Likeness(*mean_jaccard(torch.stack(members)))
