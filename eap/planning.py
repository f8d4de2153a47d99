"""How many bytes a run takes, and the batch size that a budget allows.

Estimates count the large tensors of each part of the package; they are meant to be a little high.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from eap import processes
from eap.batches import group_examples
from eap.data import Example
from eap.errors import UserError

if TYPE_CHECKING:
    from eap.models import Model

# Beyond this many tokens a batch gains nothing from being larger.
ENOUGH_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 32768}


def default_budget(device: torch.device) -> int:
    """Half of the memory that is free on `device` (a process's share of it), in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return psutil.virtual_memory().available // 2 // processes.count()


@dataclass(frozen=True)
class Shapes:
    """The sizes that memory depends on."""

    n_layers: int
    n_heads: int
    n_forward: int
    n_receivers_per_layer: int
    d_model: int
    d_mlp: int
    d_vocab: int
    bytes: int  # of a number

    @classmethod
    def of(cls, model: "Model") -> "Shapes":
        """Of a model."""
        config, mlp = model.config, model.blocks[0].mlp
        return cls(
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_forward=config.n_forward,
            n_receivers_per_layer=3 * config.n_heads,
            d_model=config.d_model,
            d_mlp=mlp.W_in.shape[0] * (1 if mlp.W_gate is None else 2),
            d_vocab=model.W_U.shape[0],
            bytes=torch.finfo(model.residual_dtype).bits // 8,
        )

    def trace(self, n_positions: int, n_keys: int) -> int:
        """What one run keeps per example when every layer's internals are kept."""
        per_layer = n_positions * 9 * self.d_model + 2 * n_keys * self.d_model
        return self.bytes * (self.n_layers * per_layer + 4 * self.d_vocab)

    def saved_for_backward(self, n_positions: int, n_keys: int) -> int:
        """What autograd keeps per example."""
        per_token = 18 * self.d_model + 4 * self.d_mlp + 5 * self.n_heads * n_keys
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
        return 2 * self.trace(n_positions, n_keys) + deltas + token * 2 * self.d_mlp

    def patching(self, n_positions: int, n_keys: int) -> int:
        """What `eap.patch_edges` takes per example, beside its runs."""
        differences = self.bytes * n_positions * self.n_forward * self.d_model
        return 3 * self.trace(n_positions, n_keys) + differences

    def patched_run(self, n_positions: int, n_keys: int) -> int:
        """What one patched run of one example takes."""
        per_token = 12 * self.d_model + 3 * self.d_mlp + 4 * self.n_heads * n_keys
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
    else:
        per_example = shapes.patching(n_positions, n_keys)
    if per_example > budget:
        raise UserError(
            f"a memory budget of {budget / 2**20:,.0f} MiB is too small: {purpose} takes "
            f"{per_example / 2**20:,.0f} MiB for one example of {n_keys} tokens"
        )
    enough = max(1, ENOUGH_TOKENS[model.device.type] // n_positions)
    return processes.smallest(max(1, min(budget // per_example, enough)))


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
    return processes.smallest(min(ENOUGH_TOKENS[model.device.type], most))


def _patching_costs(
    model: "Model", examples: Sequence[Example], batch_size: int
) -> tuple[int, int, int]:
    """Bytes of a batch, bytes of one patched run of it, and the most positions of a run."""
    shapes, groups = Shapes.of(model), group_examples(examples)
    n_positions = max(group.n_positions for group in groups)
    n_keys = max(group.end for group in groups)
    fixed = batch_size * shapes.patching(n_positions, n_keys)
    return fixed, batch_size * shapes.patched_run(n_positions, n_keys), n_positions


# ---- operations ----------------------------------------------------------------------------------


def patching_operations(
    model: "Model", layer: int, kind: str, *, n_positions: int, n_keys: int, n_tokens: int
) -> int:
    """Multiply-adds of matrix products for one patched edge on one example.

    Args:
        model: whose edge.
        layer: of the receiver.
        kind: of the receiver: 'q', 'k', 'v', 'mlp' or 'logits'.
        n_positions: that are computed.
        n_keys: positions of the whole prompt.
        n_tokens: that are unembedded.
    """
    config = model.config
    attention, mlp = model.blocks[0].attention, model.blocks[0].mlp
    d_model, d_head = config.d_model, attention.W_Q.shape[2]
    n_heads, n_kv = config.n_heads, attention.W_K.shape[0]
    mlp_token = (2 if mlp.W_gate is None else 3) * d_model * mlp.W_in.shape[0]
    last = config.n_layers - 1

    def whole_layer(at: int) -> int:
        queries = 1 if at == last else n_positions
        keys_and_values = 2 * n_positions * d_model * n_kv * d_head
        heads = 2 * queries * d_model * n_heads * d_head + 2 * queries * n_keys * n_heads * d_head
        return keys_and_values + heads + queries * mlp_token

    unembedding = d_model * n_tokens
    if kind == "logits":
        return unembedding
    queries = 1 if layer == last else n_positions
    rest = sum(whole_layer(at) for at in range(layer + 1, config.n_layers)) + unembedding
    if kind == "mlp":
        return queries * mlp_token + rest
    own = n_positions * d_model * d_head + 2 * queries * n_keys * d_head
    own += queries * d_head * d_model
    return own + (0 if config.parallel_attn_mlp else queries * mlp_token) + rest
