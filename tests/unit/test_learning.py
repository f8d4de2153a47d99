"""Rankings are learned from the gradients of soft circuits."""

from __future__ import annotations

import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from models.tiny import FAMILIES, GROUPED_FAMILIES, MAIN_FAMILIES, PARALLEL_FAMILIES
from reference import twins
from reference.soft_twins import (
    PAIRS,
    twin_gradient,
)
from reference.twins import assert_close, dataset_of

import eap
from eap.data.answers import Answers
from eap.engine.mask_training import find_threshold, gradient_of_scores, make_masks
from eap.engine.prepared import Work, demand_of_gradients
from eap.engine.recipe import Recipe
from eap.metrics.metric import METRICS
from eap.runtime import progress
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.errors import UserError
from eap.runtime.resources import Resources
from eap.soft.circuits import evaluate_soft
from eap.soft.learning import learn_ranking

# ---- masks that add up to k ----------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 40.0])
def test_masks_add_up_to_k(spread):
    generator = torch.Generator().manual_seed(1)
    scores = 5.0 + spread * torch.randn(200, generator=generator, dtype=torch.float64)
    for k in (1.0, 1.7, 20.0, 100.0, 199.0, 200.0):
        for temperature in (0.05, 0.5):
            masks, slopes = make_masks(scores, k, temperature)
            assert float(masks.sum()) == pytest.approx(k, rel=1e-9)
            order = scores.argsort()
            assert (masks[order].diff() >= 0).all()  # ranked as the scores are
            assert torch.allclose(slopes, masks * (1 - masks), atol=1e-12)


def test_the_gradient_through_the_threshold_equals_autograd_through_newton_steps():
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(30, generator=generator, dtype=torch.float64)
    of_masks = torch.randn(30, generator=generator, dtype=torch.float64)
    for k in (2.0, 11.5, 28.0):
        leaf, temperature = scores.clone().requires_grad_(), 0.5
        tau = torch.tensor(find_threshold(scores, k, temperature), dtype=torch.float64)
        for _ in range(3):  # autograd of a converged Newton step is that of the threshold
            masks = ((leaf - tau) / temperature).sigmoid()
            tau = tau + temperature * (masks.sum() - k) / (masks * (1 - masks)).sum()
        loss = (((leaf - tau) / temperature).sigmoid() * of_masks).sum()
        (expected,) = torch.autograd.grad(loss, leaf)
        _, slopes = make_masks(scores, k, temperature)
        assert_close(gradient_of_scores(of_masks, slopes, temperature), expected, 1e-9)


# ---- learning ------------------------------------------------------------------------------------


def learned(family="gpt2", dtype=torch.float64, **arguments):
    arguments = {"pairs": 2, "steps": 6, "seed": 1} | arguments
    dataset = dataset_of(arguments.pop("examples", PAIRS))
    model = twins.load(family, dtype)  # not below: see there
    names = {field.name for field in fields(Recipe)} & set(arguments)
    recipe = Recipe(**{name: arguments.pop(name) for name in names})
    with twins.precision(family, dtype):
        return learn_ranking(model, dataset, recipe=recipe, **arguments)


def scores_of(graph):
    """What was learned, the least important 0: for edges where they exist."""
    if graph.node_scores is not None:
        return graph.node_scores[1:].abs()
    return graph.scores[graph.edge_exists].abs()


def twin_step(family, masks, slopes, rows, metric="logit_diff"):
    """Minus the gradient of minus the metric with respect to scores, at some edges' masks."""
    exists = twins.edges_of(family)
    full = torch.zeros(exists.shape, dtype=torch.float64).masked_scatter(exists, masks)
    _, gradient = twin_gradient(family, full, metric, examples=[PAIRS[row] for row in rows])
    g = gradient[exists]
    return slopes / 0.5 * (g - (g * slopes).sum() / slopes.sum())


