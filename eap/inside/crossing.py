"""Crossing scores: how much a head moves from one span of the prompt to another.

The residual stream carries information along a position; only heads move information between
positions. Let z(q) be the output of head h at query q (before W_O), A its attention pattern, and
dM/dz(q) the gradient of the metric there on the clean run. The scores of what keys and values move
from the span s_key to the span s_query are

    v: sum over q in s_query, p in s_key of A[q, p] dv(p) . dM/dz(q)
    k: sum over q in s_query of dz(q) . dM/dz(q)

where dv(p) is the first-order change of the value when everything that its input reads is ablated,
and dz(q) is the exact change of z when the keys in s_key are ablated, so that the pattern changes
(as in the QK fix of AtP*, arXiv 2403.00745). Summed over spans, v equals the sum of the EAP scores
of the edges into the head's v. There is no such sum for k, because a pattern is not linear.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from eap.ablation import Ablation
from eap.attribution import Call, warn_of_baselines
from eap.data.batches import named_spans
from eap.data.dataset import Dataset
from eap.engine.moments import Moments
from eap.engine.passes import Request
from eap.engine.path_gradients import check_gradients
from eap.engine.prepared import Demand, PreparedBatch, Work
from eap.engine.scorers import gradients_at_heads
from eap.engine.signature import sign
from eap.methods import get_method
from eap.metrics.metric import Metric, check_values
from eap.model.held_attention import HeldAttention
from eap.model.model import Model
from eap.model.runs import LayerTrace, SenderOutputs
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime.errors import UserError
from eap.runtime.memory import Extent, Need, Shapes, attribution_need
from eap.runtime.resources import ResourceOptions, Resources

KINDS = ("k", "v")


@dataclass(frozen=True, eq=False)
class CrossingScores:
    """Scores of every head for each pair of spans, in units of the metric.

    Attributes:
        heads: names of the heads.
        span_names: names of the spans.
        scores: scores by input: keys ('k') first, then values ('v').
        standard_errors: standard errors of the means over examples; None for one example.
        provenance: origin of the scores.

    Example:
        >>> with_spans = eap.load_dataset("ioi", model.tokenizer, spans="roles", head=8)
        >>> crossing = eap.crossing_scores(model, with_spans)
        >>> crossing.scores.shape[0], crossing.span_names[-1]
        (2, 'last')
    """

    heads: tuple[str, ...]
    span_names: tuple[str, ...]
    scores: Float[Tensor, "2 head key_span query_span"]
    standard_errors: Float[Tensor, "2 head key_span query_span"] | None
    provenance: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per head, input and pair of spans that the head can connect.

        The columns are `head`, `input` ('k' or 'v'), `from` and `to` (spans), `score` and, where
        known, `standard_error`; rows with the largest magnitudes come first.
        """
        n = len(self.span_names)
        backward = torch.ones(n, n, dtype=torch.bool).triu()  # a query sees only earlier keys
        place = backward.expand_as(self.scores).nonzero(as_tuple=True)
        kind, head, key, query = place
        columns = {
            "head": [self.heads[i] for i in head.tolist()],
            "input": [KINDS[i] for i in kind.tolist()],
            "from": [self.span_names[i] for i in key.tolist()],
            "to": [self.span_names[i] for i in query.tolist()],
            "score": self.scores[place].double().numpy(),
        }
        if self.standard_errors is not None:
            columns["standard_error"] = self.standard_errors[place].double().numpy()
        return pd.DataFrame(columns).sort_values(
            "score", key=abs, ascending=False, kind="stable", ignore_index=True
        )


