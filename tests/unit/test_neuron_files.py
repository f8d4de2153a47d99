"""Neurons of the EAP-IG library's and MIB's files are coordinates of what nodes send."""

from __future__ import annotations

import json

import pytest
import torch
from models.tiny import random_examples
from reference import twins
from reference.twins import dataset_of

import eap

DATA = dataset_of(random_examples([5, 3, 6], [2, 0, 3], seed=5))


def published(folder, suffix, *, d_model=16):
    """A node-level file as MIB has it, of GPT-2's shape with 2 layers and 4 heads."""
    config = twins.load("gpt2").config
    names = (*config.sender_names, "logits")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(len(names) - 1, d_model, generator=generator)
    kept = scores > 0.5
    nodes = scores.sum(1)
    cfg = {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 16}
    path = folder / f"nodes{suffix}"
    if suffix == ".json":
        rows = {
            name: {
                "in_graph": bool(kept[i].any()),
                "score": float(nodes[i]),
                "neurons": kept[i].tolist(),
                "neurons_scores": scores[i].tolist(),
            }
            for i, name in enumerate(names[:-1])
        }
        document = {"cfg": cfg, "nodes": rows | {"logits": {"in_graph": True}}, "edges": {}}
        path.write_text(json.dumps(document))
    else:
        exists = torch.zeros(config.n_forward, config.n_backward)
        torch.save(
            {
                "cfg": cfg,
                # Another order of nodes than ours.
                "src_nodes": list(reversed(names[:-1])),
                "dst_nodes": list(config.receiver_names),
                "edges_scores": exists,
                "edges_in_graph": exists.bool(),
                "nodes_scores": nodes.flip(0),
                "neurons_in_graph": kept.flip(0),
                "neurons_scores": scores.flip(0),
            },
            path,
        )
    return path, scores, kept


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_published_files_are_read_and_written_back(tmp_path, suffix):
    path, scores, kept = published(tmp_path, suffix)
    file = eap.load_neurons(path)
    assert torch.equal(file.scores, -scores)  # positive is helpful there
    assert torch.equal(file.kept, kept)
    assert torch.equal(file.graph.node_scores, -scores.sum(1))
    assert "left_out" not in file.graph.provenance["read_from"]
    for other in (".json", ".pt"):
        copy = tmp_path / f"copy{other}"
        eap.save_neurons(copy, file.graph, kept=file.kept, scores=file.scores)
        again = eap.load_neurons(copy)
        assert torch.equal(again.scores, file.scores)
        assert torch.equal(again.kept, file.kept)
        assert torch.equal(again.graph.node_scores, file.graph.node_scores)
        if other == suffix == ".json":
            first, second = (json.loads(one.read_text()) for one in (path, copy))
            for name, node in first["nodes"].items():
                for key in ("neurons", "neurons_scores"):
                    assert second["nodes"][name].get(key) == node.get(key)


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_scores_of_coordinates_are_saved_and_kept_ones_run(tmp_path, metric):
    model = twins.load("gpt2")
    graph = eap.attribute(model, DATA, level="node", metric=metric, steps=2)
    scores = eap.part_scores(model, DATA, parts="coordinates", metric=metric, steps=2)
    best = scores.by_coordinate.abs() > scores.by_coordinate.abs().median()
    for suffix in (".json", ".pt"):
        path = tmp_path / f"own{suffix}"
        eap.save_neurons(path, graph, kept=best, scores=scores.by_coordinate)
        file = eap.load_neurons(path)
        assert torch.equal(file.scores, scores.by_coordinate)
        circuit = eap.PartCircuit(eap.Graph.from_model(model), "coordinates", file.masks)
        assert circuit.n_parts == int(best.sum()) + int(best.all(1).sum())
        assert eap.evaluate(model, circuit, DATA)["logit_diff"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scores_of_neurons_keep_their_precision(tmp_path, dtype):
    graph = eap.Graph.from_model(twins.load("gpt2"))
    scores = torch.rand(500, 11, 16, dtype=dtype, requires_grad=True)[0]
    eap.save_neurons(tmp_path / "n.pt", graph, scores=scores)
    assert (tmp_path / "n.pt").stat().st_size < 10**5  # without the other 499
    loaded = eap.load_neurons(tmp_path / "n.pt").scores
    assert torch.equal(loaded, scores)
    assert loaded.dtype == dtype
    assert not loaded.requires_grad
    eap.save_neurons(tmp_path / "n.json", graph, scores=scores)
    assert torch.equal(eap.load_neurons(tmp_path / "n.json").scores, scores.to(torch.float32))


def test_files_without_neurons_or_with_others_are_refused(tmp_path):
    model = twins.load("gpt2")
    graph = eap.Graph.from_model(model)
    graph.save(tmp_path / "plain.json")
    spread = graph.at_all_spans(["subject", "end"])
    wide, *_ = published(tmp_path, ".json", d_model=8)
    units = eap.part_scores(model, DATA, method="EAP")
    for call, message in (
        (lambda: eap.load_neurons(tmp_path / "plain.json"), "has no neurons"),
        (lambda: eap.load_neurons(wide), "neurons is .11, 8."),
        (lambda: eap.load_neurons(tmp_path / "no.json"), "no graph at"),
        (lambda: eap.load_neurons(tmp_path / "a.csv"), "cannot read|no graph|.json and .pt"),
        (lambda: eap.save_neurons(tmp_path / "a.safetensors", graph), ".json and .pt files"),
        (
            lambda: eap.save_neurons(tmp_path / "a.json", graph, scores=torch.zeros(2, 2)),
            "11 senders and d_model 16",
        ),
        (
            lambda: eap.save_neurons(
                tmp_path / "a.json", graph, scores=torch.full((11, 16), torch.inf)
            ),
            "not finite",
        ),
        (
            lambda: eap.save_neurons(tmp_path / "a.json", spread, scores=torch.zeros(11, 16)),
            "no place for spans",
        ),
        (lambda: units.by_coordinate, "give parts='coordinates'"),
    ):
        with pytest.raises(eap.UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
