"""Edges into hidden units sum to the edge into their MLP, and equal their autograd twin."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from models.tiny import FAMILIES, random_examples
from reference import twins
from reference.twins import assert_close, dataset_of, steps_of

import eap
from eap.engine.passes import PASSES
from eap.methods import METHODS

LINEAR = [name for name, method in METHODS.items() if method.linear and method.scorer in PASSES]
DATA = dataset_of(random_examples([5, 3, 6], [2, 0, 3], seed=5))
OPTIONS = {"metric": "logit_diff", "batch_size": 2}


def assert_units_sum_to_their_mlp(family, layers, method="EAP-IG", **options):
    options |= {"method": method, **steps_of(method, 2)}
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        graph = eap.attribute(model, DATA, **OPTIONS, **options)
        for layer in layers:
            units = eap.unit_edges(model, DATA, f"m{layer}", **OPTIONS, **options)
            column = graph.receiver_names.index(f"m{layer}")
            n = len(units.senders)
            assert_close(units.scores.sum((1, 2)), graph.scores[:n, column], 1e-9)
            assert n == model.config.senders_before(layer, "mlp")
            assert units.standard_errors.shape == units.scores.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_units_sum_to_their_mlp(family):
    assert_units_sum_to_their_mlp(family, [0, 1])


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2"])
def test_units_sum_to_their_mlp_by_other_rules_and_ablations(family, method):
    ablation = "resample" if METHODS[method].needs_pair else "zero"
    assert_units_sum_to_their_mlp(family, [0, 1], method=method, ablation=ablation)


@pytest.mark.parametrize("method", ["EAP", "CEAP", "EAP-IG-activations"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_unit_without_a_gradient_takes_its_edges_along(family, method):
    """Where no gradient passes a unit, the MLP's edges are less by exactly that unit's."""
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        units = eap.unit_edges(model, DATA, "m1", method=method)
        graph = eap.attribute(model, DATA, method=method)
        others = eap.attribute(without_gradient_of(model, 3), DATA, method=method)
    column = graph.receiver_names.index("m1")
    n = len(units.senders)
    found = graph.scores[:n, column] - others.scores[:n, column]
    assert_close(found, units.scores.sum(1)[:, 3], 1e-9, at_least=1e-2)


def without_gradient_of(model, unit):
    """The same values, but no gradient passes a unit of the last MLP."""
    block = model.blocks[1]

    class Detached(type(block.mlp)):
        def activate(self, into, gate=None, *, rules):
            hidden = super().activate(into, gate, rules=rules)
            keep = torch.ones_like(hidden)
            keep[..., unit] = 0
            return hidden * keep + (hidden * (1 - keep)).detach()

    fields = {name: getattr(block.mlp, name) for name in block.mlp.__dataclass_fields__}
    blocks = (model.blocks[0], replace(block, mlp=Detached(**fields)))
    return replace(model, blocks=blocks)


def test_tables_name_units_and_what_they_read():
    units = eap.unit_edges(twins.load("llama"), DATA, "m1", **OPTIONS)
    assert units.inputs == ("in", "gate")
    assert units.scores.shape == (10, 2, 24)
    top = units.top_n(5)
    assert (top.score.abs().diff().dropna() <= 0).all()
    sender, unit, which = re.fullmatch(r"(.+)->m1\.u(\d+)<(in|gate)>", top.edge[0]).groups()
    place = units.senders.index(sender), units.inputs.index(which), int(unit)
    assert float(units.scores[place]) == pytest.approx(top.score[0])


@pytest.mark.parametrize(
    ("mlp", "options", "message"),
    [
        ("a0.h0", {}, "no MLP 'a0.h0'"),
        ("m7", {}, "no MLP 'm7'"),
        ("m0", {"method": "exact"}, "not linear"),
        ("m0", {"method": "RelP", "steps": 5}, "RelP does not integrate; leave steps=5 out"),
    ],
)
def test_what_there_is_not_is_refused(mlp, options, message):
    with pytest.raises(eap.UserError, match=message):
        eap.unit_edges(twins.load("gpt2"), DATA, mlp, **options)
