"""Screening: exact values of the edges with the highest estimates, and of a sample of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from eap.analysis.compare import agreement
from eap.graph.graph import Graph
from eap.runtime.errors import UserError
from eap.runtime.ranges import real, whole


@dataclass(frozen=True, eq=False)
class Chosen:
    """Edges to patch: the highest by some estimates, and a random sample of the rest."""

    top: Bool[Tensor, "*span n_forward n_backward"]
    sample: Bool[Tensor, "*span n_forward n_backward"]

    @property
    def all(self) -> Bool[Tensor, "*span n_forward n_backward"]:
        """Mask of the edges of both kinds."""
        return self.top | self.sample

    def weights(self, n_edges: int) -> Float[Tensor, "*span n_forward n_backward"]:
        """Number of edges that each chosen edge stands for, out of `n_edges`.

        This is 1 for a top edge, and the inverse sampling probability for a sampled edge (Horvitz
        and Thompson 1952).
        """
        n_top, n_sample = int(self.top.sum()), int(self.sample.sum())
        return self.top.double() + self.sample.double() * ((n_edges - n_top) / max(1, n_sample))


def choose_edges(estimates: Sequence[Graph], *, top: int, sample: int, seed: int) -> Chosen:
    """Choose the `top` edges that any of the estimates ranks highest, and `sample` others.

    The rank of an edge is its best rank by absolute score in any of the estimates; ties go to the
    earlier edge. So the chosen edges include at least the `top // k` highest of each of k
    estimates. With spans of the prompt, pairs of an edge and a span are chosen. If fewer than
    `sample` others exist, all are chosen.

    Raises:
        UserError: no estimates, or estimates of different shapes or spans.
    """
    if not estimates:
        raise UserError("no estimates: give at least one graph by whose scores to choose edges")
    if len({estimate.config.shape for estimate in estimates}) > 1:
        raise UserError("estimates of different shapes cannot choose edges together")
    if len({estimate.span_names for estimate in estimates}) > 1:
        raise UserError("estimates with different spans cannot choose edges together")
    top, sample, seed = whole("top", top), whole("sample", sample), whole("seed", seed)
    exists = estimates[0].edge_exists
    sizes = torch.stack([estimate.scores[exists].abs() for estimate in estimates])
    ranks = sizes.argsort(descending=True, stable=True).argsort()  # the second sort inverts
    order = ranks.amin(dim=0).argsort(stable=True)  # [edge]
    generator = torch.Generator("cpu").manual_seed(seed)
    rest = order[top:].sort().values
    drawn = rest[torch.randperm(len(rest), generator=generator, device="cpu")[:sample]]
    places = exists.flatten().nonzero().flatten()
    best, others = torch.zeros_like(exists), torch.zeros_like(exists)
    best.view(-1)[places[order[:top]]] = True
    others.view(-1)[places[drawn]] = True
    return Chosen(best, others)


def weights_of(
    exact: Graph, estimates: Sequence[Graph]
) -> Float[Tensor, "*span n_forward n_backward"] | None:
    """Number of edges that each exact value of a screened graph stands for; None: all are exact.

    Args:
        exact: graph of `merge`, whose provenance records how its edges were chosen.
        estimates: estimates by which the edges were chosen.

    Raises:
        UserError: the estimates choose other edges than those with exact values.
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
        raise UserError(f"{exact} has exact values of other edges than these estimates choose")
    return chosen.weights(exact.n_edges)


def merge(estimate: Graph, exact: Graph, chosen: Chosen | None = None) -> Graph:
    """Graph of exact scores where they are known and scaled estimates elsewhere, with `is_exact`.

    Exact values and estimates of one metric can differ by orders of magnitude: that of KL grows
    with the square of a small effect, EAP-IG's estimate of it with the effect. So that both can be
    ranked together, estimates are multiplied by the ratio of the sums of absolute exact values and
    estimates over the sampled edges, which stand for those without an exact value.

    Args:
        estimate: estimates of all edges.
        exact: exact scores of some edges.
        chosen: edges with an exact value, by how they were chosen; None, or without a sample: the
            ratio is that of all edges with an exact value.
    """
    known = exact.is_exact
    assert known is not None
    typical = known if chosen is None or not chosen.sample.any() else chosen.sample
    sums = [float(graph.scores[typical].abs().double().sum()) for graph in (exact, estimate)]
    ratio = sums[0] / sums[1] if sums[1] else 1.0
    errors = estimate.standard_errors
    if errors is not None and exact.standard_errors is not None:
        errors = torch.where(known, exact.standard_errors, ratio * errors)
    scores = torch.where(known, exact.scores, ratio * estimate.scores)
    return replace(estimate, scores=scores, standard_errors=errors, is_exact=known)


def upper_share(found: int, drawn: int, *, confidence: float = 0.95) -> float:
    """One-sided Clopper-Pearson bound: largest plausible share, given `found` out of `drawn`."""
    confidence = real("confidence", confidence)
    if found >= drawn:
        return 1.0
    return float(stats.beta.ppf(confidence, found + 1, drawn - found))


def total_error(sampled: Float[np.ndarray, " n"], n_all: int) -> float:
    """Standard error of a sum over `n_all` values that is estimated from a sample.

    The sample is drawn without replacement, so the error shrinks as the sample covers more of the
    values (finite-population factor sqrt(1 - n / n_all)) and is 0 if it covers all of them.
    """
    n = len(sampled)
    if n >= n_all:
        return 0.0
    if n < 2:
        return float("nan")
    return float(stats.sem(sampled) * np.sqrt(1 - n / n_all) * n_all)


def report(estimate: Graph, exact: Graph, chosen: Chosen) -> str:
    """Report on the agreement of estimates with exact values, and on edges that were missed."""
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
    if not n_rest:
        return "\n".join([*lines, "no other edges: nothing can have been missed"])
    if not len(sampled):
        return "\n".join([*lines, f"no sample of the {n_rest:,} others: some may have been missed"])
    lines.append(f"sampled: {len(sampled):,} of the {n_rest:,} others")
    largest = f"  largest exact value there {sampled.max():.2e}"
    if n_top:
        typical = float(np.median(truth))
        above = int((sampled > typical).sum())
        unseen = len(sampled) < n_rest
        missed = upper_share(above, len(sampled)) * n_rest if unseen else above
        lines += [
            f"{largest} (among the verified: {truth.max():.2e})",
            f"  {above} above the median verified value {typical:.2e}; with 95% confidence at most "
            f"{missed:,.0f} such edges were missed",
        ]
    else:
        lines.append(largest)
    total, others = float(truth.sum()), float(sampled.mean()) * n_rest
    unsure = total_error(sampled, n_rest)
    lines.append(
        f"  absolute values of all others sum to about {others:.3g} (standard error {unsure:.2g}), "
        f"of the verified ones to {total:.3g}"
    )
    return "\n".join(lines)
