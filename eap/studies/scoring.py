"""Model, pairs and scored graphs of an experiment; finished graphs are reused."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eap.ablation import get_ablation
from eap.attribution import attribute
from eap.data.batches import named_spans
from eap.data.dataset import Dataset, check_data, load_dataset
from eap.engine.signature import sign
from eap.graph.graph import Graph
from eap.methods import at_clean, get_method
from eap.metrics.metric import get_metric
from eap.model.loading import load_model
from eap.model.model import Model
from eap.runtime import distributed
from eap.runtime.code import score_code
from eap.runtime.errors import UserError
from eap.runtime.progress import say
from eap.studies import provenance as origins
from eap.studies.command_names import as_typed
from eap.studies.paths import check_folders, claim, graph_file, shown
from eap.studies.settings import Settings, default_metric

# ---- model and data ------------------------------------------------------------------------------


def load_model_of(settings: Settings) -> Model:
    """Load the model that the settings name.

    The columns of the data and the folders are checked first, because this needs no model.

    Raises:
        UserError: the data or the folders cannot be used, the model cannot be loaded, or the
            model's folders have results of another model.
    """
    check_folders(settings.output, settings.model)
    if settings.data is not None:
        check_pairs_file(settings.tasks[0], settings.data)
    model = load_model(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        device_map=settings.device_map,
        revision=settings.revision,
    )
    keep_folders(settings, model, write=False)
    return model


def check_pairs_file(task: str, path: Path) -> None:
    """Check that a file has the columns of pairs, with the corrupted prompts that ablation needs.

    Raises:
        UserError: the file cannot be read, or lacks a column.
    """
    columns = check_data(task, path)
    if not {"corrupted", "corrupted_idx"} & columns:
        raise UserError(
            f"{path} has no column corrupted, which experiments need for ablation: make corrupted "
            f"prompts with eap check-data --corrupt, or use ablation='zero' in Python"
        )


def keep_folders(settings: Settings, model: Model, *, write: bool = True) -> None:
    """Check that the folders of results belong to this model; with `write`, mark them as its own.

    Raises:
        UserError: the folders have results of another model with the same folder name.
    """
    distributed.decided_by_first(
        lambda: claim(settings.output, settings.model, model.source, write=write), "whose folders"
    )


def load_task(settings: Settings, model: Model, task: str, *, spans: str | None = None) -> Dataset:
    """Load the pairs of one task, with spans if `spans` is given, and print a summary."""
    dataset = load_dataset(
        task,
        model.tokenizer,
        data=settings.data,
        head=settings.head,
        seed=settings.seed,
        prepend_bos=settings.prepend_bos,
        drop_unfit=settings.drop_unfit,
        spans=spans,
    )
    say(dataset.summary())
    return dataset


def load_tasks(settings: Settings, model: Model) -> dict[str, Dataset]:
    """Load the pairs of all tasks; print the tasks that the tokenizer cannot express.

    Raises:
        UserError: the tokenizer can express none of the tasks.
    """
    datasets = {}
    for task in settings.tasks:
        try:
            datasets[task] = load_task(settings, model, task)
        except UserError as error:
            say(f"left out: {error}")
    if not datasets:
        tasks = ", ".join(settings.tasks)
        raise UserError(f"none of {tasks} can be expressed with the tokenizer of {model.name}")
    return datasets


def halves(dataset: Dataset, what: str) -> tuple[Dataset, Dataset]:
    """Pairs to find a circuit on, and the other pairs, to measure it on; all pairs if under four.

    Raises:
        UserError: there are fewer than two pairs, which are not enough to measure `what`.
    """
    if len(dataset) < 2:
        raise UserError(f"one pair is not enough to measure {what}; use more pairs")
    if len(dataset) < 4:
        return dataset, dataset
    found_on, measured_on = dataset.examples[0::2], dataset.examples[1::2]
    return replace(dataset, examples=found_on), replace(dataset, examples=measured_on)


def metric_name(metric: str | None, task: str) -> str:
    """Name of a known metric; None: the task's metric."""
    return get_metric(metric or default_metric(task)).name


