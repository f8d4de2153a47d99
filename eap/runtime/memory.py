"""How many bytes a run takes, and the batch size that a budget allows.

Estimates count the large tensors of each part of the package; they are meant to be a little high.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from eap.data.batches import group_examples
from eap.data.dataset import Example
from eap.errors import UserError
from eap.runtime import distributed

if TYPE_CHECKING:
    from eap.model.loading import Model

# An allocator holds more than the tensors that are alive: for every byte of those, measured on
# glibc as growth of the resident set, up to 1.46 (backward passes) and 0.96 of the estimates below.
HELD = {"attribution": 1.6, "evaluation": 1.2, "patching": 1.2}

# Beyond this many tokens a batch gains nothing from being larger.
ENOUGH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}


def default_budget(device: torch.device) -> int:
    """Half of the memory that is free on `device` (a process's share of it), in bytes."""
    if device.type == "cuda":
        sharing = -(-distributed.count() // torch.cuda.device_count())
        return torch.cuda.mem_get_info(device)[0] // 2 // sharing
    return psutil.virtual_memory().available // 2 // distributed.count()


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model that memory and time depend on."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    gated: bool  # the MLP has a third matrix
    parallel: bool  # attention and MLP read the same input
    bytes: int = 4  # of a number of a residual stream

    @classmethod
    def of(cls, model: "Model") -> "Shapes":
        """Of a model."""
        config, block = model.config, model.blocks[0]
        return cls(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            d_model=config.d_model,
            d_head=block.attention.W_Q.shape[2],
            d_mlp=block.mlp.W_in.shape[0],
            d_vocab=model.W_U.shape[0],
            gated=block.mlp.W_gate is not None,
            parallel=config.parallel_attn_mlp,
            bytes=torch.finfo(model.residual_dtype).bits // 8,
        )

    @property
    def n_forward(self) -> int:
        """Senders."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_receivers_per_layer(self) -> int:
        """At the most: one q, k and v per head."""
        return 3 * self.n_heads

    @property
    def mlp_width(self) -> int:
        """Numbers that an MLP's first products make of a token."""
        return self.d_mlp * (2 if self.gated else 1)

    def trace(self, n_positions: int, n_keys: int) -> int:
        """What one run keeps per example when every layer's internals are kept."""
        per_layer = n_positions * 9 * self.d_model + 2 * n_keys * self.d_model
        return self.bytes * (self.n_layers * per_layer + 4 * self.d_vocab)

    def saved_for_backward(self, n_positions: int, n_keys: int) -> int:
        """What autograd keeps per example."""
        per_token = 18 * self.d_model + 4 * self.mlp_width + 5 * self.n_heads * n_keys
        return self.bytes * (self.n_layers * n_positions * per_token + 6 * self.d_vocab)

    def attribution(self, n_positions: int, n_keys: int, n_points: int) -> int:
        """What `eap.attribute` takes per example."""
        token = self.bytes * n_positions
        differences = token * self.n_forward * self.d_model
        gradients = token * self.n_receivers_per_layer * self.d_model * 2
        sums = token * self.n_layers * self.d_model * (3 + min(n_points, 8))
        scores = self.bytes * self.n_forward * self.n_receivers_per_layer
        runs = 2 * self.trace(n_positions, n_keys) + self.saved_for_backward(n_positions, n_keys)
        return differences + gradients + sums + scores + runs

    def evaluation(self, n_positions: int, n_keys: int) -> int:
        """What `eap.evaluate` takes per example: two traces, and one circuit at a time."""
        token = self.bytes * n_positions
        deltas = token * (self.n_forward + 2 * self.n_receivers_per_layer) * self.d_model
        return 2 * self.trace(n_positions, n_keys) + deltas + token * 2 * self.mlp_width

    def patching(self, n_positions: int, n_keys: int) -> int:
        """What `eap.patch_edges` takes per example, beside its runs."""
        differences = self.bytes * n_positions * self.n_forward * self.d_model
        return 3 * self.trace(n_positions, n_keys) + differences

    def patched_run(self, n_positions: int, n_keys: int) -> int:
        """What one patched run of one example takes."""
        per_token = 12 * self.d_model + 3 * self.mlp_width + 4 * self.n_heads * n_keys
        keys = 6 * n_keys * self.d_model
        return self.bytes * (n_positions * per_token + keys + 6 * self.d_vocab)


def choose_batch_size(
    model: "Model",
    examples: Sequence[Example],
    *,
    purpose: str,
    budget: int | None,
    n_points: int = 1,
) -> int:
    """The largest batch that stays within `budget` bytes (None: half of what is free).

    Args:
        purpose: 'attribution', 'evaluation' or 'patching'.
        n_points: of the integrated gradients' rule.

    Raises:
        UserError: a batch of one does not fit.
    """
    shapes, budget = Shapes.of(model), default_budget(model.device) if budget is None else budget
    groups = group_examples(examples)
    n_positions = max(group.n_positions for group in groups)
    n_keys = max(group.end for group in groups)
    if purpose == "attribution":
        per_example = shapes.attribution(n_positions, n_keys, n_points)
    elif purpose == "evaluation":
        per_example = shapes.evaluation(n_positions, n_keys)
    else:  # and one patched run, at the least
        per_example = shapes.patching(n_positions, n_keys)
        per_example += shapes.patched_run(n_positions, n_keys)
    per_example = int(per_example * HELD[purpose])
    if per_example > budget:
        raise UserError(
            f"a memory budget of {budget / 2**20:,.0f} MiB is too small: {purpose} takes "
            f"{per_example / 2**20:,.0f} MiB for one example of {n_keys} tokens"
        )
    enough = max(1, ENOUGH_TOKENS[model.device.type] // n_positions)
    return distributed.smallest(max(1, min(budget // per_example, enough, len(examples))))


def points_per_run(model: "Model", batch: int, n_positions: int) -> int:
    """How many points of a path run as one: more than this gains nothing."""
    return max(1, ENOUGH_TOKENS[model.device.type] // (batch * n_positions))


def patching_memory(
    model: "Model", examples: Sequence[Example], batch_size: int, tokens_per_run: int
) -> int:
    """Bytes that exact patching takes at the most, beside the weights."""
    fixed, per_edge, n_positions = _patching_costs(model, examples, batch_size)
    return fixed + per_edge * max(1, tokens_per_run // (batch_size * n_positions))


def patching_tokens(
    model: "Model", examples: Sequence[Example], batch_size: int, budget: int | None
) -> int:
    """How many tokens of patched runs are stacked: enough for efficiency, within the budget.

    Raises:
        UserError: not even one patched run fits beside the clean run; says what would.
    """
    budget = default_budget(model.device) if budget is None else budget
    fixed, per_edge, n_positions = _patching_costs(model, examples, batch_size)
    if fixed + per_edge > budget:
        raise UserError(
            f"a memory budget of {budget / 2**20:,.0f} MiB is too small to patch one edge in a "
            f"batch of {batch_size}: {(fixed + per_edge) / 2**20:,.0f} MiB is the least"
        )
    n_edges = (budget - fixed) // per_edge
    most = n_edges * batch_size * n_positions
    return distributed.smallest(min(ENOUGH_TOKENS[model.device.type], most))


def _patching_costs(
    model: "Model", examples: Sequence[Example], batch_size: int
) -> tuple[int, int, int]:
    """Bytes of a batch, bytes of one patched run of it, and the most positions of a run."""
    shapes, groups = Shapes.of(model), group_examples(examples)
    n_positions = max(group.n_positions for group in groups)
    n_keys = max(group.end for group in groups)
    held = batch_size * HELD["patching"]
    fixed = int(held * shapes.patching(n_positions, n_keys))
    return fixed, int(held * shapes.patched_run(n_positions, n_keys)), n_positions


# ---- operations ----------------------------------------------------------------------------------


def layer_operations(shapes: Shapes, *, n_queries: int, n_positions: int, n_keys: int) -> int:
    """Multiply-adds of one layer on one example: all keys and values, the rest at `n_queries`."""
    keys_and_values = 2 * n_positions * shapes.d_model * shapes.n_kv_heads * shapes.d_head
    all_heads = shapes.n_heads * shapes.d_head
    heads = 2 * n_queries * all_heads * (shapes.d_model + n_keys)
    return keys_and_values + heads + n_queries * mlp_operations(shapes)


def mlp_operations(shapes: Shapes) -> int:
    """Multiply-adds of one MLP on one token."""
    return (3 if shapes.gated else 2) * shapes.d_model * shapes.d_mlp


def patching_operations(
    shapes: Shapes, layer: int, kind: str, *, n_positions: int, n_keys: int, n_tokens: int
) -> int:
    """Multiply-adds of matrix products for one patched edge on one example.

    Args:
        shapes: of the model.
        layer: of the receiver.
        kind: of the receiver: 'q', 'k', 'v', 'mlp' or 'logits'.
        n_positions: that are computed.
        n_keys: positions of the whole prompt.
        n_tokens: that are unembedded.
    """
    unembedding = shapes.d_model * n_tokens
    if kind == "logits":
        return unembedding
    last = shapes.n_layers - 1
    queries = 1 if layer == last else n_positions
    rest = unembedding
    for at in range(layer + 1, shapes.n_layers):
        own_queries = 1 if at == last else n_positions
        rest += layer_operations(
            shapes, n_queries=own_queries, n_positions=n_positions, n_keys=n_keys
        )
    if kind == "mlp":
        return queries * mlp_operations(shapes) + rest
    own = n_positions * shapes.d_model * shapes.d_head + 2 * queries * n_keys * shapes.d_head
    own += queries * shapes.d_head * shapes.d_model
    return own + (0 if shapes.parallel else queries * mlp_operations(shapes)) + rest
