"""Estimated costs of large models: bytes, passes and time on one GPU of 80 GB.

    python benchmarks/plan_large.py

Bytes are those of the planner (`eap.runtime.memory`), which chooses batch sizes. Operations are
counted. Time assumes that matrix products reach a share of the peak of an A100: 40% of 312 TFLOPS
in bfloat16 for the model, and 60% of 19.5 TFLOPS in float32 for the contraction. No model is run.
"""

from dataclasses import dataclass

from eap.graph.graph import Graph, GraphConfig
from eap.runtime.cost import layer_operations, patching_operations
from eap.runtime.memory import Budget, Extent, Need, Shapes, attribution_need

GPU_BYTES = 80e9
BFLOAT16_RATE, FLOAT32_RATE = 0.4 * 312e12, 0.6 * 19.5e12
PAIRS, N_KEYS, N_POSITIONS, STEPS = 1000, 16, 6, 5
MOST_TOKENS = 32768
EXTENT = Extent(PAIRS, N_POSITIONS, N_KEYS)


@dataclass(frozen=True)
class Large:
    """A published model: name, number of parameters, shapes."""

    name: str
    parameters: float
    shapes: Shapes


MODELS = (
    Large("GPT-2 XL", 1.56e9, Shapes(48, 25, 25, 1600, 64, 6400, 50257, False, False)),
    Large("Pythia 2.8B", 2.78e9, Shapes(32, 32, 32, 2560, 80, 10240, 50304, False, True)),
    Large("Llama 3 8B", 8.03e9, Shapes(32, 32, 8, 4096, 128, 14336, 128256, True, False)),
)


def main() -> None:
    """Print the table as Markdown."""
    print(
        f"{PAIRS} pairs of {N_KEYS} tokens that differ from position {N_KEYS - N_POSITIONS} on; "
        f"EAP-IG with {STEPS} steps; weights in bfloat16; half of what they leave is the budget.\n"
    )
    columns = ["model", "edges", "weights", "a pair's bytes", "batch", "points at once", "memory"]
    columns += ["passes", "EAP-IG", "50 circuits", "all edges, exact"]
    print(f"| {' | '.join(columns)} |\n| {' | '.join(['---'] * len(columns))} |")
    for model in MODELS:
        print(f"| {' | '.join(row(model))} |")


def row(model: Large) -> list[str]:
    """Table row of one model."""
    shapes = model.shapes
    graph = Graph.from_config(
        GraphConfig(
            shapes.n_layers, shapes.n_heads, shapes.d_model, shapes.n_kv_heads, shapes.parallel
        )
    )
    weights = 2 * model.parameters
    cells = graph.config.n_forward * graph.config.n_backward

    def need(extent: Extent) -> Need:
        return attribution_need(shapes, extent, STEPS, n_columns=2)

    # The GPU's free memory is what the weights leave.
    budget = Budget(int(GPU_BYTES - weights) // 2, MOST_TOKENS, reserved=40 * cells)
    batch = budget.batch_size([EXTENT], need, "attribution")
    extent = Extent(batch, N_POSITIONS, N_KEYS)
    points = min(STEPS, budget.runs_at_once(extent, need(extent), "attribution"))
    taken = budget.bytes_of(extent, need(extent), points)
    # The prefix, the corrupted prompts, and forward and backward of each stack of points.
    passes = -(-PAIRS // batch) * (2 + 2 * -(-STEPS // points))

    def layers(n_positions: int) -> float:
        extent = Extent(1, n_positions, N_KEYS)
        own = layer_operations(shapes, extent, n_queries=n_positions)
        return 2 * shapes.n_layers * own

    prefix, suffix = layers(N_KEYS - N_POSITIONS), layers(N_POSITIONS)
    unembedding = 2 * shapes.d_model * shapes.d_vocab
    run = PAIRS * (prefix + (2 + 2 * STEPS) * suffix + 2 * STEPS * unembedding)
    contraction = PAIRS * 2 * graph.n_edges * N_POSITIONS * shapes.d_model
    attribution = run / BFLOAT16_RATE + contraction / FLOAT32_RATE
    # At the most: circuits that run every node, each reading from all senders before it.
    circuits = 50 * (PAIRS * (suffix + unembedding) / BFLOAT16_RATE + contraction / FLOAT32_RATE)
    exact = PAIRS * exact_operations(shapes, graph.config) / BFLOAT16_RATE
    return [
        model.name,
        f"{graph.n_edges:,}",
        f"{weights / 1e9:.1f} GB",
        f"{taken / batch / 1e6:.0f} MB",
        str(batch),
        str(points),
        f"{(weights + taken) / 1e9:.0f} GB",
        str(passes),
        spoken(attribution),
        spoken(circuits),
        spoken(exact),
    ]


def exact_operations(shapes: Shapes, config: GraphConfig) -> float:
    """Operations of patching every edge on one pair."""
    total = 0
    for layer in range(config.n_layers):
        counts = {kind: config.n_receivers(kind) for kind in "qkv"}
        edges = {k: n * config.senders_before(layer, "attention") for k, n in counts.items()}
        edges["mlp"] = config.senders_before(layer, "mlp")
        for kind, n in edges.items():
            one = patching_operations(shapes, EXTENT, layer, kind, n_columns=shapes.d_vocab)
            total += n * one
    return 2.0 * (total + config.n_forward * shapes.d_model * shapes.d_vocab)


def spoken(seconds: float) -> str:
    """Format a time for readers."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
