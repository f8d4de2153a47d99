"""The command line: what it loads, what it refuses before any work, and how a run ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from reference import twins
from running import EXPERIMENTS, ROOT, call, files_below
from safetensors.torch import load_file, save_file

import eap
from eap import attribution
from eap.engine import signature
from eap.runtime import progress
from eap.runtime.errors import UserError
from eap.studies import paths, scoring, shell, sweep
from eap.studies.settings import Settings

PAIRS = "clean,corrupted,correct,incorrect\nThe nurse said that,The doctor said that, she, he\n"
QUICK = ("--head", 4, "--end", 41, "--n_random", 0, "--device", "cpu")


def run_code(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run some Python in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=100, text=True, **options)


def test_defaults_are_said_once():
    texts = [shell.make_parser("x").format_help(), shell.figure_parser("x").format_help()]
    for text in (" ".join(part.split()) for part in texts):
        assert "default: toy)" in text
        assert "(default: None)" not in text
        assert not re.search(r"\(default[^)]*\) \(default", text)
    assert "(default: 0)" in texts[0], "a default that is 0 is one"


# ---- what is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize("script", EXPERIMENTS)
def test_help_loads_no_model_library(script):
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = run_code(code, ROOT / script, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "--model" in done.stdout


def test_an_argument_is_refused_without_loading_a_model_library():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['pareto.py', '--seed', '-1']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run_code(code, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: ")


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--seed", "-1"), "--seed"),
        (("--seed", 2**32), "from 0 to 4,294,967,295"),
        (("--seed", "9" * 5000), "--seed"),
        (("--memory", "nan"), "'nan' is not a number of gigabytes"),
        (("--memory", "inf"), "'inf' is not a number of gigabytes"),
        (("--memory", "1e300"), "'1e300' is not a number of gigabytes"),
        (("--memory", "-1"), "is not a number of gigabytes"),
        (("--ig_steps", "99999999999"), "from 1 to 1,000"),
        (("--ig_steps", "0"), "--ig_steps"),
        (("--ig_steps", "1.5"), "--ig_steps"),
        (("--head", "0"), "--head"),
        (("--head", "9" * 300), "--head"),
        (("--batch_size", "x" * 300), "--batch_size"),
        (("--model", ""), "cannot name files"),
        (("--model", "/"), "cannot name files"),
        (("--task", "mine"), "unknown task 'mine'"),
        (("--drop_unfit",), "--drop_unfit needs --data"),
        (("--data", ""), "is empty"),
        (("--data", "/"), "'/' is a folder"),
        (("--data", "/dev/null"), "'/dev/null' is not a regular file"),
        (("--data", "x" * 300), "cannot be read"),
        (("--data", "a\0b"), "is not a file name"),
        (("--data", "https://example.org/x.csv"), "is an address"),
        (("--output", "a\0b"), "is not the name of a folder"),
        (("--output", "/dev/null"), "is not a folder"),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, tuple) else "",
)
def test_arguments_are_checked_before_any_work(arguments, says, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(scoring, "load_model", None)  # would be called
    assert call("pareto.py", "--output", tmp_path, *arguments) == 2
    err = capfd.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert len(err) < 400
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    "task",
    [
        "../../../escaped/x", "/tmp/escaped", "..", "", "cost/benefit", "a\\b", "x" * 300, ".x",
        "a\nb",
    ],
)  # fmt: skip
def test_a_task_of_ones_own_stays_in_the_output(task, tmp_path, capfd):
    (tmp_path / "mine.csv").write_text(PAIRS)
    options = ("--task", task, "--data", tmp_path / "mine.csv", "--output", tmp_path / "a" / "out")
    assert call("pareto.py", *options) == 2
    err = capfd.readouterr().err
    assert "cannot name files" in err
    assert len(err.splitlines()) == 1
    assert files_below(tmp_path) == {"mine.csv"}


def test_a_task_is_studied_once(tmp_path, capfd):
    options = ("--tasks", "ioi", "sva", "ioi", "--output", tmp_path)
    assert call("overlap_heatmaps.py", *options) == 2
    assert "ioi is asked for twice" in capfd.readouterr().err


def test_settings_of_the_library_are_checked_like_those_of_the_shell():
    for wrong in (
        {"seed": -1}, {"seed": 2**40}, {"head": 0}, {"memory": 0}, {"ig_steps": 10**6},
        {"tasks": ()}, {"tasks": ("ioi", "ioi")}, {"tasks": ("nothing",)}, {"model": ""},
        {"tasks": ("a/b",), "data": Path("x.csv")}, {"drop_unfit": True},
    ):  # fmt: skip
        with pytest.raises(UserError):
            Settings(**wrong)
    settings = Settings(tasks=("mine",), data=Path("x.csv"), batch_size=3, memory=5)
    assert settings.task == "mine"
    assert settings.resources == {"batch_size": 3, "memory_budget": 5}


def test_rows_that_do_not_fit_are_dropped_if_asked(tmp_path, capfd):
    prompt = "Then, {} and {} walked to the park. {} gave a book to"
    clean = prompt.format("Mary", "John", "John")
    rows = [
        f'"{clean}","{prompt.format("Mary", "John", third)}", Mary, John'
        for third in ("Paul", "Peter", "Mark")
    ]
    rows.append(f'"{clean}","{clean} and", Mary, John')
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["clean,corrupted,correct,incorrect", *rows]) + "\n")
    options = ("--task", "mine", "--data", path, *QUICK, "--output", tmp_path / "out")
    assert call("pareto.py", *options) == 2
    assert "--drop_unfit" in capfd.readouterr().err
    assert call("pareto.py", *options, "--drop_unfit") == 0
    assert "mine: 3 pairs" in capfd.readouterr().out


# ---- streams and disks ---------------------------------------------------------------------------


RUN = "import sys\nfrom eap.studies import shell\n"


def ended(code: str, **options) -> tuple[int, str]:
    done = run_code(RUN + code, stderr=subprocess.PIPE, **options)
    return done.returncode, done.stderr


def test_a_full_output_ends_in_one_line():
    for code in (
        "shell.run(lambda: shell.say('x' * 100))",
        "shell.run(lambda: print('x' * 100))",  # noticed when it is flushed at the end
        "shell.run(lambda: shell.make_parser('x').parse_args(['--help']))",
    ):
        with Path("/dev/full").open("w") as full:
            status, err = ended(code, stdout=full)
        assert status == 1, (code, err)
        assert "No space left on device" in err
        assert len(err.splitlines()) == 1, err


def test_work_is_not_lost_for_a_letter_that_a_terminal_lacks(tmp_path):
    output = tmp_path / "gr\u00f6\u00dfe-\u6771"
    code = f"from eap.studies import shell; shell.run(lambda: shell.say({str(output)!r} + ' done'))"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("-\\u6771 done\n")


def test_a_closed_output_ends_in_one_line():
    code = "shell.run(lambda: shell.say('never'))"
    status, err = ended(code, preexec_fn=lambda: os.close(1))
    assert status == 1
    assert err.splitlines() == ["error: standard output is closed; give it a file, or /dev/null"]


def test_a_reader_that_went_away_ends_in_one_line():
    reading, writing = os.pipe()
    os.close(reading)
    code = "shell.run(lambda: [shell.say('x' * 1000) for _ in range(1000)])"
    status, err = ended(code, stdout=writing)
    os.close(writing)
    assert status == 1
    assert err.splitlines() == ["error: the reader of the output is gone"]


@pytest.mark.parametrize(
    ("code", "status", "says"),
    [
        ("raise OSError(28, 'No space left on device', 'a.csv')", 1, "left on device: a.csv"),
        ("raise PermissionError(13, 'Permission denied', 'b.csv')", 1, "denied: b.csv"),
        ("raise MemoryError", 1, "out of memory"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        (
            "import eap\n    raise eap.UserError('two\\n  lines')",
            2,
            "two lines",
        ),
        ("import torch\n    raise torch.OutOfMemoryError('x')", 1, "out of memory"),
        ("sys.exit(7)", 7, ""),
    ],
)
def test_how_a_run_ends(code, status, says):
    found, err = ended(f"def main():\n    {code}\nshell.run(main)\n")
    assert found == status
    assert says in err
    assert len(err.splitlines()) == (1 if says else 0)


def test_an_error_that_is_ours_keeps_its_traceback():
    status, err = ended("def main():\n    [][1]\nshell.run(main)\n")
    assert status == 1
    assert "IndexError" in err


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, capfd):
    (tmp_path / "results/pareto/toy/csv/ioi.csv").mkdir(parents=True)
    assert call("pareto.py", *QUICK, "--output", tmp_path) == 1
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith("error: Is a directory: ")
    assert "csv/ioi.csv" in err


def test_a_terminated_run_ends_with_its_status():
    code = RUN + "import time\nshell.run(lambda: (print('on', flush=True), time.sleep(60)))\n"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143


# ---- what is said on the way ---------------------------------------------------------------------


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_last_line", 0.0)
    for _ in progress.progress_bar(range(100), "pieces", quiet=False, done=100):
        clock.now += 2.0
        for _ in progress.progress_bar(range(3), "parts", quiet=False):
            clock.now += 0.1
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 10  # 230 seconds
    assert "\r" not in "".join(lines)
    assert any("pieces: " in line and "/200 (" in line and "left" in line for line in lines)


def test_what_is_short_or_quiet_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_last_line", 0.0)
    assert list(progress.progress_bar(range(50), "pieces", quiet=False)) == list(range(50))
    assert list(progress.progress_bar([1, 2], "pieces", quiet=True)) == [1, 2]
    assert list(progress.progress_bar([], "pieces", quiet=False)) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("metric", "clean", "corrupted", "noted"),
    [
        ("logit_diff", 3.5, -1.7, False),
        ("logit_diff", -1.73, 3.47, True),
        ("kl", 0.0, 2.0, False),
        ("kl", 2.0, 1.0, True),
        ("prob_diff", 0.5, 0.5, False),
    ],
)
def test_a_model_that_does_not_do_the_task_is_noted(metric, clean, corrupted, noted):
    frame = pd.DataFrame({"baseline": [clean], "corrupted_baseline": [corrupted]})
    note = sweep.baseline_note(frame, metric)
    assert (note is not None) == noted
    assert note is None or "does not do the task" in note


def test_the_last_line_says_what_was_written_and_what_comes_next(tmp_path, capfd):
    assert call("pareto.py", *QUICK, "--output", tmp_path) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert "csv/ioi.csv is written; draw it with: python results/pareto/" in last
    script = last.split("python ")[1].split(" --")[0]
    assert (ROOT / script).exists()
    assert f"--output {shell.shown(tmp_path)}" in last


def test_kl_leaves_eap_out(tmp_path, capfd):
    assert call("pareto.py", *QUICK, "--metric", "kl", "--output", tmp_path) == 0
    assert "skipped EAP: the gradient of kl is zero" in capfd.readouterr().out
    columns = list(pd.read_csv(tmp_path / "results/pareto/toy/csv/ioi.csv"))
    assert "loss_EAP-IG" in columns
    assert "loss_EAP" not in columns


def test_any_method_can_have_a_curve(tmp_path, capfd):
    options = (*QUICK, "--methods", "EAP", "RelP", "CEAP", "IFR", "AtP*-QK", "--output", tmp_path)
    assert call("pareto.py", *options) == 0
    columns = list(pd.read_csv(tmp_path / "results/pareto/toy/csv/ioi.csv"))
    names = ("EAP", "RelP", "CEAP", "IFR", "AtP*-QK")
    assert columns[3:] == [column for name in names for column in (f"edges_{name}", f"loss_{name}")]
    written = {name for name in files_below(tmp_path) if name.startswith("graphs")}
    assert written == {
        f"graphs/toy/ioi_{name}.json" for name in ("vanilla", "RelP", "CEAP", "IFR", "AtP-QK")
    }
    capfd.readouterr()
    assert call("pareto.py", *options) == 0
    assert capfd.readouterr().out.count("reusing ") == 5
    assert call("pareto.py", *QUICK, "--methods", "exact", "--output", tmp_path) == 2


# ---- what is used again --------------------------------------------------------------------------


def test_results_of_other_code_or_libraries_are_made_anew(tmp_path, capfd, monkeypatch):
    assert call("pareto.py", *QUICK, "--output", tmp_path) == 0
    capfd.readouterr()
    for name, other in (("score_code", "0" * 16), ("library_versions", {"torch": "0"})):
        with monkeypatch.context() as patched:
            for module in (signature, attribution, scoring):
                if hasattr(module, name):
                    patched.setattr(module, name, lambda other=other: other)
            assert call("pareto.py", *QUICK, "--output", tmp_path) == 0
        out = capfd.readouterr().out
        assert out.count(": the saved graph has another") == 3
        assert "reusing" not in out


def test_two_models_of_one_name_do_not_mix(tmp_path, capfd):
    twins = []
    for name, shift in (("a", 0.0), ("b", 0.5)):
        folder = tmp_path / name / "m"
        folder.mkdir(parents=True)
        for path in (ROOT / "data/toy-model").iterdir():
            if path.suffix != ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
                continue
            weights = load_file(path)
            weights = {key: value + shift * (value.ndim == 1) for key, value in weights.items()}
            save_file(weights, folder / path.name, metadata={"format": "pt"})
        twins.append(folder)
    output = tmp_path / "out"
    assert call("pareto.py", *QUICK, "--model", twins[0], "--output", output) == 0
    before = {name: (output / name).read_bytes() for name in files_below(output)}
    assert call("pareto.py", *QUICK, "--model", twins[1], "--output", output) == 2
    assert "is of another model" in capfd.readouterr().err
    assert {name: (output / name).read_bytes() for name in files_below(output)} == before


def test_the_next_experiment_has_the_settings_of_this_one(tmp_path):
    """Otherwise it would score other pairs, and its table could not be drawn beside this one's."""
    arguments = [
        "--model", "toy", "--tasks", "ioi", "sva", "--head", "4", "--seed", "3", "--expanded_kv",
        "--ig_steps", "7", "--no-prepend_bos", "--dtype", "float64", "--output", str(tmp_path),
    ]  # fmt: skip
    parser = shell.make_parser("Test.", tasks=True)
    shell.add_ig_arguments(parser)
    settings = shell.settings_of(parser.parse_args(arguments))
    command = scoring.next_experiment("all_cross_task_faithfulness.py", settings=settings)
    words = shlex.split(command)
    assert words[:2] == ["python", "all_cross_task_faithfulness.py"]
    assert shell.settings_of(parser.parse_args(words[2:])) == settings


