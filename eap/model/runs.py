"""The forward pass that attribution, evaluation and patching share.

It is the plain forward pass of the model, with two exact savings:

* Runs of one batch share a prefix (the tokens before the first token at which they can differ). Its
  keys and values are computed once; everything else runs on the positions after it (`PrefixCache`).
* Only the logits at the last token are read, so the last layer computes its queries, its attention
  output and its MLP at that position only (unless a run asks for every position).

Rows may be stacked: functions accept any tensor whose batch is a multiple of the cache's (copies
outermost).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.rules import EXACT, BackwardRules


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """Activations of one layer.

    In the shapes, `query` stands for the positions whose queries are computed: all positions
    (`pos`), or in the last layer the last token only.

    Attributes:
        x: residual stream at the input of the layer.
        q, k, v: outputs of the projections, before norms and rotation.
        z: average of the values for each head, before `W_O`.
        attention_raw: sum of the heads' outputs and `b_O`, before a norm after attention.
        mlp_in: residual stream at the input of the MLP.
        mlp_out: output of the MLP to the residual stream.
    """

    x: Float[Tensor, "batch pos d_model"]
    q: Float[Tensor, "batch query n_heads d_head"]
    k: Float[Tensor, "batch pos n_kv d_head"]
    v: Float[Tensor, "batch pos n_kv d_head"]
    z: Float[Tensor, "batch query n_heads d_head"]
    attention_raw: Float[Tensor, "batch query d_model"]
    mlp_in: Float[Tensor, "batch query d_model"]
    mlp_out: Float[Tensor, "batch query d_model"]

    def rows(self, rows: slice) -> "LayerTrace":
        """Trace of some rows."""
        return LayerTrace(*(getattr(self, part.name)[rows] for part in fields(self)))

    def detached(self, *, copy: bool = False) -> "LayerTrace":
        """Trace without its autograd graph; with `copy`, in memory of its own."""
        parts = [getattr(self, part.name).detach() for part in fields(self)]
        return LayerTrace(*(part.clone() if copy else part for part in parts))


# ---- layers and runs -----------------------------------------------------------------------------


def run_block(
    model: Model,
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    cache: PrefixCache,
    *,
    trace: list[LayerTrace] | None = None,
    expanded_kv: bool = False,
    rules: BackwardRules = EXACT,
    everywhere: bool = False,
) -> Float[Tensor, "batch query d_model"]:
    """Run one layer; the last layer returns the position of the last token only.

    Args:
        model: model that is run.
        layer: number of the layer.
        x: residual stream at the input of the layer.
        cache: cache of the prefix.
        trace: list to which the activations of the layer are appended.
        expanded_kv: whether to give every query head its own k and v (copies), so that a gradient
            can be taken at each.
        rules: backward rules.
        everywhere: whether to compute every position in the last layer, too.
    """
    block, last_only = model.blocks[layer], layer == len(model.blocks) - 1 and not everywhere
    x = x.to(block.device)
    q, k, v, z, raw = run_attention(
        model, layer, x, cache, expanded_kv=expanded_kv, rules=rules, last_only=last_only
    )
    before = cache.at_last(x) if last_only else x
    after = before + block.finish_attention(raw, rules)
    mlp_reads = before if model.config.parallel_attn_mlp else after
    # A separate node of the autograd graph, whose gradient is that of the MLP's input alone.
    mlp_in = mlp_reads.view_as(mlp_reads)
    mlp_out = block.run_mlp(mlp_in, rules)
    if trace is not None:
        trace.append(LayerTrace(x, q, k, v, z, raw, mlp_in, mlp_out))
    return after + mlp_out


def run_attention(
    model: Model,
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    cache: PrefixCache,
    *,
    last_only: bool,
    expanded_kv: bool = False,
    rules: BackwardRules = EXACT,
) -> tuple[
    Float[Tensor, "batch query n_heads d_head"],
    Float[Tensor, "batch pos n_kv d_head"],
    Float[Tensor, "batch pos n_kv d_head"],
    Float[Tensor, "batch query n_heads d_head"],
    Float[Tensor, "batch query d_model"],
]:
    """q, k, v, z and `attention_raw` of one layer (see `LayerTrace`), from the layer's input."""
    block = model.blocks[layer]
    attention, normed = block.attention, block.ln1(x, rules)
    q = attention.project("q", cache.at_last(normed) if last_only else normed)
    k, v = attention.project("k", normed), attention.project("v", normed)
    if expanded_kv:
        copies = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(copies, dim=2), v.repeat_interleave(copies, dim=2)
    z = attention.attend(layer, q, k, v, cache, last_only=last_only, rules=rules)
    return q, k, v, z, attention.combine(z)


def run_layers(
    model: Model,
    x: Float[Tensor, "batch pos d_model"],
    cache: PrefixCache,
    *,
    first_layer: int = 0,
    trace: list[LayerTrace] | None = None,
    expanded_kv: bool = False,
    rules: BackwardRules = EXACT,
    everywhere: bool = False,
) -> Float[Tensor, "batch query d_model"]:
    """Residual stream after all layers, from the input of `first_layer`.

    The result has the last token only (one `query`), unless `everywhere`.
    """
    for layer in range(first_layer, len(model.blocks)):
        x = run_block(
            model,
            layer,
            x,
            cache,
            trace=trace,
            expanded_kv=expanded_kv,
            rules=rules,
            everywhere=everywhere,
        )
    return x.to(cache.last.device)


