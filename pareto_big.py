"""Faithfulness of circuits by size on large models: sizes up to a share of all edges.

As pareto.py, with --n_steps sizes up to --end_proportion of the graph's edges. Writes
results/pareto/<model>/csv/<task>.csv and graphs/<model>/<task>_{vanilla,task,kl}.json (or
.safetensors for graphs of more than half a million edges).
"""

import argparse

from eap.metrics import get_metric
from eap.studies import shell
from eap.studies.sweep import curve_summary, faithfulness_curves


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument("--metric", help="logit_diff, prob_diff, ... (default: the task's own)")
    parser.add_argument("--eval_batch_size", type=shell.positive, help="of evaluation, if another")
    parser.add_argument("--end_proportion", type=proportion, default=0.04, help="of all edges")
    parser.add_argument("--n_steps", type=shell.positive, default=10, help="number of sizes")
    parser.add_argument(
        "--n_random", type=shell.not_negative, default=5, help="random circuits of every size"
    )
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    metric = get_metric(args.metric or shell.default_metric(args.task)).name
    model, dataset = shell.load(args)
    n_edges = shell.whole_graph(args, model).n_edges
    largest = max(1, int(args.end_proportion * n_edges))
    sizes = sorted({max(1, largest * step // args.n_steps) for step in range(1, args.n_steps + 1)})
    csv = shell.csv_path(args, "pareto", model, args.task)
    shell.say(
        f"{args.task} by {metric} on {model.name}: {len(dataset)} pairs, {n_edges:,} edges, "
        f"circuits of {sizes[0]:,} to {sizes[-1]:,} edges -> {shell.shown(csv)}"
    )

    # 1. Score every edge by each method.
    methods = {
        "EAP": ("vanilla", {"method": "EAP", "metric": metric}),
        "EAP-IG": ("task", {"method": "EAP-IG", "metric": metric}),
        "EAP-IG-KL": ("kl", {"method": "EAP-IG", "metric": "kl"}),
    }
    graphs = {}
    for name, (suffix, settings) in methods.items():
        path = shell.graph_path(args, model, f"{args.task}_{suffix}")
        graphs[name] = shell.attributed(
            args, model, dataset, path=path, steps=args.ig_steps, rule=args.ig_rule, **settings
        )

    # 2. Select circuits and measure them.
    frame, bands = faithfulness_curves(
        model, graphs, dataset, metric=metric, sizes=sizes, n_random=args.n_random, seed=args.seed,
        batch_size=args.eval_batch_size or args.batch_size, memory_budget=args.memory,
    )  # fmt: skip

    # 3. Save, and say what came out.
    frame.insert(3, "total_edges", n_edges)
    shell.save_csv(frame, csv)
    shell.save_csv(bands, csv.with_stem(f"{args.task}_bands"))
    clean, corrupted = frame[["baseline", "corrupted_baseline"]].iloc[0]
    shell.say(f"\n{metric}: clean {clean:.3f}, corrupted {corrupted:.3f}; normalised faithfulness:")
    shell.say(curve_summary(frame, list(methods)))


def proportion(text: str) -> float:
    """A number above 0 and at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return number


if __name__ == "__main__":
    shell.run(main)
