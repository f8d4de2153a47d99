"""Arguments of another kind than their annotation are refused in one line that names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eap
from eap import UserError
from eap.data.collections import known_circuits
from eap.runtime.kinds import _kinds_of, check_kinds, checked, described, is_of

KNOWN = known_circuits.load("share-before")
MODEL, DATASET, CIRCUIT = KNOWN.model, KNOWN.dataset, KNOWN.circuit


class Thing:
    """Of no kind that any argument takes."""


ODD = (Thing(), (x for x in "ab"), {Thing()}, object)
FUNCTIONS = {name: value for name in eap.__all__ if inspect.isfunction(value := getattr(eap, name))}
FUNCTIONS |= {f"Graph.{name}": getattr(eap.Graph, name) for name in ("save", "load", "from_config")}
KINDS_OF = {
    name: _kinds_of(inspect.unwrap(getattr(function, "__func__", function)))[1]
    for name, function in FUNCTIONS.items()
}
ARGUMENTS = [
    (name, argument)
    for name, kinds in KINDS_OF.items()
    for argument, kind in kinds.items()
    if not is_of(Thing(), kind)
]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_of_no_kind_is_refused_before_anything_is_done(name, argument):
    function = inspect.unwrap(getattr(FUNCTIONS[name], "__func__", FUNCTIONS[name]))
    for odd in ODD:
        if is_of(odd, KINDS_OF[name][argument]):
            continue  # a class can be called
        with pytest.raises(UserError, match=rf"^{argument} is .*; it must be ") as error:
            check_kinds(function, (), {argument: odd})
        assert len(str(error.value)) <= 400
        assert "\n" not in str(error.value)


def test_every_public_function_is_checked():
    """A function that is added without `verb` or `checked` fails here."""
    assert len(ARGUMENTS) > 100
    for name, function in FUNCTIONS.items():
        assert getattr(function, "__func__", function).__code__.co_name == "call", name


@pytest.mark.parametrize("call", [
    lambda: eap.attribute(None, DATASET),
    lambda: eap.attribute(MODEL, [1]),
    lambda: eap.attribute(MODEL, DATASET, quiet="no"),
    lambda: eap.attribute(MODEL, DATASET, observers=[3]),
    lambda: eap.attribute(MODEL, DATASET, ablation=eap.Zero),
    lambda: eap.attribute(MODEL, DATASET, ablation={"name": "zero"}),
    lambda: eap.judge(MODEL, [CIRCUIT], DATASET),
    lambda: eap.evaluate(MODEL, [], DATASET),
    lambda: eap.areas(MODEL, CIRCUIT, DATASET, shares=0.5),
    lambda: eap.bootstrap(MODEL, DATASET, sizes=5.0),
    lambda: eap.example_scores(MODEL, DATASET, Thing()),
    lambda: eap.part_scores(MODEL, DATASET, parts=3),
    lambda: eap.part_activity(MODEL, DATASET, []),
    lambda: eap.part_activity(MODEL, DATASET, "m0.u0"),
    lambda: eap.mean_of([CIRCUIT, None]),
    lambda: eap.compare.edge_overlap(CIRCUIT, MODEL),
    lambda: eap.compare.average_overlap(CIRCUIT, CIRCUIT, 2.5),
    lambda: eap.Graph.from_model("toy"),
    lambda: eap.Graph.from_config(eap.GraphConfig(10**9, 4, 4, 4)),
    lambda: eap.Graph.load(["a.json"]),
    lambda: CIRCUIT.save("http://a/b.json"),
    lambda: CIRCUIT.save("a\0.json"),
    lambda: eap.Metric(3, len),
    lambda: eap.Recipe(steps="3"),
    lambda: eap.Recipe(temperature=None),
    lambda: eap.load_dataset("ioi", type(MODEL.tokenizer)),
    lambda: eap.load_model("toy", device_map={"nowhere": "cpu"}),
])  # fmt: skip
def test_odd_arguments_are_refused_in_one_line(call):
    with pytest.raises(UserError) as error:
        call()
    assert len(str(error.value)) <= 400
    assert "\n" not in str(error.value)


KINDS = [
    (str, ["a"], [None, 3, b"a"]),
    (bool, [True, np.True_], [1, "yes", None]),
    (bool | None, [None, False], [0, "no"]),
    (int, [3, None, "3"], []),  # numbers are left to their ranges
    (int | Sequence[str], [3, ["a"]], [None, "a", [3], 3j.__class__]),
    (Sequence[int], [[1], (1,), np.arange(3), range(3)], [3, "ab", {1}, {1: 2}, np.array(3)]),
    (str | Path, ["a", Path("a")], [b"a", 3]),
    (Mapping[str, int], [{"a": 1}], [[1], None]),
    (Callable[[int], int], [len], [3]),
    (Literal["a", "b"], ["a"], ["c", 3]),
    (eap.Model, [MODEL], ["toy", eap.Model]),
    (Any, [None, 3], []),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "right", "wrong"), KINDS, ids=str)
def test_kinds_are_told_apart(kind, right, wrong):
    assert [is_of(value, kind) for value in right] == [True] * len(right)
    assert [is_of(value, kind) for value in wrong] == [False] * len(wrong)
    assert described(kind)


@given(st.text(max_size=300))
def test_a_message_is_short_whatever_is_in_it(text):
    @checked
    def function(switch: bool) -> bool:
        return switch

    with pytest.raises(UserError) as error:
        function(text)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)
