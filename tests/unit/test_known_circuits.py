"""Models whose circuit is known: off the circuit every method gives exactly 0."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from reference import known
from safetensors.numpy import load_file

import eap
from benchmarks import proof
from eap.data.collections import known_circuits
from eap.methods import METHODS
from eap.runtime.errors import UserError
from eap.statistics.measures import auroc

NAMES = known_circuits.names()


@pytest.fixture(params=NAMES)
def circuit(request):
    return known_circuits.load(request.param)


def read_files(name):
    folder = known_circuits.FOLDER / name
    document = json.loads((folder / "circuit.json").read_text(encoding="utf8"))
    return load_file(folder / "model.safetensors"), document


def test_five_are_there():
    assert NAMES == ["balance", "induction", "majority", "share-before", "xor"]


def off_circuit(circuit):
    return circuit.circuit.edge_exists & ~circuit.circuit.in_graph


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_exact_values_are_zero_off_the_circuit_and_rank_it_first(circuit, batch_size):
    graph = eap.patch_edges(
        circuit.model, circuit.dataset, metrics=["logit_diff"], batch_size=batch_size
    )["logit_diff"]
    assert (graph.scores[off_circuit(circuit)] == 0).all()
    assert auroc(graph.scores[graph.edge_exists].abs().numpy(), circuit.truth) == 1


SCORED = [name for name, method in METHODS.items() if method.uses_metric]
"""All but IFR, which follows the flow of activations whether it matters or not."""


@pytest.mark.parametrize("method", SCORED)
def test_every_method_is_zero_off_the_circuit(circuit, method):
    graph = eap.attribute(circuit.model, circuit.dataset, method=method)
    assert (graph.scores[off_circuit(circuit)] == 0).all()


@pytest.mark.parametrize("metric", ["prob_diff", "kl"])
@pytest.mark.parametrize("method", ["EAP-IG", "CEAP"])
def test_so_it_is_by_other_metrics_and_batches(circuit, metric, method):
    graph = eap.attribute(
        circuit.model, circuit.dataset, method=method, metric=metric, batch_size=5
    )
    assert (graph.scores[off_circuit(circuit)] == 0).all()


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "clean-corrupted", "CEAP", "RelP"])
def test_estimates_rank_the_circuit_first(circuit, method):
    graph = eap.attribute(circuit.model, circuit.dataset, method=method)
    assert auroc(graph.scores[graph.edge_exists].abs().numpy(), circuit.truth) == 1


def test_ceap_adds_up_over_every_cut(circuit):
    """Its error falls as one over the number of steps."""
    assert proof.cut_error(circuit, 200) < 0.005
    assert proof.cut_error(circuit, 20) < 0.05


def test_the_page_of_proof_is_this_codes(circuit):
    """A method's rows on the committed page are what the code gives today."""
    text = proof.PAGE.read_text(encoding="utf8")
    section = text.split(f"## {circuit.name}:")[1].split("##")[0]
    rows = pd.DataFrame(proof.method_rows(circuit)).drop(columns="model")
    assert (
        proof.as_markdown(rows[["method", "off", "AUROC"]]).splitlines()[3:]
        == [
            line.rsplit(" |", 2)[0] + " |" for line in section.splitlines() if line.startswith("| ")
        ][1:]
    )


def test_exact_values_equal_plain_numpy(circuit):
    weights, document = read_files(circuit.name)
    graph = eap.patch_edges(circuit.model, circuit.dataset.head(6))["logit_diff"]
    edges = [(edge.sender, edge.receiver) for edge in graph.edges()]
    expected = known.edge_values(weights, document, document["examples"][:6], edges)
    np.testing.assert_allclose(
        graph.scores[graph.edge_exists].numpy(), expected, atol=2e-5 * np.abs(expected).max()
    )


def test_the_circuit_alone_does_what_the_model_does(circuit):
    values = eap.evaluate(
        circuit.model,
        [circuit.circuit, circuit.circuit.empty()],
        circuit.dataset,
        metrics=["logit_diff", "accuracy"],
    )
    clean, corrupted = eap.evaluate_baselines(circuit.model, circuit.dataset)
    torch.testing.assert_close(values["logit_diff"][0], clean["logit_diff"])
    torch.testing.assert_close(values["logit_diff"][1], corrupted["logit_diff"])
    assert (values["accuracy"][0] == 1).all()


def test_the_model_decides_every_clean_prompt_right_and_no_corrupted_one(circuit):
    clean, corrupted = eap.evaluate_baselines(circuit.model, circuit.dataset, metrics=["accuracy"])
    assert (clean["accuracy"] == 1).all()
    assert (corrupted["accuracy"] == 0).all()


def test_distractors_are_not_silent():
    """What is off the circuit does write, and does read: that its edges are 0 is no accident."""
    circuit = known_circuits.load("induction")
    weights, document = read_files("induction")
    sent = [
        known.run(weights, document, document["examples"][0][side])[1]
        for side in ("clean", "corrupted")
    ]
    for sender in ("a0.h1", "a0.h2", "m0", "a1.h2", "m1"):
        assert np.abs(sent[0][sender] - sent[1][sender]).max() > 0.01, sender
    assert circuit.circuit.count_edges() == 5


def test_weights_are_what_the_script_makes(tmp_path, monkeypatch):
    """The committed files of those made by hand, bit for bit."""
    source = (known_circuits.FOLDER / "make.py").read_text(encoding="utf8")
    module: dict = {"__name__": "make", "__file__": str(tmp_path / "make.py")}
    exec(compile(source, "make.py", "exec"), module)
    for name in ("induction", "majority", "xor"):
        module[name]()
        for file in ("circuit.json", "model.safetensors"):
            made = (tmp_path / name / file).read_bytes()
            assert made == (known_circuits.FOLDER / name / file).read_bytes(), (name, file)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no known circuit 'sort'.*induction"):
        known_circuits.load("sort")
