"""Drawing of a circuit as a graph, from the first layer at the bottom upwards, with matplotlib.

The width of a line shows the absolute score of an edge; its colour and dash show the sign. Lines
into a head end at the q, k or v in the head's box. Lines are routed around the boxes of other
nodes.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from eap.figures import style
from eap.figures.measured import Measured
from eap.figures.tables import DOES_TASK
from eap.graph.contents import check_plain
from eap.graph.formats.export import drawn_nodes, ends_of_receivers
from eap.graph.graph import Edge, Graph
from eap.runtime.errors import UserError
from eap.runtime.kinds import checked

# All lengths are in inches.
WIDTH, HEIGHT = 0.52, 0.27  # of a box
ROW, COLUMN = 0.62, 0.74  # between boxes
# Dashes in addition to colours, for colour-blind readers.
LOOKS: dict[bool, dict[str, Any]] = {
    True: {"color": style.BLUE},
    False: {"color": style.ORANGE, "linestyle": (0, (4, 1.5))},
}
EFFECTS = {
    (True, True): "helpful: corrupting it makes the metric worse",
    (True, False): "harmful: corrupting it makes the metric better",
    (False, True): "corrupting it lowers the metric",
    (False, False): "corrupting it raises the metric",
}
MARGIN = 0.04  # between lines and boxes
ENTRY = {"q": -0.17, "k": 0.0, "v": 0.17}
FILLS = {"a": "#DCEBF7", "m": "#E6E6E6"}

# Sideways detours that a line may take around a box, and where along the line it turns.
BOWS = (0.0, *(side * 0.15 * step for step in range(1, 17) for side in (-1, 1)))
TURNS = (1.0, 0.5, 2.0)

Place = tuple[float, float]
Curve = tuple[Float[np.ndarray, " n_points"], Float[np.ndarray, " n_points"]]


@style.styled
@checked
def draw_circuit(
    circuit: Graph,
    *,
    title: str = "",
    selection: str = "",
    faithfulness: tuple[float, float | None] | None = None,
) -> Figure:
    """Draw the circuit's nodes and edges in a figure of fitting size.

    Args:
        circuit: scored graph, of which the edges of the circuit are drawn.
        title: title of the figure.
        selection: description of how the edges were chosen, for the line below the title.
        faithfulness: normalised faithfulness and its standard error, from `eap.faithfulness`;
            None: the line says that faithfulness was not measured.

    Raises:
        UserError: the circuit has no edges, or has edges without a score.
    """
    check_plain(circuit, "pictures of circuits have")
    edges = sorted(circuit.edges(), key=lambda edge: abs(edge.score))
    if not edges:
        raise UserError("this circuit has no edge to draw")
    if not np.isfinite([edge.score for edge in edges]).all():
        raise UserError("this circuit has edges without a score, which have no width to draw")
    figure, (ax,) = style.panels(1)
    _draw(ax, circuit, edges)
    left, right, bottom, top = (*ax.get_xlim(), *ax.get_ylim())
    width = max(right - left + 0.8, 4.4)
    note = textwrap.fill(describe(circuit, edges, selection, faithfulness), width=int(width * 16))
    heading = textwrap.fill(style.plain(title), width=int(width * 12))
    lines = note.count("\n") + heading.count("\n")
    figure.set_size_inches(width, top - bottom + 1.25 + 0.14 * lines)
    ax.set_title(note, fontsize="x-small", fontweight="normal", color="#555555")
    if heading:
        above = figure.suptitle(heading, fontsize=9, fontweight="bold")
        figure.draw_without_rendering()  # the position of the axes is known only after drawing
        place = ax.get_position()
        above.set_x((place.x0 + place.x1) / 2)
    return figure


def describe(
    circuit: Graph,
    edges: list[Edge],
    selection: str = "",
    faithfulness: tuple[float, float | None] | None = None,
) -> str:
    """Describe size, faithfulness, method, metric and selection, if known, and the line width."""
    provenance = circuit.provenance
    method, metric = (provenance.get(key) for key in ("method", "metric"))
    measured = None if faithfulness is None else Measured(len(edges), *faithfulness)
    parts = [
        f"{len(edges):,} of {circuit.n_edges:,} edges",
        str(measured or "faithfulness not measured"),
        "does not do the task alone" if measured and measured.value < DOES_TASK else "",
        f"scores: {style.method_look(method)[0]}"
        if isinstance(method, str)
        else "method not recorded",
        style.METRIC_NAMES.get(metric, style.plain(metric))
        if isinstance(metric, str)
        else "metric not recorded",
        style.plain(selection),
        f"widest line: |score| {style.number(abs(edges[-1].score), '.3g')}",
    ]
    return "; ".join(part for part in parts if part)


def _draw(ax: Axes, circuit: Graph, edges: list[Edge]) -> None:
    """Draw nodes as boxes by layer, and edges as curves."""
    ends = ends_of_receivers(circuit)
    places = _place_nodes(circuit, drawn_nodes(circuit, ends))
    largest = abs(edges[-1].score) or 1.0
    for edge in edges:
        share = abs(edge.score) / largest
        for x, y in _route_edge(edge, ends[edge.receiver], places):
            ax.plot(
                x, y,
                **LOOKS[is_helpful(circuit, edge)],
                linewidth=0.5 + 3 * share, alpha=0.4 + 0.55 * share,
                solid_capstyle="butt", zorder=1 + share,
            )  # fmt: skip
    ax.autoscale_view()
    for name, place in places.items():
        _draw_box(ax, name, place)

    x, y = np.array(list(places.values())).T
    left, right = ax.get_xlim()
    ax.set_xlim(min(left, x.min() - 0.5), max(right, x.max() + 0.5))
    ax.set_ylim(y.min() - 0.2, y.max() + 0.2)
    ax.set_aspect("equal")
    ax.set_xticks([])
    heads = {places[name][1]: _layer_of(name) for name in places if name.startswith("a")}
    ax.set_yticks(list(heads), [f"layer {layer}" for layer in heads.values()])
    ax.tick_params(left=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for helpful in sorted({is_helpful(circuit, edge) for edge in edges}, reverse=True):
        text = EFFECTS[circuit.higher_is_better is not None, helpful]
        ax.plot([], [], **LOOKS[helpful], label=text)
    ax.figure.legend(loc="outside lower center", ncols=1)


def is_helpful(circuit: Graph, edge: Edge) -> bool:
    """Whether corrupting an edge makes the metric worse (or lower, if no direction is known)."""
    return (edge.score < 0) == (circuit.higher_is_better is not False)


def _draw_box(ax: Axes, name: str, place: Place) -> None:
    """Draw the box of a node; the box of a head has q, k and v at the lower edge, for lines."""
    x, y = place
    is_head = name.startswith("a")
    box = FancyBboxPatch(
        (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.05",
        facecolor=FILLS.get(name[0], "white"), edgecolor="#555555", linewidth=0.7, zorder=3,
    )  # fmt: skip
    ax.add_patch(box)
    ax.text(x, y + (0.045 if is_head else -0.005), name, ha="center", va="center", fontsize=7,
            zorder=4)  # fmt: skip
    for letter, aside in ENTRY.items() if is_head else ():
        ax.text(x + aside, y - 0.085, letter, ha="center", va="center", fontsize=4.8,
                color="#333333", zorder=4)  # fmt: skip


def _route_edge(edge: Edge, ends: Sequence[str], places: Mapping[str, Place]) -> Iterator[Curve]:
    """Curves from the top of the sender to the bottom of each node at which the edge ends.

    Each curve is the route that crosses the fewest boxes and, among these, the straightest.
    """
    kind = edge.receiver.rstrip(">").partition("<")[2]
    for receiver in ends:
        others = [p for name, p in places.items() if name not in (edge.sender, receiver)]
        boxes = np.array(others).reshape(-1, 2)
        (x0, y0), (x1, y1) = places[edge.sender], places[receiver]
        end = (x1 + ENTRY.get(kind, 0.0), y1 - HEIGHT / 2)
        best: tuple[int, Curve] | None = None
        for bow, turn in product(BOWS, TURNS):
            curve = _curve((x0, y0 + HEIGHT / 2), end, bow=bow, turn=turn)
            crossed = _count_crossed(curve, boxes)
            if best is None or crossed < best[0]:
                best = crossed, curve
            if not crossed:
                break
        if best is not None:
            yield best[1]


def _curve(start: Place, end: Place, *, bow: float, turn: float) -> Curve:
    """A smooth curve from `start` up to `end`, bent `bow` inches away from the direct line."""
    t = np.linspace(0, 1, 60)
    s = t**turn
    x = start[0] + (end[0] - start[0]) * s**2 * (3 - 2 * s) + bow * np.sin(np.pi * t) ** 0.7
    return x, start[1] + (end[1] - start[1]) * t


def _count_crossed(curve: Curve, boxes: Float[np.ndarray, "n_boxes 2"]) -> int:
    """Number of points of a curve that lie in or close to a box."""
    x, y = (points[:, None] for points in curve)
    inside = (np.abs(x - boxes[:, 0]) < WIDTH / 2 + MARGIN) & (
        np.abs(y - boxes[:, 1]) < HEIGHT / 2 + MARGIN
    )
    return int(inside.sum())


def _layer_of(name: str) -> int:
    """The layer of a head or MLP."""
    return int(re.findall(r"\d+", name)[0])


def _place_nodes(circuit: Graph, present: set[str]) -> dict[str, Place]:
    """Place the nodes: the input at the bottom, heads and MLP of each layer in rows, logits on top.

    Rows without a node are left out. Heads keep their order. MLPs alternate between left and right
    so that they are not in one line.
    """
    rows: dict[tuple[int, str], list[str]] = {}
    for name in (*circuit.sender_names, "logits"):
        if name in present:
            layer = {"input": -1, "logits": circuit.config.n_layers}.get(name)
            rows.setdefault((_layer_of(name) if layer is None else layer, name[0]), []).append(name)
    widest = max(len(names) for names in rows.values())
    places: dict[str, Place] = {}
    for number, ((layer, kind), names) in enumerate(rows.items()):
        room = max(COLUMN, min(widest, 7) * COLUMN / len(names) * 0.8) if len(names) > 1 else 0.0
        aside = (COLUMN * max(1.0, widest / 2 - 0.5)) * (-1) ** layer if kind == "m" else 0.0
        for position, name in enumerate(names):
            places[name] = ((position - (len(names) - 1) / 2) * room + aside, number * ROW)
    return places
