"""Inputs of the jobs in the paper's workflow: files of the model, files of the data, and code."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from eap.data.dataset import find_family
from eap.data.tasks import TASKS
from eap.data.vocabulary import Vocabulary
from eap.graph.numbering import GraphConfig
from eap.model.families import FAMILIES
from eap.model.gguf import find_file
from eap.model.gguf_config import read_config
from eap.model.gguf_header import read_header
from eap.model.gguf_tokenizer import read_tokenizer
from eap.runtime.code import drawing_code, library_versions, package_code
from eap.runtime.errors import UserError
from eap.runtime.home import from_home
from eap.runtime.shipped import data_folder
from eap.studies.catalogue import STEPS, Run, Step
from eap.studies.jobs import Job, jobs
from eap.studies.paths import JSON_EDGES, model_name

REPOSITORY = Path(__file__).resolve().parents[1]

TOY_HEAD = 100
"""Default number of pairs per task for the toy model, so that a run takes minutes."""

PASSED_ON = ("head", "batch_size", "device", "dtype", "memory", "revision")
"""Settings that are passed to the experiments."""

OF_GRAPHS = (
    "--data", "--drop_unfit", "--dtype", "--expanded_kv", "--head", "--ig_rule", "--ig_steps",
    "--metric", "--no-prepend_bos", "--prepend_bos", "--revision", "--seed",
)  # fmt: skip
"""Options of the experiments that change graphs, which other experiments may read."""

# Suffixes of files in a model's directory that no number depends on.
NOT_READ = (".md", ".py", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True)
class Settings:
    """Configuration of a workflow run.

    Attributes:
        model: toy, a directory or GGUF file (absolute), or a hub name.
        tasks: names of the tasks.
        exact, large: which studies belong to the run.
        only: tasks by name of the step, for steps that run on some tasks only.
        output: folder of graphs/ and results/.
        threads: number of threads per experiment.
        revision: revision of a hub model; None: the main branch.
        options: command-line options for all experiments.
        step_options: additional options by step (of `eap/studies/catalogue.py`).
    """

    model: str
    tasks: tuple[str, ...]
    exact: bool
    only: Mapping[str, tuple[str, ...]]
    large: bool
    output: str
    threads: int
    revision: str | None
    options: tuple[str, ...]
    step_options: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], called_from: str) -> "Settings":
        """Read Snakemake's configuration; directories are relative to `called_from`.

        Raises:
            UserError: a setting or a task does not exist.
        """
        known = {
            "model", "tasks", "exact", "large", "output", "only", "options", "threads", "runtime",
            "mem_mb",
        }  # fmt: skip
        if unknown := sorted(set(config) - known - set(PASSED_ON)):
            raise UserError(
                f"no setting {', '.join(unknown)}; known are "
                f"{', '.join(sorted(known | set(PASSED_ON)))}"
            )
        model = str(config.get("model", "toy"))
        directory = Path(called_from) / from_home(model)
        if model != "toy" and directory.exists():
            model = str(directory.resolve())
        tasks = _tasks(config.get("tasks") or " ".join(TASKS))
        given = {"head": TOY_HEAD} if model == "toy" else {}
        given |= {name: config[name] for name in PASSED_ON if config.get(name) is not None}
        large = _is_true(config.get("large", False))
        return cls(
            model=model,
            tasks=tasks,
            exact=_is_true(config.get("exact", True)) and not large,
            only={step: _tasks(names) for step, names in _by_step(config, "only").items()},
            large=large,
            output=str((Path(called_from) / config.get("output", REPOSITORY)).resolve()),
            threads=int(config.get("threads", 1)),
            revision=str(given["revision"]) if "revision" in given else None,
            options=tuple(text for name in given for text in (f"--{name}", str(given[name]))),
            step_options={
                step: tuple(shlex.split(str(text)))
                for step, text in _by_step(config, "options").items()
            },
        )

    @property
    def verified(self) -> bool:
        """Whether exact values are measured for only some edges."""
        return any(text.startswith("--verify") for text in self.step_options.get("exact", ()))


@dataclass(frozen=True)
class Planned:
    """A job of the workflow.

    Attributes:
        name: name of the rule.
        command: script and arguments.
        sources: files of the model and of the data that the job reads.
        reads, writes: results that the job reads and writes, below the output folder.
        stamp: file written after the job, with hashes of the files that the job wrote.
        benchmark: file written after the job, with its time in seconds and peak memory in MB.
        code: hash of the code that the results depend on.
        threads: number of threads.
    """

    name: str
    command: tuple[str, ...]
    sources: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    stamp: str
    benchmark: str
    code: str
    threads: int


def planned(settings: Settings) -> list[Planned]:
    """All jobs of a run.

    Raises:
        UserError: the model does not exist.
    """
    name = model_name(settings.model)
    directory = data_folder() / "toy-model" if settings.model == "toy" else Path(settings.model)
    shape, tokenizer = _load(
        str(directory) if directory.exists() else settings.model, settings.revision
    )
    family = find_family(Vocabulary(tokenizer))
    weights = model_files(directory) if directory.exists() else ()
    suffix = ".safetensors" if shape.n_edges > JSON_EDGES else ".json"

    def results(paths: Sequence[str]) -> tuple[str, ...]:
        graphs = f"graphs/{name}/"
        return tuple(
            str(Path(path).with_suffix(suffix))
            if path.startswith(graphs) and path.endswith(".json")
            else path
            for path in paths
        )

    def plan(job: Job) -> Planned:
        command = [*job.arguments, "--model", settings.model, "--output", "."]
        sources: tuple[str, ...] = ()
        if job.step.runs_model:
            command += settings.options
            command += settings.step_options.get(job.step.name, ())
            sources = (*weights, *data_files(job.tasks, family))
        return Planned(
            name=job.name,
            command=tuple(command),
            sources=sources,
            reads=results(job.reads),
            writes=results(job.writes),
            stamp=f"results/{name}/steps/{job.name}.json",
            benchmark=f"results/{name}/steps/{job.name}.tsv",
            code=code_of(job.step),
            threads=settings.threads if job.step.runs_model else 1,
        )

    gpt2_shaped = (shape.n_layers, shape.n_heads) == (12, 12)
    run = Run(settings.exact, settings.large, gpt2_shaped)
    every = jobs(name, settings.tasks, run=run, only=settings.only, verified=settings.verified)
    check_options(every, settings.step_options)
    return [plan(job) for job in every]


def check_options(every: Sequence[Job], step_options: Mapping[str, Sequence[str]]) -> None:
    """Refuse options by which one step would make the graphs of another step anew.

    Raises:
        UserError: a step that runs the model reads graphs of a step with other such options.
    """
    maker = {path: job.step.name for job in every for path in job.writes}
    for job in every:
        options = _options_of_graphs(step_options.get(job.step.name, ()))
        for path in job.reads if job.step.runs_model else ():
            others = _options_of_graphs(step_options.get(maker.get(path, ""), ()))
            if path.startswith("graphs/") and others != options:
                texts = {
                    step: " ".join(chain(*chosen)) or "none of them"
                    for step, chosen in ((job.step.name, options), (maker[path], others))
                }
                raise UserError(
                    f"{job.step.name} reads the graphs of {maker[path]}, so options that change "
                    "graphs must be the same for both: "
                    + ", ".join(f"{step} has {text}" for step, text in texts.items())
                )


def _options_of_graphs(options: Sequence[str]) -> list[tuple[str, ...]]:
    """Options that change graphs, each with its values, in alphabetical order."""
    pieces: list[list[str]] = []
    for text in chain(*(text.split("=", 1) for text in options)):
        if text.startswith("--") or not pieces:
            pieces.append([])
        pieces[-1].append(text)
    return sorted(tuple(piece) for piece in pieces if piece[0] in OF_GRAPHS)


def model_files(directory: Path) -> tuple[str, ...]:
    """Files of a model: weights in any format, configuration and tokenizer, or one GGUF file."""
    if directory.is_file():
        return (str(directory),)
    found = (path for path in directory.iterdir() if path.is_file())
    return tuple(
        str(path)
        for path in sorted(found)
        if path.suffix not in NOT_READ and not path.name.startswith(".")
    )


def data_files(tasks: Sequence[str], family: str | None) -> tuple[str, ...]:
    """Files of the tasks' shipped data for a family of tokenizers; empty if data are generated."""
    paths = (data_folder() / task / f"{family}.csv" for task in tasks)
    return tuple(str(path) for path in paths if path.is_file())


