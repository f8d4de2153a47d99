"""The tests' own check of shapes: it is on, and it refuses what an annotation does not allow."""

from collections.abc import Mapping, Sequence

import pytest
import shapes
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from shapes import names_axes, tensors
from torch import Tensor

from eap.engine.score_blocks import ScoreBlock
from eap.metrics.predictions import Predictions
from eap.model.blocks import Norm


@pytest.fixture(autouse=True)
def every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have called before is checked, too."""
    monkeypatch.setattr(shapes, "THEN_EVERY", 1)


NORM = Norm(torch.ones(4), None, eps=1e-5, kind="rms")


def test_axes_of_arguments_are_checked():
    assert NORM.pull_back_weights(torch.ones(2, 4, 3)).shape == (2, 3, 4)
    with pytest.raises(BeartypeCallHintParamViolation, match="parameter W="):
        NORM.pull_back_weights(torch.ones(4, 3))


def test_fields_of_dataclasses_are_checked():
    with pytest.raises(BeartypeCallHintParamViolation, match="parameter logits="):
        Predictions(torch.ones(7))


@tensors
def transposed(x: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    return x.T


def test_results_are_checked():
    assert transposed(torch.eye(3)).shape == (3, 3)
    with pytest.raises(BeartypeCallHintReturnViolation):
        transposed(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Float[Tensor, "batch pos"], True),
        (Float[Tensor, "batch pos"] | None, True),
        (Mapping[str, Sequence[Float[Tensor, " n"]]], True),
        (Tensor, False),
        (ScoreBlock, False),
        (dict[str, int], False),
    ],
)
def test_annotations_that_name_axes_are_found_at_any_depth(hint: object, expected: bool):
    assert names_axes(hint) is expected
