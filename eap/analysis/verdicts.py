"""Seven tests of whether one circuit explains the model's behaviour on a task.

Three criteria are those of Wang et al. 2022 (arXiv 2211.00593), here with an interval over
examples: *faithfulness* (the circuit does what the model does), *completeness* (it still does when
both lose the same edges) and *minimality* (the circuit has no edge to spare). Five are hypothesis
tests of Shi et al. 2024 (arXiv 2410.13032): *sufficiency* (the circuit is closer to the model than
random circuits of its size), *partial necessity* (the model loses more without the circuit than
without random circuits outside it), *minimality* (each edge matters more than an edge of a random
path added to the circuit), *equivalence* (the circuit's metric is above the model's on as many
examples as it is below) and *independence* (the output of the model without the circuit tells
nothing about the output of the model).

The tests differ from those of Shi et al. in four ways. Random circuits are unions of paths from the
input to the logits, so that they can have an effect. The p-values of edges are corrected for the
number of edges (Holm). Equivalence tests the *share of examples*. Independence concerns what the
rest of the model adds to the corrupted run, because the corrupted prompts themselves may depend on
the clean ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import factorial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from eap.ablation import Ablation
from eap.analysis.random_circuits import compared_circuits, edges_of, without_edge
from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.graph.contents import check_plain
from eap.graph.graph import Graph
from eap.metrics.metric import Metric, get_metric
from eap.model.model import Model
from eap.model.verbs import verb
from eap.runtime.errors import UserError
from eap.runtime.notebooks import html_table
from eap.runtime.ranges import ALPHA, enough_random, real, whole
from eap.runtime.resources import ResourceOptions, Resources
from eap.statistics.hypotheses import (
    Evidence,
    beyond_tolerance_p,
    holm,
    hsic_p,
    mean_p,
    rank_p,
    ratio_beyond_p,
    sign_test,
    unseen_p,
)
from eap.statistics.intervals import resampled_counts
from eap.statistics.measures import normalised

Values = Float[np.ndarray, "circuit example"]

# Numbers of resamples (for tests of a tolerance) and of permutations (for the test of dependence).
N_RESAMPLES, N_PERMUTATIONS = 999, 499

# Largest number of examples whose pairs HSIC compares.
HSIC_EXAMPLES = 500


# ---- edges one by one ----------------------------------------------------------------------------


@verb
def leave_one_out(
    model: Model,
    circuit: Graph,
    dataset: Dataset,
    *,
    metric: str | Metric = "logit_diff",
    ablation: str | Ablation | None = None,
    **resources: Unpack[ResourceOptions],
) -> Graph:
    """Value of every edge within a circuit: the metric without the edge, minus that with the edge.

    All circuits with one edge less share one pass over the data.

    Args:
        model: loaded model (`eap.load_model`).
        circuit: circuit whose edges are left out, one by one.
        dataset: pairs of prompts (`eap.load_dataset`).
        metric: metric of the values.
        ablation: activation that edges outside a circuit carry; None: that on the corrupted prompt.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Circuit with these values as scores (means over examples; NaN for edges outside the circuit)
        and their standard errors (None for one example).

    Example:
        >>> worth = eap.leave_one_out(model, graph.greedy(20).prune(), dataset)
    """
    check_plain(circuit, "edges that are left out one by one have")
    without = [without_edge(circuit, *edge) for edge in edges_of(circuit)]
    values = faithfulness(
        model, [circuit, *without], dataset, metric=metric, ablation=ablation, **resources
    )
    changes = (values.circuits[1:] - values.circuits[0]).double()
    scores = torch.full(circuit.scores.shape, torch.nan, dtype=torch.float32)
    scores[circuit.in_graph] = changes.mean(dim=1).float()
    errors = None
    if len(dataset) > 1:
        errors = torch.full_like(scores, torch.nan)
        errors[circuit.in_graph] = (changes.std(dim=1) / len(dataset) ** 0.5).float()
    return replace(
        circuit,
        scores=scores,
        standard_errors=errors,
        higher_is_better=get_metric(metric).higher_is_better,
        provenance={**values.provenance, "method": "leave one out", "circuit": circuit.provenance},
    )


# ---- verdicts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Verdict of one test.

    Attributes:
        test: name of the test.
        statistic: measured quantity, explained by `meaning`.
        p_value: p-value of the null hypothesis that the test would reject, corrected for multiple
            comparisons if the test has several parts.
        word: conclusion in a few words.
        meaning: explanation of the statistic and of the null hypothesis.
    """

    test: str
    statistic: float
    p_value: float
    word: str
    meaning: str


