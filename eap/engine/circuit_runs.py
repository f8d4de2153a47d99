"""Runs of circuits: only the nodes of a circuit, on top of the model with every edge ablated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.ablation import AblatedCoefficients
from eap.engine.prepared import PreparedBatch
from eap.engine.span_layout import WHOLE, Piece, mix
from eap.graph import Graph, GraphConfig
from eap.model.held_attention import HeldAttention
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.parts.basis import Parts, SenderRun


class AblatedHeads(NamedTuple):
    """Heads of one layer with all edges into them ablated, as circuits need them.

    Attributes:
        held: queries, keys and values, in the form that attention uses.
        scaled_z: contribution of each head, before `W_O`.
    """

    held: HeldAttention
    scaled_z: Float[Tensor, "batch query n_heads d_head"]


def ablated_heads(model: Model, batch: PreparedBatch) -> list[AblatedHeads]:
    """Heads of every layer in the ablated run of a batch, from which runs of circuits start."""
    return [
        AblatedHeads(
            HeldAttention.of(model, layer, trace, batch.cache),
            model.blocks[layer].scaled_z(trace.z, trace.attention_raw),
        )
        for layer, trace in enumerate(batch.ablated_run.trace)
    ]


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """Nodes of a layer that a circuit runs.

    `*_edges` are matrices [receiver, active sender] of zeros and ones, one for each span.

    Attributes:
        receivers: heads (or key/value heads) with edges, by kind ('q', 'k', 'v').
        attention_edges: edges into these receivers, in the same order.
        changed: heads that read one of these receivers.
        sends: heads that are active senders.
        first_sender: number of the first of these heads among the active senders.
        mlp_edges: edges into the MLP; None if the MLP has no edge or does not send.
        mlp_sender: number of the MLP among the active senders.
    """

    receivers: dict[str, Int[Tensor, " n"]]
    attention_edges: Float[Tensor, "span n_receivers n_senders"]
    changed: Int[Tensor, " n_changed"]
    sends: Int[Tensor, " n_sends"]
    first_sender: int
    mlp_edges: Float[Tensor, "span 1 n_mlp_senders"] | None
    mlp_sender: int


@dataclass(frozen=True, eq=False)
class KeptParts:
    """Parts of senders that a circuit keeps.

    Attributes:
        parts: basis of the parts.
        masks: mask of the kept parts by sender, with the rest last, in one row or in one row per
            span; senders without a mask keep all parts.
        ablated: function that gives the coefficients of ablated parts.
    """

    parts: Parts
    masks: Mapping[int, Bool[Tensor, "_span _part"]]
    ablated: AblatedCoefficients

    def change(
        self,
        model: Model,
        run: SenderRun,
        base: SenderRun,
        whole: Float[Tensor, "batch query d_model"],
        cache: PrefixCache,
        pieces: Sequence[Piece],
    ) -> Float[Tensor, "batch query d_model"]:
        """Output of a sender, minus the activation that its ablated edges carry.

        Args:
            model: model that is run.
            run: activations of the sender in the circuit.
            base: activations of the sender when everything is ablated.
            whole: change of the output if all parts were kept.
            cache: cache of the batch's prefix.
            pieces: positions of each span, for masks with a row for each.
        """
        masks = self.masks[run.sender]
        if masks.all() or not masks.any():
            return whole if masks.any() else torch.zeros_like(whole)
        c = self.parts.coefficients(model, run)
        moved = c - self.ablated(base, cache).to(c.device)
        W = self.parts.directions(model, run.sender)
        kept = torch.empty_like(whole)
        for piece in pieces if len(masks) > 1 else WHOLE.everywhere:
            place = piece.rows, piece.positions
            kept[place] = _kept_of(masks[piece.span].cpu(), moved[place], W, whole[place])
        return kept


def _kept_of(
    mask: Bool[Tensor, " _part"],
    moved: Float[Tensor, "batch query n"],
    W: Float[Tensor, "n d_model"] | None,
    whole: Float[Tensor, "batch query d_model"],
) -> Float[Tensor, "batch query d_model"]:
    """Part of a sender's change that comes from the parts in a mask."""
    # Sum the smaller number of parts: if the rest is kept, subtract those that are not.
    rest = bool(mask[-1])
    summed = (~mask[:-1] if rest else mask[:-1]).nonzero().flatten()
    if W is None:
        kept = torch.zeros_like(moved)
        kept[..., summed] = moved[..., summed]
    else:
        kept = moved[..., summed] @ W[summed].to(moved)
    kept = kept.to(whole)  # the layer may be on another device
    return whole - kept if rest else kept