def test_the_first_step_is_a_centred_integral_of_gradients_in_mask_space():
    """At scores of 0 all masks are k / n: over all k, a sum over the diagonal of mask space."""
    family, n = "gpt2", int(twins.edges_of("gpt2").sum())
    example = PAIRS[:1]
    expected, seen = {}, {}
    for seed in range(12):
        recipe = Recipe(
            optimizer="sgd", learning_rate=3.0, k="uniform", steps=1, pairs=1, seed=seed
        )
        _, k = recipe.draw(0, n, [1])
        share = torch.full((n,), k / n, dtype=torch.float64)
        step = twin_step(family, share, share * (1 - share), [0])
        expected[k] = 3.0 * (step - step.min())
        seen[k] = scores_of(learned(examples=example, steps=1, pairs=1, optimizer="sgd", seed=seed))
    assert len(expected) > 8
    mean = torch.stack(list(expected.values())).mean(0)
    assert_close(torch.stack(list(seen.values())).mean(0), mean, 1e-9)


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_three_steps_of_gradient_descent_equal_the_twin(family):
    n = int(twins.edges_of(family).sum())
    scores = torch.zeros(n, dtype=torch.float64)
    recipe = Recipe(optimizer="sgd", learning_rate=0.7, k="log", steps=3, pairs=3, seed=5)
    model = twins.load(family, torch.float64)
    where = eap.ablation.get_ablation(None)
    work = Work.plan(
        model, dataset_of(PAIRS), [METRICS["logit_diff"]], where, model.config,
        Resources(batch_size=3), demand_of_gradients("a soft circuit", model.config),
    )  # fmt: skip
    for step in range(3):
        batch, k = recipe.draw(step, n, [len(rows) for rows in work.rows_of])
        masks, slopes = make_masks(scores, k, 0.5)
        scores = scores + 0.7 * twin_step(family, masks, slopes, work.rows_of[batch])
    graph = learned(family, steps=3, pairs=3, optimizer="sgd", learning_rate=0.7, k="log", seed=5)
    assert_close(scores_of(graph), scores - scores.min(), 1e-8)


def test_adam_equals_that_of_torch():
    exists = twins.edges_of("gpt2")
    parameter = torch.zeros(int(exists.sum()), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=0.05)
    recipe = Recipe(optimizer="adam", learning_rate=0.05, k="uniform", steps=4, pairs=1, seed=1)
    for step in range(4):
        _, k = recipe.draw(step, len(parameter), [1])
        masks, slopes = make_masks(parameter.detach(), k, 0.5)
        parameter.grad = -twin_step("gpt2", masks, slopes, [0])
        optimizer.step()
    expected = (parameter - parameter.min()).detach()
    # Adam divides by the size of gradients, which magnifies what is nearly nothing.
    assert_close(scores_of(learned(examples=PAIRS[:1], steps=4, pairs=1)), expected, 1e-6)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_a_seed_gives_one_ranking_and_another_seed_another(level):
    first, again = (learned(dtype=torch.float32, level=level) for _ in range(2))
    assert torch.equal(scores_of(first), scores_of(again))
    assert first.provenance == again.provenance
    other = learned(dtype=torch.float32, level=level, seed=2)
    assert not torch.equal(scores_of(first), scores_of(other))


