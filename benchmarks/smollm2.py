"""The paper on a real language model: runs the whole study and writes docs/smollm2.md.

    python benchmarks/smollm2.py path/to/SmolLM2-135M-Instruct --output path/to/results

Runs the workflow with the settings of workflow/smollm2.yaml, then the areas of all methods, and
keeps tables with their metadata, pictures and the page of a circuit in results/gallery/smollm2. It
can be stopped, and goes on with the same command; what is finished is not run again.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

import eap
from eap import figures
from eap.analysis import screening
from eap.data.tasks import PARETO_TASKS, TASKS
from eap.figures.measured import read_measured
from eap.figures.tables import Results
from eap.runtime.atomic import write_atomically
from eap.statistics.intervals import Interval
from eap.studies import shell
from eap.studies.catalogue import FIGURES, as_pattern

REPOSITORY = Path(__file__).resolve().parent.parent
STUDY = REPOSITORY / "workflow" / "smollm2.yaml"
GALLERY = REPOSITORY / "results" / "gallery" / "smollm2"
PAGE = REPOSITORY / "docs" / "smollm2.md"
AREAS = (
    "--tasks", "ioi", "--levels", "edge", "--pairs", "100", "--judged", "100",
    "--methods", "EAP", "EAP-IG", "clean-corrupted", "EAP-IG-activations", "CEAP", "RelP",
    "AttnLRP", "GIM", "AtP*-QK", "AtP*-GradDrop", "IFR", "--learned", "--learning_steps", "500",
)  # fmt: skip
"""Of benchmarks/areas.py: all methods but exact values, which would take hours."""

SHOWN = ("Figure 1", "Figure 2", "Figure 3", "Figure 4", "Figure 5", "Figure 7", "Figure 8",
         "Figure 9", "Figure 10", "Overlap, and chance", "Stability")  # fmt: skip

INTRODUCTION = """# The paper on SmolLM2-135M

Written by

    python benchmarks/smollm2.py path/to/SmolLM2-135M-Instruct --output path/to/results

which runs the workflow with `workflow/smollm2.yaml`, then `benchmarks/areas.py`. The tables behind
all pictures are kept with their metadata in `results/gallery/smollm2`; any figure script redraws
its picture from there with `--model SmolLM2-135M-Instruct --output results/gallery/smollm2`.

**Model.** SmolLM2-135M-Instruct (Apache-2.0): a Llama of 30 layers with 9 query heads and 3
key/value heads, d_model 576; its graph has 70,651 edges (q, k and v per key/value head). Weights
are those of the 4-bit GGUF file (embedding 8-bit), dequantised to float32: a real language model,
not the exact one of the hub.

**BOS, chosen beforehand by one rule:** the token that documents begin with in training. That is
`<|endoftext|>`, not the chat template's `<|im_start|>` that the tokenizer is configured with:
prompts here are plain text.

**Pairs.** 100 a task for estimates, curves and circuits; the first 20 of them for exact values
and the estimates that these are compared with. The error bars are 95%.
"""


def main() -> None:
    """Run what is not finished, keep it, write the page."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=Path, help="a directory")
    add("--output", type=Path, default=Path("smollm2-results"), help="of graphs and results")
    add("--page_only", action="store_true", help="write the page from what is there")
    args = parser.parse_args()
    model, output = args.model.resolve(), args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if not args.page_only:
        run_workflow(model, output)
        run_areas(model, output)
    results = Results(output, str(model))
    write_circuit(results)
    keep(results)
    with write_atomically(PAGE) as temporary:
        temporary.write_text(page(results), encoding="utf8")
    shell.say(f"wrote {shell.shown(PAGE)}")


# ---- running -------------------------------------------------------------------------------------


def run_workflow(model: Path, output: Path) -> None:
    """Every experiment and figure."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--cores", "2", "--config", f"model={model}", f"output={output}"]
    command += ["--configfile", str(STUDY)]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def run_areas(model: Path, output: Path) -> None:
    """Areas of all methods, with the time and memory that they took."""
    table, took = output / "areas.csv", steps_folder(model, output) / "areas.tsv"
    if table.exists():
        return
    command = [sys.executable, "benchmarks/areas.py", "--model", str(model), *AREAS]
    command += ["--page", str(output / "areas.md"), "--csv", str(table)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    with took.open("w", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["s", "max_rss", "cpu_time"])
        seconds = time.perf_counter() - begun
        rows.writerow([seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime])


def steps_folder(model: Path, output: Path) -> Path:
    """Where the workflow writes what its steps took."""
    return output / "results" / model.name / "steps"


def write_circuit(results: Results) -> None:
    """The page to look around in IOI's circuit, beside what is kept."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    graph = figures.graphs.find_graph(results, "ioi_task")
    page = GALLERY / "ioi.html"
    circuits = read_measured(results, "ioi_task", graph)
    curve = {circuit.n_edges: (circuit.value, circuit.error) for circuit in circuits.values()}
    sizes = sorted({10, 20, 40, *(n for n in circuits if n <= 400)})
    eap.write_page(graph, page, names=("ioi, EAP-IG", ""), sizes=sizes, curve=curve)
    name = results.folder("pareto").name
    page.write_text(page.read_text("utf8").replace(results.model, name), encoding="utf8")


