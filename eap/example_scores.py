"""Scores of a few edges on every example, beside the means that a graph holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eap.graph import Graph, GraphConfig
from eap.graph.numbering import edge_index


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """What `eap.attribute(..., per_example=True)` returns.

    Attributes:
        graph: of the means over examples, all edges.
        edges: names of the edges that were asked for, or of the best ones, best first.
        scores: of those edges on every example, in the data set's order; a column's mean is
            `graph.score(edge)`.
    """

    graph: Graph
    edges: tuple[str, ...]
    scores: Float[Tensor, "example edge"]

    def to_frame(self) -> pd.DataFrame:
        """A row per example, a column per edge."""
        frame = pd.DataFrame(self.scores.numpy(), columns=list(self.edges))
        return frame.rename_axis(index="example")


class KeepEdges:
    """Keeps the scores of some edges as they are made, an observer of `eap.attribute`."""

    def __init__(
        self, config: GraphConfig, edges: Sequence[str], n_examples: int, dtype: torch.dtype
    ) -> None:
        self.ends = [edge_index(config, edge) for edge in edges]
        self.n_forward = config.n_forward
        self.scores = torch.zeros(n_examples, len(edges), dtype=dtype)

    def add(
        self,
        rows: Sequence[int],
        senders: slice,
        receivers: Sequence[int],
        scores: Float[Tensor, "batch sender receiver"],
    ) -> None:
        """Keep what is asked for of a block."""
        row = {sender: at for at, sender in enumerate(range(self.n_forward)[senders])}
        column = {receiver: at for at, receiver in enumerate(receivers)}
        here = [k for k, (i, j) in enumerate(self.ends) if i in row and j in column]
        if here:
            at = [(row[i], column[j]) for i, j in (self.ends[k] for k in here)]
            found = scores[:, [i for i, _ in at], [j for _, j in at]]
            self.scores[torch.tensor(rows)[:, None], here] = found.detach().to(self.scores)
