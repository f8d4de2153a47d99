"""How far a task's circuit can be trusted: error bars, stability, areas and verdicts.

Scores edges on one half of the task's pairs, with bootstrap resamples of these pairs in the same
run, and measures areas and verdicts on the other half. Writes four tables, whose names begin with
results/stability/<model>/csv/<task>: .csv (similarity of the resamples' circuits, compared with
chance and a null task), _edges.csv (how often each edge is in these circuits), _areas.csv and
_verdicts.csv. With --n_subsets, also writes _certified.csv: the edges and nodes that stay in the
circuit if some examples change.
"""

import eap_circuits
from eap import studies
from eap.runtime.ranges import ALPHA, enough_random
from eap.studies import shell
from eap.studies.paths import table_file


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    add = parser.add_argument
    add("--metric", help="logit_diff, prob_diff, etc. (default: the task's metric)")
    add("--method", default="EAP-IG", help="scoring method")
    sizes = "circuit sizes, in edges (default: 1 to 10%% of all edges)"
    add("--sizes", type=shell.positive, nargs="+", help=sizes)
    add(
        "--n_resamples",
        type=shell.number_of("n_resamples"),
        default=50,
        help="number of bootstrap resamples of the pairs",
    )
    add(
        "--n_subsets",
        type=shell.number_of("n_subsets"),
        help="number of random subsets of the pairs for certifying edges (try 1000)",
    )
    add(
        "--n_random",
        type=shell.number_of("n_random"),
        default=50,
        help="number of random circuits to compare with in the verdicts, at least 19",
    )
    shell.add_ig_arguments(parser)
    args = parser.parse_args()
    enough_random(args.n_random, ALPHA)

    settings = shell.settings_of(args)
    metric = studies.metric_name(args.metric, args.task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, args.task)
    draws = studies.Draws(args.n_resamples, args.n_random, args.n_subsets or 0, args.seed)
    study = studies.stability_study(
        model, dataset, metric=metric, method=args.method, steps=args.ig_steps, rule=args.ig_rule,
        sizes=args.sizes, draws=draws,
        expanded_kv=args.expanded_kv, batch_size=args.batch_size, memory_budget=args.memory,
        quiet=False,
    )  # fmt: skip

    studies.keep_folders(settings, model)
    origins = {"_areas": study.areas.provenance, "_verdicts": study.verdicts.provenance}
    if study.certificate is not None:
        origins["_certified"] = study.certificate.provenance
    for suffix, frame in study.tables().items():
        path = table_file(args.output, "stability", args.model, f"{args.task}{suffix}")
        studies.save_csv(frame, path, origins.get(suffix, study.stability.provenance))
    n_found, n_measured = len(study.found_on), len(study.measured_on)
    shell.say(f"\n{args.method} by {metric}, scored on {n_found} pairs, {args.n_resamples} times:")
    shell.say(study.stability.to_frame().round(3).to_string(index=False))
    which = "other" if n_measured < len(dataset) else "of these"
    shell.say(f"\nareas on {n_measured} {which} pairs (95% over examples): {study.areas}")
    circuit = study.verdicts.circuit
    shell.say(f"\nverdicts on a circuit of {circuit.count_edges()} edges, on the same pairs:")
    shell.say(str(study.verdicts))
    if study.certificate is not None:
        shell.say(f"\ncertified by {args.n_subsets} subsets: {study.certificate}")
        shell.say(study.certificate.summary().to_string(index=False))
    csv = table_file(args.output, "stability", args.model, args.task)
    script = "results/stability/plot_stability.py"
    studies.say_next(csv, "draw it with", script, "--tasks", args.task, settings=settings)


if __name__ == "__main__":
    eap_circuits.run(main)
