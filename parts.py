"""Faithfulness of a circuit by the number of hidden units, channels or features it keeps.

Finds the task's circuit and scores the parts of its nodes on one half of the pairs. Measures, on
the other half, the faithfulness of the circuit when its nodes keep only their best parts. Writes
results/parts/<model>/csv/<task>.csv, with one row per kind and number of parts, and <task>_top.csv,
which lists the best parts.
"""

import eap_circuits
from eap import studies
from eap.studies import shell
from eap.studies.paths import table_file


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    add = parser.add_argument
    add("--metric", help="logit_diff, prob_diff, etc. (default: the task's metric)")
    add("--size", type=shell.positive, default=200, help="number of edges before pruning")
    add("--parts", nargs="+", default=["hidden units", "channels"], help="kinds of parts")
    add(
        "--features",
        type=shell.folder,
        help="folder of transcoders or sparse autoencoders, which are parts, too (default: none; "
        "for the toy model, its transcoders)",
    )
    add("--top", type=shell.positive, default=50, help="number of best parts to list per kind")
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    settings = shell.settings_of(args)
    metric = studies.metric_name(args.metric, args.task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, args.task)
    features = args.features or ("toy" if args.model == "toy" else None)
    study = studies.part_study(
        model, dataset, metric=metric, size=args.size, steps=args.ig_steps, rule=args.ig_rule,
        kinds=studies.parts.kinds_of(args.parts, features, model), seed=args.seed,
        expanded_kv=args.expanded_kv, batch_size=args.batch_size, memory_budget=args.memory,
        quiet=False,
    )  # fmt: skip

    studies.keep_folders(settings, model)
    tables = {"": (study.table, study.provenance), "_top": (study.top(args.top), study.ranked_by)}
    for suffix, (frame, provenance) in tables.items():
        path = table_file(args.output, "parts", args.model, f"{args.task}{suffix}")
        studies.save_csv(frame, path, provenance)
    shell.say(f"\n{metric} of a circuit of {study.circuit.count_edges()} edges:")
    shell.say(study.table.round(3).to_string(index=False))
    csv = table_file(args.output, "parts", args.model, args.task)
    script = "results/parts/plot_parts.py"
    studies.say_next(csv, "draw it with", script, "--tasks", args.task, settings=settings)


if __name__ == "__main__":
    eap_circuits.run(main)
