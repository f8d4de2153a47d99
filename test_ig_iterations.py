"""Faithfulness of circuits by the number of steps of integrated gradients.

Writes graphs/<model>/ig_test/<task>_<metric>_{vanilla,2,3,5,..,50}.json and
results/ig_test/<model>/csv/<task>_<eval_metric>_ig_test.csv. (An experiment, not a test.)
"""

import eap_circuits
from eap import studies
from eap.studies import shell

STEPS = (2, 3, 5, 7, 10, 15, 20, 30, 50)


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    add = parser.add_argument
    add("--attribution_metric", help="metric of the scores (default: the task's metric)")
    add("--eval_metric", help="metric of faithfulness (default: the task's metric)")
    shell.add_size_arguments(parser)
    add("--steps", type=shell.number_of("steps"), nargs="+", default=STEPS, help="numbers of steps")
    shell.add_ig_arguments(parser, steps=False)
    args = parser.parse_args()

    settings = shell.settings_of(args)
    task = args.task
    metric = studies.metric_name(args.attribution_metric, task)
    evaluation = studies.metric_name(args.eval_metric, task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, task)
    sizes = studies.pareto_sizes(args.end, studies.count_edges(settings, model), args.sizes)

    # 1. Score every edge with each number of steps.
    graphs = {}
    if studies.is_flat(metric):
        shell.say(f"no EAP: the gradient of {metric} is zero at the clean input")
    else:
        graphs["vanilla"] = studies.attributed(
            settings, model, dataset, f"ig_test/{task}_{metric}_vanilla",
            method="EAP", metric=metric,
        )  # fmt: skip
    for steps in dict.fromkeys(args.steps):
        graphs[str(steps)] = studies.attributed(
            settings, model, dataset, f"ig_test/{task}_{metric}_{steps}",
            method="EAP-IG", metric=metric, steps=steps,
        )  # fmt: skip

    # 2. Select circuits and measure them.
    frame, bands = studies.faithfulness_curves(
        model, graphs, dataset, metric=evaluation, sizes=sizes, **settings.resources
    )
    shell.say(f"\nnormalised faithfulness by {evaluation} and number of steps:")
    shell.say(studies.curve_summary(frame, list(graphs)))
    if note := studies.baseline_note(frame, evaluation):
        shell.say(note)

    # 3. Save in the published schema.
    new_names = {"edges": "n_edges"}
    new_names |= {f"edges_{name}": f"n_edges_{name}" for name in graphs}
    new_names |= {f"loss_{name}": f"results_{name}" for name in graphs}
    frame = frame.rename(columns=new_names)
    first = ["n_edges", "baseline", "corrupted_baseline"]
    frame = frame[first + [column for column in frame.columns if column not in first]]
    origin = studies.describe(
        settings, model, dataset, metric=evaluation, attribution_metric=metric,
        method="faithfulness of circuits", methods=list(graphs), options={"ig_rule": args.ig_rule},
    )  # fmt: skip
    name = f"{task}_{evaluation}_ig_test"
    csv = studies.paths.table_file(args.output, "ig_test", args.model, name)
    studies.save_csv(frame, csv, origin)
    studies.save_csv(bands, csv.with_name(f"{name}_bands.csv"), origin)
    words = ["--tasks", task, *(["--eval_metric", args.eval_metric] if args.eval_metric else [])]
    script = "results/ig_test/plot_ig_test.py"
    studies.say_next(csv, "draw it with", script, *words, settings=settings)


if __name__ == "__main__":
    eap_circuits.run(main)
