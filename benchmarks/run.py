"""Speed of the package, measured as ratios of alternating runs in one process.

    python benchmarks/run.py                      everything, about half an hour on 2 cores
    python benchmarks/run.py --only toy exact     some parts

The model has random weights in the shape of GPT-2 small, in float32, unless a row says otherwise.
Every ratio is the median over repetitions in which both functions run one after the other; the
spread is the range from lowest to highest. Results are written to
benchmarks/results/<machine>.json, from which benchmarks/table.py makes the README's table.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from growth import growth
from limits import with_limits
from measuring import (
    ALL_METRICS,
    Row,
    floor_runs,
    logit_diff_loss,
    plain_value,
    ratio,
    seconds,
    side_by_side,
    some_edges,
    tensors,
)
from memory_growth import memory
from shape import Bench
from split_way import eap_ig, evaluate, patch_edge, plain, prepare, record_senders
from torch import Tensor

import eap
from eap.data.answers import Answers
from eap.data.batches import one_group
from eap.data.dataset import Dataset, load_dataset
from eap.graph import contents, numbering
from eap.graph.graph import Graph, GraphConfig
from eap.metrics.metric import METRICS
from eap.model.directory import TOY_MODEL
from eap.model.loading import load_model
from eap.patching import count_operations, make_plan, patch_edges
from eap.runtime.atomic import write_atomically
from eap.runtime.resources import Resources
from eap.studies import shell

# ---- the parts -----------------------------------------------------------------------------------


def attribution(bench: Bench, repeats: int) -> list[Row]:
    """EAP and EAP-IG, compared with the bare model and with split inputs."""
    rows = []
    for first, where in ((1, "position 1"), (8, "the middle"), (10, "two thirds")):
        data = bench.data(16, first)
        clean, corrupted, right, wrong = tensors(data)
        loss, config = logit_diff_loss(right, wrong), bench.model.config
        forward, both = floor_runs(bench.bare, data)
        for method, points in (("EAP", [1.0]), ("EAP-IG", [k / 5 for k in range(1, 6)])):

            def ours(method: str = method, data: Dataset = data) -> None:
                eap.attribute(bench.model, data, method=method, batch_size=16)

            def floor(n: int = len(points), forward: Any = forward, both: Any = both) -> None:
                forward()
                forward()
                for _ in range(n):
                    both()

            def split(
                points: list[float] = points, c: Any = clean, d: Any = corrupted, f: Any = loss
            ) -> None:
                eap_ig(bench.bridge, config, c, d, f, points)

            pairs = side_by_side(ours, floor, repeats)
            inverse = [(other, own) for own, other in pairs]
            limit = {1: "<= 1.25", 10: "<= 0.6"}.get(first, "") if method == "EAP-IG" else ""
            name = f"{method}, difference at {where}"
            row = ratio("floor", f"{name}: time of the floor's", inverse, target=limit)
            rows.append(with_limits(row, ours, row.detail["other_seconds"]))
            prepare(bench.bridge)
            pairs = side_by_side(ours, split, repeats)
            plain(bench.bridge)
            limit = {1: ">= 1.6", 10: ">= 4"}.get(first, "") if method == "EAP-IG" else ""
            rows.append(ratio("split", f"{name}: faster than split", pairs, target=limit))
    return rows


def sweep(bench: Bench, repeats: int) -> list[Row]:
    """A Pareto sweep of 51 circuits on 64 pairs, compared with single circuits on split inputs."""
    rows = []
    sizes = [*range(30, 100, 10), *range(100, 1001, 100)]
    for first, where, limit in ((1, "position 1", ">= 3"), (10, "two thirds", ">= 7")):
        data = bench.data(64, first)
        clean, corrupted, _, _ = tensors(data)
        scored = [
            eap.attribute(bench.model, data.head(16), method=method, metric=metric)
            for method, metric in (
                ("EAP", "logit_diff"),
                ("EAP-IG", "logit_diff"),
                ("EAP-IG", "kl"),
            )
        ]
        circuits = [graph.greedy(n).prune() for graph in scored for n in sizes]
        sample = circuits[::10]  # the split way is timed on every tenth circuit

        def ours(data: Dataset = data, circuits: list[Graph] = circuits) -> None:
            eap.evaluate(bench.model, circuits, data, metrics=["logit_diff"])

        def split(c: Tensor = clean, d: Tensor = corrupted, sample: list[Graph] = sample) -> None:
            for circuit in sample:
                for start in range(0, len(c), 16):
                    part = slice(start, start + 16)
                    evaluate(bench.bridge, bench.model.config, c[part], d[part], circuit.in_graph)

        prepare(bench.bridge)
        pairs = side_by_side(ours, split, repeats)
        plain(bench.bridge)
        share = len(circuits) / len(sample)
        scaled = [(own, other * share) for own, other in pairs]
        name = f"51 circuits, 64 pairs, difference at {where}: faster than one by one, split"
        swept = ratio("sweep", name, scaled, target=limit)
        rows.append(with_limits(swept, ours, swept.detail["seconds"]))
    return rows


def exact(bench: Bench, repeats: int) -> list[Row]:
    """Exact patching, compared with one run on split inputs per edge and with the peak speed."""
    rows = []
    n_sampled = 24
    for first, where, limit in ((10, "position 10", ">= 20"), (1, "position 1", ">= 9")):
        data = bench.data(8, first)
        clean, corrupted, _, _ = tensors(data)
        config = bench.model.config
        graph = Graph.from_model(bench.model)
        every = graph.edge_exists.nonzero()
        generator = torch.Generator().manual_seed(0)
        chosen = some_edges(graph, 0.03, generator)
        sampled = every[torch.randperm(len(every), generator=generator)[:n_sampled]].tolist()
        prepare(bench.bridge)
        on_clean, _ = record_senders(bench.bridge, config, clean)
        on_corrupted, _ = record_senders(bench.bridge, config, corrupted)
        differences = on_corrupted - on_clean
        answers = Answers.of(data.examples, range(len(data)), torch.device("cpu"))

        def ours(data: Dataset = data, chosen: Tensor = chosen) -> None:
            patch_edges(bench.model, data, metrics=ALL_METRICS, edges=chosen)

        def split(
            c: Tensor = clean, differences: Tensor = differences,
            sampled: list[list[int]] = sampled, answers: Any = answers,
        ) -> None:  # fmt: skip
            base = bench.bridge(c, prepend_bos=False)[:, -1]
            for u, v in sampled:
                logits = patch_edge(bench.bridge, config, c, differences, u, v)
                for name in ALL_METRICS:
                    METRICS[name](logits, base, answers)

        pairs = side_by_side(ours, split, repeats)
        plain(bench.bridge)
        n_ours = int(chosen.sum())
        scaled = [(own / n_ours, other / len(sampled)) for own, other in pairs]
        name = f"exact patching, difference at {where}: edges per second against one run per edge"
        patched = ratio("exact", name, scaled, target=limit)
        rows.append(with_limits(patched, ours, statistics.median(own for own, _ in pairs)))
    return rows


def layers(_: Bench, repeats: int) -> list[Row]:
    """Exact patching by number of layers, compared with the predicted number of operations."""
    rows = []
    base: tuple[float, float] | None = None
    for n_layers in (2, 4, 8, 12):
        bench = Bench(n_layers)
        data = bench.data(8, 10)
        graph = Graph.from_model(bench.model)
        generator = torch.Generator().manual_seed(0)
        chosen = some_edges(graph, min(1.0, 1000 / graph.n_edges), generator)
        plan = make_plan(bench.model, data, ALL_METRICS, chosen, Resources())
        operations, n_edges = count_operations(plan, plan.units), int(plan.edges.sum())
        patch = partial(patch_edges, bench.model, data, metrics=ALL_METRICS, edges=chosen)
        patch()
        times = [seconds(patch) for _ in range(repeats)]
        each = statistics.median(times) / n_edges
        per_edge = operations / n_edges
        base = base or (each, per_edge)
        rows.append(
            plain_value(
                "layers", f"exact patching, {n_layers} layers: time per edge of that with 2 layers",
                [t / n_edges / base[0] for t in times],
                detail={"predicted": per_edge / base[1], "milliseconds": 1000 * each},
            )
        )  # fmt: skip
    return rows


def graphs(_: Bench, repeats: int) -> list[Row]:
    """Construction, selection, pruning and files of large graphs."""
    rows = []
    shapes = {
        "32 thousand": (GraphConfig(12, 12, 768, 12), 1000),
        "2.2 million": (GraphConfig(48, 25, 1600, 25), 90_000),
        "10 million": (GraphConfig(80, 32, 4096, 32), 400_000),
    }
    folder = Path("/tmp") if Path("/tmp").is_dir() else Path()
    for name, (config, n) in shapes.items():
        for table in (numbering.reads, contents.edge_exists, contents.receiver_of):
            table.cache_clear()
        build = seconds(partial(Graph.from_config, config))
        graph = Graph.from_config(config)
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(graph.scores.shape, generator=generator)
        graph = Graph(config, scores, graph.in_graph)

        def cut_out(graph: Graph = graph, n: int = n) -> Graph:
            return graph.greedy(n).prune()

        select = [seconds(cut_out) for _ in range(repeats)]
        path = folder / "benchmark-graph.safetensors"
        save = [seconds(partial(graph.save, path)) for _ in range(repeats)]
        load = [seconds(partial(Graph.load, path)) for _ in range(repeats)]
        path.unlink()
        big = name == "2.2 million"
        row = lambda what, values, target: plain_value(
            "graphs", f"graph of {name} edges: {what}", values, unit="s", target=target
        )
        rows += [
            row("build", [build], "<= 0.5" if big else ""),
            row(f"greedy {n:,} and prune", select, "<= 2" if big else ""),
            row("save", save, "<= 1" if big else ""),
            row("load", load, "<= 1" if big else ""),
        ]
    return rows


def toy(_: Bench, repeats: int) -> list[Row]:
    """Overhead on a small model: one step of EAP-IG, and exact patching of all edges."""
    model = load_model("toy", device="cpu")
    data = load_dataset("ioi", model.tokenizer).head(32)
    bare = transformers.AutoModelForCausalLM.from_pretrained(
        TOY_MODEL, dtype=torch.float32, attn_implementation="sdpa"
    ).eval().requires_grad_(False)  # fmt: skip
    group = one_group(data.examples)
    data = Dataset(data.task, tuple(e for e in data.examples if len(e.clean) == group.end))
    both = floor_runs(bare, data)[1]
    steps = 5

    def ours() -> None:
        eap.attribute(model, data, method="EAP-IG", steps=steps, batch_size=32)

    def floor() -> None:
        for _ in range(steps):
            both()

    pairs = [(other, own) for own, other in side_by_side(ours, floor, repeats)]
    what = "toy, one step of EAP-IG on a batch: time of the floor's"
    rows = [ratio("toy", what, pairs, target="<= 2")]
    rows[0] = with_limits(rows[0], ours, rows[0].detail["other_seconds"])
    hundred = load_dataset("ioi", model.tokenizer).head(100)
    every = partial(patch_edges, model, hundred, metrics=ALL_METRICS)
    times = [seconds(every) for _ in range(2)]
    what = "toy, exact values of all edges, 100 ioi pairs"
    row = plain_value("toy", what, times, unit="s", target="<= 60")
    return [*rows, with_limits(row, every, row.value)]


PARTS: dict[str, Callable[[Bench, int], list[Row]]] = {
    "memory": memory,
    "graphs": graphs,
    "toy": toy,
    "attribution": attribution,
    "sweep": sweep,
    "exact": exact,
    "layers": layers,
    "growth": growth,
}


def main() -> None:
    """Measure and print."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=shell.positive, default=5)
    parser.add_argument("--threads", type=shell.positive, help="threads (default: torch's choice)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<machine>.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench()
    rows: list[Row] = []
    for part in args.only:
        for row in PARTS[part](bench, args.repeats):
            rows.append(row)
            spread = "" if row.low == row.high else f" ({row.low:.3g} to {row.high:.3g})"
            target = f"   [{row.target}]" if row.target else ""
            print(f"{row.what}: {row.value:.3g}{row.unit}{spread}{target}", flush=True)
    machine = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    name = f"{machine['processor']} {machine['threads']} threads".lower().replace(" ", "-")
    path = args.output or Path(__file__).resolve().parent / "results" / f"{name}.json"
    measured = [asdict(row) for row in rows]
    if path.exists():  # of parts that were not measured now, the earlier rows stay
        now = {row["part"] for row in measured}
        earlier = json.loads(path.read_text(encoding="utf8"))["rows"]
        measured = [row for row in earlier if row["part"] not in now] + measured
    with write_atomically(path) as temporary:
        document = {"machine": machine, "rows": measured}
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf8")
    print(f"wrote {shell.shown(path)}")


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


if __name__ == "__main__":
    shell.run(main)
