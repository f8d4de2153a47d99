"""Gradients of the metric at points of the path from the ablated to the clean input.

A point is an input on that path; its gradient comes from one plain forward and backward pass, and
several points may be stacked in one pass. All methods that use gradients take them from here.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eap.engine.moments import Moments
from eap.engine.prepared import PreparedBatch, Work
from eap.engine.receivers import RecordedRun, RunGradient, differentiate
from eap.methods import Method, Point
from eap.metrics.metric import Predictions
from eap.model.rules import BackwardRules
from eap.model.runs import LayerTrace, run_layers
from eap.runtime.errors import UserError

# Largest number of examples that a message names.
NAMED = 4


@dataclass(frozen=True, eq=False)
class Request:
    """Request to a scorer.

    Attributes:
        method: method, for its backward rules.
        points: points of the path at which gradients are taken.
        points_per_run: number of points that may be stacked in one run.
        level: 'edge' or 'node'.
        spans: whether to score every span of the prompt separately.
        units: layer of the MLP whose units' gradients are computed, too; None: no layer.
        baselines: moments [3] that collect the metric of every example in the clean run, in the
            model with every edge ablated, and in the model run on the ablated input; None: not
            collected.
    """

    method: Method
    points: Sequence[Point]
    points_per_run: int = 1
    _: KW_ONLY
    level: str = "edge"
    spans: bool = False
    units: int | None = None
    baselines: Moments | None = None


def input_at(batch: PreparedBatch, position: float) -> Float[Tensor, "batch pos d_model"]:
    """Embedding at a point of the path, including positions; the ends of the path are exact."""
    if position == 1.0:
        return batch.clean + batch.positions
    if position == 0.0:
        return batch.ablated + batch.positions
    return batch.ablated + position * (batch.clean - batch.ablated) + batch.positions


@dataclass(frozen=True, eq=False)
class CleanRun:
    """Clean run of a batch: its layers, and the logits that metrics compare with."""

    trace: list[LayerTrace]
    predictions: Predictions


def run_clean(batch: PreparedBatch) -> CleanRun:
    """Run the clean prompts, without a gradient."""
    trace: list[LayerTrace] = []
    with torch.no_grad():
        final = batch.run_clean(trace=trace)
        return CleanRun(trace, Predictions(batch.unembed(final[:, 0])))


def run_points(
    batch: PreparedBatch, points: Sequence[Point], rules: BackwardRules
) -> tuple[RecordedRun, Float[Tensor, "rows n_tokens"]]:
    """Stacked runs from some points (points outermost), and their logits."""
    work = batch.work
    trace: list[LayerTrace] = []
    x = torch.cat([input_at(batch, point.position) for point in points]).requires_grad_()
    final = run_layers(
        work.model, x, batch.cache,
        trace=trace, expanded_kv=work.config.expanded_kv, rules=rules,
    )  # fmt: skip
    return RecordedRun(trace, final, rules), batch.unembed(final[:, 0], rules)


def gradients_at(
    batch: PreparedBatch, request: Request, clean: CleanRun | None = None
) -> tuple[RunGradient, CleanRun]:
    """Weighted sum of the gradients at a request's points, in one or more runs, and the clean run.

    Most methods have the clean input among their points. Its run is then used as the clean run, so
    that the clean run is not made twice.
    """
    n, rules = len(batch), request.method.rules
    points = sorted(request.points, key=lambda point: -point.position)
    if clean is None and points[0].position != 1.0:
        clean = run_clean(batch)
    total: RunGradient | None = None
    for first in range(0, len(points), request.points_per_run):
        stacked = points[first : first + request.points_per_run]
        run, logits = run_points(batch, stacked, rules)
        if clean is None:
            predictions = Predictions(logits[:n].detach())
            copy = len(stacked) > 1  # without a copy, the first rows would keep all rows alive
            clean = CleanRun(
                [layer.rows(slice(n)).detached(copy=copy) for layer in run.trace], predictions
            )
        value = weighted_sum(batch, logits, clean.predictions, stacked)
        (part,) = differentiate(batch.work.model, run, value, batch.cache, units=request.units)
        total = part if total is None else total.plus(part)
    assert clean is not None
    assert total is not None
    return total, clean


def weighted_sum(
    batch: PreparedBatch, logits: Tensor, clean: Predictions, points: Sequence[Point]
) -> Float[Tensor, ""]:
    """Scalar whose gradient is the weighted sum over points of the examples' gradients.

    Raises:
        UserError: the metric has no gradient.
    """
    metric = batch.work.metrics[0]
    if logits.requires_grad:
        logits.register_hook(partial(_note_gradient, batch))
    n = len(logits) // len(points)
    # Not `chunk`, because in-place writes to its parts raise an unclear error of PyTorch.
    runs = [logits[first : first + n] for first in range(0, len(logits), n)]
    values = [
        point.weight * metric.measure(Predictions(rows, clean), batch.answers).sum()
        for point, rows in zip(points, runs, strict=True)
    ]
    total = torch.stack(values).sum()
    if not total.requires_grad:
        raise UserError(
            f"metric {metric.name!r} has no gradient (it counts, compares or detaches), so it "
            "cannot be attributed"
        )
    return total


def _note_gradient(batch: PreparedBatch, gradient: Float[Tensor, "rows n_tokens"]) -> None:
    """Record the examples without a finite gradient at any point, without a device sync."""
    wrong = (~gradient.isfinite()).any(-1).view(-1, len(batch)).any(0)
    batch.work.without_gradient.append((batch.rows, wrong))


def check_gradients(work: Work) -> None:
    """Check that the gradient of the metric was finite for every example.

    Raises:
        UserError: some gradients were not finite; the message names the first such examples.
    """
    noted = work.without_gradient
    if not noted:
        return
    rows = [row for rows, _ in noted for row in rows]
    wrong = torch.cat([flags for _, flags in noted]).tolist()
    without = sorted({row for row, is_wrong in zip(rows, wrong, strict=True) if is_wrong})
    if without:
        first = ", ".join(f"example {row}" for row in without[:NAMED])
        rest = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
        raise UserError(
            f"the gradient of metric {work.metrics[0].name!r} is NaN or infinite on {first}{rest}, "
            "whatever its value; leave these examples out, or change the function so that it has a "
            "gradient there"
        )


def equal_pairs(batch: PreparedBatch) -> Bool[Tensor, " batch"]:
    """Mask of the examples whose two prompts are equal, so that an ablation changes nothing."""
    equal = (batch.ablated == batch.clean).flatten(1).all(1)
    return equal if batch.work.ablation.has_pair else torch.zeros_like(equal)


def completeness(
    mean: Float[Tensor, "*span n_forward n_columns"], difference: float
) -> dict[str, float]:
    """Completeness of scores: those out of the input, compared with the metric's difference.

    The scores of edges out of the input are integrals of gradients along the path from the ablated
    to the clean embedding. With enough points, they sum to metric(at the ablated embedding) -
    metric(clean).
    """
    total = float(mean[..., 0, :].sum())
    return {
        "sum_of_input_scores": total,
        "metric_difference": difference,
        "relative_error": (total - difference) / abs(difference) if difference else float("inf"),
    }
