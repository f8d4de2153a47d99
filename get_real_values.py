"""The exact value of every edge by activation patching, beside what EAP and EAP-IG estimate.

Prints what it will cost, then patches every edge (or, with --verify K, the K edges that EAP-IG
ranks highest and a random sample of the others) for logit_diff, prob_diff, kl and js in one pass.
It can be stopped at any moment: the same command goes on where it was.

Writes graphs/<model>/real_test/<task>_<metric>_real.json for the four metrics, the estimates beside
them (<task>_<metric>_vanilla, <task>_<metric>_ig, <task>_kl_ig), and the faithfulness of circuits
from exact scores and from estimates, results/real/<model>/csv/<task>.csv.
"""

import argparse
from dataclasses import replace

from torch import Tensor

from eap.data.dataset import Dataset
from eap.errors import UserError
from eap.graph.graph import Graph
from eap.metrics import get_metric
from eap.model.loading import Model
from eap.patching import make_plan, measure_seconds, run_plan
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.memory import default_budget, patching_memory
from eap.screening import choose_edges, merge, report
from eap.studies import shell
from eap.studies.sweep import curve_summary, faithfulness_curves, pareto_sizes

METRICS = ("logit_diff", "prob_diff", "kl", "js")


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument("--metric", help="of the estimates and curves (default: the task's own)")
    parser.add_argument("--end", type=shell.positive, default=1001, help="sizes stay below this")
    parser.add_argument(
        "--verify", type=shell.positive, metavar="K", help="exact for the best K only"
    )
    parser.add_argument(
        "--sample", type=shell.positive, default=200, help="others to patch with --verify"
    )
    parser.add_argument(
        "--save_every", type=float, default=10.0, metavar="SECONDS", help="how often to save"
    )
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    metric = get_metric(args.metric or shell.default_metric(args.task)).name
    if metric not in METRICS:
        raise UserError(f"exact values are of {', '.join(METRICS)}, not of {metric}")
    model, dataset = shell.load(args)
    sizes = pareto_sizes(args.end, shell.whole_graph(args, model).n_edges)

    # 1. Estimates, which also say which edges to verify.
    def estimate(method: str, of: str, suffix: str) -> Graph:
        path = shell.graph_path(args, model, f"real_test/{args.task}_{of}_{suffix}")
        return shell.attributed(
            args, model, dataset, path=path, method=method, metric=of,
            steps=args.ig_steps, rule=args.ig_rule,
        )  # fmt: skip

    estimates = {}
    if not get_metric(metric).flat_at_clean:
        estimates["EAP"] = estimate("EAP", metric, "vanilla")
    ig = estimate("EAP-IG", metric, "ig")
    kl_ig = estimate("EAP-IG", "kl", "ig")

    # 2. Exact values.
    if args.verify is not None:
        verify(args, model, dataset, {metric: ig, "kl": kl_ig})
        return
    exact = exact_values(args, model, dataset)

    # 3. Faithfulness of circuits from either.
    graphs = {"real": exact[metric], "real-KL": exact["kl"]}
    graphs |= {"EAP-IG": ig, "EAP-IG-KL": kl_ig, **estimates}
    frame, bands = faithfulness_curves(
        model, graphs, dataset, metric=metric, sizes=sizes,
        batch_size=args.batch_size, memory_budget=args.memory,
    )  # fmt: skip
    csv = shell.csv_path(args, "real", model, args.task)
    shell.save_csv(frame, csv)
    shell.save_csv(bands, csv.with_stem(f"{args.task}_bands"))
    shell.say(f"\nnormalised faithfulness by {metric}:\n{curve_summary(frame, list(graphs))}")


