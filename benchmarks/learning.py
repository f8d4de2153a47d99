"""Speed of learned rankings: steps per second, and comparison with a step on split inputs.

    python benchmarks/learning.py --threads 2
    python benchmarks/learning.py --threads 2 --pairs 8

The model has random weights in the shape of GPT-2 small, in float32. Pairs have 16 tokens and
differ from position 10 on; a step uses one pair (or more). Both implementations alternate in one
process. This package is measured through `eap.learn_ranking`, including the first visits of the
pairs. In one of two rows, the outputs of the corrupted run are given to the split implementation
for free, because this package computes these outputs once and keeps them. With one pair per step,
every weight is read twice for little work, so the step is limited by memory bandwidth. The last
line is the share of the step that the bare model's own pass takes (forward and backward from
position 10 on).
"""

import argparse
import statistics

import torch
from measuring import logit_diff_loss, seconds, tensors
from shape import Bench
from split_way import mask_gradient, plain, prepare, record_senders

import eap
from eap.ablation import get_ablation
from eap.engine.prepared import PreparedBatch, Work, demand_of_gradients
from eap.metrics.metric import METRICS
from eap.model.runs import run_layers
from eap.runtime.resources import Resources
from eap.soft.circuits import run_soft_circuit
from eap.studies import shell

N_BATCHES, STEPS, FIRST_DIFFERENCE = 4, 20, 10


def prepared(bench: Bench, data: eap.Dataset) -> PreparedBatch:
    """The one batch of some examples."""
    config, metric = bench.model.config, METRICS["logit_diff"]
    demand, limits = demand_of_gradients("a soft circuit", config), Resources(batch_size=len(data))
    work = Work.plan(bench.model, data, [metric], get_ablation(None), config, limits, demand)
    return work.load(range(len(data)))


def check(bench: Bench, masks: torch.Tensor) -> float:
    """Largest difference between the two gradients, relative to the largest gradient."""
    data, config = bench.data(1, FIRST_DIFFERENCE), bench.model.config
    metric, batch = METRICS["logit_diff"], prepared(bench, data)
    leaf = masks.clone().requires_grad_()
    logits = batch.unembed(run_soft_circuit(bench.model, leaf, batch))
    value = metric(logits, logits.detach(), batch.answers).sum()
    (ours,) = torch.autograd.grad(value, leaf)
    clean, corrupted, right, wrong = tensors(data)
    on_corrupted, _ = record_senders(bench.bridge, config, corrupted)
    loss = logit_diff_loss(right, wrong)
    split = mask_gradient(bench.bridge, config, clean, on_corrupted, masks, loss)
    exists = eap.Graph.from_config(config).in_graph
    return float((ours - split)[exists].abs().max() / ours.abs().max())


def main() -> None:
    """Measure and print."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=shell.positive, help="threads (default: torch's choice)")
    parser.add_argument("--repeats", type=shell.positive, default=5)
    parser.add_argument("--pairs", type=shell.positive, default=1, help="pairs per step")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench()
    for parameter in bench.bridge.parameters():
        parameter.requires_grad_(False)
    config, data = bench.model.config, bench.data(N_BATCHES * args.pairs, FIRST_DIFFERENCE)
    masks = torch.rand(config.n_forward, config.n_backward)
    clean, corrupted, right, wrong = (rows[: args.pairs] for rows in tensors(data))
    loss = logit_diff_loss(right, wrong)

    recipe = eap.Recipe(steps=STEPS, pairs=args.pairs)

    def ours() -> None:
        eap.learn_ranking(bench.model, data, recipe=recipe)

    def corrupted_run() -> None:
        record_senders(bench.bridge, config, corrupted)

    prepare(bench.bridge)
    print(f"largest relative difference of gradients: {check(bench, masks):.1e}", flush=True)
    on_corrupted, _ = record_senders(bench.bridge, config, corrupted)

    def split() -> None:
        mask_gradient(bench.bridge, config, clean, on_corrupted, masks, loss)

    batch = prepared(bench, data.head(args.pairs))

    def bare_pass() -> None:
        x = (batch.clean + batch.positions).requires_grad_()
        final = run_layers(bench.model, x, batch.cache)
        torch.autograd.grad(batch.unembed(final[:, 0]).sum(), x)

    for run in (ours, split, bare_pass):
        run()
    measured = [
        (seconds(ours) / STEPS, seconds(split), seconds(corrupted_run), seconds(bare_pass))
        for _ in range(args.repeats)
    ]
    plain(bench.bridge)

    def show(what: str, values: list[float], unit: str) -> None:
        low, high = min(values), max(values)
        print(f"{what}: {statistics.median(values):.3g}{unit} ({low:.3g} to {high:.3g})")

    show("steps a second", [1 / step for step, *_ in measured], "")
    show("faster than split", [(s + c) / step for step, s, c, _ in measured], "x")
    show("faster than split, corrupted run kept", [s / step for step, s, *_ in measured], "x")
    show("share that is the bare model's pass", [bare / step for step, *_, bare in measured], "")


if __name__ == "__main__":
    shell.run(main)
