"""Estimates of every edge's effect: EAP, EAP-IG and their relatives.

The effect of corrupting the edge u -> v is estimated to first order,

    score(u -> v) = (a_u_corrupted - a_u_clean) . dMetric/d(input of v)

with the gradient taken on the clean run (EAP; Syed, Rager and Conmy 2023), or averaged over points
between the corrupted and the clean input embedding (EAP-IG; Hanna, Pezzelle and Belinkov 2024,
equation 2). The sum runs over positions and d_model; scores are means over examples.

The forward pass is the plain one, not one with a copy of the residual stream for every head. The
gradient dq at a head's q leads to the gradient at its q input in closed form: with x^ the
normalised input, r = 1/scale, w the norm's weight, and P the removal of the mean (LayerNorm) or
nothing (RMSNorm),

    G = P (w * (r dq W_Q^T)) - x^ c,    c = r/d_model * sum_e dq_e (q - q_0)_e,

where q_0 = bias W_Q + b_Q is what q would be if x^ were zero. G is linear in dq, so the points'
gradients are summed before anything of size [n_heads, d_model] is made, and the differences
a_corrupted - a_clean, which do not depend on the point, are contracted with G once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import Batch, check_examples, load_batch, plan_batches
from eap.data.dataset import Dataset
from eap.errors import UserError
from eap.graph.graph import Graph, GraphConfig
from eap.metrics import (
    Answers,
    Metric,
    Predictions,
    check_answer_sets,
    check_values,
    get_metric,
)
from eap.model.families import Attention, Norm
from eap.model.loading import Model
from eap.model.runs import (
    Differences,
    LayerTrace,
    Suffix,
    apply_norm,
    embed,
    norm_scale,
    position_embedding,
    run_both,
    run_layers,
    run_prefix,
    unembed,
)
from eap.runtime import distributed
from eap.runtime.memory import choose_batch_size, points_per_run
from eap.runtime.progress import progress_bar


class Point(NamedTuple):
    """A point of the path from the corrupted (position 0) to the clean input (1)."""

    position: float
    weight: float  # 0: corrupted, 1: clean


RULES: dict[str, Callable[[int], list[Point]]] = {
    # The paper's: k/m for k = 1..m.
    "paper": lambda steps: [Point(k / steps, 1 / steps) for k in range(1, steps + 1)],
    "midpoint": lambda steps: [Point((k - 0.5) / steps, 1 / steps) for k in range(1, steps + 1)],
    "gauss-legendre": lambda steps: [
        Point((node + 1) / 2, weight / 2)
        for node, weight in zip(*np.polynomial.legendre.leggauss(steps), strict=True)
    ],
}
"""Rules of integration over the path from the corrupted (0) to the clean input (1), by name."""

METHODS: dict[str, Callable[[str, int], list[Point]]] = {
    "EAP": lambda rule, steps: [Point(1.0, 1.0)],
    "EAP-IG": lambda rule, steps: find_rule(rule)(steps),
    "clean-corrupted": lambda rule, steps: [Point(0.0, 0.5), Point(1.0, 0.5)],
}
"""At which inputs a method takes gradients, and their weights."""


def find_rule(rule: str) -> Callable[[int], list[Point]]:
    """A rule of integration by name; a `UserError` lists the known ones."""
    if rule not in RULES:
        raise UserError(f"unknown rule {rule!r}; known are {', '.join(RULES)}")
    return RULES[rule]


def attribute(
    model: Model,
    dataset: Dataset,
    *,
    method: str = "EAP-IG",
    metric: str | Metric = "logit_diff",
    steps: int = 5,
    rule: str = "paper",
    batch_size: int | None = None,
    memory_budget: int | None = None,
    expanded_kv: bool = False,
    quiet: bool = True,
) -> Graph:
    """Score every edge of the model's graph.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        method: 'EAP', 'EAP-IG' or 'clean-corrupted' (the mean of the gradients at both ends).
        metric: a name of `eap.metrics.METRICS`, or a `Metric`.
        steps: points of integrated gradients.
        rule: 'paper', 'midpoint' or 'gauss-legendre'.
        batch_size: examples at a time; None: as many as the budget allows.
        memory_budget: in bytes, beside the weights; None: half of what is free.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        quiet: without a progress bar.

    Returns:
        The whole graph with `scores`, and their `standard_errors` over examples (None for one
        example). Negative scores: corrupting the edge lowers the metric.

    Raises:
        UserError: unknown names, fewer than one step, a batch that does not fit, or a method that
            takes gradients only where the metric is flat (KL and JS at the clean input).
    """
    metric = get_metric(metric)
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if steps < 1:
        raise UserError(f"{steps} steps are too few; at least 1 is needed")
    points = METHODS[method](rule, steps)
    if not metric.differentiable:
        raise UserError(f"{metric.name} has no gradient, so it cannot be attributed")
    if metric.flat_at_clean and all(point.position == 1.0 for point in points):
        raise UserError(
            f"the gradient of {metric.name} is zero at the clean input, where {method} "
            f"{'' if method == 'EAP' else f'with {steps} step '}takes it; use EAP-IG with at "
            "least 2 steps"
        )
    if torch.is_inference_mode_enabled():
        raise UserError(
            "no gradient can be taken in torch.inference_mode(); leave it, or no_grad()"
        )
    check_examples(model, dataset.examples)
    check_answer_sets([metric], dataset.examples)
    config = replace(model.config, expanded_kv=expanded_kv)
    if batch_size is None:
        batch_size = choose_batch_size(
            model,
            dataset.examples,
            purpose="attribution",
            budget=memory_budget,
            n_points=len(points),
        )
    # Sums over examples of the scores and of their squares.
    totals = torch.zeros(2, config.n_forward, config.n_backward, dtype=torch.float64)
    plan = distributed.own_share(plan_batches(dataset.examples, batch_size))
    for rows in progress_bar(plan, f"{method} {metric.name}", quiet=quiet):
        batch = load_batch(dataset.examples, rows, model.device)
        totals += score_batch(model, batch, config, metric, points).cpu()
    distributed.sum_over_processes(totals)
    check_values([metric], totals[:1])
    n_examples = len(dataset)
    mean = totals[0] / n_examples
    standard_errors = None
    if n_examples > 1:
        variance = (totals[1] / n_examples - mean**2).clamp(min=0) * n_examples / (n_examples - 1)
        standard_errors = (variance / n_examples).sqrt().float()
    graph = Graph.from_config(config)
    return replace(graph, scores=mean.to(model.residual_dtype), standard_errors=standard_errors)


@torch.enable_grad()
def score_batch(
    model: Model, batch: Batch, config: GraphConfig, metric: Metric, points: Sequence[Point]
) -> Float[Tensor, "2 n_forward n_backward"]:
    """Sums over a batch of every edge's score and of its square."""
    suffix = run_prefix(model, batch.prefix, batch.last, batch.n_positions)
    clean_input, corrupted_input = embed(model, batch.clean), embed(model, batch.corrupted)
    offset = position_embedding(model, suffix.start, suffix.n_positions)
    token_ids = batch.answers.token_ids if metric.answers_only else None
    answers = batch.answers.among_themselves() if metric.answers_only else batch.answers

    differences, clean_final = run_both(
        model, clean_input + offset, corrupted_input + offset, suffix
    )
    with torch.no_grad():
        clean = Predictions(unembed(model, clean_final, token_ids))

    stack = points_per_run(model, len(batch), suffix.n_positions)
    runs = []
    for first in range(0, len(points), stack):
        own = points[first : first + stack]
        inputs = [
            corrupted_input + point.position * (clean_input - corrupted_input) + offset
            for point in own
        ]
        x = torch.cat(inputs).requires_grad_()  # [point * batch, pos, d_model]
        trace: list[LayerTrace] = []
        final = run_layers(model, x, suffix, trace=trace, expanded_kv=config.expanded_kv)
        logits = unembed(model, final, token_ids)
        value = _weighted_sum(metric, logits, clean, answers, own)
        runs.append(differentiate(model, trace, final, value, suffix))
    return contract(model, config, differences, runs, suffix)


