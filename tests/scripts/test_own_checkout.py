"""Scripts of a checkout run the package of that checkout, whatever is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from running import ROOT


@pytest.mark.parametrize("folder", [".", "results/circuit", "workflow"])
def test_a_script_imports_its_own_checkouts_package(folder, tmp_path):
    other = tmp_path / "other"
    (other / "eap" / "studies").mkdir(parents=True)
    for name in ("eap/__init__.py", "eap/studies/__init__.py", "eap/studies/catalogue.py"):
        (other / name).write_text("")
    script = other / folder / "script.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import eap_circuits\nimport eap\nprint(eap.__file__)\n")
    # Installed is this checkout; the script is the other one's.
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, text=True, capture_output=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout.strip() == str(other / "eap" / "__init__.py")
