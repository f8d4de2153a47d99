"""The one door by which figures read graphs. Unlike tables they need torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from eap.figures.tables import Results
from eap.graph.graph import Graph
from eap.runtime.code import command, library_versions
from eap.runtime.errors import UserError
from eap.studies.paths import graph_file, shown
from eap.studies.provenance import comparable, tells_origin


def find_graph(results: Results, name: str) -> Graph:
    """`graphs/<model>/<name>.json` or `.safetensors`.

    Raises:
        FileNotFoundError: neither is there.
        UserError: both are there, or it is no graph.
    """
    path = graph_file(results.output, results.model, name)
    # A task's name may have a dot, so the suffix is not simply replaced.
    paths = [path, path.with_name(f"{path.name.removesuffix('.json')}.safetensors")]
    existing = [path for path in paths if path.exists()]
    if not existing:
        raise FileNotFoundError(shown(path))
    if len(existing) > 1:
        raise UserError(
            f"{shown(existing[0])} and {existing[1].name} are both there: delete the one that is "
            "out of date"
        )
    return Graph.load(existing[0])


def check_comparable(graphs: Mapping[str, Graph]) -> None:
    """Refuse to compare scores of different models, data or metrics.

    Graphs that do not say where they come from are passed over.

    Raises:
        UserError: two of them may not be compared; says what differs.
    """
    known = [(name, graph) for name, graph in graphs.items() if tells_origin(graph.provenance)]
    for name, graph in known[1:]:
        first, reference = known[0]
        if (reason := comparable(reference.provenance, graph.provenance)) is not None:
            raise UserError(
                f"{first} and {name} cannot be compared: {reason}; make one of the two anew"
            )


def origin_of(by_task: Mapping[str, Sequence[Graph]], *, method: str) -> dict[str, Any] | None:
    """Where a table comes from that is made of graphs; None if one of them does not say.

    Args:
        by_task: the graphs behind each task's numbers.
        method: what was computed of them.
    """
    graphs = [graph for scored in by_task.values() for graph in scored]
    if not graphs or not all({"model", "data"} <= {*graph.provenance} for graph in graphs):
        return None
    first = graphs[0].provenance
    return {
        "model": first["model"],
        "tasks": {
            # Of the first: how its edges were chosen, if it has exact values of a choice.
            task: {key: scored[0].provenance.get(key) for key in ("data", "metric", "settings")}
            for task, scored in by_task.items()
        },
        "method": method,
        "code": first.get("code"),
        "versions": library_versions(),
        "command": command(),
    }
