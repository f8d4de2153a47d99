"""Soft circuits equal a twin written with loops."""

from __future__ import annotations

import pytest
import torch
from reference import twins
from reference.soft_twins import (
    AT_CLEAN,
    PAIRS,
    random_masks,
    soft_gradient,
    twin_gradient,
)
from reference.twins import DTYPES, FORMS, RAGGED, RELATIVE, assert_close, dataset_of

import eap
from eap.runtime.errors import UserError
from eap.soft.circuits import evaluate_soft


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_a_soft_circuit_and_its_gradient_equal_the_twin(family, expanded, dtype):
    masks = random_masks(family, expanded=expanded)
    for metric in ("logit_diff", "kl"):
        value, gradient = soft_gradient(family, dtype, masks, metric, expanded=expanded)
        expected, expected_gradient = twin_gradient(family, masks, metric, expanded=expanded)
        # A difference of logits is as exact as the logits, which are about 1, whatever it is.
        assert_close(value, expected, RELATIVE[dtype], at_least=1.0)
        assert_close(gradient, expected_gradient, RELATIVE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_the_gradient_at_the_whole_graph_is_minus_eap(family, expanded, dtype):
    ones = torch.ones(twins.edges_of(family, expanded=expanded).shape)
    for metric in ("logit_diff", "prob_diff"):
        _, gradient = soft_gradient(family, dtype, ones, metric, expanded=expanded)
        scores = twins.oracle_attribution(family, PAIRS, metric, *AT_CLEAN, expanded=expanded)
        assert_close(gradient, -scores.mean(0), RELATIVE[dtype])


def ablations(model, dataset):
    return (None, "zero", eap.Mean.over_dataset(model, dataset))


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_zeros_and_ones_are_the_circuits_of_evaluate(family, expanded):
    model, dataset = twins.load(family, torch.float64), dataset_of(RAGGED)
    exists = twins.edges_of(family, expanded=expanded)
    generator = torch.Generator().manual_seed(3)
    some = exists & (torch.rand(exists.shape, generator=generator) < 0.6)
    whole = eap.Graph.from_model(model, expanded_kv=expanded)
    graphs = [whole, whole.empty(), whole.with_edges(some)]
    masks = torch.stack([graph.in_graph for graph in graphs]).double()
    names = ["logit_diff", "js"]
    with twins.precision(family, torch.float64):
        for ablation in ablations(model, dataset):
            soft = evaluate_soft(model, masks, dataset, metrics=names, ablation=ablation)
            hard = eap.evaluate(model, graphs, dataset, metrics=names, ablation=ablation)
            for name in names:
                assert_close(soft[name], hard[name], 1e-9, at_least=0.1)
        clean, ablated = eap.evaluate_baselines(model, dataset)
        values = evaluate_soft(model, masks, dataset)["logit_diff"]
        assert_close(values[0], clean["logit_diff"], 1e-9)
        assert_close(values[1], ablated["logit_diff"], 1e-9)
        alone = evaluate_soft(model, masks[2], dataset, batch_size=1)["logit_diff"]
        assert_close(alone, values[2], 1e-9)


def test_other_ablations_are_soft_to_the_same_formula():
    """Between two circuits that differ in edges into the logits alone, the input is linear."""
    model, dataset = twins.load("gpt2", torch.float64), dataset_of(PAIRS)
    for ablation in ablations(model, dataset):
        masks = random_masks("gpt2", seed=4)
        _, gradient = soft_gradient("gpt2", torch.float64, masks, "logit_diff", ablation=ablation)
        direction = torch.randn(masks.shape, generator=torch.Generator().manual_seed(0)).double()
        direction = direction.masked_fill(~twins.edges_of("gpt2"), 0.0)
        step = 1e-5
        ends = [
            evaluate_soft(model, masks + s * step * direction, dataset, ablation=ablation)
            for s in (1, -1)
        ]
        high, low = (float(end["logit_diff"].mean()) for end in ends)
        assert (high - low) / (2 * step) == pytest.approx(float((gradient * direction).sum()), 1e-6)


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (torch.ones(3, 4), "a tensor [3, 4]"),
        ([1.0], "list"),
        (torch.full((11, 27), torch.nan), "infinite or NaN"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_masks_of_no_graph_of_the_model_are_refused(masks, says):
    model = twins.load("gpt2")
    shape = (model.config.n_forward, model.config.n_backward)
    masks = torch.full(shape, torch.nan) if says.startswith("infinite") else masks
    with pytest.raises(UserError, match=r"soft circuit|masks is") as error:
        evaluate_soft(model, masks, dataset_of(PAIRS))
    assert says in str(error.value)
