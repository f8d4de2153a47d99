"""Gradients at the inputs of all receivers, from the plain backward pass, and scores from them.

The forward pass is the plain one, without a copy of the residual stream for every head. The
gradient dq at the q of a head gives the gradient at its q input in closed form. With x^ the
normalised input, r = 1/scale, w the weight of the norm, and P the removal of the mean (LayerNorm)
or the identity (RMSNorm),

    G = P (w * (r dq W_Q^T)) - x^ c,    c = r/d_model * sum_e dq_e (q - q_0)_e,

where q_0 = bias W_Q + b_Q is the value of q if x^ were zero. G is linear in dq, so the gradients of
all points are summed before anything of size [n_heads, d_model] is made, and the changes of the
senders, which do not depend on the point, are multiplied with G once. If the norm's scale is frozen
(see `BackwardRules`), or if there is no norm, the second term is absent.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from eap.engine.score_blocks import ScoreBlock
from eap.engine.span_layout import WHOLE, Piece, SpanLayout
from eap.graph import GraphConfig
from eap.model.blocks import Block, Norm
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.rules import EXACT, BackwardRules
from eap.model.runs import LayerTrace, SenderOutputs


class MlpRun(NamedTuple):
    """Input of an MLP, and its output to the residual stream."""

    mlp_in: Float[Tensor, "rows query d_model"]
    mlp_out: Float[Tensor, "rows query d_model"]


class RecordedRun(NamedTuple):
    """Forward pass that can be differentiated.

    Attributes:
        trace: trace of the layers from `first_layer` on; rows are points (outermost) times
            examples.
        final: residual stream that the logits read.
        rules: backward rules of the forward pass.
        first_layer: first layer of the trace.
        mlp_before: MLP of the layer before, if the run began there.
    """

    trace: Sequence[LayerTrace]
    final: Float[Tensor, "rows 1 d_model"]
    rules: BackwardRules = EXACT
    first_layer: int = 0
    mlp_before: MlpRun | None = None


@dataclass(frozen=True, eq=False)
class InputGradients:
    """Gradients at inputs that read one norm, as far as they can be summed over points.

    In the shapes, `_n` is the number of inputs of a kind (of heads, or of hidden units, whose
    `_width` is 1), and `_query` the number of positions at which the kind is computed: in the last
    layer, q and the MLP have the last token only.

    Attributes:
        scaled: sums over points of r dq, by kind ('q', 'k', 'v'; of hidden units: 'in', 'gate').
        along: coefficients c of every point by kind, in pieces; empty if the scale has no gradient.
        hat: x^ of every point, in pieces; empty if no kind has an `along`.
    """

    scaled: Mapping[str, Float[Tensor, "batch _query _n _width"]]
    along: Mapping[str, tuple[Float[Tensor, "_point batch _query _n"], ...]]
    hat: tuple[Float[Tensor, "_point batch _pos d_model"], ...]

    def plus(self, other: "InputGradients") -> "InputGradients":
        """Sum over the points of both gradients."""
        return InputGradients(
            {kind: gradient + other.scaled[kind] for kind, gradient in self.scaled.items()},
            {kind: pieces + other.along[kind] for kind, pieces in self.along.items()},
            self.hat + other.hat,
        )


NO_INPUTS = InputGradients({}, {}, ())


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """Gradients at the receivers of one layer.

    Attributes:
        heads: gradients at the q, k and v inputs of the heads.
        mlp_in: sum over points of the gradient at the input of the MLP.
        units: gradients at the inputs of the MLP's hidden units; None: not requested.
    """

    heads: InputGradients
    mlp_in: Float[Tensor, "batch _query d_model"]
    units: InputGradients | None = None

    def plus(self, other: "LayerGradient") -> "LayerGradient":
        """Sum over the points of both gradients."""
        return LayerGradient(
            self.heads.plus(other.heads),
            self.mlp_in + other.mlp_in,
            self.units.plus(other.units) if self.units and other.units else None,
        )


@dataclass(frozen=True, eq=False)
class RunGradient:
    """Gradients at all receivers, from the first layer that has any.

    Attributes:
        layers: gradients by number of the layer.
        final: sum over points of the gradient at the input of the logits.
    """

    layers: Mapping[int, LayerGradient]
    final: Float[Tensor, "batch 1 d_model"]

    def after(self, layer: int, *, mlp: bool) -> "RunGradient":
        """Gradients at the receivers after a layer and, if requested, at that layer's MLP."""
        layers = {number: part for number, part in self.layers.items() if number > layer}
        if mlp:
            layers[layer] = replace(self.layers[layer], heads=NO_INPUTS)
        return RunGradient(layers, self.final)

    def plus(self, other: "RunGradient") -> "RunGradient":
        """Sum over the points of both gradients; takes no more memory than one run."""
        layers = {layer: part.plus(other.layers[layer]) for layer, part in self.layers.items()}
        return RunGradient(layers, self.final + other.final)


