"""The one forward pass that attribution, evaluation and patching share.

It is the plain forward pass of the model, written as functions, with two savings that are exact:

* Runs of one batch share a prefix (the tokens before the first one in which clean and corrupted
  differ). Its keys and values are computed once; everything else runs on the suffix.
* Only the logits at the last token are read, so the last layer computes its queries, its attention
  output and its MLP at that position alone.

Residual streams are float32 or wider; each matrix product runs in the dtype of its weights. Rows
may be stacked: any tensor whose batch is a multiple of the suffix's (copies outermost) will do.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from eap.model.families import Attention, Block, Norm, residual_dtype

if TYPE_CHECKING:
    from eap.model.loading import Model


@dataclass(frozen=True, eq=False)
class Suffix:
    """Where a batch of runs computes: `n_positions` from position `start` on, padded on the right.

    Causality keeps padding out of every real position, so no mask mentions it.

    Attributes:
        start: first position; all rows share it.
        n_positions: of the longest row.
        last: index of each row's last token, counted from `start`.
        keys, values: per layer, of the prefix; [batch, n_kv_heads, start, d_head].
    """

    start: int
    n_positions: int
    last: Int[Tensor, " batch"]
    keys: tuple[Float[Tensor, "batch n_kv_heads start d_head"], ...]
    values: tuple[Float[Tensor, "batch n_kv_heads start d_head"], ...]

    def at_last(self, x: Float[Tensor, "rows pos *rest"]) -> Float[Tensor, "rows 1 *rest"]:
        """The position of each row's last token alone."""
        last = self.last.to(x.device).repeat(x.shape[0] // len(self.last))
        return x[torch.arange(x.shape[0], device=x.device), last][:, None]

    def mask(
        self, window: int | None, device: torch.device, *, last_only: bool
    ) -> Float[Tensor, "*rows query key"]:
        """0 where a query may look, minus infinity where not.

        [pos, key]; for the last tokens alone [batch, 1, 1, key].
        """
        keys = torch.arange(self.start + self.n_positions, device=device)
        if last_only:
            queries = (self.start + self.last.to(device))[:, None, None, None]
        else:
            queries = keys[self.start :, None]
        hidden = keys > queries
        if window is not None:
            hidden = hidden | (keys <= queries - window)
        return torch.zeros(hidden.shape, device=device).masked_fill(hidden, -torch.inf)


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """What one layer computed, for those who need more than its output.

    In the last layer `q`, `z` and everything after them have one position, the last token's.

    Attributes:
        x: residual stream at the layer's input.
        q, k, v: outputs of the projections, before norms and rotation.
        z: each head's average of values, before `W_O`.
        attention_raw: sum of the heads and `b_O`, before a norm after attention.
        mlp_in: residual stream at the MLP's input.
        mlp_out: what the MLP adds to the residual stream.
    """

    x: Float[Tensor, "batch pos d_model"]
    q: Float[Tensor, "batch pos n_heads d_head"]
    k: Float[Tensor, "batch pos n_kv d_head"]
    v: Float[Tensor, "batch pos n_kv d_head"]
    z: Float[Tensor, "batch pos n_heads d_head"]
    attention_raw: Float[Tensor, "batch pos d_model"]
    mlp_in: Float[Tensor, "batch pos d_model"]
    mlp_out: Float[Tensor, "batch pos d_model"]

    def first_rows(self, n: int) -> "LayerTrace":
        """The same of the first `n` rows alone."""
        return LayerTrace(*(getattr(self, own.name)[:n] for own in fields(self)))


# ---- parts of a layer ----------------------------------------------------------------------------


def apply_norm(norm: Norm, x: Float[Tensor, "*batch d_norm"]) -> Float[Tensor, "*batch d_norm"]:
    """LayerNorm or RMSNorm over the last dimension."""
    if norm.centred:
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)


