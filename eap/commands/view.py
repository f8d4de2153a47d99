"""Write a circuit as one interactive HTML page: a slider over sizes, a search, a table of edges.

With two graphs, the page shows which edges are in one or both circuits. With --attention, the page
shows the attention of a selected head on a few examples, and why the head attends there; this loads
the model. With --labels, nodes have the labels and groups of a page that was saved earlier. With
--why, no page is written; tables show why a head attends to a token, and what the head moves from
that token.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import eap
from eap.data.dataset import check_data
from eap.data.tasks import TASKS
from eap.figures.measured import read_measured_beside
from eap.figures.viewer import Patterns, write_page
from eap.graph.graph import Graph
from eap.runtime.errors import UserError
from eap.studies import shell
from eap.studies.paths import shown


def main() -> None:
    """Write the page that the command line describes."""
    parser = shell.OneLineParser(description=__doc__)
    add = parser.add_argument
    add("graph", type=Path, help="file of a graph")
    add("other", type=Path, nargs="?", help="file of a second graph to compare with")
    add(
        "-o",
        "--output",
        type=Path,
        help="file to write (default: <graph>.html in the working directory)",
    )
    add("--sizes", type=shell.positive, nargs="+", help="circuit sizes on the slider, in edges")
    add("--by", choices=("magnitude", "helpful", "harmful"), default="magnitude")
    add("--selection", choices=("greedy", "top_n"), default="greedy")
    add(
        "--attention", type=shell.positive, metavar="N",
        help="show attention patterns of heads on the first N pairs, and their reasons",
    )  # fmt: skip
    add("--labels", type=Path, metavar="PAGE", help="saved page with labels and groups of nodes")
    add(
        "--why",
        metavar="HEAD",
        help="print why this head attends to a token, without writing a page",
    )
    shell.add_model_arguments(
        parser, default=None, what="model for --attention and --why (default: the graph's model)"
    )
    add("-t", "--task", type=shell.named_task, help="task of the pairs (default: the graph's task)")
    add("--data", type=shell.data_file, help="file of your own pairs, for --attention and --why")
    add("--drop_unfit", action="store_true", help="leave out rows of --data that do not fit")
    args = parser.parse_args()
    check_options(parser, args)

    graphs = [Graph.load(path) for path in (args.graph, args.other) if path is not None]
    if args.why is not None:
        print("\n\n".join(reasons(*model_and_pairs(graphs[0], args), args)))
        return
    if args.labels:
        graphs[0] = graphs[0].with_labels(args.labels)
    # Measured curves are of greedy circuits by magnitude, of one graph.
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


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that would change nothing."""

    def refuse(names: tuple[str, ...], why: str) -> None:
        for name in names:
            if getattr(args, name) != parser.get_default(name):
                option = name if name == "other" else f"--{name}"
                parser.error(f"{option}: {why}")

    if args.why is not None:
        refuse(
            ("other", "output", "sizes", "by", "selection", "labels"),
            "with --why, tables are printed and no page is written; leave one of them out",
        )
    elif args.attention is None:
        refuse(
            ("model", "revision", "task", "data", "drop_unfit"),
            "no pairs are run; add --attention or --why",
        )


def attention_of(graph: Graph, args: argparse.Namespace) -> Patterns:
    """Attention of all heads, with reasons, on the first pairs that the graph was scored on."""
    return eap.attention.head_reasons(
        *model_and_pairs(graph, args), n_examples=args.attention, quiet=False
    )


def reasons(model: eap.Model, dataset: eap.Dataset, args: argparse.Namespace) -> Iterator[str]:
    """For every pair, why a head attends to a token from the last one, and what the head moves."""
    for example in range(min(args.attention or 1, len(dataset))):
        terms = eap.attention.logit_terms(model, dataset, args.why, example=example)
        moved = eap.attention.head_result(model, dataset, args.why, example=example)
        places = " ".join(f"{n}:{token.strip()}" for n, token in enumerate(terms.tokens))
        cap = "" if terms.softcap is None else f", before a soft cap of {terms.softcap:g}"
        yield (
            f"pair {example}: {places}\n{terms.head} looks most from {terms.query} to {terms.key}; "
            f"its logit there is {terms.logit:.3f}{cap}, the sum of\n"
            f"{terms.to_frame(10).round(3).to_string(index=False)}\n"
            f"what it moves to {moved.query} is worth {float(moved.by_answers.sum()):.3f} to the "
            f"answers (the final norm's scale at the run's), the sum of\n"
            f"{moved.to_frame(10).round(3).to_string(index=False)}"
        )


def model_and_pairs(graph: Graph, args: argparse.Namespace) -> tuple[eap.Model, eap.Dataset]:
    """Load the model and the pairs of the graph's scores, or those of the command line."""
    provenance = graph.provenance
    scored = dict(provenance.get("model", {}))
    name = args.model or scored.get("name")
    revision = args.revision or (None if args.model else scored.get("revision"))
    task = args.task or provenance.get("task")
    if not name or not task:
        raise UserError("the graph does not record its model and task; give --model and --task")
    if args.data is not None:  # before the slow loading of the model
        check_data(task, args.data)
    elif args.drop_unfit:
        raise UserError("--drop_unfit needs --data")
    elif task not in TASKS:
        raise UserError(
            f"{task} is not a task of this package (known are {', '.join(TASKS)}); give the pairs "
            "of the graph's scores with --data"
        )
    model = eap.load_model(name, revision=revision)
    scored_on = {} if args.task else dict(provenance.get("data", {}))
    seed = re.search(r"\(seed (\d+)\)", str(scored_on.get("source")))
    dataset = eap.load_dataset(
        task, model.tokenizer, data=args.data, prepend_bos=scored_on.get("prepend_bos"),
        seed=int(seed[1]) if seed else 0, drop_unfit=args.drop_unfit,
    )  # fmt: skip
    return model, dataset if args.data else of_scores(dataset, scored_on)


def of_scores(dataset: eap.Dataset, scored_on: Mapping[str, Any]) -> eap.Dataset:
    """The pairs that a graph was scored on, or all pairs with a note if these are not known.

    Args:
        dataset: all pairs of the task.
        scored_on: what the graph's provenance says of its pairs.
    """
    wanted = scored_on.get("tokens_sha256")
    parts = [dataset]
    limits = re.fullmatch(r"slice\((.*), (.*), (.*)\)", str(scored_on.get("rows")))
    if limits:
        parts.append(dataset[slice(*(None if n == "None" else int(n) for n in limits.groups()))])
    parts += [part.head(scored_on.get("n_pairs", len(part))) for part in parts]
    found = next((part for part in parts if part.tokens_sha256 == wanted), None)
    if found is None and wanted is not None:
        print(
            "note: these pairs are the first of the task, not those of the graph's scores, which "
            "are not in its data; give them with --data",
            file=sys.stderr,
        )
    return dataset if found is None else found
