"""Replication of the paper on a real language model: runs the whole study and writes its page.

    python benchmarks/real_model.py smollm2 path/to/SmolLM2-135M-Instruct --output path/to/results
    python benchmarks/real_model.py gemma3 path/to/gemma-3-270m-q4_k_m.gguf --output path/to/results
    python benchmarks/real_model.py smollm2 --page_only       only rewrites the page

Runs the workflow with the settings of workflow/<study>.yaml, then measures the areas of all
methods. Saves tables with their metadata, pictures and the page of a circuit in
results/gallery/<study>. The study's page is docs/<study>.md, which begins with
benchmarks/introductions/<study>.md. A study that is stopped continues with the same command;
finished steps are not run again.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from areas import with_intervals
from proof import as_markdown

import eap
from eap import figures
from eap.analysis import screening
from eap.data.tasks import PARETO_TASKS, TASKS
from eap.figures.measured import read_measured
from eap.figures.tables import Results
from eap.runtime.atomic import write_atomically
from eap.statistics.intervals import Interval
from eap.studies import shell
from eap.studies.catalogue import as_pattern
from eap.studies.paper_figures import FIGURES

REPOSITORY = Path(__file__).resolve().parent.parent
INTRODUCTIONS = REPOSITORY / "benchmarks" / "introductions"
COSTS, EXACT = "costs.csv", "exact-values.md"
SHORT = 30
"""Smallest time, in seconds, that is listed as a cost."""
METHODS = (
    "EAP", "EAP-IG", "clean-corrupted", "EAP-IG-activations", "CEAP", "RelP", "AttnLRP", "GIM",
    "AtP*-QK", "AtP*-GradDrop", "IFR",
)  # fmt: skip


@dataclass(frozen=True)
class AreasOf:
    """What `benchmarks/areas.py` measures for a study.

    Attributes:
        pairs: number of pairs that methods score, and number of other pairs that they are judged
            on.
        methods: methods, besides learned rankings; never exact values, which would take hours.
        learning_steps: number of steps of learned rankings; 0: none are learned.
    """

    pairs: int
    methods: tuple[str, ...]
    learning_steps: int

    @property
    def options(self) -> list[str]:
        """Options of the script."""
        options = ["--tasks", "ioi", "--levels", "edge", "--pairs", str(self.pairs)]
        options += ["--judged", str(self.pairs), "--methods", *self.methods]
        return options + ["--learning_steps", str(self.learning_steps)] * bool(self.learning_steps)


STUDIES = ("gemma3", "smollm2")
AREAS = AreasOf(100, METHODS, 500)
"""Areas that every study measures."""

SHOWN = ("Figure 1", "Figure 2", "Figure 3", "Figure 4", "Figure 5", "Figure 7", "Figure 8",
         "Figure 9", "Figure 10", "Overlap, and chance", "Positions", "Parts",
         "Stability")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Study of one model: its settings, results, and files in the gallery.

    Attributes:
        name: name of the study, as in `workflow/<name>.yaml`.
        results: results of the model.
    """

    name: str
    results: Results

    @property
    def gallery(self) -> Path:
        """Folder of tables and pictures in the gallery."""
        return REPOSITORY / "results" / "gallery" / self.name

    @property
    def kept(self) -> Results:
        """Results in the gallery."""
        (folder,) = (self.gallery / "results" / "pareto").iterdir()
        return Results(self.gallery, folder.name)

    @property
    def page(self) -> Path:
        """Path of the page."""
        return REPOSITORY / "docs" / f"{self.name}.md"

    @property
    def steps(self) -> Path:
        """Folder in which the workflow records time and memory of its steps."""
        output = self.results.output
        return output / "results" / self.results.folder("pareto").name / "steps"


