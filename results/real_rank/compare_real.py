"""How well EAP and EAP-IG agree with exact values (graphs of get_real_values.py).

Writes to results/real_rank/<model>/: csv/all-overlap.csv (average overlap of the top n edges, for n
= 1 .. 400), csv/{node,edge}-overlap.csv (intersection over union of circuits of 25 to 600 selected
edges) and correlations.json (Pearson's r and Kendall's tau of absolute scores, mean absolute
difference of scores). "vanilla" is EAP, "ig" is EAP-IG, "real" is activation patching.
"""

from __future__ import annotations

import json
from itertools import combinations

import pandas as pd

import eap_circuits

# isort: split
import eap
from eap import figures
from eap.errors import UserError
from eap.figures import style, tables
from eap.runtime.atomic import write_atomically
from eap.runtime.progress import progress_bar
from eap.studies import shell

GRAPHS = {"real": "real", "EAP": "vanilla", "EAP-IG": "ig"}
DEPTHS = range(1, 401)
CIRCUITS = range(25, 601)


def read_graphs(results: tables.Results, task: str, metric: str) -> dict[str, eap.Graph]:
    """The exact values of a task's edges and both estimates of them.

    Raises:
        FileNotFoundError: one is not there.
        UserError: they are of different models, data or metrics.
    """
    scored = {
        name: figures.graphs.find_graph(results, f"real_test/{task}_{metric}_{suffix}")
        for name, suffix in GRAPHS.items()
    }
    figures.graphs.check_comparable(
        {f"{task}_{metric}_{GRAPHS[name]}": scored[name] for name in scored}
    )
    return scored


def circuit_overlaps(scored: dict[str, eap.Graph], sizes: range) -> dict[str, list[list[float]]]:
    """By pair of graphs (`real_EAP`, ..): node and edge IoU of their circuits of every size."""
    pairs = list(combinations(scored, 2))
    table: dict[str, list[list[float]]] = {f"{a}_{b}": [] for a, b in pairs}
    for size in sizes:
        circuits = {name: graph.greedy(size).prune() for name, graph in scored.items()}
        for a, b in pairs:
            found: list[eap.compare.Overlap] = [
                overlap(circuits[a], circuits[b])
                for overlap in (eap.compare.node_overlap, eap.compare.edge_overlap)
            ]
            table[f"{a}_{b}"].append([each.iou for each in found])
    return table


def main() -> None:
    """Compare the graphs of every task that has them."""
    parser = shell.figure_parser(__doc__)
    parser.add_argument("--metric", help="of the scores compared (default: each task's own)")
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)

    command = results.command("get_real_values.py", "--task {task}")
    by_task: dict[str, dict[str, eap.Graph]] = {}
    for task in args.tasks:
        try:
            by_task[task] = read_graphs(results, task, args.metric or style.metric_of(task))
        except FileNotFoundError as error:
            tables.say_missing(error, command.replace("{task}", task))
    if not by_task:
        first = command.replace("{task}", args.tasks[0])
        raise UserError(f"nothing to compare for {args.model}; begin with: {first}")

    n_edges = min(graph.n_edges for scored in by_task.values() for graph in scored.values())
    depths, sizes = DEPTHS[:n_edges], CIRCUITS[: max(0, n_edges - CIRCUITS.start + 1)]
    correlations: dict[str, float] = {}
    overlaps = {"depth": list(depths)}
    nodes, edges = {"depth": list(sizes)}, {"depth": list(sizes)}
    for task, scored in progress_bar(list(by_task.items()), "tasks", quiet=False):
        for name in ("EAP", "EAP-IG"):
            key = f"{task}_{GRAPHS[name]}"
            agrees = eap.compare.agreement(scored[name], scored["real"])
            correlations[f"{key}_diff"] = agrees.mean_difference
            correlations[key] = agrees.pearson
            correlations[f"{key}_kendall"] = agrees.kendall
            overlaps[key] = eap.compare.average_overlap(
                scored["real"], scored[name], len(depths)
            ).tolist()
        for pair, values in circuit_overlaps(scored, sizes).items():
            nodes[f"{task}_{pair}"] = [node for node, _ in values]
            edges[f"{task}_{pair}"] = [edge for _, edge in values]

    # Of one model: tables of several would be mixed in the figures.
    figures.graphs.check_comparable({task: scored["real"] for task, scored in by_task.items()})
    origin = figures.graphs.origin_of(
        {task: list(scored.values()) for task, scored in by_task.items()},
        method="agreement with exact values",
    )
    folder = results.folder("real_rank")
    for name, table in (("all", overlaps), ("node", nodes), ("edge", edges)):
        shell.save_csv(pd.DataFrame(table), folder / "csv" / f"{name}-overlap.csv", origin)
    path = folder / "correlations.json"
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(correlations, indent=1), encoding="utf8")
    shell.say(f"wrote {shell.shown(path)}\n\nPearson's r (Kendall's tau) of absolute scores:")
    for task in by_task:
        shown = [
            f"{name} {correlations[f'{task}_{suffix}']:.2f} "
            f"({correlations[f'{task}_{suffix}_kendall']:.2f})"
            for name, suffix in GRAPHS.items()
            if name != "real"
        ]
        shell.say(f"  {style.typed_name(task):16} {'   '.join(shown)}")


if __name__ == "__main__":
    eap_circuits.run(main)
