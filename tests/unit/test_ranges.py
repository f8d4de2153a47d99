"""Every number that the public names take has a range, and what is outside of it is refused."""

from __future__ import annotations

import inspect
import math
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eap
from eap.analysis.screening import choose_edges, upper_share
from eap.data.collections import known_circuits
from eap.graph import Graph, GraphConfig
from eap.runtime.errors import UserError
from eap.runtime.ranges import ALPHA, RANGES, Range, enough_random, real, whole
from eap.runtime.resources import ResourceOptions
from eap.statistics import hypotheses, intervals

KNOWN = known_circuits.load("share-before")
MODEL, DATASET, CIRCUIT = KNOWN.model, KNOWN.dataset, KNOWN.circuit
SCORED = eap.attribute(MODEL, DATASET, method="EAP", level="edge")
VALUES = np.random.default_rng(0).random((10, 8))

CALLS = {
    "attribute": lambda **odd: eap.attribute(MODEL, DATASET, **odd),
    "Auto": lambda **odd: eap.Auto(**odd),
    "example_scores": lambda **odd: eap.example_scores(MODEL, DATASET, **odd),
    "areas": lambda **odd: eap.areas(MODEL, SCORED, DATASET, **odd),
    "attention_patterns": lambda **odd: eap.attention_patterns(MODEL, DATASET, **odd),
    "certify": lambda **odd: eap.certify(MODEL, DATASET, **{"size": 5, "method": "EAP"} | odd),
    "second_circuit": lambda **odd: eap.second_circuit(MODEL, DATASET, CIRCUIT, **odd),
    "bootstrap": lambda **odd: eap.bootstrap(MODEL, DATASET, **odd),
    "evaluate": lambda **odd: eap.evaluate(MODEL, CIRCUIT, DATASET, **odd),
    "evaluate_baselines": lambda **odd: eap.evaluate_baselines(MODEL, DATASET, **odd),
    "evaluate_soft": lambda **odd: eap.evaluate_soft(
        MODEL, torch.ones(SCORED.scores.shape), DATASET, **odd
    ),
    "faithfulness": lambda **odd: eap.faithfulness(MODEL, CIRCUIT, DATASET, **odd),
    "find_clusters": lambda **odd: eap.find_clusters(MODEL, DATASET, **odd),
    "judge": lambda **odd: eap.judge(MODEL, CIRCUIT, DATASET, **odd),
    "learn_ranking": lambda **odd: eap.learn_ranking(MODEL, DATASET, **odd),
    "leave_one_out": lambda **odd: eap.leave_one_out(MODEL, CIRCUIT, DATASET, **odd),
    "load_dataset": lambda **odd: eap.load_dataset("ioi", MODEL.tokenizer, **odd),
    "part_activity": lambda **odd: eap.part_activity(MODEL, DATASET, ["m0.u0"], **odd),
    "part_scores": lambda **odd: eap.part_scores(MODEL, DATASET, **odd),
    "crossing_scores": lambda **odd: eap.crossing_scores(MODEL, DATASET.with_spans("auto"), **odd),
    "unit_edges": lambda **odd: eap.unit_edges(MODEL, DATASET, "m0", **odd),
    "patch_edges": lambda **odd: eap.patch_edges(MODEL, DATASET, **odd),
    "patch_nodes": lambda **odd: eap.patch_nodes(MODEL, DATASET, **odd),
    "Mean.over_dataset": lambda **odd: eap.Mean.over_dataset(MODEL, DATASET, **odd),
    "interval_of_faithfulness": lambda **odd: intervals.interval_of_faithfulness(
        VALUES, VALUES[0] + 9, VALUES[1], lambda f: f.mean(-1), **odd
    ),
    "interval_of_distances": lambda **odd: intervals.interval_of_distances(
        VALUES, VALUES[0] + 9, VALUES[1], lambda f: f.mean(-1), **odd
    ),
    "interval_of_means": lambda **odd: intervals.interval_of_means(
        VALUES, lambda f: f.mean(-1), **odd
    ),
    "interval_of_tasks": lambda **odd: intervals.interval_of_tasks(VALUES[0], **odd),
    "hsic_p": lambda **odd: hypotheses.hsic_p(VALUES[0], VALUES[1], **odd),
    "choose_edges": lambda **odd: choose_edges(
        [SCORED], **{"top": 2, "sample": 2, "seed": 0} | odd
    ),
    "upper_share": lambda **odd: upper_share(1, 5, **odd),
}
"""Every public function that takes numbers, with the rest of its arguments."""

FUNCTIONS = {
    name: {"Mean.over_dataset": eap.Mean.over_dataset, "choose_edges": choose_edges,
           "upper_share": upper_share, "hsic_p": hypotheses.hsic_p}.get(name)
    or getattr(eap, name, None) or getattr(intervals, name)
    for name in CALLS
}  # fmt: skip

# Ranges of these depend on the graph, the counts or the machine; tests below and elsewhere.
ELSEWHERE = {"prices", "sizes", "shares", "curve", "edges", "found", "drawn", "device_map"}