def main() -> None:
    """Run unfinished steps, copy results to the gallery, and write the page."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("study", choices=STUDIES, help="name of the study")
    add("model", type=Path, nargs="?", help="model directory or GGUF file")
    add("--output", type=Path, help="folder of graphs and results (default: <study>-results)")
    add("--cores", type=shell.positive, default=2, help="number of parallel steps of one thread")
    add("--page_only", action="store_true", help="only write the page, from the gallery")
    args = parser.parse_args()
    if (args.model is None) != args.page_only:
        parser.error("give a model, or --page_only")
    output = (args.output or Path(f"{args.study}-results")).resolve()
    study = Study(args.study, Results(output, str(args.model and args.model.resolve())))
    if not args.page_only:
        output.mkdir(parents=True, exist_ok=True)
        run_workflow(study, args.cores)
        run_areas(study)
        write_circuit(study)
        keep(study)
    with write_atomically(study.page) as temporary:
        temporary.write_text(page(study), encoding="utf8")
    shell.say(f"wrote {shell.shown(study.page)}")


# ---- running -------------------------------------------------------------------------------------


def run_workflow(study: Study, cores: int) -> None:
    """Run every experiment and figure."""
    settings = REPOSITORY / "workflow" / f"{study.name}.yaml"
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
    command += ["--cores", str(cores), "--configfile", str(settings)]
    command += ["--config", f"model={study.results.model}", f"output={study.results.output}"]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def run_areas(study: Study) -> None:
    """Measure the areas of all methods, with time and memory."""
    model, output = study.results.model, study.results.output
    table, took = output / "areas.csv", study.steps / "areas.tsv"
    if table.exists():
        return
    command = [sys.executable, "benchmarks/areas.py", "--model", model]
    command += [*AREAS.options, "--csv", str(table)]
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


def write_circuit(study: Study) -> None:
    """Write the interactive page of IOI's circuit into the gallery."""
    results = study.results
    study.gallery.mkdir(parents=True, exist_ok=True)
    graph = figures.graphs.find_graph(results, "ioi_task")
    page = study.gallery / "ioi.html"
    circuits = read_measured(results, "ioi_task", graph)
    curve = {circuit.n_edges: (circuit.value, circuit.error) for circuit in circuits.values()}
    sizes = sorted({10, 20, 40, *(n for n in circuits if n <= 400)})
    eap.write_page(graph, page, names=("ioi, EAP-IG", ""), sizes=sizes, curve=curve)
    name = results.folder("pareto").name
    page.write_text(page.read_text("utf8").replace(results.model, name), encoding="utf8")


def keep(study: Study) -> None:
    """Copy tables, metadata and pictures, without the location of the model."""
    results = study.results
    name = results.folder("pareto").name
    for path in sorted((results.output / "results").glob(f"*/{name}/**/*")):
        wanted = path.suffix in (".csv", ".png") or path.name.endswith(".csv-metadata.json")
        if not wanted and path.name != "correlations.json":
            continue
        kept = study.gallery / path.relative_to(results.output)
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            text = path.read_text("utf8").replace(results.model, name)
            text = text.replace(f" --output {results.output}", "").replace(" --output .", "")
            kept.write_text(text, encoding="utf8")
        else:
            shutil.copy(path, kept)
    shutil.copy(results.output / "areas.csv", study.gallery)
    costs(study).to_csv(study.gallery / COSTS, index=False)
    (study.gallery / EXACT).write_text(exact_values(results) + "\n", encoding="utf8")


# ---- the page ------------------------------------------------------------------------------------


def page(study: Study) -> str:
    """The page, made from the files in the gallery."""
    results = study.kept
    introduction = (INTRODUCTIONS / f"{study.name}.md").read_text("utf8")
    return (
        "\n\n".join(
            [
                introduction.strip(),
                claims(results),
                (study.gallery / EXACT).read_text("utf8").strip(),
                "## Figures",
                *pictures(study),
                areas(pd.read_csv(study.gallery / "areas.csv"), AREAS),
                verdicts(results),
                COSTS_ARE,
            ]
        )
        + "\n"
    )


def claims(results: Results) -> str:
    """The model's claims, compared with published values for GPT-2 small."""
    frame = pd.read_csv(results.csv("claims", "claims"))
    lines = [
        "## Beside what was published",
        "",
        "What the paper claims, and all models in one table: [real models](real-models.md).",
        "",
        "| measured | published, GPT-2 small | mean [95% over tasks] | tasks | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.quantity} | {'' if np.isnan(published) else f'{published:.3f}'} "
        f"| {Interval(*map(float, ends))} | {row.n_tasks} | **{row.replication}** |"
        for row, published, ends in zip(
            frame.itertuples(),
            frame["published"].to_numpy(dtype=float),
            frame[["value", "low", "high"]].to_numpy(),
            strict=True,
        )
    ]
    return "\n".join(lines)


