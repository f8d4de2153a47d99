"""Parts of a sender's output: hidden units, channels, coordinates, or a basis of your own.

A basis writes the output of a sender u at every position as a sum over its parts,

    a_u(p) = sum over j of c_j(p) w_j + rest(p),

with fixed directions w_j, and coefficients c_j that depend on the run. Scores, circuits and figures
of parts use only the interface `Parts`; features of a transcoder or a sparse autoencoder
(`eap.parts.features`) are one more basis with this interface.

If a norm follows the MLP or the attention (Gemma 2 and 3), its scale counts as a constant, fixed at
its value in the given run: coefficients include the scale, and directions the weight of the norm.
"""

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
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
    """Activations of one sender in one run, at the positions that the sender was run at.

    Attributes:
        sender: index of the sender.
        block: layer of the sender; None for the input.
        mlp_in: input of an MLP, before the norm; None for other senders.
        scaled_z: z of a head, with the scale of a norm that follows; None for other senders.
        head: number of the head in its layer.
        sent: output that is added to the residual stream; None for a head (see `output`).
    """

    sender: int
    block: Block | None
    mlp_in: Float[Tensor, "batch query d_model"] | None = None
    scaled_z: Float[Tensor, "batch query d_head"] | None = None
    head: int = 0
    sent: Float[Tensor, "batch query d_model"] | None = None

    @property
    def n_queries(self) -> int:
        """Number of positions that the sender was run at."""
        return next(x.shape[1] for x in (self.sent, self.scaled_z) if x is not None)

    @cached_property
    def output(self) -> Float[Tensor, "batch query d_model"]:
        """Output that is added to the residual stream; for a head, without the layer's biases."""
        if self.sent is not None:
            return self.sent
        assert self.block is not None
        assert self.scaled_z is not None
        W = self.block.head_output_weights[self.head]
        return (self.scaled_z.to(W.dtype) @ W).to(self.scaled_z)


class Parts(Protocol):
    """Interface of a basis of senders' outputs; write an object with its members for your own."""

    @property
    def kind(self) -> str:
        """Name of the kind of parts in provenance and figures, such as 'hidden units'."""
        ...

    @property
    def rest(self) -> str:
        """Name of the remainder of a sender's output: 'rest', or 'error' for features."""
        ...

    def count(self, model: Model, sender: int) -> int:
        """Number of parts of a sender; 0: the basis does not split it."""
        ...

    def name(self, number: int) -> str:
        """Short name of a part of a sender, such as 'u17'; the full name is 'm3.u17'."""
        ...

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """Coefficients c of the parts of the sender's output in a run."""
        ...

    def directions(self, model: Model, sender: int) -> Float[Tensor, "n d_model"] | None:
        """Directions w of the parts in the residual stream; None: the unit vectors."""
        ...


