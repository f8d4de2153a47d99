"""Files are whole or not there, nothing is left behind, and what cannot be written is named."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import forked
import pytest
from running import files_below

from eap.runtime.atomic import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_with_its_folder_and_readable_by_others(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    with write_atomically(path) as temporary:
        temporary.write_text("a\n1\n")
        assert not path.exists()
    assert path.read_text() == "a\n1\n"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert names(path.parent) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_earlier_file(error, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("earlier")

    def write_half():
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["table.csv"]


def test_no_reader_finds_a_temporary_file(tmp_path):
    for suffix in (".csv", ".json", ".safetensors", ".png"):
        with write_atomically(tmp_path / f"result{suffix}") as temporary:
            assert temporary.name.startswith(".")
            assert not list(tmp_path.glob(f"*{suffix}"))
            temporary.write_text("x")


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    code = (
        "import os, sys\n"
        "from eap.runtime.atomic import write_atomically\n"
        "with write_atomically(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "table.csv"
    process = forked.start("-c", code, path)
    assert process.wait(60) == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    with write_atomically(path) as first:
        first.write_text("first")
        with write_atomically(tmp_path / "other.csv") as second:
            second.write_text("second")
        assert first.exists()
    assert names(tmp_path) == ["other.csv", "table.csv"]


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(IsADirectoryError) as caught, write_atomically(tmp_path / "table.csv"):
        pass
    assert caught.value.filename == str(tmp_path / "table.csv")
    assert files_below(tmp_path) == set()


def test_an_error_of_the_system_while_writing_names_the_file(tmp_path):
    path = tmp_path / "table.csv"
    with pytest.raises(OSError, match="No space left") as caught, write_atomically(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    assert files_below(tmp_path) == set()


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, write_atomically(tmp_path / "table.csv"):
        Path("/nowhere/at/all").read_text()
    assert caught.value.filename == "/nowhere/at/all"


@pytest.mark.parametrize("name", ["run.part.safetensors", "graph.safetensors", "graph.json"])
def test_a_disk_that_takes_no_more_is_named(name, tmp_path):
    """A limit on the size of files stands for a full disk."""
    code = (
        "import resource, sys, torch\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from eap.graph.graph import Graph, GraphConfig\n"
        "from eap.runtime.checkpoint import Checkpoint\n"
        "path = Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    if '.part.' in path.name:\n"
        "        Checkpoint(path, {}, seconds=0.0).save(torch.ones(999, dtype=torch.float64), 1)\n"
        "    else:\n"
        "        Graph.from_config(GraphConfig(2, 4, 16, 4)).save(path)\n"
        "except OSError as error:\n"
        "    print(error.strerror, error.filename, sep='|')\n"
    )
    path = tmp_path / name
    process = forked.start("-c", code, path)
    out, err = process.communicate(60)
    assert process.returncode == 0, err
    reason, _, named = out.strip().partition("|")
    assert reason == "File too large"
    assert named.startswith(str(tmp_path / name.split(".")[0]))
    assert files_below(tmp_path) == set()
