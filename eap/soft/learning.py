"""Learned rankings: scores of edges or nodes with which soft circuits of every size work well.

MAttr (arXiv 2609.25518) starts from scores s that are all 0. Each step draws a size k and some
pairs, and finds the threshold tau at which the masks (with n edges, or nodes)

    m_j = sigmoid((s_j - tau) / T),    sum over j of m_j = k,

sum to k. It runs the soft circuit of these masks (`eap.soft.circuits`), and takes a step of
gradient descent on the loss. tau depends on the scores, so with g = dL/dm and a_j = m_j (1 - m_j)

    dL/ds_j = a_j / T (g_j - sum_i g_i a_i / sum_i a_i).

A constant added to all scores changes no mask, so only differences of scores have a meaning. The
returned scores are shifted so that the least important edge has 0, and have the sign that other
methods give to helpful edges. So `magnitude` and `helpful` both rank by importance, and no edge is
harmful. The scores are not in units of the metric.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import wraps
from hashlib import sha256
from typing import Any, Unpack

from jaxtyping import Float
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.circuits import evaluate_baselines
from eap.data.batches import check_dataset, named_spans
from eap.data.dataset import Dataset
from eap.engine.mask_training import MaskLayout, State, Training
from eap.engine.recipe import Recipe
from eap.engine.signature import sign
from eap.graph import Graph
from eap.metrics.metric import METRICS, Metric, get_metric
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.code import score_code
from eap.runtime.errors import UserError
from eap.runtime.resources import ResourceOptions, Resources


def _takes_former_keywords(function: Callable[..., Graph]) -> Callable[..., Graph]:
    """Accept the keywords of earlier versions that are now in `Recipe`, with a warning."""

    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Graph:
        former = {field.name for field in fields(Recipe)} & set(options)
        if former:
            names = ", ".join(f"{name}=..." for name in sorted(former))
            warnings.warn(
                f"learn_ranking({names}) is now learn_ranking(recipe=eap.Recipe({names}))",
                FutureWarning,
                stacklevel=2,
            )
            recipe = options.get("recipe") or Recipe()
            options["recipe"] = replace(recipe, **{name: options.pop(name) for name in former})
        return function(*arguments, **options)

    return call


@_takes_former_keywords
@verb
def learn_ranking(
    model: Model,
    dataset: Dataset,
    *,
    metric: str | Metric | None = None,
    level: str = "edge",
    recipe: Recipe | None = None,
    prices: Float[Tensor, "*span n_forward n_backward"] | None = None,
    ablation: str | Ablation | None = None,
    expanded_kv: bool = False,
    spans: bool = False,
    checkpoint: Checkpoint | None = None,
    **resources: Unpack[ResourceOptions],
) -> Graph:
    """Learn scores of all edges, or nodes, that rank them for circuits of every size (MAttr).

    Evaluate such a ranking on examples that it was not learned on.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        metric: name of a metric in `eap.metrics.METRICS`, or an `eap.Metric`; None: `logit_diff`
            (`kl` if the loss is 'kl'). The metric's `higher_is_better` must be known.
        level: 'edge' or 'node'; the input node is always kept, and its node score is NaN.
        recipe: loss, optimizer, steps and sizes; None: `eap.Recipe()`.
        prices: cost of each edge that is added to the loss in proportion to its mask, for instance
            to keep edges out of a circuit (not with level="node"); None: no costs.
        ablation: activation that an ablated edge carries; None: that on the corrupted prompt.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        spans: whether to rank pairs of an edge (or a node) and a span of the data set's prompts.
        checkpoint: `Checkpoint` in which progress is kept; an interrupted run resumes from it, with
            the same result.
        **resources: batch_size (an upper limit; it changes the result only by rounding),
            memory_budget (bytes; half of it for runs that are kept), quiet; see
            `eap.runtime.resources`.

    Returns:
        The whole graph with `scores` (or `node_scores`), of which only the order and the
        differences have a meaning. Provenance has the mean loss of the first and of the last tenth
        of the steps.

    Raises:
        UserError: unknown names, numbers out of range, a metric without a gradient, a metric other
            than `kl` with the loss 'kl', or the loss 'faithfulness' if the means of the clean and
            the ablated model are equal.

    Example:
        >>> recipe = eap.Recipe(steps=3, loss="kl")
        >>> ranking = eap.learn_ranking(model, dataset, level="node", recipe=recipe)
    """
    recipe = (recipe or Recipe()).complete(level)
    loss = recipe.loss
    settings = asdict(recipe)
    names = named_spans(model, dataset) if spans else ()
    layout = MaskLayout(graph_config(model, expanded_kv=expanded_kv), level, names)
    if prices is not None:
        settings["prices"] = _check_prices(prices, level, list(layout.shape))
    chosen, ablation = _metric_of(metric, loss), get_ablation(ablation)
    limits = Resources(**resources)
    check_dataset(model, dataset)
    provenance = sign(
        model, dataset, metric=chosen, method="MAttr", ablation=ablation,
        level=level, expanded_kv=expanded_kv, settings=settings,
        code=score_code(), signed=False, spans=names,
    )  # fmt: skip
    difference = 1.0
    if loss == "faithfulness":
        difference = _difference(model, dataset, chosen, ablation, limits)
    if checkpoint is not None and limits.batch_size is None:
        # Keep the batch size that the interrupted run chose from the memory then available.
        limits = replace(limits, batch_size=checkpoint.setting("batch_size"))
    training = Training.plan(
        model, dataset, chosen, ablation, layout, recipe, limits,
        prices=prices, difference=difference,
    )  # fmt: skip
    assert recipe.steps is not None
    state = State.start(len(layout.places), recipe.steps)
    if checkpoint is not None:
        identity = {name: part for name, part in provenance.items() if name != "command"}
        identity |= checkpoint.identity | {"batch_size": training.batch_size}
        checkpoint = replace(checkpoint, identity=identity)
    training.run(state, checkpoint, quiet=limits.quiet)
    tenth = max(1, recipe.steps // 10)
    first, last = state.losses[:tenth].mean(), state.losses[-tenth:].mean()
    provenance["loss"] = {"first_tenth": float(first), "last_tenth": float(last)}
    return _to_graph(training, state, provenance)


def _check_prices(prices: Tensor, level: str, shape: list[int]) -> str:
    """Hash of prices, after checking that they are one finite number for every edge of a graph."""
    if level != "edge":
        raise UserError("prices are costs of edges; leave them out where nodes are ranked")
    if prices.is_complex():
        raise UserError("prices are complex numbers; they must be real numbers")
    if list(prices.shape) != shape or not bool(prices.isfinite().all()):
        raise UserError(f"prices must be finite numbers for every edge, in a tensor {shape}")
    return sha256(prices.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]


def _difference(
    model: Model, dataset: Dataset, metric: Metric, ablation: Ablation, limits: Resources
) -> float:
    """Mean metric of the clean model minus that of the ablated model."""
    baselines = evaluate_baselines(
        model, dataset, metrics=[metric], ablation=ablation, **asdict(limits)
    )
    clean, ablated = (float(values[metric.name].double().mean()) for values in baselines)
    if clean == ablated:
        raise UserError(
            f"{metric.name} is {clean:.4g} in the clean and in the ablated model, so faithfulness "
            "is not defined; use the loss 'metric' or 'kl'"
        )
    return clean - ablated


def _metric_of(metric: str | Metric | None, loss: str) -> Metric:
    """Metric that the loss is computed from."""
    if loss == "kl":
        if metric is not None and get_metric(metric).name != "kl":
            name = get_metric(metric).name
            raise UserError(f"the loss 'kl' uses no other metric; leave {name!r} out")
        return METRICS["kl"]
    chosen = get_metric("logit_diff" if metric is None else metric)
    if not chosen.differentiable:
        raise UserError(f"{chosen.name} has no gradient, so nothing can be learned from it")
    chosen.direction("learned rankings")  # fails early, before anything is run
    return chosen


def _to_graph(training: Training, state: State, provenance: dict[str, Any]) -> Graph:
    """Graph of the learned scores, with the sign of helpful edges; the least important has 0."""
    work = training.work
    higher_is_better = work.metrics[0].direction("learned rankings")
    importance = (state.scores - state.scores.min()).to(work.model.residual_dtype)
    graph = training.layout.to_graph(-importance if higher_is_better else importance)
    return replace(graph, provenance=provenance, higher_is_better=higher_is_better)
