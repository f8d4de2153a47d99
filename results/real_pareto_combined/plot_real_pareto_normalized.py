"""Figures 3 and 11: normalised faithfulness of circuits, a panel per task.

Curves of exact scores (get_real_values.py) beside those of the estimates, where there are any; else
the estimates alone (pareto.py, pareto_big.py), as for models too large for exact patching.
"""

from eap import cli, plotting


def main() -> None:
    """Draw results/real_pareto_combined/<model>/{png,pdf}/real_pareto_normalized."""
    args = plotting.make_parser(__doc__).parse_args()
    plotting.set_style()
    present = {
        study: [
            task
            for task in args.tasks
            if (plotting.model_folder(args, study) / "csv" / f"{task}.csv").exists()
        ]
        for study in ("real", "pareto")
    }
    frames, bands = {}, {}
    for task in args.tasks:
        study = "real" if task in present["real"] else "pareto"
        if task not in present[study]:
            print(
                f"left out: {task}; make it with: python get_real_values.py --model {args.model} "
                f"--task {task}, or python pareto.py with the same arguments"
            )
            continue
        path = plotting.model_folder(args, study) / "csv" / f"{task}.csv"
        frames[task] = plotting.read_table(path)
        bands |= plotting.read_bands(args, study, [task])
        # Random circuits belong to the Pareto study.
        if study == "real" and task in present["pareto"] and task in bands:
            around = plotting.read_bands(args, "pareto", [task]).get(task)
            if around is not None and len(around) == len(bands[task]):
                random = [name for name in around.columns if "random" in name]
                bands[task] = bands[task].join(around[random])
    if not frames:
        raise cli.UserError(
            f"nothing to draw for {args.model}; begin with: python pareto.py --model {args.model} "
            f"--task {args.tasks[0]}"
        )
    figure = plotting.curve_figure(frames, bands, normalise=True)
    folder = plotting.model_folder(args, "real_pareto_combined")
    plotting.save_figure(figure, folder, "real_pareto_normalized")


if __name__ == "__main__":
    cli.run(main)