@dataclass(frozen=True, eq=False)
class CircuitPlan:
    """Plan of how a circuit is run.

    Attributes:
        config: shape of the graph.
        has_spans: whether the circuit's edges are at spans of the prompt; if not, they are at all
            positions, which counts as one span.
        active: mask of the nodes that are run: the input, and all nodes that send.
        layers: plan of each layer.
        logits_edges: edges into the logits, in the form of `LayerPlan`.
        kept: parts of senders that are kept; None: all parts.
    """

    config: GraphConfig
    has_spans: bool
    active: Bool[Tensor, " n_forward"]
    layers: list[LayerPlan]
    logits_edges: Float[Tensor, "span 1 n_senders"]
    kept: KeptParts | None = None


def plan_circuit(
    model: Model, graph: Graph, *, prune: bool = True, kept: KeptParts | None = None
) -> CircuitPlan:
    """Plan the nodes and edges of a circuit that can change its result.

    If all ablated activations come from one run (`prune`), pruning changes nothing, because a node
    that the input does not reach sends the same output as when everything is ablated. The exception
    is a norm after attention: a head's output then depends on all heads of its layer, so every edge
    counts.
    """
    config = graph.config
    after_norm = any(block.post_attention_norm is not None for block in model.blocks)
    run = graph.prune() if prune and not after_norm else graph
    edges, by_span = run.in_any_span, run.in_graph.view(-1, *run.in_graph.shape[-2:])
    active = edges.any(dim=1)
    active[0] = True
    place = (active.long().cumsum(0) - 1).tolist()  # number of each sender among the active ones
    kv_head = torch.tensor([config.kv_head(head) for head in range(config.n_heads)])

    def edges_into(receivers: Tensor, n_senders: int) -> Float[Tensor, "span n_receivers n_active"]:
        chosen = by_span[:, :n_senders][:, active[:n_senders]][..., receivers].mT
        return chosen.to(model.residual_dtype).to(model.device)

    layers = []
    for layer in range(config.n_layers):
        reads = {kind: edges[:, config.receivers(layer, kind)].any(dim=0) for kind in "qkv"}
        receivers = {kind: indices.nonzero().flatten() for kind, indices in reads.items()}
        columns = [
            config.receivers(layer, kind).start + indices for kind, indices in receivers.items()
        ]
        changed = reads["q"] | reads["k"][kv_head] | reads["v"][kv_head]
        heads, mlp = config.heads(layer), config.mlp_sender(layer)
        mlp_column = torch.tensor([config.mlp_receiver(layer)])
        runs_mlp = bool(active[mlp] and edges[:, mlp_column].any())
        before_mlp = config.senders_before(layer, "mlp")
        sends = active[heads].nonzero().flatten()
        device = model.blocks[layer].device
        layers.append(
            LayerPlan(
                receivers={kind: indices.to(device) for kind, indices in receivers.items()},
                attention_edges=edges_into(
                    torch.cat(columns), config.senders_before(layer, "attention")
                ),
                changed=changed.nonzero().flatten().to(device),
                sends=sends.to(device),
                first_sender=place[heads.start + int(sends[0])] if len(sends) else 0,
                mlp_edges=edges_into(mlp_column, before_mlp) if runs_mlp else None,
                mlp_sender=place[mlp],
            )
        )
    logits = torch.tensor([config.logits_receiver])
    return CircuitPlan(
        config=config,
        has_spans=bool(graph.span_names),
        active=active,
        layers=layers,
        logits_edges=edges_into(logits, config.n_forward),
        kept=kept,
    )


