"""Every method equals its autograd twin, and the identities that its formula promises."""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import torch
from models.tiny import FAMILIES, MAIN_FAMILIES, random_examples
from reference import method_twins, twins
from reference.backward_rules import ATTNLRP, GIM, RELP
from reference.oracle import RULES, float64, metric_of
from reference.twins import DTYPES, FORMS, RELATIVE, assert_close, dataset_of, edges_of, steps_of

import eap
from eap.engine.scorers import score_gradients
from eap.methods import METHODS, Point
from eap.model.rules import BackwardRules
from eap.model.runs import run_layers, run_prefix

EXAMPLES = random_examples([5, 3, 6], [2, 0, 3], seed=5)
STEPS = 2
PATH = RULES["paper", STEPS]

TWIN_OF = {
    "RelP": lambda *pair, **kw: method_twins.by_rules(*pair, RELP, **kw),
    "AttnLRP": lambda *pair, **kw: method_twins.by_rules(*pair, ATTNLRP, **kw),
    "GIM": lambda *pair, **kw: method_twins.by_rules(*pair, GIM, **kw),
    "CEAP": lambda *pair, **kw: method_twins.increments(*pair, STEPS, **kw),
    "EAP-IG-activations": lambda *pair, **kw: method_twins.sublayers(*pair, *PATH, **kw),
    "AtP*-QK": method_twins.patterns,
    "AtP*-GradDrop": lambda *pair, **kw: method_twins.dropped_layers(*pair, **kw).abs().mean(0),
    "IFR": lambda model, clean, corrupted, metric, **kw: method_twins.flow(model, clean, **kw),
}


@lru_cache(maxsize=256)
def twin_scores(name: str, family: str, expanded: bool) -> torch.Tensor:
    model, values = twins.hf_model(family), []
    with float64():
        for example in EXAMPLES:
            metric = metric_of("logit_diff", example.correct, example.incorrect)
            values.append(
                TWIN_OF[name](model, example.clean, example.corrupted, metric, expanded=expanded)
            )
    return torch.stack(values).nan_to_num(0.0) * edges_of(family, expanded=expanded)


@pytest.mark.parametrize("name", TWIN_OF)
@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_a_method_equals_its_twin(family, expanded, name):
    expected = twin_scores(name, family, expanded).mean(0)
    for dtype in DTYPES if family in MAIN_FAMILIES else DTYPES[1:]:
        model = twins.load(family, dtype)
        with twins.precision(family, dtype):
            graph = eap.attribute(
                model, dataset_of(EXAMPLES), method=name, batch_size=2, **steps_of(name, STEPS),
                expanded_kv=expanded,
            )  # fmt: skip
        assert_close(graph.scores, expected, RELATIVE[dtype])


# ---- identities ----------------------------------------------------------------------------------

METRIC = {"metric": "logit_diff", "batch_size": 2}


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_scores_across_a_cut_sum_to_the_metrics_difference(family, example):
    """CEAP: of all edges across a cut between layers, with an error that shrinks as 1/m."""
    model, data = twins.load(family, torch.float64), dataset_of([example])
    errors = []
    with twins.precision(family, torch.float64):
        clean, corrupted = eap.evaluate_baselines(model, data)
        difference = float((corrupted["logit_diff"] - clean["logit_diff"]).mean())
        for steps in (40, 160):
            graph = eap.attribute(model, data, method="CEAP", steps=steps, metric="logit_diff")
            config = graph.config
            cuts = [
                graph.scores[: config.heads(layer).start, config.receivers(layer, "q").start :]
                for layer in range(config.n_layers)
            ]
            cuts.append(graph.scores[:, config.logits_receiver])
            errors.append(max(abs(float(across.sum()) - difference) for across in cuts))
    assert errors[1] < errors[0] / 3


def test_the_inputs_edges_are_those_of_integrated_gradients_by_the_librarys_rule():
    model, data = twins.load("llama", torch.float64), dataset_of(EXAMPLES)
    with twins.precision("llama", torch.float64):
        ceap = eap.attribute(model, data, method="CEAP", steps=3, **METRIC)
        library = eap.attribute(model, data, method="EAP-IG", rule="library", steps=3, **METRIC)
    assert_close(ceap.scores[0], library.scores[0], 1e-9)


def test_the_librarys_rule_begins_at_the_ablated_input():
    model, data = twins.load("gpt2", torch.float64), dataset_of(EXAMPLES)
    graph = eap.attribute(model, data, rule="library", steps=2, **METRIC)
    expected = twins.oracle_attribution("gpt2", EXAMPLES, "logit_diff", [0.0, 0.5], [0.5, 0.5])
    assert_close(graph.scores, expected.mean(0), 1e-9)


