"""How close a run comes to the peak of the machine, and where the rest of the time goes.

Operations are counted as torch executes them (multiply-adds of matrix products, forward and
backward), and compared with the speed of one large matrix product on the same machine. The
breakdown of time is from a profile of a separate run.
"""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from measuring import Row, seconds
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation"}


def peak_rate() -> float:
    """Multiply-adds per second of a large matrix product on this machine."""
    a, b = torch.randn(2048, 768), torch.randn(768, 3072)
    for _ in range(3):
        a @ b
    times = [seconds(lambda: [a @ b for _ in range(4)]) / 4 for _ in range(5)]
    return 2048 * 768 * 3072 / statistics.median(times)


def operations_of(run: Callable[[], object]) -> int:
    """Multiply-adds of matrix products in one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def where_time_goes(run: Callable[[], object]) -> dict[str, float]:
    """Shares of a call's time: `products`, the four largest others, and `between` (Python)."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        total = seconds(run)
    shares: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            name = "products" if event.key in PRODUCTS else event.key.removeprefix("aten::")
            shares[name] += event.self_cpu_time_total / 1e6 / total
    products = shares.pop("products", 0.0)
    between = max(0.0, 1 - products - sum(shares.values()))
    return {"products": products, **dict(shares.most_common(4)), "between": between}


def with_limits(row: Row, run: Callable[[], object], run_seconds: float) -> Row:
    """Add to a row how close its run, of the given seconds, comes to the peak."""
    share = operations_of(run) / run_seconds / peak_rate()
    return replace(row, detail=row.detail | {"peak": share, "time": where_time_goes(run)})
