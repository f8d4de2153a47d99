"""Agreement of EAP and EAP-IG with exact values (graphs of get_real_values.py).

Writes to results/real_rank/<model>/: csv/all-overlap.csv (average overlap of the top n edges, for n
= 1 .. 400), csv/{node,edge}-overlap.csv (intersection over union of circuits of 25 to 600 selected
edges) and correlations.json (Pearson's r and Kendall's tau of absolute scores, mean absolute
difference of scores). "vanilla" is EAP, "ig" is EAP-IG, and "real" is activation patching; other
methods are called by their names.

If only some edges of a task have exact values (get_real_values.py --verify), correlations are
estimated for all edges, with the random sample weighted to represent edges without exact values.
The top n edges are then taken from the edges that have an exact value.
"""

from __future__ import annotations

import json
from itertools import combinations

import pandas as pd

import eap_circuits

# isort: split

import eap
from eap import figures
from eap.figures import style, tables
from eap.methods import METHODS
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError
from eap.runtime.progress import progress_bar
from eap.studies import shell
from eap.studies.settings import default_metric, file_suffix

GRAPHS = {name: file_suffix(name) for name in METHODS} | {"EAP": "vanilla", "EAP-IG": "ig"}
DEPTHS = range(1, 401)
CIRCUITS = range(25, 601)


def read_graphs(
    results: tables.Results, task: str, metric: str, methods: list[str]
) -> dict[str, eap.Graph]:
    """Read the exact values of a task's edges (of all edges or of some), and the estimates.

    Raises:
        FileNotFoundError: a graph is missing.
        UserError: the graphs are of different models, data or metrics.
    """
    name = f"real_test/{task}_{metric}"
    estimates = {
        method: figures.graphs.find_graph(results, f"{name}_{GRAPHS[method]}") for method in methods
    }
    problems: list[Exception] = []
    # Of all edges or, with --verify, of some: those that are of the estimates' pairs.
    for suffix in ("real", "verified"):
        try:
            scored = {"real": figures.graphs.find_graph(results, f"{name}_{suffix}"), **estimates}
            figures.graphs.check_comparable(
                {f"{task}_{metric}_{GRAPHS.get(key, suffix)}": own for key, own in scored.items()}
            )
        except (FileNotFoundError, UserError) as problem:
            problems.append(problem)
        else:
            return scored
    raise next((problem for problem in problems if isinstance(problem, UserError)), problems[0])


def agreements(
    results: tables.Results, task: str, scored: dict[str, eap.Graph]
) -> dict[str, eap.compare.Agreement]:
    """Agreement of each estimate with the exact values, over all edges."""
    exact, weights = scored["real"], None
    if exact.is_exact is not None and not exact.is_exact.equal(exact.edge_exists):
        kl = figures.graphs.find_graph(results, f"real_test/{task}_kl_ig")
        weights = eap.screening.weights_of(exact, [scored["EAP"], scored["EAP-IG"], kl])
    return {
        name: eap.compare.agreement(graph, exact, weights=weights)
        for name, graph in scored.items()
        if name != "real"
    }


def circuit_overlaps(scored: dict[str, eap.Graph], sizes: range) -> dict[str, list[list[float]]]:
    """Node IoU and edge IoU of circuits of every size, by pair of graphs (such as `real_EAP`)."""
    pairs = list(combinations(scored, 2))
    table: dict[str, list[list[float]]] = {f"{a}_{b}": [] for a, b in pairs}
    for of_size in zip(*(graph.greedy_circuits(sizes) for graph in scored.values()), strict=True):
        circuits = {name: own.prune() for name, own in zip(scored, of_size, strict=True)}
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
    parser.add_argument("--metric", help="metric of the scores (default: each task's metric)")
    parser.add_argument(
        "--methods", nargs="+", choices=[name for name in METHODS if name != "exact"],
        default=[], help="further methods to compare, if get_real_values.py has run them",
    )  # fmt: skip
    args = parser.parse_args()
    methods = list(dict.fromkeys(["EAP", "EAP-IG", *args.methods]))
    results = tables.Results(args.output, args.model)

    command = results.command("get_real_values.py", "--task {task}")
    by_task: dict[str, dict[str, eap.Graph]] = {}
    for task in args.tasks:
        try:
            by_task[task] = read_graphs(results, task, args.metric or default_metric(task), methods)
        except FileNotFoundError as error:
            tables.say_missing(error, command.replace("{task}", task))
    if not by_task:
        first = command.replace("{task}", args.tasks[0])
        raise UserError(f"nothing to compare for {args.model}; begin with: {first}")

    n_edges = min(scored["real"].n_edges for scored in by_task.values())
    n_exact = min(
        len(eap.compare.paired_scores(scored["real"], scored["EAP"])[0])
        for scored in by_task.values()
    )
    depths, sizes = DEPTHS[:n_exact], CIRCUITS[: max(0, n_edges - CIRCUITS.start + 1)]
    correlations: dict[str, float] = {}
    overlaps = {"depth": list(depths)}
    nodes: dict[str, list[float]] = {"depth": [*sizes]}
    edges: dict[str, list[float]] = {"depth": [*sizes]}
    for task, scored in progress_bar(list(by_task.items()), "tasks", quiet=False):
        for name, agrees in agreements(results, task, scored).items():
            key = f"{task}_{GRAPHS[name]}"
            correlations[f"{key}_diff"] = agrees.mean_difference
            correlations[key] = agrees.pearson
            correlations[f"{key}_kendall"] = agrees.kendall
            overlaps[key] = eap.compare.average_overlap(
                scored["real"], scored[name], len(depths)
            ).tolist()
        for pair, values in circuit_overlaps(scored, sizes).items():
            nodes[f"{task}_{pair}"] = [node for node, _ in values]
            edges[f"{task}_{pair}"] = [edge for _, edge in values]

    # All graphs must be of one model, because the figures combine the tables.
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
            f"{name} {correlations[f'{task}_{GRAPHS[name]}']:.2f} "
            f"({correlations[f'{task}_{GRAPHS[name]}_kendall']:.2f})"
            for name in methods
        ]
        shell.say(f"  {style.typed_name(task):16} {'   '.join(shown)}")


if __name__ == "__main__":
    eap_circuits.run(main)
