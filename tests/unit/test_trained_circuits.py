"""Trained models compute their program at the aligned nodes, and nothing of it anywhere else."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

import eap
from eap.data.collections import known_circuits

sys.path.insert(0, str(known_circuits.FOLDER))
from train import PROGRAMS


@pytest.fixture(params=PROGRAMS, ids=lambda program: program.name)
def trained(request):
    program = request.param
    return program, known_circuits.load(program.name)


def with_answers(program, dataset, node):
    """The pairs with the answers of the program whose node reads the corrupted prompt."""
    base, source = (
        np.array([getattr(example, side) for example in dataset.examples])
        for side in ("clean", "corrupted")
    )
    answers = program.answer(base, source, node).tolist()
    tokens = set(range(len(program.vocabulary)))
    examples = [
        replace(example, correct=(answer,), incorrect=tuple(sorted(tokens - {answer})))
        for example, answer in zip(dataset.examples, answers, strict=True)
    ]
    return replace(dataset, examples=tuple(examples))


def without(graph, node):
    """The whole graph but for all that a node sends."""
    in_graph = graph.edge_exists
    in_graph[graph.sender_names.index(node)] = False
    return graph.with_edges(in_graph)


def accuracy(known, circuits, dataset):
    """The share of pairs whose answer has more probability than all other tokens together."""
    values = eap.evaluate(known.model, circuits, dataset, metrics=["accuracy"], quiet=True)
    return values["accuracy"].mean(-1).tolist()


def test_the_circuit_alone_gives_every_held_out_answer(trained):
    program, known = trained
    own = with_answers(program, known.dataset, None)
    assert accuracy(known, [known.circuit.full(), known.circuit], own) == [1, 1]


def test_interchanging_an_aligned_node_does_what_the_program_does(trained):
    program, known = trained
    for node in program.nodes:
        swapped = with_answers(program, known.dataset, node)
        assert accuracy(known, [without(known.circuit, node)], swapped) == [1]


def test_ablating_any_node_or_edge_off_the_circuit_changes_no_answer(trained):
    program, known = trained
    own, full = with_answers(program, known.dataset, None), known.circuit.full()
    off = full - known.circuit
    nodes = [name for name in full.sender_names[1:] if name not in program.nodes]
    circuits = [without(full, node) for node in nodes]
    circuits += [full.remove(edge) for edge in off.edge_names()]
    assert set(accuracy(known, circuits, own)) == {1}


def test_weights_are_in_superposition_and_small(trained):
    """There are more things to be told apart than coordinates to do it in."""
    program, known = trained
    features = len(program.vocabulary) + program.n_ctx
    assert known.model.config.d_model < features
    folder = known_circuits.FOLDER / program.name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10**6
    exact = eap.patch_edges(known.model, known.dataset.head(8), quiet=True)["logit_diff"]
    assert (exact.scores[(known.circuit.full() - known.circuit).in_graph] != 0).any()
