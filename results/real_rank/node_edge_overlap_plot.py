"""Figure 9: overlap of circuits by estimates with circuits by exact values, by size.

Draws results of compare_real.py, with one row of panels for nodes, one row for edges, and one
column per task. A line begins at the first size at which one of the two circuits is not empty.
"""

from matplotlib.figure import Figure

import eap_circuits
from eap.figures import bars, style, tables
from eap.runtime.errors import UserError
from eap.studies import shell

LINES = {"EAP": "real_EAP", "EAP-IG": "real_EAP-IG"}


def main() -> None:
    """Draw results/real_rank/<model>/{png,pdf}/node_edge_overlap."""
    args = shell.figure_parser(__doc__).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("results/real_rank/compare_real.py")
    found = {
        kind: tables.required_table(
            results.csv("real_rank", f"{kind}-overlap"), command, needs=["depth"]
        )
        for kind in ("node", "edge")
    }
    tables.check_comparable(found.values())
    columns = set.intersection(*({*table.frame} for table in found.values()))
    tasks = [task for task in args.tasks if {f"{task}_{x}" for x in LINES.values()} <= columns]
    if not tasks:
        raise UserError(
            f"{shell.shown(found['node'].path)} has none of {', '.join(args.tasks)}; make it with: "
            f"{command}"
        )
    style.save_figure(draw(found, tasks), results.folder("real_rank"), "node_edge_overlap")


@style.styled
def draw(found: dict[str, tables.Table], tasks: list[str]) -> Figure:
    """Draw panels for nodes above panels for edges, with one column per task."""
    figure, axes = style.panels(
        2 * len(tasks), columns=len(tasks), height=1.5, sharex=True, sharey=True
    )
    for row, (kind, table) in enumerate(found.items()):
        panels = axes[row * len(tasks) : (row + 1) * len(tasks)]
        for ax, task in zip(panels, tasks, strict=True):
            bars.draw_method_lines(ax, table.frame, task, LINES)
            if row:
                ax.set_title("")
                ax.set_xlabel("edges selected", fontsize="small")
        panels[0].set_ylabel(f"IoU of {kind}s")
    style.shared_legend(figure, axes, columns=4)
    style.add_note(figure, tables.origin_note(found.values()))
    return figure


if __name__ == "__main__":
    eap_circuits.run(main)
