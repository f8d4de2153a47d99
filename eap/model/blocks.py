"""Components of a transformer layer, with their weights and computations.

Matrix products run in the dtype of the weights; residual streams and norms are float32 or wider.
Every function takes `BackwardRules`, which change how gradients flow and leave values unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from eap.model.backward import frozen_activation, frozen_norm, scale_gradient, tempered_softmax
from eap.model.prefix import PrefixCache
from eap.model.rules import EXACT, BackwardRules

RotaryTable = Callable[[int], tuple[Tensor, Tensor]]


def residual_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of residual streams and norms: float32, or float64 for float64 weights."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class Norm:
    """Norm over the last dimension: LayerNorm, RMSNorm, or none at all.

    Attributes:
        weight, bias: weight and bias; None if the norm has none.
        eps: constant that is added to the variance (or mean square).
        kind: 'layer', 'rms', or 'none' (the identity, for hand-made models without norms).
    """

    weight: Float[Tensor, " d_norm"] | None
    bias: Float[Tensor, " d_norm"] | None
    eps: float
    kind: Literal["layer", "rms", "none"]

    def __call__(
        self, x: Float[Tensor, "*batch d_norm"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "*batch d_norm"]:
        """The normalised `x`, times the weight, plus the bias."""
        if self.kind == "none":
            return x
        if rules.frozen_norms:
            return frozen_norm(self, x)
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)

    def centre(self, x: Float[Tensor, "*batch d_norm"]) -> Float[Tensor, "*batch d_norm"]:
        """`x` minus its mean if the norm removes the mean, else `x`."""
        return x - x.mean(dim=-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Float[Tensor, "*batch d_norm"]) -> Float[Tensor, "*batch 1"]:
        """Factor that the norm multiplies by: 1 / sqrt(variance (or mean square) + eps)."""
        if self.kind == "none":
            return torch.ones_like(x[..., :1])
        return torch.rsqrt(self.centre(x).square().mean(dim=-1, keepdim=True) + self.eps)

    def hat(self, x: Float[Tensor, "*batch d_norm"]) -> Float[Tensor, "*batch d_norm"]:
        """The normalised `x`, without weight and bias."""
        if self.kind == "none":
            return x
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return F.rms_norm(x, x.shape[-1:], eps=self.eps)

    def pull_back_weights(
        self, W: Float[Tensor, "n d_norm d_out"]
    ) -> Float[Tensor, "n d_out d_norm"]:
        """Transposed weights of a projection that follows the norm, with the norm's linear part.

        Let g be the gradient at the output y of the projection. The gradient G at the input of the
        norm is then (with r = scale, x^ = hat, and y_0 the projection of the bias alone)

            G = (r g) @ pull_back_weights(W) - x^ c,    c = r / d_norm * sum(g * (y - y_0)).

        The second term is the gradient of the scale; it is absent if the scale is frozen, or if
        there is no norm.
        """
        back = rearrange(W, "n d_norm d_out -> n d_out d_norm").to(residual_dtype(W.dtype))
        if self.weight is not None:
            back = back * self.weight
        return self.centre(back)


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of one layer: weights for `x @ W + b`, and how q and k give attention scores."""

    W_Q: Float[Tensor, "n_heads d_model d_head"]
    W_K: Float[Tensor, "n_kv_heads d_model d_head"]
    W_V: Float[Tensor, "n_kv_heads d_model d_head"]
    W_O: Float[Tensor, "n_heads d_head d_model"]
    b_Q: Float[Tensor, "n_heads d_head"] | None
    b_K: Float[Tensor, "n_kv_heads d_head"] | None
    b_V: Float[Tensor, "n_kv_heads d_head"] | None
    b_O: Float[Tensor, " d_model"] | None
    scale: float
    window: int | None  # number of positions that a query sees: its own and the ones before it
    softcap: float | None
    clip: float | None  # q, k and v are clamped to [-clip, clip] (OLMo)
    q_norm: Norm | None
    k_norm: Norm | None
    rotary: RotaryTable | None  # number of positions -> cos, sin [pos, d_rotary]
    rotary_interleaved: bool  # pairs (0, 1), (2, 3), .. instead of (0, d/2), (1, d/2 + 1), ..

    def projection(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """Weight [n, d_model, d_head] and bias [n, d_head] of the projection to 'q', 'k' or 'v'."""
        name = kind.upper()
        return getattr(self, f"W_{name}"), getattr(self, f"b_{name}")

    def project(
        self, kind: str, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos n d_head"]:
        """q, k or v (`kind`) of every head, from the normalised residual stream."""
        W, b = self.projection(kind)
        flat = rearrange(W, "n d_model d_head -> d_model (n d_head)")  # a view (see `families`)
        out = rearrange(
            x.to(W.dtype) @ flat, "batch pos (n d_head) -> batch pos n d_head", n=len(W)
        )
        return out if b is None else out + b

    def project_each(
        self,
        kind: str,
        x: Float[Tensor, "n batch pos d_model"],
        heads: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "batch pos n d_head"]:
        """q, k or v of some heads, each from its own input.

        Args:
            kind: 'q', 'k' or 'v'.
            x: normalised inputs.
            heads: heads whose weights are used, one per input; None: all heads, each for several
                consecutive inputs if there are more inputs than heads.
        """
        W, b = self.projection(kind)
        if heads is not None:
            W, b = W[heads], None if b is None else b[heads]
        copies = len(x) // len(W) if len(W) else 1
        flat = rearrange(
            x, "(n copies) batch pos d_model -> n (copies batch pos) d_model", copies=copies
        )
        out = torch.bmm(flat.to(W.dtype), W)
        if b is not None:
            out = out + b[:, None]
        _, batch, pos, _ = x.shape
        return rearrange(
            out,
            "n (copies batch pos) d_head -> batch pos (n copies) d_head",
            copies=copies,
            batch=batch,
            pos=pos,
        )

    def output_at_zero(self, norm: Norm, kind: str) -> Float[Tensor, "n d_head"]:
        """q, k or v for a normalised input of zero, which comes from the biases alone."""
        W, b = self.projection(kind)
        out = torch.zeros_like(W[:, 0]) if b is None else b
        return out if norm.bias is None else out + norm.bias.to(W.dtype) @ W

    # ---- from projections to what attention uses ------------------------------------------------

    def queries(
        self,
        q: Float[Tensor, "batch pos n d_head"],
        cache: PrefixCache,
        *,
        last_only: bool,
        rules: BackwardRules = EXACT,
    ) -> Float[Tensor, "batch n pos d_head"]:
        """Queries as attention uses them: clipped and normalised in some families, and rotated."""
        q = _normed_heads(self.q_norm, self._clipped(q), rules)
        return self.turned(q, cache, last_only=last_only).transpose(1, 2)

    def keys(
        self,
        k: Float[Tensor, "batch pos n d_head"],
        cache: PrefixCache,
        rules: BackwardRules = EXACT,
    ) -> Float[Tensor, "batch n pos d_head"]:
        """Keys as attention uses them: clipped and normalised in some families, and rotated."""
        k = _normed_heads(self.k_norm, self._clipped(k), rules)
        return self.turned(k, cache, last_only=False).transpose(1, 2)

    def values(self, v: Float[Tensor, "batch pos n d_head"]) -> Float[Tensor, "batch n pos d_head"]:
        """Values as attention uses them: clipped in some families."""
        return self._clipped(v).transpose(1, 2)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def turned(
        self, x: Float[Tensor, "batch pos n d_head"], cache: PrefixCache, *, last_only: bool
    ) -> Float[Tensor, "batch pos n d_head"]:
        """Apply the rotary position embedding; with `last_only`, x has only the last tokens."""
        if self.rotary is None:
            return x
        tables = self.rotary(cache.end)
        if last_only:
            last = (cache.start + cache.last).repeat(x.shape[0] // len(cache.last))
            cos, sin = (table[last][:, None, None].to(x) for table in tables)  # [b, 1, 1, d_rot]
        else:
            cos, sin = (table[cache.start :, None].to(x) for table in tables)  # [pos, 1, d_rot]
        d_rotary = cos.shape[-1]
        turned, rest = x[..., :d_rotary], x[..., d_rotary:]
        if self.rotary_interleaved:
            partner = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = turned.chunk(2, dim=-1)
            partner = torch.cat([-second, first], dim=-1)
        turned = turned * cos + partner * sin
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    # ---- attention ------------------------------------------------------------------------------

    def pattern(
        self,
        q: Float[Tensor, "rows n query d_head"],
        k: Float[Tensor, "rows n_kv key d_head"],
        mask: Float[Tensor, "*rows query key"],
        rules: BackwardRules = EXACT,
    ) -> Float[Tensor, "rows n query key"]:
        """Attention pattern of every head; if there are fewer key heads, query heads share them."""
        rows, n, n_queries, _ = q.shape
        n_kv, n_keys = k.shape[1], k.shape[2]
        q, k = scale_gradient(q, rules.query_key), scale_gradient(k, rules.query_key)
        grouped = q.reshape(rows, n_kv, (n // n_kv) * n_queries, -1)
        scores = (grouped @ k.transpose(2, 3)).view(rows, n, n_queries, n_keys) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if mask.ndim == 4:  # one mask per example
            mask = mask.repeat(rows // mask.shape[0], 1, 1, 1)
        scores = scores.to(residual_dtype(scores.dtype)) + mask
        return tempered_softmax(scores, rules.softmax_temperature)

    def average(
        self,
        pattern: Float[Tensor, "rows n query key"],
        v: Float[Tensor, "rows n_kv key d_head"],
        rules: BackwardRules = EXACT,
    ) -> Float[Tensor, "rows query n d_head"]:
        """Average of the values for every head, z."""
        rows, n, n_queries, n_keys = pattern.shape
        n_kv, d_head = v.shape[1], v.shape[3]
        pattern = scale_gradient(pattern, rules.pattern_value).to(v.dtype)
        v = scale_gradient(v, rules.pattern_value)
        z = pattern.view(rows, n_kv, (n // n_kv) * n_queries, n_keys) @ v
        return z.view(rows, n, n_queries, d_head).transpose(1, 2)

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "rows query n_heads d_head"],
        k: Float[Tensor, "rows pos n_kv d_head"],
        v: Float[Tensor, "rows pos n_kv d_head"],
        cache: PrefixCache,
        *,
        last_only: bool,
        rules: BackwardRules = EXACT,
    ) -> Float[Tensor, "rows query n_heads d_head"]:
        """Compute z from the projections after the prefix, with attention to the whole prompt."""
        queries = self.queries(q, cache, last_only=last_only, rules=rules)
        keys = cache.after_prefix(cache.keys[layer], self.keys(k, cache, rules))
        values = cache.after_prefix(cache.values[layer], self.values(v))
        mask = cache.mask(self.window, q.device, last_only=last_only)
        return self.average(self.pattern(queries, keys, mask, rules), values, rules)

    def combine(
        self, z: Float[Tensor, "batch pos n_heads d_head"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Sum of the outputs of all heads and `b_O`."""
        out = z.flatten(2) @ self.W_O.flatten(0, 1)
        out = out.to(residual_dtype(out.dtype))
        return out if self.b_O is None else out + self.b_O


def _normed_heads(norm: Norm | None, x: Tensor, rules: BackwardRules) -> Tensor:
    return x if norm is None else norm(x.to(residual_dtype(x.dtype)), rules).to(x.dtype)


@dataclass(frozen=True, eq=False)
class MLP:
    """MLP of one layer: weights in the form of `F.linear`; gated if there is a `W_gate`."""

    W_in: Float[Tensor, "d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"] | None
    W_gate: Float[Tensor, "d_mlp d_model"] | None
    b_gate: Float[Tensor, " d_mlp"] | None
    W_out: Float[Tensor, "d_model d_mlp"]
    b_out: Float[Tensor, " d_model"] | None
    activation: Callable[[Tensor], Tensor]

    def __call__(
        self, x: Float[Tensor, "batch pos d_model"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "batch pos d_model"]:
        """Output for normalised inputs, in the dtype of the weights."""
        return F.linear(self.hidden(x, rules), self.W_out, self.b_out)

    def hidden(
        self, x: Float[Tensor, "batch pos d_model"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "batch pos d_mlp"]:
        """Activations of the hidden units: act(in), or act(gate) * in for a gated MLP."""
        return self.activate(*self.inputs(x), rules=rules)

    def inputs(
        self, x: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Float[Tensor, "batch pos d_mlp"], ...]:
        """Inputs of the hidden units: in, and for a gated MLP also gate."""
        x = x.to(self.W_in.dtype)
        into = F.linear(x, self.W_in, self.b_in)
        return (into,) if self.W_gate is None else (into, F.linear(x, self.W_gate, self.b_gate))

    def activate(
        self, into: Tensor, gate: Tensor | None = None, *, rules: BackwardRules = EXACT
    ) -> Float[Tensor, "batch pos d_mlp"]:
        """Activations of the hidden units, from their inputs."""
        bent = into if gate is None else gate
        if rules.frozen_activations:
            bent = frozen_activation(bent, self.activation)
        else:
            bent = self.activation(bent)
        return bent if gate is None else scale_gradient(bent * into, rules.gate_product)


@dataclass(frozen=True, eq=False)
class Block:
    """One layer: `ln1`, attention, `ln2`, MLP; in Gemma 2 and 3 also norms after both sublayers."""

    ln1: Norm
    attention: Attention
    post_attention_norm: Norm | None
    ln2: Norm
    mlp: MLP
    post_mlp_norm: Norm | None

    @property
    def device(self) -> torch.device:
        """Device of the layer's weights; with a device map, layers may be on several devices."""
        return self.attention.W_Q.device

    def finish_attention(
        self, raw: Float[Tensor, "*n batch pos d_model"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "*n batch pos d_model"]:
        """Output of attention to the residual stream: `raw`, normalised in Gemma 2 and 3."""
        norm = self.post_attention_norm
        return raw if norm is None else norm(raw, rules)

    def run_mlp(
        self, x: Float[Tensor, "batch pos d_model"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "batch pos d_model"]:
        """Output of the MLP to the residual stream for the input `x` (including norms)."""
        out = self.mlp(self.ln2(x, rules), rules).to(x.dtype)
        return out if self.post_mlp_norm is None else self.post_mlp_norm(out, rules)

    # ---- single heads ----------------------------------------------------------------------------

    @cached_property
    def head_output_weights(self) -> Float[Tensor, "n_heads d_head d_model"]:
        """`W_O`, with the weight of the norm after attention, if there is one."""
        W_O, norm = self.attention.W_O, self.post_attention_norm
        return W_O if norm is None or norm.weight is None else (W_O * norm.weight).to(W_O.dtype)

    def scaled_z(
        self,
        z: Float[Tensor, "batch pos n_heads d_head"],
        raw: Float[Tensor, "batch pos d_model"],
    ) -> Float[Tensor, "batch pos n_heads d_head"]:
        """z, scaled so that `z @ head_output_weights` is each head's output to the residual stream.

        A norm after attention divides the output of every head by the scale of their sum, `raw`.
        """
        norm = self.post_attention_norm
        return z if norm is None else z * norm.scale(raw)[..., None]

    def head_outputs(
        self,
        scaled_z: Float[Tensor, "batch pos n_heads d_head"],
        heads: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n batch pos d_model"]:
        """Output of each head (or each of `heads`) to the residual stream, without biases."""
        W = self.head_output_weights
        if heads is not None:
            scaled_z, W = scaled_z[:, :, heads], W[heads]
        flat = rearrange(scaled_z, "batch pos n d_head -> n (batch pos) d_head").to(W.dtype)
        return rearrange(
            torch.bmm(flat, W), "n (batch pos) d -> n batch pos d", batch=len(scaled_z)
        )
