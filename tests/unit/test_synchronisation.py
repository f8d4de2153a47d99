"""No inner loop waits for the device: what brings a number to the host is not done per batch.

Plans are made on the host, once for a circuit or an edge; what runs over pairs and points of the
path only queues work. (KL and JS on a CPU look at their blocks; on other devices they do not.)
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import eap

SYNCHRONISING = {
    "_local_scalar_dense",  # item(), bool(), float()
    "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim",
}  # fmt: skip


class Synchronisations(TorchDispatchMode):
    """Counts operations whose result, or its shape, the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation._schema.name.split("::")[1]
        if name in SYNCHRONISING:
            self.counts[name] += 1
        return operation(*arguments, **(options or {}))


@pytest.fixture(scope="module")
def toy():
    model = eap.load_model("toy", device="cpu")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=12)
    # One group: pairs of one length and first difference go together.
    first = dataset.examples[0]
    dataset = eap.Dataset(dataset.task, (first,) * 12, dataset.prepend_bos, dataset.provenance)
    return model, dataset, eap.attribute(model, dataset.head(2), method="EAP", metric="logit_diff")


def synchronisations(work) -> Counter:
    with Synchronisations() as mode:
        work()
    return mode.counts


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "CEAP", "RelP", "GIM", "AtP*-GradDrop"])
def test_attribution_does_not_wait_for_pairs_or_points(toy, method):
    model, dataset, _ = toy
    metric = "logit_diff" if eap.methods.METHODS[method].uses_metric else None
    counts = [
        synchronisations(
            lambda n=n, steps=steps: eap.attribute(
                model, dataset.head(n), method=method, metric=metric, steps=steps, batch_size=2
            )
        )
        for n, steps in ((4, 5), (12, 5), (12, 11))
    ]
    assert counts[0] == counts[1] == counts[2]


def test_circuits_do_not_wait_for_pairs(toy):
    model, dataset, graph = toy
    circuits = [circuit.prune() for circuit in graph.greedy_circuits([50, 100, 400])]
    counts = [
        synchronisations(
            lambda n=n: eap.evaluate(
                model, circuits, dataset.head(n), metrics=["logit_diff", "prob_diff"], batch_size=2
            )
        )
        for n in (4, 12)
    ]
    assert counts[0] == counts[1]


def test_exact_values_wait_for_pieces_of_work_alone(toy):
    """Progress is kept on the host after every piece; within one, pairs are not waited for."""
    model, dataset, graph = toy
    edges = graph.top_n(60).in_graph
    counts = [
        synchronisations(
            lambda n=n: eap.patch_edges(
                model, dataset.head(n), metrics=["logit_diff"], edges=edges, batch_size=n // 2
            )
        )
        for n in (4, 12)
    ]
    assert counts[0] == counts[1]


def test_what_waits_is_counted():
    x = torch.ones(3)
    counts = synchronisations(lambda: (x.sum().item(), bool(x[0] > 0), x.nonzero()))
    assert counts == {"_local_scalar_dense": 2, "nonzero": 1}
