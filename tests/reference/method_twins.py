"""The slow twins of all methods but EAP and EAP-IG: one pair of prompts, split inputs, autograd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from reference.backward_rules import EXACT, Rules, following
from reference.hf_parts import parts_of
from reference.oracle import Metric, last_logits, sender_outputs
from reference.split_run import (
    ReceiverInput,
    add_up,
    existing_edges,
    plain_input,
    reachable,
    senders_of,
    shape_of,
    split_run,
    token_batch,
)


def _gradients(
    model: PreTrainedModel,
    tokens: Sequence[int],
    metric: Metric,
    reads: ReceiverInput,
    *,
    expanded: bool,
    rules: Rules = EXACT,
    n_rows: int = 1,
    embedding: Float[Tensor, "row pos d_model"] | None = None,
) -> tuple[Float[Tensor, "row n_backward pos d_model"], Float[Tensor, "row n_forward pos d_model"]]:
    """The metric's gradient at every receiver's own input, and what the senders sent.

    The prompt is run `n_rows` times beside itself, each row with what `reads` gives it; the
    gradient of the sum of their metrics at a row is that of the row's own.
    """
    shape, clean_logits = shape_of(model, expanded=expanded), last_logits(model, tokens)
    probes: dict[int, Tensor] = {}

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        stream = reads(receiver, senders)
        probes[receiver] = torch.zeros_like(stream, requires_grad=True)
        return stream + probes[receiver]

    batch = token_batch(model, tokens).expand(n_rows, -1)
    with torch.enable_grad(), following(model, rules):
        logits, run = split_run(
            model, batch, receiver_input, expanded=expanded, embedding=embedding
        )
    value = metric(logits, clean_logits).sum()
    ordered = [probes[v] for v in range(shape.n_backward)]
    gradients = torch.autograd.grad(value, ordered, allow_unused=True, materialize_grads=True)
    sent = [run.senders[u].detach() for u in range(shape.n_forward)]
    return torch.stack(gradients, dim=1), torch.stack(sent, dim=1)


def _contracted(changes: Tensor, gradients: Tensor) -> Float[Tensor, "*row n_forward n_backward"]:
    return torch.einsum("...fpd,...bpd->...fb", changes, gradients)


def by_rules(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    rules: Rules,
    *,
    expanded: bool = False,
) -> Float[Tensor, "n_forward n_backward"]:
    """RelP, AttnLRP, GIM: EAP's formula with other gradients."""
    shape = shape_of(model, expanded=expanded)
    a = sender_outputs(model, clean, expanded=expanded)
    b = sender_outputs(model, corrupted, expanded=expanded)
    gradients, _ = _gradients(
        model, clean, metric, plain_input(shape), expanded=expanded, rules=rules
    )
    return _contracted(b - a, gradients[0])


def increments(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    steps: int,
    *,
    expanded: bool = False,
) -> Float[Tensor, "n_forward n_backward"]:
    """CEAP: minus the sum over k of (a_u(k+1) - a_u(k)) . gradient(k)."""
    shape = shape_of(model, expanded=expanded)
    e_clean = sender_outputs(model, clean, expanded=expanded)[0]
    e_corrupted = sender_outputs(model, corrupted, expanded=expanded)[0]
    points = torch.arange(steps + 1, dtype=e_clean.dtype)[:, None, None] / steps
    gradients, sent = _gradients(
        model, clean, metric, plain_input(shape), expanded=expanded, n_rows=steps + 1,
        embedding=e_corrupted + points * (e_clean - e_corrupted),
    )  # fmt: skip
    return -_contracted(sent.diff(dim=0), gradients[:-1]).sum(0)