@verb
def crossing_scores(
    model: Model,
    dataset: Dataset,
    *,
    metric: str | Metric | None = None,
    ablation: str | Ablation | None = None,
    **resources: Unpack[ResourceOptions],
) -> CrossingScores:
    """Score how much every head moves from each span of the prompt to each other span.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts with spans (`eap.load_dataset(..., spans="roles")`).
        metric: name of a metric in `eap.metrics.METRICS`, or an `eap.Metric`; None: `logit_diff`.
        ablation: activation that an ablated edge carries; None: that on the corrupted prompt.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Scores [input, head, key span, query span] (means over examples), and their standard errors.

    Raises:
        UserError: data without spans, or a metric without a gradient at the clean input.

    Example:
        >>> with_spans = eap.load_dataset("ioi", model.tokenizer, spans="roles", head=8)
        >>> frame = eap.crossing_scores(model, with_spans).to_frame()
        >>> list(frame)[:5]
        ['head', 'input', 'from', 'to', 'score']
    """
    call = Call.check(get_method("EAP"), metric, ablation, "edge", "paper", spans=True)
    assert call.metric is not None
    if call.metric.flat_at_clean:
        raise UserError(
            f"the gradient of {call.metric.name} is zero at the clean input, where crossing scores "
            "take it; use another metric, such as logit_diff"
        )
    names, config, limits = named_spans(model, dataset), graph_config(model), Resources(**resources)
    heads = [name for name in config.sender_names if name.startswith("a")]
    shape = (len(KINDS), len(heads), len(names), len(names))
    points = call.points(1)

    def need(shapes: Shapes, extent: Extent, n_columns: int) -> Need:
        return attribution_need(shapes, extent, 1, n_columns)

    demand = Demand("crossing scores", need, 2 * len(heads) * len(names) ** 2)
    work = Work.plan(model, dataset, [call.metric], call.ablation, config, limits, demand)
    moments = Moments.zeros(*shape, device=model.device)
    baselines = Moments.zeros(3, device=model.device)
    for batch in work.batches("crossing scores", quiet=limits.quiet):
        with torch.enable_grad():
            run = gradients_at_heads(batch, Request(call.method, points, baselines=baselines))
        for layer, d_z in enumerate(run.at_z):
            of_layer = slice(layer * config.n_heads, (layer + 1) * config.n_heads)
            scores = torch.stack(
                list(_cross(batch, layer, run.clean.trace[layer], run.changes, d_z)), dim=1
            )
            moments.add(scores, (slice(None), of_layer))
    moments.merge_processes("crossing scores")
    baselines.merge_processes("crossing scores")
    check_gradients(work)
    check_values(work.metrics, moments.mean[None])
    warn_of_baselines(model, call, baselines)
    error = moments.standard_error
    return CrossingScores(
        heads=tuple(heads),
        span_names=names,
        scores=moments.mean.to(model.residual_dtype),
        standard_errors=None if error is None else error.to(model.residual_dtype),
        provenance=sign(
            model, dataset, metric=call.metric, method="crossing", ablation=call.ablation,
            spans=names,
        ),
    )  # fmt: skip


@torch.no_grad()
def _cross(
    batch: PreparedBatch,
    layer: int,
    clean: LayerTrace,
    changes: SenderOutputs,
    d_z: Float[Tensor, "batch query n_heads d_head"],
) -> Iterator[Float[Tensor, "batch head key_span query_span"]]:
    """Scores of the heads of one layer: of their keys first, then of their values."""
    model, layout, cache = batch.work.model, batch.layout, batch.cache
    n_before = batch.work.config.senders_before(layer, "attention")
    change = changes.everywhere[:n_before].sum(0).to(clean.x.device)
    d_z = d_z.to(change)  # gradients have the dtype of the weights
    last_only = clean.q.shape[1] < clean.x.shape[1]
    ones = torch.ones_like(d_z[:, :, 0, 0])
    queries = layout.spread(ones, layout.at_last if last_only else layout.everywhere)
    keys = layout.spread(torch.ones_like(change[..., 0]), layout.everywhere)

    held = HeldAttention.of(model, layer, clean, cache)
    by_keys = d_z.new_zeros(len(batch), d_z.shape[2], layout.n_spans, layout.n_spans)
    for span in range(layout.n_spans):
        if layout.has(span):
            moved = layout.at_span(span, change, torch.zeros_like(change))
            z = held.change_of_z("k", moved[None])[0]
            by_query = einsum(
                z.to(d_z), d_z, "batch query head d, batch query head d -> batch query head"
            )
            by_keys[:, :, span] = einsum(
                by_query, queries, "batch query head, batch span query -> batch head span"
            )
    yield by_keys

    attention, ln1 = model.blocks[layer].attention, model.blocks[layer].ln1

    def values_of(x: Tensor) -> Tensor:
        return attention.values(attention.project("v", ln1(x)))

    moved = torch.func.jvp(values_of, (clean.x,), (change,))[1]  # [batch, n_kv, pos, d_head]
    moved = moved.repeat_interleave(d_z.shape[2] // moved.shape[1], dim=1)
    pattern = held.pattern[..., cache.start :]
    carried = einsum(
        d_z, moved.to(d_z), "batch query head d, batch head key d -> batch head query key"
    )
    yield einsum(
        carried * pattern.to(carried), queries, keys,
        "batch head query key, batch s query, batch t key -> batch head t s",
    )  # fmt: skip