def _weighted_sum(
    metric: Metric, logits: Tensor, clean: Predictions, answers: Answers, points: Sequence[Point]
) -> Float[Tensor, ""]:
    """The quantity whose gradient is the points' weighted sum of the examples' gradients."""
    values = [
        point.weight * metric.measure(Predictions(own, clean), answers).sum()
        for point, own in zip(points, logits.chunk(len(points)), strict=True)
    ]
    total = torch.stack(values).sum()
    if not total.requires_grad:
        raise UserError(
            f"metric {metric.name!r} has no gradient (it counts, compares or detaches), so it "
            "cannot be attributed"
        )
    return total


# ---- gradients at receivers' inputs --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """Gradients at one layer's receivers, as far as they can be summed over points.

    Attributes:
        scaled: by kind ('q', 'k', 'v'), the sum over points of r dq.
        along: by kind, c of every point.
        normed: x^ of every point.
        mlp_in: sum over points of the gradient at the MLP's input.
    """

    scaled: dict[str, Float[Tensor, "batch pos n d_head"]]
    along: dict[str, Float[Tensor, "point batch pos n"]]
    normed: Float[Tensor, "point batch pos d_model"]
    mlp_in: Float[Tensor, "batch pos d_model"]


@dataclass(frozen=True, eq=False)
class RunGradient:
    """Gradients at the receivers of all layers, and the sum over points of that at the logits'."""

    layers: list[LayerGradient]
    final: Float[Tensor, "batch 1 d_model"]