def dropped_layers(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    *,
    expanded: bool = False,
) -> Float[Tensor, "layer n_forward n_backward"]:
    """EAP's scores when one layer's outputs pass no gradient to its inputs, for every layer."""
    shape = shape_of(model, expanded=expanded)
    a = sender_outputs(model, clean, expanded=expanded)
    b = sender_outputs(model, corrupted, expanded=expanded)
    per_layer = shape.n_heads + 1
    dropped = [range(1 + i * per_layer, 1 + (i + 1) * per_layer) for i in range(shape.n_layers)]

    def reads(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        return add_up(
            torch.stack(
                [
                    output.detach() if u in of_layer else output
                    for of_layer, output in zip(dropped, senders[u], strict=True)
                ]
            )
            for u in reachable(shape, receiver, senders)
        )

    gradients, _ = _gradients(model, clean, metric, reads, expanded=expanded, n_rows=shape.n_layers)
    return _contracted(b - a, gradients)


def sublayers(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    points: Sequence[float],
    weights: Sequence[float],
    *,
    expanded: bool = False,
) -> Float[Tensor, "n_forward n_backward"]:
    """EAP-IG over activations: one sublayer's outputs at a time between corrupted and clean."""
    shape = shape_of(model, expanded=expanded)
    a = sender_outputs(model, clean, expanded=expanded)
    b = sender_outputs(model, corrupted, expanded=expanded)
    groups = [range(1)]
    for layer in range(shape.n_layers):
        first = 1 + layer * (shape.n_heads + 1)
        groups += [
            range(first, first + shape.n_heads),
            range(first + shape.n_heads, first + shape.n_heads + 1),
        ]
    scores = torch.zeros(shape.n_forward, shape.n_backward, dtype=a.dtype)
    for point, weight in zip(points, weights, strict=True):
        mixed = b + point * (a - b)

        def reads(receiver: int, senders: Mapping[int, Tensor], mixed: Tensor = mixed) -> Tensor:
            return add_up(
                torch.stack(
                    [
                        mixed[u] if u in group else output
                        for group, output in zip(groups, senders[u], strict=True)
                    ]
                )
                for u in reachable(shape, receiver, senders)
            )

        gradients, _ = _gradients(
            model, clean, metric, reads, expanded=expanded, n_rows=len(groups)
        )
        for group, of_group in zip(groups, gradients, strict=True):
            rows = slice(group.start, group.stop)
            scores[rows] += weight * _contracted((b - a)[rows], of_group)
    return scores


def patterns(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    *,
    expanded: bool = False,
) -> Float[Tensor, "n_forward n_backward"]:
    """AtP*'s QK fix: for edges into q and k the change of z in a patched run times dMetric/dz."""
    shape = shape_of(model, expanded=expanded)
    plain = plain_input(shape)
    b = sender_outputs(model, corrupted, expanded=expanded)
    scores = by_rules(model, clean, corrupted, metric, EXACT, expanded=expanded)
    d_z = [
        torch.autograd.grad(value, probe)[0]
        for value, probe in _z_probes(model, clean, metric, expanded)
    ]
    for layer in range(shape.n_layers):
        first = layer * shape.per_layer
        z_clean = _z_of(model, clean, plain, layer, expanded)
        for v in range(first, first + shape.n_heads + shape.n_kv_heads):
            patched = senders_of(shape, v)  # a row each

            def reads(
                receiver: int,
                senders: Mapping[int, Tensor],
                v: int = v,
                patched: Sequence[int] = patched,
            ) -> Tensor:
                stream = plain(receiver, senders)
                if receiver != v:
                    return stream
                return torch.stack(
                    [
                        own - senders[u][row] + b[u]
                        for row, (u, own) in enumerate(zip(patched, stream, strict=True))
                    ]
                )

            z = _z_of(model, clean, reads, layer, expanded, n_rows=len(patched))
            scores[patched, v] = ((z - z_clean) * d_z[layer]).sum((1, 2))
    return scores


def _z_of(
    model: PreTrainedModel,
    tokens: Sequence[int],
    reads: ReceiverInput,
    layer: int,
    expanded: bool,
    *,
    n_rows: int = 1,
) -> Float[Tensor, "row pos d_attention"]:
    """Input of a layer's output projection."""
    kept: list[Tensor] = []
    output = parts_of(model).layers[layer].output
    hook = output.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))
    batch = token_batch(model, tokens).expand(n_rows, -1)
    try:
        with torch.no_grad():
            split_run(model, batch, reads, expanded=expanded)
    finally:
        hook.remove()
    return kept[0]


def _z_probes(
    model: PreTrainedModel, tokens: Sequence[int], metric: Metric, expanded: bool
) -> list[tuple[Tensor, Tensor]]:
    """For every layer, the metric and a zero added to its z."""
    shape, clean_logits = shape_of(model, expanded=expanded), last_logits(model, tokens)
    pairs = []
    for layer in range(shape.n_layers):
        probes: list[Tensor] = []

        def add(
            _module: object, args: tuple[Tensor], probes: list[Tensor] = probes
        ) -> tuple[Tensor]:
            probes.append(torch.zeros_like(args[0], requires_grad=True))
            return (args[0] + probes[-1],)

        hook = parts_of(model).layers[layer].output.register_forward_pre_hook(add)
        try:
            with torch.enable_grad():
                logits, _ = split_run(
                    model, token_batch(model, tokens), plain_input(shape), expanded=expanded
                )
                pairs.append((metric(logits[0], clean_logits), probes[0]))
        finally:
            hook.remove()
    return pairs


def flow(
    model: PreTrainedModel, clean: Sequence[int], *, expanded: bool = False
) -> Float[Tensor, "n_forward n_backward"]:
    """IFR: max(0, |x| - |x - a_u|), as a share of all senders', averaged over positions."""
    shape = shape_of(model, expanded=expanded)
    exists = existing_edges(shape)
    with torch.no_grad():
        _, run = split_run(model, token_batch(model, clean), plain_input(shape), expanded=expanded)
    scores = torch.zeros(exists.shape, dtype=run.senders[0].dtype)
    for v in range(shape.n_backward):
        x = run.inputs[v][0]
        senders = [u for u in range(shape.n_forward) if exists[u, v]]
        near = torch.stack(
            [
                (x.abs().sum(-1) - (x - run.senders[u][0]).abs().sum(-1)).clamp(min=0)
                for u in senders
            ]
        )
        total = near.sum(0)
        share = torch.where(total > 0, near / total.clamp(min=1e-300), 0.0)
        scores[senders, v] = share.mean(-1)
    return scores
