"""Figure 2: a small circuit drawn as a graph, layers upwards.

Line width is the size of an edge's score, colour its sign (blue: corrupting the edge lowers the
metric; orange: it raises it). q, k and v edges of a head enter it from the left, middle and right.
"""

import re

import numpy as np
from matplotlib.axes import Axes

from eap import cli, plotting
from eap.errors import UserError
from eap.graph import Graph

Place = tuple[float, float]
ENTRY = {"q": -0.22, "k": 0.0, "v": 0.22}


def main() -> None:
    """Draw results/circuit/<model>/{png,pdf}/<task>_circuit."""
    parser = plotting.make_parser(__doc__, tasks=("ioi",))
    parser.add_argument("--edges", type=cli.positive, default=40, help="to select, before pruning")
    parser.add_argument("--graph", default="task", help="scores: vanilla, task or kl")
    args = parser.parse_args()
    plotting.set_style()
    for task in args.tasks:
        try:
            graph = plotting.find_graph(args, f"{task}_{args.graph}")
        except FileNotFoundError as error:
            command = f"python pareto.py --model {args.model} --task {task}"
            raise UserError(f"no {error}; make it with: {command}") from None
        circuit = graph.greedy(min(args.edges, graph.n_edges)).prune()
        figure, (ax,) = plotting.panels(1, height=4.6)
        figure.set_size_inches(plotting.PAPER_WIDTH, 0.55 * graph.config.n_layers + 2.2)
        draw(ax, circuit)
        ax.set_title(
            f"{plotting.display_name(task)}: {circuit.count_edges()} of {circuit.n_edges:,} edges"
        )
        plotting.save_figure(figure, plotting.model_folder(args, "circuit"), f"{task}_circuit")


def draw(ax: Axes, circuit: Graph) -> None:
    """Nodes at their layers, edges as curves."""
    places = place_nodes(circuit)
    edges = list(circuit.edges())
    largest = max((abs(edge.score) for edge in edges), default=1.0) or 1.0
    for edge in sorted(edges, key=lambda edge: abs(edge.score)):
        node, _, kind = edge.receiver.partition("<")
        for own in receiving_nodes(circuit, node, places):
            x0, y0 = places[edge.sender]
            x1, y1 = places[own]
            shift = ENTRY.get(kind.rstrip(">"), 0.0)
            share = abs(edge.score) / largest
            t = np.linspace(0, 1, 24)
            bend = t**2 * (3 - 2 * t)
            ax.plot(
                x0 + (x1 + shift - x0) * bend,
                y0 + 0.16 + (y1 - 0.32 - y0) * t,
                color=plotting.BLUE if edge.score < 0 else plotting.ORANGE,
                linewidth=0.5 + 3.5 * share,
                alpha=0.35 + 0.6 * share,
                solid_capstyle="round",
                zorder=1,
            )
    for name, (x, y) in places.items():
        head = name.startswith("a")
        colour = "#DCEBF7" if head else "#E5E5E5" if name.startswith("m") else "#FFFFFF"
        ax.text(
            x, y, name, ha="center", va="center", fontsize=7, zorder=3,
            bbox={"boxstyle": "round,pad=0.25", "fc": colour, "ec": "#555555", "lw": 0.7},
        )  # fmt: skip
    n_layers = circuit.config.n_layers
    used = sorted({round(y) for _, y in places.values()})
    ax.set_yticks(
        [y for y in used if 0 < y <= 2 * n_layers and y % 2 == 1],
        [f"layer {(y - 1) // 2}" for y in used if 0 < y <= 2 * n_layers and y % 2 == 1],
    )
    ax.tick_params(left=False)
    ax.set_xticks([])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.plot([], [], color=plotting.BLUE, label="corrupting it lowers the metric")
    ax.plot([], [], color=plotting.ORANGE, label="corrupting it raises the metric")
    ax.figure.legend(loc="outside lower center", ncols=2)


def place_nodes(circuit: Graph) -> dict[str, Place]:
    """Input below, then per layer its heads (odd rows) and its MLP to the right, logits on top."""
    n_layers = circuit.config.n_layers
    rows: dict[int, list[str]] = {}
    for name in (*circuit.sender_names, "logits"):
        if name not in circuit.nodes_in_graph():
            continue
        layer = int(re.sub(r"\D.*", "", name[1:]) or 0)
        row = {"i": 0, "l": 2 * n_layers + 1}.get(name[0], 2 * layer + (1 if name[0] == "a" else 2))
        rows.setdefault(row, []).append(name)
    places: dict[str, Place] = {}
    for row, names in rows.items():
        spacing = min(1.6, 14 / len(names))
        for number, name in enumerate(names):
            x = (number - (len(names) - 1) / 2) * spacing
            # Sideways steps keep vertical chains of MLPs apart.
            places[name] = (x + (3.2 * (-1) ** (row // 2) if name.startswith("m") else 0.0), row)
    return places


def receiving_nodes(circuit: Graph, node: str, places: dict[str, Place]) -> list[str]:
    """The drawn nodes behind a receiver: itself, or all heads that share a key/value head."""
    shared = re.fullmatch(r"a(\d+)\.kv(\d+)", node)
    if shared is None:
        return [node]
    config = circuit.config
    heads = [h for h in range(config.n_heads) if config.kv_head(h) == int(shared.group(2))]
    return [name for h in heads if (name := f"a{shared.group(1)}.h{h}") in places]


if __name__ == "__main__":
    cli.run(main)
