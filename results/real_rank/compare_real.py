"""How well EAP and EAP-IG agree with exact values (graphs of get_real_values.py).

Writes to results/real_rank/<model>/: csv/all-overlap.csv (average overlap of the top n edges, for n
= 1 .. 400), csv/{node,edge}-overlap.csv (intersection over union of circuits of 25 to 600 selected
edges) and correlations.json (Pearson's r and Kendall's tau of absolute scores, mean absolute
difference of scores). "vanilla" is EAP, "ig" is EAP-IG, "real" is activation patching.
"""

import argparse
import json
from itertools import combinations

import pandas as pd
from tqdm import tqdm

from eap.compare import Overlap, agreement, average_overlap, edge_overlap, node_overlap
from eap.errors import UserError
from eap.figures import style
from eap.graph.graph import Graph
from eap.runtime.atomic import write_atomically
from eap.studies import shell

GRAPHS = {"real": "real", "EAP": "vanilla", "EAP-IG": "ig"}
DEPTHS = range(1, 401)
CIRCUITS = range(25, 601)


def read_graphs(args: argparse.Namespace, task: str) -> dict[str, Graph]:
    """The exact values of a task's edges and both estimates of them."""
    metric = args.metric or style.metric_of(task)
    return {
        name: style.find_graph(args, f"real_test/{task}_{metric}_{suffix}")
        for name, suffix in GRAPHS.items()
    }


def circuit_overlaps(graphs: dict[str, Graph], sizes: range) -> dict[str, list[list[float]]]:
    """By pair of graphs (`real_EAP`, ..): node and edge IoU of their circuits of every size."""
    pairs = list(combinations(graphs, 2))
    table: dict[str, list[list[float]]] = {f"{a}_{b}": [] for a, b in pairs}
    for size in sizes:
        circuits = {name: graph.greedy(size).prune() for name, graph in graphs.items()}
        for a, b in pairs:
            found: list[Overlap] = [
                compare(circuits[a], circuits[b]) for compare in (node_overlap, edge_overlap)
            ]
            table[f"{a}_{b}"].append([overlap.iou for overlap in found])
    return table


def main() -> None:
    """Compare the graphs of every task that has them."""
    parser = style.make_parser(__doc__)
    parser.add_argument("--metric", help="of the scores compared (default: each task's own)")
    args = parser.parse_args()

    command = f"python get_real_values.py --model {args.model} --task {{task}}"
    graphs = {}
    for task in args.tasks:
        try:
            graphs[task] = read_graphs(args, task)
        except FileNotFoundError as error:
            style.say_missing(error, command.format(task=task))
    if not graphs:
        raise UserError(
            f"nothing to compare for {args.model}; begin with: {command.format(task=args.tasks[0])}"
        )

    n_edges = min(graph.n_edges for own in graphs.values() for graph in own.values())
    depths, sizes = DEPTHS[:n_edges], CIRCUITS[: max(0, n_edges - CIRCUITS.start + 1)]
    correlations: dict[str, float] = {}
    overlaps = {"depth": list(depths)}
    nodes, edges = {"depth": list(sizes)}, {"depth": list(sizes)}
    for task, own in tqdm(graphs.items(), desc="tasks", unit="task"):
        for name in ("EAP", "EAP-IG"):
            key = f"{task}_{GRAPHS[name]}"
            agrees = agreement(own[name], own["real"])
            correlations[f"{key}_diff"] = agrees.mean_difference
            correlations[key] = agrees.pearson
            correlations[f"{key}_kendall"] = agrees.kendall
            overlaps[key] = average_overlap(own["real"], own[name], len(depths)).tolist()
        for pair, values in circuit_overlaps(own, sizes).items():
            nodes[f"{task}_{pair}"] = [node for node, _ in values]
            edges[f"{task}_{pair}"] = [edge for _, edge in values]

    folder = style.model_folder(args, "real_rank")
    for name, table in (("all", overlaps), ("node", nodes), ("edge", edges)):
        shell.save_csv(pd.DataFrame(table), folder / "csv" / f"{name}-overlap.csv")
    path = folder / "correlations.json"
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(correlations, indent=1), encoding="utf8")
    shell.say(f"wrote {shell.shown(path)}\n\nPearson's r (Kendall's tau) of absolute scores:")
    for task in graphs:
        shown = [
            f"{name} {correlations[f'{task}_{suffix}']:.2f} "
            f"({correlations[f'{task}_{suffix}_kendall']:.2f})"
            for name, suffix in GRAPHS.items()
            if name != "real"
        ]
        shell.say(f"  {style.display_name(task):16} {'   '.join(shown)}")


if __name__ == "__main__":
    shell.run(main)
