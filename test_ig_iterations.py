"""How many steps of integrated gradients are enough? Faithfulness by number of steps.

Writes graphs/<model>/ig_test/<task>_<metric>_{vanilla,2,3,5,..,50}.json and
results/ig_test/<model>/csv/<task>_<eval_metric>_ig_test.csv. (An experiment, not a test.)
"""

from eap.metrics import get_metric
from eap.studies import shell
from eap.studies.sweep import curve_summary, faithfulness_curves, pareto_sizes

STEPS = (2, 3, 5, 7, 10, 15, 20, 30, 50)


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument("--attribution_metric", help="of the scores (default: the task's own)")
    parser.add_argument("--eval_metric", help="of faithfulness (default: the task's own)")
    parser.add_argument("--end", type=shell.positive, default=1001, help="sizes stay below this")
    parser.add_argument("--steps", type=shell.positive, nargs="+", default=STEPS, help="to compare")
    shell.add_ig_arguments(parser, steps=False)
    args = parser.parse_args()

    own = shell.default_metric(args.task)
    attribution = get_metric(args.attribution_metric or own)
    evaluation = get_metric(args.eval_metric or own)
    model, dataset = shell.load(args)
    sizes = pareto_sizes(args.end, shell.whole_graph(args, model).n_edges)

    # 1. Score every edge with each number of steps.
    graphs = {}
    if attribution.flat_at_clean:
        shell.say(f"no EAP: the gradient of {attribution.name} is zero at the clean input")
    else:
        path = shell.graph_path(args, model, f"ig_test/{args.task}_{attribution.name}_vanilla")
        graphs["vanilla"] = shell.attributed(
            args, model, dataset, path=path, method="EAP", metric=attribution.name
        )
    for steps in args.steps:
        path = shell.graph_path(args, model, f"ig_test/{args.task}_{attribution.name}_{steps}")
        graphs[str(steps)] = shell.attributed(
            args, model, dataset, path=path, method="EAP-IG", metric=attribution.name,
            steps=steps, rule=args.ig_rule,
        )  # fmt: skip

    # 2. Select circuits and measure them.
    frame, bands = faithfulness_curves(
        model, graphs, dataset, metric=evaluation.name,
        sizes=sizes,
        batch_size=args.batch_size, memory_budget=args.memory,
    )  # fmt: skip

    # 3. Save in the published schema.
    shell.say(f"\nnormalised faithfulness by {evaluation.name} and number of steps:")
    shell.say(curve_summary(frame, list(graphs)))
    names = {"edges": "n_edges"}
    names |= {f"edges_{name}": f"n_edges_{name}" for name in graphs}
    names |= {f"loss_{name}": f"results_{name}" for name in graphs}
    frame = frame.rename(columns=names)
    first = ["n_edges", "baseline", "corrupted_baseline"]
    frame = frame[first + [column for column in frame.columns if column not in first]]
    csv = shell.csv_path(args, "ig_test", model, f"{args.task}_{evaluation.name}_ig_test")
    shell.save_csv(frame, csv)
    shell.save_csv(bands, csv.with_stem(f"{csv.stem}_bands"))


if __name__ == "__main__":
    shell.run(main)