def differentiate(
    model: Model,
    run: RecordedRun,
    value: Float[Tensor, "*shape"],
    cache: PrefixCache,
    *,
    value_gradient: Float[Tensor, "*shape"] | None = None,
    units: int | None = None,
    by_point: bool = False,
    retain_graph: bool = False,
) -> list[RunGradient]:
    """Gradients of `value` at the receivers of the layers in a run's trace.

    Args:
        model: model that was run.
        run: forward pass that led to `value`.
        value: tensor that is differentiated.
        cache: cache of the batch's prefix.
        value_gradient: gradient at `value`, if `value` is not a scalar.
        units: layer of the MLP whose units' gradients are computed, too.
        by_point: whether to return one result for every point, instead of one for all points.
        retain_graph: whether the run will be differentiated again.
    """
    trace, final, rules, first_layer, mlp_before = run
    targets = [at for layer in trace for at in (layer.q, layer.k, layer.v, layer.mlp_in)]
    mlps: dict[int, LayerTrace | MlpRun] = dict(enumerate(trace, first_layer))
    targets.append(final)
    if mlp_before is not None:
        mlps[first_layer - 1] = mlp_before
        targets.append(mlp_before.mlp_in)
    if units in mlps:
        targets.append(mlps[units].mlp_out)
    # If `value` is the input of a layer, nothing after that layer has a gradient.
    gradients = torch.autograd.grad(
        value, targets, value_gradient,
        retain_graph=retain_graph, allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    batch, n_points = len(cache.last), len(final) // len(cache.last)
    groups = [slice(n, n + 1) for n in range(n_points)] if by_point else [slice(0, n_points)]

    def summed(gradient: Tensor, group: slice) -> Tensor:
        return gradient.unflatten(0, (n_points, batch))[group].sum(0)

    layers: list[dict[int, LayerGradient]] = [{} for _ in groups]
    if mlp_before is not None:
        at_mlp = gradients[4 * len(trace) + 1]
        for group, out in zip(groups, layers, strict=True):
            out[first_layer - 1] = LayerGradient(NO_INPUTS, summed(at_mlp, group))
    for number, traced in enumerate(trace):
        layer = first_layer + number
        *at_heads, d_mlp_in = gradients[4 * number : 4 * number + 4]
        norm, attention = model.blocks[layer].ln1, model.blocks[layer].attention
        outputs = dict(zip("qkv", (traced.q, traced.k, traced.v), strict=True))
        at_zero = partial(attention.output_at_zero, norm)
        of_heads = _closed_form(norm, traced.x, outputs, at_heads, at_zero, cache, rules, groups)
        for group, out, heads in zip(groups, layers, of_heads, strict=True):
            out[layer] = LayerGradient(heads, summed(d_mlp_in, group))
    if units is not None and units in mlps:
        of_units = _at_units(
            model.blocks[units], mlps[units].mlp_in, gradients[-1], cache, rules, groups
        )
        for out, unit in zip(layers, of_units, strict=True):
            out[units] = replace(out[units], units=unit)
    d_final = gradients[4 * len(trace)]
    return [
        RunGradient(out, summed(d_final, group)) for group, out in zip(groups, layers, strict=True)
    ]


def _at_units(
    block: Block,
    mlp_in: Float[Tensor, "rows query d_model"],
    at_output: Float[Tensor, "rows query d_model"],
    cache: PrefixCache,
    rules: BackwardRules,
    groups: Sequence[slice],
) -> list[InputGradients]:
    """Gradients at the inputs of an MLP's hidden units, from the gradient at the MLP's output."""
    mlp, norm, x = block.mlp, block.ln2, mlp_in.detach()
    inputs = [one.detach().requires_grad_() for one in mlp.inputs(norm(x))]
    with torch.enable_grad():
        out = F.linear(mlp.activate(*inputs, rules=rules), mlp.W_out, mlp.b_out).to(x)
        out = out if block.post_mlp_norm is None else block.post_mlp_norm(out, rules)
        gradients = torch.autograd.grad(out, inputs, at_output)
    weights = {"in": (mlp.W_in, mlp.b_in)}
    if mlp.W_gate is not None:
        weights["gate"] = (mlp.W_gate, mlp.b_gate)

    def at_zero(kind: str) -> Float[Tensor, "d_mlp 1"]:
        W, b = weights[kind]
        out = torch.zeros_like(W[:, 0]) if b is None else b
        return (out if norm.bias is None else out + W @ norm.bias.to(W))[:, None]

    outputs = {kind: one[..., None] for kind, one in zip(weights, inputs, strict=True)}
    at_outputs = [gradient[..., None] for gradient in gradients]
    return _closed_form(norm, x, outputs, at_outputs, at_zero, cache, rules, groups)


def _closed_form(
    norm: Norm,
    x: Float[Tensor, "rows pos d_model"],
    outputs: Mapping[str, Float[Tensor, "rows _query _n _width"]],
    gradients: Sequence[Float[Tensor, "rows _query _n _width"]],
    at_zero: Callable[[str], Float[Tensor, "_n _width"]],
    cache: PrefixCache,
    rules: BackwardRules,
    groups: Sequence[slice],
) -> list[InputGradients]:
    """Terms of the closed form (see the module's docstring), summed over each group of points.

    Args:
        norm: norm that the inputs read.
        x: input of the norm; rows are points (outermost) times examples.
        outputs: projections of the normed input, by kind.
        gradients: gradients at these outputs.
        at_zero: value of the outputs of a kind if x^ were zero.
        cache: cache of the batch's prefix.
        rules: backward rules of the run.
        groups: points that are summed in each of the results.
    """
    x = x.detach()
    scale = norm.scale(x)[..., None]  # [rows, pos, 1, 1]
    scale_varies = norm.kind != "none" and not rules.frozen_norms

    def by_point(values: Tensor) -> Float[Tensor, "point batch *rest"]:
        return values.unflatten(0, (-1, len(cache.last)))

    scaled, along = {}, {}
    for (kind, output), gradient in zip(outputs.items(), gradients, strict=True):
        at_last = output.shape[1] < x.shape[1]  # in the last layer, q has only the last token
        times_scale = gradient * (cache.at_last(scale) if at_last else scale)
        scaled[kind] = by_point(times_scale)
        if scale_varies:
            moved = output.detach() - _for_receivers(at_zero(kind), output.shape[2])
            along[kind] = by_point((times_scale * moved).sum(-1) / x.shape[-1])
    hat = by_point(norm.hat(x)) if scale_varies else None
    return [
        InputGradients(
            {kind: values[group].sum(0) for kind, values in scaled.items()},
            {kind: (c[group],) for kind, c in along.items()},
            () if hat is None else (hat[group],),
        )
        for group in groups
    ]


def _for_receivers(
    x: Float[Tensor, "n *rest"], n_receivers: int
) -> Float[Tensor, "n_receivers *rest"]:
    """One entry per receiver; in expanded grouped-query attention, several receivers share one."""
    return x.repeat_interleave(n_receivers // len(x), dim=0) if n_receivers > len(x) else x


# ---- products of changes and gradients -----------------------------------------------------------


@torch.no_grad()
def contract(
    model: Model,
    config: GraphConfig,
    changes: SenderOutputs,
    gradients: RunGradient,
    cache: PrefixCache,
    senders: slice | None = None,
    layout: SpanLayout | None = None,
) -> Iterator[ScoreBlock]:
    """Scores of every example: changes of the senders, times gradients at the receivers.

    Args:
        model: model that was run.
        config: shape of the graph.
        changes: changes of the senders' outputs.
        gradients: gradients at the receivers.
        cache: cache of the batch's prefix.
        senders: senders to score; None: all.
        layout: spans of the prompt to score separately, [batch, span, sender, receiver]; None:
            the whole prompt, [batch, sender, receiver].
    """
    senders = slice(0, config.n_forward) if senders is None else senders
    last, spans = config.n_layers - 1, WHOLE if layout is None else layout
    everywhere = _by_piece(changes.everywhere[senders], spans.everywhere)
    at_last = _by_piece(changes.at_last[senders], spans.at_last)

    def score(
        changes: list[tuple[Piece, Tensor]], n_senders: int, by_receiver: Mapping[int, Tensor]
    ) -> Iterator[ScoreBlock]:
        rows = slice(senders.start, min(senders.stop, n_senders))
        if rows.stop <= rows.start or not by_receiver:
            return
        G = torch.cat(list(by_receiver.values())).to(changes[0][1].device)
        receivers = [
            first + i for first, indices in by_receiver.items() for i in range(len(indices))
        ]
        # A [sender, receiver] product per example and span, summed over positions and d_model.
        n_rows = rows.stop - rows.start
        scores = G.new_zeros(len(cache.last), spans.n_spans, n_rows, len(G))
        for piece, D in changes:
            flat = "receiver batch query d -> batch (query d) receiver"
            G_of_piece = rearrange(G[:, piece.rows, piece.positions], flat)
            scores[piece.rows, piece.span] = torch.bmm(D[:, :n_rows], G_of_piece)
        yield ScoreBlock(rows, receivers, scores[:, 0] if layout is None else scores)

    for layer in range(config.n_layers):
        if layer not in gradients.layers:
            continue
        part = gradients.layers[layer]
        before_attention = config.senders_before(layer, "attention")
        before_mlp = config.senders_before(layer, "mlp")
        heads = {
            config.receivers(layer, kind).start: input_gradient(model, layer, kind, part, cache)
            for kind in part.heads.scaled
        }
        mlp = {config.mlp_receiver(layer): part.mlp_in[None]}
        if layer < last:
            # One product for both: heads that only the MLP reads are scored with q, k and v, too.
            for block in score(everywhere, before_mlp, heads | mlp):
                n_heads = len(block.receivers) - 1
                block.scores[..., max(0, before_attention - block.senders.start) :, :n_heads] = 0
                yield block
        else:  # q and the MLP have only the last token; k and v see every position
            q = {first: G for first, G in heads.items() if G.shape[2] == 1}
            yield from score(at_last, before_mlp, mlp)
            yield from score(at_last, before_attention, q)
            others = {first: G for first, G in heads.items() if first not in q}
            yield from score(everywhere, before_attention, others)
    final = {config.logits_receiver: gradients.final[None]}
    yield from score(at_last, config.n_forward, final)


def _by_piece(
    D: Float[Tensor, "sender batch query d_model"], pieces: Sequence[Piece]
) -> list[tuple[Piece, Float[Tensor, "_rows sender _query_d"]]]:
    """Changes of the senders at each piece, with positions and d_model as one axis."""
    flat = "sender batch query d -> batch sender (query d)"
    return [(piece, rearrange(D[:, piece.rows, piece.positions], flat)) for piece in pieces]


def input_gradient(
    model: Model, layer: int, kind: str, part: LayerGradient, cache: PrefixCache
) -> Float[Tensor, "n batch query d_model"]:
    """G of the module's docstring, summed over points, at the `kind` inputs of a layer's heads."""
    norm: Norm = model.blocks[layer].ln1
    W, _ = model.blocks[layer].attention.projection(kind)  # [n, d_model, d_head]
    heads, scaled = part.heads, part.heads.scaled[kind]
    back = _for_receivers(norm.pull_back_weights(W), scaled.shape[2])
    G = torch.bmm(rearrange(scaled, "batch pos n d_head -> n (batch pos) d_head"), back)
    G = rearrange(G, "n (batch pos) d -> n batch pos d", batch=len(scaled))
    if not heads.along:
        return G
    along, hat = torch.cat(heads.along[kind]), torch.cat(heads.hat)
    if along.shape[2] < hat.shape[2]:  # queries of the last layer
        hat = cache.each_at_last(hat)
    return G.sub_(einsum(along, hat, "point batch pos n, point batch pos d -> n batch pos d"))
