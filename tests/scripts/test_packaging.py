"""What is declared is what is imported; the wheel works in an empty folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from running import ROOT

import eap

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
BESIDE_US = {"eap", "eap_circuits", "manual_overlap"}
OPTIONAL = {"datasets"}  # of the extra `mib`


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name)[0]).lower()


def imported(*folders: str) -> set[str]:
    """Top-level names that the sources import."""
    names = set()
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in [*paths, *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(str(node.module).split(".")[0])
    return names - set(sys.stdlib_module_names) - BESIDE_US


def test_what_is_imported_is_declared_and_the_reverse():
    declared = {canonical(name) for name in PROJECT["project"]["dependencies"]}
    brings = packages_distributions()
    used = {canonical(brings[name][0]) for name in imported("eap", "results") - OPTIONAL}
    assert used == declared


def test_every_requirement_is_pinned_for_make():
    pinned = {
        canonical(line)
        for line in (ROOT / "constraints.txt").read_text("utf8").splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {canonical(name) for extra in ("dev", "paper", "docs") for name in extras[extra]}
    needed |= {canonical(name) for name in PROJECT["project"]["dependencies"]}
    assert needed <= pinned


def test_the_wheel_has_every_package():
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "eap").rglob("__init__.py")
    }
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed - {"eap._data", "eap._scripts"} == folders


def test_the_version_is_written_once():
    assert eap.__version__ == PROJECT["project"]["version"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel and nothing else of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("eap_circuits-*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def run(installed, folder, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_works_from_the_wheel_in_an_empty_folder(installed, tmp_path):
    options = ["--model", "toy", "--head", "12", "--end", "41", "--n_random", "1"]
    run(installed, tmp_path, str(installed / "bin" / "eap"), "pareto", *options)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"results/pareto/toy/csv/ioi.csv", "graphs/toy/ioi_task.json"} <= made


def test_all_that_is_shipped_is_found_in_the_wheel(installed, tmp_path):
    code = """
from pathlib import Path
import eap
from eap.data.collections.known_circuits import FOLDER
from eap.runtime.shipped import data_folder
from eap.runtime.code import score_code
assert Path(eap.__file__).parent.parent == Path({site!r}), eap.__file__
assert (Path(eap.__file__).parent / "py.typed").exists()
assert (data_folder() / "published" / "gpt2.json").exists() and FOLDER.is_dir()
assert len(list(data_folder().rglob("toy.csv"))) == 8
assert (data_folder() / "manual_circuits" / "ioi.json").exists()
print(eap.__version__, score_code())
"""
    (tmp_path / "use.py").write_text(code.replace("{site!r}", repr(str(installed))), "utf8")
    version, code_hash = run(installed, tmp_path, "use.py").split()
    assert version == eap.__version__
    here = "from eap.runtime.code import score_code; print(score_code())"
    assert code_hash == run(ROOT, ROOT, "-c", here).strip()


def test_the_conda_environment_is_the_projects():
    """No solver is asked: what it would be given agrees with what pip is given."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))
    (python,) = (d for d in environment["dependencies"] if str(d).startswith("python="))
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert python == f"python={oldest}"
    (pip,) = (d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert "pip" in environment["dependencies"]
    assert pip == ["--constraint constraints.txt", "--editable .[dev]"]
    assert (ROOT / "constraints.txt").is_file()
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_the_workflow_and_the_hooks_call_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf8"))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    pythons = []
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/x@v1"))
            for made in re.findall(r"^make (.*)$", step.get("run", ""), re.MULTILINE):
                assert set(made.split()) <= targets, made
            if "python-version" in step.get("with", {}):
                pythons.append(step["with"]["python-version"])
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert {oldest, "3.13"} <= {*pythons, *matrix}
    assert all(isinstance(python, str) for python in (*pythons, *matrix))  # 3.10 would be 3.1
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf8"))["repos"][0][
        "hooks"
    ]
    dev = {canonical(name) for name in PROJECT["project"]["optional-dependencies"]["dev"]}
    brings = {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter"}
    for hook in hooks:
        assert brings[Path(hook["entry"].split()[0]).name] in dev