@dataclass(frozen=True, eq=False)
class Verdicts:
    """All verdicts on one circuit.

    Attributes:
        circuit: circuit that was judged.
        verdicts: verdict of every test.
        edges: table with a row per edge: edge, change (of the metric without the edge), p_value
            (Holm-corrected), p_reference (rank among edges of random paths), needed.
        provenance: origin of the values.
    """

    circuit: Graph
    verdicts: tuple[Verdict, ...]
    edges: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, test: str) -> Verdict:
        """Verdict of a test, by name of the test."""
        return next(verdict for verdict in self.verdicts if verdict.test == test)

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per test: test, statistic, p_value, word, meaning."""
        return pd.DataFrame([vars(verdict) for verdict in self.verdicts])

    def __repr__(self) -> str:
        """One line with the word of every test."""
        words = ", ".join(f"{verdict.test}: {verdict.word}" for verdict in self.verdicts)
        return f"Verdicts({self.circuit.count_edges():,} edges; {words})"

    def _repr_html_(self) -> str:
        """Table with a row per test, for notebooks."""
        title = f"Verdicts on {self.circuit!r}"
        rows = self.to_frame().round(4)
        return html_table(title, [*rows.columns], rows.itertuples(index=False))

    def __str__(self) -> str:
        return "\n".join(
            f"{verdict.test:18} {verdict.statistic:8.3f}   p {verdict.p_value:.3f}   {verdict.word}"
            for verdict in self.verdicts
        )


@verb
def judge(
    model: Model,
    circuit: Graph,
    dataset: Dataset,
    *,
    metric: str | Metric = "logit_diff",
    ablation: str | Ablation | None = None,
    tolerance: float = 0.2,
    alpha: float = ALPHA,
    n_random: int = 100,
    n_subsets: int = 20,
    seed: int = 0,
    **resources: Unpack[ResourceOptions],
) -> Verdicts:
    """Run seven tests of one circuit, in one pass over the data.

    A test is "inconclusive" if its p-value could not be as low as `alpha` whatever the values, and
    the verdict says why: too few random circuits of the circuit's size, or too few examples.

    Args:
        model: loaded model (`eap.load_model`).
        circuit: circuit to test; it is pruned first.
        dataset: pairs of prompts (`eap.load_dataset`), preferably not those that the circuit was
            found on.
        metric: metric of all values.
        ablation: activation that edges outside a circuit carry; None: that on the corrupted prompt.
        tolerance: largest distance of faithfulness from 1 for a circuit that counts as faithful and
            complete; above 0 and below 1.
        alpha: significance level, above 0 and below 1.
        n_random: number of random circuits, and of random paths, to compare with; at least
            1 / alpha - 1.
        n_subsets: number of random halves of the circuit that the test of completeness removes.
        seed: seed of all random draws.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Raises:
        UserError: an empty circuit, fewer than two examples, equal clean and ablated means, or a
            number out of range.

    Example:
        >>> verdicts = eap.judge(model, graph.greedy(12), dataset, alpha=0.2, n_random=9)
    """
    check_plain(circuit, "verdicts support")
    tolerance, alpha = real("tolerance", tolerance), real("alpha", alpha)
    n_random, n_subsets = enough_random(n_random, alpha), whole("n_subsets", n_subsets)
    seed = whole("seed", seed)
    Resources(**resources)  # fails early, before anything is drawn
    circuit = circuit.prune()
    if not circuit.count_edges():
        raise UserError(
            "the circuit is empty: no path from the input to the logits runs through it"
        )
    if len(dataset) < 2:
        raise UserError("at least two examples are needed for a verdict on a circuit")
    groups = compared_circuits(circuit, n_random=n_random, n_subsets=n_subsets, seed=seed)
    together = [one for group in groups.values() for one in group]
    measured = faithfulness(model, together, dataset, metric=metric, ablation=ablation, **resources)
    by_group = measured.circuits.double().split([len(group) for group in groups.values()])
    values = _Measured(
        circuit=circuit,
        metric=get_metric(metric),
        of={kind: part.numpy() for kind, part in zip(groups, by_group, strict=True)},
        clean=measured.clean.double().numpy(),
        ablated=measured.ablated.double().numpy(),
        tolerance=tolerance,
        alpha=alpha,
        seed=seed,
    )
    settings = {
        "tolerance": tolerance, "alpha": alpha, "n_random": n_random, "n_subsets": n_subsets,
        "seed": seed,
    }  # fmt: skip
    provenance = {**measured.provenance, "method": "verdicts", "settings": settings}
    provenance["circuit"] = circuit.provenance
    verdicts = []
    for name, (test, meaning) in _TESTS.items():
        statistic, p, evidence, yes, no = test(values)
        word = evidence.word(p, alpha, yes, no)
        verdicts.append(Verdict(name, statistic, p, word, meaning.format(tolerance=tolerance)))
    return Verdicts(circuit, tuple(verdicts), values.edges, provenance)


@dataclass(frozen=True, eq=False)
class _Measured:
    """Metric of each kind of circuits, on every example, and the settings of the tests."""

    circuit: Graph
    metric: Metric
    of: dict[str, Values]
    clean: Float[np.ndarray, " example"]
    ablated: Float[np.ndarray, " example"]
    tolerance: float
    alpha: float
    seed: int

    @property
    def rounding(self) -> float:
        """Largest difference of two values that may be rounding."""
        return float(1e-5 * max(np.abs(self.clean).max(), np.abs(self.ablated).max()))

    def rounded(self, differences: Float[np.ndarray, " example"]) -> Float[np.ndarray, " example"]:
        """The differences, with 0 for those that may be rounding."""
        return np.where(np.abs(differences) <= self.rounding, 0.0, differences)

    def distances(self, kind: str) -> Float[np.ndarray, " circuit"]:
        """Distances |1 - f| of circuits from the model, in units of normalised faithfulness."""
        share = normalised(self.of[kind].mean(axis=1), self.clean.mean(), self.ablated.mean())
        return np.abs(1 - share)

    @cached_property
    def counts(self) -> Float[np.ndarray, "resample example"]:
        """How often each bootstrap resample has each example."""
        return resampled_counts(len(self.clean), N_RESAMPLES, self.seed)

    @property
    def resampling(self) -> Evidence:
        """Evidence of these resamples of a distance with a tolerance."""
        n = len(self.clean)
        return Evidence.least(n, unseen_p(n, self.tolerance), N_RESAMPLES, "resamples")

    @cached_property
    def edges(self) -> pd.DataFrame:
        """Table of the circuit's edges, as in `Verdicts`."""
        changes = self.of["one less"] - self.of["circuit"]
        p_values = holm(mean_p(changes))
        added = np.abs((self.of["longer, one less"] - self.of["longer"]).mean(axis=1))
        effects = np.abs(changes.mean(axis=1))
        p_reference = np.array([rank_p(e, added) if len(added) else np.nan for e in effects])
        return pd.DataFrame(
            {
                "edge": self.circuit.edge_names(),
                "change": changes.mean(axis=1),
                "p_value": p_values,
                "p_reference": p_reference,
                "needed": np.fmax(p_values, p_reference) <= self.alpha,
            }
        )


