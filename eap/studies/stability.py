"""How far a task's circuit can be trusted: areas, stability and verdicts, in four tables.

Edges are scored, and their stability is measured, on one half of the task's pairs (every other
pair). Areas and verdicts are measured on the other half, which was not used to find the circuit.
With fewer than four pairs, all pairs are used for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from eap.studies.scoring import halves, integration

# Largest circuit to judge: number of edges, and share of all edges.
LARGEST_JUDGED, JUDGED_SHARE = 200, 0.1

# Smallest share of circuits that contain an edge for the edge to be listed.
RAREST = 0.05


@dataclass(frozen=True)
class Draws:
    """Numbers of random draws in the study, and their seed.

    Attributes:
        n_resamples: number of bootstrap resamples of the examples.
        n_random: number of random circuits to compare with in the verdicts, at least 19.
        n_subsets: number of random subsets of the examples for certifying edges (`eap.certify`),
            which needs a second attribution; 0: no certificate.
        seed: random seed of resamples, random circuits and subsets.
    """

    n_resamples: int = 50
    n_random: int = 50
    n_subsets: int = 0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class StabilityStudy:
    """Stability, areas and verdicts of one task's ranking and circuit.

    Attributes:
        found_on, measured_on: the two halves of the pairs.
        stability: stability of the ranking, and of the ranking of a null task.
        areas: areas of the ranking.
        verdicts: verdicts on the consensus circuit or, if there is none, on the ranking's circuit.
        certificate: certificate of the greedy circuit of the judged size; None if not requested.
    """

    found_on: Dataset
    measured_on: Dataset
    stability: Stability
    areas: Areas
    verdicts: Verdicts
    certificate: Certificate | None = None

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by suffix of the file name: "", "_edges", "_areas", "_verdicts".

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
    draws: Draws = Draws(),
    expanded_kv: bool = False,
    **resources: Unpack[ResourceOptions],
) -> StabilityStudy:
    """Score a task's edges with error bars, and measure areas and verdicts on other pairs.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of the task, two or more.
        metric: metric of scores (of methods that use one), areas and verdicts.
        method: gradient-based method of `eap.attribute`.
        steps: number of points of integrated gradients.
        rule: integration rule.
        sizes: circuit sizes at which stability is measured; None: 1, 2, 5 and 10% of all edges.
        draws: numbers of resamples, random circuits and subsets, and their seed.
        expanded_kv: whether each query head has its own k and v where heads share them.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: there are too few pairs, or one of the functions refuses its arguments.
    """
    found_on, measured_on = halves(dataset, "stability")
    n_random = enough_random(draws.n_random, ALPHA)  # before the edges are scored
    options: dict[str, Any] = {"seed": draws.seed, **resources}
    scoring = {
        "method": method,
        **({"metric": metric} if get_method(method).uses_metric else {}),
        **integration(method, steps, rule),
        "expanded_kv": expanded_kv,
        **options,
    }
    stability = bootstrap(
        model,
        found_on,
        sizes=sizes,
        n_resamples=draws.n_resamples,
        selection="greedy",  # small circuits selected by top-n are often disconnected
        **scoring,
    )
    circuit, certificate = _to_be_judged(stability), None
    if draws.n_subsets:
        size = _judged_size(stability)
        certificate = certify(
            model, found_on, size, n_subsets=draws.n_subsets, measured_on=measured_on, **scoring
        )
    return StabilityStudy(
        found_on=found_on,
        measured_on=measured_on,
        stability=stability,
        areas=areas(model, stability.graph, measured_on, metric=metric, **options),
        verdicts=judge(model, circuit, measured_on, metric=metric, n_random=n_random, **options),
        certificate=certificate,
    )


def _judged_size(stability: Stability) -> int:
    """The largest size within the limits, or the first size if none is."""
    limit = min(LARGEST_JUDGED, int(JUDGED_SHARE * stability.graph.n_edges))
    sizes = [each.size for each in stability.sizes]
    return max((size for size in sizes if size <= limit), default=sizes[0])


def _to_be_judged(stability: Stability) -> Graph:
    """The largest consensus circuit within the limits, or the ranking's circuit if it is empty."""
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
    """Edges by frequency in circuits: edge, score, standard_error, and P_<size> for every size."""
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
