"""Kills every experiment at random moments, and compares what it ends with: make chaos N=20

    python tests/chaos.py --n 20 --only pareto.py --seed 0

Each script has one undisturbed run. Then, N times: it is started in an empty folder and killed at a
moment drawn from its whole time, imports included, by SIGKILL, SIGTERM and SIGINT in turn; what it
leaves must be whole files; started again, it must end with the undisturbed run's bytes and leave
nothing else. Two scripts do the same as two processes. Last, no file can have more than 50 kB, as
on a full disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from running import ROOT, files_below, launch, torchrun

TOY = ("--model", "toy", "--device", "cpu", "--head", "4")
RUNS: dict[str, tuple[str, ...]] = {
    "pareto.py": (*TOY, "--sizes", "30", "60", "--n_random", "1"),
    "pareto_big.py": (*TOY, "--n_steps", "2", "--n_random", "0"),
    "get_real_values.py": (*TOY, "--sizes", "30", "--save_every", "0"),
    "overlap_heatmaps.py": (*TOY, "--tasks", "ioi", "sva"),
    "all_cross_task_faithfulness.py": (*TOY, "--tasks", "ioi", "sva"),
    "test_ig_iterations.py": (*TOY, "--sizes", "30", "--steps", "2", "3"),
    "positions.py": (*TOY,),
    "stability.py": (*TOY, "--sizes", "30", "--n_resamples", "5", "--n_random", "19"),
}
IN_PROCESSES = ("pareto.py", "get_real_values.py")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    # Before Python listens it dies of the signal itself.
    signal.SIGTERM: (143, -signal.SIGTERM, 1),
    signal.SIGINT: (130, -signal.SIGINT, 1),
}
"""How a run may end that was killed so; 1 while Python itself starts."""
SMALL_DISK = 50_000


@dataclass
class Campaign:
    """One script, undisturbed and killed.

    Attributes:
        script: its name.
        processes: how many run it together.
        kills: runs that were killed before they ended.
        late: runs that ended before the signal came.
        findings: what was wrong, in words.
    """

    script: str
    processes: int = 1
    kills: int = 0
    late: int = 0
    findings: list[str] = field(default_factory=list)

    def start(self, output: Path) -> subprocess.Popen[str]:
        """The script, in a process group of its own."""
        command = (self.script, *RUNS[self.script], "--output", ".")
        if self.processes > 1:
            return torchrun(self.processes, *command, cwd=output)
        return launch(*command, cwd=output)

    def undisturbed(self, output: Path) -> tuple[dict[str, bytes], float]:
        """What a run that nobody kills writes, and its seconds."""
        begun = time.monotonic()
        process = self.start(output)
        _, err = process.communicate()
        if process.returncode:
            raise SystemExit(f"{self.script} fails undisturbed: {err[-500:]}")
        return files(output), time.monotonic() - begun

    def kill(self, output: Path, after: float, number: signal.Signals) -> None:
        """Start, wait, kill; see how it ends and what it leaves."""
        process = self.start(output)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            self.kills += 1
        else:
            self.late += 1
        if process.poll() is None:
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        try:
            _, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.findings.append(f"{number.name} after {after:.2f} s: did not end")
            return
        if self.processes == 1 and process.returncode not in (0, *ENDS[number]):
            self.findings.append(f"{number.name} after {after:.2f} s: status {process.returncode}")
        if self.processes == 1 and process.returncode in (130, 143) and "Traceback" in err:
            self.findings.append(f"{number.name} after {after:.2f} s: a traceback")
        self.findings += [f"{name} is no whole file" for name in broken(output)]

    def run(self, n: int, seed: int) -> None:
        """All kills."""
        source = random.Random(f"{seed} {self.script} {self.processes}")
        with tempfile.TemporaryDirectory() as folder:
            first = Path(folder) / "undisturbed"
            first.mkdir()
            expected, seconds = self.undisturbed(first)
            for number in range(n):
                output = Path(folder) / str(number)
                output.mkdir()
                self.kill(output, source.uniform(0, seconds), SIGNALS[number % len(SIGNALS)])
                process = self.start(output)
                _, err = process.communicate()
                if process.returncode:
                    self.findings.append(f"does not go on: {err.strip()[-300:]}")
                else:
                    self.findings += differences(files(output), expected)


def files(output: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {name: (output / name).read_bytes() for name in sorted(files_below(output))}


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """What a run that was killed and went on has other than an undisturbed one."""
    return [
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} is left behind" for name in sorted(found.keys() - expected.keys())),
        *(f"{name} differs" for name in sorted(found.keys() & expected.keys())
          if found[name] != expected[name]),
    ]  # fmt: skip


def broken(output: Path) -> list[str]:
    """Files that are there under their own names and are not whole."""
    wrong = []
    for name, content in files(output).items():
        if name.endswith(".json"):
            try:
                json.loads(content)
            except ValueError:
                wrong.append(name)
        elif name.endswith(".csv") and not content.endswith(b"\n"):
            wrong.append(name)
    return wrong


def fill_the_disk(script: str) -> list[str]:
    """Run where no file can have more than 50 kB: one line, and no half of a file."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder)

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK, SMALL_DISK))

        done = subprocess.run(
            [sys.executable, str(ROOT / script), *RUNS[script], "--output", "."],
            cwd=output, preexec_fn=limit, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        findings = [f"small disk: {name} is no whole file" for name in broken(output)]
        findings += [f"small disk: {n} is left" for n in files(output) if n.endswith(".tmp")]
        lines = done.stderr.strip().splitlines()
        if done.returncode == 0:
            findings.append("small disk: it was not full")
        elif "Traceback" in done.stderr or not lines[-1].startswith("error: "):
            findings.append(f"small disk: {done.stderr.strip()[-300:]}")
        return findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaigns, print a table; the number of findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=20, help="kills of every script")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    campaigns = [Campaign(script) for script in args.only]
    campaigns += [Campaign(script, 2) for script in args.only if script in IN_PROCESSES]
    print("| script | processes | killed | ended first | findings |\n|---|---|---|---|---|")
    found: list[str] = []
    for campaign in campaigns:
        campaign.run(args.n, args.seed)
        c = campaign
        print(
            f"| {c.script} | {c.processes} | {c.kills} | {c.late} | {len(c.findings)} |", flush=True
        )
        found += [f"{c.script}: {finding}" for finding in c.findings]
    if "pareto.py" in args.only:
        full = fill_the_disk("pareto.py")
        print(f"| pareto.py, small disk | 1 | | | {len(full)} |")
        found += full
    print("\n".join(["", *found]) if found else "\nnothing found")
    return len(found)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