def test_rules_that_change_nothing_are_eap():
    neutral = eap.Method("neutral", "", rules=BackwardRules())
    model, data = twins.load("gemma2"), dataset_of(EXAMPLES)
    a, b = (eap.attribute(model, data, method=m, **METRIC) for m in (neutral, "EAP"))
    assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_do_not_depend_on_the_backward_rules(family):
    model = twins.load(family)
    tokens = torch.randint(3, 49, (2, 7), generator=torch.Generator().manual_seed(0))
    last = torch.tensor([6, 6])
    outputs = []
    for name in ("EAP", "RelP", "AttnLRP", "GIM"):
        rules = METHODS[name].rules
        cache = run_prefix(model, tokens[:, :0], last, 7)
        x = model.embed(tokens) + model.position_embedding(0, 7)
        final = run_layers(model, x, cache, rules=rules)
        outputs.append(model.unembed(final[:, 0], rules=rules))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("family", ["neox", "llama", "gemma3"])
def test_flow_sums_to_one_over_senders(family):
    graph = eap.attribute(twins.load(family), dataset_of(EXAMPLES), method="IFR")
    assert torch.allclose(graph.scores.sum(0), torch.ones(graph.n_backward), atol=1e-5)


def test_no_flow_is_made_up_where_position_embeddings_outweigh_the_only_sender():
    graph = eap.attribute(twins.load("gpt2"), dataset_of(EXAMPLES), method="IFR")
    assert float(graph.scores.sum(0).max()) <= 1 + 1e-5
    assert float(graph.scores[0, 0]) < 1


