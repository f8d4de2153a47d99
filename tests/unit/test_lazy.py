"""Public names load their modules when first used."""

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


def test_importing_the_package_leaves_pythons_collector_alone():
    code = (
        "import gc; before = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(); "
        "import eap; eap.attribute, eap.Graph; "
        "assert (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
