"""Certified circuits: edges and nodes that stay in the circuit if some of the examples change.

After arXiv 2602.22968. A random subset of the data set keeps each example with probability
1 - p_delete, and a rule finds a circuit in the subset's mean scores. Let mu be the probability that
an edge is in that circuit. Its vote is *in* if mu > 1/2, *out* if mu < 1/2. Take the same random
subset of two data sets that differ by r examples, each deleted, added or replaced: with probability
p_delete^r it holds none of the r, and both circuits are one. So mu differs by at most
1 - p_delete^r, and a vote *in* is the same for every data set within r changes as long as

    p_delete^r > 3/2 - mu.

mu is estimated from n_subsets subsets, and its Clopper-Pearson bounds at level alpha take its
place. Scores are means over examples, so all subsets are one matrix product beside one attribution.
The empty subset has the empty circuit.
"""

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
"""Bytes of scores of subsets that are made at a time."""

Find = Callable[[Float[Tensor, "n_forward n_backward"]], Graph]
"""A circuit from the mean scores of some examples."""


@dataclass(frozen=True, eq=False)
class Votes:
    """How subsets vote on edges or on nodes, and what is certain of it.

    Attributes:
        share: fraction of the subsets whose circuit has the edge or node.
        low, high: Clopper-Pearson bounds of the probability that this estimates.
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
        """From how many of `n` subsets have it; both bounds hold together at level `alpha`."""
        low = np.where(counts == 0, 0.0, stats.beta.ppf(alpha / 2, counts, n - counts + 1))
        high = np.where(counts == n, 1.0, stats.beta.ppf(1 - alpha / 2, counts + 1, n - counts))
        return cls(counts / n, low, high, p_delete)

    @property
    def is_in(self) -> Bool[np.ndarray, "*shape"]:
        """Certified to be in the circuit."""
        return self.low > 0.5

    @property
    def is_out(self) -> Bool[np.ndarray, "*shape"]:
        """Certified not to be in the circuit."""
        return self.high < 0.5

    @property
    def radius(self) -> Int[np.ndarray, "*shape"]:
        """The most examples that may change without another vote; -1: abstains."""
        certain = np.maximum(self.low, 1 - self.high)
        change = np.clip(1.5 - certain, 0.5, 1.0)
        most = np.ceil(np.log(change) / np.log(self.p_delete)).astype(int) - 1
        most -= self.p_delete ** np.maximum(most, 0) <= change  # rounding, at a whole number
        return np.where(certain > 0.5, most, -1)

    def words(self) -> list[str]:
        """'in', 'out' or 'abstains'."""
        decided = np.where(self.is_in, "in", np.where(self.is_out, "out", "abstains"))
        return [str(word) for word in decided]


@dataclass(frozen=True, eq=False)
class Certificate:
    """What `certify` returns.

    Attributes:
        graph: the scores of all examples.
        plain: the circuit that the rule finds in them.
        circuit: the edges that are certified to be in.
        edges: votes on edges [n_forward, n_backward].
        nodes: votes on heads and MLPs [n_forward - 1].
        faithfulness: faithfulness of the certified and of the plain circuit, in this order.
        provenance: where the scores and the subsets come from.
    """

    graph: Graph
    plain: Graph
    circuit: Graph
    edges: Votes
    nodes: Votes
    faithfulness: Faithfulness
    provenance: dict[str, Any]

    def to_frame(self, *, out: bool = False) -> pd.DataFrame:
        """A row per edge and node that is in or abstains (`out=True`: all), surest first.

        Columns: level, name, in_plain, share, low, high, verdict, radius.
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
        """A row for edges and one for nodes: how many are in, out, abstain; the median radius."""
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
    """Certify the edges and nodes of a circuit that stay when some of the examples change.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: the examples that circuits are found on.
        size: edges of the circuit, before pruning; of the selection 'threshold' the least score,
            in units of the metric.
        selection: 'greedy', 'top_n' or 'threshold'; circuits are pruned.
        by: what edges are ranked by: 'magnitude', 'helpful' or 'harmful'.
        n_subsets: random subsets of the examples.
        p_delete: probability that a subset leaves an example out. Near 1 gives large radii, but
            subsets of few examples, whose circuits agree less.
        alpha: each edge's (and node's) bounds are wrong with at most this probability.
        simultaneous: all bounds of edges, and all of nodes, hold together at `alpha` (Bonferroni).
        measured_on: the examples that faithfulness is measured on; None: those of `dataset`.
        seed: seed of the subsets, which are drawn by what an example is, not by where it stands.
        **options: method, metric, steps, rule, ablation, expanded_kv and resources, as for
            `eap.attribute`. Scores of subsets take at most half of `memory_budget`; if they do not
            fit, the attribution is run several times.

    Raises:
        UserError: as `eap.attribute`; numbers out of range, an unknown selection, or a method
            without scores per example.

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
        raise UserError("certificates are of a circuit of edges; leave the level and spans out")
    config = graph_config(model, expanded_kv=options.get("expanded_kv", False))
    masks = draw_subsets(dataset.examples, n_subsets, p_delete, seed)
    blank = replace(Graph.from_config(config), higher_is_better=True)
    _cut(blank, selection, size, by, blank.scores)  # refuses what cannot be selected, at once
    budget = Budget.of(model.device, options.pop("memory_budget", None)).n_bytes
    fits = sums_that_fit(WeightedSums(config, masks[:, :1].float()).n_bytes, budget)
    tallies = Tallies(config.n_forward, config.n_backward)
    # Few examples: keep each one's scores. Else the sums of as many subsets as fit, in each pass.
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
        tallies.add(
            sums.totals, part if one_pass else None, part.sum(0), find,
            quiet=options.get("quiet", True),
        )  # fmt: skip
    tallies.merge_processes()
    edges, of_nodes = (
        Votes.of(counts.numpy(), n_subsets, p_delete, alpha / (n if simultaneous else 1))
        for counts, n in ((tallies.edges, graph.n_edges), (tallies.nodes, graph.n_forward - 1))
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
    """The pruned circuit of some scores of a graph."""
    circuit: Graph = getattr(replace(graph, scores=scores), selection)(size, by=by)
    return circuit.prune()


def sums_that_fit(n_bytes: int, budget: int) -> int:
    """How many sums, of so many bytes each, fit in half of a budget, in every process."""
    return max(1, distributed.smallest(budget // 2 // n_bytes))


def draw_subsets(
    examples: Sequence[Example], n_subsets: int, p_delete: float, seed: int
) -> Bool[Tensor, "example subset"]:
    """Which examples are in which subset, each with probability 1 - p_delete."""
    rows = [random.random(n_subsets) >= p_delete for random in generators(examples, seed)]
    return torch.from_numpy(np.stack(rows))


class Tallies:
    """In how many subsets' circuits every edge and every node is.

    Attributes:
        edges: counts [n_forward, n_backward].
        nodes: counts of heads and MLPs [n_forward - 1].
    """

    def __init__(self, n_forward: int, n_backward: int) -> None:
        self.edges = torch.zeros(n_forward, n_backward, dtype=torch.long)
        self.nodes = torch.zeros(n_forward - 1, dtype=torch.long)

    def add(
        self,
        totals: Float[Tensor, "sum n_forward n_backward"],
        members: Bool[Tensor, "sum subset"] | None,
        sizes: Int[Tensor, " subset"],
        find: Find,
        *,
        quiet: bool = True,
    ) -> None:
        """Find the circuits of a process's share of the subsets, and count their edges and nodes.

        Args:
            totals: sums of scores.
            members: examples that make up a subset's; None: each is a subset's.
            sizes: examples in every subset; those without any have no circuit.
            find: a circuit from mean scores.
            quiet: whether to hide the progress bar.
        """
        shares = distributed.own_share([n for n, size in enumerate(sizes.tolist()) if size])
        n_chunk = max(1, CHUNK // (8 * totals[0].numel()))
        flat = totals.flatten(1)
        chunks = range(0, len(shares), n_chunk)
        for first in progress_bar(chunks, "circuits of subsets", quiet=quiet):
            chunk = list(shares[first : first + n_chunk])
            sums = flat[chunk] if members is None else members[:, chunk].to(flat.dtype).T @ flat
            means = sums / sizes[chunk, None]
            for scores in means.view(-1, *totals.shape[1:]):
                in_graph = find(scores).in_graph
                self.edges += in_graph
                # In a pruned circuit, every node that is in it sends.
                self.nodes += in_graph[1:].any(dim=1)

    def merge_processes(self) -> None:
        """Every process ends with the counts of all subsets."""
        distributed.sum_over_processes(self.edges)
        distributed.sum_over_processes(self.nodes)