@dataclass(frozen=True)
class HiddenUnits:
    """Hidden units of MLPs: activations (gated: act(gate) * in), with the rows of W_out."""

    kind: str = "hidden units"
    rest: str = "rest"

    def count(self, model: Model, sender: int) -> int:
        """Width of an MLP; 0 for other senders."""
        layer, head = place_of(model.config, sender)
        return model.blocks[layer].mlp.W_out.shape[1] if layer >= 0 and head is None else 0

    def name(self, number: int) -> str:
        """Short name of a unit, such as `u17`."""
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
    """Channels of heads: the coordinates of z, with the rows of the head's W_O."""

    kind: str = "channels"
    rest: str = "rest"

    def count(self, model: Model, sender: int) -> int:
        """Width d_head of a head; 0 for other senders."""
        layer, head = place_of(model.config, sender)
        return 0 if head is None else model.blocks[layer].attention.W_O.shape[1]

    def name(self, number: int) -> str:
        """Short name of a channel, such as `c17`."""
        return f"c{number}"

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """Coordinates of z, times the scale of a norm after attention."""
        assert run.scaled_z is not None
        return run.scaled_z

    def directions(self, model: Model, sender: int) -> Float[Tensor, "n d_model"]:
        """Rows of the head's W_O, with the weight of a norm after attention."""
        layer, head = place_of(model.config, sender)
        return model.blocks[layer].head_output_weights[head]


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of the residual stream, for every sender; EAP-IG and MIB call them neurons."""

    kind: str = "coordinates"
    rest: str = "rest"

    def count(self, model: Model, sender: int) -> int:
        """Width d_model of the residual stream."""
        return model.config.d_model

    def name(self, number: int) -> str:
        """Short name of a coordinate, such as `d17`."""
        return f"d{number}"

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """Output of the sender."""
        return run.output

    def directions(self, model: Model, sender: int) -> None:
        """None, which stands for the unit vectors."""
        return


PARTS: dict[str, Callable[[], Parts]] = {
    "hidden units": HiddenUnits,
    "channels": Channels,
    "coordinates": Coordinates,
}
"""Bases that need no file, by name."""


def get_parts(parts: str | Parts) -> Parts:
    """Look up a basis by name; an object with the members of `Parts` is returned unchanged."""
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
    """Layer and head of a sender; the input is in layer -1, and an MLP has no head."""
    layer, within = divmod(sender - 1, config.n_heads + 1)
    return layer, None if sender == 0 or within == config.n_heads else within


# ---- numbering of parts --------------------------------------------------------------------------


@dataclass(frozen=True)
class PartLayout:
    """Numbering of the parts of some senders, sender by sender; a sender's last part is its rest.

    Attributes:
        senders: indices of the senders in the graph.
        names: names of the senders.
        starts: number of each sender's first part, followed by the number of all parts.
        n_forward: number of all senders of the model.
    """

    senders: tuple[int, ...]
    names: tuple[str, ...]
    starts: tuple[int, ...]
    n_forward: int

    @classmethod
    def of(cls, model: Model, parts: Parts, senders: Sequence[str] | None = None) -> "PartLayout":
        """Make the layout of a basis.

        Args:
            model: model of the senders.
            parts: basis to lay out.
            senders: names of the senders; None: all senders that the basis splits.

        Raises:
            UserError: a sender that the model does not have, or that the basis does not split.
        """
        index = sender_index(model.config)
        for name in () if senders is None else senders:
            if name not in index:
                raise UserError(f"{model.name} has no sender {quoted(str(name), 40)}")
            if not parts.count(model, index[name]):
                raise UserError(f"{name} has no {parts.kind}")
        wanted = index if senders is None else set(senders)
        counts = {name: parts.count(model, i) for name, i in index.items() if name in wanted}
        names = tuple(name for name, n in counts.items() if n)
        if not names:
            raise UserError(f"no sender of {model.name} has {parts.kind}")
        starts = accumulate((counts[name] + 1 for name in names), initial=0)
        numbers = tuple(index[name] for name in names)
        return cls(numbers, names, tuple(starts), model.config.n_forward)

    def __len__(self) -> int:
        """Number of all parts, including the rests."""
        return self.starts[-1]

    def of_sender(self, sender: int | str) -> slice:
        """Numbers of a sender's parts, with the rest last."""
        senders = self.names if isinstance(sender, str) else self.senders
        if sender not in senders:
            raise UserError(f"{quoted(str(sender), 40)} is not among the senders that are split")
        at = senders.index(sender)
        return slice(self.starts[at], self.starts[at + 1])

    def locate(self, number: int) -> tuple[int, int]:
        """Index of the sender in `senders`, and number of the part within the sender."""
        at = bisect(self.starts, number) - 1
        return at, number - self.starts[at]

    def part_name(self, parts: Parts, number: int) -> str:
        """Full name of a part: `m3.u17`, `a0.h1.c5`, `m3.rest`."""
        at, within = self.locate(number)
        last = self.starts[at + 1] - self.starts[at] - 1
        return f"{self.names[at]}.{parts.rest if within == last else parts.name(within)}"


@dataclass(frozen=True, eq=False)
class PartCircuit:
    """Circuit in which some senders keep only some of their parts.

    Such a sender sends the activation of its ablated edges, plus the changes of the kept parts. If
    all parts and the rest are kept, it sends its own output; if none are, it is ablated.

    Attributes:
        graph: graph with the edges of the circuit.
        parts: basis of the parts, or its name.
        kept: masks by name of the sender, True for the parts that are kept, with the rest last;
            senders without a mask keep all parts. In a circuit with spans, a mask may have a row
            for each span.

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
        """Number of kept parts, including rests; with masks by span, of pairs of part and span."""
        return sum(int(mask.sum()) for mask in self.kept.values())

    def masks(self, model: Model) -> dict[int, Bool[Tensor, "_span _part"]]:
        """Checked masks by index of the sender, with one row if they are the same at all spans.

        Raises:
            UserError: a sender that the basis does not split, or a mask of another shape or dtype.
        """
        if not self.kept:
            return {}
        basis, index = get_parts(self.parts), sender_index(model.config)
        PartLayout.of(model, basis, list(self.kept))  # checks the names
        spans = self.graph.span_names
        for name, mask in self.kept.items():
            n = basis.count(model, index[name]) + 1
            shapes = [(n,), (len(spans), n)] if spans else [(n,)]
            if not isinstance(mask, Tensor):
                raise UserError(f"the mask of {name} is {quoted(mask)}; it must be a tensor")
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
    scaled_z: "dict[int, Tensor] | None" = None,
) -> SenderRun:
    """Activations of one sender, from the layer traces of a run.

    Args:
        model: model that was run.
        sender: index of the sender.
        embedding: output of the input node.
        trace: traces of the layers.
        scaled_z: cache of the scaled z of each layer, for several calls on one run.
    """
    layer, head = place_of(model.config, sender)
    if layer < 0:
        return SenderRun(sender, None, sent=embedding)
    block, run = model.blocks[layer], trace[layer]
    if head is None:
        return SenderRun(sender, block, mlp_in=run.mlp_in, sent=run.mlp_out)
    scaled_z = {} if scaled_z is None else scaled_z
    if layer not in scaled_z:
        scaled_z[layer] = block.scaled_z(run.z, run.attention_raw)
    return SenderRun(sender, block, scaled_z=scaled_z[layer][:, :, head].to(run.x), head=head)
