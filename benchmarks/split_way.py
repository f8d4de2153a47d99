"""Reference implementation for comparisons: split inputs with hooks of TransformerLens's bridge.

TransformerLens gives every head a copy of the residual stream for each of q, k and v, and a hook on
each copy and on each head's output. Attribution hooks the gradients of all copies, evaluation
rewrites all copies, and patching rewrites one copy per run. The implementation follows published
code, without its mistakes, and is as fast as split inputs allow.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.graph.graph import GraphConfig

Loss = Callable[[Float[Tensor, "batch d_vocab"]], Float[Tensor, ""]]


def prepare(bridge: Any) -> None:
    """Switch the split inputs and per-head results on."""
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_attn_result(True)
    bridge.set_use_hook_mlp_in(True)


def plain(bridge: Any) -> None:
    """Switch the split inputs and per-head results off."""
    bridge.set_use_split_qkv_input(False)
    bridge.set_use_attn_result(False)
    bridge.set_use_hook_mlp_in(False)


def sender_hooks(config: GraphConfig) -> list[tuple[str, slice]]:
    """Hook point of each sender's output."""
    hooks = [("embed.hook_out", slice(0, 1))]
    for layer in range(config.n_layers):
        mlp = config.mlp_sender(layer)
        hooks.append((f"blocks.{layer}.attn.hook_result", config.heads(layer)))
        hooks.append((f"blocks.{layer}.mlp.hook_out", slice(mlp, mlp + 1)))
    return hooks


def receiver_hooks(config: GraphConfig) -> list[tuple[str, slice, int]]:
    """Hook point of each receiver's input, its columns, and the number of senders that it reads."""
    hooks = []
    for layer in range(config.n_layers):
        n_senders = config.senders_before(layer, "attention")
        for kind in "qkv":
            name = f"blocks.{layer}.attn.hook_{kind}_input"
            hooks.append((name, config.receivers(layer, kind), n_senders))
        column = config.mlp_receiver(layer)
        mlp = (f"blocks.{layer}.hook_mlp_in", slice(column, column + 1))
        hooks.append((*mlp, config.senders_before(layer, "mlp")))
    column = config.logits_receiver
    hooks.append(("ln_final.hook_in", slice(column, column + 1), config.n_forward))
    return hooks


def _per_node(x: Tensor) -> Float[Tensor, "batch pos n d_model"]:
    return x if x.ndim == 4 else x[:, :, None]


