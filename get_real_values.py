"""Exact values of edges by activation patching, with the estimates of EAP and EAP-IG.

Prints the expected cost, then patches every edge and measures logit_diff, prob_diff, kl and js in
one pass. With --verify K, patches only the K edges that the estimates rank highest and a random
sample of the other edges. A run that is stopped continues when the same command is given again.

Writes graphs/<model>/real_test/<task>_<metric>_real.json for the four metrics, and the estimates in
the same folder (<task>_<metric>_vanilla, <task>_<metric>_ig, <task>_kl_ig, and for other methods
<task>_<metric>_<method>). Writes the faithfulness of circuits selected by exact scores and by
estimates to results/real/<model>/csv/<task>.csv. With --verify, the exact graphs are
<task>_<metric>_verified, for the task's metric and kl: patched edges have exact scores, all other
edges the estimates of EAP-IG, scaled to exact values as in the sample.
"""

import eap_circuits
from eap import studies
from eap.studies import shell
from eap.studies.settings import CURVES, EXACT_CURVES


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    add, usual = parser.add_argument, list(EXACT_CURVES)
    add("--methods", nargs="+", choices=CURVES, default=usual, help="estimates to compare")
    add("--metric", help="metric of the estimates and curves (default: the task's metric)")
    shell.add_size_arguments(parser)
    add("--verify", type=shell.positive, metavar="K", help="patch only the K best edges")
    others = "number of other edges to patch with --verify (default: 200)"
    add("--sample", type=shell.positive, help=others)
    add(
        "--exact_head",
        type=shell.positive,
        metavar="N",
        help="compute exact values and estimates on the first N pairs only (default: all pairs); "
        "curves are always measured on all pairs",
    )
    add(
        "--save_every",
        type=shell.seconds,
        default=10.0,
        metavar="SECONDS",
        help="time between two writes of the progress",
    )
    shell.add_ig_arguments(parser)
    args = parser.parse_args()
    if args.sample is not None and args.verify is None:
        parser.error("--sample is about edges that --verify leaves out: add --verify")
    sample = args.sample or 200

    settings = shell.settings_of(args)
    task = args.task
    metric = studies.check_exact_metric(studies.metric_name(args.metric, task))
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, task)
    sizes = studies.pareto_sizes(args.end, studies.count_edges(settings, model), args.sizes)

    scored = dataset if args.exact_head is None else dataset.head(args.exact_head)

    # 1. Estimates, which also decide which edges to verify.
    chosen = [*args.methods, *(EXACT_CURVES if args.verify else ())]
    estimates = studies.exact_estimates(settings, model, scored, metric=metric, curves=chosen)

    # 2. Exact values.
    study = studies.ExactStudy(settings, model, scored, args.save_every)
    screening = {}
    if args.verify is None:
        exact = study.every_edge()
    else:
        screening = {"verify": args.verify, "sample": sample, "seed": args.seed}
        exact = study.verify(
            {metric: estimates["EAP-IG"], "kl": estimates["EAP-IG-KL"]},
            also=[estimates["EAP"]] if "EAP" in estimates else [],
            top=args.verify,
            sample=sample,
        )

    # 3. Faithfulness of circuits selected by exact values and by estimates.
    graphs = {"real": exact[metric], "real-KL": exact["kl"]}
    graphs |= estimates
    frame, bands = studies.faithfulness_curves(
        model, graphs, dataset, metric=metric, sizes=sizes, **settings.resources
    )
    origin = studies.describe(
        settings, model, dataset, metric=metric,
        method="faithfulness of circuits", methods=list(graphs),
        options={
            "ig_steps": args.ig_steps, "ig_rule": args.ig_rule, "exact_pairs": len(scored),
            **screening,
        },
    )  # fmt: skip
    csv = studies.paths.table_file(args.output, "real", args.model, task)
    studies.save_csv(frame, csv, origin)
    studies.save_csv(bands, csv.with_name(f"{task}_bands.csv"), origin)
    shell.say(f"\nnormalised faithfulness by {metric}:")
    shell.say(studies.curve_summary(frame, list(graphs)))
    if note := studies.baseline_note(frame, metric):
        shell.say(note)
    words = ["--tasks", task, *(["--metric", args.metric] if args.metric else [])]
    script = "results/real_rank/compare_real.py"
    studies.say_next(csv, "compare the rankings with", script, *words, settings=settings)


if __name__ == "__main__":
    eap_circuits.run(main)
