"""Figure 5: overlap of the tasks' circuits beside how well each does the other tasks.

Draws cross_task (faithfulness as a share of the whole model's) and cross_task_own (as a share of
the task's own circuit's), and says how much of the latter the overlaps explain.
"""

import pandas as pd
from scipy import stats

from eap.figures import style
from eap.figures.cross_task import explained_variance, off_diagonal, read_faithfulness, read_square
from eap.studies import shell


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/{cross_task,cross_task_own}."""
    args = style.make_parser(__doc__, tasks=()).parse_args()
    style.set_style()
    nodes, edges = (read_square(args, f"{kind}_ious") for kind in ("node", "edge"))
    of_model, of_own = read_faithfulness(args)
    for name, title, faithfulness in (
        ("cross_task", "Cross-task faithfulness", of_model),
        ("cross_task_own", "Cross-task / own circuit's", of_own),
    ):
        figure, axes = style.heatmap_row(
            {"Node IoU": nodes, "Edge IoU": edges, title: faithfulness}
        )
        axes[2].set_xlabel("whose circuit")
        axes[2].set_ylabel("tested on")
        style.save_figure(figure, style.model_folder(args, "cross-task"), name)

    # The diagonal is 1 in all three by definition, and is left out.
    tasks = [task for task in nodes if task in of_own]
    x = pd.DataFrame(
        {
            "node IoU": off_diagonal(nodes.loc[tasks, tasks]),
            "edge IoU": off_diagonal(edges.loc[tasks, tasks]),
        }
    )
    y = off_diagonal(of_own.loc[tasks, tasks])
    if len(y) > 3:
        shell.say("how well overlap tells faithfulness (share of the own circuit's):")
        for name in x:
            found = stats.pearsonr(x[name], y)
            shell.say(f"  {name}: Pearson's r {found.statistic:.2f} (p = {found.pvalue:.2g})")
        shell.say(f"  both, linear regression: R^2 {explained_variance(x.to_numpy(), y):.2f}")


if __name__ == "__main__":
    shell.run(main)