def test_batch_size_and_memory_change_nothing():
    first = learned(pairs=3)
    for arguments in ({"batch_size": 1}, {"batch_size": 3, "memory_budget": 1}):
        assert_close(scores_of(learned(pairs=3, **arguments)), scores_of(first), 1e-9)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_a_stopped_run_goes_on_to_the_same_end(level, tmp_path, monkeypatch):
    path = tmp_path / "mattr.safetensors"

    def checkpoint():
        return Checkpoint(path, {"task": "x"}, seconds=0.0)

    undisturbed = learned(level=level, dtype=torch.float32)
    drawn, whole = [], Recipe.draw

    def draw(self, step, n, sizes):
        drawn.append(step)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return whole(self, step, n, sizes)

    monkeypatch.setattr(Recipe, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        learned(level=level, dtype=torch.float32, checkpoint=checkpoint())
    goes_on = learned(level=level, dtype=torch.float32, checkpoint=checkpoint())
    assert drawn == [0, 1, 2, 3, 3, 4, 5]
    assert torch.equal(scores_of(goes_on), scores_of(undisturbed))
    assert goes_on.provenance == undisturbed.provenance
    with pytest.raises(UserError, match="another run"):
        learned(level=level, dtype=torch.float32, seed=9, checkpoint=checkpoint())


@pytest.mark.parametrize("loss", ["metric", "kl", "faithfulness", "cmd"])
@pytest.mark.parametrize("level", ["edge", "node"])
def test_learning_finds_what_the_metric_needs(level, loss):
    """The learned circuits of all sizes do better, on its own loss, than those of no learning."""
    metric = None if loss == "kl" else "logit_diff"
    arguments = {
        "level": level, "loss": loss, "metric": metric, "k": "uniform", "pairs": 3,
        "examples": PAIRS[:1], "dtype": torch.float32, "seed": 0,
    }  # fmt: skip
    graph = learned(steps=150, **arguments)
    loss_of = graph.provenance["loss"]
    assert loss_of["last_tenth"] < loss_of["first_tenth"]


@pytest.mark.parametrize("family", sorted({*MAIN_FAMILIES, "gemma2", *PARALLEL_FAMILIES}))
def test_a_ranking_ranks_by_what_was_learned(family):
    for metric, higher in (("logit_diff", True), ("js", False)):
        graph = learned(family, torch.float32, metric=metric)
        assert graph.higher_is_better is higher
        importance = scores_of(graph)
        assert float(importance.min()) == 0.0
        assert (graph.scores <= 0).all() if higher else (graph.scores >= 0).all()
        by_magnitude, helpful = graph.top_n(20), graph.top_n(20, by="helpful")
        assert torch.equal(by_magnitude.in_graph, helpful.in_graph)
        kept = importance[by_magnitude.in_graph[graph.edge_exists]]
        assert float(kept.min()) >= float(importance.sort(descending=True).values[19])


@pytest.mark.parametrize("family", GROUPED_FAMILIES[:2])
def test_grouped_heads_are_learned_in_both_forms(family):
    native, expanded = (learned(family, torch.float32, expanded_kv=e) for e in (False, True))
    assert native.n_backward < expanded.n_backward
    assert native.provenance["expanded_kv"] is False
    assert expanded.provenance["expanded_kv"] is True


@pytest.mark.parametrize("family", FAMILIES)
def test_node_masks_scale_all_that_a_node_sends(family):
    """One step's scores, from edges' gradients summed over each node's edges."""
    graph = learned(
        family, examples=PAIRS[:1], level="node", steps=1, pairs=1, optimizer="sgd", seed=3
    )
    assert graph.node_scores[0].isnan()
    with pytest.raises(UserError, match="NaN"):  # edges have no scores
        graph.top_n(5)
    assert graph.top_n_nodes(graph.n_forward - 1).count_edges() == graph.n_edges
    n = graph.n_forward - 1
    recipe = Recipe(optimizer="sgd", learning_rate=3.0, k="uniform", steps=1, pairs=1, seed=3)
    _, k = recipe.draw(0, n, [1])
    exists = twins.edges_of(family)
    masks = torch.full(exists.shape, k / n, dtype=torch.float64)
    masks[0] = 1.0
    _, gradient = twin_gradient(family, masks, "logit_diff", examples=PAIRS[:1])
    g = (gradient * exists).sum(1)[1:]
    step = 3.0 * (k / n) * (1 - k / n) / 0.5 * (g - g.mean())
    assert_close(scores_of(graph), step - step.min(), 1e-9)


def test_losses_are_what_they_say():
    """The first step's loss, from values that evaluate_soft gives."""
    model, dataset = twins.load("gpt2", torch.float64), dataset_of(PAIRS[:1])
    n = int(twins.edges_of("gpt2").sum())
    _, k = Recipe(seed=1).draw(0, n, [1])
    masks = torch.full((model.config.n_forward, model.config.n_backward), k / n)
    names = ["logit_diff", "kl"]
    value = evaluate_soft(model, masks.double(), dataset, metrics=names)
    clean, ablated = eap.evaluate_baselines(model, dataset)
    low, high = float(ablated["logit_diff"]), float(clean["logit_diff"])
    share = (float(value["logit_diff"]) - low) / (high - low)
    expected = {
        "metric": -float(value["logit_diff"]),
        "kl": float(value["kl"]),
        "faithfulness": abs(1 - share),
        "cmd": abs(float(value["logit_diff"]) - high) / max(high - low, 1.0),
    }
    for loss, number in expected.items():
        graph = learned(examples=PAIRS[:1], loss=loss, steps=1, pairs=1)
        assert graph.provenance["loss"]["first_tenth"] == pytest.approx(number, rel=1e-6)


def test_sizes_are_drawn_as_asked():
    n, sizes = 1000, [3, 1]
    for k, median in (("uniform", 500), ("log", 1000**0.5)):
        recipe = Recipe(optimizer="adam", learning_rate=0.05, k=k, steps=1, pairs=1, seed=0)
        draws = [recipe.draw(step, n, sizes) for step in range(2000)]
        drawn = np.array([size for _, size in draws])
        assert drawn.min() >= 1
        assert drawn.max() <= n
        assert np.median(drawn) == pytest.approx(median, rel=0.15)
        share = np.mean([batch == 0 for batch, _ in draws])  # three pairs of four
        assert share == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_loss_and_rate(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)
    learned(dtype=torch.float32, quiet=False)
    shown = capsys.readouterr().err
    rate = "it/s" if terminal else "per second"
    assert all(part in shown for part in ("MAttr logit_diff", "loss", rate))
    learned(dtype=torch.float32)
    assert not capsys.readouterr().err


def test_a_learned_graph_is_saved_and_signed(tmp_path):
    for level in ("edge", "node"):
        graph = learned(dtype=torch.float32, level=level)
        assert graph.provenance["method"] == "MAttr"
        assert graph.provenance["settings"]["optimizer"] == "adam"
        for suffix in ("json", "safetensors"):
            path = tmp_path / f"{level}.{suffix}"
            graph.save(path)
            again = eap.Graph.load(path)
            assert torch.allclose(scores_of(again), scores_of(graph))
            assert again.provenance["settings"] == graph.provenance["settings"]


def test_each_pair_of_cmd_counts_by_its_own_difference():
    """Differences below one logit count as one; the loss is a mean of distances, not of a mean."""
    model, pairs = twins.load("gpt2", torch.float64), [PAIRS[0], PAIRS[1]]
    values = []
    for pair in pairs:
        dataset = dataset_of([pair])
        clean, ablated = (float(x["logit_diff"]) for x in eap.evaluate_baselines(model, dataset))
        n = int(twins.edges_of("gpt2").sum())
        _, k = Recipe(seed=1).draw(0, n, [1])
        masks = torch.full((model.config.n_forward, model.config.n_backward), k / n)
        value = float(evaluate_soft(model, masks.double(), dataset)["logit_diff"])
        values.append(abs(value - clean) / max(clean - ablated, 1.0))
        found = learned(examples=[pair], loss="cmd", steps=1, pairs=1).provenance["loss"]
        assert found["first_tenth"] == pytest.approx(values[-1], rel=1e-6)


def test_former_keywords_of_the_verb_say_their_new_place():
    model, dataset = twins.load("gpt2"), dataset_of(PAIRS)
    with pytest.warns(FutureWarning, match=r"recipe=eap.Recipe\(seed=..., steps=...\)"):
        former = learn_ranking(model, dataset, steps=2, seed=3)
    present = learn_ranking(model, dataset, recipe=eap.Recipe(steps=2, seed=3))
    assert torch.equal(former.scores, present.scores)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"level": "head"}, "unknown level 'head'"),
        ({"loss": "mse"}, "unknown loss 'mse'"),
        ({"optimizer": "lion"}, "unknown optimizer"),
        ({"k": "normal"}, "unknown k"),
        ({"steps": 0}, "steps is 0; it must be"),
        ({"steps": 2.5}, "steps is 2.5; it must be"),
        ({"pairs": 0}, "pairs is 0; it must be"),
        ({"seed": -1}, "seed is -1; it must be"),
        ({"temperature": 0}, "temperature is 0; it must be"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be"),
        ({"metric": "accuracy"}, "accuracy has no gradient"),
        ({"metric": "js", "loss": "kl"}, "leave 'js' out"),
        ({"metric": "nonsense"}, "unknown metric"),
        ({"ablation": "nonsense"}, "unknown ablation"),
        ({"batch_size": 0}, "batch_size is 0; it must be"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, says):
    with pytest.raises(UserError) as error:
        learned(dtype=torch.float32, **arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_prices_may_require_a_gradient():
    model, dataset, recipe = twins.load("gpt2"), dataset_of(PAIRS), eap.Recipe(steps=1)
    prices = torch.rand(model.config.n_forward, model.config.n_backward)
    expected = learn_ranking(model, dataset, recipe=recipe, prices=prices)
    found = learn_ranking(model, dataset, recipe=recipe, prices=prices.requires_grad_())
    assert torch.equal(found.scores, expected.scores)


def test_prices_are_real_numbers_of_edges(unchecked_shapes):
    model, dataset = twins.load("gpt2"), dataset_of(PAIRS)
    prices = torch.ones(model.config.n_forward, model.config.n_backward)
    with pytest.raises(UserError, match="prices are complex numbers"):
        learn_ranking(model, dataset, prices=prices.to(torch.complex64))
    with pytest.raises(UserError, match="leave them out where nodes are ranked"):
        learn_ranking(model, dataset, prices=prices, level="node")


def test_metrics_that_pass_no_gradient_or_no_number_are_refused():
    def detached(logits, clean, answers: Answers):
        return logits[:, 0].detach()

    def never(logits, clean, answers: Answers):
        return logits[:, 0] * torch.nan

    for function, says in ((detached, "no gradient"), (never, "nan")):
        with pytest.raises(UserError, match=says):
            learned(dtype=torch.float32, metric=eap.Metric("mine", function, higher_is_better=True))
    same = [replace(pair, corrupted=pair.clean) for pair in PAIRS]
    with pytest.raises(UserError, match="faithfulness is not defined"):
        learned(dtype=torch.float32, loss="faithfulness", examples=same)
