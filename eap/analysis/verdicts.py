"""Is this circuit what it is said to be? Seven tests of one circuit, in one call.

Three criteria of Wang et al. 2022 (arXiv 2211.00593), with an interval over examples instead of a
glance: *faithfulness* (the circuit does what the model does), *completeness* (it still does when
both lose the same edges), *minimality* (it has no edge to spare). Five hypothesis tests of Shi et
al. 2024 (arXiv 2410.13032): *sufficiency* (closer to the model than random circuits of its size),
*partial necessity* (the model misses it more than random circuits outside it), *minimality* (each
of its edges matters more than an edge of a random path added to it), *equivalence* (it beats the
model on as many examples as it loses to it), *independence* (what is left of the model without it
says nothing of what the model does).

Redone where theirs go wrong: random circuits are unions of paths from the input to the logits, so
that they can do something; an edge's p-value is corrected for the number of edges (Holm); what
equivalence tests is the *share of examples*; and independence is of what the rest adds to the
corrupted run, as the corrupted prompts themselves may well depend on the clean ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from eap.ablation import Ablation
from eap.analysis.random_circuits import Comparison, edges_of, without_edge
from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.errors import UserError
from eap.graph.contents import check_plain
from eap.graph.graph import Graph
from eap.metrics.metric import Metric, get_metric
from eap.model.model import Model
from eap.runtime.resources import ResourceOptions
from eap.statistics.hypotheses import beyond_tolerance_p, holm, hsic_p, mean_p, rank_p, sign_test
from eap.statistics.measures import normalised, resampled_counts

Values = Float[np.ndarray, "circuit example"]

# Examples of which HSIC compares all pairs.
HSIC_EXAMPLES = 500


# ---- edges one by one ----------------------------------------------------------------------------


def leave_one_out(
    model: Model,
    circuit: Graph,
    dataset: Dataset,
    *,
    metric: str | Metric = "logit_diff",
    ablation: str | Ablation | None = None,
    **resources: Unpack[ResourceOptions],
) -> Graph:
    """What every edge of a circuit is worth in it: the metric without the edge, minus with it.

    All circuits with one edge less share one pass over the data.

    Args:
        model: from `eap.load_model`.
        circuit: the edges to leave out, one by one.
        dataset: from `eap.load_dataset`.
        metric: of the values.
        ablation: what edges outside a circuit carry; None: the corrupted prompt's activation.
        **resources: batch_size, memory_budget (bytes), quiet.

    Returns:
        The circuit with these values as scores (means over examples; NaN off the circuit) and
        their standard errors (None for one example).
    """
    check_plain(circuit, "edges that are left out one by one have")
    without = [without_edge(circuit, *edge) for edge in edges_of(circuit)]
    found = faithfulness(
        model, [circuit, *without], dataset, metric=metric, ablation=ablation, **resources
    )
    changes = (found.circuits[1:] - found.circuits[0]).double()
    scores = torch.full(circuit.scores.shape, torch.nan)
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
        provenance={**found.provenance, "method": "leave one out", "circuit": circuit.provenance},
    )


# ---- verdicts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What one test says.

    Attributes:
        test: its name.
        statistic: what was measured; `meaning` says what it is.
        p_value: of the null hypothesis that the test would reject, corrected where it has parts.
        word: what follows.
        meaning: what the statistic is, and what was compared.
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
        circuit: that was judged.
        verdicts: one for every test.
        edges: a row per edge: edge, change (of the metric without it), p_value (Holm-corrected),
            p_reference (among edges of random paths), needed.
        provenance: where the values come from.
    """

    circuit: Graph
    verdicts: tuple[Verdict, ...]
    edges: pd.DataFrame
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, test: str) -> Verdict:
        """The verdict of a test by name."""
        return next(own for own in self.verdicts if own.test == test)

    def to_frame(self) -> pd.DataFrame:
        """A row per test: test, statistic, p_value, word, meaning."""
        return pd.DataFrame([vars(own) for own in self.verdicts])

    def __str__(self) -> str:
        return "\n".join(
            f"{own.test:18} {own.statistic:8.3f}   p {own.p_value:.3f}   {own.word}"
            for own in self.verdicts
        )


