"""Which positions of a batch are in which span, cut so that every piece is one slice of positions.

Examples of a batch whose spans begin at the same positions are a group; a piece is one span of one
group. The plain score, without spans, is the case of one piece: all positions of all examples.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.model.prefix import PrefixCache
from eap.model.runs import SenderOutputs


@dataclass(frozen=True)
class Piece:
    """The positions of one span in some examples of a batch.

    Attributes:
        span: number of the span.
        rows: examples of the batch.
        positions: counted from the batch's first one.
    """

    span: int
    rows: slice | list[int]
    positions: slice


@dataclass(frozen=True)
class SpanLayout:
    """The pieces of a batch.

    Attributes:
        n_spans: number of spans there are; some may have no piece.
        everywhere: outputs of all positions that the batch computes.
        at_last: outputs of the last tokens alone, as the one position of tensors that have no
            other.
    """

    n_spans: int
    everywhere: list[Piece]
    at_last: list[Piece]

    @classmethod
    def of(cls, starts: Int[Tensor, "batch span"], cache: PrefixCache) -> "SpanLayout":
        """Of a batch whose spans begin at some tokens of the prompts.

        Padding belongs to the last span, where nothing changes.
        """
        last = (cache.start + cache.last.to(starts.device))[:, None]
        everywhere = _pieces((starts - cache.start).tolist(), cache.n_positions)
        return cls(starts.shape[1], everywhere, _pieces((starts - last).tolist(), 1))

    def only(self, changes: SenderOutputs, span: int) -> SenderOutputs:
        """What senders changed at the positions of one span, and nothing elsewhere."""

        def kept(
            D: Float[Tensor, "sender batch query d_model"], pieces: Sequence[Piece]
        ) -> Float[Tensor, "sender batch query d_model"]:
            alone = torch.zeros_like(D)
            for piece in pieces:
                if piece.span == span:
                    place = (slice(None), piece.rows, piece.positions)
                    alone[place] = D[place]
            return alone

        return SenderOutputs(
            kept(changes.everywhere, self.everywhere), kept(changes.at_last, self.at_last)
        )

    def spread(self, x: Float[Tensor, "batch pos"]) -> Float[Tensor, "batch span pos"]:
        """Values at positions, each in its own span and 0 in the others."""
        spread = x.new_zeros(len(x), self.n_spans, x.shape[1])
        for piece in self.everywhere:
            spread[piece.rows, piece.span, piece.positions] = x[piece.rows, piece.positions]
        return spread


_ALL = [Piece(0, slice(None), slice(None))]
WHOLE = SpanLayout(1, _ALL, _ALL)
"""All positions of all examples as one span."""


def _pieces(starts: Sequence[Sequence[int]], n_positions: int) -> list[Piece]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, of_row in enumerate(starts):
        bounds = (min(max(start, 0), n_positions) for start in of_row)
        groups[(*bounds, n_positions)].append(row)
    return [
        Piece(span, rows if len(groups) > 1 else slice(None), slice(start, stop))
        for bounds, rows in groups.items()
        for span, (start, stop) in enumerate(pairwise(bounds))
        if start < stop
    ]