@pytest.mark.parametrize("name", ["EAP", "EAP-IG", "CEAP", "RelP", "GIM", "EAP-IG-activations"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_a_nodes_score_is_the_sum_of_its_edges(family, name):
    model, data = twins.load(family, torch.float64), dataset_of(EXAMPLES)
    with twins.precision(family, torch.float64):
        nodes = eap.attribute(model, data, method=name, level="node", **steps_of(name, 2), **METRIC)
        edges = eap.attribute(model, data, method=name, **steps_of(name, 2), **METRIC)
    assert_close(nodes.node_scores, edges.scores.sum(1), 1e-9)
    assert nodes.node_errors.shape == nodes.node_scores.shape
    assert nodes.provenance["level"] == "node"


def test_dropped_layers_at_nodes_take_the_absolute_value_of_the_sum():
    model, data = twins.load("llama", torch.float64), dataset_of(EXAMPLES)
    metric_of_example = [metric_of("logit_diff", e.correct, e.incorrect) for e in EXAMPLES]
    with float64():
        expected = torch.stack(
            [
                method_twins.dropped_layers(twins.hf_model("llama"), e.clean, e.corrupted, metric)
                for e, metric in zip(EXAMPLES, metric_of_example, strict=True)
            ]
        )
    expected = (expected * edges_of("llama")).sum(-1).abs().mean((0, 1))
    with twins.precision("llama", torch.float64):
        found = eap.attribute(model, data, method="AtP*-GradDrop", level="node", **METRIC)
    assert_close(found.node_scores, expected, 1e-9)


def test_auto_steps_stop_when_the_inputs_scores_are_complete():
    model, data = twins.load("gpt2"), dataset_of(EXAMPLES)
    few = eap.attribute(model, data, rule="midpoint", **METRIC).provenance["completeness"]
    graph = eap.attribute(model, data, steps=eap.Auto(0.01), rule="midpoint", **METRIC)
    report = graph.provenance["completeness"]
    assert abs(few["relative_error"]) > 0.01 >= abs(report["relative_error"])
    assert graph.provenance["settings"]["steps"] > 5
    clean, corrupted = eap.evaluate_baselines(model, data)
    change = (corrupted["logit_diff"] - clean["logit_diff"]).mean()
    assert report["metric_difference"] == pytest.approx(float(change), rel=1e-4)


def test_auto_steps_say_when_no_number_is_enough():
    model, data = twins.load("gpt2"), dataset_of(EXAMPLES[:1])
    with pytest.warns(UserWarning, match="within 1e-09 of complete"):
        eap.attribute(model, data, method="EAP-IG", steps=eap.Auto(1e-9), **METRIC)


def test_the_former_call_for_a_mean_names_the_present_one():
    model, data = twins.load("gpt2"), dataset_of(EXAMPLES)
    parts = [eap.attribute(model, data, method=m, **METRIC) for m in ("EAP", "RelP")]
    with pytest.warns(FutureWarning, match="mean_of"):
        former = eap.attribute(model, data, method=["EAP", "RelP"], **METRIC)
    assert_close(former.scores, eap.mean_of(parts).scores, 1e-6)


def test_equal_pairs_have_no_standard_error():
    data = dataset_of([EXAMPLES[0]] * 7)
    graph = eap.attribute(twins.load("gpt2"), data, method="EAP", batch_size=7)
    assert float(graph.standard_errors.max()) == 0.0


# ---- what is refused, and the seam ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "ACDC"}, "unknown method 'ACDC'; known are EAP"),
        ({"method": "CEAP", "ablation": "zero"}, "CEAP needs a corrupted prompt"),
        ({"method": "clean-corrupted", "ablation": "zero"}, "needs a corrupted prompt"),
        ({"method": "IFR", "metric": "kl"}, "uses no metric; leave 'kl' out"),
        ({"method": "IFR", "ablation": "zero"}, "ablates nothing"),
        ({"method": "IFR", "level": "node"}, "no node scores"),
        ({"method": "AtP*-QK", "level": "node"}, "no node scores"),
        ({"method": "RelP", "metric": "kl"}, "zero at the clean input"),
        ({"metric": "accuracy"}, "accuracy has no gradient"),
        (
            {
                "metric": eap.Metric(
                    "hard", lambda x, y, a: (x[:, 0] > 0).float(), higher_is_better=True
                )
            },
            "no gradient",
        ),
        ({"level": "layer"}, "unknown level 'layer'; known are edge, node"),
        ({"ablation": "mean"}, "Mean.over_dataset"),
        ({"ablation": "noise"}, "unknown ablation 'noise'; known are resample, zero, mean"),
        ({"steps": 0}, "from 1 to 1,000"),
        ({"steps": 10**9}, "from 1 to 1,000"),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
        ({"method": "EAP", "steps": "auto"}, "does not integrate"),
        ({"method": "CEAP", "rule": "midpoint"}, "rule of its own"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(arguments, message):
    with pytest.raises(eap.UserError, match=re.escape(message)) as error:
        eap.attribute(twins.load("gpt2"), dataset_of(EXAMPLES), **arguments)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_method_of_ones_own_is_a_row():
    """The seam: other points and rules, or a scorer of one's own, without touching a file."""
    halfway = eap.Method("halfway", "ours", points=lambda rule, steps: [Point(0.5, 1.0)])
    model, data = twins.load("gpt2"), dataset_of(EXAMPLES)
    found = eap.attribute(model, data, method=halfway)
    midpoint = eap.attribute(model, data, rule="midpoint", steps=1)
    assert torch.equal(found.scores, midpoint.scores)
    assert found.provenance["method"] == "halfway"

    def twice(batch, request):
        for block in score_gradients(batch, request):
            yield block._replace(scores=2 * block.scores)

    doubled = eap.attribute(model, data, method=eap.Method("twice", "ours", scorer=twice))
    assert_close(doubled.scores, 2 * eap.attribute(model, data, method="EAP").scores, 1e-6)


@pytest.mark.parametrize(("metric", "better"), [("logit_diff", True), ("kl", False)])
def test_graphs_say_whether_high_values_of_their_metric_are_better(metric, better):
    model, data = twins.load("gpt2", torch.float64), dataset_of(EXAMPLES)
    edges = eap.attribute(model, data, method="EAP-IG", metric=metric, steps=2)
    nodes = eap.attribute(model, data, method="EAP-IG", metric=metric, steps=2, level="node")
    assert edges.higher_is_better is nodes.higher_is_better is better
    sign = -1 if better else 1
    best = int((sign * edges.scores).argmax())
    assert edges.top_n(1, by="helpful").in_graph.flatten().nonzero().item() == best
    # Of nodes alone no edge is scored: zeros would be taken for scores.
    assert nodes.scores[nodes.edge_exists].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "better"),
    [
        ({"metric": "logit_diff"}, True),
        ({"metric": "kl"}, False),
        ({"method": "AtP*-GradDrop"}, False),  # importance: positive is helpful
        ({"method": "IFR"}, False),
        ({"method": "exact", "metric": "js"}, False),
    ],
)
def test_a_graph_knows_in_which_direction_its_scores_help(arguments, better):
    graph = eap.attribute(twins.load("gpt2"), dataset_of(EXAMPLES), **arguments)
    assert graph.higher_is_better is better
    sign = -1 if better else 1
    best = (sign * graph.scores).masked_fill(~graph.edge_exists, -torch.inf).flatten().argmax()
    assert graph.top_n(1, by="helpful").in_graph.flatten()[best]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "EAP", "steps": 10}, "EAP does not integrate; leave steps=10 out"),
        ({"method": "EAP", "steps": "auto"}, "leave steps='auto' out"),
        ({"method": "IFR", "rule": "midpoint"}, "IFR does not integrate; leave rule='midpoint'"),
        ({"method": "exact", "steps": 2}, "exact does not integrate"),
    ],
)
def test_what_a_method_would_ignore_is_refused(options, message):
    with pytest.raises(eap.UserError, match=message):
        eap.attribute(twins.load("gpt2"), dataset_of(EXAMPLES), **options)
