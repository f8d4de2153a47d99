"""What a sender's output is made of: hidden units, channels, coordinates, or a basis of one's own.

A basis writes the output of a sender u at every position as a sum over its parts,

    a_u(p) = sum over j of c_j(p) w_j + rest(p),

with directions w_j that are fixed and coefficients c_j that a run makes. Scores, circuits and
pictures of parts know no more than that: `Parts` is the seam, and features of a transcoder or a
sparse autoencoder (`eap.parts.features`) are another row of the same table.

Where a norm follows the MLP or the attention (Gemma 2 and 3), its scale counts as a constant, the
one that it has in the run at hand: coefficients include the scale, directions the norm's weight.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eap.graph import Graph, GraphConfig
from eap.graph.numbering import sender_index
from eap.model.blocks import Block
from eap.model.model import Model
from eap.model.runs import LayerTrace
from eap.runtime.errors import UserError, quoted
from eap.runtime.kinds import shown


@dataclass(frozen=True, eq=False)
class SenderRun:
    """What one sender computed in one run, at the positions `query` that it was run at.

    Attributes:
        sender: index of the sender.
        block: layer of the sender; None for the input.
        mlp_in: what an MLP reads, before the norm; None for other senders.
        share: a head's z, with the scale of a norm that follows; None for other senders.
        head: the head's number in its layer.
        sent: what the sender adds to the residual stream; None for a head (see `output`).
    """

    sender: int
    block: Block | None
    mlp_in: Float[Tensor, "batch query d_model"] | None = None
    share: Float[Tensor, "batch query d_head"] | None = None
    head: int = 0
    sent: Float[Tensor, "batch query d_model"] | None = None

    @property
    def n_queries(self) -> int:
        """How many positions the sender was run at."""
        return next(x.shape[1] for x in (self.sent, self.share) if x is not None)

    @cached_property
    def output(self) -> Float[Tensor, "batch query d_model"]:
        """What the sender adds to the residual stream; of a head without the layer's biases."""
        if self.sent is not None:
            return self.sent
        assert self.block is not None
        assert self.share is not None
        W = self.block.head_output_weights[self.head]
        return (self.share.to(W.dtype) @ W).to(self.share)


class Parts(Protocol):
    """A basis of senders' outputs. One of your own is an object with these members."""

    @property
    def kind(self) -> str:
        """What the parts are, as provenance and figures have it: 'hidden units'."""
        ...

    @property
    def rest(self) -> str:
        """Name of what a sender's output has beside its parts: 'rest', or 'error' of features."""
        ...

    def count(self, model: Model, sender: int) -> int:
        """How many parts a sender has; 0: the basis does not split it."""
        ...

    def name(self, number: int) -> str:
        """Short name of a sender's part: 'u17'. The whole name is 'm3.u17'."""
        ...

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """c: how much of each part the sender's output has in a run."""
        ...

    def directions(self, model: Model, sender: int) -> Float[Tensor, "n d_model"] | None:
        """w: what one unit of each part adds to the residual stream; None: the unit vectors."""
        ...


@dataclass(frozen=True)
class HiddenUnits:
    """Hidden units of the MLPs: activations (gated: act(gate) * in) and the rows of W_out."""

    kind: str = "hidden units"
    rest: str = "rest"

    def count(self, model: Model, sender: int) -> int:
        """The width of an MLP."""
        layer, head = place_of(model.config, sender)
        return model.blocks[layer].mlp.W_out.shape[1] if layer >= 0 and head is None else 0

    def name(self, number: int) -> str:
        """`u17`."""
        return f"u{number}"

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """Activations, times the scale of a norm after the MLP."""
        assert run.block is not None
        assert run.mlp_in is not None
        block, mlp = run.block, run.block.mlp
        hidden = mlp.hidden(block.ln2(run.mlp_in))
        if block.post_mlp_norm is not None:
            raw = torch.nn.functional.linear(hidden, mlp.W_out, mlp.b_out).to(run.mlp_in)
            hidden = hidden * block.post_mlp_norm.scale(raw)
        return hidden.to(run.mlp_in.dtype)

    def directions(self, model: Model, sender: int) -> Float[Tensor, "n d_model"]:
        """Rows of W_out, with the weight of a norm after the MLP."""
        block = model.blocks[place_of(model.config, sender)[0]]
        W, norm = block.mlp.W_out.T, block.post_mlp_norm
        if norm is None:
            return W
        W = norm.centre(W)
        return W if norm.weight is None else W * norm.weight


