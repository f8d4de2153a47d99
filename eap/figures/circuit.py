"""A circuit drawn as a graph, layers upwards, by matplotlib alone.

The width of a line is the size of an edge's score, its colour the sign. Lines into a head end at
the left (q), middle (k) or right (v) of its box.
"""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from eap.errors import UserError
from eap.figures import style
from eap.graph.graph import Edge, Graph

# All lengths are in inches.
WIDTH, HEIGHT = 0.5, 0.2  # of a box
ROW, COLUMN = 0.52, 0.72  # between boxes
ENTRY = {"q": -0.17, "k": 0.0, "v": 0.17}
FILLS = {"a": "#DCEBF7", "m": "#E6E6E6"}

Place = tuple[float, float]


def draw_circuit(circuit: Graph, *, title: str = "") -> Figure:
    """A figure of the circuit's nodes and edges, as large as it needs to be.

    Raises:
        UserError: the circuit has no edge.
    """
    if not circuit.count_edges():
        raise UserError("this circuit has no edge to draw")
    figure, (ax,) = style.panels(1)
    _draw(ax, circuit)
    left, right, bottom, top = (*ax.get_xlim(), *ax.get_ylim())
    figure.set_size_inches(right - left + 0.6, top - bottom + 0.9)
    ax.set_title(title)
    return figure


def _draw(ax: Axes, circuit: Graph) -> None:
    """Boxes at their layers, edges as curves."""
    places = _place_nodes(circuit)
    edges = sorted(circuit.edges(), key=lambda edge: abs(edge.score))
    largest = abs(edges[-1].score) or 1.0
    for number, edge in enumerate(edges):
        _draw_edge(ax, edge, circuit, places, share=abs(edge.score) / largest, side=number % 2)
    for name, (x, y) in places.items():
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=FILLS.get(name[0], "white"), edgecolor="#555555", linewidth=0.7, zorder=3,
        )  # fmt: skip
        ax.add_patch(box)
        ax.text(x, y - 0.005, name, ha="center", va="center", fontsize=7, zorder=4)

    x, y = np.array(list(places.values())).T
    ax.set_xlim(x.min() - 0.6, x.max() + 0.6)
    ax.set_ylim(y.min() - 0.2, y.max() + 0.2)
    ax.set_aspect("equal")
    ax.set_xticks([])
    heads = {places[name][1]: _layer_of(name) for name in places if name.startswith("a")}
    ax.set_yticks(list(heads), [f"layer {layer}" for layer in heads.values()])
    ax.tick_params(left=False)
    for spine in ("left", "bottom"):
        ax.spines[spine].set_visible(False)
    ax.plot([], [], color=style.BLUE, label="corrupting it lowers the metric")
    ax.plot([], [], color=style.ORANGE, label="corrupting it raises the metric")
    ax.figure.legend(loc="outside lower center", ncols=1)


def _draw_edge(
    ax: Axes, edge: Edge, circuit: Graph, places: dict[str, Place], *, share: float, side: int
) -> None:
    """A curve from the top of the sender to the bottom of the receiver."""
    node, _, kind = edge.receiver.rstrip(">").partition("<")
    for receiver in _receiving_nodes(circuit, node, places):
        (x0, y0), (x1, y1) = places[edge.sender], places[receiver]
        x1 += ENTRY.get(kind, 0.0)
        t = np.linspace(0, 1, 40)
        # A line that would run straight through the boxes between its ends goes around them.
        rows = (y1 - y0) / ROW
        bow = (0.3 + 0.05 * rows) * (-1) ** side if abs(x1 - x0) < WIDTH and rows > 1.5 else 0.0
        ax.plot(
            x0 + (x1 - x0) * t**2 * (3 - 2 * t) + bow * np.sin(np.pi * t) ** 0.7,
            y0 + HEIGHT / 2 + (y1 - y0 - HEIGHT) * t,
            color=style.BLUE if edge.score < 0 else style.ORANGE,
            linewidth=0.5 + 3 * share,
            alpha=0.4 + 0.55 * share,
            solid_capstyle="butt",
            zorder=1 + share,
        )


def _layer_of(name: str) -> int:
    """The layer of a head or MLP."""
    return int(re.findall(r"\d+", name)[0])


def _place_nodes(circuit: Graph) -> dict[str, Place]:
    """Input below, then per layer a row of its heads and one of its MLP, logits on top.

    Rows without a node are left out. Heads keep their order, MLPs step to the left and right so
    that they do not stand in one line.
    """
    present = circuit.nodes_in_graph()
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


def _receiving_nodes(circuit: Graph, node: str, places: dict[str, Place]) -> list[str]:
    """The drawn nodes behind a receiver: itself, or all heads that share a key/value head."""
    shared = re.fullmatch(r"a(\d+)\.kv(\d+)", node)
    if shared is None:
        return [node]
    config = circuit.config
    heads = [h for h in range(config.n_heads) if config.kv_head(h) == int(shared.group(2))]
    return [name for h in heads if (name := f"a{shared.group(1)}.h{h}") in places]
