"""Attention of a layer in a finished run, for computing it again with another q, k or v.

Exact values of edges into heads, the QK fix of AtP* and crossing scores ask many times how the
heads of one layer would change if q (or k, or v) read another input. The other two are computed
here once.
"""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from eap.model.blocks import Block
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.runs import LayerTrace


@dataclass(frozen=True, eq=False)
class HeldAttention:
    """Queries, keys and values of a layer's heads in a run, in the form that attention uses.

    Attributes:
        block: weights of the layer.
        run: trace of the layer in the run.
        cache: keys and values of the prefix that the batch shares.
        queries: queries at all positions at which the run has queries.
        keys, values: keys and values of the whole prompt, the prefix first.
        mask: mask of attention: 0 for keys that a query can see, minus infinity for others.
    """

    block: Block
    run: LayerTrace
    cache: PrefixCache
    queries: Float[Tensor, "batch n_heads query d_head"]
    keys: Float[Tensor, "batch n_kv key d_head"]
    values: Float[Tensor, "batch n_kv key d_head"]
    mask: Float[Tensor, "*rows query key"]

    @classmethod
    def of(cls, model: Model, layer: int, run: LayerTrace, cache: PrefixCache) -> "HeldAttention":
        """Attention of a layer in a run."""
        block = model.blocks[layer]
        attention, last_only = block.attention, _last_only(run)
        return cls(
            block=block,
            run=run,
            cache=cache,
            queries=attention.queries(run.q, cache, last_only=last_only),
            keys=cache.after_prefix(cache.keys[layer], attention.keys(run.k, cache)),
            values=cache.after_prefix(cache.values[layer], attention.values(run.v)),
            mask=cache.mask(attention.window, run.q.device, last_only=last_only),
        )

    @cached_property
    def pattern(self) -> Float[Tensor, "batch n_heads query key"]:
        """Attention patterns of the heads in the run."""
        return self.block.attention.pattern(self.queries, self.keys, self.mask)

    def pattern_with(
        self, kind: str, changes: Float[Tensor, "n batch pos d_model"]
    ) -> Float[Tensor, "rows n_heads query key"]:
        """Patterns if every q (or k: `kind`) reads a changed input; n changes, stacked."""
        attention, n = self.block.attention, len(changes)
        projected = self._projected(kind, changes)
        if kind == "q":
            queries = attention.queries(projected, self.cache, last_only=_last_only(self.run))
            return attention.pattern(queries, _repeated(self.keys, n), self.mask)
        prefix, keys = self.keys[:, :, : self.cache.start], attention.keys(projected, self.cache)
        keys = self.cache.after_prefix(prefix, keys)
        return attention.pattern(_repeated(self.queries, n), keys, self.mask)

    def change_of_z(
        self, kind: str, changes: Float[Tensor, "n batch pos d_model"]
    ) -> Float[Tensor, "n batch query n_heads d_head"]:
        """Change of z if every q (or k, or v: `kind`) reads a changed input."""
        attention, n = self.block.attention, len(changes)
        if kind == "v":
            prefix = self.values[:, :, : self.cache.start]
            values = attention.values(self._projected(kind, changes))
            values = self.cache.after_prefix(prefix, values)
            z = attention.average(_repeated(self.pattern, n), values)
        else:
            z = attention.average(self.pattern_with(kind, changes), _repeated(self.values, n))
        return z.unflatten(0, (n, -1)) - self.run.z

    def _projected(
        self, kind: str, changes: Float[Tensor, "n batch pos d_model"]
    ) -> Float[Tensor, "rows _query _n d_head"]:
        x = self.run.x
        normed = self.block.ln1((x + changes.to(x.device)).flatten(0, 1))
        if kind == "q":
            if _last_only(self.run):
                normed = self.cache.at_last(normed)
            return self.block.attention.project(kind, normed)
        projected = self.block.attention.project(kind, normed)
        # In expanded grouped-query attention, several receivers share a weight.
        return projected.repeat_interleave(self.run.k.shape[2] // projected.shape[2], dim=2)


def _last_only(run: LayerTrace) -> bool:
    """Whether the layer has queries at the last tokens only."""
    return run.q.shape[1] < run.x.shape[1]


def _repeated(x: Tensor, n: int) -> Tensor:
    """The rows of `x`, repeated n times."""
    return x if n == 1 else x.repeat(n, *[1] * (x.ndim - 1))
