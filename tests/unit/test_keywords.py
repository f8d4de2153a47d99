"""Calls with a wrong argument are refused in one line, which names the right one."""

from __future__ import annotations

import inspect
import re

import pytest

import eap
from eap.runtime.arguments import MEANT
from eap.runtime.resources import ResourceOptions


@pytest.fixture(scope="module")
def toy():
    model = eap.load_model("toy")
    return model, eap.load_dataset("ioi", model.tokenizer, head=4)


WRONG = [
    ("attribute", {"ig_steps": 5}, "attribute() has no argument 'ig_steps'; .* is 'steps'"),
    ("attribute", {"metrics": ["kl"]}, "is 'metric'"),
    ("attribute", {"intervention": "zero"}, "is 'ablation'"),
    ("attribute", {"batchsize": 2}, "is 'batch_size'"),
    ("attribute", {"colour": 2}, "its arguments are model, dataset, method, metric"),
    ("patch_edges", {"metric": "kl"}, "is 'metrics'"),
    ("find_clusters", {"spans": True}, "did you mean 'steps'? its arguments are model, dataset"),
    ("bootstrap", {"ig_steps": 5}, "is 'steps'"),
    ("example_scores", {"ig_steps": 5}, "is 'steps'"),
    ("attribute", {"method": "EAP-IG-inputs"}, "did you mean 'EAP-IG'"),
    ("attribute", {"method": "eap-ig"}, "did you mean 'EAP-IG'"),
    ("attribute", {"method": "relp"}, "did you mean 'RelP'"),
]


@pytest.mark.parametrize(("verb", "options", "message"), WRONG, ids=lambda part: str(part)[:40])
def test_a_wrong_argument_is_named_beside_the_right_one(toy, verb, options, message):
    with pytest.raises(eap.UserError, match=re.sub(r"([()?])", r"\\\1", message)):
        getattr(eap, verb)(*toy, **options)


def test_arguments_of_circuits(toy):
    model, dataset = toy
    graph = eap.attribute(model, dataset, method="EAP")
    for call, message in (
        (lambda: eap.evaluate(model, graph, dataset, metric="kl"), "is 'metrics'"),
        (lambda: eap.faithfulness(model, graph, dataset, metrics=["kl"]), "is 'metric'"),
        (lambda: eap.judge(model, graph, dataset, level=0.05), "is 'alpha'"),
        (lambda: eap.evaluate(model, graph), "missing a required argument: 'dataset'"),
        (lambda: eap.attribute(model, graph, dataset), "takes 2 arguments by position"),
        (lambda: eap.load_dataset("ioi", model.tokenizer, limit=5), "is 'head'"),
    ):
        with pytest.raises(eap.UserError, match=message):
            call()


def test_what_is_meant_exists():
    """Every name that a message can give is an argument of some public function."""
    known = set(eap.Recipe.__dataclass_fields__) | set(ResourceOptions.__annotations__)
    for name in eap.__all__:
        function = inspect.unwrap(getattr(eap, name))
        if inspect.isfunction(function):
            known |= set(inspect.signature(function).parameters)
    assert {name for names in MEANT.values() for name in names} <= known