def differentiate(
    model: Model,
    trace: Sequence[LayerTrace],
    final: Float[Tensor, "rows d_model"],
    value: Float[Tensor, ""],
    suffix: Suffix,
) -> RunGradient:
    """Gradients of `value`; rows are points times examples, points outermost."""
    at = [tensor for own in trace for tensor in (own.q, own.k, own.v, own.mlp_in)]
    *gradients, d_final = torch.autograd.grad(value, [*at, final])

    def by_point(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, len(suffix.last)))  # [point, batch, ..]

    layers = []
    for layer, own in enumerate(trace):
        ln1, attention = model.blocks[layer].ln1, model.blocks[layer].attention
        x = own.x.detach()
        scale = norm_scale(ln1, x)[..., None]  # [rows, pos, 1, 1]
        *at_heads, d_mlp_in = gradients[4 * layer : 4 * layer + 4]
        scaled, along = {}, {}
        for kind, output, gradient in zip("qkv", (own.q, own.k, own.v), at_heads, strict=True):
            at_last = kind == "q" and layer == len(trace) - 1  # q has the last token alone
            scaled_gradient = gradient * (suffix.at_last(scale) if at_last else scale)
            at_zero = _for_receivers(_output_at_zero(attention, ln1, kind), output.shape[2])
            from_input = output.detach() - at_zero
            scaled[kind] = by_point(scaled_gradient).sum(0)
            along[kind] = by_point((scaled_gradient * from_input).sum(-1) / x.shape[-1])
        normed = by_point(apply_norm(replace(ln1, weight=None, bias=None), x))
        layers.append(LayerGradient(scaled, along, normed, by_point(d_mlp_in).sum(0)))
    return RunGradient(layers, by_point(d_final).sum(0)[:, None])


def _output_at_zero(attention: Attention, norm: Norm, kind: str) -> Float[Tensor, "n d_head"]:
    """q, k or v where the normalised input x^ is zero: what the biases make of it."""
    W, b = attention.projection(kind)
    out = torch.zeros_like(W[:, 0]) if b is None else b
    return out if norm.bias is None else out + norm.bias.to(W.dtype) @ W


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)).sum(0) if len(tensors) > 1 else tensors[0]


