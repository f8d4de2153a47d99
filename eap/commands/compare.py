"""Agreement of two graphs' scores, and overlap of their circuits.

Agreement is measured over all edges that have a score in both graphs: Pearson's correlation and
Kendall's tau of absolute scores, and the mean absolute difference. Circuits are selected greedily
and pruned.
"""

from pathlib import Path

from eap.analysis.compare import agreement, edge_overlap, node_overlap
from eap.graph.graph import Graph
from eap.studies import shell
from eap.studies.provenance import comparable


def main() -> None:
    """Print the comparison that the command line describes."""
    parser = shell.OneLineParser(description=__doc__)
    parser.add_argument("first", type=Path, help="file of a graph")
    parser.add_argument("second", type=Path, help="file of a second graph of the same shape")
    parser.add_argument(
        "--sizes", type=shell.positive, nargs="+", default=[100, 200, 500, 1000],
        help="circuit sizes in edges, before pruning (default: 100 200 500 1000)",
    )  # fmt: skip
    args = parser.parse_args()

    first, second = (Graph.load(path) for path in (args.first, args.second))
    if (difference := comparable(first.provenance, second.provenance)) is not None:
        print(f"note: {difference}")
    scores = agreement(first, second)
    print(
        f"scores: Pearson {scores.pearson:.3f}, Kendall {scores.kendall:.3f}, "
        f"mean absolute difference {scores.mean_difference:.3g}\n\n"
        "   size  edges in both (IoU)  by chance (p)  nodes in both (IoU)"
    )
    for size in sorted({min(size, first.n_edges) for size in args.sizes}):
        circuits = [graph.greedy(size).prune() for graph in (first, second)]
        edges, nodes = edge_overlap(*circuits), node_overlap(*circuits)
        print(f"{size:>7,}  {edges.iou:>19.3f}  {edges.p_value:>13.2g}  {nodes.iou:>19.3f}")
