"""The circuit of each task that the cross-task studies compare."""

import argparse
from dataclasses import replace

from eap.circuits import evaluate, evaluate_baselines
from eap.data.dataset import Dataset
from eap.data.tasks import get_task
from eap.graph.graph import Graph
from eap.measures import normalised
from eap.model.loading import Model
from eap.studies import shell

# The share of the clean run's metric that a circuit must keep.
FAITHFUL = 0.85


def circuit_sizes(graph: Graph) -> list[int]:
    """Sizes that are tried, from 30 edges to all of them."""
    sizes = [*range(30, 100, 10), *range(100, 2000, 100)]
    while sizes[-1] < graph.n_edges:  # by a tenth
        sizes.append(sizes[-1] * 11 // 10)
    return [*(size for size in sizes if size < graph.n_edges), graph.n_edges]


def task_circuit(args: argparse.Namespace, model: Model, task: str, dataset: Dataset) -> Graph:
    """The circuit of a task: greedily selected by EAP-IG and pruned.

    On GPT-2 small it has the published number of edges; on other models it is the smallest that
    reaches 85% normalised faithfulness by the cross-task metric. Kept as
    `graphs/<model>/<task>_circuit.json`.
    """
    spec = get_task(task)
    path = shell.graph_path(args, model, f"{task}_task")
    graph = shell.attributed(
        args, model, dataset, path=path, method="EAP-IG", metric=spec.metric,
        steps=args.ig_steps, rule=args.ig_rule,
    )  # fmt: skip
    path = shell.graph_path(args, model, f"{task}_circuit")
    published = model.short_name == "gpt2"
    rule = f"{spec.circuit_size} edges" if published else f"{FAITHFUL:.0%} faithful"
    wanted = {**graph.provenance, "circuit": rule, "faithful_by": spec.cross_task_metric}
    if (found := shell.reusable(path, wanted, overwrite=args.overwrite)) is not None:
        return found
    if published:
        circuit = graph.greedy(spec.circuit_size).prune()
    else:
        circuit = smallest_faithful(args, model, graph, dataset, spec.cross_task_metric)
    circuit = replace(circuit, provenance=wanted)
    shell.save_graph(circuit, path)
    return circuit


def smallest_faithful(
    args: argparse.Namespace, model: Model, graph: Graph, dataset: Dataset, metric: str
) -> Graph:
    """The smallest greedy circuit whose normalised faithfulness is at least 85%."""
    sizes = circuit_sizes(graph)
    clean, corrupted = evaluate_baselines(
        model, dataset, metrics=[metric], batch_size=args.batch_size, memory_budget=args.memory
    )
    low, high = corrupted[metric].mean(), clean[metric].mean()
    # A few sizes at a time: most tasks need no large circuit.
    for first in range(0, len(sizes), 8):
        some = [graph.greedy(size).prune() for size in sizes[first : first + 8]]
        values = evaluate(
            model, some, dataset, metrics=[metric],
            batch_size=args.batch_size, memory_budget=args.memory, quiet=False,
        )[metric].mean(1)  # fmt: skip
        for circuit, value in zip(some, values, strict=True):
            if normalised(float(value), float(high), float(low)) >= FAITHFUL:
                return circuit
    shell.say(f"no smaller circuit of {dataset.task} is {FAITHFUL:.0%} faithful: taking all edges")
    return graph.full()
