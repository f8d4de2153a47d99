"""Circuits of the cross-task studies: of the published size on GPT-2 small, else faithful ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

import eap
from eap.graph.graph import GraphConfig
from eap.studies import scoring, task_circuits
from eap.studies.settings import Settings


@pytest.fixture(scope="module")
def toy():
    return eap.load_model("toy", device="cpu")


def test_a_directory_called_gpt2_with_another_model_has_no_published_sizes(toy, tmp_path, capsys):
    settings = Settings(model="my/gpt2", tasks=("ioi",), head=4, output=tmp_path)
    model = replace(toy, name="my/gpt2")
    assert not task_circuits.has_published_sizes(model)
    dataset = scoring.load_task(settings, model, "ioi")
    circuits = task_circuits.find_circuits(settings, model, {"ioi": dataset})
    assert "called gpt2 but does not have" in capsys.readouterr().out
    circuit = circuits["ioi"]
    share = eap.faithfulness(model, circuit, dataset).normalised[0]
    assert share >= task_circuits.FAITHFUL
    assert circuit.provenance["circuit"] == "85% faithful"
    again = task_circuits.find_circuits(settings, model, {"ioi": dataset})["ioi"]
    assert again.in_graph.equal(circuit.in_graph)
    assert capsys.readouterr().out.count("reusing ") == 2


def test_gpt2_itself_has_them(toy):
    shape = GraphConfig(n_layers=12, n_heads=12, d_model=768, n_kv_heads=12)
    assert task_circuits.has_published_sizes(replace(toy, name="gpt2", config=shape))
    of_the_hub = replace(toy, name="openai-community/gpt2", config=shape)
    assert task_circuits.has_published_sizes(of_the_hub)
    assert not task_circuits.has_published_sizes(replace(toy, name="gpt2-wiki", config=shape))
