"""Screen and verify: exact values where estimates are high, and a sample of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from eap.analysis.compare import agreement
from eap.graph.graph import Graph
from eap.runtime.errors import UserError
from eap.runtime.ranges import real, whole


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which edges are patched: the best by some estimates, and a random sample of the rest."""

    top: Bool[Tensor, "*span n_forward n_backward"]
    sample: Bool[Tensor, "*span n_forward n_backward"]

    @property
    def all(self) -> Bool[Tensor, "*span n_forward n_backward"]:
        """Both."""
        return self.top | self.sample

    def weights(self, n_edges: int) -> Float[Tensor, "*span n_forward n_backward"]:
        """For how many of a graph's `n_edges` each edge stands: 1, or its share of the rest.

        That is the inverse of the chance to be chosen (Horvitz and Thompson 1952).
        """
        n_top, n_sample = int(self.top.sum()), int(self.sample.sum())
        return self.top.double() + self.sample.double() * ((n_edges - n_top) / max(1, n_sample))


def choose_edges(estimates: Sequence[Graph], *, top: int, sample: int, seed: int) -> Chosen:
    """The `top` edges that one of the estimates ranks highest, and `sample` others (or all).

    An edge's rank is the best that an estimate gives it, by absolute score; ties go to the earlier
    edge. So each of k estimates has at least its own `top // k` highest edges among the chosen.
    With spans of the prompt, what is chosen are pairs of an edge and a span.

    Raises:
        UserError: estimates with different spans.
    """
    if len({estimate.span_names for estimate in estimates}) > 1:
        raise UserError("estimates with different spans choose no edges together")
    top, sample, seed = whole("top", top), whole("sample", sample), whole("seed", seed)
    exists = estimates[0].edge_exists
    ranks = torch.stack([_ranks(estimate.scores[exists].abs()) for estimate in estimates])
    order = ranks.amin(dim=0).argsort(stable=True)  # [edge]
    generator = torch.Generator("cpu").manual_seed(seed)
    rest = order[top:].sort().values
    drawn = rest[torch.randperm(len(rest), generator=generator, device="cpu")[:sample]]
    places = exists.flatten().nonzero().flatten()
    best, others = torch.zeros_like(exists), torch.zeros_like(exists)
    best.view(-1)[places[order[:top]]] = True
    others.view(-1)[places[drawn]] = True
    return Chosen(best, others)


def _ranks(values: Float[Tensor, " n_edges"]) -> Int[Tensor, " n_edges"]:
    """0 for the highest."""
    order = values.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks


def weights_of(
    exact: Graph, estimates: Sequence[Graph]
) -> Float[Tensor, "*span n_forward n_backward"] | None:
    """For how many edges each exact value of a graph of `merge` stands; None if all are exact.

    Args:
        exact: a graph whose provenance says how its edges were chosen.
        estimates: those by which they were.

    Raises:
        UserError: its exact values are not those that the estimates choose.
    """
    if exact.is_exact is None or exact.is_exact.equal(exact.edge_exists):
        return None
    said = exact.provenance.get("settings", {})
    try:
        chosen = choose_edges(
            estimates, top=said["verify"], sample=said["sample"], seed=said["seed"]
        )
    except KeyError as error:
        raise UserError(f"{exact} does not say how its exact values were chosen: {error}") from None
    if not chosen.all.equal(exact.is_exact):
        raise UserError(f"the exact values of {exact} are not of edges that these estimates choose")
    return chosen.weights(exact.n_edges)


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
    confidence = real("confidence", confidence)
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
    """Agreement on the verified edges and over all, and how much may have been missed elsewhere."""
    guess = estimate.scores[chosen.top].abs().double().numpy()
    truth = exact.scores[chosen.top].abs().double().numpy()
    n_top, n_rest = len(truth), estimate.n_edges - len(truth)
    at = " at spans" if estimate.span_names else ""
    lines = [f"verified: the {n_top:,} edges{at} that an estimate ranks highest"]
    if n_top > 1:
        pearson, kendall = stats.pearsonr(guess, truth)[0], stats.kendalltau(guess, truth)[0]
        lines.append(
            f"  |estimate| against |exact|: Pearson r {pearson:.3f}, Kendall tau {kendall:.3f}, "
            f"mean absolute difference {np.abs(guess - truth).mean():.2e}"
        )
    sampled = exact.scores[chosen.sample].abs().double().numpy()
    if len(sampled) > 1 and n_top > 1:
        over_all = agreement(estimate, exact, weights=chosen.weights(estimate.n_edges))
        lines.append(
            f"  over all edges, as the sample has them: Pearson r {over_all.pearson:.3f}, "
            f"Kendall tau {over_all.kendall:.3f}"
        )
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
