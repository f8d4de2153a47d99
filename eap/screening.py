"""Screen and verify: exact values where an estimate is high, and a sample of the rest."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from eap.graph.graph import Graph


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which edges are patched: the best by an estimate, and a random sample of the rest."""

    top: Bool[Tensor, "n_forward n_backward"]
    sample: Bool[Tensor, "n_forward n_backward"]

    @property
    def all(self) -> Bool[Tensor, "n_forward n_backward"]:
        """Both."""
        return self.top | self.sample


def choose_edges(estimate: Graph, *, top: int, sample: int, seed: int) -> Chosen:
    """The `top` highest absolute estimates, and `sample` others (or all there are)."""
    top = min(top, estimate.n_edges)
    best = estimate.top_n(top).in_graph
    rest = (estimate.edge_exists & ~best).flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    drawn = rest[torch.randperm(len(rest), generator=generator)[:sample]]
    others = torch.zeros_like(best)
    others.view(-1)[drawn] = True
    return Chosen(best, others)


def merge(estimate: Graph, exact: Graph) -> Graph:
    """Exact scores where they are known, estimates elsewhere; `is_exact` says which is which."""
    known = exact.is_exact
    assert known is not None
    errors = estimate.standard_errors
    if errors is not None and exact.standard_errors is not None:
        errors = torch.where(known, exact.standard_errors, errors)
    scores = torch.where(known, exact.scores, estimate.scores)
    return replace(estimate, scores=scores, standard_errors=errors, is_exact=known)


def upper_share(found: int, drawn: int, *, confidence: float = 0.95) -> float:
    """Clopper-Pearson: the largest share that `found` of `drawn` leaves possible (one-sided)."""
    if found >= drawn:
        return 1.0
    return float(stats.beta.ppf(confidence, found + 1, drawn - found))


def total_error(sampled: Float[np.ndarray, " n"], n_all: int) -> float:
    """Standard error of a sum over `n_all` values that is reckoned from a sample of them.

    The sample is drawn without replacement, so the error shrinks with what is left undrawn (the
    finite-population factor sqrt(1 - n / n_all)) and is 0 when all are drawn.
    """
    n = len(sampled)
    if n >= n_all:
        return 0.0
    if n < 2:
        return float("nan")
    return float(stats.sem(sampled) * np.sqrt(1 - n / n_all) * n_all)


def report(estimate: Graph, exact: Graph, chosen: Chosen) -> str:
    """Agreement on the verified edges, and how much the estimate may have missed elsewhere."""
    guess = estimate.scores[chosen.top].abs().double().numpy()
    truth = exact.scores[chosen.top].abs().double().numpy()
    n_top, n_rest = len(truth), estimate.n_edges - len(truth)
    lines = [f"verified: the {n_top:,} edges with the highest estimates"]
    if n_top > 1:
        pearson, kendall = stats.pearsonr(guess, truth)[0], stats.kendalltau(guess, truth)[0]
        lines.append(
            f"  |estimate| against |exact|: Pearson r {pearson:.3f}, Kendall tau {kendall:.3f}, "
            f"mean absolute difference {np.abs(guess - truth).mean():.2e}"
        )
    sampled = exact.scores[chosen.sample].abs().double().numpy()
    if not len(sampled):
        return "\n".join([*lines, "no other edges: nothing can have been missed"])
    typical = float(np.median(truth))
    above = int((sampled > typical).sum())
    missed = float(above)
    if len(sampled) < n_rest:
        missed = upper_share(above, len(sampled)) * n_rest
    total, others = float(truth.sum()), float(sampled.mean()) * n_rest
    unsure = total_error(sampled, n_rest)
    lines += [
        f"sampled: {len(sampled):,} of the {n_rest:,} others",
        f"  largest exact value there {sampled.max():.2e} (among the verified: {truth.max():.2e})",
        f"  {above} above the median verified value {typical:.2e}; with 95% confidence at most "
        f"{missed:,.0f} such edges were missed",
        f"  absolute values of all others sum to about {others:.3g} (standard error {unsure:.2g}), "
        f"of the verified ones to {total:.3g}",
    ]
    return "\n".join(lines)