def norm_scale(norm: Norm, x: Float[Tensor, "*batch d_norm"]) -> Float[Tensor, "*batch 1"]:
    """What a norm divides by, inverted: 1 / sqrt(variance (or mean square) + eps)."""
    centred = x - x.mean(dim=-1, keepdim=True) if norm.centred else x
    return torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + norm.eps)


def project(
    attention: Attention, kind: str, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos n d_head"]:
    """'q', 'k' or 'v' (`kind`) of every head, from the normalised residual stream."""
    W, b = attention.projection(kind)  # [n, d_model, d_head]
    n, d_model, d_head = W.shape
    out = x.to(W.dtype) @ W.transpose(0, 1).reshape(d_model, n * d_head)
    out = out.unflatten(-1, (n, d_head))
    return out if b is None else out + b


def rotate(
    attention: Attention, x: Float[Tensor, "batch pos n d_head"], suffix: Suffix, *, last_only: bool
) -> Float[Tensor, "batch pos n d_head"]:
    """Rotary position embedding of queries or keys; `last_only`: x has the last tokens alone."""
    if attention.rotary is None:
        return x
    tables = attention.rotary(suffix.start + suffix.n_positions)
    if last_only:
        last = (suffix.start + suffix.last).repeat(x.shape[0] // len(suffix.last))
        cos, sin = (table[last][:, None, None].to(x) for table in tables)  # [b, 1, 1, d_rot]
    else:
        cos, sin = (table[suffix.start :, None].to(x) for table in tables)  # [pos, 1, d_rot]
    d_rotary = cos.shape[-1]
    turned, rest = x[..., :d_rotary], x[..., d_rotary:]
    if attention.rotary_interleaved:
        partner = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        partner = torch.cat([-second, first], dim=-1)
    turned = turned * cos + partner * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def prepare_queries(
    attention: Attention, q: Float[Tensor, "batch pos n d_head"], suffix: Suffix, *, last_only: bool
) -> Float[Tensor, "batch n pos d_head"]:
    """Queries as attention uses them: clipped, normalised (where the family does so), rotated."""
    q = _clip(attention, q)
    if attention.q_norm is not None:
        q = apply_norm(attention.q_norm, q.to(residual_dtype(q.dtype))).to(q.dtype)
    return rotate(attention, q, suffix, last_only=last_only).transpose(1, 2)


def prepare_keys(
    attention: Attention, k: Float[Tensor, "batch pos n d_head"], suffix: Suffix
) -> Float[Tensor, "batch n pos d_head"]:
    """Keys as attention uses them: clipped, normalised (where the family does so), rotated."""
    k = _clip(attention, k)
    if attention.k_norm is not None:
        k = apply_norm(attention.k_norm, k.to(residual_dtype(k.dtype))).to(k.dtype)
    return rotate(attention, k, suffix, last_only=False).transpose(1, 2)


def prepare_values(
    attention: Attention, v: Float[Tensor, "batch pos n d_head"]
) -> Float[Tensor, "batch n pos d_head"]:
    """Values as attention uses them: clipped where the family does so."""
    return _clip(attention, v).transpose(1, 2)


def _clip(attention: Attention, x: Tensor) -> Tensor:
    return x if attention.clip is None else x.clamp(-attention.clip, attention.clip)


def after_prefix(
    prefix: Float[Tensor, "batch n_kv start d_head"], x: Float[Tensor, "rows n pos d_head"]
) -> Float[Tensor, "rows n key d_head"]:
    """Keys or values of the whole prompt: the prefix's (repeated for stacked rows), then x."""
    copies, per_head = x.shape[0] // prefix.shape[0], x.shape[1] // prefix.shape[1]
    if per_head > 1:  # expanded grouped-query attention
        prefix = prefix.repeat_interleave(per_head, dim=1)
    return torch.cat([prefix.repeat(copies, 1, 1, 1) if copies > 1 else prefix, x], dim=2)


def attend(
    attention: Attention,
    q: Float[Tensor, "rows n query d_head"],
    k: Float[Tensor, "rows n_kv key d_head"],
    v: Float[Tensor, "rows n_kv key d_head"],
    mask: Float[Tensor, "*rows query key"],
) -> Float[Tensor, "rows query n d_head"]:
    """Softmax attention; consecutive queries' heads share a key/value head when there are fewer."""
    rows, n, n_queries, d_head = q.shape
    n_kv, n_keys = k.shape[1], k.shape[2]
    q = q.reshape(rows, n_kv, (n // n_kv) * n_queries, d_head)
    scores = (q @ k.transpose(2, 3)).view(rows, n, n_queries, n_keys) * attention.scale
    if attention.softcap is not None:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    if mask.ndim == 4:  # one row of it per example
        mask = mask.repeat(rows // mask.shape[0], 1, 1, 1)
    pattern = (scores.to(residual_dtype(scores.dtype)) + mask).softmax(dim=-1).to(v.dtype)
    z = pattern.view(rows, n_kv, (n // n_kv) * n_queries, n_keys) @ v
    return z.view(rows, n, n_queries, d_head).transpose(1, 2)


def attend_to(
    attention: Attention,
    layer: int,
    q: Float[Tensor, "rows query n_heads d_head"],
    k: Float[Tensor, "rows pos n_kv d_head"],
    v: Float[Tensor, "rows pos n_kv d_head"],
    suffix: Suffix,
    last_only: bool,
) -> Float[Tensor, "rows query n_heads d_head"]:
    """Attention from the projections' outputs on the suffix to the whole prompt."""
    return attend(
        attention,
        prepare_queries(attention, q, suffix, last_only=last_only),
        after_prefix(suffix.keys[layer], prepare_keys(attention, k, suffix)),
        after_prefix(suffix.values[layer], prepare_values(attention, v)),
        suffix.mask(attention.window, q.device, last_only=last_only),
    )


def combine_heads(
    attention: Attention, z: Float[Tensor, "batch pos n_heads d_head"]
) -> Float[Tensor, "batch pos d_model"]:
    """The sum of all heads' outputs, and `b_O`."""
    out = z.flatten(2) @ attention.W_O.flatten(0, 1)
    out = out.to(residual_dtype(out.dtype))
    return out if attention.b_O is None else out + attention.b_O


def finish_attention(
    block: Block, raw: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """What attention adds to the residual stream: `raw`, normalised in Gemma 2 and 3."""
    norm = block.post_attention_norm
    return raw if norm is None else apply_norm(norm, raw)


def run_mlp(
    block: Block, x: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """What the MLP adds to the residual stream when its input is `x` (norms included)."""
    mlp = block.mlp
    normed = apply_norm(block.ln2, x).to(mlp.W_in.dtype)
    if mlp.W_gate is None:
        hidden = mlp.activation(F.linear(normed, mlp.W_in, mlp.b_in))
    else:
        gate = mlp.activation(F.linear(normed, mlp.W_gate, mlp.b_gate))
        hidden = gate * F.linear(normed, mlp.W_in, mlp.b_in)
    out = F.linear(hidden, mlp.W_out, mlp.b_out).to(x.dtype)
    return out if block.post_mlp_norm is None else apply_norm(block.post_mlp_norm, out)


# ---- layers and runs -----------------------------------------------------------------------------


def run_block(
    model: "Model",
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    suffix: Suffix,
    *,
    trace: list[LayerTrace] | None = None,
    expanded_kv: bool = False,
) -> Float[Tensor, "batch pos d_model"]:
    """One layer of the residual stream; the last layer returns the last token's position alone.

    Args:
        trace: what the layer computed is appended to it.
        expanded_kv: give every query head a k and a v of its own (copies), so that a gradient can
            be taken at each.
    """
    block, last_only = model.blocks[layer], layer == len(model.blocks) - 1
    attention, x = block.attention, x.to(block.device)
    normed = apply_norm(block.ln1, x)
    q = project(attention, "q", suffix.at_last(normed) if last_only else normed)
    k, v = project(attention, "k", normed), project(attention, "v", normed)
    if expanded_kv:
        copies = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(copies, dim=2), v.repeat_interleave(copies, dim=2)
    z = attend_to(attention, layer, q, k, v, suffix, last_only)
    raw = combine_heads(attention, z)
    before = suffix.at_last(x) if last_only else x
    after = before + finish_attention(block, raw)
    mlp_reads = before if model.config.parallel_attn_mlp else after
    # A node of its own in the autograd graph: its gradient is that of the MLP's input alone.
    mlp_in = mlp_reads.view_as(mlp_reads)
    mlp_out = run_mlp(block, mlp_in)
    if trace is not None:
        trace.append(LayerTrace(x, q, k, v, z, raw, mlp_in, mlp_out))
    return after + mlp_out


def run_layers(
    model: "Model",
    x: Float[Tensor, "batch pos d_model"],
    suffix: Suffix,
    *,
    first_layer: int = 0,
    trace: list[LayerTrace] | None = None,
    expanded_kv: bool = False,
) -> Float[Tensor, "batch d_model"]:
    """The residual stream at the last token after all layers, from `first_layer`'s input."""
    for layer in range(first_layer, len(model.blocks)):
        x = run_block(model, layer, x, suffix, trace=trace, expanded_kv=expanded_kv)
    return x[:, 0].to(suffix.last.device)


def embed(model: "Model", tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    """The token embedding: the output of the input node."""
    return F.embedding(tokens, model.W_E).to(model.residual_dtype) * model.embed_scale


def position_embedding(
    model: "Model", start: int, n_positions: int
) -> Float[Tensor, "pos d_model"] | float:
    """What is added to the token embeddings at positions from `start` on; 0.0 if nothing is."""
    if model.W_pos is None:
        return 0.0
    return model.W_pos[start : start + n_positions].to(model.device, model.residual_dtype)


def unembed(
    model: "Model",
    x: Float[Tensor, "*batch d_model"],
    token_ids: Int[Tensor, " n_tokens"] | None = None,
) -> Float[Tensor, "*batch n_tokens"]:
    """Final norm and logits: of the whole vocabulary, or of `token_ids` only."""
    W, b = model.W_U, model.b_U
    if token_ids is not None:
        token_ids = token_ids.to(W.device)
        W, b = W[token_ids], None if b is None else b[token_ids]
    normed = apply_norm(model.ln_final, x.to(W.device))
    logits = F.linear(normed.to(W.dtype), W, b).to(x)
    cap = model.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.no_grad()
def run_prefix(
    model: "Model",
    prefix: Int[Tensor, "batch start"],
    last: Int[Tensor, " batch"],
    n_positions: int,
) -> Suffix:
    """The suffix that follows `prefix`: runs the prefix once and keeps its keys and values."""
    batch, start = prefix.shape
    empty = [
        torch.empty(batch, W_K.shape[0], 0, W_K.shape[2], dtype=W_K.dtype, device=W_K.device)
        for W_K in (block.attention.W_K for block in model.blocks)
    ]
    if start == 0:
        return Suffix(0, n_positions, last, tuple(empty), tuple(empty))
    own = Suffix(0, start, torch.full_like(last, start - 1), tuple(empty), tuple(empty))
    x = embed(model, prefix) + position_embedding(model, 0, start)
    keys, values = [], []
    for layer, block in enumerate(model.blocks):
        trace: list[LayerTrace] = []
        if layer < len(model.blocks) - 1:
            x = run_block(model, layer, x, own, trace=trace)
            k, v = trace[0].k, trace[0].v
        else:
            normed = apply_norm(block.ln1, x.to(block.device))
            k, v = (project(block.attention, kind, normed) for kind in "kv")
        keys.append(prepare_keys(block.attention, k, own))
        values.append(prepare_values(block.attention, v))
    return Suffix(start, n_positions, last, tuple(keys), tuple(values))


@torch.no_grad()
def run_tokens(model: "Model", tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
    """Logits at the last position of prompts of one length."""
    batch, n_positions = tokens.shape
    last = torch.full((batch,), n_positions - 1, device=tokens.device)
    suffix = run_prefix(model, tokens[:, :0], last, n_positions)
    x = embed(model, tokens) + position_embedding(model, 0, n_positions)
    return unembed(model, run_layers(model, x, suffix))


def head_shares(
    block: Block,
    z: Float[Tensor, "batch pos n_heads d_head"],
    raw: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch pos n_heads d_head"]:
    """Z such that `z @ head_output_weights` is what each head adds to the residual stream.

    A norm after attention divides every head's output by the scale of their sum, `raw`.
    """
    norm = block.post_attention_norm
    return z if norm is None else z * norm_scale(norm, raw)[..., None]


def head_outputs(
    block: Block,
    shares: Float[Tensor, "batch pos n_heads d_head"],
    heads: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n batch pos d_model"]:
    """What each head (or each of `heads`) adds to the residual stream, biases apart."""
    W = block.head_output_weights
    if heads is not None:
        shares, W = shares[:, :, heads], W[heads]
    batch, pos, n, d_head = shares.shape
    flat = shares.permute(2, 0, 1, 3).reshape(n, batch * pos, d_head).to(W.dtype)
    return torch.bmm(flat, W).view(n, batch, pos, -1)


# ---- activation differences ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Differences:
    """What every sender adds to the residual stream, corrupted minus clean.

    Attributes:
        everywhere: of the senders before the last layer.
        at_last: of all senders, at the last token.
    """

    everywhere: Float[Tensor, "n_before_last batch pos d_model"]
    at_last: Float[Tensor, "n_forward batch 1 d_model"]


@torch.no_grad()
def run_both(
    model: "Model",
    clean: Float[Tensor, "batch pos d_model"],
    corrupted: Float[Tensor, "batch pos d_model"],
    suffix: Suffix,
    *,
    clean_trace: list[LayerTrace] | None = None,
    expanded_kv: bool = False,
) -> tuple[Differences, Float[Tensor, "batch d_model"]]:
    """Clean and corrupted run as one: the senders' differences, and the clean final residual.

    Args:
        clean_trace: if given, the clean run's layers are appended to it.
        expanded_kv: for that trace.
    """
    config, n_layers = model.config, len(model.blocks)
    batch, n_positions, d_model = clean.shape
    trace: list[LayerTrace] = []
    stacked = torch.cat([clean, corrupted])
    final = run_layers(model, stacked, suffix, trace=trace, expanded_kv=expanded_kv)
    everywhere = clean.new_empty(config.heads(n_layers - 1).start, batch, n_positions, d_model)
    at_last = clean.new_empty(config.n_forward, batch, 1, d_model)
    everywhere[0] = corrupted - clean  # position embeddings cancel
    for layer, own in enumerate(trace):
        block = model.blocks[layer]
        into = everywhere if layer < n_layers - 1 else at_last
        shares = head_shares(block, own.z, own.attention_raw).to(clean.dtype)
        into[config.heads(layer)] = head_outputs(block, _second_minus_first(shares)).to(clean.dtype)
        into[config.mlp_sender(layer)] = _second_minus_first(own.mlp_out)
    index = torch.arange(batch, device=clean.device)
    at_last[: len(everywhere)] = everywhere[:, index, suffix.last][:, :, None]
    if clean_trace is not None:
        clean_trace += [own.first_rows(batch) for own in trace]
    return Differences(everywhere, at_last), final[:batch]


def _second_minus_first(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return second - first
