"""The slow twin of the package: edges, patches and gradients exactly as the definitions say.

One pair of prompts at a time, on a plain Hugging Face model; no code is shared with `eap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from reference.split_run import (
    add_up,
    existing_edges,
    plain_input,
    reachable,
    shape_of,
    split_run,
    token_batch,
)

Metric = Callable[[Float[Tensor, "*row d_vocab"], Float[Tensor, " d_vocab"]], Float[Tensor, "*row"]]
"""Of the logits at the last position and the clean run's logits there."""

# Rules of integrated gradients, fractions of the clean input and weights, for a few numbers of
# steps: written out, so that no formula is shared with the package.
RULES: dict[tuple[str, int], tuple[list[float], list[float]]] = {
    ("paper", 1): ([1.0], [1.0]),
    ("paper", 2): ([0.5, 1.0], [0.5, 0.5]),
    ("paper", 3): ([1 / 3, 2 / 3, 1.0], [1 / 3, 1 / 3, 1 / 3]),
    ("paper", 5): ([0.2, 0.4, 0.6, 0.8, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2]),
    ("midpoint", 1): ([0.5], [1.0]),
    ("midpoint", 3): ([1 / 6, 3 / 6, 5 / 6], [1 / 3, 1 / 3, 1 / 3]),
    ("gauss-legendre", 1): ([0.5], [1.0]),
    ("gauss-legendre", 2): ([0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2], [0.5, 0.5]),
    ("gauss-legendre", 3): ([0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5], [5 / 18, 8 / 18, 5 / 18]),
}


@contextmanager
def float64() -> Iterator[None]:
    """Keeps in float64 what models cast to float32 inside (RMS norms, softmax, rotary tables).

    Without it a model loaded in float64 is exact to seven digits only. The names that models use
    for float32 mean float64 inside: a function mode would do the same, and cost each call of torch
    more time than most calls take on tiny models.
    """
    other_name = mock.patch.object(torch, "float32", torch.float64)
    with other_name, mock.patch.object(Tensor, "float", Tensor.double):
        yield


# --- Runs -----------------------------------------------------------------------------------------


@torch.no_grad()
def last_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Float[Tensor, " d_vocab"]:
    """Logits at the last position of the untouched model."""
    return model(input_ids=token_batch(model, tokens), use_cache=False).logits[0, -1]


@torch.no_grad()
def sender_outputs(
    model: PreTrainedModel, tokens: Sequence[int], *, expanded: bool = False
) -> Float[Tensor, "n_forward pos d_model"]:
    """Outputs of all senders on one prompt."""
    shape = shape_of(model, expanded=expanded)
    _, run = split_run(model, token_batch(model, tokens), plain_input(shape), expanded=expanded)
    return torch.cat([run.senders[u] for u in range(shape.n_forward)])


@torch.no_grad()
def run_with_edges(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    circuits: Bool[Tensor, "circuit *pos n_forward n_backward"],
    *,
    expanded: bool = False,
) -> Float[Tensor, "circuit d_vocab"]:
    """Logits at the last position when every edge outside the circuit carries its corrupted value.

    A sender's contribution to a receiver is its output in this very run where the edge is in the
    circuit, and its output on the corrupted prompt where it is not.
    """
    outside = sender_outputs(model, corrupted, expanded=expanded)
    return run_with_senders(model, clean, outside, circuits, expanded=expanded)


@torch.no_grad()
def run_with_senders(
    model: PreTrainedModel,
    tokens: Sequence[int],
    outside: Float[Tensor, "n_forward pos d_model"],
    circuits: Bool[Tensor, "circuit *pos n_forward n_backward"],
    *,
    expanded: bool = False,
) -> Float[Tensor, "circuit d_vocab"]:
    """The same with any sender outputs carried by the edges outside the circuit."""
    shape = shape_of(model, expanded=expanded)
    by_position = circuits if circuits.ndim == 4 else circuits[:, None]

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        return add_up(
            torch.where(by_position[..., u, receiver, None], senders[u], outside[u])
            for u in reachable(shape, receiver, senders)
        )

    batch = token_batch(model, tokens).expand(len(circuits), -1)
    return split_run(model, batch, receiver_input, expanded=expanded)[0]


def run_with_masks(
    model: PreTrainedModel,
    tokens: Sequence[int],
    outside: Float[Tensor, "n_forward pos d_model"],
    masks: Float[Tensor, "*pos n_forward n_backward"],
    *,
    expanded: bool = False,
) -> Float[Tensor, " d_vocab"]:
    """Logits at the last position where every edge is in the circuit to a degree; autograd knows.

    A sender's contribution to a receiver is what `outside` has, and a share of the difference that
    its output in this very run makes.
    """
    shape = shape_of(model, expanded=expanded)

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        return add_up(
            outside[u] + masks[..., u, receiver, None] * (senders[u] - outside[u])
            for u in reachable(shape, receiver, senders)
        )

    batch = token_batch(model, tokens)
    return split_run(model, batch, receiver_input, expanded=expanded)[0][0]


# --- Scores of all edges; NaN where there is no edge ----------------------------------------------