def test_the_format_of_a_graph_goes_by_the_edges_that_it_has(monkeypatch):
    model = twins.load("llama")
    monkeypatch.setattr(paths, "JSON_EDGES", eap.Graph.from_model(model).n_edges)
    for expanded, suffix in ((False, ".json"), (True, ".safetensors")):
        settings = Settings(model="llama", expanded_kv=expanded)
        assert scoring.graph_path(settings, model, "ioi").suffix == suffix


def test_a_revision_is_passed_on_to_the_model_and_to_the_next_command(monkeypatch, tmp_path):
    from eap.studies import scoring, shell

    given = {}
    monkeypatch.setattr(scoring, "load_model", lambda name, **options: given.update(options))
    monkeypatch.setattr(scoring, "keep_folders", lambda *args, **options: None)
    words = ["--model", "gpt2", "--revision", "abc", "--output", str(tmp_path)]
    settings = shell.settings_of(shell.make_parser("a script").parse_args(words))
    scoring.load_model_of(settings)
    assert given["revision"] == "abc"
    assert "--revision abc" in scoring.next_experiment("pareto.py", settings=settings)
    figure = scoring.next_command("results/pareto/plot_pareto.py", settings=settings)
    assert "--revision" not in figure  # figures read tables alone


def test_help_shows_lists_of_defaults_as_they_are_typed(capfd):
    assert call("pareto.py", "--help") == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "(default: EAP EAP-IG EAP-IG-KL)" in text
    assert "(default: [" not in text
