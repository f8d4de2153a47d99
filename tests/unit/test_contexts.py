"""Every verb gives the same numbers whatever settings of torch its caller left on."""

from __future__ import annotations

import inspect
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from models.tiny import bridge_of, random_examples, tiny_hf
from reference.twins import dataset_of, steps_of

import eap
from eap.analysis import compare, screening
from eap.model.model import Model

PAIRS = dataset_of(random_examples([5, 6, 6, 7], [1, 2, 3, 2], seed=4))
CIRCUIT = 25


@lru_cache(maxsize=1)
def model():
    return eap.from_bridge(bridge_of(tiny_hf("llama")), name="tiny")


@lru_cache(maxsize=1)
def toy():
    return eap.load_model("toy", device="cpu")


@lru_cache(maxsize=1)
def estimate():
    return eap.attribute(model(), PAIRS, method="EAP")


def circuit():
    return estimate().top_n(CIRCUIT)


def masks():
    shape = estimate().scores.shape
    return torch.full(shape, 0.5, dtype=torch.float32, device="cpu")


# Every public function that takes a model, and the two that make one.
VERBS = {
    "graphs": lambda: graph_work(),
    "attribute": lambda: [
        eap.attribute(model(), PAIRS, method=method, **steps_of(method, 2))
        for method in eap.methods.METHODS
        if method != "exact"
    ],
    "example_scores": lambda: eap.example_scores(
        model(), PAIRS, 5, ablation=eap.Mean.over_dataset(model(), PAIRS)
    ),
    "evaluate": lambda: eap.evaluate(
        model(), circuit(), PAIRS, metrics=["logit_diff", "prob_diff", "kl", "js", "accuracy"]
    ),
    "evaluate_baselines": lambda: eap.evaluate_baselines(model(), PAIRS),
    "evaluate_soft": lambda: eap.evaluate_soft(model(), masks(), PAIRS),
    "faithfulness": lambda: eap.faithfulness(model(), circuit(), PAIRS, ablation="zero"),
    "patch_edges": lambda: eap.patch_edges(model(), PAIRS, metrics=["kl", "logit_diff"]),
    "patch_nodes": lambda: eap.patch_nodes(model(), PAIRS),
    "part_scores": lambda: eap.part_scores(model(), PAIRS, steps=2),
    "unit_edges": lambda: eap.unit_edges(model(), PAIRS, "m1", steps=2),
    "crossing_scores": lambda: eap.crossing_scores(model(), PAIRS.with_spans("auto")).scores,
    "part_activity": lambda: eap.part_activity(model(), PAIRS, ["m1.u3"])["coefficient"].to_numpy(),
    "load_features": lambda: eap.load_features("toy", toy()).dictionaries,
    "attention.logit_terms": lambda: eap.attention.logit_terms(model(), PAIRS, "a1.h0").terms,
    "attention.head_result": lambda: eap.attention.head_result(model(), PAIRS, "a1.h0").values,
    "attention.head_reasons": lambda: [
        why.weights for why in eap.attention.head_reasons(model(), PAIRS, heads=["a1.h0"])["a1.h0"]
    ],
    "attention_patterns": lambda: eap.attention_patterns(model(), PAIRS),
    "learn_ranking": lambda: eap.learn_ranking(model(), PAIRS, recipe=eap.Recipe(steps=3)),
    "certify": lambda: (
        eap.certify(model(), PAIRS, 20, n_subsets=20, p_delete=0.5, method="EAP").graph
    ),
    "second_circuit": lambda: (
        eap.second_circuit(
            model(), PAIRS, circuit(), recipe=eap.Recipe(steps=2), prices=(0.5,)
        ).faithfulness
    ),
    "areas": lambda: eap.areas(model(), estimate(), PAIRS, n_resamples=20),
    "bootstrap": lambda: eap.bootstrap(model(), PAIRS, steps=1, n_resamples=5, sizes=[10]),
    "find_clusters": lambda: eap.find_clusters(model(), PAIRS, size=20, steps=1),
    "judge": lambda: eap.judge(model(), circuit(), PAIRS, n_random=20, n_subsets=2),
    "leave_one_out": lambda: eap.leave_one_out(model(), circuit(), PAIRS),
    "load_model": lambda: read(eap.load_model(in_memory())),
    "load_model, a name": lambda: read(eap.load_model("toy", device="cpu")),
    "from_bridge": lambda: read(eap.from_bridge(booted())),
}


