"""Blocks of per-example scores, as scorers produce them, and observers of the blocks."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from eap.graph import GraphConfig
from eap.graph.numbering import edge_index
from eap.runtime import distributed


class ScoreBlock(NamedTuple):
    """Scores of the edges from some senders into some receivers, on every example of a batch.

    Attributes:
        senders: indices of the senders.
        receivers: indices of the receivers.
        scores: scores, 0 for pairs that are not edges; with an axis of spans if spans are scored.
    """

    senders: slice
    receivers: list[int]
    scores: Float[Tensor, "batch *span sender receiver"]


@runtime_checkable
class Observer(Protocol):
    """Object that receives every block of scores as soon as it is computed, such as a bootstrap."""

    def add(self, rows: Sequence[int], block: ScoreBlock) -> None:
        """Process a block; `rows` are the indices of its examples in the data set."""
        ...


class KeepEdges:
    """Observer that keeps the scores of chosen edges.

    Attributes:
        scores: scores of the edges on every example, on the device of the computation.
    """

    def __init__(
        self, config: GraphConfig, edges: Sequence[str], scores: Float[Tensor, "example edge"]
    ) -> None:
        self._ends = [edge_index(config, edge) for edge in edges]
        self._n_forward = config.n_forward
        self.scores = scores

    def add(self, rows: Sequence[int], block: ScoreBlock) -> None:
        """Keep the chosen edges of a block."""
        row = {sender: at for at, sender in enumerate(range(self._n_forward)[block.senders])}
        column = {receiver: at for at, receiver in enumerate(block.receivers)}
        present = [k for k, (i, j) in enumerate(self._ends) if i in row and j in column]
        if present:
            senders = [row[self._ends[k][0]] for k in present]
            receivers = [column[self._ends[k][1]] for k in present]
            scores = block.scores[:, senders, receivers].detach()
            self.scores[torch.tensor(rows)[:, None], present] = scores.to(self.scores)


class WeightedSums:
    """Observer that accumulates weighted sums of the examples' scores.

    Attributes:
        weights: weight of every example in every sum.
        n_spans: number of spans of the prompt, if spans are scored.
    """

    def __init__(
        self,
        config: GraphConfig,
        weights: Float[Tensor, "example sum"],
        *,
        n_spans: int | None = None,
    ) -> None:
        self.weights = weights
        spans = () if n_spans is None else (n_spans,)
        self._shape = (weights.shape[1], *spans, config.n_forward, config.n_backward)
        self._widest = config.n_heads + 2 * config.n_kv_receivers + 1
        # There is one set of sums per device, so that blocks need not be moved.
        self._sums: dict[torch.device, Tensor] = {}

    def add(self, rows: Sequence[int], block: ScoreBlock) -> None:
        """Add the scores of a block; `rows` are the indices of its examples in the data set."""
        scores = block.scores
        weights = self.weights[list(rows)].to(scores.device, scores.dtype)
        weighted = (weights.T @ scores.detach().flatten(1)).unflatten(1, scores.shape[1:])
        if scores.device not in self._sums:
            dtype = torch.float32 if scores.device.type == "mps" else torch.float64
            self._sums[scores.device] = torch.zeros(self._shape, dtype=dtype, device=scores.device)
        sums = self._sums[scores.device]
        columns = torch.as_tensor(block.receivers, device=scores.device)
        sums[..., block.senders, columns] += weighted.to(sums.dtype)

    @property
    def n_bytes(self) -> int:
        """Memory of the sums, and of the tensors that are added to them at a time."""
        n_sums, *_, n_forward, n_backward = self._shape
        spans = prod(self._shape[1:-2])
        # The sums and, for one layer's block, the weighted scores, and what is read and written.
        return n_sums * spans * n_forward * (8 * n_backward + 32 * self._widest)

    def merge_processes(self) -> None:
        """Add up the sums of all processes, in every process."""
        self._sums = {torch.device("cpu"): distributed.sum_over_processes(self.totals)}

    @property
    def totals(self) -> Float[Tensor, "sum *span n_forward n_backward"]:
        """Sums over the examples so far, on the CPU."""
        if list(self._sums) == [torch.device("cpu")]:
            return self._sums[torch.device("cpu")]
        totals = torch.zeros(self._shape, dtype=torch.float64)
        for sums in self._sums.values():
            totals += sums.cpu()
        return totals


def summed(parts: Iterable[Iterable[ScoreBlock]]) -> list[ScoreBlock]:
    """Sums of the blocks that have the same edges in several parts."""
    total: dict[tuple[int, int, int], ScoreBlock] = {}
    for part in parts:
        for block in part:
            key = (block.senders.start, block.senders.stop, block.receivers[0])
            if key in total:
                total[key].scores.add_(block.scores)
            else:
                total[key] = block
    return list(total.values())


def to_nodes(config: GraphConfig, blocks: Iterable[ScoreBlock]) -> ScoreBlock:
    """Sums of every sender's scores over its edges, as one block with one receiver, number 0."""
    total: Tensor | None = None
    for block in blocks:
        if total is None:
            total = block.scores.new_zeros(*block.scores.shape[:-2], config.n_forward)
        total[..., block.senders] += block.scores.sum(-1)
    assert total is not None
    return ScoreBlock(slice(0, config.n_forward), [0], total[..., None])
