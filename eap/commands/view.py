"""A circuit as one HTML page to look around in: a slider over sizes, a search, a table of edges.

With two graphs, the page says which edges are in one circuit or in both.
"""

from pathlib import Path

from eap.figures.viewer import write_page
from eap.graph.graph import Graph
from eap.studies import shell
from eap.studies.paths import shown


def main() -> None:
    """Write the page that the command line describes."""
    parser = shell.OneLineParser(description=__doc__)
    add = parser.add_argument
    add("graph", type=Path, help="a graph's file")
    add("other", type=Path, nargs="?", help="another one, to compare with")
    add("-o", "--output", type=Path, help="of the page (default: <graph>.html, where you are)")
    add("--sizes", type=shell.positive, nargs="+", help="numbers of edges that the slider offers")
    add("--by", choices=("magnitude", "helpful", "harmful"), default="magnitude")
    add("--selection", choices=("greedy", "top_n"), default="greedy")
    args = parser.parse_args()

    graphs = [Graph.load(path) for path in (args.graph, args.other) if path is not None]
    page = write_page(
        graphs[0],
        args.output or Path(f"{args.graph.stem}.html"),
        graphs[1] if graphs[1:] else None,
        names=(args.graph.stem, args.other.stem if args.other else ""),
        sizes=args.sizes,
        selection=args.selection,
        by=args.by,
    )
    print(f"wrote {shown(page)}: open it in a browser")
