"""Attribution of edges into hidden units: an edge into an MLP, split by the units that read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eap.ablation import Ablation
from eap.attribution import DEFAULT_STEPS, warn_of_baselines
from eap.data.dataset import Dataset
from eap.engine.moments import Moments
from eap.engine.passes import PASSES, Request
from eap.engine.path_gradients import check_gradients
from eap.engine.prepared import Demand, Work
from eap.engine.signature import sign
from eap.engine.unit_runs import score_unit_edges
from eap.graph.numbering import sender_index
from eap.inside.part_attribution import linear_call
from eap.methods import Method
from eap.metrics.metric import Metric, check_values
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.parts.basis import place_of
from eap.runtime.errors import UserError, quoted
from eap.runtime.memory import Extent, Need, Shapes, attribution_need
from eap.runtime.ranges import whole
from eap.runtime.resources import ResourceOptions, Resources


@dataclass(frozen=True, eq=False)
class UnitEdges:
    """Scores of the edges into the hidden units of one MLP, in units of the metric.

    Attributes:
        mlp: name of the MLP.
        senders: names of the senders before the MLP.
        inputs: names of the inputs of a unit: ('in',), or ('in', 'gate') in a gated MLP.
        scores: scores [sender, input, unit]; summed over inputs and units, they are the scores of
            the edges into the MLP.
        standard_errors: standard errors of the means over examples; None for one example.
        provenance: origin of the scores.

    Example:
        >>> eap.unit_edges(model, dataset, "m1", method="EAP").senders[0]
        'input'
    """

    mlp: str
    senders: tuple[str, ...]
    inputs: tuple[str, ...]
    scores: Float[Tensor, "sender input unit"]
    standard_errors: Float[Tensor, "sender input unit"] | None
    provenance: dict[str, Any]

    def top_n(self, n: int = 20) -> pd.DataFrame:
        """Make a table of the edges with the largest magnitude.

        The columns are edge (its name, such as `a0.h1->m1.u7<gate>`), score and standard_error.

        Args:
            n: number of edges.
        """
        order = self.scores.flatten().abs().argsort(descending=True, stable=True)[: whole("n", n)]
        places = torch.stack(torch.unravel_index(order, self.scores.shape), dim=1)
        names = [
            f"{self.senders[sender]}->{self.mlp}.u{unit}<{self.inputs[which]}>"
            for sender, which, unit in places.tolist()
        ]
        frame = pd.DataFrame({"edge": names, "score": self.scores.flatten()[order].numpy()})
        if self.standard_errors is not None:
            frame["standard_error"] = self.standard_errors.flatten()[order].numpy()
        return frame


@verb
def unit_edges(
    model: Model,
    dataset: Dataset,
    mlp: str,
    *,
    method: str | Method = "EAP-IG",
    metric: str | Metric | None = None,
    ablation: str | Ablation | None = None,
    steps: int | None = None,
    rule: str = "paper",
    **resources: Unpack[ResourceOptions],
) -> UnitEdges:
    """Score the edges from every sender into the hidden units of one MLP.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        mlp: name of the MLP, such as `m3`.
        method: name of a method that is linear in the sender's output, or a `Method`; exact values,
            QK fix and GradDrop are not linear.
        metric: name of a metric in `eap.metrics.METRICS`, or an `eap.Metric`; None: `logit_diff`.
        ablation: activation that an ablated edge carries; None: that on the corrupted prompt.
        steps: number of integration points, for methods that integrate; None: 5.
        rule: name of an integration rule in `eap.methods.RULES`, for methods that integrate.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Scores [sender, input, unit], which sum to the scores of the edges into the MLP.

    Raises:
        UserError: as for `eap.part_scores`; also for an MLP that does not exist.

    Example:
        >>> eap.unit_edges(model, dataset, "m1", method="EAP").top_n(10).shape[0]
        10
    """
    call = linear_call(method, metric, ablation, rule, steps)
    steps = DEFAULT_STEPS if steps is None else whole("steps", steps)
    config = graph_config(model)
    layer, head = place_of(config, sender_index(config).get(mlp, 0))
    if layer < 0 or head is not None:
        raise UserError(f"{model.name} has no MLP {quoted(str(mlp), 40)}")
    assert call.metric is not None
    points, limits = call.points(steps), Resources(**resources)
    weights = model.blocks[layer].mlp
    inputs: Sequence[str] = ("in",) if weights.W_gate is None else ("in", "gate")
    shape = (config.senders_before(layer, "mlp"), len(inputs), len(weights.W_in))
    n_scores = shape[0] * shape[1] * shape[2]

    def need(shapes: Shapes, extent: Extent, n_columns: int) -> Need:
        base = attribution_need(shapes, extent, len(points), n_columns)
        along = 2 * len(points) * extent.n_positions * shapes.mlp_width
        return Need(base.kept + shapes.bytes * (n_scores + along), base.each)

    demand = Demand("attribution of edges into units", need, n_scores)
    work = Work.plan(model, dataset, [call.metric], call.ablation, config, limits, demand)
    passes = PASSES[str(call.method.scorer)]
    moments, baselines = Moments.zeros(*shape, device=model.device), Moments.zeros(3)
    what = f"{call.method.name} {call.metric.name}, units of {mlp}"
    for batch in work.batches(what, quiet=limits.quiet):
        stacked = work.runs_at_once(batch.extent)
        request = Request(call.method, points, stacked, units=layer, baselines=baselines)
        with torch.enable_grad():
            moments.add(score_unit_edges(batch, passes(batch, request), layer))
    moments.merge_processes(what)
    baselines.merge_processes(what)
    check_gradients(work)
    warn_of_baselines(model, call, baselines)
    mean, error = moments.mean, moments.standard_error
    check_values([call.metric], mean[None].flatten(2))
    return UnitEdges(
        mlp=mlp,
        senders=config.sender_names[: shape[0]],
        inputs=tuple(inputs),
        scores=mean.to(model.residual_dtype),
        standard_errors=None if error is None else error.to(model.residual_dtype),
        provenance=sign(
            model, dataset, metric=call.metric, method=call.method.name, ablation=call.ablation,
            level="part", settings=call.settings(steps), receiver=mlp,
        ),
    )  # fmt: skip
