"""Damaged files of graphs are refused in one line."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from models.fabricated import published
from models.graphs import SMALL
from safetensors import safe_open
from safetensors.torch import save_file

from eap import Graph, UserError


def _without(document, *keys):
    for key in keys[:-1]:
        document = document[key]
    del document[keys[-1]]


def _rename(edges, old, new):
    edges[new] = edges.pop(old)


BROKEN = {
    "no nodes": lambda d: _without(d, "nodes"),
    "a million heads": lambda d: d["cfg"].update(n_heads=10**6),
    "endless layers": lambda d: d["cfg"].update(n_layers=-math.inf),
    "layers in words": lambda d: d["cfg"].update(n_layers="2"),
    "heads true": lambda d: d["cfg"].update(n_heads=True),
    "minus one layer": lambda d: d["cfg"].update(n_layers=-1),
    "too many layers without edges": lambda d: d.update(
        edges={}, cfg={**d["cfg"], "n_layers": 9**9}
    ),
    "a score beyond all floats": lambda d: d["edges"]["m0->m1"].update(score=10**400),
    "a score that is true": lambda d: d["edges"]["m0->m1"].update(score=True),
    "in the graph by a word": lambda d: d["edges"]["m0->m1"].update(in_graph="yes"),
    "an edge that is a number": lambda d: d["edges"].update({"m0->m1": 3}),
    "a node of another shape": lambda d: d["nodes"].update({"a9.h9": True}),
    "a node that is a list": lambda d: d["nodes"].update(m0=[True]),
    "provenance is a list": lambda d: d.update(provenance=[1]),
    "a sign of seven": lambda d: d.update(score_sign=7),
    "a direction in words": lambda d: d.update(score_sign=1, higher_is_better="yes"),
    "whole numbers as scores": lambda d: d.update(dtype="int64"),
    "a name of a megabyte": lambda d: _rename(d["edges"], "m0->m1", "m" * 2**20),
    "no cfg": lambda d: _without(d, "cfg"),
    "no edges": lambda d: _without(d, "edges"),
    "no number of heads": lambda d: _without(d, "cfg", "n_heads"),
    "an edge is missing": lambda d: _without(d, "edges", "m0->m1"),
    "another shape": lambda d: d["cfg"].update(n_layers=3),
    "a head too many": lambda d: _rename(d["edges"], "input->a0.h0<q>", "input->a0.h7<q>"),
    "an unknown sender": lambda d: _rename(d["edges"], "input->a0.h0<q>", "in->a0.h0<q>"),
    "a pair that is no edge": lambda d: _rename(d["edges"], "input->a0.h0<q>", "m1->a0.h0<q>"),
    "a score that is no number": lambda d: d["edges"]["m0->m1"].update(score="high"),
    "cfg is no object": lambda d: d.update(cfg=3),
    "edges are a list": lambda d: d.update(edges=[1, 2]),
    "heads are no number": lambda d: d["cfg"].update(n_heads="two"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_json_file_is_refused_in_one_line_that_names_it(tmp_path, what):
    document = published(SMALL)
    BROKEN[what](document)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"broken\.json") as error:
        Graph.load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 400


@pytest.mark.parametrize("name", ["graph.json", "graph.safetensors", "graph.pt"])
@pytest.mark.parametrize("content", [b"", b"not a graph", b"\xff\xfe\x00", b"[1, 2]", b"3"])
def test_a_file_of_something_else_is_refused_in_one_line_that_names_it(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        Graph.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"scores": torch.zeros(2, 2), "in_graph": torch.zeros(2, 2, dtype=torch.bool)},
        {"scores": torch.zeros(7, 15)},
        {"scores": torch.zeros(7, 15), "in_graph": torch.ones(7, 15, dtype=torch.bool)},
        {
            "scores": torch.zeros(7, 15),
            "in_graph": torch.zeros(7, 15, dtype=torch.bool),
            "x": torch.zeros(1),
        },
    ],
    ids=["another shape", "no circuit", "pairs that are no edges", "an unknown tensor"],
)
def test_a_safetensors_file_that_does_not_fit_its_shape_is_refused(tmp_path, tensors):
    path = tmp_path / "graph.safetensors"
    Graph.from_config(SMALL).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError, match=r"graph\.safetensors"):
        Graph.load(path)


def test_files_that_are_not_there_and_names_that_say_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="no graph at"):
        Graph.load(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="no graph at"):
        Graph.load(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=str(tmp_path)):
        Graph.load(tmp_path)
    with pytest.raises(UserError, match=r"use \.json, \.pt or"):
        Graph.from_config(SMALL).save(tmp_path / "graph.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".json", ".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["a\0", "x" * 300, "two\nlines", "two\nlines" * 30])
def test_names_that_no_file_can_have_are_refused_in_one_line(tmp_path, name, suffix):
    with pytest.raises(UserError, match="graph") as error:
        Graph.load(tmp_path / f"{name}{suffix}")
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 400


def test_a_save_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "graph.json"
    graph = Graph.from_config(SMALL)
    graph.save(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="provenance cannot be saved as JSON"):
        replace(graph, provenance={("m", 0): "model"}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".json", ".pt", ".safetensors"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, suffix):
    path = tmp_path / f"graph{suffix}"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        Graph.load(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", b'{"cfg": ', "not complete JSON (line 1, column 9)"),
        ("x.json", b"\x1f\x8b\x08", "it is a gzip file"),
        ("x.json", "{}".encode("utf-16"), "it is text in UTF-16"),
        ("x.json", b"edge,score\n", "not complete JSON"),
        ("x.json", b"[" * 10**5, "nested too deeply"),
        ("x.safetensors", b'{"cfg": {}}', "it is JSON"),
        ("x.safetensors", b"1234", "not a complete safetensors file"),
        ("x.pt", b"\x80\x04cos\nsystem\n.", "not a file of tensors alone from torch.save"),
        ("x.pt", b"", "not a file of tensors alone"),
    ],
)
def test_a_file_of_another_kind_is_named_and_no_library_speaks(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        Graph.load(tmp_path / name)
    said = str(error.value)
    assert says in said
    assert len(said) <= 400
    assert not any(word in said for word in ("Error", "codec", "PyTorch", "weights_only"))


def test_a_byte_order_mark_is_no_damage(tmp_path):
    Graph.from_config(SMALL).save(tmp_path / "x.json")
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.json").read_bytes())
    assert torch.equal(Graph.load(marked).scores, Graph.load(tmp_path / "x.json").scores)
