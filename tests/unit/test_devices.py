"""On another device than the CPU, and on two, every verb's numbers are those of the CPU.

The devices are pretended (`tests/pretend.py`): what meets a tensor of another device fails, as it
does on a GPU, and what the host waits for is counted. It must not grow with pairs or points.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pretend
import pytest
import torch
from models import tiny

import eap
from eap.methods import METHODS
from eap.model import loading, origin
from eap.parts.basis import PARTS, PartLayout

FAMILIES = ("gpt2", "llama", "gemma2", "neox")
"""Learned positions; shared keys and values; caps, windows, norms after parts; parallel blocks."""

ABLATIONS = ("resample", "zero", "mean")


def _halves(name: str) -> torch.device:
    """The embedding and layer 0 on one device; layer 1, the final norm and the unembedding."""
    is_last = re.search(r"\.1\.|ln_f|final|model\.norm|lm_head|embed_out", name)
    return pretend.SECOND if is_last else pretend.FIRST


def _alternating(name: str) -> torch.device:
    """The embeddings and layer 1 on one device; layer 0, the final norm and the unembedding."""
    is_other = re.search(r"\.0\.|ln_f|final|model\.norm|lm_head|embed_out", name)
    return pretend.FIRST if is_other else pretend.SECOND


PLACES = {"one device": lambda name: pretend.FIRST, "halves": _halves, "alternating": _alternating}
MAPS = ("halves", "alternating")


@pytest.fixture(autouse=True)
def _quick(unchecked_shapes):
    """Shapes are those of the CPU, where other tests check them."""


@pytest.fixture(autouse=True)
def _weights_stay(monkeypatch):
    """A pretended tensor has no memory in which a change of weights could be looked for."""
    for module in (loading, origin):
        monkeypatch.setattr(module, "state_of", lambda *_: origin.State((), "", 0))


@pytest.fixture(autouse=True)
def _differentiated_backwards(monkeypatch):
    """Torch crashes where it differentiates a pretended tensor forwards."""
    monkeypatch.setattr(torch.func, "jvp", torch.autograd.functional.jvp)


@functools.cache
def on_the_cpu(family: str) -> eap.Model:
    return eap.from_bridge(tiny.tiny_bridge(family))


@functools.cache
def elsewhere(family: str, place: str = "one device") -> eap.Model:
    """The same model, read and checked where it was put."""
    bridge = tiny.tiny_bridge(family)
    with pretend.devices():
        pretend.place(bridge.original_model, PLACES[place])
        return eap.from_bridge(bridge)


PAIRS = eap.Dataset("random", tiny.random_examples([6, 6, 5, 5], [2, 2, 1, 1]))
RECIPE = eap.Recipe(steps=3, pairs=2, optimizer="sgd")  # adam makes a step of rounding, too


def _edges(graph: eap.Graph) -> torch.Tensor:
    return graph.top_n(12).in_graph


@functools.cache
def _ranking(family: str) -> eap.Graph:
    return eap.attribute(on_the_cpu(family), PAIRS, method="EAP", metric="logit_diff")


def _circuits(graph: eap.Graph) -> list[eap.Graph]:
    return [graph.top_n(size).prune() for size in (20, 40)]


AT_SPANS = PAIRS.with_spans("auto")


def _part_circuits(model: eap.Model, graph: eap.Graph) -> list[eap.PartCircuit]:
    """Circuits that keep every other part of every sender; those at spans, in turns."""
    circuits = []
    for parts, make in PARTS.items():
        layout = PartLayout.of(model, make())
        mask = torch.arange(len(layout)) % 2 == 0
        kept = {name: mask[layout.of_sender(name)] for name in layout.names}
        circuits.append(eap.PartCircuit(graph.top_n(60), parts, kept))
        at_spans = {name: torch.stack([one, ~one, one, ~one]) for name, one in kept.items()}
        spread = graph.top_n(60).at_all_spans(AT_SPANS.span_names)
        circuits.append(eap.PartCircuit(spread, parts, at_spans))
    return circuits


# What every verb computes, of a model, a ranking of its edges and an ablation.
VERBS = {
    "evaluate": lambda model, graph, ablation: eap.evaluate(
        model, _circuits(graph), PAIRS, metrics=["logit_diff", "prob_diff", "kl", "js", "accuracy"],
        ablation=ablation,
    ),
    "faithfulness": lambda model, graph, ablation: eap.faithfulness(
        model, _circuits(graph), PAIRS, ablation=ablation
    ),
    "evaluate_soft": lambda model, graph, ablation: eap.evaluate_soft(
        model, torch.sigmoid(graph.scores), PAIRS, metrics=["logit_diff", "kl"], ablation=ablation
    ),
    "patch_edges": lambda model, graph, ablation: eap.patch_edges(
        model, PAIRS, metrics=["logit_diff", "kl"], edges=_edges(graph), ablation=ablation
    ),
    "patch_nodes": lambda model, graph, ablation: eap.patch_nodes(model, PAIRS, ablation=ablation),
    "learn_ranking": lambda model, graph, ablation: eap.learn_ranking(
        model, PAIRS, recipe=RECIPE, ablation=ablation, batch_size=2
    ),
    "example_scores": lambda model, graph, ablation: eap.example_scores(
        model, PAIRS, 5, method="EAP", ablation=ablation
    ),
    "areas": lambda model, graph, ablation: eap.areas(
        model, graph, PAIRS, shares=(0.1, 0.5, 1), ablation=ablation, n_resamples=20
    ),
    "bootstrap": lambda model, graph, ablation: eap.bootstrap(
        model, PAIRS, method="EAP", ablation=ablation, sizes=[10], n_resamples=5
    ),
    "certify": lambda model, graph, ablation: eap.certify(
        model, PAIRS, 20, method="EAP", ablation=ablation, n_subsets=20, p_delete=0.5
    ),
    "judge": lambda model, graph, ablation: eap.judge(
        model, graph.greedy(8).prune(), PAIRS, ablation=ablation, alpha=0.25,
        n_random=3, n_subsets=2,
    ),
    "attribute at spans": lambda model, graph, ablation: eap.attribute(
        model, AT_SPANS, method="EAP", ablation=ablation, spans=True
    ),
    "crossing_scores": lambda model, graph, ablation: eap.crossing_scores(
        model, AT_SPANS, ablation=ablation
    ),
    "part_scores": lambda model, graph, ablation: [
        eap.part_scores(model, PAIRS, parts=parts, method="EAP", ablation=ablation)
        for parts in PARTS
    ],
    "part_scores at spans": lambda model, graph, ablation: [
        eap.part_scores(
            model, AT_SPANS, parts=parts, receivers=["m0", "a1.h1<q>", "logits"], steps=2,
            ablation=ablation, spans=True,
        )
        for parts in PARTS
    ],
    "unit_edges": lambda model, graph, ablation: [
        eap.unit_edges(model, PAIRS, mlp, steps=2, ablation=ablation) for mlp in ("m0", "m1")
    ],
    "faithfulness of parts": lambda model, graph, ablation: eap.faithfulness(
        model, _part_circuits(model, graph), AT_SPANS, ablation=ablation
    ),
}  # fmt: skip

PART_NAMES = {
    "hidden units": ["m0.u1", "m1.u2"],
    "channels": ["a0.h1.c1", "a1.h0.c2"],
    "coordinates": ["input.d0", "a1.h1.d3", "m1.d2"],
}

# Those that ablate by the corrupted prompt, or not at all.
VERBS_OF_PAIRS = {
    "find_clusters": lambda model, graph: eap.find_clusters(
        model, PAIRS, size=20, method="EAP", n_random=3
    ),
    "second_circuit": lambda model, graph: eap.second_circuit(
        model, PAIRS, _circuits(graph)[1], recipe=RECIPE, prices=[1.0],
        batch_size=2,
    ),
    "attention_patterns": lambda model, graph: [
        eap.attention_patterns(model, PAIRS, prompt=prompt) for prompt in ("clean", "corrupted")
    ],
    "part_activity": lambda model, graph: [
        eap.part_activity(model, PAIRS, names, parts=parts, prompt=prompt)
        for parts, names in PART_NAMES.items()
        for prompt in ("clean", "corrupted")
    ],
    "logit_terms": lambda model, graph: [
        eap.attention.logit_terms(model, PAIRS, head, prompt=prompt)
        for head in ("a0.h1", "a1.h1")
        for prompt in ("clean", "difference")
    ],
    "head_result": lambda model, graph: [
        eap.attention.head_result(model, PAIRS, head) for head in ("a0.h1", "a1.h1")
    ],
    "Mean.over_dataset": lambda model, graph: eap.Mean.over_dataset(model, PAIRS).outputs.cpu(),
    "Mean.over_dataset, by position": lambda model, graph: eap.Mean.over_dataset(
        model, PAIRS.head(2), prompts="clean", per_position=True
    ).outputs.cpu(),
}  # fmt: skip


def ablation_of(name: str, model: eap.Model) -> Any:
    return eap.Mean.over_dataset(model, PAIRS) if name == "mean" else name


def numbers(result: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """All numbers of a result, each with its place in it; provenance is words."""
    if isinstance(result, torch.Tensor):
        yield path, result.detach().cpu().double().numpy()
    elif isinstance(result, np.ndarray):
        yield path, result.astype(float)
    elif isinstance(result, pd.DataFrame):
        yield path, result.select_dtypes(["number", "bool"]).to_numpy(float)
    elif isinstance(result, bool | int | float):
        yield path, np.array(float(result))
    elif isinstance(result, dict):
        for key, part in result.items():
            yield from numbers(part, f"{path}[{key}]")
    elif isinstance(result, list | tuple):
        for place, part in enumerate(result):
            yield from numbers(part, f"{path}[{place}]")
    elif is_dataclass(result):
        for part in fields(result):
            if part.name not in ("provenance", "config"):
                yield from numbers(getattr(result, part.name), f"{path}.{part.name}")


def assert_same(here: Any, there: Any) -> None:
    here, there = dict(numbers(here)), dict(numbers(there))
    assert here
    assert here.keys() == there.keys()
    for path, values in here.items():
        scale = 1 + np.abs(values[np.isfinite(values)]).max(initial=0)
        np.testing.assert_allclose(there[path], values, rtol=0, atol=1e-6 * scale, err_msg=path)


def _turn(*numbers: int) -> str:
    """Ablations take turns, so that each meets every method, verb and family."""
    return ABLATIONS[sum(numbers) % len(ABLATIONS)]


def _family(turn: int, number: int) -> str:
    """Families take turns, too: two of the four for each method and verb."""
    return FAMILIES[(2 * turn + number) % len(FAMILIES)]


def options_of(method: str, ablation: str, model: eap.Model) -> dict[str, Any]:
    if not METHODS[method].uses_metric:
        return {"method": method}
    ablation = "resample" if METHODS[method].needs_pair else ablation
    options = {"method": method, "metric": "logit_diff", "ablation": ablation_of(ablation, model)}
    return options | ({"steps": 2} if METHODS[method].integrates else {})


def _methods_are_the_same(family: str, place: str, ablation: str, method: str, level: str):
    here, there = on_the_cpu(family), elsewhere(family, place)
    expected = eap.attribute(here, PAIRS, level=level, **options_of(method, ablation, here))
    with pretend.devices():
        found = eap.attribute(there, PAIRS, level=level, **options_of(method, ablation, there))
    assert_same(expected, found)


def _verbs_are_the_same(family: str, place: str, ablation: str, verb: str):
    here, there, graph = on_the_cpu(family), elsewhere(family, place), _ranking(family)
    expected = VERBS[verb](here, graph, ablation_of(ablation, here))
    with pretend.devices():
        found = VERBS[verb](there, graph, ablation_of(ablation, there))
    assert_same(expected, found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("turn", [0, 1])
def test_methods_give_the_same_numbers(turn, method):
    number = list(METHODS).index(method)
    family = _family(turn, number)
    _methods_are_the_same(family, "one device", _turn(turn, number), method, "edge")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", MAPS)
def test_methods_give_the_same_numbers_on_two_devices(place, method):
    """The norms after parts of Gemma 2, and its caps; then parallel blocks."""
    number = list(METHODS).index(method)
    levels = ("edge",) if method in ("IFR", "AtP*-QK") else ("edge", "node")
    for level, family in zip(levels, ("gemma2", "neox"), strict=False):
        _methods_are_the_same(family, place, _turn(MAPS.index(place), number), method, level)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("turn", [0, 1])
def test_verbs_give_the_same_numbers(turn, verb):
    number = list(VERBS).index(verb)
    _verbs_are_the_same(_family(turn, number), "one device", _turn(turn, number), verb)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", MAPS)
def test_verbs_give_the_same_numbers_on_two_devices(place, verb):
    ablation = _turn(MAPS.index(place), list(VERBS).index(verb))
    family = {"halves": "gemma2", "alternating": "llama"}[place]
    _verbs_are_the_same(family, place, ablation, verb)


@pytest.mark.parametrize("verb", VERBS_OF_PAIRS)
@pytest.mark.parametrize("place", PLACES)
def test_verbs_of_pairs_give_the_same_numbers(place, verb):
    family = FAMILIES[list(VERBS_OF_PAIRS).index(verb) % len(FAMILIES)]
    here, there, graph = on_the_cpu(family), elsewhere(family, place), _ranking(family)
    expected = VERBS_OF_PAIRS[verb](here, graph)
    with pretend.devices():
        found = VERBS_OF_PAIRS[verb](there, graph)
    assert_same(expected, found)


# ---- what the host waits for ---------------------------------------------------------------------


def group(n: int) -> eap.Dataset:
    """Pairs of equal form: one group, so that batches differ in number alone."""
    return eap.Dataset("random", tuple(tiny.random_examples([6] * n, [2] * n)))


# By what must not wait for pairs or points: a verb, of a model, pairs and a number of points.
UNWAITING = {
    method: lambda model, graph, pairs, points, method=method: eap.attribute(
        model, pairs, batch_size=2, **options_of(method, "resample", model)
        | ({"steps": points} if METHODS[method].integrates else {})
    )
    for method in METHODS
    if method != "exact"  # patch_edges, below
} | {
    "nodes, kl": lambda model, graph, pairs, points: eap.attribute(
        model, pairs, level="node", metric="kl", steps=points, batch_size=2
    ),
    "example_scores": lambda model, graph, pairs, points: eap.example_scores(
        model, pairs, 5, steps=points, batch_size=2
    ),
    "evaluate": lambda model, graph, pairs, points: eap.evaluate(
        model, _circuits(graph), pairs, metrics=["logit_diff", "accuracy", "kl"], batch_size=2
    ),
    "evaluate_soft": lambda model, graph, pairs, points: eap.evaluate_soft(
        model, torch.sigmoid(graph.scores), pairs, batch_size=2
    ),
    "patch_edges": lambda model, graph, pairs, points: eap.patch_edges(
        model, pairs, edges=_edges(graph), batch_size=2
    ),
    "patch_nodes": lambda model, graph, pairs, points: eap.patch_nodes(model, pairs, batch_size=2),
    "learn_ranking": lambda model, graph, pairs, points: eap.learn_ranking(
        model, pairs, recipe=replace(RECIPE, pairs=len(pairs), loss="faithfulness"), batch_size=2
    ),
    "Mean.over_dataset": lambda model, graph, pairs, points: eap.Mean.over_dataset(
        model, pairs, batch_size=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", UNWAITING)
def test_the_host_does_not_wait_for_pairs_or_points(verb):
    model, graph = elsewhere("llama"), _ranking("llama")
    counts = []
    for n, points in ((2, 2), (4, 3)):
        with pretend.devices() as waits:
            UNWAITING[verb](model, graph, group(n), points)
        counts.append(waits)
    assert counts[0] == counts[1]


# ---- the devices themselves ----------------------------------------------------------------------


def test_pretended_tensors_meet_no_others():
    with pretend.devices():
        x, y = (torch.ones(3, 2, device=device) for device in (pretend.FIRST, pretend.SECOND))
        for other in (y, torch.ones(3, 2)):
            for meet in (
                lambda x, other: x + other,
                lambda x, other: other.add_(x),
                lambda x, other: torch.cat([x, other]),
                lambda x, other: x.index_select(0, other[:, 0].long()),
                lambda x, other: other[x[:, 0].long()],
            ):
                with pytest.raises(pretend.TwoDevicesError):
                    meet(x, other)
            assert (x + other.to(x.device)).device == pretend.FIRST
        assert (2 * x + torch.tensor(1.0)).cpu().tolist() == [[3.0, 3.0]] * 3
        x[torch.tensor([0, 2])] = 5.0
        assert x[[1, 2], 0].tolist() == [1.0, 5.0]


def test_what_the_host_waits_for_is_counted():
    with pretend.devices() as waits:
        x, mask = torch.ones(3, device=pretend.FIRST), torch.tensor([True, False, True])
        x.sum().item(), bool(x[0] > 0), x.nonzero(), x.cpu(), x.tolist(), x[x > 0]
        assert waits == {"_local_scalar_dense": 2, "nonzero": 1, "_to_copy": 2, "index": 1}
        # On the host already, or from the host to the device, or from one device to another.
        mask.nonzero(), mask.sum().item(), x[mask], mask.to(x), x.to(pretend.SECOND)
        torch.ones(3).copy_(x)
        assert waits == {
            "_local_scalar_dense": 2, "nonzero": 1, "_to_copy": 2, "index": 1, "copy_": 1,
        }  # fmt: skip


def test_a_model_is_loaded_onto_a_device():
    here, hf = on_the_cpu("llama"), tiny.tiny_hf("llama")
    with pretend.devices():
        there = eap.load_model(hf, device=pretend.FIRST)
        found = eap.attribute(there, PAIRS, steps=2)
    assert there.device == pretend.FIRST
    assert hf.device == torch.device("cpu")
    assert_same(eap.attribute(here, PAIRS, steps=2), found)
