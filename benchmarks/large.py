"""Large shapes with random weights, measured on a CPU: time, and memory compared with the plan.

    python benchmarks/large.py                                  GPT-2 XL and Pythia 2.8B
    python benchmarks/large.py --shapes gpt2 --dtypes float32 --budgets 0.5

Uses one thread. Every measurement runs in a child process, forked from the process that has loaded
the model. Memory that the allocator kept from an earlier measurement is therefore not reused
unnoticed, and the weights are in memory only once. Time is a multiple of one forward and backward
pass of the bare model on the same pairs. Memory is the growth of the child's resident set, shown
with the memory budget and with the number of bytes that was planned (`Work.n_bytes`).
"""

import argparse
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import psutil
import torch
from gpu import N_POSITIONS, SHAPES, Bench, make_bench
from measuring import floor_runs, seconds, some_edges

import eap
from eap.engine.prepared import Work
from eap.studies import shell

N_EDGES = 60
N_CIRCUITS = 20
Measured = tuple[float, int, int]
"""Time in seconds, growth of the resident set, and planned bytes."""


def main() -> None:
    """Print one table per shape and data type."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", nargs="+", choices=SHAPES, default=["gpt2-xl", "pythia-2.8b"])
    add("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    add("--budgets", nargs="+", type=float, default=[1, 2, 4], help="memory budgets, in GiB")
    add("--pairs", type=shell.positive, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for shape in args.shapes:
        for dtype in args.dtypes:
            print_table(shape, dtype, args.budgets, args.pairs)


def print_table(shape: str, dtype: str, budgets: list[float], n_pairs: int) -> None:
    """Print the rows of one shape, for each budget."""
    resident = psutil.Process().memory_info().rss
    begun = time.perf_counter()
    bench = make_bench(shape, "cpu", getattr(torch, dtype), n_pairs)
    weights = sum(p.numel() * p.element_size() for p in bench.bare.parameters())
    grown = psutil.Process().memory_info().rss - resident
    both = floor_runs(bench.bare, bench.pairs)[1]
    bare_pass = in_child(both)
    assert not isinstance(bare_pass, str)
    floor = bare_pass[0]
    shell.say(
        f"\n**{shape}, {dtype}**: {gib(weights)} GiB of weights; the model made and loaded in "
        f"{time.perf_counter() - begun - floor:.0f} s, {gib(grown)} GiB resident; {n_pairs} pairs "
        f"of {N_POSITIONS} tokens; the bare model's pass takes {floor:.1f} s.\n\n"
        "| what | budget, GiB | times the bare model's pass | promised, GiB | seen, GiB |\n"
        "|---|---|---|---|---|"
    )
    for budget in budgets:
        for what, run in works(bench, int(budget * 2**30)):
            measured = in_child(run)
            if isinstance(measured, str):
                shell.say(f"| {what} | {budget:g} | refused: {measured} | | |")
            else:
                took, seen, promised = measured
                shell.say(
                    f"| {what} | {budget:g} | {took / floor:.2f} | {gib(promised)} | {gib(seen)} |"
                )
            sys.stdout.flush()


def works(bench: Bench, budget: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Functions to run within a budget, by name of the row."""
    model, pairs = bench.model, bench.pairs
    options: dict[str, Any] = {"memory_budget": budget, "quiet": True}
    generator = torch.Generator().manual_seed(0)
    unscored = eap.Graph.from_model(model)
    graph = replace(unscored, scores=torch.randn(unscored.scores.shape, generator=generator))
    largest = graph.n_edges // 20
    circuits = [graph.greedy(largest * k // N_CIRCUITS).prune() for k in range(1, N_CIRCUITS + 1)]
    edges = some_edges(graph, min(1.0, N_EDGES / graph.n_edges), generator)
    yield "EAP", lambda: eap.attribute(model, pairs, method="EAP", **options)
    yield "EAP-IG, 5 points", lambda: eap.attribute(model, pairs, method="EAP-IG", **options)
    yield "one circuit", lambda: eap.evaluate(model, circuits[-1], pairs, **options)
    yield f"{N_CIRCUITS} circuits", lambda: eap.evaluate(model, circuits, pairs, **options)
    yield (
        f"{int(edges.sum())} exact edges",
        lambda: eap.patch_edges(model, pairs, metrics=["logit_diff"], edges=edges, **options),
    )
    recipe = eap.Recipe(steps=1, pairs=len(pairs))
    yield (
        "one step of a learned ranking",
        lambda: eap.learn_ranking(model, pairs, recipe=recipe, **options),
    )


def in_child(run: Callable[[], object]) -> Measured | str:
    """Time, growth and planned bytes of a call in a forked process; a refusal as its message."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(run, sender))
    child.start()
    sender.close()
    found: Measured | str = receiver.recv()
    child.join()
    return found


def _measure(run: Callable[[], object], sender: Any) -> None:
    """Measure in the child process."""
    plans: list[Work] = []
    plan = Work.plan

    def recorded(*args: Any, **options: Any) -> Work:
        plans.append(plan(*args, **options))
        return plans[-1]

    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with mock.patch.object(Work, "plan", recorded):
            took = seconds(run)
        promised = max((work.n_bytes() for work in plans), default=0)
        sender.send((took, max(0, peak[0] - before), promised))
    except eap.UserError as error:  # a budget that is too small for the work
        sender.send(str(error))
    finally:
        done.set()
        watcher.join()


def gib(n_bytes: float) -> str:
    """Format bytes as GiB with two digits."""
    return f"{n_bytes / 2**30:.2f}"


if __name__ == "__main__":
    shell.run(main)
