"""Certified circuits: edges and nodes that stay in the circuit if some of the examples change.

The method is that of arXiv 2602.22968. A random subset of the data set keeps each example with
probability 1 - p_delete, and a rule finds a circuit from the mean scores of the subset. Let mu be
the probability that an edge is in that circuit. The edge's vote is *in* if mu > 1/2 and *out* if
mu < 1/2. Now draw the same random subset from two data sets that differ by r examples, each
deleted, added or replaced. With probability p_delete^r the subset holds none of the r, and both
circuits are the same. So mu differs by at most 1 - p_delete^r, and a vote *in* is the same for
every data set within r changes as long as

    p_delete^r > 3/2 - mu.

mu is estimated from n_subsets subsets, and replaced by its Clopper-Pearson bounds at level alpha.
Scores are means over examples, so the scores of all subsets follow from one attribution run and one
matrix product. The empty subset has the empty circuit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from eap.analysis.compare import nodes
from eap.analysis.stability import generators
from eap.attribution import attribute
from eap.circuits import Faithfulness, faithfulness
from eap.data.dataset import Dataset, Example
from eap.engine.score_blocks import WeightedSums
from eap.graph.graph import Graph
from eap.graph.selection import By
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime import distributed
from eap.runtime.errors import UserError, quoted
from eap.runtime.memory import Budget
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import ALPHA, real, whole
from eap.runtime.resources import Resources

SELECTIONS = ("greedy", "top_n", "threshold")

CHUNK = 2**23
"""Bytes of subset scores that are computed at a time."""


@dataclass(frozen=True, eq=False)
class Votes:
    """Votes of subsets on edges or on nodes, with certified bounds.

    Attributes:
        share: fraction of the subsets whose circuit contains the edge or node.
        low, high: Clopper-Pearson bounds of the probability that `share` estimates.
        p_delete: probability that a subset leaves an example out.
    """

    share: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]
    p_delete: float

    @classmethod
    def of(
        cls, counts: Int[np.ndarray, "*shape"], n: int, p_delete: float, alpha: float
    ) -> "Votes":
        """Votes from the counts among `n` subsets; both bounds hold together at level `alpha`."""
        low = np.where(counts == 0, 0.0, stats.beta.ppf(alpha / 2, counts, n - counts + 1))
        high = np.where(counts == n, 1.0, stats.beta.ppf(1 - alpha / 2, counts + 1, n - counts))
        return cls(counts / n, low, high, p_delete)

    @property
    def is_in(self) -> Bool[np.ndarray, "*shape"]:
        """Whether the edge or node is certified to be in the circuit."""
        return self.low > 0.5

    @property
    def is_out(self) -> Bool[np.ndarray, "*shape"]:
        """Whether the edge or node is certified not to be in the circuit."""
        return self.high < 0.5

    @property
    def radius(self) -> Int[np.ndarray, "*shape"]:
        """Largest number of examples that may change without changing the vote; -1: abstains."""
        certain = np.maximum(self.low, 1 - self.high)
        change = np.clip(1.5 - certain, 0.5, 1.0)
        most = np.ceil(np.log(change) / np.log(self.p_delete)).astype(int) - 1
        most -= self.p_delete ** np.maximum(most, 0) <= change  # rounding at whole numbers
        return np.where(certain > 0.5, most, -1)

    def words(self) -> list[str]:
        """Verdicts as words: 'in', 'out' or 'abstains'."""
        decided = np.where(self.is_in, "in", np.where(self.is_out, "out", "abstains"))
        return [str(word) for word in decided]


@dataclass(frozen=True, eq=False)
class Certificate:
    """Certified circuit, as returned by `certify`.

    Attributes:
        graph: scores over all examples.
        plain: circuit that the rule finds from these scores.
        circuit: circuit of the edges that are certified to be in.
        edges: votes on edges [n_forward, n_backward].
        nodes: votes on heads and MLPs [n_forward - 1].
        faithfulness: faithfulness of the certified and of the plain circuit, in this order.
        provenance: origin of the scores and the subsets.
    """

    graph: Graph
    plain: Graph
    circuit: Graph
    edges: Votes
    nodes: Votes
    faithfulness: Faithfulness
    provenance: dict[str, Any]

    def to_frame(self, *, out: bool = False) -> pd.DataFrame:
        """Make a table with a row per edge and node that is in or abstains, most certain first.

        The columns are level, name, in_plain, share, low, high, verdict and radius.

        Args:
            out: whether to include the edges and nodes that are out.
        """
        exists = self.graph.edge_exists
        names = replace(self.graph, in_graph=exists).edge_names()
        edges = _rows("edge", names, self.plain.in_graph[exists].numpy(), self.edges, exists)
        heads_and_mlps = list(self.graph.sender_names[1:])
        of_nodes = _rows("node", heads_and_mlps, nodes(self.plain).numpy(), self.nodes, ...)
        frame = pd.concat([edges, of_nodes], ignore_index=True)
        frame = frame if out else frame[frame["verdict"] != "out"]
        return frame.sort_values(
            ["level", "low", "name"], ascending=[True, False, True], ignore_index=True
        )

    def summary(self) -> pd.DataFrame:
        """Table of edges and nodes: how many are in, out or abstain, and the median radius."""
        rows = []
        exists = self.graph.edge_exists.numpy()
        for level, votes, counted in (("edge", self.edges, exists), ("node", self.nodes, ...)):
            inside, outside = votes.is_in[counted], votes.is_out[counted]
            radii = votes.radius[counted][inside]
            rows.append({
                "level": level,
                "in": int(inside.sum()),
                "out": int(outside.sum()),
                "abstains": int((~inside & ~outside).sum()),
                "median_radius": float(np.median(radii)) if len(radii) else float("nan"),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        certified, plain = self.faithfulness.normalised
        row = self.summary().iloc[0]
        return (
            f"{row['in']} edges certified in, {row['abstains']} abstain; faithfulness "
            f"{certified:.3f} (plain circuit of {self.plain.count_edges()} edges: {plain:.3f})"
        )


def _rows(level: str, names: list[str], in_plain: Any, votes: Votes, counted: Any) -> pd.DataFrame:
    picked = Votes(votes.share[counted], votes.low[counted], votes.high[counted], votes.p_delete)
    return pd.DataFrame({
        "level": level,
        "name": names,
        "in_plain": in_plain,
        "share": picked.share,
        "low": picked.low,
        "high": picked.high,
        "verdict": picked.words(),
        "radius": picked.radius,
    })  # fmt: skip


@verb
def certify(
    model: Model,
    dataset: Dataset,
    size: float,
    *,
    selection: str = "greedy",
    by: By = "magnitude",
    n_subsets: int = 1000,
    p_delete: float = 0.9,
    alpha: float = ALPHA,
    simultaneous: bool = False,
    measured_on: Dataset | None = None,
    seed: int = 0,
    **options: Any,
) -> Certificate:
    """Certify which edges and nodes of a circuit stay if some of the examples change.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: examples that circuits are found on.
        size: number of edges of the circuit before pruning; for the selection 'threshold', the
            lowest score, in units of the metric.
        selection: rule that selects edges: 'greedy', 'top_n' or 'threshold'; circuits are pruned.
        by: order of the edges: 'magnitude', 'helpful' or 'harmful'.
        n_subsets: number of random subsets of the examples.
        p_delete: probability that a subset leaves an example out. Values near 1 give large radii,
            but small subsets, whose circuits agree less.
        alpha: largest probability that the bounds of an edge (or node) are wrong.
        simultaneous: whether all bounds of edges, and all bounds of nodes, hold together at `alpha`
            (Bonferroni).
        measured_on: examples that faithfulness is measured on; None: those of `dataset`.
        seed: seed of the subsets, which depend on the content of the examples, not on their order.
        **options: method, metric, steps, rule, ablation, expanded_kv and resources, as for
            `eap.attribute`. The scores of subsets take at most half of `memory_budget`; if they do
            not fit, the attribution is run several times.

    Raises:
        UserError: as for `eap.attribute`; also for numbers out of range, too few examples for
            `p_delete`, an unknown selection, or a method without per-example scores.

    Example:
        >>> certificate = eap.certify(model, dataset, 30, method="EAP", n_subsets=50)
        >>> certified, radius = certificate.circuit, certificate.edges.radius
    """
    if selection not in SELECTIONS:
        raise UserError(
            f"unknown selection {quoted(str(selection))}; known are {', '.join(SELECTIONS)}"
        )
    n_subsets, seed = whole("n_subsets", n_subsets), whole("seed", seed)
    p_delete, alpha = real("p_delete", p_delete), real("alpha", alpha)
    if selection != "threshold":
        size = whole("size", size)
    Resources(memory_budget=options.get("memory_budget"), batch_size=options.get("batch_size"))
    if options.get("level", "edge") != "edge" or options.get("spans"):
        raise UserError("certificates are for circuits of edges; leave out level and spans")
    empty = p_delete ** len(dataset)
    if empty >= 0.5:  # then every vote is *out*, whatever the scores
        least = 1 + math.floor(math.log(0.5) / math.log(p_delete))
        raise UserError(
            f"{len(dataset)} examples with p_delete {p_delete:g} leave {empty:.0%} of the subsets "
            f"empty, so nothing can be certified in; use at least {least} examples, or a smaller "
            "p_delete"
        )
    config = graph_config(model, expanded_kv=options.get("expanded_kv", False))
    masks = draw_subsets(dataset.examples, n_subsets, p_delete, seed)
    blank = replace(Graph.from_config(config), higher_is_better=True)
    _cut(blank, selection, size, by, blank.scores)  # fails early if the selection is not possible
    budget = Budget.of(model.device, options.pop("memory_budget", None)).n_bytes
    fits = sums_that_fit(WeightedSums(config, masks[:, :1].float()).n_bytes, budget)
    # Numbers of subsets whose circuit has an edge, and a head or MLP.
    in_edges, in_nodes = (
        torch.zeros_like(mask, dtype=torch.long) for mask in (blank.in_graph, nodes(blank))
    )
    # With few examples, keep the scores of each one. Otherwise sum as many subsets as fit per pass.
    one_pass = len(dataset) <= min(fits, n_subsets)
    parts = [masks] if one_pass else list(masks.split(fits, dim=1))
    for part in parts:
        weights = torch.eye(len(dataset)) if one_pass else part.float()
        sums = WeightedSums(config, weights)
        graph = attribute(
            model, dataset, memory_budget=budget,
            **options | {"observers": [*options.get("observers", ()), sums]},
        )  # fmt: skip
        sums.merge_processes()
        find = partial(_cut, graph, selection, size, by)
        members = part if one_pass else None
        found = tally(sums.totals, members, part.sum(0), find, quiet=options.get("quiet", True))
        in_edges, in_nodes = in_edges + found[0], in_nodes + found[1]
    edges, of_nodes = (
        Votes.of(counts.numpy(), n_subsets, p_delete, alpha / (n if simultaneous else 1))
        for counts, n in ((in_edges, graph.n_edges), (in_nodes, graph.n_forward - 1))
    )
    circuit = graph.with_edges(torch.from_numpy(edges.is_in) & graph.edge_exists)
    plain = find(graph.scores)
    measure = {name: options[name] for name in ("ablation", "quiet") if name in options}
    measured = faithfulness(
        model, [circuit, plain], measured_on or dataset,
        metric=options.get("metric") or "logit_diff", memory_budget=budget, **measure,
    )  # fmt: skip
    settings = {
        "selection": selection, "size": size, "by": by, "n_subsets": n_subsets,
        "p_delete": p_delete, "alpha": alpha, "simultaneous": simultaneous, "seed": seed,
    }  # fmt: skip
    provenance = graph.provenance | {"certificate": settings}
    return Certificate(graph, plain, circuit, edges, of_nodes, measured, provenance)


def _cut(graph: Graph, selection: str, size: float, by: By, scores: Tensor) -> Graph:
    """Pruned circuit that a selection finds from given scores."""
    circuit: Graph = getattr(replace(graph, scores=scores), selection)(size, by=by)
    return circuit.prune()


def sums_that_fit(n_bytes: int, budget: int) -> int:
    """Number of sums of `n_bytes` each that fit in half of a budget, in every process."""
    return max(1, distributed.smallest(budget // 2 // n_bytes))


def draw_subsets(
    examples: Sequence[Example], n_subsets: int, p_delete: float, seed: int
) -> Bool[Tensor, "example subset"]:
    """Mask of the examples in each subset, each kept with probability 1 - p_delete."""
    rows = [random.random(n_subsets) >= p_delete for random in generators(examples, seed)]
    return torch.from_numpy(np.stack(rows))


def tally(
    totals: Float[Tensor, "sum n_forward n_backward"],
    members: Bool[Tensor, "sum subset"] | None,
    sizes: Int[Tensor, " subset"],
    find: Callable[[Float[Tensor, "n_forward n_backward"]], Graph],
    *,
    quiet: bool = True,
) -> tuple[Int[Tensor, "n_forward n_backward"], Int[Tensor, " n_heads_and_mlps"]]:
    """Numbers of subsets whose circuit contains each edge, and each head or MLP.

    Circuits are found by all processes together, each for its share of the subsets.

    Args:
        totals: sums of scores.
        members: mask of the sums that make up each subset; None: each sum is one subset.
        sizes: number of examples in every subset; subsets without examples have no circuit.
        find: function that finds a circuit from mean scores.
        quiet: whether to hide the progress bar.
    """
    edges = torch.zeros(totals.shape[1:], dtype=torch.long)
    heads_and_mlps = torch.zeros(len(edges) - 1, dtype=torch.long)
    own_subsets = distributed.own_items([n for n, size in enumerate(sizes.tolist()) if size])
    n_chunk = max(1, CHUNK // (8 * totals[0].numel()))
    flat = totals.flatten(1)
    chunks = range(0, len(own_subsets), n_chunk)
    for first in progress_bar(chunks, "circuits of subsets", quiet=quiet):
        chunk = list(own_subsets[first : first + n_chunk])
        sums = flat[chunk] if members is None else members[:, chunk].to(flat.dtype).T @ flat
        for scores in (sums / sizes[chunk, None]).view(-1, *edges.shape):
            circuit = find(scores)
            edges += circuit.in_graph
            heads_and_mlps += nodes(circuit)
    return distributed.sum_over_processes(edges), distributed.sum_over_processes(heads_and_mlps)