@dataclass(frozen=True)
class Channels:
    """Channels of the heads: z and the rows of each head's W_O."""

    kind: str = "channels"
    rest: str = "rest"

    def count(self, model: Model, sender: int) -> int:
        """d_head."""
        layer, head = place_of(model.config, sender)
        return 0 if head is None else model.blocks[layer].attention.W_O.shape[1]

    def name(self, number: int) -> str:
        """`c17`."""
        return f"c{number}"

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """Z, times the scale of a norm after attention."""
        assert run.share is not None
        return run.share

    def directions(self, model: Model, sender: int) -> Float[Tensor, "n d_model"]:
        """Rows of the head's W_O, with the weight of a norm after attention."""
        layer, head = place_of(model.config, sender)
        return model.blocks[layer].head_output_weights[head]


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of the residual stream, of every sender: what EAP-IG and MIB call neurons."""

    kind: str = "coordinates"
    rest: str = "rest"

    def count(self, model: Model, sender: int) -> int:
        """d_model."""
        return model.config.d_model

    def name(self, number: int) -> str:
        """`d17`."""
        return f"d{number}"

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """What the sender sends."""
        return run.output

    def directions(self, model: Model, sender: int) -> None:
        """The unit vectors."""
        return


PARTS: dict[str, Callable[[], Parts]] = {
    "hidden units": HiddenUnits,
    "channels": Channels,
    "coordinates": Coordinates,
}
"""Bases that need no file, by name."""


def get_parts(parts: str | Parts) -> Parts:
    """A basis by name (an object with the members of `Parts` is returned as it is)."""
    if not isinstance(parts, str):
        if isinstance(parts, type) or not callable(getattr(parts, "coefficients", None)):
            raise UserError(
                f"parts is {shown(parts)}; it must be {' or '.join(map(repr, PARTS))}, features "
                "from eap.load_features, or an object with the members of eap.parts.Parts"
            )
        return parts
    if parts not in PARTS:
        raise UserError(
            f"unknown parts {quoted(parts, 40)}; known are {', '.join(PARTS)}, or features from "
            "eap.load_features"
        )
    return PARTS[parts]()


def place_of(config: GraphConfig, sender: int) -> tuple[int, int | None]:
    """Layer and head of a sender: the input is in layer -1, an MLP has no head."""
    layer, within = divmod(sender - 1, config.n_heads + 1)
    return layer, None if sender == 0 or within == config.n_heads else within


# ---- which parts there are -----------------------------------------------------------------------


@dataclass(frozen=True)
class PartLayout:
    """Numbers of the parts of some senders, one after the other; each sender's rest is its last.

    Attributes:
        senders: indices of the senders in the graph.
        names: names of the senders.
        starts: number of each sender's first part, and at the end the number of all parts.
    """

    senders: tuple[int, ...]
    names: tuple[str, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, parts: Parts, senders: Sequence[str] | None = None) -> "PartLayout":
        """The layout of a basis.

        Args:
            model: model of the senders.
            parts: the basis.
            senders: names of senders; None: all that the basis splits.

        Raises:
            UserError: the model has no such sender, or the basis does not split it.
        """
        index = sender_index(model.config)
        for name in () if senders is None else senders:
            if name not in index:
                raise UserError(f"{model.name} has no sender {quoted(str(name), 40)}")
            if not parts.count(model, index[name]):
                raise UserError(f"{name} has no {parts.kind}")
        wanted = index if senders is None else dict.fromkeys(senders)
        split = [(i, name) for name, i in index.items() if name in wanted]
        counts = [(i, name, parts.count(model, i)) for i, name in split]
        counts = [row for row in counts if row[2]]
        if not counts:
            raise UserError(f"no sender of {model.name} has {parts.kind}")
        starts = [0]
        for _, _, n in counts:
            starts.append(starts[-1] + n + 1)
        return cls(tuple(row[0] for row in counts), tuple(row[1] for row in counts), tuple(starts))

    def __len__(self) -> int:
        """Number of all parts, the rests included."""
        return self.starts[-1]

    def of_sender(self, sender: int | str) -> slice:
        """The numbers of a sender's parts, its rest last."""
        senders = self.names if isinstance(sender, str) else self.senders
        if sender not in senders:
            raise UserError(f"{quoted(str(sender), 40)} is not among the senders that are split")
        at = senders.index(sender)
        return slice(self.starts[at], self.starts[at + 1])

    def locate(self, number: int) -> tuple[int, int]:
        """Place of the sender among `senders`, and the part's number within it."""
        at = int(torch.searchsorted(torch.tensor(self.starts), number, right=True)) - 1
        return at, number - self.starts[at]

    def part_name(self, parts: Parts, number: int) -> str:
        """A part's whole name: `m3.u17`, `a0.h1.c5`, `m3.rest`."""
        at, within = self.locate(number)
        last = self.starts[at + 1] - self.starts[at] - 1
        return f"{self.names[at]}.{parts.rest if within == last else parts.name(within)}"


