"""Two processes with one thread each, compared with one process with two threads.

    python benchmarks/processes.py --launches 3

The model has random weights in the shape of GPT-2 small. There are 32 pairs of 16 tokens that
differ from position 10 on (exact values: some 130 edges, four metrics, 8 pairs). Launches of both
kinds alternate, on one machine. Each launch measures every function three times. The output is the
median over all measurements, and the growth of each process's resident set besides the weights.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
from measuring import ALL_METRICS, seconds, some_edges
from shape import Bench

import eap
from eap.patching import patch_edges
from eap.runtime import processes
from eap.studies import shell

REPEATS = 3
WAYS = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}


def works(bench: Bench) -> dict[str, Callable[[], object]]:
    """Functions to measure, by name."""
    pairs, few = bench.data(32, 10), bench.data(8, 10)
    graph = eap.attribute(bench.model, pairs, method="EAP", quiet=True)
    circuits = [graph.greedy(n).prune() for n in range(200, 4001, 200)]
    chosen = some_edges(graph, 0.004, torch.Generator().manual_seed(0))
    return {
        "EAP": partial(eap.attribute, bench.model, pairs, method="EAP", quiet=True),
        "EAP-IG": partial(eap.attribute, bench.model, pairs, quiet=True),
        "20 circuits": partial(eap.evaluate, bench.model, circuits, pairs, quiet=True),
        "exact": partial(
            patch_edges, bench.model, few, metrics=ALL_METRICS, edges=chosen, quiet=True
        ),
    }  # fmt: skip


def resident() -> int:
    """Largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure() -> None:
    """Run in a launched process: print the time of every function, and the growth of memory."""
    bench = Bench()
    before = resident()
    times = {}
    for name, run in works(bench).items():
        run()
        times[name] = [seconds(run) for _ in range(REPEATS)]
    if processes.rank() == 0:
        print(json.dumps({"times": times, "bytes": resident() - before}))


def launch(n_processes: int, n_threads: int) -> tuple[dict[str, list[float]], int]:
    """Measurements of the first process of one launch."""
    python = [sys.executable]
    if n_processes > 1:
        python += ["-m", "torch.distributed.run", "--standalone"]
        python += ["--nproc_per_node", str(n_processes)]
    done = subprocess.run(
        [*python, __file__, "--worker"],
        env={**os.environ, "OMP_NUM_THREADS": str(n_threads)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return found["times"], found["bytes"]


def main() -> None:
    """Launch, measure and print."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--launches", type=shell.positive, default=3, help="number of launches of each kind"
    )
    parser.add_argument("--worker", action="store_true", help="measure in this process; print JSON")
    args = parser.parse_args()
    if args.worker:
        measure()
        return
    found: dict[str, list[tuple[dict[str, list[float]], int]]] = {way: [] for way in WAYS}
    for _ in range(args.launches):
        for way, numbers in WAYS.items():
            found[way].append(launch(*numbers))
    one, two = found.values()
    print("| work | " + " | ".join(WAYS) + " | times faster |\n| --- | --- | --- | --- |")
    for name in one[0][0]:
        a, b = ([s for times, _ in way for s in times[name]] for way in (one, two))
        ratio = statistics.median(a) / statistics.median(b)
        spread = [f"{statistics.median(s):.2f} s ({min(s):.2f} to {max(s):.2f})" for s in (a, b)]
        print(f"| {name} | {' | '.join(spread)} | {ratio:.2f} |")
    sizes = [max(size for _, size in way) / 2**20 for way in (one, two)]
    print(f"| memory of a process beside its weights | {sizes[0]:.0f} MiB | {sizes[1]:.0f} MiB | |")


if __name__ == "__main__":
    shell.run(main)
