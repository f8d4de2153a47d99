"""Public names load their modules when first used, and Python's collector rests meanwhile."""

import gc
import sys
import weakref

import pytest
import torch

import eap
import eap.analysis
import eap.data.collections
import eap.statistics
from eap.runtime.lazy import attach
from eap.studies import scoring, shell


@pytest.fixture
def package(tmp_path, monkeypatch):
    """`__getattr__` of a package whose module notes whether the collector was on."""
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "__init__.pyi").write_text(
        "from .module import collects as collects\nfrom .broken import x as x\n"
    )
    (folder / "module.py").write_text("import gc\ncollects = gc.isenabled()\n")
    (folder / "broken.py").write_text("raise ValueError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield attach("pack", str(folder / "__init__.py"))
    for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
        del sys.modules[name]


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_while_a_module_loads(package, enabled):
    load, names, public = package
    assert set(names()) >= {"collects", "x"}
    assert set(public) >= {"collects", "x"}
    (gc.enable if enabled else gc.disable)()
    try:
        assert load("collects") is False
        assert gc.isenabled() is enabled
        with pytest.raises(ValueError, match="broken"):
            load("x")
        with pytest.raises(AttributeError, match="nothing"):
            load("nothing")
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


ROOMS = (
    eap,
    eap.analysis,
    eap.data.collections,
    eap.figures,
    eap.runtime,
    eap.statistics,
    eap.studies,
)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_every_public_name_loads(room):
    for name in room.__all__:
        assert getattr(room, name) is not None


def test_libraries_are_set_aside_once(monkeypatch):
    """What is unused at a second time must still be freed."""
    monkeypatch.setattr(scoring, "load_model", lambda *args, **options: None)
    monkeypatch.setattr(scoring, "keep_folders", lambda *args, **options: None)
    settings = shell.settings_of(
        shell.make_parser("").parse_args(["--model", "toy", "--task", "ioi"])
    )
    gc.unfreeze()
    scoring.load_model_of(settings)
    assert gc.get_freeze_count() > 10_000
    model = torch.nn.Module()
    model.itself = [model]
    gone = weakref.ref(model)
    del model
    scoring.load_model_of(settings)
    gc.collect()
    assert gone() is None