def judge(
    model: Model,
    circuit: Graph,
    dataset: Dataset,
    *,
    metric: str | Metric = "logit_diff",
    ablation: str | Ablation | None = None,
    tolerance: float = 0.2,
    level: float = 0.05,
    n_random: int = 100,
    n_subsets: int = 20,
    seed: int = 0,
    **resources: Unpack[ResourceOptions],
) -> Verdicts:
    """Seven tests of one circuit, of which all runs share one pass over the data.

    Args:
        model: from `eap.load_model`.
        circuit: to be judged; it is pruned first.
        dataset: from `eap.load_dataset`; better not the one that the circuit was found on.
        metric: of all values.
        ablation: what edges outside a circuit carry; None: the corrupted prompt's activation.
        tolerance: how far from 1 a faithful and complete circuit's share may be.
        level: of the p-values, at which a word changes.
        n_random: random circuits, and edges of random paths, to compare with.
        n_subsets: random halves of the circuit that completeness takes away.
        seed: of all that is drawn.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: an empty circuit, fewer than two examples, or nothing to normalise by.
    """
    check_plain(circuit, "verdicts know")
    circuit = circuit.prune()
    if not circuit.count_edges():
        raise UserError(
            "the circuit is empty: no path from the input to the logits runs through it"
        )
    if len(dataset) < 2:
        raise UserError("a verdict on a single example would be none; give a data set of more")
    plan = Comparison.draw(circuit, n_random=n_random, n_subsets=n_subsets, seed=seed)
    found = faithfulness(
        model, plan.circuits, dataset, metric=metric, ablation=ablation, **resources
    )
    values = _Measured(
        plan, *(own.double().numpy() for own in (found.circuits, found.clean, found.corrupted))
    )
    edges = _judge_edges(values, level)
    verdicts = (
        _faithfulness(values, tolerance, level, seed),
        _completeness(values, tolerance, level, seed),
        _minimality(edges),
        _sufficiency(values, tolerance, level),
        _partial_necessity(values, level),
        _equivalence(values, level),
        _independence(values, level, seed),
    )
    settings = {
        "tolerance": tolerance, "level": level, "n_random": n_random, "n_subsets": n_subsets,
        "seed": seed,
    }  # fmt: skip
    provenance = {**found.provenance, "method": "verdicts", "settings": settings}
    return Verdicts(circuit, verdicts, edges, provenance | {"circuit": circuit.provenance})


@dataclass(frozen=True, eq=False)
class _Measured:
    """The metric of everything that was run, on every example."""

    plan: Comparison
    values: Values
    clean: Float[np.ndarray, " example"]
    corrupted: Float[np.ndarray, " example"]

    def of(self, part: str) -> Values:
        return self.values[self.plan.parts[part]]

    @property
    def gap(self) -> float:
        """Clean minus corrupted mean."""
        return float(self.clean.mean() - self.corrupted.mean())

    def distances(self, part: str) -> Float[np.ndarray, " circuit"]:
        """How far the mean metric of circuits is from the model's, as a share."""
        share = normalised(
            self.of(part).mean(axis=1), float(self.clean.mean()), float(self.corrupted.mean())
        )
        return np.abs(1 - share)

    def resampled(self, measure: Callable[[Any], Any], seed: int) -> Float[np.ndarray, " resample"]:
        """A measure of weighted means over examples, in resamples of them."""
        counts = resampled_counts(len(self.clean), 999, seed) / len(self.clean)
        return np.array([measure(weights) for weights in counts])


def _judge_edges(values: _Measured, level: float) -> pd.DataFrame:
    circuit = values.plan.circuit
    changes = values.of("one less") - values.of("circuit")
    p_values = holm(mean_p(changes))
    added = np.abs((values.of("longer, one less") - values.of("longer")).mean(axis=1))
    effects = np.abs(changes.mean(axis=1))
    p_reference = np.array([rank_p(effect, added) if len(added) else 0.0 for effect in effects])
    return pd.DataFrame(
        {
            "edge": circuit.edge_names(),
            "change": changes.mean(axis=1),
            "p_value": p_values,
            "p_reference": p_reference,
            "needed": np.maximum(p_values, p_reference) <= level,
        }
    )