_Finding = tuple[float, float, Evidence, str, str]
"""Statistic, p-value, evidence, and the words if the p-value is significant and if it is not."""


def _faithfulness(values: _Measured) -> _Finding:
    losses, gaps = values.clean - values.of["circuit"][0], values.clean - values.ablated
    share = float(1 - losses.mean() / (values.clean.mean() - values.ablated.mean()))
    p = ratio_beyond_p(losses, gaps, values.tolerance, values.counts)
    return share, p, values.resampling, "faithful", "not shown to be faithful"


def _completeness(values: _Measured) -> _Finding:
    apart = values.of["circuit, halved"] - values.of["whole, less"]

    def distance(weights: np.ndarray) -> float:
        gap = weights @ (values.clean - values.ablated)
        return float(np.abs(apart @ weights).mean() / abs(gap))

    n = len(values.clean)
    p = beyond_tolerance_p([distance(counts / n) for counts in values.counts], values.tolerance, n)
    measured = distance(np.full(n, 1 / n))
    return measured, p, values.resampling, "complete", "not shown to be complete"


def _minimality(values: _Measured) -> _Finding:
    edges = values.edges
    needed = int(edges["needed"].sum())
    # The p-value that all edges are needed is the largest p-value of any edge.
    p = float(np.fmax(edges["p_value"], edges["p_reference"]).max())
    evidence = Evidence.of_ranks(len(values.of["longer"]), "random paths outside it")
    spare = f"{len(edges) - needed} of {len(edges)} edges not shown to be needed"
    return needed / len(edges), p, evidence, "minimal", spare


