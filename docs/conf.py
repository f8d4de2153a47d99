"""How Sphinx builds the manual: `make docs`."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eap.runtime.version import __version__

project = "eap"
release = version = __version__
copyright = "the contributors of eap-circuits"  # noqa: A001 - Sphinx wants this name
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes hold asterisks, which reStructuredText reads as emphasis
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
html_theme = "furo"
html_title = f"eap {version}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Blocks of pages are executed by the tests, notebooks here: their outputs are in no file.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
# Sphinx reads what is below its folder alone.
HERE = Path(__file__).resolve().parent
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
suppress_warnings = ["myst.xref_missing"]  # links to files outside docs/, as GitHub shows them
