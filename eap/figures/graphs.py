"""Readers of the graphs behind figures. Reading a graph needs torch; reading a table does not."""

from collections.abc import Mapping, Sequence
from typing import Any

from eap.figures.tables import Results
from eap.graph.graph import Graph
from eap.runtime.code import command, library_versions
from eap.runtime.errors import UserError
from eap.studies.paths import graph_file, shown
from eap.studies.provenance import comparable, tells_origin


def find_graph(results: Results, name: str) -> Graph:
    """Load `graphs/<model>/<name>.json` or `.safetensors`.

    Raises:
        FileNotFoundError: neither file exists.
        UserError: both files exist, or the file is not a graph.
    """
    path = graph_file(results.output, results.model, name)
    # A task's name may have a dot, so the suffix is not simply replaced.
    paths = [path, path.with_name(f"{path.name.removesuffix('.json')}.safetensors")]
    existing = [path for path in paths if path.exists()]
    if not existing:
        raise FileNotFoundError(shown(path))
    if len(existing) > 1:
        raise UserError(
            f"{shown(existing[0])} and {existing[1].name} both exist: delete the one that is "
            "out of date"
        )
    return Graph.load(existing[0])


def check_comparable(graphs: Mapping[str, Graph]) -> None:
    """Refuse to compare scores of different models, data or metrics.

    Graphs without provenance are not checked.

    Raises:
        UserError: two graphs may not be compared; the message says what differs.
    """
    known = [(name, graph) for name, graph in graphs.items() if tells_origin(graph.provenance)]
    for name, graph in known[1:]:
        first, reference = known[0]
        if (reason := comparable(reference.provenance, graph.provenance)) is not None:
            raise UserError(
                f"{first} and {name} cannot be compared: {reason}; recompute one of the two"
            )


def origin_of(by_task: Mapping[str, Sequence[Graph]], *, method: str) -> dict[str, Any] | None:
    """Provenance of a table computed from graphs; None if a graph has no provenance.

    Args:
        by_task: graphs behind the numbers of each task.
        method: description of what was computed from the graphs.
    """
    graphs = [graph for scored in by_task.values() for graph in scored]
    if not graphs or not all({"model", "data"} <= {*graph.provenance} for graph in graphs):
        return None
    first = graphs[0].provenance
    return {
        "model": first["model"],
        "tasks": {
            # The first graph says how edges were chosen if only some have exact values.
            task: {key: scored[0].provenance.get(key) for key in ("data", "metric", "settings")}
            for task, scored in by_task.items()
        },
        "method": method,
        "code": first.get("code"),
        "versions": library_versions(),
        "command": command(),
    }
