"""Faithfulness of circuits by size, for EAP, EAP-IG and EAP-IG with KL, on one task.

Scores every edge three ways, selects circuits of 30 to 1000 edges greedily by absolute score,
prunes them, and measures the task's metric when everything outside the circuit is corrupted.
Writes results/pareto/<model>/csv/<task>.csv and graphs/<model>/<task>_{vanilla,task,kl}.json.
"""

from eap.metrics import get_metric
from eap.studies import shell
from eap.studies.sweep import curve_summary, faithfulness_curves, pareto_sizes


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument("--metric", help="logit_diff, prob_diff, ... (default: the task's own)")
    parser.add_argument("--end", type=shell.positive, default=1001, help="sizes stay below this")
    parser.add_argument(
        "--n_random", type=shell.not_negative, default=5, help="random circuits of every size"
    )
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    metric = get_metric(args.metric or shell.default_metric(args.task)).name
    model, dataset = shell.load(args)
    whole = shell.whole_graph(args, model)
    sizes = pareto_sizes(args.end, whole.n_edges)
    csv = shell.csv_path(args, "pareto", model, args.task)
    shell.say(
        f"{args.task} by {metric} on {model.name}: {len(dataset)} pairs, {whole.n_edges:,} edges, "
        f"circuits of {sizes[0]} to {sizes[-1]} edges -> {shell.shown(csv)}"
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
        model,
        graphs,
        dataset,
        metric=metric,
        sizes=sizes,
        n_random=args.n_random,
        seed=args.seed,
        batch_size=args.batch_size,
        memory_budget=args.memory,
    )

    # 3. Save, and say what came out.
    shell.save_csv(frame, csv)
    shell.save_csv(bands, csv.with_stem(f"{args.task}_bands"))
    clean, corrupted = frame[["baseline", "corrupted_baseline"]].iloc[0]
    shell.say(f"\n{metric}: clean {clean:.3f}, corrupted {corrupted:.3f}; normalised faithfulness:")
    shell.say(curve_summary(frame, list(methods)))


if __name__ == "__main__":
    shell.run(main)
