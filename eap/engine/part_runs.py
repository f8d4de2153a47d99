"""Scores of parts: changes of their coefficients, times the gradient along their directions.

The score of a part is (c'_j - c_j) (w_j . g_u), summed over positions. g_u, the gradient at the
output of the part's sender u, is the sum of the gradients G_v at the inputs of all receivers v
after u; for a single receiver v, w_j . G_v takes the place of w_j . g_u. The heads of a layer have
one g_u, and its MLP another, so g_u is a running sum over the layers, from the last to the first,
and the G of single receivers is never computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from eap.ablation import AblatedCoefficients
from eap.engine.passes import Change, Pass, TracedRun
from eap.engine.path_gradients import equal_pairs
from eap.engine.prepared import PreparedBatch
from eap.engine.receivers import LayerGradient, RunGradient, input_gradient
from eap.engine.span_layout import WHOLE, SpanLayout
from eap.graph import GraphConfig
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.parts.basis import PartLayout, Parts, SenderRun, sender_run


@dataclass(frozen=True, eq=False)
class Readers:
    """Gradient at the outputs of some senders, from the receivers that read them.

    Attributes:
        senders: senders that are read.
        column: column of the result.
        gradient: gradient of the metric with respect to the output of any of the senders.
    """

    senders: slice
    column: int
    gradient: Float[Tensor, "batch query d_model"]


def all_readers(
    model: Model, config: GraphConfig, gradients: RunGradient, cache: PrefixCache
) -> Iterator[Readers]:
    """All receivers of every sender together: for the senders of each sublayer, then the input."""
    stream = gradients.final
    for layer in reversed(range(config.n_layers)):
        mlp = config.mlp_sender(layer)
        yield Readers(slice(mlp, mlp + 1), 0, stream)
        part = gradients.layers.get(layer)
        if part is not None:
            after = stream + part.mlp_in.to(stream.device)
        if part is not None or config.parallel_attn_mlp:
            heads = stream if config.parallel_attn_mlp or part is None else after
            yield Readers(config.heads(layer), 0, heads)
        if part is None or not part.heads.scaled:
            return  # earlier senders are not part of this pass
        of_attention = _attention_gradient(model, layer, part, cache)
        stream = _everywhere(after, cache) + of_attention.to(after.device)
    yield Readers(slice(0, 1), 0, stream)


def chosen_readers(
    model: Model,
    config: GraphConfig,
    gradients: RunGradient,
    cache: PrefixCache,
    receivers: Sequence[int],
) -> Iterator[Readers]:
    """Chosen receivers, one by one; `column` is the number of the receiver among them."""
    columns = {receiver: column for column, receiver in enumerate(receivers)}
    if config.logits_receiver in columns:
        yield Readers(slice(0, config.n_forward), columns[config.logits_receiver], gradients.final)
    for layer, part in gradients.layers.items():
        if config.mlp_receiver(layer) in columns:
            senders = slice(0, config.senders_before(layer, "mlp"))
            yield Readers(senders, columns[config.mlp_receiver(layer)], part.mlp_in)
        senders = slice(0, config.senders_before(layer, "attention"))
        for kind in part.heads.scaled:
            of_kind = config.receivers(layer, kind)
            wanted = [v for v in range(of_kind.start, of_kind.stop) if v in columns]
            if wanted:
                G = input_gradient(model, layer, kind, part, cache)
                for v in wanted:
                    yield Readers(senders, columns[v], G[v - of_kind.start])


@torch.no_grad()
def _attention_gradient(
    model: Model, layer: int, part: LayerGradient, cache: PrefixCache
) -> Float[Tensor, "batch pos d_model"]:
    """Sum of the gradients at all q, k and v inputs of a layer, by one product for each kind."""
    norm, attention = model.blocks[layer].ln1, model.blocks[layer].attention
    total: Tensor | None = None
    for kind in "vkq":  # v first, because v has every position
        scaled = part.heads.scaled[kind]
        W, _ = attention.projection(kind)
        # Several receivers share a weight in expanded grouped-query attention.
        by_weight = scaled.unflatten(2, (len(W), -1)).sum(3)
        back = norm.pull_back_weights(W).flatten(0, 1)
        G = by_weight.flatten(2) @ back
        if part.heads.along:
            along, hat = torch.cat(part.heads.along[kind]).sum(-1), torch.cat(part.heads.hat)
            if along.shape[2] < hat.shape[2]:  # queries of the last layer
                hat = cache.each_at_last(hat)
            G = G - einsum(along, hat, "point batch pos, point batch pos d -> batch pos d")
        total = G if total is None else total + _everywhere(G, cache)
    assert total is not None
    return total


def _everywhere(
    x: Float[Tensor, "batch query d_model"], cache: PrefixCache
) -> Float[Tensor, "batch pos d_model"]:
    """Gradient at every position; zero before the last token if `x` has only the last token."""
    if x.shape[1] == cache.n_positions:
        return x
    out = x.new_zeros(len(x), cache.n_positions, x.shape[2])
    out[torch.arange(len(x), device=x.device), cache.last.to(x.device)] = x[:, 0]
    return out


# ---- contraction ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PartScorer:
    """Scorer of the parts of some senders, on every example of a batch.

    Attributes:
        parts: basis of the parts.
        layout: layout of the parts.
        receivers: indices of chosen receivers; None: all receivers together.
        spans: whether to score every span of the prompt separately.
        ablated: function that gives the coefficients of ablated parts.
    """

    parts: Parts
    layout: PartLayout
    receivers: tuple[int, ...] | None
    ablated: AblatedCoefficients
    spans: bool = False

    def score(
        self, batch: PreparedBatch, passes: Iterator[Pass]
    ) -> Float[Tensor, "batch *span part column"]:
        """Scores summed over passes; the last part of each sender is its rest."""
        work = batch.work
        n_columns = 1 if self.receivers is None else len(self.receivers)
        spans = batch.layout if self.spans else WHOLE
        scores = torch.zeros(
            len(batch), spans.n_spans, len(self.layout), n_columns,
            dtype=work.model.residual_dtype, device=work.model.device,
        )  # fmt: skip
        for one in passes:  # computing the passes needs gradients
            with torch.no_grad():
                self._add_pass(scores, one, spans)
        scores[equal_pairs(batch).to(scores.device)] = 0.0
        return scores if self.spans else scores[:, 0]

    def _add_pass(
        self, scores: Float[Tensor, "batch span part column"], one: Pass, spans: SpanLayout
    ) -> None:
        """Add the scores of one pass."""
        change, gradients, senders = one
        batch = change.batch
        work, cache = batch.work, batch.cache
        args = work.model, work.config, gradients, cache
        receivers = self.receivers
        readers = list(
            all_readers(*args) if receivers is None else chosen_readers(*args, receivers)
        )
        after = change.after or TracedRun(batch.ablated, batch.ablated_run.trace)
        shares: tuple[dict[int, Tensor], ...] = ({}, {})  # of heads, which a layer has in common
        covered = range(work.config.n_forward)[senders or slice(None)]
        for sender, (start, stop) in zip(
            self.layout.senders, pairwise(self.layout.starts), strict=True
        ):
            reads = [one for one in readers if one.senders.start <= sender < one.senders.stop]
            if sender in covered and reads:
                first, second = (
                    sender_run(work.model, sender, run.embedding, run.trace, known)
                    for run, known in zip((change.before, after), shares, strict=True)
                )
                into = scores[:, :, start:stop]
                self._add_sender(into, spans, change, first, second, reads)

    def _add_sender(
        self,
        scores: Float[Tensor, "batch span part column"],
        spans: SpanLayout,
        change: Change,
        before: SenderRun,
        after: SenderRun,
        readers: Sequence[Readers],
    ) -> None:
        """Add the scores of one sender in one pass, from its runs before and after the change."""
        model, cache, sender = change.batch.work.model, change.batch.cache, before.sender
        c, W = self.parts.coefficients(model, before), self.parts.directions(model, sender)
        is_ablation = change.after is None
        moved = self.ablated(after, cache) if is_ablation else self.parts.coefficients(model, after)
        moved = moved.to(c.device) - c  # [batch, query, n]
        whole = after.output - before.output
        if is_ablation and (offsets := change.batch.ablated_run.offsets) is not None:
            of_last = sender >= len(offsets.everywhere)
            offset = (offsets.at_last if of_last else offsets.everywhere)[sender]
            whole = whole - offset.to(whole.device)
        for reader in readers:
            G = reader.gradient.to(moved)
            at_last = G.shape[1] < moved.shape[1]
            changed, sent = (cache.at_last(x) if at_last else x for x in (moved, whole))
            along = G if W is None else G @ W.to(G).T
            for piece in spans.at_last if changed.shape[1] == 1 else spans.everywhere:
                at = piece.rows, piece.positions
                of_parts = einsum(changed[at], along[at], "batch query n, batch query n -> batch n")
                of_sender = einsum(sent[at].to(G), G[at], "batch query d, batch query d -> batch")
                rest = (of_sender - of_parts.sum(-1))[:, None]
                scores_of_sender = torch.cat([of_parts, rest], dim=1).to(scores)
                scores[piece.rows, piece.span, :, reader.column] += scores_of_sender
