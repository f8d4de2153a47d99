"""Rankings that are learned: scores of edges or nodes under which soft circuits of every size work.

MAttr (arXiv 2609.25518) starts from scores s that are all 0. Each step draws a size k and some
pairs, and finds the threshold tau at which the masks (with n edges, or nodes)

    m_j = sigmoid((s_j - tau) / T),    sum over j of m_j = k,

add up to it. It runs the soft circuit of those masks (`eap.soft_circuits`), and descends the
gradient of the loss. tau depends on the scores, so with g = dL/dm and a_j = m_j (1 - m_j)

    dL/ds_j = a_j / T (g_j - sum_i g_i a_i / sum_i a_i).

A constant added to all scores changes no mask: only differences mean something. What is returned is
shifted so that the least important edge has 0, and signed as the scores of every other method are
for helpful edges, so that `magnitude` and `helpful` both rank by importance and no edge is harmful.
The size of a score is not in units of the metric.
"""

from dataclasses import asdict, replace
from typing import Any, Unpack

import torch

from eap.ablation import Ablation, get_ablation
from eap.circuits import evaluate_baselines
from eap.data.batches import check_dataset
from eap.data.dataset import Dataset
from eap.engine.mask_training import LEARNING_RATES, STEPS, Recipe, State, Training
from eap.engine.signature import sign
from eap.errors import UserError
from eap.graph import Graph
from eap.metrics.metric import METRICS, Metric, get_metric
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.code import score_code
from eap.runtime.resources import ResourceOptions, Resources


@verb
def learn_ranking(
    model: Model,
    dataset: Dataset,
    *,
    metric: str | Metric | None = None,
    level: str = "edge",
    loss: str = "metric",
    optimizer: str = "adam",
    learning_rate: float | None = None,
    k: str = "uniform",
    steps: int | None = None,
    pairs: int = 1,
    temperature: float = 0.5,
    seed: int = 0,
    ablation: str | Ablation | None = None,
    expanded_kv: bool = False,
    checkpoint: Checkpoint | None = None,
    **resources: Unpack[ResourceOptions],
) -> Graph:
    """Learn scores of all edges, or nodes, that rank them for circuits of every size (MAttr).

    Judge such a ranking on other examples than it was learned on.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        metric: a name of `eap.metrics.METRICS`, or a `Metric`; None: `logit_diff` (kl if it is the
            loss). Its `higher_is_better` says which way to go.
        level: 'edge' or 'node'; the input node is always kept, and its node score is NaN.
        loss: 'metric' (minus the metric, or the metric itself where low is better); 'kl'; or
            'faithfulness': |1 - f|, f of the step's pairs, over the data set's difference between
            the clean and the ablated model.
        optimizer: 'adam' or 'sgd' (no momentum).
        learning_rate: None: 0.05 for adam, 3 for sgd.
        k: how sizes are drawn from 1 .. n: 'uniform', or 'log' (uniform in the logarithm).
        steps: None: 5000 for edges, 500 for nodes.
        pairs: examples per step, at the most; those of one length and first difference go together.
        temperature: T of the masks.
        seed: of sizes and pairs.
        ablation: what an ablated edge carries; None: the corrupted prompt's activation.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        checkpoint: where progress is kept; a run that was stopped goes on there, to the same end.
        **resources: batch_size (at the most; rounding apart, it changes nothing), memory_budget
            (bytes, half of it for runs that are kept), quiet; see `eap.runtime.resources`.

    Returns:
        The whole graph with `scores` (or `node_scores`), of which only order and differences mean
        something: see the module. Provenance has the mean loss of the first and last tenth of the
        steps.

    Raises:
        UserError: unknown names, numbers out of range, a metric without gradient or one beside the
            loss 'kl', or the loss 'faithfulness' where the ablated model is as good as the clean.
    """
    recipe = Recipe(
        level=level,
        loss=loss,
        optimizer=optimizer,
        learning_rate=LEARNING_RATES.get(optimizer, 0.0)
        if learning_rate is None
        else learning_rate,
        k=k,
        steps=STEPS.get(level, 0) if steps is None else steps,
        pairs=pairs,
        temperature=temperature,
        seed=seed,
    ).checked()
    chosen, where, limits = _metric_of(metric, loss), get_ablation(ablation), Resources(**resources)
    check_dataset(model, dataset)
    config = graph_config(model, expanded_kv=expanded_kv)
    provenance = sign(
        model, dataset, metric=chosen, method="MAttr", ablation=where,
        level=level, expanded_kv=expanded_kv, settings=asdict(recipe),
        code=score_code(), signed=False,
    )  # fmt: skip
    difference = 1.0
    if loss == "faithfulness":
        difference = _difference(model, dataset, chosen, where, limits)
    training = Training.plan(
        model, dataset, chosen, where, config, recipe, limits, checkpoint, difference
    )
    state = State.start(len(training.places), recipe.steps)
    if checkpoint is not None:
        identity = {name: part for name, part in provenance.items() if name != "command"}
        identity |= checkpoint.identity | {"batch_size": training.batch_size}
        checkpoint = replace(checkpoint, identity=identity)
    training.run(state, checkpoint, quiet=limits.quiet)
    tenth = max(1, recipe.steps // 10)
    first, last = state.losses[:tenth].mean(), state.losses[-tenth:].mean()
    provenance["loss"] = {"first_tenth": float(first), "last_tenth": float(last)}
    return _to_graph(training, state, provenance)


def _difference(
    model: Model, dataset: Dataset, metric: Metric, ablation: Ablation, limits: Resources
) -> float:
    """The metric's mean in the clean model minus that in the ablated one."""
    baselines = evaluate_baselines(
        model, dataset, metrics=[metric], ablation=ablation, **asdict(limits)
    )
    clean, ablated = (float(values[metric.name].double().mean()) for values in baselines)
    if clean == ablated:
        raise UserError(
            f"{metric.name} is {clean:.4g} in the clean and in the ablated model, so no "
            "faithfulness is defined; take the loss 'metric' or 'kl'"
        )
    return clean - ablated


def _metric_of(metric: str | Metric | None, loss: str) -> Metric:
    """The metric that the loss is made of."""
    if loss == "kl":
        if metric is not None and get_metric(metric).name != "kl":
            name = get_metric(metric).name
            raise UserError(f"the loss 'kl' asks for no metric; leave {name!r} out")
        return METRICS["kl"]
    chosen = get_metric("logit_diff" if metric is None else metric)
    if not chosen.differentiable:
        raise UserError(f"{chosen.name} has no gradient, so nothing can be learned from it")
    chosen.direction("learned rankings")  # asked before anything is run
    return chosen


def _to_graph(training: Training, state: State, provenance: dict[str, Any]) -> Graph:
    """Scores as those of helpful edges are signed, the least important 0."""
    work = training.work
    higher_is_better = work.metrics[0].direction("learned rankings")
    importance = (state.scores - state.scores.min()).to(work.model.residual_dtype)
    learned = -importance if higher_is_better else importance
    graph = replace(
        Graph.from_config(work.config), provenance=provenance, higher_is_better=higher_is_better
    )
    if training.recipe.level == "node":
        nodes = torch.full((work.config.n_forward,), torch.nan, dtype=learned.dtype)
        nodes[training.places] = learned
        return replace(graph, node_scores=nodes)
    scores = torch.zeros(work.config.n_forward, work.config.n_backward, dtype=learned.dtype)
    scores.view(-1)[training.places] = learned
    return replace(graph, scores=scores)
