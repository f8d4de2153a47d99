"""Growth of the resident set during a run, as a share of its memory budget.

Every case runs in a separate process, because memory that the allocator already holds would hide
the growth. Processes are started, not forked, because OpenMP threads do not survive a fork.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import psutil
import torch
from measuring import ALL_METRICS, Row, plain_value, some_edges
from shape import Bench

import eap
from eap.data.dataset import Dataset
from eap.patching import patch_edges

BUDGETS = (512, 1024)
"""Memory budgets in MiB."""


def memory(bench: Bench, _: int) -> list[Row]:
    """Growth of the resident set, divided by the budget, for each part of the package."""
    rows = []
    for mebibytes in BUDGETS:
        for name in cases(bench, mebibytes * 2**20):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                grown = pool.submit(growth_of, name, mebibytes * 2**20).result()
            what = f"{name}: growth of memory, of a budget of {mebibytes} MiB"
            share = grown / (mebibytes * 2**20)
            rows.append(plain_value("memory", what, [share], unit="", target="<= 1"))
    return rows


def cases(bench: Bench, budget: int) -> dict[str, Callable[[], object]]:
    """Functions to run with a memory budget, by name, with few pairs and with many pairs."""
    generator = torch.Generator().manual_seed(0)
    graph = eap.attribute(bench.model, bench.data(1, 10), method="EAP", batch_size=1)
    circuits = [graph.greedy(n).prune() for n in (1000, graph.n_edges)]
    some = some_edges(graph, 0.001, generator)
    one, many = bench.data(1, 10), bench.data(64, 1)
    parts = [bench.data(1, first, n) for n, first in ((12, 3), (20, 15), (60, 20), (60, 59))]
    varied = Dataset("random", tuple(part.examples[0] for part in parts))
    limits: dict[str, Any] = {"memory_budget": budget}
    found: dict[str, Callable[[], object]] = {}
    for where, data in (("one pair", one), ("pairs of many lengths", varied)):
        for steps in (5, 20, 50):
            found[f"EAP-IG, {steps} points, {where}"] = partial(
                eap.attribute, bench.model, data, steps=steps, **limits
            )
    limits["metrics"] = ALL_METRICS
    found |= {
        "EAP-IG, 5 points, 64 pairs": partial(
            eap.attribute, bench.model, many, memory_budget=budget
        ),
        "exact patching, first differences that vary": partial(
            patch_edges, bench.model, varied, edges=some, **limits
        ),
        "evaluation, 64 pairs": partial(eap.evaluate, bench.model, circuits, many, **limits),
    }
    return found


def growth_of(name: str, budget: int) -> int:
    """Largest growth of the resident set during a case, in bytes."""
    run = cases(Bench(), budget)[name]
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peaks = [before]

    def watch() -> None:
        while not done.wait(0.002):
            peaks[0] = max(peaks[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peaks[0] - before
