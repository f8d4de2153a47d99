"""Figures 3 and 11: normalised faithfulness of circuits from estimates and from exact values.

EAP, EAP-IG and EAP-IG-KL come from pareto.py (or pareto_big.py), activation patching and its KL
form from get_real_values.py; without the latter (large models) the estimates are drawn alone.
"""

from eap import cli, curve_plots, plotting

ESTIMATES = ("EAP", "EAP-IG", "EAP-IG-KL")
EXACT = ("real", "real-KL")


def main() -> None:
    """Draw results/real_pareto_combined/<model>/{png,pdf}/real_pareto_normalized."""
    args = plotting.make_parser(__doc__).parse_args()
    plotting.set_style()
    command = f"--model {args.model} --task {{task}}"
    frames = plotting.read_tasks(args, "pareto", f"python pareto.py {command}")
    bands = curve_plots.read_bands(args, "pareto", list(frames))
    figure, axes = plotting.panels(len(frames))
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        own = bands.get(task)
        curve_plots.draw_curves(ax, frame, bands=own, methods=ESTIMATES)
        try:
            path = plotting.model_folder(args, "real") / "csv" / f"{task}.csv"
            exact = plotting.read_table(path, needs=["baseline", "corrupted_baseline"])
            around = curve_plots.read_bands(args, "real", [task]).get(task)
            curve_plots.draw_curves(ax, exact, bands=around, methods=EXACT)
        except FileNotFoundError as error:
            made_by = f"python get_real_values.py {command.format(task=task)}"
            plotting.say_missing(error, made_by)
        curve_plots.limit_outliers(ax)
        ax.set_title(plotting.display_name(task))
        ax.set_xlabel(curve_plots.edges_label(curve_plots.total_edges(args.model, frame, own)))
    plotting.label_y(axes, "normalised faithfulness")
    plotting.shared_legend(figure, axes)
    folder = plotting.model_folder(args, "real_pareto_combined")
    plotting.save_figure(figure, folder, "real_pareto_normalized")


if __name__ == "__main__":
    cli.run(main)