def areas(frame: pd.DataFrame, measured: AreasOf) -> str:
    """Areas of every method, and the gain from a learned ranking."""
    steps = measured.learning_steps
    parts = [
        f"## Areas of every method\n\nEvery method scored {measured.pairs} pairs and was judged on "
        f"{measured.pairs} others (`benchmarks/areas.py`; [what the columns "
        "are](methods-compared.md))."
        + f" MAttr learned for {steps} steps of one pair each, by two losses."
        * bool(steps)
    ]
    for (task, level), rows in frame.groupby(["task", "level"], sort=False):
        known = TASKS[str(task)]
        title = f"{known.display_name}, {known.metric}, {level}s"
        parts += [f"### {title}", as_markdown(with_intervals(rows)).strip()]
        if steps:
            parts.append(learned(rows))
    return "\n\n".join(parts)


def learned(frame: pd.DataFrame) -> str:
    """The learned ranking with the lowest CMD, compared with EAP-IG on unseen pairs."""
    rows = frame.set_index("method")
    of_areas = rows[rows.index.str.startswith("MAttr")]["cmd"]
    name = str(of_areas.idxmin())
    ours, theirs = rows.loc[name], rows.loc["EAP-IG"]
    lines = [f"**{name} against EAP-IG**, on pairs that neither has seen:", ""]
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
        f"{rows.cpr.idxmax()} overshoots most ({rows.cpr.max():.2f})."
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


def exact_values(results: Results) -> str:
    """Edges with exact values, and what remains unknown about the other edges, by task."""
    verified = results.output / "graphs" / results.folder("pareto").name / "real_test"
    if not any(verified.glob("*_verified.*")):
        tables = results.folder("real") / "csv"
        tasks = [task for task in PARETO_TASKS if (tables / f"{task}.csv").is_file()]
        names = ", ".join(TASKS[task].display_name for task in tasks)
        return (
            f"## Exact values\n\nEvery edge has its exact value on {len(tasks)} tasks ({names}): "
            "Figures 4, 8 and 9 need no sample."
        )
    lines = [
        "## Exact values",
        "",
        "Exact values are of the edges that EAP, EAP-IG or EAP-IG-KL ranks highest, and of a "
        "random sample of the others. What that leaves open, by the task's metric:",
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
    """Lines as a Markdown list, with indented lines as sublists."""
    return [
        f"{'  ' if line.startswith(' ') else ''}- {line.strip().replace('|', '&#124;')}"
        for line in text.splitlines()
    ]


def pictures(study: Study) -> list[str]:
    """Every figure with its caption."""
    results, gallery = study.kept, study.gallery
    parts = []
    folder = gallery.relative_to(REPOSITORY).as_posix()
    for figure in (figure for figure in FIGURES if figure.label in SHOWN):
        drawn = results.folder(figure.study).relative_to(results.output)
        paths = [
            path.relative_to(gallery).as_posix()
            for name in figure.pictures
            for path in sorted((gallery / drawn / "png").glob(f"{as_pattern(name)}.png"))
        ]
        lines = [f"### {figure.label}: {figure.title}", "", figure.caption]
        lines += [f"\n![{figure.title}](../{folder}/{path})" for path in dict.fromkeys(paths)]
        if figure.label == "Figure 2":
            lines.append(f"\n[The same circuit to look around in](../{folder}/ioi.html) (download)")
        parts.append("\n".join(lines))
    return parts


COSTS_ARE = """## What it took

Minutes and memory of every step: [real models](real-models.md)."""


def costs(study: Study) -> pd.DataFrame:
    """Time and peak memory of every step that runs the model."""
    rows = []
    for path in sorted(study.steps.glob("*.tsv")):
        row = pd.read_csv(path, sep="\t").iloc[-1]
        if row["s"] > SHORT:
            minutes, cpu = row["s"] / 60, row["cpu_time"] / 60
            rows.append((path.stem, minutes, cpu, row["max_rss"] / 1024))
    columns = ["step", "minutes", "cpu_minutes", "gib"]
    return pd.DataFrame(rows, columns=columns).round(1)


if __name__ == "__main__":
    main()
