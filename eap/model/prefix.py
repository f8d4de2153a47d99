"""Prefix that all runs of a batch share, and its cache.

Before the first position at which an ablated run differs from the clean run, all activations of all
runs are the same. The keys and values of this prefix are computed once; runs compute the positions
after it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """Keys and values of the shared prefix; runs compute `n_positions` from position `start` on.

    Prompts are padded on the right. Causality keeps padding out of every real position, so masks
    need not exclude it. Rows may be stacked: methods accept any tensor whose number of rows is a
    multiple of the batch (copies outermost).

    Attributes:
        start: first position that is computed, the same for all rows.
        n_positions: number of positions of the longest row, from `start` on.
        last: index of the last token of each row, counted from `start`.
        keys, values: keys and values of the prefix, per layer; [batch, n_kv_heads, start, d_head].
    """

    start: int
    n_positions: int
    last: Int[Tensor, " batch"]
    keys: tuple[Float[Tensor, "batch n_kv_heads start d_head"], ...]
    values: tuple[Float[Tensor, "batch n_kv_heads start d_head"], ...]

    @property
    def end(self) -> int:
        """Number of positions of the longest prompt, including the prefix."""
        return self.start + self.n_positions

    def at_last(self, x: Float[Tensor, "rows pos *rest"]) -> Float[Tensor, "rows 1 *rest"]:
        """`x` at the last token of each row only."""
        last = self.last.to(x.device).repeat(x.shape[0] // len(self.last))
        return x[torch.arange(x.shape[0], device=x.device), last][:, None]

    def each_at_last(self, x: Float[Tensor, "n rows pos *rest"]) -> Float[Tensor, "n rows 1 *rest"]:
        """`x` at the last token of each row only, for several stacked tensors at once."""
        return self.at_last(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def mask(
        self, window: int | None, device: torch.device, *, last_only: bool
    ) -> Float[Tensor, "*rows query key"]:
        """Mask of attention: 0 for keys that a query can see, minus infinity for others.

        The shape is [pos, key], or [batch, 1, 1, key] with `last_only`.
        """
        keys = torch.arange(self.end, device=device)
        if last_only:
            queries = (self.start + self.last.to(device))[:, None, None, None]
        else:
            queries = keys[self.start :, None]
        hidden = keys > queries
        if window is not None:
            hidden = hidden | (keys <= queries - window)
        return torch.zeros(hidden.shape, device=device).masked_fill(hidden, -torch.inf)

    def after_prefix(
        self,
        prefix: Float[Tensor, "batch n_kv start d_head"],
        x: Float[Tensor, "rows n pos d_head"],
    ) -> Float[Tensor, "rows n key d_head"]:
        """Keys or values of the whole prompt: those of the prefix (repeated for stacks), then x."""
        copies, per_head = x.shape[0] // prefix.shape[0], x.shape[1] // prefix.shape[1]
        if per_head > 1:  # expanded grouped-query attention
            prefix = prefix.repeat_interleave(per_head, dim=1)
        return torch.cat([prefix.repeat(copies, 1, 1, 1) if copies > 1 else prefix, x], dim=2)