def exact_edge_values(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metrics: Sequence[Metric],
    *,
    expanded: bool = False,
) -> Float[Tensor, "metric n_forward n_backward"]:
    """metric(run with this one edge corrupted) - metric(clean run): one run for every edge."""
    exists = existing_edges(shape_of(model, expanded=expanded))
    edges = exists.nonzero().tolist()
    circuits = exists.repeat(len(edges), 1, 1)
    for circuit, (u, v) in zip(circuits, edges, strict=True):
        circuit[u, v] = False
    patched = run_with_edges(model, clean, corrupted, circuits, expanded=expanded)
    clean_logits = last_logits(model, clean)
    values = torch.full((len(metrics), *exists.shape), torch.nan, dtype=clean_logits.dtype)
    for own, metric in zip(values, metrics, strict=True):
        own[exists] = metric(patched, clean_logits) - metric(clean_logits, clean_logits)
    return values


def receiver_gradients(
    model: PreTrainedModel,
    tokens: Sequence[int],
    metrics: Sequence[Metric],
    clean_logits: Float[Tensor, " d_vocab"],
    *,
    expanded: bool = False,
    embedding: Float[Tensor, "pos d_model"] | None = None,
) -> Float[Tensor, "metric n_backward pos d_model"]:
    """Gradients of the metrics with respect to each receiver's own input, by autograd.

    One copy of the prompt for each metric: the gradient of their sum at a copy is that of its own.
    """
    shape = shape_of(model, expanded=expanded)
    plain = plain_input(shape)
    probes: dict[int, Tensor] = {}

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        stream = plain(receiver, senders)
        # Zero, so it changes nothing; its gradient is that of this receiver's input alone.
        probes[receiver] = torch.zeros_like(stream, requires_grad=True)
        return stream + probes[receiver]

    n = len(metrics)
    batch = None if embedding is None else embedding.expand(n, -1, -1)
    with torch.enable_grad():
        logits, _ = split_run(
            model,
            token_batch(model, tokens).expand(n, -1),
            receiver_input,
            expanded=expanded,
            embedding=batch,
        )
        values = [metric(own, clean_logits) for metric, own in zip(metrics, logits, strict=True)]
        ordered = [probes[v] for v in range(shape.n_backward)]
        return torch.stack(torch.autograd.grad(add_up(values), ordered), dim=1)


def attribution_scores(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metrics: Sequence[Metric],
    points: Sequence[float],
    weights: Sequence[float],
    *,
    expanded: bool = False,
    spans: Sequence[int] = (0,),
) -> Float[Tensor, "metric *span n_forward n_backward"]:
    """(corrupted - clean output) . weighted sum of the gradients at points of the path of inputs.

    `points` are fractions of the clean embedding: 1 is the clean prompt, 0 the corrupted one. EAP
    takes the gradient at 1 alone. `spans` are the first tokens of several spans of the prompt.
    """
    shape = shape_of(model, expanded=expanded)
    on_clean = sender_outputs(model, clean, expanded=expanded)
    on_corrupted = sender_outputs(model, corrupted, expanded=expanded)
    clean_logits = last_logits(model, clean)
    gradients = add_up(
        weight
        * receiver_gradients(
            model,
            clean,
            metrics,
            clean_logits,
            expanded=expanded,
            embedding=on_corrupted[0] + point * (on_clean[0] - on_corrupted[0]),
        )
        for point, weight in zip(points, weights, strict=True)
    )
    by_position = torch.einsum("fpd,mbpd->mpfb", on_corrupted - on_clean, gradients)
    ends = (*spans[1:], len(clean))
    scores = [by_position[:, a:b].sum(1) for a, b in zip(spans, ends, strict=True)]
    found = torch.stack(scores, dim=1) if len(spans) > 1 else scores[0]
    return found.masked_fill(~existing_edges(shape), torch.nan)


# --- Metrics --------------------------------------------------------------------------------------


def metric_of(name: str, correct: Sequence[int], incorrect: Sequence[int]) -> Metric:
    """The metric of one example by name."""
    correct, incorrect = list(correct), list(incorrect)

    def logit_diff(logits: Tensor, _clean: Tensor) -> Tensor:
        return logits[..., correct].mean(-1) - logits[..., incorrect].mean(-1)

    def prob_diff(logits: Tensor, _clean: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        return probabilities[..., correct].sum(-1) - probabilities[..., incorrect].sum(-1)

    def kl(logits: Tensor, clean: Tensor) -> Tensor:
        p, q = clean.softmax(-1), logits.softmax(-1)
        return (p * (p / q).log()).sum(-1)

    def js(logits: Tensor, clean: Tensor) -> Tensor:
        p, q = clean.softmax(-1), logits.softmax(-1)
        mean = (p + q) / 2
        return ((p * (p / mean).log()).sum(-1) + (q * (q / mean).log()).sum(-1)) / 2

    def accuracy(logits: Tensor, clean: Tensor) -> Tensor:
        return (prob_diff(logits, clean) > 0).to(logits.dtype)

    known = {f.__name__: f for f in (logit_diff, prob_diff, kl, js, accuracy)}
    return known[name]