def _for_receivers(
    x: Float[Tensor, "n *rest"], n_receivers: int
) -> Float[Tensor, "n_receivers *rest"]:
    """One entry per receiver: in expanded grouped-query attention, several share a weight."""
    return x.repeat_interleave(n_receivers // len(x), dim=0) if n_receivers > len(x) else x


# ---- contraction ---------------------------------------------------------------------------------


@torch.no_grad()
def contract(
    model: Model,
    config: GraphConfig,
    differences: Differences,
    runs: Sequence[RunGradient],
    suffix: Suffix,
) -> Float[Tensor, "2 n_forward n_backward"]:
    """Sums over a batch of every edge's score and of its square."""
    sums = torch.zeros(
        2, config.n_forward, config.n_backward, dtype=model.residual_dtype, device=model.device
    )

    def add(
        D: Float[Tensor, "n_senders batch pos d_model"],
        gradients: dict[int, Float[Tensor, "n batch pos d_model"]],
    ) -> None:
        """Score the edges from the first senders to the receivers that begin at each key."""
        G = torch.cat(list(gradients.values())).to(D.device)
        # One [sender, receiver] product per example, over positions and d_model.
        D_rows = D.permute(1, 0, 2, 3).flatten(2)  # [batch, sender, pos * d_model]
        scores = D_rows @ G.permute(1, 2, 3, 0).flatten(1, 2)  # [batch, sender, receiver]
        columns = [start + i for start, own in gradients.items() for i in range(len(own))]
        for own, values in zip(sums, (scores, scores.square()), strict=True):
            own[: len(D), columns] = values.sum(0)

    for layer in range(config.n_layers):
        # Senders that only the MLP reads are contracted with q, k and v too, and dropped below.
        n_senders = config.senders_before(layer, "mlp")
        own = [run.layers[layer] for run in runs]
        first = {kind: config.receivers(layer, kind).start for kind in "qkv"}
        mlp = {config.mlp_receiver(layer): _sum([gradient.mlp_in for gradient in own])[None]}
        heads = {first[kind]: _input_gradient(model, layer, kind, own, suffix) for kind in "qkv"}
        if layer < config.n_layers - 1:
            add(differences.everywhere[:n_senders], heads | mlp)
        else:
            add(differences.at_last[:n_senders], {first["q"]: heads.pop(first["q"])} | mlp)
            add(differences.everywhere, heads)
    final = _sum([run.final for run in runs])[None]
    add(differences.at_last, {config.logits_receiver: final})
    return sums * Graph.from_config(config).edge_exists.to(sums.device)


def _input_gradient(
    model: Model, layer: int, kind: str, runs: Sequence[LayerGradient], suffix: Suffix
) -> Float[Tensor, "n batch pos d_model"]:
    """G of the module's docstring, summed over points, at the `kind` inputs of a layer's heads."""
    norm = model.blocks[layer].ln1
    W, _ = model.blocks[layer].attention.projection(kind)  # [n, d_model, d_head]
    back = W.transpose(1, 2).to(model.residual_dtype)
    if norm.weight is not None:
        back = back * norm.weight
    if norm.centred:
        back = back - back.mean(-1, keepdim=True)
    scaled = _sum([run.scaled[kind] for run in runs])  # [batch, pos, n, d_head]
    batch, n_positions, n, d_head = scaled.shape
    back = _for_receivers(back, n)
    G = torch.bmm(scaled.permute(2, 0, 1, 3).reshape(n, -1, d_head), back)
    along = torch.cat([run.along[kind] for run in runs])
    normed = torch.cat([run.normed for run in runs])
    if n_positions == 1:  # the last layer's queries
        normed = torch.stack([suffix.at_last(own) for own in normed])
    G = G.view(n, batch, n_positions, -1)
    return G.sub_(torch.einsum("kbpn,kbpd->nbpd", along, normed))
