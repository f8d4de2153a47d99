"""The table for people who switch: every row does what it says."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from models.graphs import SMALL
from running import ROOT

import eap
from eap.methods import RULES
from eap.runtime import other_names

PAGE = (ROOT / "docs" / "switching.md").read_text("utf8")


def rows() -> dict[str, str]:
    """What stands under 'here', by what stands beside it."""
    cells = [
        re.split(r"(?<!\\) \| ", line.strip().strip("|").strip())
        for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("|--")
    ]
    return {row[0]: row[1] for row in cells if "`" in "".join(row[:2])}


HERE = rows()


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The names that the code of the page reads, and a folder with the files that it reads."""
    model = eap.load_model("toy")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=6)
    graph = eap.attribute(model, dataset, method="EAP")
    folder = tmp_path_factory.mktemp("switching")
    decode = model.tokenizer.decode
    answers = [(next(iter(pair.correct)), next(iter(pair.incorrect))) for pair in dataset.examples]
    texts = [(decode(pair.clean[1:]), decode(pair.corrupted[1:])) for pair in dataset.examples]
    if not dataset.prepend_bos:
        texts = [(decode(pair.clean), decode(pair.corrupted)) for pair in dataset.examples]
    names = ("clean", "corrupt", "answers", "wrong_answers")
    table = [
        dict(zip(names, (clean, corrupted, [decode([a])], [decode([b])]), strict=True))
        for (clean, corrupted), (a, b) in zip(texts, answers, strict=True)
    ]
    (folder / "ioi.json").write_text(json.dumps(table))
    ids = "\n".join(f'"{c}","{d}",{a},{b}' for (c, d), (a, b) in zip(texts, answers, strict=True))
    (folder / "ioi.csv").write_text(f"clean,corrupted,correct_idx,incorrect_idx\n{ids}\n")
    graph.save(folder / "importances.json")

    def function(logits, clean_logits, input_length, labels):
        last = logits[range(len(labels)), input_length - 1]
        return torch.stack([row[a] - row[b] for row, (a, b) in zip(last, labels, strict=True)])

    return {
        "eap": eap, "model": model, "dataset": dataset, "graph": graph, "function": function,
        "circuit": graph.greedy(60).prune(), "labels": answers, "folder": folder,
        "nodes": eap.attribute(model, dataset, method="EAP", level="node"),
    }  # fmt: skip


@pytest.fixture
def run(known, monkeypatch):
    """The code of the row that begins with some text, evaluated."""
    monkeypatch.chdir(known["folder"])

    def evaluate(theirs: str):
        (key,) = [key for key in HERE if theirs in key]
        results = [
            eval(code.replace('"gpt2"', '"toy"'), dict(known))
            for code in re.findall(r"`([^`]+)`", HERE[key])
        ]
        return results[0] if len(results) == 1 else results

    return evaluate


def pruned(edges: torch.Tensor, graph: eap.Graph) -> torch.Tensor:
    """Their pruning: nodes without an edge in, or without one out, lose their edges, repeatedly."""
    edges = edges.clone()
    ends = [name.split("<")[0] for name in graph.receiver_names]
    senders = graph.sender_names
    while True:
        entered = {end for end, into in zip(ends, edges.any(0), strict=True) if into} | {"input"}
        sending = {name for name, out in zip(senders, edges.any(1), strict=True) if out}
        alive = entered & sending
        rows_in = torch.tensor([name in alive for name in senders])
        columns = torch.tensor([end in alive or end == "logits" for end in ends])
        kept = edges & rows_in[:, None] & columns[None]
        if kept.equal(edges):
            return edges
        edges = kept


def theirs_top_n(scores: torch.Tensor, n: int, graph: eap.Graph) -> torch.Tensor:
    """Their top-n: the n highest of the scores among the edges that exist, then pruned."""
    scores = scores.masked_fill(~graph.edge_exists, -torch.inf)
    edges = torch.zeros_like(graph.edge_exists)
    edges.view(-1)[scores.view(-1).argsort(descending=True)[:n]] = True
    return pruned(edges, graph)


def test_models_data_and_graphs(run, known):
    model, dataset, graph = known["model"], known["dataset"], known["graph"]
    assert run("from_pretrained").config == model.config
    assert run("Graph.from_model(model)").edge_exists.equal(graph.edge_exists)
    loaded = run("EAPDataset")
    assert [pair.clean for pair in loaded.examples] == [pair.clean for pair in dataset.examples]
    assert [pair.correct for pair in loaded.examples] == [pair.correct for pair in dataset.examples]
    assert run("patchable_model").config == model.config
    loaded = run("load_datasets_from_json")
    assert [pair.clean for pair in loaded.examples] == [pair.clean for pair in dataset.examples]
    assert [pair.correct for pair in loaded.examples] == [pair.correct for pair in dataset.examples]
    assert run("`HookedTransformer`") is model.bridge


