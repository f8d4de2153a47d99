"""Names of the scripts as commands of `eap`, and how users type them. Loads no torch."""

import re
import sys

from eap.studies.catalogue import STEPS
from eap.studies.paper_figures import FIGURES

EXPERIMENTS = {
    "pareto": ("pareto.py", "faithfulness of circuits by size, for EAP and EAP-IG"),
    "pareto-big": ("pareto_big.py", "the same, with sizes up to a share of all edges"),
    "exact": ("get_real_values.py", "the exact value of every edge"),
    "overlap": ("overlap_heatmaps.py", "how much the tasks' circuits overlap"),
    "cross-task": ("all_cross_task_faithfulness.py", "one task's circuit on another task"),
    "ig-test": ("test_ig_iterations.py", "how many points of integrated gradients are enough"),
    "stability": ("stability.py", "how far a task's circuit can be trusted"),
    "positions": ("positions.py", "where in the prompt circuits work"),
    "parts": ("parts.py", "how many hidden units and channels keep a circuit faithful"),
    "mib": ("mib.py", "one cell of MIB's circuit track"),
}


def figures() -> dict[str, tuple[str, str]]:
    """Scripts that draw, by command name: path of the script, and a description of the figure.

    Numbered figures come first, in the order of the paper.
    """
    titles = {figure.label: figure.title for figure in FIGURES}
    drawn = {}
    for step in (step for step in STEPS if step.script.startswith("results/")):
        label, *rest = step.asks.split(", ")
        title = f": {titles[label][0].lower()}{titles[label][1:]}" if label in titles else ""
        said = f"{label}{title}{''.join(f' ({more})' for more in rest)}" if title else step.asks
        drawn[step.name.replace("_", "-")] = step.script, said
    return dict(sorted(drawn.items(), key=lambda item: _place(item[1][1])))


def _place(said: str) -> int:
    """Sort key of a figure: its number in the paper; unnumbered figures come last."""
    number = re.match(r"Figure (\d+)", said)
    return int(number[1]) if number else 100


def as_typed(script: str) -> list[str]:
    """First words of a script's command, in the form in which the running command was typed."""
    names = {path: name for name, (path, _) in (EXPERIMENTS | figures()).items()}
    if sys.argv[0].startswith("eap ") and script in names:
        return ["eap", names[script]]
    return ["python", script]