@lru_cache(maxsize=1)
def in_memory():
    return tiny_hf("gpt2")


@lru_cache(maxsize=1)
def booted():
    return bridge_of(tiny_hf("gpt2"))


def read(loaded):
    return eap.evaluate_baselines(loaded, PAIRS)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def training():
    """The bridge in training mode, as before a step of an optimizer."""
    model().bridge.train()
    try:
        yield
    finally:
        model().bridge.eval()


# Settings that have nothing to do with each other are left on together.
CONTEXTS = {
    "autocast in training mode": lambda: [torch.autocast("cpu", torch.bfloat16), training()],
    "default dtype float64 in no_grad": lambda: [default_dtype(torch.float64), torch.no_grad()],
    "default dtype bfloat16 in inference_mode": lambda: [
        default_dtype(torch.bfloat16), torch.inference_mode()
    ],
    "default device meta in another thread": lambda: [default_device("meta")],
}  # fmt: skip


def graph_work():
    """What is done with graphs, which takes no model."""
    graph = eap.Graph.from_config(model().config)
    graph = replace(graph, scores=estimate().scores, node_scores=estimate().scores.sum(1))
    circuits = [graph.top_n(20), graph.greedy(20).prune(), graph.top_n_nodes(4)]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("graph.json", "graph.safetensors"):
            circuits[1].save(f"{folder}/{name}")
            circuits.append(eap.Graph.load(f"{folder}/{name}"))
    chosen = screening.choose_edges([graph], top=5, sample=5, seed=0)
    overlaps = [compare.edge_overlap(circuits[0], circuits[1])]
    return [circuits, chosen, overlaps, compare.node_overlap(circuits[0], circuits[1])]


def numbers(result):
    """All numbers of a result, in order, in float64; what it says of itself is left out."""
    if isinstance(result, torch.Tensor):
        return [result.detach().to("cpu", torch.float64).flatten()]
    if isinstance(result, np.ndarray) and result.dtype.kind in "biuf":
        return [torch.from_numpy(result.astype(np.float64)).flatten()]
    if isinstance(result, bool | int | float):
        return [torch.tensor([result], dtype=torch.float64, device="cpu")]
    if is_dataclass(result):
        kept = [field.name for field in fields(result) if field.name != "provenance"]
        return [n for name in kept for n in numbers(getattr(result, name))]
    if isinstance(result, dict):
        result = list(result.values())
    return [n for part in result for n in numbers(part)] if isinstance(result, list | tuple) else []


@lru_cache(maxsize=32)
def expected(verb):
    circuit()
    return torch.cat(numbers(VERBS[verb]()))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_gives_the_same_numbers_in_every_context(verb, context):
    right = expected(verb)
    found = []

    def run():
        with ExitStack() as left_on:
            for setting in CONTEXTS[context]():
                left_on.enter_context(setting)
            found.append(VERBS[verb]())

    if context.endswith("another thread"):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    values = torch.cat(numbers(found[0]))
    assert len(right) > 0
    torch.testing.assert_close(values, right, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_every_function_that_takes_a_model_is_walked():
    names = {name.partition(",")[0] for name in VERBS}
    for name in dir(eap):
        public = getattr(eap, name, None)
        if inspect.isfunction(public) and "Model" in str(inspect.signature(public)):
            assert name in names, name


def test_a_verb_leaves_the_settings_of_its_caller():
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
        eap.evaluate_baselines(model(), PAIRS)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
        assert torch.get_default_device().type == "meta"
    assert isinstance(model(), Model)


def test_several_threads_score_at_once():
    right, found = expected("evaluate"), []

    def run():
        found.append(torch.cat(numbers(VERBS["evaluate"]())))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(values, right) for values in found)
