"""Figures 3 and 11: normalised faithfulness of circuits from estimates and from exact values.

EAP, EAP-IG and EAP-IG-KL come from pareto.py (or pareto_big.py), activation patching and its KL
form from get_real_values.py; without the latter (large models) the estimates are drawn alone.
"""

from eap.figures import curves, style
from eap.studies import shell

ESTIMATES = ("EAP", "EAP-IG", "EAP-IG-KL")
EXACT = ("real", "real-KL")


def main() -> None:
    """Draw results/real_pareto_combined/<model>/{png,pdf}/real_pareto_normalized."""
    args = style.make_parser(__doc__).parse_args()
    style.set_style()
    command = f"--model {args.model} --task {{task}}"
    frames = style.read_tasks(args, "pareto", f"python pareto.py {command}")
    bands = curves.read_bands(args, "pareto", list(frames))
    figure, axes = style.panels(len(frames))
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        own = bands.get(task)
        curves.draw_curves(ax, frame, bands=own, methods=ESTIMATES)
        try:
            path = style.model_folder(args, "real") / "csv" / f"{task}.csv"
            exact = style.read_table(path, needs=["baseline", "corrupted_baseline"])
            around = curves.read_bands(args, "real", [task]).get(task)
            curves.draw_curves(ax, exact, bands=around, methods=EXACT)
        except FileNotFoundError as error:
            made_by = f"python get_real_values.py {command.format(task=task)}"
            style.say_missing(error, made_by)
        curves.limit_outliers(ax)
        ax.set_title(style.display_name(task))
        ax.set_xlabel(curves.edges_label(curves.total_edges(args.model, frame, own)))
    style.label_y(axes, "normalised faithfulness")
    style.shared_legend(figure, axes)
    folder = style.model_folder(args, "real_pareto_combined")
    style.save_figure(figure, folder, "real_pareto_normalized")


if __name__ == "__main__":
    shell.run(main)