def exact_values(args: argparse.Namespace, model: Model, dataset: Dataset) -> dict[str, Graph]:
    """The exact graphs of all metrics: reused if finished, continued if begun."""
    paths = {
        name: shell.graph_path(args, model, f"real_test/{args.task}_{name}_real")
        for name in METRICS
    }
    wanted = {
        name: shell.provenance(
            model, dataset, method="activation patching", metric=name, expanded_kv=args.expanded_kv
        )
        for name in METRICS
    }
    found = {
        name: shell.reusable(paths[name], wanted[name], overwrite=args.overwrite)
        for name in METRICS
    }
    checkpoint = checkpoint_of(args, model, dataset, args.task)
    if all(found.values()):
        checkpoint.delete()
        return {name: graph for name, graph in found.items() if graph is not None}
    graphs = patch(args, model, dataset, checkpoint, edges=None)
    graphs = {name: replace(graph, provenance=wanted[name]) for name, graph in graphs.items()}
    for name, graph in graphs.items():
        shell.save_graph(graph, paths[name])
    checkpoint.delete()
    return graphs


def verify(
    args: argparse.Namespace, model: Model, dataset: Dataset, estimates: dict[str, Graph]
) -> None:
    """Exact values of the edges that an estimate ranks highest, and of a sample of the others."""
    metric, estimate = next(iter(estimates.items()))
    chosen = choose_edges(estimate, top=args.verify, sample=args.sample, seed=args.seed)
    checkpoint = checkpoint_of(args, model, dataset, f"{args.task}_verify_{args.verify}")
    exact = patch(args, model, dataset, checkpoint, edges=chosen.all)
    for name, own in estimates.items():
        path = shell.graph_path(args, model, f"real_test/{args.task}_{name}_verified")
        source = shell.provenance(
            model, dataset, method="EAP-IG, verified", metric=name,
            steps=args.ig_steps, rule=args.ig_rule, expanded_kv=args.expanded_kv,
            verify=args.verify, sample=args.sample, seed=args.seed,
        )  # fmt: skip
        shell.save_graph(replace(merge(own, exact[name]), provenance=source), path)
    checkpoint.delete()
    shell.say(f"\n{metric}\n{report(estimate, exact[metric], chosen)}")


def checkpoint_of(
    args: argparse.Namespace, model: Model, dataset: Dataset, name: str
) -> Checkpoint:
    """Where the progress of a run is kept."""
    source = shell.provenance(model, dataset, expanded_kv=args.expanded_kv, code=shell.code_hash())
    del source["command"]
    path = shell.graph_path(args, model, f"real_test/{name}").with_suffix(".part.safetensors")
    return Checkpoint(path, source, seconds=args.save_every)


def patch(
    args: argparse.Namespace,
    model: Model,
    dataset: Dataset,
    checkpoint: Checkpoint,
    *,
    edges: Tensor | None,
) -> dict[str, Graph]:
    """Exact values of all edges (None) or some: says the cost, goes on where a run was stopped."""
    # Sizes that were chosen by the memory that was free stay what they were.
    tokens_per_run, batch_size = map(checkpoint.setting, ("tokens_per_run", "batch_size"))
    plan = make_plan(
        model, dataset, METRICS, edges, args.batch_size or batch_size, args.memory,
        expanded_kv=args.expanded_kv, tokens_per_run=tokens_per_run,
    )  # fmt: skip
    memory = patching_memory(model, dataset.examples, plan.batch_size, plan.tokens_per_run)
    budget = default_budget(model.device) if args.memory is None else args.memory
    if memory > budget:
        raise UserError(
            f"{shell.shown(checkpoint.own_path)} was begun with {memory / 2**20:,.0f} MiB, "
            f"more than the {budget / 2**20:,.0f} MiB of now; give --memory, or delete the file "
            "to begin anew"
        )
    if model.dtype != model.residual_dtype:
        shell.say(
            f"note: in {args.dtype} a run's rounding is larger than the values of most edges; "
            "float32 tells small values apart"
        )
    seconds = measure_seconds(plan)
    shell.say(
        f"exact values: {int(plan.edges.sum()):,} edges x {len(dataset)} pairs in "
        f"{len(plan.units):,} pieces, {plan.tokens_per_run:,} tokens at a time; up to "
        f"{memory / 2**20:,.0f} MiB beside the weights, about {shell.duration(seconds)} in all"
        + ("; going on where an earlier run was stopped" if tokens_per_run else "")
    )
    return run_plan(plan, checkpoint=checkpoint, quiet=False)


if __name__ == "__main__":
    shell.run(main)
