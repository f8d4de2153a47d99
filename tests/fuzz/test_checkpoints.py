"""Whatever is done to the progress of a run: the sums that were written, or one line."""

from __future__ import annotations

import json
from functools import cache

import torch
from hypothesis import given
from hypothesis import strategies as st
from outcomes import CELLS, campaign, damaged, result_or_refusal
from safetensors.torch import save

from eap.runtime.checkpoint import Checkpoint

TOTALS = torch.arange(12, dtype=torch.float64).reshape(2, 6)


@cache
def whole(folder) -> bytes:
    path = folder / "whole.part.safetensors"
    Checkpoint(path, {"run": "this"}, seconds=0.0).save(TOTALS, 3)
    return path.read_bytes()


def resume(path, *, overwrite: bool) -> None:
    totals = torch.zeros_like(TOTALS)
    checkpoint = Checkpoint(path, {"run": "this"}, seconds=0.0, overwrite=overwrite)
    done = result_or_refusal(lambda: checkpoint.resume(totals, 10))
    if done:
        assert done == 3
        assert totals.equal(TOTALS)
    else:
        assert not totals.any()


@campaign
@given(st.data(), st.booleans())
def test_damaged_progress_is_refused_or_what_was_written(tmp_path_factory, data, overwrite):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "damaged.part.safetensors"
    path.write_bytes(data.draw(damaged(whole(folder))))
    resume(path, overwrite=overwrite)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(CELLS, inner, max_size=2),
    max_leaves=4,
)


@campaign
@given(
    st.dictionaries(st.sampled_from(["identity", "done", "sha256"]), VALUES),
    st.sampled_from([torch.float64, torch.float32, torch.int64, torch.bool]),
    st.lists(st.integers(0, 7), max_size=3),
    st.booleans(),
)
def test_other_progress_is_refused(tmp_path_factory, header, dtype, shape, overwrite):
    path = tmp_path_factory.getbasetemp() / "other.part.safetensors"
    metadata = {"progress": json.dumps(header).encode("utf8", "replace").decode()}
    path.write_bytes(save({"totals": torch.ones(shape, dtype=dtype)}, metadata=metadata))
    resume(path, overwrite=overwrite)