def test_scores(run, known):
    model, dataset = known["model"], known["dataset"]
    scores = run('metric, "EAP")').scores
    # The sign: without the edge that is most helpful, the metric is lower.
    best = int(scores.argmin())
    mask = known["graph"].full().in_graph.double()
    mask.view(-1)[best] = 0
    clean = eap.evaluate_baselines(model, dataset)[0]["logit_diff"].mean()
    assert eap.evaluate_soft(model, mask, dataset)["logit_diff"].mean() < clean
    by_steps = run('EAP-IG-inputs", ig_steps=5')
    assert [point.position for point in RULES["library"](5)] == [0, 0.2, 0.4, 0.6, 0.8]
    assert [point.position for point in RULES["paper"](5)] == [0.2, 0.4, 0.6, 0.8, 1]
    points = [0.0, 0.2, 0.4, 0.6, 0.8]
    method = eap.Method(
        "x", "x", points=lambda rule, steps: [eap.methods.Point(p, 0.2) for p in points]
    )
    torch.testing.assert_close(by_steps.scores, eap.attribute(model, dataset, method=method).scores)
    zero = eap.attribute(model, dataset, ablation=eap.Zero())
    assert run('intervention="zero"').scores.equal(zero.scores)
    assert run('intervention="mean"').provenance["ablation"] != zero.provenance["ablation"]
    assert run('graph.edges["m0->m1"]') == pytest.approx(
        float(known["graph"].scores[known["graph"].index("m0->m1")])
    )
    # auto-circuit's mask is 1 minus the one of a soft circuit, its loss minus the metric.
    step, sign = 1e-3, run("mask_gradient").scores.view(-1)[best]
    mask = known["graph"].full().in_graph.double()
    mask.view(-1)[best] = 1 - step
    slope = (eap.evaluate_soft(model, mask, dataset)["logit_diff"].double().mean() - clean) / step
    assert float(slope) == pytest.approx(float(sign), rel=0.05)
    assert run("method `EAP-IG-activations`").provenance["method"] == "EAP-IG-activations"


def test_selections(run, known):
    graph = known["graph"]
    assert run("apply_topn(200, True)").in_graph.equal(theirs_top_n(graph.scores.abs(), 200, graph))
    assert run("apply_topn(200, False)").in_graph.equal(theirs_top_n(-graph.scores, 200, graph))
    strong = (graph.scores.abs() >= 0.01) & graph.edge_exists
    assert run("apply_threshold").in_graph.equal(pruned(strong, graph))
    greedy = run("apply_greedy")
    assert greedy.in_graph.equal(pruned(graph.greedy(200).in_graph, graph))
    scores = known["nodes"].node_scores
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.abs().argsort(descending=True)[:20]] = True
    assert run('level="node"').in_graph.equal(pruned(graph.edge_exists & kept[:, None], graph))
    assert run("count_included_edges") == known["circuit"].in_graph.sum()


def test_values(run, known):
    model, dataset, circuit = known["model"], known["dataset"], known["circuit"]
    assert run("evaluate_graph")["logit_diff"].shape == (6,)
    clean, _ = eap.evaluate_baselines(model, dataset)
    assert run("evaluate_baseline")["logit_diff"].equal(clean["logit_diff"])
    two = run("run_circuits")["logit_diff"]
    assert two.shape == (2, 6)
    whole = known["graph"].full()
    assert (whole - circuit).count_edges() == whole.count_edges() - circuit.count_edges()
    areas = run("evaluate_area_under_curve")
    assert list(areas.summary()["area"]) == ["CPR", "CMD", "accuracy"]
    metric = run("partial(logit_diff")
    measured = eap.evaluate(model, circuit, dataset, metrics=[metric, "logit_diff"])
    torch.testing.assert_close(measured["ld"], measured["logit_diff"])
    for name, given in (("RESAMPLE", eap.Resample()), ("ZERO", eap.Zero())):
        (key,) = [key for key in HERE if f"AblationType.{name}" in key]
        (option,) = re.findall(r'ablation="(\w+)"', HERE[key])
        options = [eap.evaluate(model, circuit, dataset, ablation=a) for a in (option, given)]
        assert options[0]["logit_diff"].equal(options[1]["logit_diff"])
    one_length = [
        pair for pair in dataset.examples if len(pair.clean) == len(dataset.examples[0].clean)
    ]
    if len(one_length) == len(dataset.examples):
        run("TOKENWISE_MEAN_CORRUPT")
    else:
        with pytest.raises(eap.UserError, match="length"):
            run("TOKENWISE_MEAN_CORRUPT")


