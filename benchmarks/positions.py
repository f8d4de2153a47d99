"""Edges at positions: comparison with TransformerLens, and the cost of spans.

Scores every edge at every position on a pair of 15 tokens, with a model of GPT-2 small's shape and
random weights, and compares values and times. Then compares EAP at 8 spans with EAP without spans,
in alternation, by processor time of one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from shape import Bench
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)

import eap
from eap.data.dataset import Dataset
from eap.graph.graph import Graph

KINDS = {"q_input": "q", "k_input": "k", "v_input": "v"}


def name_of(node: Any) -> str:
    """Name in this package of a node of TransformerLens."""
    if node.kind in ("embed", "logits"):
        return "input" if node.kind == "embed" else "logits"
    if node.kind in ("mlp_out", "mlp_in"):
        return f"m{node.layer}"
    kind = f"<{KINDS[node.kind]}>" if node.kind in KINDS else ""
    return f"a{node.layer}.h{node.head}{kind}"


def named_edges(result: Any) -> Iterator[tuple[str, float]]:
    """Names as in a graph with one span per token, and scores."""
    for (sender, receiver), score in result.edge_scores.items():
        yield f"{name_of(sender)}->{name_of(receiver)} @ {receiver.position}", score


def beside_transformer_lens(bench: Bench, n_positions: int) -> tuple[float, float, float]:
    """Times of both packages in seconds, and the largest difference over the largest score."""
    (example,) = bench.data(1, first_difference=0, n_positions=n_positions).examples
    data = Dataset("random", (example,)).with_spans("tokens")
    # Theirs takes the gradient on the corrupted run and patches towards the clean one.
    clean, corrupted = (torch.tensor([list(ids)]) for ids in (example.corrupted, example.clean))
    right, wrong = example.correct[0], example.incorrect[0]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, right] - logits[0, -1, wrong]

    config = EdgeAttributionConfig(granularity="edge")
    bench.bridge.requires_grad_(True)  # as theirs needs it
    theirs, seconds_theirs = timed(
        lambda: attribution_patch(bench.bridge, clean, corrupted, metric, config)
    )
    bench.bridge.requires_grad_(False)
    ours, seconds_ours = timed(
        lambda: eap.attribute(bench.model, data, method="EAP", metric="logit_diff", spans=True)
    )
    return seconds_theirs, seconds_ours, largest_difference(ours, theirs)


def largest_difference(graph: Graph, theirs: Any) -> float:
    """Largest difference between the scores of both packages, over our largest score."""
    worst, places = 0.0, {name: n for n, name in enumerate(graph.sender_names)}
    columns = {name: n for n, name in enumerate(graph.receiver_names)}
    for edge, score in named_edges(theirs):
        name, _, span = edge.partition(" @ ")
        sender, _, receiver = name.partition("->")
        own = float(graph.scores[int(span), places[sender], columns[receiver]])
        worst = max(worst, abs(score - own))
    return worst / float(graph.scores.abs().max())


def cost_of_spans(bench: Bench, n_pairs: int, n_spans: int, repeats: int) -> list[float]:
    """Ratios of EAP's time at spans to its time without spans, one per repetition."""
    data = bench.data(n_pairs, first_difference=0)
    starts = tuple(range(0, 2 * n_spans, 2))
    examples = tuple(replace(example, spans=starts) for example in data.examples)
    at_spans = replace(data, examples=examples, span_names=tuple(map(str, range(n_spans))))
    ratios = []
    for repeat in range(repeats + 1):  # the first is warming up
        seconds = [
            timed(
                partial(
                    eap.attribute,
                    bench.model,
                    at_spans,
                    method="EAP",
                    metric="logit_diff",
                    spans=spans,
                )
            )[1]
            for spans in (False, True)
        ]
        if repeat:
            ratios.append(seconds[1] / seconds[0])
    return ratios


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return value of a function, and its processor time in seconds."""
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=15, help="number of tokens in the pair")
    parser.add_argument("--pairs", type=int, default=16, help="number of pairs for the span costs")
    parser.add_argument("--repeats", type=int, default=5, help="number of repetitions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench()
    ratios = cost_of_spans(bench, args.pairs, 8, args.repeats)
    print(
        f"EAP at 8 spans: {statistics.median(ratios):.2f} times the time without "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    theirs, ours, difference = beside_transformer_lens(bench, args.positions)
    print(
        f"every edge at each of {args.positions} positions: TransformerLens {theirs:.1f} s, ours "
        f"{ours:.2f} s: {theirs / ours:.0f} times; largest difference {difference:.1e} of the "
        "largest score"
    )


if __name__ == "__main__":
    main()