def keep(results: Results) -> None:
    """Copy tables, metadata and pictures; where the model lay is no matter."""
    name = results.folder("pareto").name
    for path in sorted((results.output / "results").glob(f"*/{name}/**/*")):
        wanted = path.suffix in (".csv", ".png") or path.name.endswith(".csv-metadata.json")
        if not wanted and path.name != "correlations.json":
            continue
        kept = GALLERY / path.relative_to(results.output)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            text = path.read_text("utf8").replace(results.model, name)
            text = text.replace(f" --output {results.output}", "").replace(" --output .", "")
            kept.write_text(text, encoding="utf8")
        else:
            shutil.copy(path, kept)
    shutil.copy(results.output / "areas.csv", GALLERY)


# ---- the page ------------------------------------------------------------------------------------


def page(results: Results) -> str:
    """All of it."""
    areas = (results.output / "areas.md").read_text("utf8")
    tables_of_areas = areas[areas.index("\n## ") :].strip().replace("\n## ", "\n### ")
    return (
        "\n\n".join(
            [
                INTRODUCTION.strip(),
                claims(results),
                missed(results),
                "## Figures",
                *pictures(results),
                "## Areas of every method\n\nEvery method scored 100 pairs and was judged on 100 "
                "others (`benchmarks/areas.py`; [what the columns are](method-areas.md)). MAttr "
                "learned for 500 steps of one pair each, by two losses.",
                f"#{tables_of_areas}",
                learned(results),
                verdicts(results),
                costs(results),
            ]
        )
        + "\n"
    )


def claims(results: Results) -> str:
    """The paper's claims beside what this model shows."""
    frame = pd.read_csv(results.csv("claims", "claims"))
    lines = ["## The paper's claims", "", "| claim | measured | mean [95% over tasks] | tasks | |",
             "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row.claim} | {row.quantity} | {Interval(*map(float, ends))} "
        f"| {row.n_tasks} | **{row.verdict}** |"
        for row, ends in zip(
            frame.itertuples(), frame[["value", "low", "high"]].to_numpy(), strict=True
        )
    ]
    lines += [
        "",
        READING,
        "",
        "A claim holds if the whole interval is above its bound: 0, .5 for the variance that "
        "overlap leaves unexplained, -.02 for points of integration.",
    ]
    return "\n".join(lines)


READING = """Why ranks and values disagree: most edges move the metric so little that it is linear
in them, and there the slope at the clean input (EAP) is nearly the exact value: Kendall's tau
counts all 70,651 edges alike. The few edges that move it much, of which Pearson's r and small
circuits are made, are where the mean slope along the path (EAP-IG) is the better one. Circuits of
exact values are not always the most faithful ones (Figure 3, where they are of 20 pairs and the
estimates of 100): an edge's value alone is not its value in a circuit."""


def learned(results: Results) -> str:
    """MAttr beside EAP-IG, on pairs that neither has seen."""
    rows = pd.read_csv(results.output / "areas.csv").set_index("method")
    ours, theirs = rows.loc["MAttr (faithfulness)"], rows.loc["EAP-IG"]
    lines = ["**MAttr (faithfulness) against EAP-IG**, on pairs that neither has seen:", ""]
    for column, words in (("cmd", "CMD (lower is better)"), ("accuracy", "accuracy")):
        a, b = (f"{row[column]:.3f}" for row in (ours, theirs))
        low, high = ours[f"{column}_low"], ours[f"{column}_high"]
        apart = low > theirs[f"{column}_high"] or high < theirs[f"{column}_low"]
        better = (ours[column] < theirs[column]) == (column == "cmd")
        verdict = f"{'MAttr' if better else 'EAP-IG'} is better" if apart else "inconclusive"
        lines.append(f"- {words}: {a} against {b}: {verdict}.")
    lines.append(
        f"- CPR: {ours.cpr:.3f} against {theirs.cpr:.3f}, where .999 is the whole model: MAttr is "
        f"{abs(ours.cpr - 0.999):.2f} from it, EAP-IG {abs(theirs.cpr - 0.999):.2f}. Circuits of "
        "the edges that help most overshoot: they leave out what the model has against the answer. "
        "MAttr that descends the metric itself overshoots most "
        f"({rows.cpr['MAttr (metric)']:.2f})."
    )
    return "\n".join(lines)