def test_patching_and_patterns(run, known):
    model, dataset = known["model"], known["dataset"]
    tokens, weights = run("run_with_cache")[0]
    assert weights.shape == (len(tokens), len(tokens))
    nodes = run("get_act_patch")
    # Noising: everything that reads the node reads its corrupted output, the rest is clean.
    graph = known["graph"]
    number = graph.sender_names.index("m3")
    mask = graph.full().in_graph.double()
    mask[number] = 0
    clean = eap.evaluate_baselines(model, dataset)[0]["logit_diff"].mean()
    without = eap.evaluate_soft(model, mask, dataset)["logit_diff"].mean()
    assert float(nodes[number]) == pytest.approx(float(without - clean), abs=1e-4)
    assert run("path patching").is_exact.sum() == graph.full().count_edges()


def test_files(run, known):
    graph = known["graph"]
    for key, path in (("graph.to_json", "g.json"), ("graph.to_pt", "g.pt")):
        _, loaded = run(key)
        torch.testing.assert_close(loaded.scores, graph.scores)
        assert (known["folder"] / path).exists()
    written = json.loads((known["folder"] / "g.json").read_text())
    assert written["edges"]["m0->m1"]["score"] == pytest.approx(-graph.score("m0->m1"))
    torch.testing.assert_close(run("importances.json").scores, graph.scores)


def test_the_command_of_mib_exists(run):
    (key,) = [key for key in HERE if "run_attribution.py" in key]
    command = HERE[key].strip("`").split()
    assert command[:2] == ["eap", "mib"]
    text = (ROOT / "mib.py").read_text("utf8") + (ROOT / "eap/studies/shell.py").read_text("utf8")
    for option in (part for part in command if part.startswith("--")):
        assert f'"{option}"' in text


def test_every_row_is_tested():
    """Some test of this file names the row."""
    tree = ast.parse(Path(__file__).read_text("utf8"))
    named = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 3
    ]
    assert len(HERE) > 30
    for row in HERE:
        assert any(part in row for part in named), row


@pytest.mark.parametrize("name", other_names.GRAPH)
def test_a_member_of_another_librarys_graph_is_named_with_what_is_written_here(name):
    graph = eap.Graph.from_config(SMALL)
    with pytest.raises(AttributeError, match=r"a graph has no '.*'; here that is ") as error:
        getattr(graph, name)
    # What is named is there.
    for member in re.findall(r"(?<!')graph\.(\w+)", other_names.GRAPH[name]):
        assert hasattr(graph, member), member
    assert error.value.name == name


@pytest.mark.parametrize("name", [*other_names.PACKAGE, "no_such_name"])
def test_a_function_of_another_library_is_named_with_what_is_written_here(name):
    with pytest.raises(AttributeError) as error:
        getattr(eap, name)
    assert ("docs/switching.md" in str(error.value)) == (name in other_names.PACKAGE)
    for member in re.findall(r"eap\.(\w+)", other_names.PACKAGE.get(name, "")):
        assert hasattr(eap, member), member


@pytest.mark.parametrize("name", [*other_names.MODULES, "eap.no_such_module"])
def test_a_module_of_another_library_is_named_with_what_is_written_here(name):
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(name)
    assert ("docs/switching.md" in str(error.value)) == (name in other_names.MODULES)
    assert callable(eap.attribute)  # which a module of that name would hide


def test_messages_about_other_names_agree_with_the_table():
    """Where the table has a row about a name, both send people to the same member."""
    found = set()
    for name, here in (other_names.GRAPH | other_names.PACKAGE).items():
        (member,) = re.findall(r"(?:graph|eap)\.(\w+)", here)[:1]
        for theirs, ours in HERE.items():
            if re.search(rf"`(graph\.)?{name}\(", theirs) and "level=" not in theirs:
                assert f".{member}(" in ours, (name, theirs)
                found.add(name)
    assert len(found) >= 9


def test_other_names_of_a_graph_are_unknown_as_ever():
    graph = eap.Graph.from_config(SMALL)
    assert not hasattr(graph, "nothing")
    assert copy.deepcopy(graph) == pickle.loads(pickle.dumps(graph)) == graph
