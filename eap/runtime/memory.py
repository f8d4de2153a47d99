"""The memory budget: how many bytes a verb takes, and how many examples and runs fit at a time.

The memory of a verb has two parts: values that are *kept* for each example while its batch is
processed, and values for *each* of the runs that are stacked (points of a path, patched edges,
circuits). Batch size and number of stacked runs follow from their sum, so that together they stay
within the budget. The estimates count the large tensors of each part of the package and are meant
to be a little high. This module knows only sizes, not models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from eap.runtime import distributed
from eap.runtime.errors import UserError

# Bytes that an allocator holds for every byte of live tensors. For CPUs, the factor was measured as
# growth of the resident set (`benchmarks/run.py --only memory`); most is lost between batches of
# different sizes, which an accelerator's allocator returns to the device.
HELD = {"cpu": 1.75}
HELD_ELSEWHERE = 1.4

# Number of tokens beyond which a larger run is not more efficient, by type of device.
ENOUGH_TOKENS = {"cpu": 2048, "mps": 8192}
ENOUGH_TOKENS_ELSEWHERE = 32768


# ---- sizes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model that memory and time depend on."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    gated: bool  # the MLP has a third matrix
    parallel: bool  # attention and MLP read the same input
    bytes: int = 4  # bytes of a number in a residual stream

    @property
    def n_forward(self) -> int:
        """Number of senders."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_receivers_per_layer(self) -> int:
        """Largest number of receivers in a layer: one q, k and v per head, and the MLP."""
        return 3 * self.n_heads + 1

    @property
    def d_heads(self) -> int:
        """Width of the queries of all heads, which in some families is not d_model."""
        return self.n_heads * self.d_head

    @property
    def d_kv(self) -> int:
        """Width of the keys of all heads."""
        return self.n_kv_heads * self.d_head

    @property
    def mlp_width(self) -> int:
        """Width of the first products of an MLP."""
        return self.d_mlp * (2 if self.gated else 1)


@dataclass(frozen=True)
class Extent:
    """Size of a batch: examples, computed positions, and attended positions."""

    n_rows: int
    n_positions: int
    n_keys: int


@dataclass(frozen=True)
class Need:
    """Bytes that a verb takes for one example.

    Attributes:
        kept: bytes kept while the batch of the example is processed.
        each: further bytes for each of the stacked runs.
    """

    kept: int
    each: int


# ---- memory of verbs -----------------------------------------------------------------------------


def _trace(shapes: Shapes, extent: Extent) -> int:
    """Numbers of one run that keeps the internals of every layer, with the keys of the prefix."""
    per_token = 5 * shapes.d_model + 2 * shapes.d_heads + 2 * shapes.d_kv
    layer = extent.n_positions * per_token + 2 * extent.n_keys * shapes.d_kv
    return shapes.n_layers * layer


def _run(shapes: Shapes, extent: Extent, n_columns: int) -> int:
    """Numbers alive at once in a run that keeps nothing, including logits and their metrics."""
    attention = 4 * shapes.n_heads * extent.n_keys
    per_token = 8 * shapes.d_model + 6 * shapes.d_heads + 3 * shapes.mlp_width + attention
    return extent.n_positions * per_token + 6 * extent.n_keys * shapes.d_heads + 2 * n_columns


def attribution_need(
    shapes: Shapes, extent: Extent, n_points: int, n_columns: int, n_spans: int = 1
) -> Need:
    """Memory of `eap.attribute`, with gradients at `n_points` inputs and logits of `n_columns`."""
    n, layers = extent.n_positions, shapes.n_layers
    changes = n * shapes.n_forward * shapes.d_model
    # For one layer: gradients at its receivers' inputs, twice, and the scores in float64.
    gradients = 2 * n * shapes.n_receivers_per_layer * shapes.d_model
    scores = 8 * n_spans * shapes.n_forward * shapes.n_receivers_per_layer
    whole = n_spans * shapes.n_forward * layers * shapes.n_receivers_per_layer
    # Gradients summed over points, and x^ and c of every point (see `eap.engine.receivers`).
    sums = 2 * layers * n * (shapes.d_model + 3 * shapes.d_heads)
    points = n_points * (layers + 2) * n * (shapes.d_model + 3 * shapes.n_heads)
    kept = 3 * _trace(shapes, extent) + changes + gradients + scores + whole + sums + points
    # Values that autograd keeps, and the gradients.
    per_token = 14 * shapes.d_model + 10 * shapes.d_heads + 4 * shapes.mlp_width
    per_token += 5 * shapes.n_heads * extent.n_keys
    layer = n * per_token + 4 * extent.n_keys * shapes.d_heads
    each = layers * layer + 24 * n_columns
    return Need(kept * shapes.bytes, each * shapes.bytes)


def evaluation_need(shapes: Shapes, extent: Extent, n_circuits: int, n_columns: int) -> Need:
    """Memory of `eap.evaluate`, with the ablated run and one circuit at a time."""
    n = extent.n_positions
    ends = (2 + n_circuits) * shapes.d_model
    kept = 3 * _trace(shapes, extent) + ends + 16 * n_columns
    receivers = n * shapes.n_receivers_per_layer * (2 * shapes.d_model + 2 * shapes.d_head)
    changes = 2 * n * shapes.n_forward * shapes.d_model
    each = changes + receivers + _run(shapes, extent, 0)
    return Need(kept * shapes.bytes, each * shapes.bytes)


