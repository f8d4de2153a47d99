"""Speed of this version against another checkout of the project, measured by turns.

    git worktree add ../other e596727
    python benchmarks/against.py ../other

Each version is a process of its own that sets up the same work: attribution, a sweep, exact
values, large graphs and the toy model. The processes take turns, so that both meet the same
machine. A ratio is the other version's time divided by the time of this version, for each turn:
above 1, this version is faster. Printed are the median over turns, the lowest and the highest.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


# ---- one version's process -----------------------------------------------------------------------


def works() -> dict[str, Callable[[], Callable[[], object]]]:
    """Each work's name, and a function that sets it up and returns the function to be timed.

    Only what both versions have is called: the public package and the folder `benchmarks/` of the
    checkout.
    """
    import torch

    import eap

    shape: Any = importlib.import_module("shape")
    measuring: Any = importlib.import_module("measuring")
    graphs: Any = importlib.import_module("eap.graph.graph")
    bench = shape.Bench()
    edge_config = graphs.GraphConfig(48, 25, 1600, 25)
    patch_edges: Any = importlib.import_module("eap.patching").patch_edges

    def attribution(method: str, first: int) -> Callable[[], object]:
        data = bench.data(16, first)
        return lambda: eap.attribute(bench.model, data, method=method, batch_size=16)

    def sweep(first: int) -> Callable[[], object]:
        data = bench.data(64, first)
        graph = eap.attribute(bench.model, data.head(16), method="EAP-IG")
        circuits = [graph.greedy(n).prune() for n in (*range(30, 100, 10), *range(100, 1001, 100))]
        return lambda: eap.evaluate(bench.model, circuits, data, metrics=["logit_diff"])

    def exact(first: int) -> Callable[[], object]:
        data = bench.data(8, first)
        generator = torch.Generator().manual_seed(0)
        chosen = measuring.some_edges(graphs.Graph.from_model(bench.model), 0.03, generator)
        metrics = measuring.ALL_METRICS
        return lambda: patch_edges(bench.model, data, metrics=metrics, edges=chosen)

    def large_graph(save: bool) -> Callable[[], object]:
        graph = graphs.Graph.from_config(edge_config)
        scores = torch.randn(graph.scores.shape, generator=torch.Generator().manual_seed(0))
        graph = graphs.Graph(edge_config, scores, graph.in_graph)
        path = Path(f"/tmp/graph-{os.getpid()}.safetensors")

        def through_a_file() -> None:
            graph.save(path)
            graphs.Graph.load(path)
            path.unlink()

        return through_a_file if save else lambda: graph.greedy(90_000).prune()

    def toy(what: str) -> Callable[[], object]:
        model = eap.load_model("toy", device="cpu")
        data = eap.load_dataset("ioi", model.tokenizer).head(32)
        if what == "exact":
            return lambda: patch_edges(model, data, metrics=measuring.ALL_METRICS)
        return lambda: eap.attribute(model, data, method=what)

    return {
        **{
            f"{method}, difference at position {first}": partial(attribution, method, first)
            for method in ("EAP", "EAP-IG")
            for first in (1, 8, 10)
        },
        **{
            f"17 circuits, difference at position {first}": partial(sweep, first)
            for first in (1, 10)
        },
        **{
            f"exact values, difference at position {first}": partial(exact, first)
            for first in (10, 1)
        },
        "graph of 2.2 million edges, greedy 90,000 and prune": partial(large_graph, False),
        "graph of 2.2 million edges, save and load": partial(large_graph, True),
        "toy, EAP": partial(toy, "EAP"),
        "toy, EAP-IG": partial(toy, "EAP-IG"),
        "toy, exact values of all edges": partial(toy, "exact"),
    }


def serve(threads: int | None) -> None:
    """Names are read from standard input; the time of each work is written, in seconds."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the package prints must not be read as an answer
    known = works()
    print("\n".join(known), "", sep="\n", file=answers)
    name = ""
    run: Callable[[], object] = bool
    for line in sys.stdin:
        if line.strip() != name:
            name = line.strip()
            run = known[name]()
            run()  # the first call fills caches
        begun = time.perf_counter()
        run()
        print(time.perf_counter() - begun, file=answers)


# ---- both versions -------------------------------------------------------------------------------


class Version:
    """The process of one checkout."""

    def __init__(self, root: Path, threads: int | None) -> None:
        self.root = root
        path = os.pathsep.join([str(root), str(root / "benchmarks")])
        command = [sys.executable, str(Path(__file__).resolve()), str(root), "--serve"]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [*command, *(["--threads", str(threads)] if threads else [])],
            cwd=root, env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.names = list(iter(self._line, ""))

    def seconds(self, name: str) -> float:
        """Time of one run of a work."""
        assert self.process.stdin
        print(name, file=self.process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.root} ended")
        return line.strip()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="folder of the other version's checkout")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each work")
    parser.add_argument("--threads", type=int, help="threads (default: torch's choice)")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of works")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.other / "eap").is_dir():
        parser.error(f"{args.other} is no checkout of this project: it has no folder eap")
    if args.serve:
        sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).parent.resolve()]
        sys.path[:0] = [str(args.other), str(args.other / "benchmarks")]
        serve(args.threads)
        return
    ours, other = (Version(root.resolve(), args.threads) for root in (ROOT, args.other))
    print("| work | this version, s | the other, s | times faster |\n| --- | --- | --- | --- |")
    for name in ours.names:
        if not any(part in name for part in args.only):
            continue
        turns = []
        for turn in range(args.repeats):  # each begins half of the turns
            first, second = (ours, other) if turn % 2 else (other, ours)
            pair = first.seconds(name), second.seconds(name)
            turns.append(pair if first is ours else pair[::-1])
        ratios = sorted(b / a for a, b in turns)
        own, others = (statistics.median(side) for side in zip(*turns, strict=True))
        print(
            f"| {name} | {own:.3g} | {others:.3g} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
