"""The circuit of each task that the cross-task studies compare."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from eap.circuits import evaluate, evaluate_baselines
from eap.data.dataset import Dataset
from eap.data.tasks import get_task
from eap.graph.graph import Graph
from eap.model.model import Model
from eap.runtime.code import package_code
from eap.runtime.progress import say
from eap.statistics.measures import normalised
from eap.studies.paths import model_name
from eap.studies.scoring import attributed, kept_graphs
from eap.studies.settings import Settings

# Normalised faithfulness that a circuit must reach.
FAITHFUL = 0.85

# Shape of GPT-2 small, for which circuit sizes are published.
GPT2_SHAPE = {"n_layers": 12, "n_heads": 12, "d_model": 768}


def circuit_sizes(graph: Graph) -> list[int]:
    """Circuit sizes to try, from 30 edges to all edges."""
    sizes = [*range(30, 100, 10), *range(100, 2000, 100)]
    while sizes[-1] < graph.n_edges:  # in steps of 10%
        sizes.append(sizes[-1] * 11 // 10)
    return [*(size for size in sizes if size < graph.n_edges), graph.n_edges]


def has_published_sizes(model: Model) -> bool:
    """Whether a model is called gpt2 and has the shape of GPT-2 small."""
    shape = {name: getattr(model.config, name) for name in GPT2_SHAPE}
    return model_name(model.name) == "gpt2" and shape == GPT2_SHAPE


def find_circuits(
    settings: Settings, model: Model, datasets: Mapping[str, Dataset]
) -> dict[str, Graph]:
    """The circuit of every task; prints a note if the published sizes do not apply."""
    if model_name(model.name) == "gpt2" and not has_published_sizes(model):
        say(
            "note: this model is called gpt2 but does not have GPT-2 small's shape: its circuits "
            f"are the smallest that are {FAITHFUL:.0%} faithful, not of the published sizes"
        )
    return {
        task: task_circuit(settings, model, task, dataset) for task, dataset in datasets.items()
    }


def circuit_identity(circuit: Graph) -> str:
    """Number of edges of a circuit, and a hash of which edges these are."""
    digest = hashlib.sha256(circuit.in_graph.numpy().tobytes()).hexdigest()
    return f"{circuit.count_edges()} edges ({digest[:8]})"


def task_circuit(settings: Settings, model: Model, task: str, dataset: Dataset) -> Graph:
    """The circuit of a task: greedily selected by EAP-IG and pruned.

    On GPT-2 small, the circuit has the published number of edges; on other models, it is the
    smallest circuit that reaches 85% normalised faithfulness by the cross-task metric. The circuit
    is saved as `graphs/<model>/<task>_circuit.json`.
    """
    spec = get_task(task)
    graph = attributed(
        settings, model, dataset, f"{task}_task", method="EAP-IG", metric=spec.metric
    )
    published = has_published_sizes(model) and spec.circuit_size <= graph.n_edges
    origin = {
        **graph.provenance,
        "circuit": f"{spec.circuit_size} edges" if published else f"{FAITHFUL:.0%} faithful",
        "faithful_by": spec.cross_task_metric,
        "code": package_code(),
    }

    def select() -> Iterable[Graph]:
        if published:
            circuit = graph.greedy(spec.circuit_size).prune()
        else:
            circuit = smallest_faithful(settings, model, graph, dataset, spec.cross_task_metric)
        yield replace(circuit, provenance=origin)

    (circuit,) = kept_graphs(settings, model, {f"{task}_circuit": origin}, select)
    return circuit


def smallest_faithful(
    settings: Settings, model: Model, graph: Graph, dataset: Dataset, metric: str
) -> Graph:
    """The smallest greedy circuit whose normalised faithfulness is at least 85%."""
    sizes = circuit_sizes(graph)
    options: dict[str, Any] = {"metrics": [metric], **settings.resources}
    clean, corrupted = evaluate_baselines(model, dataset, **options)
    low, high = corrupted[metric].mean(), clean[metric].mean()
    # Try a few sizes at a time, because most tasks need no large circuit.
    for first in range(0, len(sizes), 8):
        pruned = [circuit.prune() for circuit in graph.greedy_circuits(sizes[first : first + 8])]
        values = evaluate(model, pruned, dataset, quiet=False, **options)[metric].mean(1)
        for circuit, value in zip(pruned, values, strict=True):
            if normalised(float(value), float(high), float(low)) >= FAITHFUL:
                return circuit
    say(f"no smaller circuit of {dataset.task} is {FAITHFUL:.0%} faithful: using all edges")
    return graph.full()