def count_edges(settings: Settings, model: Model) -> int:
    """Number of edges in the model's graph, given the settings."""
    return Graph.from_model(model, expanded_kv=settings.expanded_kv).n_edges


def is_flat(metric: str) -> bool:
    """Whether the metric's gradient is zero at the clean input, so that all EAP scores are zero."""
    return get_metric(metric).flat_at_clean


# ---- where a result comes from -------------------------------------------------------------------


def describe(
    settings: Settings,
    model: Model,
    data: Dataset | Mapping[str, Dataset],
    *,
    metric: str | None = None,
    method: str,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Provenance of a result on one task or on several; see `eap.engine.signature.sign`.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        data: data set of `load_task`, or data sets of `load_tasks`.
        metric: name of the metric; None if there is no metric, or a different one per task.
        method: name of the method.
        options: settings of the method.
        more: `code`, `by_task`, and further entries of the provenance.
    """
    no_metric = metric is None and isinstance(data, Dataset)
    return sign(
        model, data, metric=None if metric is None else get_metric(metric), method=method,
        ablation=get_ablation("zero" if no_metric else None),
        expanded_kv=settings.expanded_kv, settings=options, **more,
    )  # fmt: skip


# ---- scored graphs -------------------------------------------------------------------------------


def graph_path(settings: Settings, model: Model, name: str, *, spans: bool = False) -> Path:
    """`graphs/<model>/<name>.json`; `.safetensors` with spans, or above half a million edges."""
    n_edges = count_edges(settings, model)
    path = graph_file(settings.output, settings.model, name, n_edges=n_edges)
    return path.with_suffix(".safetensors") if spans else path


def kept_graphs(
    settings: Settings,
    model: Model,
    origins: Mapping[str, Mapping[str, Any]],
    make: Callable[[], Iterable[Graph]],
) -> list[Graph]:
    """Load graphs if all of them have the same provenance; otherwise make and save all of them.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        origins: provenance that the graphs have if they are made now, by name of the file below
            `graphs/<model>`.
        make: function that makes the graphs, in the order of `origins`.

    Raises:
        UserError: a score is infinite or NaN, so that no graph is saved.
    """
    paths = [
        graph_path(settings, model, name, spans="spans" in origin)
        for name, origin in origins.items()
    ]
    saved = [
        reusable(path, origin, overwrite=settings.overwrite)
        for path, origin in zip(paths, origins.values(), strict=True)
    ]
    finished = [graph for graph in saved if graph is not None]
    if len(finished) == len(paths):
        return finished
    graphs = list(make())
    for path, graph in zip(paths, graphs, strict=True):
        if not graph.scores[graph.edge_exists].isfinite().all():
            raise UserError(
                f"{path.name}: some scores are infinite or NaN, so nothing is saved; check the "
                "weights, or use another --dtype or metric"
            )
    keep_folders(settings, model)
    for path, graph in zip(paths, graphs, strict=True):
        if distributed.is_first():
            graph.save(path)
            say(f"wrote {shown(path)}")
        distributed.wait_for_all(f"wrote {path.name}")
    return graphs


def integration(method: str, steps: int, rule: str) -> dict[str, Any]:
    """Those of the arguments `steps` and `rule` of `eap.attribute` that a method uses."""
    spec = get_method(method)
    if not spec.integrates:
        return {}
    return {"steps": steps, "rule": rule} if spec.uses_rule else {"steps": steps}


def attributed(
    settings: Settings, model: Model, dataset: Dataset, name: str, *,
    method: str, metric: str, steps: int | None = None, spans: bool = False,
) -> Graph:  # fmt: skip
    """Load the graph called `name` if it has the same provenance; otherwise score and save it.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        dataset: data set of `load_task`.
        name: name of the file below `graphs/<model>`.
        method: name from `eap.methods.METHODS`.
        metric: name of the metric; ignored if the method uses no metric.
        steps: number of steps of integrated gradients; None: steps of the settings.
        spans: whether to score every edge at every span of the data set's prompts.
    """
    spec = get_method(method)
    used_metric = metric if spec.uses_metric else None
    steps = settings.ig_steps if steps is None else steps
    options = integration(method, steps, settings.ig_rule)
    origin = describe(
        settings, model, dataset, metric=used_metric, method=method, options=options,
        code=score_code(), signed=spec.signed, spans=named_spans(model, dataset) if spans else (),
    )  # fmt: skip

    def score() -> Iterable[Graph]:
        given = {**options, **settings.resources, "expanded_kv": settings.expanded_kv}
        yield attribute(
            model, dataset, method=method, metric=used_metric, spans=spans, quiet=False, **given
        )

    (graph,) = kept_graphs(settings, model, {name: origin}, score)
    return graph


def scored_curves(
    settings: Settings,
    model: Model,
    dataset: Dataset,
    *,
    metric: str,
    curves: Mapping[str, tuple[str, str, str | None]],
) -> dict[str, Graph]:
    """Scored graphs by the names of their curves, without curves whose gradient is zero.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        dataset: data set of `load_task`.
        metric: metric of the scores.
        curves: file, method, and metric (None: `metric`) of the graph, by the name of the curve.

    Raises:
        UserError: the gradient is zero for all curves.
    """
    graphs = {}
    for name, (file, method, other) in curves.items():
        used_metric, spec = other or metric, get_method(method)
        if is_flat(used_metric) and spec.points is at_clean and spec.uses_metric:
            say(f"skipped {name}: the gradient of {used_metric} is zero at the clean input")
            continue
        graphs[name] = attributed(settings, model, dataset, file, method=method, metric=used_metric)
    if not graphs:
        raise UserError(f"no method is left to run; with {metric}, use --methods EAP-IG")
    return graphs


def reusable(path: Path, origin: Mapping[str, Any], *, overwrite: bool) -> Graph | None:
    """The finished graph at `path` if its provenance is the same; otherwise None.

    Prints whether the graph is reused, or what differs. With several processes, the first process
    decides and sends the graph to the others.

    Raises:
        UserError: the file is damaged.
    """

    def decide() -> Graph | None:
        if overwrite or not path.exists():
            return None
        try:
            graph = Graph.load(path)
        except UserError as error:
            raise UserError(f"{error}; delete the file, or give --overwrite") from None
        if differing := origins.differences(graph.provenance, origin):
            say(f"recomputing {shown(path)}: the saved graph has another {', '.join(differing)}")
            return None
        say(f"reusing {shown(path)} (--overwrite recomputes it)")
        return graph

    return distributed.decided_by_first(decide, f"reuse {path.name}")


def next_experiment(script: str, *options: str, settings: Settings) -> str:
    """The command of the experiment to run next, with all settings that are not the defaults."""
    usual = Settings()
    words = ["--tasks", *settings.tasks]
    named = ("revision", "data", "head", "seed", "device", "device_map", "dtype", "batch_size",
             "ig_steps", "ig_rule")  # fmt: skip
    for name in named:
        if (value := getattr(settings, name)) != getattr(usual, name):
            words += [f"--{name}", str(value)]
    for name in ("drop_unfit", "expanded_kv"):
        words += [f"--{name}"] * getattr(settings, name)
    if settings.prepend_bos is not None:
        words.append("--prepend_bos" if settings.prepend_bos else "--no-prepend_bos")
    return next_command(script, *words, *options, settings=settings)


def next_command(script: str, *options: str, settings: Settings) -> str:
    """The command of the figure to draw next, with the model and the output folder."""
    words = [*as_typed(script), *options, "--model", settings.model]
    if settings.output.resolve() != Settings().output.resolve():
        words += ["--output", shown(settings.output)]
    return shlex.join(words)


def say_next(path: Path, what: str, script: str, *options: str, settings: Settings) -> None:
    """Print that a table is written, and the command that does `what` with it."""
    command = next_command(script, *options, settings=settings)
    say(f"\n{shown(path)} is written; {what}: {command}")
