"""Interactive view of a circuit: one HTML page that needs no network and no other file.

The page draws the circuit with the first layer at the bottom, and has a slider over sizes, a table
of edges and a search. The circuits of all sizes are those of `Graph.greedy(n).prune()` (or
`top_n`). All circuits are computed here; the page only shows them. A circuit with spans of the
prompt has one column per span, and a node in every span in which it sends or receives. The scripts,
the style and the template of the page are in this folder. The first line of each script says what
it does; `viewer.js` starts the other scripts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike
from torch import Tensor

from eap.figures.tables import DOES_TASK
from eap.graph.formats.export import node_names, nodes_behind
from eap.graph.graph import Graph
from eap.graph.selection import By
from eap.inside.attention import HeadReasons
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError, quoted
from eap.runtime.kinds import checked
from eap.runtime.ranges import is_whole

Selection = Literal["greedy", "top_n"]
Patterns = Mapping[str, Sequence[tuple[Sequence[str], ArrayLike] | HeadReasons]]

# Sizes on the slider, before pruning, up to the number of edges in the graph.
SIZES = (
    *range(10, 100, 10), *range(100, 500, 50), *range(500, 1000, 100), *range(1000, 2001, 250),
    3000, 4000, 5000,
)  # fmt: skip
NEVER = -1
SCRIPTS = (
    "viewer_data.js", "viewer_layout.js", "viewer_labels.js", "viewer_circuit.js",
    "viewer_window.js", "viewer_panels.js", "viewer_heads.js", "viewer_files.js", "viewer.js",
)  # fmt: skip
FACTS = ("model", "task", "metric", "method", "ablation", "level")


@checked
def write_page(
    graph: Graph,
    path: str | Path,
    other: Graph | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    sizes: Sequence[int] | None = None,
    selection: Selection = "greedy",
    by: By = "magnitude",
    curve: Mapping[int, float | tuple[float, float | None]] | None = None,
    patterns: Patterns | None = None,
    title: str = "",
) -> Path:
    """Write a page that shows a graph's circuits of many sizes, or compares two graphs' circuits.

    If the graph's own circuit is not the whole graph, the page opens with that circuit ("as
    given"). If some edges have no score, the page shows only that circuit.

    Args:
        graph: scores and circuit.
        path: path of the HTML file; folders are made.
        other: second graph of the same shape, for a comparison: the page shows both circuits in one
            picture or side by side, and marks which edges are in one or both.
        names: names of the two graphs on the page.
        sizes: numbers of edges before pruning that the slider offers; None: up to 5,000.
        selection: rule that selects circuits, 'greedy' or 'top_n'; circuits are pruned.
        by: ranking of edges, as in `Graph.top_n`.
        curve: measured normalised faithfulness by number of edges after pruning (1 is the whole
            model, 0 the corrupted run), or pairs of faithfulness and standard error. The page shows
            the faithfulness of the circuit on display, and opens with the smallest circuit of at
            least .8.
        patterns: attention patterns by head, shown when the head is selected: for each example, the
            tokens as text and the weights `[query, key]`, whose rows sum to 1
            (`eap.attention_patterns`), or patterns with reasons (`eap.attention.head_reasons`).
        title: title of the page.

    Returns:
        The path.

    Raises:
        UserError: there is nothing to show, the graph does not have the sizes, the two graphs have
            different shapes, or a pattern is not of a head or not square.

    Labels and groups of nodes (`Graph.with_labels`) are shown, and can be edited on the page; "Save
    page" keeps them.

    Example:
        >>> eap.write_page(graph, "circuit.html", title="IOI").name
        'circuit.html'
    """
    graphs = [graph] if other is None else [graph, other]
    if other is not None and other.config.shape != graph.config.shape:
        raise UserError(
            f"two circuits are compared edge by edge, but these are of different models: "
            f"{graph.n_edges:,} and {other.n_edges:,} edges"
        )
    if other is not None and other.span_names != graph.span_names:
        raise UserError("two circuits are compared pair by pair, but these have different spans")
    content = _content(graphs, names, _offered(graphs, sizes), selection, by)
    content |= {
        "title": title or _title(graph),
        "does_task": DOES_TASK,
        "labels": {**(other.labels if other else {}), **graph.labels},
        "groups": {**(other.groups if other else {}), **graph.groups},
        "curve": _curve(curve or {}),
        "patterns": _patterns(graph, patterns or {}),
    }
    page = _render(content)
    with write_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf8")
    return Path(path)


def _offered(graphs: list[Graph], sizes: Sequence[int] | None) -> list[int]:
    """Sizes of the slider; empty if some edges have no score."""
    if any(graph.scores[graph.edge_exists].isnan().any() for graph in graphs):
        if sizes is not None:
            raise UserError("no sizes to choose from: some scores are NaN (never computed)")
        return []
    largest = graphs[0].n_edges
    if sizes is None:
        return [size for size in SIZES if size < largest] + [largest] * (largest <= SIZES[-1])
    if not sizes or not all(is_whole(size) and 1 <= size <= largest for size in sizes):
        raise UserError(f"sizes are numbers of edges from 1 to {largest:,}")
    return sorted({int(size) for size in sizes})


def first_sizes(
    graph: Graph, sizes: Sequence[int], selection: Selection = "greedy", by: By = "magnitude"
) -> Int[np.ndarray, "*span n_forward n_backward"]:
    """For every edge, the index of the first size whose pruned circuit contains the edge, or -1.

    One number per edge describes the circuits of all (ascending) sizes: a larger selection contains
    every smaller one. The same holds after pruning, because an edge on a path from the input to the
    logits stays on that path.
    """
    if selection not in get_args(Selection):
        raise UserError(f"selection is 'greedy' or 'top_n', not {quoted(str(selection), 40)}")
    select: Callable[..., Graph] = graph.greedy if selection == "greedy" else graph.top_n
    first = np.full(tuple(graph.scores.shape), NEVER, dtype=np.int32)
    for index in reversed(range(len(sizes))):
        first[select(sizes[index], by=by).prune().in_graph.numpy()] = index
    return first


def _without_empty(
    sizes: list[int], firsts: list[Int[np.ndarray, "*span n_forward n_backward"]]
) -> tuple[list[int], list[Int[np.ndarray, "*span n_forward n_backward"]]]:
    """Drop the smallest sizes whose circuits have no edge after pruning."""
    known = [first[first != NEVER] for first in firsts]
    start = min((int(each.min()) for each in known if each.size), default=len(sizes))
    return sizes[start:], [np.where(first == NEVER, NEVER, first - start) for first in firsts]


def _content(
    graphs: list[Graph],
    circuit_names: tuple[str, str],
    sizes: list[int],
    selection: Selection,
    by: By,
) -> dict[str, Any]:
    """The content of the page for the graphs, as JSON values."""
    config, span_names = graphs[0].config, graphs[0].span_names
    firsts = [first_sizes(graph, sizes, selection, by) for graph in graphs]
    sizes, firsts = _without_empty(sizes, firsts)
    is_part = [0 < graph.count_edges() < graph.n_edges for graph in graphs]
    given = [graph.in_graph & part for graph, part in zip(graphs, is_part, strict=True)]
    shown = torch.stack([*given, *(torch.from_numpy(first != NEVER) for first in firsts)]).any(0)
    if not shown.any():
        raise UserError("nothing to show: the graph has no circuit, and not all edges have scores")
    at = tuple(_best_first(graphs, shown).T)  # (span,) sender, receiver
    span = at[0] if span_names else np.zeros_like(at[0])
    names = node_names(graphs[0])
    number = {name: index for index, name in enumerate(names)}
    places = span * config.n_backward + at[-1]
    receivers, receiver = np.unique(places, return_inverse=True)
    circuits = [
        {
            "name": name[:60],
            "facts": _facts(graph),
            "better": graph.higher_is_better,
            "kept": [int((first[first != NEVER] <= k).sum()) for k in range(len(sizes))],
            "first": first[at].tolist(),
            "given": "".join("01"[x] for x in is_given[at].tolist()) if is_given.any() else None,
            "score": _short(graph.scores[at]),
            "error": None if (e := graph.standard_errors) is None else _short(e[at]),
            "exact": None
            if (exact := graph.is_exact) is None
            else "".join("01"[x] for x in exact[at].tolist()),
            "nodes": _scores_of_nodes(graph),
        }
        for graph, name, first, is_given in zip(graphs, circuit_names, firsts, given, strict=False)
    ]
    return {
        "total": graphs[0].n_edges,
        "selection": {"greedy": "greedy", "top_n": "top-n"}[selection],
        "by": by,
        "sizes": sizes,
        "spans": span_names,
        "nodes": names,
        "parallel": config.parallel_attn_mlp,
        "receivers": [
            {
                "name": config.receiver_names[r] + (f" @ {span_names[at]}" if span_names else ""),
                "nodes": [number[node] for node in nodes_behind(graphs[0], r, at)],
            }
            for at, r in (divmod(int(place), config.n_backward) for place in receivers)
        ],
        "senders": (span * (config.n_forward + 1) + at[-2]).tolist(),
        "ends": receiver.tolist(),
        "circuits": circuits,
    }


def _scores_of_nodes(graph: Graph) -> list[float | None] | None:
    """Scores of all nodes in order; with spans, the logits have an empty score at each span."""
    scores = graph.node_scores
    if scores is None or not graph.span_names:
        return None if scores is None else _short(scores)
    return _short(torch.nn.functional.pad(scores, (0, 1), value=torch.nan).flatten())


def _best_first(
    graphs: list[Graph], shown: Bool[Tensor, "*span n_forward n_backward"]
) -> Int[np.ndarray, "n_edges axis"]:
    """The edges of the page, with the largest scores in any graph first."""
    rank = torch.zeros(shown.shape, dtype=torch.float64)
    for graph in graphs:
        size = graph.scores.double().abs().nan_to_num(0.0)
        rank = torch.maximum(rank, size / size.max().clamp(min=1e-300))
    pairs = shown.nonzero()
    order = rank[shown].argsort(descending=True, stable=True)
    return pairs[order].numpy()


def _curve(
    curve: Mapping[int, float | tuple[float, float | None]],
) -> list[tuple[int, float, float | None]]:
    """Size, faithfulness and standard error (None: unknown), smallest circuits first."""
    rows = []
    for n, measured in sorted(curve.items()):
        value, error = measured if isinstance(measured, tuple) else (measured, None)
        known = error is not None and np.isfinite(error)
        rows.append((int(n), float(f"{value:.4g}"), float(f"{error:.2g}") if known else None))
    return rows


def _patterns(graph: Graph, patterns: Patterns) -> dict[str, list[dict[str, Any]]]:
    """Attention weights in whole percent, by head and example."""
    heads = set(graph.sender_names) - {"input"}
    content: dict[str, list[dict[str, Any]]] = {}
    for name, examples in patterns.items():
        if name not in heads or not name.startswith("a"):
            raise UserError(f"attention patterns are of heads, but {quoted(name, 40)} is not one")
        content[name] = []
        for shown in examples:
            why = shown if isinstance(shown, HeadReasons) else None
            pair = (shown.tokens, shown.weights) if isinstance(shown, HeadReasons) else shown
            tokens, weights = pair
            table = np.asarray(weights, dtype=float)
            if table.shape != (len(tokens), len(tokens)) or not np.isfinite(table).all():
                raise UserError(
                    f"{name}: a pattern of {len(tokens)} tokens is a table of numbers "
                    f"{[len(tokens)] * 2}, not {list(table.shape)}"
                )
            texts = [str(token)[:60] for token in tokens]
            percent = (100 * table).round().astype(int).tolist()
            content[name].append(
                {"tokens": texts, "weights": percent}
                | ({"why": _reasons(why, texts)} if why else {})
            )
    return content


def _reasons(why: HeadReasons, texts: list[str]) -> dict[str, Any]:
    """Reasons for a head's attention, with numbers of four significant digits."""
    answers = [
        [texts[key], sender, value]
        for key, _, sender, value in why.by_answers.itertuples(index=False)
    ]
    return {
        "query": why.query,
        "key": why.key,
        "weight": round(float(np.asarray(why.weights)[why.query, why.key]), 3),
        "logit": _rounded(why.logit),
        "softcap": why.softcap,
        "by_key": [[name, _rounded(value)] for name, value in why.by_key.items()],
        "by_query": [[name, _rounded(value)] for name, value in why.by_query.items()],
        "pairs": [[*pair, _rounded(value)] for *pair, value in why.pairs.itertuples(index=False)],
        "moved": _rounded(why.moved),
        "by_answers": [[*row, _rounded(value)] for *row, value in answers],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _short(values: Tensor) -> list[float | None]:
    """Round to four significant digits, with None for unknown values, to keep the page small."""
    return [_rounded(value) if np.isfinite(value) else None for value in values.tolist()]


def _facts(graph: Graph) -> list[list[str]]:
    """Provenance of the scores, as far as it is known."""
    facts = []
    for key in FACTS:
        value = graph.provenance.get(key)
        if isinstance(value, Mapping):
            value = value.get("name")
        if isinstance(value, (str, int, float)) and value != "":
            facts.append([key, str(value)[:100]])
    return facts


def _title(graph: Graph) -> str:
    known = dict(_facts(graph))
    parts = [known[key] for key in ("task", "model") if key in known]
    return f"Circuit of {' in '.join(parts)}" if parts else "A circuit"


def _render(content: dict[str, Any]) -> str:
    """The page: style, script and content in one file."""
    environment = Environment(
        loader=PackageLoader("eap.figures", "."), autoescape=True, undefined=StrictUndefined
    )
    files = resources.files("eap.figures")
    # Inside a script element, only "<" could end the element or open another one.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return environment.get_template("viewer.html.j2").render(
        title=content["title"],
        style=files.joinpath("viewer.css").read_text(encoding="utf8"),
        script="\n".join(files.joinpath(name).read_text(encoding="utf8") for name in SCRIPTS),
        content=data,
    )