@dataclass(frozen=True, eq=False)
class PartCircuit:
    """A circuit some of whose senders keep only some of their parts.

    What such a sender sends is what its ablated edges carry, and the changes of the parts that are
    kept. With all parts and the rest kept it sends what it computes; with none, it is ablated.

    Attributes:
        graph: the circuit's edges.
        parts: the basis, or its name.
        kept: masks by sender's name, True for the parts that are kept, the rest last; other senders
            keep all parts. In a circuit at spans a mask may have a row for each span.

    Example:
        >>> kept = eap.part_scores(model, dataset, method="EAP").keep(50)
        >>> small = eap.PartCircuit(circuit, "hidden units", kept)
        >>> result = eap.faithfulness(model, small, dataset)
    """

    graph: Graph
    parts: Parts | str
    kept: Mapping[str, Tensor]

    def count_edges(self) -> int:
        """Number of edges of the circuit."""
        return self.graph.count_edges()

    @property
    def n_parts(self) -> int:
        """How many parts are kept, rests included; with masks by span, a part at every span."""
        return sum(int(mask.sum()) for mask in self.kept.values())

    def masks(self, model: Model) -> dict[int, Bool[Tensor, "_span _part"]]:
        """`kept` by index of the sender, checked; one row where it is the same at all spans.

        Raises:
            UserError: a sender that the basis does not split, or a mask of another length or kind.
        """
        basis, index = get_parts(self.parts), sender_index(model.config)
        layout = PartLayout.of(model, basis, list(self.kept)) if self.kept else None
        spans = self.graph.span_names
        for name, mask in self.kept.items():
            n = 0 if layout is None else len(range(len(layout))[layout.of_sender(name)])
            shapes = [(n,), (len(spans), n)] if spans else [(n,)]
            if mask.dtype != torch.bool or mask.shape not in shapes:
                by_span = f", or a row of them for each of {len(spans)} spans" if spans else ""
                raise UserError(
                    f"{name} keeps parts by a mask of {n} truth values (its {basis.kind}, and the "
                    f"rest last{by_span}), not {mask.dtype} of shape {list(mask.shape)}"
                )
        return {index[name]: mask.view(-1, mask.shape[-1]) for name, mask in self.kept.items()}


# ---- senders of a run ----------------------------------------------------------------------------


def sender_run(
    model: Model,
    sender: int,
    embedding: Float[Tensor, "batch pos d_model"],
    trace: Sequence[LayerTrace],
    shares: "dict[int, Tensor] | None" = None,
) -> SenderRun:
    """What a sender computed in a run whose layers are traced.

    Args:
        model: model that was run.
        sender: index of the sender.
        embedding: what the input sent.
        trace: the run's layers.
        shares: keeps what a layer's heads share from one call of a run to the next.
    """
    layer, head = place_of(model.config, sender)
    if layer < 0:
        return SenderRun(sender, None, sent=embedding)
    block, run = model.blocks[layer], trace[layer]
    if head is None:
        return SenderRun(sender, block, mlp_in=run.mlp_in, sent=run.mlp_out)
    shares = {} if shares is None else shares
    if layer not in shares:
        shares[layer] = block.head_shares(run.z, run.attention_raw)
    return SenderRun(sender, block, share=shares[layer][:, :, head].to(run.x), head=head)
