"""Zero and mean ablation equal a twin with loops, for attribution, patching and circuits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from models.tiny import MAIN_FAMILIES, random_examples, tiny_bridge
from reference import oracle, twins
from reference.oracle import float64, metric_of
from reference.split_run import shape_of
from reference.twins import DTYPES, FORMS, RELATIVE, assert_close, dataset_of, edges_of

import eap
from eap.ablation import AblatedRun, Resample

EXAMPLES = random_examples([4, 6, 3], [1, 2, 0], seed=8)
EQUALLY_LONG = random_examples([5, 5, 5], [1, 2, 0], seed=9)
KINDS = ("zero", "mean", "mean per position")


def examples_of(kind):
    return EQUALLY_LONG if "position" in kind else EXAMPLES


def ablation_of(kind, model):
    if kind == "zero":
        return eap.Zero()
    data = dataset_of(examples_of(kind))
    return eap.Mean.over_dataset(model, data, per_position="position" in kind, batch_size=2)


@lru_cache(maxsize=128)
def outside_of(kind, family, expanded=False):
    """What ablated edges carry, on the longest prompt: [n_forward, pos, d_model]."""
    model = twins.hf_model(family)
    with float64():
        sent = [
            oracle.sender_outputs(model, example.corrupted, expanded=expanded)
            for example in examples_of(kind)
        ]
    if kind == "zero":
        return torch.zeros_like(max(sent, key=lambda x: x.shape[1]))
    if "position" in kind:
        return torch.stack(sent).mean(0)
    everywhere = torch.cat(sent, dim=1)
    longest = max(x.shape[1] for x in sent)
    return everywhere.mean(1, keepdim=True).expand(-1, longest, -1)


@lru_cache(maxsize=128)
def twin(kind, family, expanded):
    """Of every example: values of single edges ablated, of circuits, and EAP-IG's scores."""
    model, exists = twins.hf_model(family), edges_of(family, expanded=expanded)
    edges = exists.nonzero()
    alone = exists.repeat(len(edges), 1, 1)
    alone[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    circuits = torch.cat([exists[None], torch.zeros_like(exists)[None], circuits_of(exists)])
    exact, values, scores = [], [], []
    with float64():
        for example in examples_of(kind):
            outside = outside_of(kind, family, expanded)[:, : len(example.clean)]
            metric = metric_of("logit_diff", example.correct, example.incorrect)
            clean = oracle.last_logits(model, example.clean)

            def run(some, example=example, outside=outside):
                return oracle.run_with_senders(
                    model, example.clean, outside, some, expanded=expanded
                )

            matrix = torch.zeros(exists.shape, dtype=torch.float64)
            matrix[edges[:, 0], edges[:, 1]] = torch.stack(
                [metric(logits, clean) - metric(clean, clean) for logits in run(alone)]
            )
            exact.append(matrix)
            values.append(torch.stack([metric(logits, clean) for logits in run(circuits)]))
            sent = oracle.sender_outputs(model, example.clean, expanded=expanded)
            gradients = sum(
                oracle.receiver_gradients(
                    model, example.clean, [metric], clean, expanded=expanded,
                    embedding=outside[0] + point * (sent[0] - outside[0]),
                )[0]
                for point in (0.5, 1.0)
            ) / 2  # fmt: skip
            scores.append(torch.einsum("fpd,bpd->fb", outside - sent, gradients) * exists)
    return torch.stack(exact).mean(0), torch.stack(values, 1), torch.stack(scores).mean(0)


def circuits_of(exists):
    generator = torch.Generator().manual_seed(3)
    return torch.stack(
        [exists & (torch.rand(exists.shape, generator=generator) < p) for p in (0.1, 0.5, 0.9)]
    )


@pytest.mark.parametrize(
    ("family", "expanded", "kind"),
    [
        (family, expanded, kind)
        for family, expanded in FORMS
        for kind in KINDS
        # What differs with keys of their own is which senders are ablated, not by what.
        if not expanded or kind == "mean"
    ],
)
def test_an_ablation_equals_its_twin(family, expanded, kind):
    exact, values, scores = twin(kind, family, expanded)
    in_both = kind == "mean" and family in MAIN_FAMILIES
    data, dtypes = dataset_of(examples_of(kind)), DTYPES if in_both else DTYPES[1:]
    for dtype in dtypes:
        model = twins.load(family, dtype)
        options = {"batch_size": 2, "expanded_kv": expanded}
        with twins.precision(family, dtype):
            ablation = ablation_of(kind, model)
            found = eap.attribute(model, data, steps=2, ablation=ablation, **options)
            assert_close(found.scores, scores, RELATIVE[dtype])
            patched = eap.patch_edges(model, data, ablation=ablation, **options)["logit_diff"]
            assert_close(patched.scores, exact, RELATIVE[dtype])
            circuits = [
                found.full(),
                found.empty(),
                *map(found.with_edges, circuits_of(found.edge_exists)),
            ]
            measured = eap.evaluate(model, circuits, data, ablation=ablation, batch_size=2)
            assert_close(measured["logit_diff"], values, RELATIVE[dtype])
            clean, ablated = eap.evaluate_baselines(model, data, ablation=ablation)
        assert_close(measured["logit_diff"][0], clean["logit_diff"].double(), RELATIVE[dtype])
        assert_close(measured["logit_diff"][1], ablated["logit_diff"].double(), RELATIVE[dtype])


@pytest.mark.parametrize("kind", ["resample", "zero", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_a_patched_node_equals_a_run_in_which_all_read_its_ablated_output(family, kind):
    model, hf = twins.load(family, torch.float64), twins.hf_model(family)
    shape, exists = shape_of(hf), edges_of(family)
    with twins.precision(family, torch.float64):
        ablation = Resample() if kind == "resample" else ablation_of(kind, model)
        found = eap.patch_nodes(model, dataset_of(EXAMPLES), ablation=ablation, batch_size=2)
    expected = []
    with float64():
        for example in EXAMPLES:
            if kind == "resample":
                outside = oracle.sender_outputs(hf, example.corrupted)
            else:
                outside = outside_of(kind, family)[:, : len(example.clean)]
            metric = metric_of("logit_diff", example.correct, example.incorrect)
            clean = oracle.last_logits(hf, example.clean)
            without = exists.repeat(shape.n_forward, 1, 1)
            without[torch.arange(shape.n_forward), torch.arange(shape.n_forward)] = False
            runs = oracle.run_with_senders(hf, example.clean, outside, without)
            expected.append(torch.stack([metric(x, clean) - metric(clean, clean) for x in runs]))
    assert_close(found["logit_diff"].node_scores, torch.stack(expected).mean(0), 1e-9)


def test_padding_does_not_count_in_a_mean():
    model = twins.load("gpt2", torch.float64)
    together = eap.Mean.over_dataset(model, dataset_of(EXAMPLES), batch_size=3)
    one_by_one = eap.Mean.over_dataset(model, dataset_of(EXAMPLES), batch_size=1)
    assert_close(together.outputs, one_by_one.outputs, 1e-12)


def test_a_mean_names_what_it_is_over():
    model, data = twins.load("gpt2"), dataset_of(EXAMPLES)
    ablation = eap.Mean.over_dataset(model, data, prompts="clean")
    graph = eap.attribute(model, data, ablation=ablation)
    assert graph.provenance["ablation"] == {
        "name": "mean",
        "prompts": "clean prompts of random",
        "tokens_sha256": data.tokens_sha256,
        "n_prompts": 3,
        "per_position": False,
        "model": {"name": model.name, **model.source},
    }


def test_means_over_other_prompts_of_one_data_set_are_told_apart():
    """As parts of a data set are made, by `dataclasses.replace`."""
    data = replace(dataset_of(EXAMPLES), provenance={"source": "one.csv"})
    first, second = (
        eap.Mean.over_dataset(twins.load("gpt2"), replace(data, examples=data.examples[part]))
        for part in (slice(0, 2), slice(1, 3))
    )
    assert first.provenance() != second.provenance()


def test_a_mean_of_another_model_is_refused():
    other = eap.from_bridge(tiny_bridge("gpt2", seed=1), name="other")
    ablation = eap.Mean.over_dataset(other, dataset_of(EXAMPLES))
    for family in ("gpt2", "neox"):
        with pytest.raises(eap.UserError, match="activations of other"):
            eap.attribute(twins.load(family), dataset_of(EXAMPLES), ablation=ablation)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_mean_per_position_needs_prompts_of_its_length_in_every_batch(batch_size):
    pairs = random_examples([6, 4, 6], [2, 2, 2])
    model = twins.load("gpt2")
    means = eap.Mean.over_dataset(model, dataset_of([pairs[0], pairs[2]]), per_position=True)
    with pytest.raises(eap.UserError, match="6 positions, and a prompt has 4"):
        eap.attribute(model, dataset_of(pairs), ablation=means, batch_size=batch_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": EXAMPLES[:1]}, "at least two different prompts"),
        ({"examples": EXAMPLES[:1] * 3}, "at least two different prompts"),
        ({"examples": EXAMPLES, "per_position": True}, "prompts of one length; these have 3 to 6"),
        ({"examples": EXAMPLES, "prompts": "both"}, "'clean' or 'corrupted'"),
    ],
)
def test_means_that_say_nothing_are_refused(arguments, message):
    examples = arguments.pop("examples")
    with pytest.raises(eap.UserError, match=message):
        eap.Mean.over_dataset(twins.load("gpt2"), dataset_of(examples), **arguments)


def test_a_mean_of_other_positions_is_refused():
    model = twins.load("gpt2")
    ablation = eap.Mean.over_dataset(model, dataset_of(EQUALLY_LONG), per_position=True)
    with pytest.raises(eap.UserError, match="has 5 positions"):
        eap.attribute(model, dataset_of(EXAMPLES), ablation=ablation)


@dataclass(frozen=True)
class Halfway:
    """An ablation of one's own: between the corrupted and the clean run, from the same pair."""

    name: str = "halfway"
    has_pair: bool = True

    def start(self, example):
        return Resample().start(example)

    def embedding(self, model, batch):
        return (model.embed(batch.corrupted) + model.embed(batch.clean)) / 2

    def run(self, model, batch, cache, *, expanded_kv) -> AblatedRun:
        half = Resample()
        object.__setattr__(half, "embedding", self.embedding)
        return half.run(model, batch, cache, expanded_kv=expanded_kv)

    def provenance(self):
        return {"name": self.name}


def test_an_ablation_of_ones_own_is_a_class():
    """The seam: the input runs half way, and all verbs follow, without touching a file."""
    model, data = twins.load("gpt2", torch.float64), dataset_of(EXAMPLES)
    graph = eap.Graph.from_model(model)
    clean, half = eap.evaluate_baselines(model, data, ablation=Halfway())
    circuits = [graph.full(), graph.empty()]
    values = eap.evaluate(model, circuits, data, ablation=Halfway())["logit_diff"]
    assert_close(values, torch.stack([clean["logit_diff"], half["logit_diff"]]), 1e-9)
    assert not torch.allclose(
        half["logit_diff"], eap.evaluate_baselines(model, data)[1]["logit_diff"]
    )
    edge = "input->logits"
    exact = eap.patch_edges(model, data, ablation=Halfway())["logit_diff"].score(edge)
    whole = eap.patch_edges(model, data)["logit_diff"].score(edge)
    assert 0 < exact / whole < 1
    assert eap.attribute(model, data, ablation=Halfway()).provenance["ablation"] == {
        "name": "halfway"
    }


class OfSeveralRuns(Halfway):
    """Says that it is of one run on the corrupted prompts, and is not."""

    def run(self, model, batch, cache, *, expanded_kv) -> AblatedRun:
        return eap.Zero().run(model, batch, cache, expanded_kv=expanded_kv)


@pytest.mark.parametrize("verb", ["evaluate", "attribute"])
def test_an_ablation_that_is_not_of_one_run_says_so(verb):
    """Or dead ends of a circuit would be cut off, which it would have carried."""
    model, data = twins.load("gpt2"), dataset_of(EXAMPLES)
    calls = {
        "evaluate": lambda how: eap.evaluate(
            model, eap.Graph.from_model(model).empty(), data, ablation=how
        ),
        "attribute": lambda how: eap.attribute(model, data, method="EAP", ablation=how),
    }
    with pytest.raises(eap.UserError, match="set has_pair to False"):
        calls[verb](OfSeveralRuns())
    calls[verb](OfSeveralRuns(has_pair=False))


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_mean_of_other_positions_is_refused_whatever_the_batch_size(batch_size):
    model = twins.load("gpt2")
    mean = eap.Mean.over_dataset(model, dataset_of(EQUALLY_LONG), per_position=True)
    n = len(EQUALLY_LONG[0].clean)
    shorter = random_examples([n, n - 2], [1, 1], seed=3)
    with pytest.raises(
        eap.UserError, match=f"this mean has {n} positions, and a prompt has {n - 2}"
    ):
        eap.attribute(model, dataset_of(shorter), ablation=mean, batch_size=batch_size)