def numbers_of(function) -> list[str]:
    """Arguments whose annotation has int or float in it."""
    parameters = inspect.signature(function).parameters
    names = []
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += [key for key in ResourceOptions.__annotations__ if key != "quiet"]
        elif {"int", "float"} & set(_words(parameter.annotation)):
            names.append(name)
    return names


def _words(annotation) -> list[str]:
    if annotation in (int, float):
        return [annotation.__name__]
    return [word for part in typing.get_args(annotation) for word in _words(part)]


def range_of(function: str, argument: str) -> Range:
    learned = (function, argument) == ("learn_ranking", "steps")
    return RANGES["learning_steps" if learned else argument]


CASES = [
    (name, argument)
    for name, function in FUNCTIONS.items()
    for argument in numbers_of(function)
    if argument not in ELSEWHERE
] + [("example_scores", "edges")]


def odd_values(limits: Range) -> list[object]:
    values = [0, -1, math.nan, math.inf, -math.inf, limits.most * 2 + 1, 10**400, True, "3",
              np.float32("nan"), np.True_, [1], limits.least - 1]  # fmt: skip
    return [value for value in values if not _inside(value, limits)]


def _inside(value, limits):
    return isinstance(value, int | float) and not isinstance(value, bool) and value in limits


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_numbers_out_of_range_are_refused_in_one_line(name, argument):
    assert argument in RANGES or argument == "steps", f"say the range of {argument}"
    for value in odd_values(range_of(name, argument)):
        if argument == "edges" and not isinstance(value, int | float):
            continue  # names
        with pytest.raises(UserError) as error:
            CALLS[name](**{argument: value})
        assert str(error.value).startswith(argument), (argument, value)
        assert len(str(error.value)) <= 400
        assert "\n" not in str(error.value)


def test_every_public_function_with_numbers_is_called():
    """A verb that is added without a line above fails here."""
    public = {name for name in eap.__all__ if inspect.isfunction(getattr(eap, name, None))}
    with_numbers = {
        name for name in public if set(numbers_of(getattr(eap, name))) - ELSEWHERE
    }  # fmt: skip
    assert with_numbers <= set(CALLS)


@pytest.mark.parametrize("n", [-1, 24, math.nan, math.inf, True, "3", None, 2.5, 10**400])
def test_sizes_that_a_graph_does_not_have_are_refused(n):
    for select in (SCORED.top_n, SCORED.greedy, lambda n: list(SCORED.greedy_circuits([2, n]))):
        with pytest.raises(UserError, match=f"this graph has {SCORED.n_edges}"):
            select(n)
    with pytest.raises(UserError, match="this graph has"):
        eap.bootstrap(MODEL, DATASET, sizes=[n])
    with pytest.raises(UserError):
        SCORED.threshold(math.nan if n in (-1, 24, math.inf, 2.5, 10**400) else n)


@pytest.mark.parametrize("shares", [[0.1, math.nan], ["a", 1], [True, 1], [0.5, 2], [], [1]])
def test_shares_that_are_no_sizes_are_refused(shares):
    with pytest.raises(UserError):
        eap.areas(MODEL, SCORED, DATASET, shares=shares)


def test_numbers_of_numpy_are_pythons():
    """Also where they are kept: in provenance, which becomes JSON."""
    three = np.int64(3)
    assert type(whole("head", three)) is int
    assert type(real("alpha", np.float32(0.5))) is float
    assert len(DATASET.head(three)) == 3
    graph = eap.attribute(MODEL, DATASET, steps=three, batch_size=np.int32(2))
    assert type(graph.provenance["settings"]["steps"]) is int
    config = GraphConfig(n_layers=three, n_heads=np.int8(1), d_model=4, n_kv_heads=1)
    assert type(config.n_layers) is int
    assert SCORED.top_n(three).count_edges() == 3
    assert SCORED.greedy(np.uint8(3)).count_edges() == 3
    learned = eap.learn_ranking(MODEL, DATASET, steps=three, temperature=np.float64(0.5))
    assert type(learned.provenance["settings"]["steps"]) is int
    assert Graph.from_config(config).n_edges > 0


@given(st.floats(1e-5, 0.999))
def test_as_many_random_circuits_as_a_level_needs(alpha):
    """The number that is asked for is the fewest: one less is refused."""
    with pytest.raises(UserError, match="give at least") as error:
        enough_random(1, alpha) if alpha < 0.5 else enough_random_of_none(alpha)
    fewest = int(str(error.value).rsplit(" ", 1)[1])
    if fewest > 1:
        assert enough_random(fewest, alpha) == fewest
        with pytest.raises(UserError, match=f"give at least {fewest}$"):
            enough_random(fewest - 1, alpha)


def enough_random_of_none(alpha):
    """From a level of one half on, one random circuit is enough."""
    assert enough_random(1, alpha) == 1
    raise UserError("give at least 1")


def test_the_usual_level_needs_nineteen():
    assert enough_random(19, ALPHA) == 19
    with pytest.raises(UserError, match="give at least 19"):
        enough_random(18, ALPHA)