def patching_need(shapes: Shapes, extent: Extent, n_columns: int) -> Need:
    """Memory of `eap.patch_edges`, with the clean run, the senders' changes, and stacked edges."""
    changes = extent.n_positions * shapes.n_forward * shapes.d_model
    kept = 3 * _trace(shapes, extent) + changes + 16 * n_columns
    # The heads' changes are held for as many senders as edges are stacked.
    heads = extent.n_positions * (4 * shapes.d_heads + shapes.d_model)
    each = _run(shapes, extent, n_columns) + heads
    return Need(kept * shapes.bytes, each * shapes.bytes)


def mean_need(shapes: Shapes, extent: Extent, n_parts: int = 0) -> Need:
    """Memory of a mean over prompts: of all senders' outputs, or of `n_parts` coefficients."""
    # The senders' outputs are in memory twice while they are collected.
    n = extent.n_positions
    outputs = 2 * n * (shapes.n_forward + 2) * shapes.d_model + 3 * n * n_parts
    kept = _trace(shapes, extent) + outputs
    # For one sender: its outputs without padding, in float64.
    each = _run(shapes, extent, 0) + 5 * n * max(shapes.d_model, n_parts)
    return Need(kept * shapes.bytes, each * shapes.bytes)


# ---- the budget ----------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Free memory of `device` for tensors of this process.

    Memory that an accelerator's allocator has reserved and does not use counts as free.
    """
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        held = backend.memory_reserved(device) - backend.memory_allocated(device)
        return backend.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def sharing(device: torch.device) -> int:
    """Number of processes that share the memory of one device."""
    if device.type in ("cuda", "xpu"):
        return -(-distributed.count() // max(1, getattr(torch, device.type).device_count()))
    return distributed.count()


@dataclass(frozen=True)
class Budget:
    """Memory budget, not counting the weights, and how much to run at a time within it.

    Attributes:
        n_bytes: number of bytes that may be used.
        enough_tokens: number of tokens beyond which a larger run is not more efficient.
        reserved: bytes of the budget that results take, whatever the batch size.
        is_given: whether the user gave the budget; if so, work that does not fit is refused.
        held: bytes that the allocator holds for every byte of live tensors.
    """

    n_bytes: int
    enough_tokens: int
    reserved: int = 0
    is_given: bool = True
    held: float = HELD_ELSEWHERE

    @classmethod
    def of(cls, device: torch.device, n_bytes: int | None = None, reserved: int = 0) -> "Budget":
        """Budget that the user gave; None: half of the free memory (of this process's share)."""
        enough = ENOUGH_TOKENS.get(device.type, ENOUGH_TOKENS_ELSEWHERE)
        held = HELD.get(device.type, HELD_ELSEWHERE)
        if n_bytes is not None:
            return cls(n_bytes, enough, reserved, held=held)
        half = free_bytes(device) // 2 // sharing(device)
        return cls(half, enough, reserved, is_given=False, held=held)

    def batch_size(
        self, extents: Sequence[Extent], need_of: Callable[[Extent], Need], what: str
    ) -> int:
        """Largest batch size with which at least one run fits, the same in every process.

        Args:
            extents: extents of the groups of examples that batches are taken from.
            need_of: function that gives the memory of one example of a group.
            what: name of the work, for the message.

        Raises:
            UserError: a batch of one example does not fit.
        """
        largest = 1
        limits = []
        needs = [need_of(extent) for extent in extents]
        ones = [self._held(need.kept + need.each) for need in needs]
        most = max(ones, default=0)
        if self.reserved + most > self.n_bytes:
            raise UserError(
                f"a memory budget of {_mib(self.n_bytes)} is too small: {what} takes "
                f"{_mib(self.reserved + most)} for one example of "
                f"{extents[ones.index(most)].n_keys} tokens"
            )
        for extent, one in zip(extents, ones, strict=True):
            enough = max(1, self.enough_tokens // extent.n_positions)
            fits = min((self.n_bytes - self.reserved) // one, enough)
            largest = max(largest, extent.n_rows)
            if fits < extent.n_rows:
                limits.append(fits)
        return distributed.smallest(min([largest, *limits]))

    def runs_at_once(self, extent: Extent, need: Need, what: str) -> int:
        """Number of runs of a batch to stack: enough for efficiency, within the budget.

        Raises:
            UserError: not even one run fits in a budget that the user gave.
        """
        kept, each = (self._held(part * extent.n_rows) for part in (need.kept, need.each))
        kept += self.reserved
        if kept + each > self.n_bytes and self.is_given:
            raise UserError(
                f"a memory budget of {_mib(self.n_bytes)} is too small for {what} in a batch of "
                f"{extent.n_rows}: {_mib(kept + each)} is the least"
            )
        enough = self.enough_tokens // (extent.n_rows * extent.n_positions)
        return max(1, min(enough, (self.n_bytes - kept) // max(1, each)))

    def bytes_of(self, extent: Extent, need: Need, n_runs: int) -> int:
        """Memory of a batch with `n_runs` stacked runs, including results."""
        return self.reserved + self._held(extent.n_rows * (need.kept + n_runs * need.each))

    def _held(self, n_bytes: int) -> int:
        return int(n_bytes * self.held)


def _mib(n_bytes: int) -> str:
    """Bytes in MiB, rounded up, with at least two digits."""
    mib = n_bytes / 2**20
    return f"{-(-mib // 1):,.0f} MiB" if mib >= 10 else f"{-(-mib * 10 // 1) / 10:,.1f} MiB"