def _sufficiency(values: _Measured) -> _Finding:
    distance, others = float(values.distances("circuit")[0]), values.distances("random")
    p = rank_p(-distance, -others)
    evidence = Evidence.of_ranks(len(others), "random circuits of its size")
    close = distance <= values.tolerance
    word = "sufficient" if close else "better than random circuits, but not close"
    return distance, p, evidence, word, "no better than random circuits"


def _partial_necessity(values: _Measured) -> _Finding:
    distance, others = float(values.distances("without")[0]), values.distances("without random")
    p = rank_p(distance, others)
    evidence = Evidence.of_ranks(len(others), "random circuits of its size outside it")
    return distance, p, evidence, "necessary", "no more necessary than random circuits"


def _equivalence(values: _Measured) -> _Finding:
    share, p = sign_test(values.rounded(values.of["circuit"][0] - values.clean))
    n = len(values.clean)
    evidence = Evidence(2.0 ** (1 - n), f"{n} examples")  # two-sided
    if np.abs(values.clean).max() <= values.rounding:  # KL and JS: no circuit is below the model
        p, evidence = 1.0, Evidence(1.0, f"{values.metric.name}, which is 0 for the model itself")
    return share, p, evidence, "differs from the model", "no difference found"


def _independence(values: _Measured) -> _Finding:
    rest = values.rounded(values.of["without"][0] - values.ablated)[:HSIC_EXAMPLES]
    clean = values.clean[:HSIC_EXAMPLES]
    dependence, p = hsic_p(rest, clean, n_permutations=N_PERMUTATIONS, seed=values.seed)
    n = len(values.clean)
    evidence = Evidence.least(n, 1 / factorial(min(n, 20)), N_PERMUTATIONS, "permutations")
    if np.ptp(clean) <= values.rounding:  # nothing can depend on a constant
        evidence = Evidence(1.0, f"the same {values.metric.name} of the model on all examples")
    return dependence, p, evidence, "remainder still informative", "no dependence found"


_TESTS: dict[str, tuple[Callable[[_Measured], _Finding], str]] = {
    "faithfulness": (
        _faithfulness,
        "normalised faithfulness; null: it is further than {tolerance} from 1",
    ),
    "completeness": (
        _completeness,
        "mean distance of circuit and model when both lose the same half of the circuit's edges, "
        "as a share; null: it is more than {tolerance}",
    ),
    "minimality": (
        _minimality,
        "share of edges that are needed: the metric changes without them (corrected for their "
        "number), by more than without an edge of a random path added to the circuit",
    ),
    "sufficiency": (
        _sufficiency,
        "distance from the model's metric, as a share; null: that of random circuits of its size",
    ),
    "partial necessity": (
        _partial_necessity,
        "how far the model is from itself without the circuit, as a share; null: as without a "
        "random circuit of its size outside it",
    ),
    "equivalence": (
        _equivalence,
        "share of examples on which the circuit's metric is above the model's; null: one half",
    ),
    "independence": (
        _independence,
        "dependence (HSIC) of what the model without the circuit adds to the ablated run on what "
        "the model does; null: none",
    ),
}
"""Each test with the meaning of its statistic and its null hypothesis."""
