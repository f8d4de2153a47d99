"""Faithfulness of circuits by size, for EAP, EAP-IG and EAP-IG with KL, on one task.

Scores every edge three ways, selects circuits of 30 to 1000 edges greedily by absolute score,
prunes them, and measures the task's metric when everything outside the circuit is corrupted.
Writes results/pareto/<model>/csv/<task>.csv and graphs/<model>/<task>_{vanilla,task,kl}.json.
"""

from eap import cli
from eap.curves import curve_summary, faithfulness_curves, pareto_sizes
from eap.metrics import get_metric


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--metric", help="logit_diff, prob_diff, ... (default: the task's own)")
    parser.add_argument("--end", type=cli.positive, default=1001, help="sizes stay below this")
    parser.add_argument(
        "--n_random", type=cli.not_negative, default=5, help="random circuits of every size"
    )
    cli.add_ig_arguments(parser)
    args = parser.parse_args()

    metric = get_metric(args.metric or cli.default_metric(args.task)).name
    model, dataset = cli.load(args)
    whole = cli.whole_graph(args, model)
    sizes = pareto_sizes(args.end, whole.n_edges)
    csv = cli.csv_path(args, "pareto", model, args.task)
    cli.say(
        f"{args.task} by {metric} on {model.name}: {len(dataset)} pairs, {whole.n_edges:,} edges, "
        f"circuits of {sizes[0]} to {sizes[-1]} edges -> {cli.shown(csv)}"
    )

    # 1. Score every edge by each method.
    methods = {
        "EAP": ("vanilla", {"method": "EAP", "metric": metric}),
        "EAP-IG": ("task", {"method": "EAP-IG", "metric": metric}),
        "EAP-IG-KL": ("kl", {"method": "EAP-IG", "metric": "kl"}),
    }
    graphs = {}
    for name, (suffix, settings) in methods.items():
        path = cli.graph_path(args, model, f"{args.task}_{suffix}")
        graphs[name] = cli.attributed(
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
    cli.save_csv(frame, csv)
    cli.save_csv(bands, csv.with_stem(f"{args.task}_bands"))
    clean, corrupted = frame[["baseline", "corrupted_baseline"]].iloc[0]
    cli.say(f"\n{metric}: clean {clean:.3f}, corrupted {corrupted:.3f}; normalised faithfulness:")
    cli.say(curve_summary(frame, list(methods)))


if __name__ == "__main__":
    cli.run(main)