def _faithfulness(values: _Measured, tolerance: float, level: float, seed: int) -> Verdict:
    share = 1 - (values.clean.mean() - values.of("circuit").mean()) / values.gap

    def distance(weights: np.ndarray) -> float:
        gap = weights @ (values.clean - values.corrupted)
        return abs(weights @ (values.clean - values.of("circuit")[0])) / abs(gap)

    p = beyond_tolerance_p(values.resampled(distance, seed), tolerance)
    return Verdict(
        "faithfulness",
        float(share),
        p,
        "faithful" if p <= level else "not shown to be faithful",
        f"normalised faithfulness; null: it is further than {tolerance} from 1",
    )


def _completeness(values: _Measured, tolerance: float, level: float, seed: int) -> Verdict:
    apart = values.of("circuit, halved") - values.of("whole, less")

    def distance(weights: np.ndarray) -> float:
        gap = weights @ (values.clean - values.corrupted)
        return float(np.abs(apart @ weights).mean() / abs(gap))

    even = np.full(len(values.clean), 1 / len(values.clean))
    p = beyond_tolerance_p(values.resampled(distance, seed), tolerance)
    return Verdict(
        "completeness",
        distance(even),
        p,
        "complete" if p <= level else "not shown to be complete",
        "mean distance of circuit and model when both lose the same half of the circuit's edges, "
        f"as a share; null: it is more than {tolerance}",
    )


def _minimality(edges: pd.DataFrame) -> Verdict:
    needed = int(edges["needed"].sum())
    # That all edges are needed is shown by the least sure of them.
    p = float(np.maximum(edges["p_value"], edges["p_reference"]).max())
    spare = len(edges) - needed
    return Verdict(
        "minimality",
        needed / len(edges),
        p,
        "minimal" if not spare else f"{spare} of {len(edges)} edges not shown to be needed",
        "share of edges that are needed: the metric changes without them (corrected for their "
        "number), by more than without an edge of a random path added to the circuit",
    )


def _sufficiency(values: _Measured, tolerance: float, level: float) -> Verdict:
    distance = float(values.distances("circuit")[0])
    p = rank_p(-distance, -values.distances("random"))
    word = "sufficient" if distance <= tolerance else "better than random circuits, but not close"
    return Verdict(
        "sufficiency",
        distance,
        p,
        word if p <= level else "no better than random circuits",
        "distance from the model's metric, as a share; null: that of random circuits of its size",
    )


def _partial_necessity(values: _Measured, level: float) -> Verdict:
    distance = float(values.distances("without")[0])
    others = values.distances("without random")
    p = rank_p(distance, others) if len(others) else float("nan")
    word = "necessary" if p <= level else "no more missed than random circuits"
    return Verdict(
        "partial necessity",
        distance,
        p,
        word if len(others) else "nothing outside it to compare with",
        "how far the model is from itself without the circuit, as a share; null: as without a "
        "random circuit of its size outside it",
    )


def _equivalence(values: _Measured, level: float) -> Verdict:
    changes = values.of("circuit")[0] - values.clean
    changes = np.where(np.abs(changes) <= 1e-5 * np.abs(values.clean).max(), 0.0, changes)
    share, p = sign_test(changes)
    return Verdict(
        "equivalence",
        share,
        p,
        "differs from the model" if p <= level else "no difference found",
        "share of examples on which the circuit's metric is above the model's; null: one half",
    )


def _independence(values: _Measured, level: float, seed: int) -> Verdict:
    rest = (values.of("without")[0] - values.corrupted)[:HSIC_EXAMPLES]
    scale = 1e-5 * np.abs(values.clean).max()
    rest = np.where(np.abs(rest) <= scale, 0.0, rest)
    dependence, p = hsic_p(rest, values.clean[:HSIC_EXAMPLES], seed=seed)
    return Verdict(
        "independence",
        dependence,
        p,
        "the rest still tells" if p <= level else "no dependence found",
        "dependence (HSIC) of what the model without the circuit adds to the corrupted run on what "
        "the model does; null: none",
    )
