"""How far a task's circuit can be trusted: areas, stability and verdicts, as four tables.

Edges are scored, and their stability measured, on every other pair of the task; areas and verdicts
are measured on the pairs between them, which the circuit has not seen. Fewer than four pairs cannot
be halved: then both are all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import pandas as pd

from eap.analysis.certificates import Certificate, certify
from eap.analysis.rankings import Areas, areas
from eap.analysis.stability import Stability, bootstrap
from eap.analysis.verdicts import Verdicts, judge
from eap.data.dataset import Dataset
from eap.graph.graph import Graph
from eap.methods import get_method
from eap.model.model import Model
from eap.runtime.errors import UserError
from eap.runtime.ranges import ALPHA, enough_random
from eap.runtime.resources import ResourceOptions

# The circuit that is judged has at most so many edges, and at most this share of all.
LARGEST_JUDGED, JUDGED_SHARE = 200, 0.1

# An edge that is in fewer circuits than this is not listed.
RAREST = 0.05


@dataclass(frozen=True, eq=False)
class StabilityStudy:
    """What is known of one task's ranking and circuit.

    Attributes:
        found_on, measured_on: the two halves of the pairs.
        stability: stability of the ranking, and of a null task's.
        areas: areas of the ranking.
        verdicts: verdicts on the consensus circuit, or (where there is none) the ranking's own.
        certificate: certificate of the greedy circuit of the size that was judged; None if not
            asked for.
    """

    found_on: Dataset
    measured_on: Dataset
    stability: Stability
    areas: Areas
    verdicts: Verdicts
    certificate: Certificate | None = None

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by the end of their files' names: "", "_edges", "_areas", "_verdicts".

        With a certificate, also "_certified".
        """
        certified = self.certificate
        tables = {} if certified is None else {"_certified": certified.to_frame()}
        return tables | {
            "": self.stability.to_frame(),
            "_edges": edge_table(self.stability),
            "_areas": self.areas.summary(),
            "_verdicts": self.verdicts.to_frame(),
        }


def stability_study(
    model: Model,
    dataset: Dataset,
    *,
    metric: str = "logit_diff",
    method: str = "EAP-IG",
    steps: int = 5,
    rule: str = "paper",
    sizes: Sequence[int] | None = None,
    n_resamples: int = 50,
    n_random: int = 50,
    n_subsets: int = 0,
    seed: int = 0,
    expanded_kv: bool = False,
    **resources: Unpack[ResourceOptions],
) -> StabilityStudy:
    """Score a task's edges with error bars, and measure what comes of it on other pairs.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: the task's pairs, two at least.
        metric: metric of scores, areas and verdicts.
        method: method of `eap.attribute`, one that scores by gradients.
        steps: points of integrated gradients.
        rule: rule of integration.
        sizes: sizes of circuits whose stability is measured; None: 1, 2, 5 and 10% of all edges.
        n_resamples: number of resamples of the examples.
        n_random: number of random circuits that the verdicts compare with, at least 19.
        n_subsets: random subsets of the examples by which edges are certified (`eap.certify`); 0:
            no certificate. It takes a second attribution.
        seed: seed of all that is drawn.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: too few pairs, or what the verbs refuse.
    """
    if len(dataset) < 2:
        raise UserError("one pair says nothing of how sure a circuit is; use more")
    n_random = enough_random(n_random, ALPHA)  # before the edges are scored
    halves = [dataset, dataset]
    if len(dataset) >= 4:
        halves = [replace(dataset, examples=dataset.examples[first::2]) for first in (0, 1)]
    spec = get_method(method)
    integration: dict[str, Any] = {"steps": steps} if spec.integrates else {}
    if spec.integrates and spec.uses_rule:
        integration["rule"] = rule
    stability = bootstrap(
        model,
        halves[0],
        method=method,
        metric=metric,
        **integration,
        sizes=sizes,
        n_resamples=n_resamples,
        selection="greedy",  # small circuits of the highest scores alone are often not connected
        seed=seed,
        expanded_kv=expanded_kv,
        **resources,
    )
    graph = stability.graph
    circuit = _to_be_judged(stability)
    certificate = None
    if n_subsets:
        certificate = certify(
            model,
            halves[0],
            _judged_size(stability),
            n_subsets=n_subsets,
            measured_on=halves[1],
            seed=seed,
            method=method,
            metric=metric,
            **integration,
            expanded_kv=expanded_kv,
            **resources,
        )
    return StabilityStudy(
        found_on=halves[0],
        measured_on=halves[1],
        stability=stability,
        areas=areas(model, graph, halves[1], metric=metric, seed=seed, **resources),
        verdicts=judge(
            model, circuit, halves[1], metric=metric, n_random=n_random, seed=seed, **resources
        ),
        certificate=certificate,
    )


def _judged_size(stability: Stability) -> int:
    """The largest of the sizes within limits, or the first."""
    limit = min(LARGEST_JUDGED, int(JUDGED_SHARE * stability.graph.n_edges))
    sizes = [each.size for each in stability.sizes]
    return max((size for size in sizes if size <= limit), default=sizes[0])


def _to_be_judged(stability: Stability) -> Graph:
    """The largest consensus circuit within limits; where none is, the ranking's own circuit."""
    graph, size = stability.graph, _judged_size(stability)
    stable = next(each for each in stability.sizes if each.size == size)
    if stable.consensus.count_edges():
        return stable.consensus
    circuit = graph.greedy(stable.size).prune()
    if not circuit.count_edges():
        raise UserError(
            f"no path from the input to the logits is among the {stable.size} best edges, so there "
            "is no circuit to judge; give larger sizes"
        )
    return circuit


def edge_table(stability: Stability) -> pd.DataFrame:
    """Edges by how sure they are: edge, score, standard_error, and P_<size> for every size."""
    graph, largest = stability.graph, stability.sizes[-1]
    errors = stability.resamples.standard_errors
    rows = []
    for i, j in (largest.frequency >= RAREST).nonzero().tolist():
        row: dict[str, str | float] = {
            "edge": f"{graph.sender_names[i]}->{graph.receiver_names[j]}",
            "score": float(graph.scores[i, j]),
            "standard_error": float(errors[i, j]),
        }
        row |= {f"P_{size.size}": float(size.frequency[i, j]) for size in stability.sizes}
        rows.append(row)
    columns = ["edge", "score", "standard_error", *(f"P_{size.size}" for size in stability.sizes)]
    frame = pd.DataFrame(rows, columns=columns)
    order = [*reversed(columns[3:])]
    return frame.sort_values([*order, "edge"], ascending=[False] * len(order) + [True])
