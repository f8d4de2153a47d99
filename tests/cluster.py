"""The workflow as on a cluster: jobs are submitted, a node dies, another loses its scratch folder.

    make cluster
    python tests/cluster.py --output a/new/folder

Snakemake's executor for any scheduler (cluster-generic) submits every job to this file, which
starts the job as a node would: in a session of its own, with a scratch folder (TMPDIR) of its own,
away from the folder where the workflow was started. While the workflow runs, the first experiment
that is seen at work is killed with all its processes, and the next one loses its scratch folder.
The workflow must submit the killed job again, end well, and have nothing left to do.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from running import ROOT

NODES = "EAP_TEST_NODES"
"""The environment's name for the folder in which every submitted job has a folder: its node."""
TARGETS = ("pareto_ioi", "pareto_sva", "exact_sva", "figure_1")
SETTINGS = ("model=toy", "head=20", "tasks=ioi sva")


def main() -> int:
    """Submit, ask, cancel (for Snakemake), or the whole trial."""
    verbs = {"submit": submit, "status": status, "cancel": cancel}
    if len(sys.argv) > 1 and sys.argv[1] in verbs:
        verbs[sys.argv[1]](*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a new folder (default: a temporary one)")
    args = parser.parse_args()
    output = (args.output or Path(tempfile.mkdtemp(prefix="cluster-"))).resolve()
    failures = trial(output)
    print("\n".join(f"WRONG: {failure}" for failure in failures) or "all well")
    return bool(failures)


# --- What a scheduler does ------------------------------------------------------------------------


def submit(script: str) -> None:
    """Start a job on a node of its own, and print the node's name."""
    node = Path(tempfile.mkdtemp(prefix="node-", dir=os.environ[NODES]))
    (node / "scratch").mkdir()
    shutil.copy(script, node / "job.sh")
    environment = {**os.environ, "TMPDIR": str(node / "scratch")}
    command = f"bash {node}/job.sh > {node}/log 2>&1; echo $? > {node}/ended"
    process = subprocess.Popen(
        ["bash", "-c", command], cwd="/", env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    (node / "session").write_text(str(process.pid))
    print(node.name)


def status(name: str) -> None:
    """Print what became of a job: a node that is gone has failed."""
    node = Path(os.environ[NODES], name)
    if (node / "ended").exists():
        print("success" if (node / "ended").read_text().strip() == "0" else "failed")
    else:
        print("running" if processes(node) else "failed")


def cancel(*names: str) -> None:
    """Kill jobs."""
    for name in names:
        kill(Path(os.environ[NODES], name))


def processes(node: Path) -> list[int]:
    """Processes of a node's session that have not ended."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "--sid", (node / "session").read_text()],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    return [int(pid) for pid, state in map(str.split, listed.splitlines()) if state[0] != "Z"]


def kill(node: Path) -> None:
    """End all of a node's processes at once."""
    for process in processes(node):
        os.kill(process, signal.SIGKILL)


# --- The trial ------------------------------------------------------------------------------------


def trial(output: Path) -> list[str]:
    """Run the workflow, be its bad luck, and say what was not as it must be."""
    nodes = output / "nodes"
    nodes.mkdir(parents=True)
    environment = {**os.environ, NODES: str(nodes), "OMP_NUM_THREADS": "1"}
    itself = f"{sys.executable} {Path(__file__).resolve()}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow/Snakefile")]
    command += ["--executor", "cluster-generic", "--jobs", "2", "--retries", "1", *TARGETS]
    command += [f"--cluster-generic-{verb}-cmd={itself} {verb}" for verb in ("submit", "status")]
    command += [
        f"--cluster-generic-cancel-cmd={itself} cancel",
        "--seconds-between-status-checks=1",
    ]
    command += ["--config", *SETTINGS, f"output={output / 'shared'}"]
    workflow = subprocess.Popen(command, cwd=ROOT, env=environment)
    killed = lost = None
    while workflow.poll() is None:
        for node in at_work(nodes):
            if killed is None:
                kill(killed := node)
                print(f"killed {job_of(node)} on {node.name}")
            elif lost is None and node != killed:
                shutil.rmtree((lost := node) / "scratch")
                print(f"{node.name} lost its scratch folder under {job_of(node)}")
        time.sleep(0.2)
    jobs = [job_of(node) for node in nodes.iterdir()]
    print(f"{len(jobs)} jobs were submitted: {', '.join(sorted(jobs))}")
    failures = []
    if workflow.returncode:
        failures.append(f"the workflow ended with {workflow.returncode}")
    if killed is None or lost is None:
        failures.append("no experiment was seen at work")
    elif jobs.count(job_of(killed)) != 2:
        failures.append(f"{job_of(killed)} was submitted {jobs.count(job_of(killed))} times, not 2")
    if set(jobs) < set(TARGETS):
        failures.append(f"not submitted: {set(TARGETS) - set(jobs)}")
    again = subprocess.run([*command, "--dry-run"], env=environment, cwd=ROOT, text=True,
                           capture_output=True, check=False)  # fmt: skip
    if again.returncode or "Nothing to be done" not in again.stdout + again.stderr:
        failures.append(f"a second run is not idle:\n{again.stdout}{again.stderr}")
    return failures


def at_work(nodes: Path) -> list[Path]:
    """Nodes on which an experiment has begun: its script has said what it does."""
    return [
        node
        for node in sorted(nodes.glob("node-*"))
        if (node / "log").exists() and " pairs" in (node / "log").read_text("utf8")
        and not (node / "ended").exists()
    ]  # fmt: skip


def job_of(node: Path) -> str:
    """The step that a node was given."""
    text = (node / "job.sh").read_text("utf8")
    return text.split('"rule": "')[1].split('"')[0]


if __name__ == "__main__":
    sys.exit(main())
