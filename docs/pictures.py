"""The pictures of the page of concepts, made from the toy model: python docs/pictures.py.

Every picture shows what the page says of it, with measured numbers: the graph with the edges out of
one head, the scores beside the exact values, a circuit, its faithfulness by size, and the same
circuits under three ablations.
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "pictures"
sys.path.insert(0, str(FOLDER.parents[1]))

import eap  # noqa: E402 - the folder must be known first
from eap.figures.circuit import draw_circuit  # noqa: E402
from eap.figures.style import BLUE, GREEN, GREY, ORANGE, styled  # noqa: E402

HEAD = "a1.h3"
SIZES = (10, 20, 40, 60, 80, 120, 200, 400, 800)


def place(name: str, n_layers: int) -> tuple[float, float]:
    """Where a node stands: layers upwards, heads beside each other, the MLP at their right."""
    if name in ("input", "logits"):
        return 3.5, -1.0 if name == "input" else 2.0 * n_layers
    layer, _, head = name[1:].partition(".h")
    return (float(head), 2.0 * int(layer)) if head else (8.5, 2.0 * int(layer) + 0.9)


@styled
def draw_graph(graph: eap.Graph) -> Figure:
    """All nodes of the toy model, every edge in grey, and the edges out of one head in blue."""
    figure, ax = plt.subplots(figsize=(5.2, 3.6))
    n_layers = graph.config.n_layers
    for edge in graph.full().edges():
        start, end = (place(name.split("<")[0], n_layers) for name in (edge.sender, edge.receiver))
        chosen = edge.sender == HEAD
        colour, width, order = (BLUE, 0.8, 2) if chosen else (GREY, 0.15, 1)
        ax.plot(*zip(start, end, strict=True), color=colour, linewidth=width, zorder=order)
    for name in [*graph.sender_names, "logits"]:
        x, y = place(name, n_layers)
        colour = BLUE if name == HEAD else "white"
        ax.plot(x, y, "o" if ".h" in name else "s", color="black", markerfacecolor=colour, zorder=3)
        if ".h" not in name or name == HEAD:
            below = (-12, -14) if name == HEAD else (7, -3)
            frame = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            ax.annotate(name, (x, y), below, textcoords="offset points", fontsize=8, bbox=frame)
    for layer in range(n_layers):
        ax.annotate(f"layer {layer}", (-0.6, 2.0 * layer), ha="right", va="center", fontsize=8)
    ax.set_xlim(-2.2, 10)
    ax.axis("off")
    return figure


@styled
def draw_scores(estimates: eap.Graph, exact: eap.Graph, names: list[str]) -> Figure:
    """The largest scores of two methods, beside the exact values of the same edges."""
    figure, ax = plt.subplots(figsize=(5.2, 3.2))
    rows = range(len(names))
    ax.barh(rows, [exact.score(name) for name in names], color="#D9D9D9", label="exact value")
    ax.plot([estimates.score(name) for name in names], rows, "s", color=BLUE, label="EAP-IG")
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_yticks(rows, names, fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("change of the logit difference when the edge is corrupted")
    ax.legend(fontsize=8)
    return figure


@styled
def draw_curves(curves: dict[str, tuple[str, list[int], list[float]]]) -> Figure:
    """Normalised faithfulness by the number of edges after pruning."""
    figure, ax = plt.subplots(figsize=(5.2, 3.0))
    ax.axhline(1, color="black", linewidth=0.6)
    ax.axhline(0, color="black", linewidth=0.6, linestyle=":")
    for label, (colour, edges, values) in curves.items():
        ax.plot(edges, values, marker="o", markersize=3, color=colour, label=label)
    ax.set_xscale("log")
    ax.set_xlabel("edges of the circuit (logarithmic)")
    ax.set_ylabel("normalised faithfulness")
    ax.legend(fontsize=8)
    return figure


def curve(
    model: eap.Model, graph: eap.Graph, dataset: eap.Dataset, ablation: str | eap.Mean | None = None
) -> tuple[list[int], list[float]]:
    """Sizes and normalised faithfulness of a ranking's greedy circuits."""
    circuits = [circuit.prune() for circuit in graph.greedy_circuits(SIZES)]
    circuits = [circuit for circuit in circuits if circuit.count_edges()]
    result = eap.faithfulness(model, circuits, dataset, ablation=ablation)
    return list(result.edges), [float(value) for value in result.normalised]


def save(figure: Figure, name: str) -> None:
    """Write a picture of few colours, small enough for the repository."""
    FOLDER.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(96).save(FOLDER / f"{name}.png", optimize=True)


def main() -> None:
    """Draw all five."""
    model = eap.load_model("toy")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=60)
    graph = eap.attribute(model, dataset, method="EAP-IG", metric="logit_diff")
    save(draw_graph(graph), "graph")
    best = graph.top_n(12)
    exact = eap.patch_edges(model, dataset, edges=best.in_graph)["logit_diff"]
    names = sorted(best.edge_names(), key=graph.score)
    save(draw_scores(graph, exact, names), "scores")
    small = graph.greedy(25).prune()
    found = eap.faithfulness(model, small, dataset)
    measured = (float(found.normalised[0]), float(found.standard_error[0]))
    save(draw_circuit(small, title="IOI in the toy model", faithfulness=measured), "circuit")
    simple = eap.attribute(model, dataset, method="EAP", metric="logit_diff")
    resampled = curve(model, graph, dataset)
    by_method = {"EAP-IG": (BLUE, *resampled), "EAP": (ORANGE, *curve(model, simple, dataset))}
    save(draw_curves(by_method), "faithfulness")
    mean = eap.Mean.over_dataset(model, dataset)
    by_ablation = {
        "resample": (BLUE, *resampled),
        "mean": (GREEN, *curve(model, graph, dataset, mean)),
        "zero": (GREY, *curve(model, graph, dataset, "zero")),
    }
    save(draw_curves(by_ablation), "ablation")


if __name__ == "__main__":
    main()
