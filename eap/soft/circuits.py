"""Soft circuits: circuits that keep each edge to a degree, and are differentiable in the degrees.

A soft circuit has a real number m_uv for every edge,

    input of v = ablated input of v + sum over u of m_uv (a_u - a_u_ablated),

where a_u is the output of u in this same run. With zeros and ones, these are the circuits of
`eap.circuits`, which run only their own nodes; here every node is run. With spans of the prompt, an
edge has one number at each span. With all ones, the run is the clean run, at which the gradient of
the metric with respect to m_uv is minus the EAP score of the edge (Syed, Rager and Conmy 2023).
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.batches import named_spans
from eap.data.dataset import Dataset
from eap.engine.prepared import Work, demand_of_gradients
from eap.engine.soft_runs import run_soft_circuit
from eap.graph import GraphConfig
from eap.metrics.metric import Metric, Predictions, check_values, get_metrics, measure_all
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime import distributed
from eap.runtime.errors import UserError
from eap.runtime.resources import ResourceOptions, Resources


@verb
@torch.no_grad()
def evaluate_soft(
    model: Model,
    masks: Float[Tensor, "*circuit_span n_forward n_backward"],
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ("logit_diff",),
    ablation: str | Ablation | None = None,
    spans: bool = False,
    **resources: Unpack[ResourceOptions],
) -> dict[str, Float[Tensor, "*circuit example"]]:
    """Evaluate metrics on every example of soft circuits, which keep each edge to a degree.

    Args:
        model: loaded model (`eap.load_model`).
        masks: degrees of all edges, for one soft circuit or several; 1 keeps an edge, 0 ablates it,
            and any other finite number is allowed. Entries that are not edges are not read. If
            masks have the shape of the graph with one k and v receiver per query head, they are for
            that graph (`expanded_kv`). With `spans`, the mask of each circuit has the shape
            [span, n_forward, n_backward].
        dataset: pairs of prompts (`eap.load_dataset`).
        metrics: names of metrics in `eap.metrics.METRICS`, or `eap.Metric` objects; kl and js
            compare with the clean run.
        ablation: activation that an ablated edge carries; None: that on the corrupted prompt.
        spans: whether an edge has one degree at every span of the data set's prompts.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Values by metric name: [example] for one soft circuit, [circuit, example] for several.

    Raises:
        UserError: masks of another shape than the model's graph, or masks that are not finite.

    Example:
        >>> masks = 0.5 * graph.full().in_graph.double()
        >>> eap.evaluate_soft(model, masks, dataset)["logit_diff"].shape
        torch.Size([8])
    """
    measured, limits = get_metrics(metrics), Resources(**resources)
    names = named_spans(model, dataset) if spans else ()
    config = _config_of(model, masks, len(names))
    of_one = masks.shape[-3:] if spans else masks.shape[-2:]
    circuits = masks.reshape(-1, *of_one).to(model.device, model.residual_dtype)
    demand = demand_of_gradients("a soft circuit", config, n_spans=len(names))
    work = Work.plan(model, dataset, measured, get_ablation(ablation), config, limits, demand)
    n_values = (len(measured), len(circuits), len(dataset))
    values = torch.zeros(n_values, dtype=model.residual_dtype, device=model.device)
    reads_clean = any(metric.reads_clean for metric in measured)
    for batch in work.batches(f"{len(circuits)} soft circuits", quiet=limits.quiet):
        clean = Predictions(batch.unembed(batch.run_clean()[:, 0])) if reads_clean else None
        for number, circuit in enumerate(circuits):
            final = run_soft_circuit(model, circuit, batch)
            run = Predictions(batch.unembed(final), clean)
            values[:, number, list(batch.rows)] = measure_all(measured, run, batch.answers)
    values = distributed.sum_over_processes(values.cpu())
    check_values(measured, values)
    shape = (*masks.shape[: -len(of_one)], len(dataset))
    return {metric.name: rows.view(shape) for metric, rows in zip(measured, values, strict=True)}


def _config_of(model: Model, masks: Tensor, n_spans: int) -> GraphConfig:
    """Shape of the graph that the masks are for."""
    configs = [graph_config(model, expanded_kv=expanded) for expanded in (False, True)]
    of_spans = [n_spans] if n_spans else []
    shapes = [[*of_spans, config.n_forward, config.n_backward] for config in configs]
    n_axes = len(shapes[0])
    shape = list(masks.shape) if isinstance(masks, Tensor) else None
    if shape is None or len(shape) not in (n_axes, n_axes + 1) or shape[-n_axes:] not in shapes:
        what = type(masks).__name__ if shape is None else f"a tensor {shape}"
        raise UserError(
            f"soft circuits of this model are a tensor {shapes[0]}, or several of them stacked; "
            f"not {what}"
        )
    if masks.is_complex():
        raise UserError(f"masks of a soft circuit are real numbers, not {masks.dtype}")
    if not bool(masks.isfinite().all()):
        raise UserError("some masks of a soft circuit are infinite or NaN; finite ones are needed")
    return configs[shapes.index(shape[-n_axes:])]
