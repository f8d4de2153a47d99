"""Layout of a batch's positions in spans, in pieces that are slices of positions.

Examples of a batch whose spans begin at the same positions form a group; a piece is one span of one
group. Scores without spans use a single piece with all positions of all examples.
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
    """Positions of one span in some examples of a batch.

    Attributes:
        span: number of the span.
        rows: examples of the batch.
        positions: positions, counted from the first position of the batch.
    """

    span: int
    rows: slice | list[int]
    positions: slice


@dataclass(frozen=True)
class SpanLayout:
    """Pieces of a batch.

    Attributes:
        n_spans: number of spans, some of which may have no piece.
        everywhere: pieces for tensors with all positions that the batch computes.
        at_last: pieces for tensors with the last token as their only position.
    """

    n_spans: int
    everywhere: list[Piece]
    at_last: list[Piece]

    @classmethod
    def of(cls, starts: Int[Tensor, "batch span"], cache: PrefixCache) -> "SpanLayout":
        """Layout of a batch whose spans begin at the given tokens of the prompts.

        Padding belongs to the last span, where nothing changes.
        """
        last = (cache.start + cache.last.to(starts.device))[:, None]
        everywhere = _pieces((starts - cache.start).tolist(), cache.n_positions)
        return cls(starts.shape[1], everywhere, _pieces((starts - last).tolist(), 1))

    def has(self, span: int) -> bool:
        """Whether the batch computes a position of the span."""
        return any(piece.span == span for piece in self.everywhere)

    def at_span(
        self,
        span: int,
        inside: Float[Tensor, "*sender batch pos d_model"],
        outside: Float[Tensor, "*sender batch pos d_model"],
    ) -> Float[Tensor, "*sender batch pos d_model"]:
        """Values of `inside` at the positions of one span, and of `outside` at all others."""
        return _placed(span, inside, outside, self.everywhere)

    def only(self, changes: SenderOutputs, span: int) -> SenderOutputs:
        """Changes of the senders at the positions of one span, and zero elsewhere."""
        everywhere, at_last = changes.everywhere, changes.at_last
        return SenderOutputs(
            _placed(span, everywhere, torch.zeros_like(everywhere), self.everywhere),
            _placed(span, at_last, torch.zeros_like(at_last), self.at_last),
        )

    def spread(
        self, x: Float[Tensor, "batch query"], pieces: Sequence[Piece]
    ) -> Float[Tensor, "batch span query"]:
        """Values at the positions of pieces, each in the row of its own span; 0 in other spans."""
        spread = x.new_zeros(len(x), self.n_spans, x.shape[1])
        for piece in pieces:
            spread[piece.rows, piece.span, piece.positions] = x[piece.rows, piece.positions]
        return spread


_ALL = [Piece(0, slice(None), slice(None))]
WHOLE = SpanLayout(1, _ALL, _ALL)
"""All positions of all examples as one span."""


def mix(
    weights: Float[Tensor, "span n_receivers n_senders"],
    values: Float[Tensor, "n_senders batch pos d_model"],
    pieces: Sequence[Piece],
) -> Float[Tensor, "n_receivers batch pos d_model"]:
    """Weighted sums over senders for every receiver, with the weights of each span in its place."""
    n_receivers = weights.shape[1]
    if len(pieces) == 1:  # all positions
        flat = weights[pieces[0].span] @ values.flatten(1)
        return flat.view(n_receivers, *values.shape[1:])
    mixed = values.new_empty(n_receivers, *values.shape[1:])
    for piece in pieces:
        part = values[:, piece.rows, piece.positions]
        flat = weights[piece.span] @ part.flatten(1)
        mixed[:, piece.rows, piece.positions] = flat.view(n_receivers, *part.shape[1:])
    return mixed


def _placed(span: int, inside: Tensor, outside: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Values of `inside` at the positions of one span's pieces, and of `outside` elsewhere."""
    placed = outside.clone()
    for piece in pieces:
        if piece.span == span:
            place = (..., piece.rows, piece.positions, slice(None))
            placed[place] = inside[place]
    return placed


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