def record_senders(
    bridge: Any, config: GraphConfig, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos n_forward d_model"], Float[Tensor, "batch d_vocab"]]:
    """Outputs of all senders, and the logits at the last position."""
    outputs = torch.empty(*tokens.shape, config.n_forward, config.d_model)

    def record(rows: slice) -> Callable[[Tensor, Any], None]:
        def hook(x: Tensor, hook: Any) -> None:
            outputs[:, :, rows] = _per_node(x)

        return hook

    hooks = [(name, record(rows)) for name, rows in sender_hooks(config)]
    with torch.no_grad():
        logits = bridge.run_with_hooks(tokens, fwd_hooks=hooks, prepend_bos=False)
    return outputs, logits[:, -1]


def eap_ig(
    bridge: Any,
    config: GraphConfig,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    loss: Loss,
    points: Sequence[float],
) -> Float[Tensor, "n_forward n_backward"]:
    """EAP-IG: a split forward and backward pass per point, contracted inside the hooks."""
    on_clean, _ = record_senders(bridge, config, clean)
    on_corrupted, _ = record_senders(bridge, config, corrupted)
    differences = on_corrupted - on_clean
    scores = torch.zeros(config.n_forward, config.n_backward)

    def contract(columns: slice, n_senders: int) -> Callable[[Any, Any], None]:
        def hook(gradient: Any, hook: Any) -> None:
            own = _per_node(gradient[0] if isinstance(gradient, tuple) else gradient)
            scores[:n_senders, columns] += torch.einsum(
                "bpfd,bphd->fh", differences[:, :, :n_senders], own
            )

        return hook

    backward = [(name, contract(columns, n)) for name, columns, n in receiver_hooks(config)]
    for point in points:
        embedding = on_corrupted[:, :, 0] + point * (on_clean[:, :, 0] - on_corrupted[:, :, 0])
        start = embedding.requires_grad_()
        forward = [("embed.hook_out", lambda x, hook, start=start: start)]
        with bridge.hooks(fwd_hooks=forward, bwd_hooks=backward):
            loss(bridge(clean, prepend_bos=False)[:, -1]).backward()
    return scores / (len(points) * len(clean))


@torch.no_grad()
def evaluate(
    bridge: Any,
    config: GraphConfig,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    in_graph: Bool[Tensor, "n_forward n_backward"],
) -> Float[Tensor, "batch d_vocab"]:
    """Last logits with all edges outside a circuit corrupted, by a corrupted and a patched run."""
    differences, _ = record_senders(
        bridge, config, corrupted
    )  # minus the live outputs, as they come
    outside = (~in_graph).float()

    def subtract(rows: slice) -> Callable[[Tensor, Any], None]:
        def hook(x: Tensor, hook: Any) -> None:
            differences[:, :, rows] -= _per_node(x)

        return hook

    def rewrite(columns: slice, n_senders: int) -> Callable[[Tensor, Any], Tensor]:
        def hook(x: Tensor, hook: Any) -> Tensor:
            change = torch.einsum(
                "bpfd,fh->bphd", differences[:, :, :n_senders], outside[:n_senders, columns]
            )
            return x + (change if x.ndim == 4 else change[:, :, 0])

        return hook

    hooks: list[tuple[str, Any]] = [(name, subtract(rows)) for name, rows in sender_hooks(config)]
    hooks += [(name, rewrite(columns, n)) for name, columns, n in receiver_hooks(config)]
    return bridge.run_with_hooks(clean, fwd_hooks=hooks, prepend_bos=False)[:, -1]


def mask_gradient(
    bridge: Any,
    config: GraphConfig,
    clean: Int[Tensor, "batch pos"],
    on_corrupted: Float[Tensor, "batch pos n_forward d_model"],
    masks: Float[Tensor, "n_forward n_backward"],
    loss: Loss,
) -> Float[Tensor, "n_forward n_backward"]:
    """Gradient of the loss with respect to a soft circuit's masks, from one run with patches."""
    outside = 1 - masks.clone().requires_grad_()
    live: list[Tensor] = []

    def record(x: Tensor, hook: Any) -> None:
        live.append(_per_node(x))

    def rewrite(columns: slice, n_senders: int) -> Callable[[Tensor, Any], Tensor]:
        def hook(x: Tensor, hook: Any) -> Tensor:
            changes = on_corrupted[:, :, :n_senders] - torch.cat(live, dim=2)[:, :, :n_senders]
            change = torch.einsum("bpfd,fh->bphd", changes, outside[:n_senders, columns])
            return x + (change if x.ndim == 4 else change[:, :, 0])

        return hook

    hooks: list[tuple[str, Any]] = [(name, record) for name, _ in sender_hooks(config)]
    hooks += [(name, rewrite(columns, n)) for name, columns, n in receiver_hooks(config)]
    logits = bridge.run_with_hooks(clean, fwd_hooks=hooks, prepend_bos=False)[:, -1]
    return -torch.autograd.grad(loss(logits), outside)[0]


@torch.no_grad()
def patch_edge(
    bridge: Any,
    config: GraphConfig,
    clean: Int[Tensor, "batch pos"],
    differences: Float[Tensor, "batch pos n_forward d_model"],
    sender: int,
    receiver: int,
) -> Float[Tensor, "batch d_vocab"]:
    """Last logits with one edge corrupted, by one whole run."""
    name, columns = next(
        (name, columns)
        for name, columns, _ in receiver_hooks(config)
        if columns.start <= receiver < columns.stop
    )

    def rewrite(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        target = x[:, :, receiver - columns.start] if x.ndim == 4 else x
        target += differences[:, :, sender]
        return x

    return bridge.run_with_hooks(clean, fwd_hooks=[(name, rewrite)], prepend_bos=False)[:, -1]
