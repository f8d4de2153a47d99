"""Docstrings of the public names: complete, with a noun in every line, and examples that run."""

from __future__ import annotations

import ast
import doctest
import inspect
import re

import pytest
from running import ROOT

import eap

# Words that begin no noun phrase: an argument's line stands alone in an editor.
NO_NOUN = set(
    "also as at be by for from how if in is it its of on that their them they to use used which "
    "whose with without begin draw give keep leave scale".split()
)


def sections(text: str) -> dict[str, str]:
    """The sections of a docstring in Google's form, by title."""
    found = re.split(r"^(Args|Attributes|Returns|Raises|Example):\n", text, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def entries(section: str) -> dict[str, str]:
    """The first line of every argument, by the names before its colon."""
    return dict(re.findall(r"^    ([*\w]+(?:, [*\w]+)*): ?(.*)$", section, re.MULTILINE))


def test_every_argument_line_begins_with_a_noun():
    wrong = []
    for path in sorted((ROOT / "eap").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                parts = sections(ast.get_docstring(node) or "")
                for name, text in entries(
                    parts.get("Args", "") + parts.get("Attributes", "")
                ).items():
                    first = re.match(r"[\w-]*", text)
                    if first and first.group(0).lower() in NO_NOUN:
                        wrong.append(f"{path.relative_to(ROOT)}: {node.name}: {name}: {text}")
                    if text.count("default:") > 1:
                        wrong.append(f"{path.relative_to(ROOT)}: {node.name}: {name}: two defaults")
    assert not wrong, "\n".join(wrong)


def test_no_text_about_a_thing_begins_without_it():
    """Docstrings of definitions, and texts below constants and fields."""
    wrong = []
    for path in sorted((ROOT / "eap").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                text = str(node.value.value)
                if text.startswith(("Of ", "As `", "By ")):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {text[:60]}")
    assert not wrong, "\n".join(wrong)


def public() -> dict[str, object]:
    """Every public function and class, and every public method that takes arguments."""
    found: dict[str, object] = {}
    for name in eap.__all__:
        thing = getattr(eap, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            found[name] = thing
    for name in ("logit_terms", "head_result"):
        found[f"attention.{name}"] = getattr(eap.attention, name)
    for owner in (eap.Graph, eap.Dataset, eap.PartScores, eap.Mean):
        for name, method in vars(owner).items():
            method = getattr(method, "__func__", method)
            if not name.startswith("_") and inspect.isfunction(method) and method.__doc__:
                found[f"{owner.__name__}.{name}"] = method
    return found


PUBLIC = public()
SEAM = ("Mean.start", "Mean.embedding", "Mean.run", "Mean.coefficients", "Mean.provenance")
NAMES = [name for name in PUBLIC if name not in SEAM]


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_documented(name):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing) or ""
    assert len(text.split("\n")[0].split()) >= 3, "a summary has a noun and what it does"
    if inspect.isclass(thing):
        return
    described = entries(sections(text).get("Args", ""))
    names = [part.strip("* ") for key in described for part in key.split(",")]
    needed = [key for key in inspect.signature(thing).parameters if key not in ("self", "cls")]
    assert [key for key in needed if key not in names] == []
    assert [key for key in names if key not in needed] == [], "arguments that are not there"


@pytest.fixture(scope="module")
def shown():
    """What the examples find ready: the model, a few pairs, scores and a circuit."""
    model = eap.load_model("toy")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=8)
    graph = eap.attribute(model, dataset, method="EAP", metric="logit_diff")
    circuit = graph.greedy(60).prune()
    return {"eap": eap, "model": model, "dataset": dataset, "graph": graph, "circuit": circuit}


EXAMPLES = [name for name in NAMES if ">>>" in (inspect.getdoc(PUBLIC[name]) or "")]


def test_every_public_function_and_class_has_an_example():
    missing = [name for name in PUBLIC if "." not in name and name not in EXAMPLES]
    assert missing == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(PUBLIC[name]) or ""
    test = doctest.DocTestParser().get_doctest(text, dict(shown), name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert not said, "".join(said)
