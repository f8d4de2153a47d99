"""Progress on disk: whole, one's own, and not believed when it is not what was written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from reference import twins
from reference.span_data import DATA
from safetensors import safe_open
from safetensors.torch import save

import eap
from eap.runtime.checkpoint import Checkpoint, checkpoint_file
from eap.studies.provenance import differences

TOTALS = torch.arange(12, dtype=torch.float64).reshape(2, 6)


def kept_at(path, run="this", **options):
    return Checkpoint(path, {"run": run}, seconds=0.0, **options)


@pytest.fixture
def path(tmp_path):
    """A checkpoint of 3 units of `this` run."""
    path = tmp_path / "run.part.safetensors"
    kept_at(path).save(TOTALS, 3)
    return path


def resume(checkpoint, n_units=10):
    totals = torch.zeros_like(TOTALS)
    return checkpoint.resume(totals, n_units), totals


def rewrite(path, totals=None, **header):
    """Change what a checkpoint says, as somebody with an editor could."""
    with safe_open(path, framework="pt") as file:
        said, saved = json.loads(file.metadata()["progress"]), file.get_tensor("totals")
    said |= header
    metadata = {"progress": json.dumps(said)}
    path.write_bytes(save({"totals": saved if totals is None else totals}, metadata=metadata))


def test_what_was_saved_comes_back(path):
    done, totals = resume(kept_at(path))
    assert done == 3
    assert totals.equal(TOTALS)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(500)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "another file": lambda path: path.write_text("edges\n30\n"),
    "a changed sum": lambda path: rewrite(path, TOTALS + 1e-3 * (TOTALS == 5)),
    "NaN": lambda path: rewrite(path, TOTALS * torch.nan),
    "another shape": lambda path: rewrite(path, TOTALS[:1]),
    "another type": lambda path: rewrite(path, TOTALS.float()),
    "too many units": lambda path: rewrite(path, done=10**9),
    "negative units": lambda path: rewrite(path, done=-3),
    "no number of units": lambda path: rewrite(path, done="many"),
    "true": lambda path: rewrite(path, done=True),
    "another number of units": lambda path: rewrite(path, done=4),
    "no hash": lambda path: rewrite(path, sha256=None),
    "no identity": lambda path: rewrite(path, identity=[]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_says_how_to_begin_anew(damage, path):
    DAMAGE[damage](path)
    with pytest.raises(
        eap.UserError, match="delete it, or give --overwrite, to start again"
    ) as told:
        resume(kept_at(path))
    assert len(str(told.value).replace(str(path), "")) < 250
    done, totals = resume(kept_at(path, overwrite=True))
    assert done == 0
    assert not totals.any()
    assert not path.exists()


def test_more_units_than_there_are_are_not_believed(path):
    with pytest.raises(eap.UserError, match="3 of 2 units done"):
        resume(kept_at(path), n_units=2)


def test_a_folder_in_the_way_is_named(tmp_path):
    path = tmp_path / "run.part.safetensors"
    path.mkdir()
    for overwrite in (False, True):
        with pytest.raises(eap.UserError, match=r"run\.part\.safetensors is not a checkpoint"):
            resume(kept_at(path, overwrite=overwrite))


def test_the_progress_of_another_run_is_neither_used_nor_overwritten_nor_deleted(path):
    before, other = path.read_bytes(), kept_at(path, "that", overwrite=True)
    with pytest.raises(eap.UserError, match=r"progress of another run: run 'this' \(now 'that'\)"):
        resume(other)
    with pytest.raises(eap.UserError, match="is written to by another run"):
        other.save(TOTALS, 1)
    other.delete()
    assert path.read_bytes() == before
    kept_at(path).delete()
    assert not path.exists()


def test_sums_that_are_not_finite_are_not_saved(tmp_path):
    path = tmp_path / "run.part.safetensors"
    for number in (torch.nan, torch.inf):
        with pytest.raises(eap.UserError, match="not finite"):
            kept_at(path).save(TOTALS * number, 1)
    assert not path.exists()


def test_every_run_has_a_file_of_its_own(tmp_path):
    names = {
        checkpoint_file(tmp_path, "ioi", identity).name
        for identity in ({"head": 4}, {"head": 5}, {"head": 4, "seed": 1}, {"model": "toy"})
    }
    assert len(names) == 4
    assert checkpoint_file(tmp_path, "ioi", {"a": 1, "b": 2}) == checkpoint_file(
        tmp_path, "ioi", {"b": 2, "a": 1}
    )


INTO_LOGITS = torch.zeros_like(eap.Graph.from_model(twins.load("gpt2")).in_graph)
INTO_LOGITS[:, -1] = True

SPAN_VERBS = {
    "learn_ranking": lambda data, **options: eap.learn_ranking(
        twins.load("gpt2"), data, recipe=eap.Recipe(steps=2, pairs=2), spans=True, **options
    ),
    "patch_edges": lambda data, **options: eap.patch_edges(
        twins.load("gpt2"), data, edges=INTO_LOGITS, spans=True, **options
    )["logit_diff"],
}


@pytest.mark.parametrize("verb", SPAN_VERBS)
def test_progress_belongs_to_where_spans_begin(verb, tmp_path):
    moved = tuple(
        replace(pair, spans=tuple(max(0, start - 1) for start in pair.spans)) for pair in DATA
    )
    other = replace(DATA, examples=moved)
    checkpoint = Checkpoint(tmp_path / "run.part.safetensors", {}, seconds=0.0)
    first = SPAN_VERBS[verb](DATA, checkpoint=checkpoint)
    with pytest.raises(eap.UserError, match="spans_sha256"):
        SPAN_VERBS[verb](other, checkpoint=checkpoint)
    second = SPAN_VERBS[verb](other)
    assert "spans_sha256" in differences(first.provenance, second.provenance)
