"""The page of the reference, made from the public names: python docs/reference.py.

Every public name of `eap` stands in one group, and the page is complete or this script fails. The
table of a group is for readers of the plain file; Sphinx adds the full docstrings below it.
"""

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).resolve().parent / "reference.md"
sys.path.insert(0, str(PAGE.parents[1]))

import eap  # noqa: E402 - the folder must be known first

GROUPS = {
    "Models": "load_model from_bridge Model",
    "Data": "load_dataset Dataset Example",
    "Scores": "attribute example_scores ExampleScores mean_of Method Auto learn_ranking Recipe",
    "Exact values": "patch_edges patch_nodes",
    "Graphs and circuits": "Graph Edge GraphConfig",
    "Faithfulness": "faithfulness Faithfulness evaluate evaluate_baselines evaluate_soft",
    "Metrics": "Metric from_sequence_metric",
    "Ablations": "Resample Zero Mean",
    "What a result is worth": "areas Areas bootstrap certify judge leave_one_out second_circuit "
    "find_clusters",
    "Attention": "crossing_scores CrossingScores attention_patterns attention.logit_terms "
    "attention.head_result attention.head_reasons",
    "Inside a node": "part_scores PartScores part_activity PartCircuit unit_edges UnitEdges "
    "load_features Features load_neurons save_neurons",
    "Pages": "write_page",
    "Errors": "UserError",
}
"""Functions and classes by what they are for, in the order of the page."""

OPENING = """# Reference

Written by `python docs/reference.py` from the public names: `import eap` gives all of them, and
each loads its module when it is first used. Shapes stand in brackets, axes by name:
`[n_forward, n_backward]` is a number for every pair of a sender and a receiver. Scores are in units
of the metric. Bad input is an `eap.UserError` with one line. Every example runs as it stands, after

    model = eap.load_model("toy")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=8)
    graph = eap.attribute(model, dataset, method="EAP", metric="logit_diff")
    circuit = graph.greedy(60).prune()
"""


def summary(thing: Any) -> str:
    """The first sentence of a docstring, on one line of a table."""
    text = (thing if isinstance(thing, str) else inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", r"\|")


def find(name: str) -> Any:
    """A public name, also below a module."""
    found: Any = eap
    for part in name.split("."):
        found = getattr(found, part)
    return found


def table(names: dict[str, Any]) -> list[str]:
    """A table of names and summaries."""
    rows = [f"| `{name}` | {summary(thing)} |" for name, thing in names.items()]
    return ["| name | what it is |", "|---|---|", *rows, ""]


def directives(names: dict[str, Any]) -> list[str]:
    """What Sphinx reads the docstrings by."""
    lines = ["```{eval-rst}"]
    for name, thing in names.items():
        kind = "autoclass" if inspect.isclass(thing) else "autofunction"
        lines.append(f".. {kind}:: {name}")
        if inspect.isclass(thing):
            lines.append("   :members:")
    return [*lines, "```", ""]


def members(module: ModuleType) -> dict[str, Any]:
    """The public functions and classes of a module, or of a package of lazy names."""
    names = getattr(module, "__all__", None) or vars(module)
    found = {name: getattr(module, name) for name in sorted(names) if not name.startswith("_")}
    return {
        name: thing
        for name, thing in found.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__.startswith("eap.")
        and (hasattr(module, "__all__") or thing.__module__ == module.__name__)
    }


def submodules(module: ModuleType) -> dict[str, str]:
    """The modules of a package, with their docstrings."""
    folder = Path(module.__path__[0]) if hasattr(module, "__path__") else None
    paths = sorted(folder.glob("*.py")) if folder else []
    return {
        f"{module.__name__}.{path.stem}": ast.get_docstring(ast.parse(path.read_text("utf8"))) or ""
        for path in paths
        if not path.stem.startswith("_")
    }


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public name is in no group, or a name of a group is not public.
    """
    lines = [OPENING]
    modules = {name: getattr(eap, name) for name in eap.__all__}
    modules = {name: thing for name, thing in modules.items() if inspect.ismodule(thing)}
    grouped = [name for names in GROUPS.values() for name in names.split()]
    public = set(eap.__all__) - set(modules) - {"__version__"}
    if public != {name for name in grouped if "." not in name}:
        raise ValueError(f"in no group, or not public: {public.symmetric_difference(grouped)}")
    for title, names in GROUPS.items():
        found = {f"eap.{name}": find(name) for name in names.split()}
        lines += [f"## {title}", "", *table(found), *directives(found)]
    lines += [
        "## Modules",
        "",
        "What the modules hold beyond the names above; their docstrings say more.",
        "`eap.__version__` is the version of the package.",
        "",
    ]
    known = {id(find(name)) for name in grouped}
    for name, module in sorted(modules.items()):
        rest = {
            f"eap.{name}.{key}": thing
            for key, thing in members(module).items()
            if id(thing) not in known
        }
        lines += [f"### `eap.{name}`", "", summary(module), ""]
        rows = table(rest) if rest else []
        lines += rows or table(submodules(module))
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf8")
