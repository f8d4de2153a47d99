"""A second circuit is found where there is one, and none beside a circuit that is alone."""

from __future__ import annotations

import pytest
import torch

import eap
from eap.analysis.uniqueness import second_circuit
from eap.data.collections import known_circuits
from eap.runtime.errors import UserError

RECIPE = eap.Recipe(steps=80, loss="faithfulness", k="log", pairs=4)
QUICK = {"recipe": RECIPE, "prices": (0.5,), "quiet": True}


@pytest.fixture(scope="module")
def redundant():
    return known_circuits.load("redundant")


def test_each_head_alone_does_all_of_it_and_no_single_edge_of_a_head_matters(redundant):
    first, second = redundant.alternatives
    shares = eap.faithfulness(
        redundant.model, [first, second, first & second], redundant.dataset, quiet=True
    ).normalised
    assert shares == pytest.approx([1, 1, 0], abs=1e-6)
    exact = eap.patch_edges(redundant.model, redundant.dataset, quiet=True)["logit_diff"]
    assert set(exact.with_edges(exact.scores != 0).edge_names()) == {"m0->logits"}
    assert "redundant" not in known_circuits.names()


@pytest.mark.parametrize("given", [0, 1])
def test_the_other_of_two_redundant_heads_is_found(redundant, given):
    first, second = redundant.alternatives[given], redundant.alternatives[1 - given]
    found = second_circuit(redundant.model, redundant.dataset, first, **QUICK)
    assert found.verdict == "not unique"
    assert torch.equal(found.second.in_graph, second.in_graph)
    assert found.edges.iou == pytest.approx(1 / 5)
    assert found.nodes.iou == pytest.approx(1 / 3)
    assert found.edges.chance < found.edges.iou
    expected = {
        "first": 1, "second": 1, "common": 0,
        "without first": 1, "without second": 1, "without both": 0,
    }  # fmt: skip
    assert found.faithfulness == pytest.approx(expected, abs=1e-6)
    assert found.to_frame()["name"].tolist() == list(expected)
    assert "not unique; IoU of edges 0.200" in str(found)
    assert found.provenance["second_circuit"]["prices"] == [0.5]


@pytest.mark.parametrize("name", known_circuits.names())
def test_none_is_found_beside_a_circuit_that_is_alone(name):
    """Nor is a circuit counted whose whole faithfulness is that of edges of the first."""
    known = known_circuits.load(name)
    found = second_circuit(known.model, known.dataset, known.circuit, **QUICK)
    assert found.verdict == "unique within the search"
    assert found.second is None
    assert list(found.faithfulness) == ["first"]
    assert len(found.searched) == 2
    assert "unique within the search" in str(found)


def test_a_circuit_that_does_nothing_is_not_unique(redundant):
    """Otherwise whatever is found shares edges that are as faithful as it: none."""
    first, second = redundant.alternatives
    idle = (first.full() - first - second).greedy(8).prune()
    found = second_circuit(redundant.model, redundant.dataset, idle, **QUICK)
    assert found.verdict == "the first circuit does not do the task"
    assert found.faithfulness["first"] == pytest.approx(0, abs=1e-6)
    assert found.second is not None
    assert found.faithfulness["second"] == pytest.approx(1, abs=1e-6)


def test_a_price_is_paid_for_every_share_of_an_edge(redundant):
    """The first step's masks are all k / n: the loss grows by the price of as much of the edges."""
    first = redundant.alternatives[0]
    recipe = eap.Recipe(steps=1)
    _, k = recipe.complete("edge").draw(0, first.n_edges, [len(redundant.dataset)])
    losses = [
        eap.learn_ranking(
            redundant.model, redundant.dataset, recipe=recipe, prices=prices, quiet=True
        ).provenance["loss"]["first_tenth"]
        for prices in (None, 0.7 * first.in_graph)
    ]
    paid = 0.7 * first.count_edges() * k / first.n_edges
    assert losses[1] - losses[0] == pytest.approx(paid, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prices": ()}, "at least one"),
        ({"prices": (0.5, float("nan"))}, "prices is nan"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"largest_overlap": float("nan")}, "largest_overlap is nan"),
        ({"first": "empty"}, "no path of the first circuit"),
        ({"tolerance": 1.0}, "tolerance is 1.0"),
    ],
)
def test_what_means_nothing_is_refused(redundant, options, says):
    first = redundant.alternatives[0]
    if options.pop("first", None):
        first = first.empty()
    with pytest.raises(UserError, match=says):
        second_circuit(redundant.model, redundant.dataset, first, **QUICK | options)


def test_prices_are_of_every_edge(redundant):
    for prices, level in ((torch.ones(2, 2), "edge"), (torch.ones(5, 11) * torch.nan, "edge")):
        with pytest.raises(UserError, match="prices must be finite numbers"):
            eap.learn_ranking(redundant.model, redundant.dataset, prices=prices, level=level)
