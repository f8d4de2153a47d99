"""Figure 5: overlap of the tasks' circuits beside how well each does the other tasks."""

from eap import cli, plotting
from eap.curves import normalised
from eap.errors import UserError


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/cross_task."""
    args = plotting.make_parser(__doc__, tasks=()).parse_args()
    plotting.set_style()
    jaccard = plotting.model_folder(args, "jaccard") / "csv"
    study = plotting.model_folder(args, "cross-task")
    try:
        nodes = plotting.read_table(jaccard / "node_ious.csv", index=True)
        edges = plotting.read_table(jaccard / "edge_ious.csv", index=True)
    except FileNotFoundError as error:
        command = f"python overlap_heatmaps.py --model {args.model}"
        raise UserError(f"no {error}; make it with: {command}") from None
    try:
        table = plotting.read_table(study / "csv" / "faithfulness.csv", index=True)
    except FileNotFoundError as error:
        command = f"python all_cross_task_faithfulness.py --model {args.model}"
        raise UserError(f"no {error}; make it with: {command}") from None
    tasks = [name for name in table.columns if name not in ("baseline", "corrupted_baseline")]
    faithfulness = table[tasks].apply(
        lambda column: normalised(column, table["baseline"], table["corrupted_baseline"])
    )
    figure, axes = plotting.panels(3, columns=3, height=3.4)
    figure.set_size_inches(2.1 * plotting.PAPER_WIDTH, 4.8)
    plotting.draw_heatmap(axes[0], nodes, title="Node IoU")
    plotting.draw_heatmap(axes[1], edges, title="Edge IoU")
    plotting.draw_heatmap(
        axes[2], faithfulness, title="Normalised faithfulness", low=-1.0, centre=0.0, cmap="RdBu"
    )
    axes[2].set_xlabel("whose circuit")
    axes[2].set_ylabel("task tested on")
    plotting.save_figure(figure, study, "cross_task")


if __name__ == "__main__":
    cli.run(main)