def run_circuit(
    model: Model, plan: CircuitPlan, base: Sequence[AblatedHeads], batch: PreparedBatch
) -> Float[Tensor, "batch d_model"]:
    """Final residual stream at the last token, with all edges outside the circuit ablated."""
    cache, ablated, input_change = batch.cache, batch.ablated_run, batch.clean - batch.ablated
    layout = batch.layout if plan.has_spans else WHOLE
    # Changes of the active senders: their outputs, minus what their ablated edges carry.
    changes = input_change.new_zeros(int(plan.active.sum()), *input_change.shape)
    if ablated.offsets is not None:
        before_last = plan.active[: len(ablated.offsets.everywhere)]
        n_before = int(before_last.sum())
        changes[:n_before] = ablated.offsets.everywhere[before_last]
    changes[0] = input_change

    def keep_parts(place: int, run: SenderRun, other: SenderRun, pieces: Sequence[Piece]) -> None:
        """Reduce the change of an active sender (from `other`) to the change of its kept parts."""
        if plan.kept is not None and run.sender in plan.kept.masks:
            changes[place] = plan.kept.change(model, run, other, changes[place], cache, pieces)

    run, other = (SenderRun(0, None, sent=sent) for sent in (batch.clean, batch.ablated))
    keep_parts(0, run, other, layout.everywhere)
    for layer, part in enumerate(plan.layers):
        block, trace, at_heads = model.blocks[layer], ablated.trace[layer], base[layer]
        last_only = layer == len(plan.layers) - 1
        pieces = layout.at_last if last_only else layout.everywhere
        at_attention = changes
        if last_only:  # from here on, only the last token matters
            changes = cache.each_at_last(changes)
            if ablated.offsets is not None:
                changes[n_before:] = ablated.offsets.at_last[plan.active][n_before:]
        if len(part.sends):
            scaled_z = at_heads.scaled_z
            if len(part.changed):
                into_heads = at_attention[: part.attention_edges.shape[-1]]
                mixed = mix(part.attention_edges, into_heads, layout.everywhere)
                scaled_z = _scaled_z(part, plan.config, at_heads.held, mixed, last_only=last_only)
                heads = slice(part.first_sender, part.first_sender + len(part.sends))
                moved = block.head_outputs(scaled_z - at_heads.scaled_z, part.sends)
                changes[heads] += moved.to(changes)
            for number, head in enumerate(part.sends.tolist() if plan.kept else ()):
                sender = plan.config.heads(layer).start + head
                run, other = (
                    SenderRun(sender, block, scaled_z=x[:, :, head].to(changes.dtype), head=head)
                    for x in (scaled_z, at_heads.scaled_z)
                )
                keep_parts(part.first_sender + number, run, other, pieces)
        sender = plan.config.mlp_sender(layer)
        if plan.active[sender]:
            run = other = SenderRun(sender, block, mlp_in=trace.mlp_in, sent=trace.mlp_out)
            if part.mlp_edges is not None:
                mixed = mix(part.mlp_edges, changes[: part.mlp_edges.shape[-1]], pieces)[0]
                x = trace.mlp_in + mixed.to(trace.mlp_in)
                run = SenderRun(sender, block, mlp_in=x, sent=block.run_mlp(x))
                changes[part.mlp_sender] += (run.output - other.output).to(changes)
            keep_parts(part.mlp_sender, run, other, pieces)
    return ablated.final[:, 0] + mix(plan.logits_edges, changes, layout.at_last)[0, :, 0]


def _scaled_z(
    plan: LayerPlan,
    config: GraphConfig,
    held: HeldAttention,
    mixed: Float[Tensor, "n_receivers batch pos d_model"],
    *,
    last_only: bool,
) -> Float[Tensor, "batch query n_heads d_head"]:
    """Scaled z of the heads of one layer in the circuit (see `Block.scaled_z`)."""
    block, run, cache = held.block, held.run, held.cache
    attention = block.attention
    x = run.x + mixed.to(run.x.device)  # [n_receivers, batch, pos, d_model]
    normed = block.ln1(x).split([len(plan.receivers[kind]) for kind in "qkv"])
    start, heads = cache.start, plan.changed
    kv_heads = heads * config.n_kv_receivers // config.n_heads

    # q, k and v of the changed heads: those of the ablated run, except where edges come in.
    q, k, v = held.queries.clone(), held.keys.clone(), held.values.clone()
    for kind, into, inputs in zip("qkv", (q, k, v), normed, strict=True):
        chosen = plan.receivers[kind]
        if kind == "q" and last_only:
            inputs = cache.each_at_last(inputs)
        n_receivers = config.n_receivers(kind)
        of_weights = None  # all weights
        if len(chosen) < n_receivers:
            # Several receivers share a weight in expanded grouped-query attention.
            of_weights = chosen * len(attention.projection(kind)[0]) // n_receivers
        projected = attention.project_each(kind, inputs, of_weights)
        if kind == "q":
            into[:, chosen] = attention.queries(projected, cache, last_only=last_only)
        elif kind == "k":
            into[:, chosen, start:] = attention.keys(projected, cache)
        else:
            into[:, chosen, start:] = attention.values(projected)
    z = run.z.clone()
    pattern = attention.pattern(q.index_select(1, heads), k.index_select(1, kv_heads), held.mask)
    z[:, :, heads] = attention.average(pattern, v.index_select(1, kv_heads))
    raw = run.attention_raw if block.post_attention_norm is None else attention.combine(z)
    return block.scaled_z(z, raw)