def code_of(step: Step) -> str:
    """Hash of the code that the results of a step depend on.

    A step that runs the model depends on its script and on the package except the drawing code.
    Graphs, which are expensive, have a separate key: `eap.runtime.code.score_code`. A figure
    depends on its script, the scripts in the same folder, and the drawing code.
    """
    script = REPOSITORY / step.script
    paths = {script, *script.parent.glob("*.py")} if "/" in step.script else {script}
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    key = (package_code(), library_versions()) if step.runs_model else drawing_code()
    digest.update(json.dumps(key, sort_keys=True).encode())
    return digest.hexdigest()[:16]


@cache
def _load(name: str, revision: str | None = None) -> tuple[GraphConfig, PreTrainedTokenizerBase]:
    """Load a model's shape and tokenizer."""
    if (file := find_file(name)) is not None:
        header = read_header(file)
        return shape_of(read_config(header)), read_tokenizer(header)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main")
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot load model {name!r:.100}: {reason}") from None
    return shape_of(config), tokenizer


def shape_of(config: PretrainedConfig) -> GraphConfig:
    """Shape of the graph of a model with this configuration."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    family = FAMILIES.get(next(iter(config.architectures or ()), ""))
    return GraphConfig(
        n_layers=text.num_hidden_layers,
        n_heads=heads,
        d_model=text.hidden_size,
        n_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        parallel_attn_mlp=bool(family and family.parallel(text)),
    )


def _is_true(value: Any) -> bool:
    """Parse a truth value: Snakemake reads `large=True` as a bool, but other spellings as text."""
    return str(value).strip().lower() in ("true", "1", "yes")


def _tasks(names: Any) -> tuple[str, ...]:
    """Parse names of tasks, separated by spaces or commas, and drop duplicates.

    Raises:
        UserError: a task does not exist.
    """
    tasks = tuple(dict.fromkeys(str(names).replace(",", " ").split()))
    if missing := [task for task in tasks if task not in TASKS]:
        raise UserError(f"unknown task {', '.join(missing)}; known are {', '.join(TASKS)}")
    return tasks


def _by_step(config: Mapping[str, Any], setting: str) -> Mapping[str, Any]:
    """Read a setting that has values by name of the step.

    Raises:
        UserError: a step does not exist, or does not run the model.
    """
    known = [step.name for step in STEPS if step.runs_model]
    given = config.get(setting) or {}
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        raise UserError(
            f"{setting}: give a value for one or more of {', '.join(known)}, as in "
            f"'{setting}={{{known[0]}: ...}}'"
        )
    return given
