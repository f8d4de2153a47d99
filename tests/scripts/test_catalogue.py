"""The table of studies and figures: complete, in order, and true of the scripts."""

from __future__ import annotations

import fnmatch
import subprocess
import sys

import pytest
from running import EXPERIMENTS, ROOT

from eap.data.tasks import TASKS
from eap.studies.catalogue import STEPS, Run, as_pattern
from eap.studies.jobs import jobs
from eap.studies.paper_figures import FIGURES

ALL = tuple(TASKS)
RUNS = {
    "toy": Run(),
    "gpt2": Run(gpt2_shaped=True),
    "gpt2-xl": Run(large=True, exact=False),
}


def test_every_script_of_the_table_is_there_and_every_experiment_is_in_it():
    named = {step.script for step in STEPS} | {figure.script for figure in FIGURES} - {""}
    assert [script for script in named if not (ROOT / script).is_file()] == []
    assert set(EXPERIMENTS) <= named


@pytest.mark.parametrize("model", RUNS)
def test_what_a_job_reads_was_written_by_one_job_before_it(model):
    written: set[str] = set()
    for job in jobs(model, ALL, run=RUNS[model]):
        assert set(job.reads) <= written, job.name
        assert not written & set(job.writes), job.name
        assert not any("{" in path for path in job.writes)
        written |= set(job.writes)
    assert f"results/{model}/report.html" in written


def test_the_paths_are_the_published_ones():
    written = {path for job in jobs("gpt2", ALL, run=RUNS["gpt2"]) for path in job.writes}
    assert {
        "graphs/gpt2/ioi_vanilla.json",
        "graphs/gpt2/real_test/sva_js_real.json",
        "graphs/gpt2/real_test/sva_prob_diff_ig.json",
        "graphs/gpt2/real_test/sva_kl_ig.json",
        "graphs/gpt2/ig_test/greater-than_prob_diff_50.json",
        "results/pareto/gpt2/csv/hypernymy-comma.csv",
        "results/real/gpt2/csv/ioi.csv",
        "results/jaccard/gpt2/csv/node_iou_ps.csv",
        "results/cross-task/gpt2/csv/faithfulness.csv",
        "results/ig_test/gpt2/csv/ioi_logit_diff_ig_test.csv",
        "results/real_rank/gpt2/correlations.json",
        "results/manual_overlap/gpt2/csv/greater-than_node_edge_precision_recall.csv",
    } <= written


def test_every_figure_of_the_paper_has_a_picture():
    assert [f"Figure {n}" for n in range(1, 12)] == [figure.label for figure in FIGURES][:11]
    planned = [job for run in RUNS.values() for job in jobs("m", ALL, run=run)]
    written = [path for job in planned for path in job.writes]
    for figure in FIGURES:
        assert figure.caption.endswith(".")
        for kind, names in (("png", figure.pictures), ("csv", figure.tables)):
            for name in names:
                pattern = f"results/{figure.study}/m/{kind}/{as_pattern(name)}.{kind}"
                assert fnmatch.filter(written, pattern), figure.label


def test_few_tasks_need_few_steps():
    names = [job.name for job in jobs("m", ["greater-than-price"])]
    assert "pareto_greater_than_price" in names
    assert "figure_3" in names  # with nothing else, the variant stands in the main figures
    assert not {"figure_10", "figure_7", "ig_test_ioi", "figure_6_ioi"} & set(names)


def test_a_task_of_ones_own_has_the_paths_of_its_name():
    (pareto, *_) = jobs("m", ["mine"])
    assert pareto.arguments == ("pareto.py", "--task", "mine")
    assert "graphs/m/mine_task.json" in pareto.writes


def test_the_table_needs_no_torch():
    code = "import sys, eap.studies.catalogue; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr


def test_steps_may_have_fewer_tasks_and_what_reads_them_follows():
    only = {"exact": ["ioi"], "stability": ["sva"], "ig_test": ["gender-bias"]}
    planned = {job.name: job for job in jobs("m", ALL, only=only)}
    assert {"exact_ioi", "stability_sva", "ig_test_gender_bias"} <= set(planned)
    assert not {"exact_sva", "stability_ioi", "ig_test_ioi"} & set(planned)
    assert planned["compare_real"].tasks == ("ioi",)
    assert planned["figure_7"].tasks == ("gender-bias",)
    assert planned["figure_stability"].tasks == ("sva",)
    assert planned["pareto_sva"].tasks == ("sva",)


def test_a_choice_of_edges_has_graphs_of_its_own():
    planned = {job.name: job for job in jobs("m", ["sva"], verified=True)}
    graphs = {f"graphs/m/real_test/sva_{metric}_verified.json" for metric in ("prob_diff", "kl")}
    assert graphs <= set(planned["exact_sva"].writes)
    assert graphs <= set(planned["compare_real"].reads)
    assert not any(path.endswith("_real.json") for path in planned["exact_sva"].writes)
