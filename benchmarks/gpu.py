"""Costs on one device, as multiples of the bare model's forward and backward pass.

    python benchmarks/gpu.py                                   on a GPU: four shapes, random weights
    python benchmarks/gpu.py --shapes gpt2 --device cpu --pairs 4

Rows: each attribution method, one circuit and a sweep of circuits, exact values, one step of a
learned ranking, and peak memory besides the weights (on CUDA). A pair has 16 tokens, and its
prompts differ from position 10 on. The bare model runs the same pairs in the same batch. Runs
alternate, and the median is reported.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from measuring import floor_runs, random_pairs, seconds, some_edges

import eap
from eap.data.dataset import Dataset
from eap.methods import METHODS
from eap.studies import shell

N_POSITIONS, FIRST_DIFFERENCE = 16, 10
N_EDGES = 200
"""Approximate number of edges that get exact values."""

SHAPES: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "tiny": lambda: transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=500, bos_token_id=0, eos_token_id=0
    ),
    "gpt2": transformers.GPT2Config,
    "gpt2-xl": lambda: transformers.GPT2Config(n_layer=48, n_head=25, n_embd=1600),
    "pythia-2.8b": lambda: transformers.GPTNeoXConfig(
        num_hidden_layers=32, num_attention_heads=32, hidden_size=2560, intermediate_size=10240,
        vocab_size=50304, use_parallel_residual=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    ),
    "llama-3-8b": lambda: transformers.LlamaConfig(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096,
        intermediate_size=14336, vocab_size=128256, max_position_embeddings=8192,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A model with random weights, bare and as loaded by the engine, and pairs for it."""

    bare: transformers.PreTrainedModel
    model: eap.Model
    pairs: Dataset


def make_bench(shape: str, device: str, dtype: torch.dtype, n_pairs: int) -> Bench:
    """Make the model of a shape on a device; the engine uses a copy of the weights."""
    torch.manual_seed(0)
    config = SHAPES[shape]()
    bare = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    bare = bare.to(device).eval().requires_grad_(False)
    model = eap.load_model(bare, tokenizer=None, device=device, dtype=str(dtype).split(".")[1])
    pairs = random_pairs(n_pairs, FIRST_DIFFERENCE, N_POSITIONS, 10, config.vocab_size - 1)
    return Bench(bare, model, pairs)


def works(bench: Bench, methods: list[str]) -> dict[str, tuple[Callable[[], object], int]]:
    """Rows by name: function to run, and number that its time is divided by."""
    model, pairs, n = bench.model, bench.pairs, len(bench.pairs)
    options: dict[str, Any] = {"batch_size": n}
    graph = eap.attribute(model, pairs, method="EAP", metric="logit_diff", **options)
    share = max(1, graph.n_edges // 100)
    sizes = [max(1, share * k // 20) for k in range(1, 21)]
    circuits = [circuit.prune() for circuit in graph.greedy_circuits(sizes)]
    share_of_edges = min(1.0, N_EDGES / graph.n_edges)
    edges = some_edges(graph, share_of_edges, torch.Generator().manual_seed(2))

    def attribution(name: str) -> Callable[[], object]:
        metric = "logit_diff" if METHODS[name].uses_metric else None
        return lambda: eap.attribute(model, pairs, method=name, metric=metric, **options)

    rows: dict[str, tuple[Callable[[], object], int]] = {
        name: (attribution(name), 1) for name in methods
    }
    rows["one circuit"] = (lambda: eap.evaluate(model, circuits[-1], pairs, **options), 1)
    rows["a circuit of 20"] = (lambda: eap.evaluate(model, circuits, pairs, **options), 20)
    rows["exact, an edge"] = (
        lambda: eap.patch_edges(model, pairs, metrics=["logit_diff"], edges=edges, **options),
        int(edges.sum()),
    )
    recipe = eap.Recipe(steps=5, pairs=n)
    rows["MAttr, a step"] = (lambda: eap.learn_ranking(model, pairs, recipe=recipe), 5)
    return rows


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call in seconds, until all its work on the device has finished."""

    def to_the_end() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return seconds(to_the_end)


def peak(run: Callable[[], object], device: torch.device) -> str:
    """Additional memory in GiB; "-" if the device does not report memory."""
    if device.type != "cuda":
        return "-"
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return f"{(torch.cuda.max_memory_allocated(device) - before) / 2**30:.2f}"


def main() -> None:
    """Measure, and print one table per shape."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    shapes = [name for name in SHAPES if name != "tiny"]
    add("--shapes", nargs="+", choices=SHAPES, default=shapes)
    add("--device", default="cuda")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--tf32", action="store_true", help="use TensorFloat-32 for matrix products")
    add("--pairs", type=shell.positive, default=16)
    add("--repeats", type=shell.positive, default=5)
    known = [name for name in METHODS if name != "exact"]
    add("--methods", nargs="+", choices=known, default=known)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise eap.UserError("no CUDA device is here; give --device cpu")
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    for shape in args.shapes:
        bench = make_bench(shape, args.device, getattr(torch, args.dtype), args.pairs)
        device, both = bench.model.device, floor_runs(bench.bare, bench.pairs)[1]
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        shell.say(
            f"\n{shape}, {args.dtype}{', TF32' if args.tf32 else ''}, {args.pairs} pairs of "
            f"{N_POSITIONS} tokens that differ from position {FIRST_DIFFERENCE}, on {name}\n\n"
            "| what | times the bare model's passes | milliseconds | peak, GiB |\n|---|---|---|---|"
        )
        for what, (run, parts) in works(bench, args.methods).items():
            run()
            both()
            measured = [
                (timed(run, device) / parts, timed(both, device)) for _ in range(args.repeats)
            ]
            ratios = [own / bare for own, bare in measured]
            own = statistics.median(own for own, _ in measured)
            shell.say(
                f"| {what} | {statistics.median(ratios):.3g} ({min(ratios):.3g} to "
                f"{max(ratios):.3g}) | {1000 * own:.1f} | {peak(run, device)} |"
            )
        del bench


if __name__ == "__main__":
    shell.run(main)