def verdicts(results: Results) -> str:
    """The stability card's tests of one circuit."""
    frame = pd.read_csv(results.csv("stability", "ioi_verdicts"))
    lines = [
        "## What one circuit of IOI is",
        "",
        "`stability.py`: scored on 50 pairs, tested on 50 others.",
        "",
        "| test | statistic | p | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.test} | {row.statistic:.3f} | {row.p_value:.2g} | {row.word} |"
        for row in frame.itertuples()
    ]
    return "\n".join(lines)


def missed(results: Results) -> str:
    """What exact values of a choice of edges leave unknown, by task."""
    lines = [
        "## Exact values",
        "",
        "All 70,651 edges would take hours a task. Exact values are of the 3,000 edges that EAP, "
        "EAP-IG or EAP-IG-KL ranks highest, and of 500 of the others, drawn at random. What that "
        "leaves open, by the task's metric:",
    ]
    for task in PARETO_TASKS:
        metric = TASKS[task].metric
        graphs = {
            suffix: figures.graphs.find_graph(results, f"real_test/{task}_{name}")
            for suffix, name in {
                "vanilla": f"{metric}_vanilla", "ig": f"{metric}_ig", "kl": "kl_ig",
                "verified": f"{metric}_verified",
            }.items()
        }  # fmt: skip
        exact = graphs.pop("verified")
        chosen = screening.choose_edges([*graphs.values()], **settings_of(exact.provenance))
        report = screening.report(graphs["ig"], exact, chosen)
        lines += ["", f"**{TASKS[task].display_name}**", "", *bullets(report)]
    return "\n".join(lines)


def settings_of(provenance: Mapping[str, object]) -> dict[str, int]:
    """How edges were chosen."""
    said = provenance["settings"]
    assert isinstance(said, Mapping)
    return {"top": said["verify"], "sample": said["sample"], "seed": said["seed"]}


def bullets(text: str) -> list[str]:
    """Lines as a list, indented ones below those before them."""
    return [
        f"{'  ' if line.startswith(' ') else ''}- {line.strip().replace('|', '&#124;')}"
        for line in text.splitlines()
    ]


def pictures(results: Results) -> list[str]:
    """Every figure with its caption."""
    parts = []
    folder = GALLERY.relative_to(REPOSITORY).as_posix()
    for figure in (figure for figure in FIGURES if figure.label in SHOWN):
        drawn = results.folder(figure.study).relative_to(results.output)
        paths = [
            path.relative_to(GALLERY).as_posix()
            for name in figure.pictures
            for path in sorted((GALLERY / drawn / "png").glob(f"{as_pattern(name)}.png"))
        ]
        lines = [f"### {figure.label}: {figure.title}", "", figure.caption]
        lines += [f"\n![{figure.title}](../{folder}/{path})" for path in dict.fromkeys(paths)]
        if figure.label == "Figure 2":
            lines.append(f"\n[The same circuit to look around in](../{folder}/ioi.html) (download)")
        parts.append("\n".join(lines))
    return parts


def costs(results: Results) -> str:
    """Time and peak memory of every step that runs the model."""
    folder = steps_folder(Path(results.model), results.output)
    rows = []
    for path in sorted(folder.glob("*.tsv")):
        row = pd.read_csv(path, sep="\t").iloc[-1]
        if row["s"] > 30:
            rows.append((path.stem, row["s"] / 60, row["cpu_time"] / 60, row["max_rss"] / 1024))
    lines = [
        "## What it took",
        "",
        "On two cores of a server, one thread a step, two steps side by side and other work beside "
        "them.",
        "",
        "| step | minutes | CPU minutes | peak memory, GiB |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {m:.1f} | {measured(cpu)} | {measured(gib)} |" for name, m, cpu, gib in rows
    ]
    total = np.nansum([cpu for _, _, cpu, _ in rows])
    most = np.nanmax([gib for *_, gib in rows])
    return "\n".join([*lines, f"| **all** | | **{total:.0f}** | **{most:.1f}** |"])


def measured(value: float) -> str:
    """A number of the table of costs."""
    return "not measured" if np.isnan(value) else f"{value:.1f}"


if __name__ == "__main__":
    main()
