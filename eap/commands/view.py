"""A circuit as one HTML page to look around in: a slider over sizes, a search, a table of edges.

With two graphs, the page says which edges are in one circuit or in both. With --attention, it
shows where a chosen head looks on a few examples, for which the model is loaded.
"""

import argparse
from pathlib import Path

import eap
from eap.data.dataset import check_data
from eap.errors import UserError
from eap.figures.measured import read_measured_beside
from eap.figures.viewer import Patterns, write_page
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
    add(
        "--attention", type=shell.positive, metavar="N",
        help="show heads' attention patterns on the first N pairs",
    )  # fmt: skip
    add("-m", "--model", help="for --attention (default: the one that the graph is of)")
    add("-t", "--task", type=shell.named_task, help="for --attention (default: the graph's)")
    add("--data", type=shell.data_file, help="for --attention: pairs of your own")
    args = parser.parse_args()

    graphs = [Graph.load(path) for path in (args.graph, args.other) if path is not None]
    # Curves are of greedy selections by magnitude, of one graph.
    measured = read_measured_beside(args.graph, graphs[0])
    is_measured = not graphs[1:] and (args.selection, args.by) == ("greedy", "magnitude")
    curve = {circuit.n_edges: (circuit.value, circuit.error) for circuit in measured.values()}
    page = write_page(
        graphs[0],
        args.output or Path(f"{args.graph.stem}.html"),
        graphs[1] if graphs[1:] else None,
        names=(args.graph.stem, args.other.stem if args.other else ""),
        sizes=args.sizes,
        selection=args.selection,
        by=args.by,
        curve=curve if is_measured else None,
        patterns=attention_of(graphs[0], args) if args.attention else None,
    )
    print(f"wrote {shown(page)}: open it in a browser")


def attention_of(graph: Graph, args: argparse.Namespace) -> Patterns:
    """Attention patterns of all heads on the first pairs of what the graph was scored on."""
    provenance = graph.provenance
    name = args.model or dict(provenance.get("model", {})).get("name")
    task = args.task or provenance.get("task")
    if not name or not task:
        raise UserError("the graph does not say of which model and task it is: --model and --task")
    if args.data is not None:  # before the model, which takes long
        check_data(task, args.data)
    model = eap.load_model(name)
    bos = dict(provenance.get("data", {})).get("prepend_bos")
    dataset = eap.load_dataset(task, model.tokenizer, data=args.data, prepend_bos=bos)
    return eap.attention_patterns(model, dataset, n_examples=args.attention)