@torch.no_grad()
def run_prefix(
    model: Model,
    prefix: Int[Tensor, "batch start"],
    last: Int[Tensor, " batch"],
    n_positions: int,
) -> PrefixCache:
    """Run the prefix once, and keep its keys and values for runs of the positions after it."""
    batch, start = prefix.shape
    empty = tuple(
        torch.empty(batch, len(W_K), 0, W_K.shape[2], dtype=W_K.dtype, device=W_K.device)
        for W_K in (block.attention.W_K for block in model.blocks)
    )
    if start == 0:
        return PrefixCache(0, n_positions, last, empty, empty)
    alone = PrefixCache(0, start, torch.full_like(last, start - 1), empty, empty)
    x = model.embed(prefix) + model.position_embedding(0, start)
    keys, values = [], []
    for layer, block in enumerate(model.blocks):
        trace: list[LayerTrace] = []
        if layer < len(model.blocks) - 1:
            x = run_block(model, layer, x, alone, trace=trace)
            k, v = trace[0].k, trace[0].v
        else:
            normed = block.ln1(x.to(block.device))
            k, v = (block.attention.project(kind, normed) for kind in "kv")
        keys.append(block.attention.keys(k, alone))
        values.append(block.attention.values(v))
    return PrefixCache(start, n_positions, last, tuple(keys), tuple(values))


@torch.no_grad()
def run_tokens(model: Model, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last position, for prompts of one length."""
    batch, n_positions = tokens.shape
    last = torch.full((batch,), n_positions - 1, device=tokens.device)
    cache = run_prefix(model, tokens[:, :0], last, n_positions)
    x = model.embed(tokens) + model.position_embedding(0, n_positions)
    return model.unembed(run_layers(model, x, cache)[:, 0])


# ---- outputs of senders --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SenderOutputs:
    """Outputs of every sender to the residual stream, or changes of the outputs.

    Attributes:
        everywhere: outputs of the senders before the last layer.
        at_last: outputs of all senders, at the last token.
    """

    everywhere: Float[Tensor, "n_before_last batch pos d_model"]
    at_last: Float[Tensor, "n_forward batch 1 d_model"]


@torch.no_grad()
def sender_changes(
    model: Model,
    embedding_change: Float[Tensor, "batch pos d_model"],
    before: Sequence[LayerTrace],
    after: Sequence[LayerTrace],
    cache: PrefixCache,
) -> SenderOutputs:
    """Outputs of every sender in the run `after`, minus its outputs in the run `before`.

    Args:
        model: model that was run.
        embedding_change: change of the token embeddings (position embeddings cancel).
        before, after: traces of the layers of the two runs.
        cache: cache of the prefix.
    """
    scaled_z, mlps = [], []
    for block, first, second in zip(model.blocks, before, after, strict=True):
        of_first, of_second = (block.scaled_z(run.z, run.attention_raw) for run in (first, second))
        scaled_z.append(of_second - of_first)
        mlps.append(second.mlp_out - first.mlp_out)
    return collect_outputs(model, embedding_change, scaled_z, mlps, cache)


@torch.no_grad()
def collect_outputs(
    model: Model,
    embedding: Float[Tensor, "batch pos d_model"],
    scaled_z: Sequence[Float[Tensor, "batch _query n_heads d_head"]],
    mlps: Sequence[Float[Tensor, "batch _query d_model"]],
    cache: PrefixCache,
) -> SenderOutputs:
    """Outputs (or changes) of all senders, from the embedding, the head shares and the MLPs."""
    config, last_layer = model.config, len(model.blocks) - 1
    batch, n_positions, d_model = embedding.shape
    everywhere = embedding.new_empty(config.heads(last_layer).start, batch, n_positions, d_model)
    at_last = embedding.new_empty(config.n_forward, batch, 1, d_model)
    everywhere[0] = embedding
    for layer, block in enumerate(model.blocks):
        into = everywhere if layer < last_layer else at_last
        heads = block.head_outputs(scaled_z[layer].to(embedding.dtype))
        into[config.heads(layer)] = heads.to(embedding)
        into[config.mlp_sender(layer)] = mlps[layer]
    index = torch.arange(batch, device=embedding.device)
    at_last[: len(everywhere)] = everywhere[:, index, cache.last][:, :, None]
    return SenderOutputs(everywhere, at_last)


@torch.no_grad()
def outputs_everywhere(
    model: Model, tokens: Int[Tensor, "batch pos"], last: Int[Tensor, " batch"]
) -> tuple[
    Float[Tensor, "n_forward batch pos d_model"],
    list[LayerTrace],
    Float[Tensor, "batch pos d_model"],
]:
    """Outputs of all senders at all positions of whole prompts, with layer traces and final stream.

    The final stream is the residual stream after the last layer.
    """
    n_positions = tokens.shape[1]
    cache = run_prefix(model, tokens[:, :0], last, n_positions)
    embedding = model.embed(tokens)
    trace: list[LayerTrace] = []
    x = embedding + model.position_embedding(0, n_positions)
    final = run_layers(model, x, cache, trace=trace, everywhere=True)
    outputs = [embedding[None]]
    for block, run in zip(model.blocks, trace, strict=True):
        heads = block.head_outputs(block.scaled_z(run.z, run.attention_raw))
        outputs += [heads.to(embedding), run.mlp_out[None].to(embedding)]
    return torch.cat(outputs), trace, final
