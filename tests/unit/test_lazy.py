"""Public names load their modules when first used."""

import importlib
import inspect
import subprocess
import sys

import pytest

import eap
import eap.analysis
import eap.data.collections
import eap.statistics

INNER = (eap.analysis, eap.data.collections, eap.statistics)
ROOMS = (eap, eap.figures, eap.runtime, eap.studies, *INNER)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_every_public_name_loads(room):
    for name in room.__all__:
        assert getattr(room, name) is not None


def test_modules_are_imported_by_their_short_names():
    """Names as the reference writes them; the module is one, whatever it is called."""
    modules = [name for name in eap.__all__ if inspect.ismodule(getattr(eap, name))]
    assert {"attention", "screening", "known_circuits", "ablation"} <= set(modules)
    for name in modules:
        module = importlib.import_module(f"eap.{name}")
        assert module is getattr(eap, name)
        assert module.__spec__.name == module.__name__
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'eap\.certify'"):
        importlib.import_module("eap.certify")


def test_importing_the_package_leaves_pythons_collector_alone():
    code = (
        "import gc; before = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(); "
        "import eap; eap.attribute, eap.Graph; "
        "assert (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
