"""Settings of all tests."""

import gc
import os

# No test asks the hub for anything; a name that is not here must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator

import hypothesis
import pytest
import shapes
import torch

# Idle threads of several test processes spin; the models here are too small for more than one.
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "eap", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("eap")


LONGEST = {
    f"test_{name}.py": place
    for place, name in enumerate(
        "paper workflow processes engine docs exact_script patching span_scores devices methods "
        "evaluate figures scripts shell memory ablation verdicts packaging".split()
    )
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process ends with them alone."""
    items.sort(key=lambda item: LONGEST.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """What is loaded by now stays, so that nothing looks through it for unused objects."""
    gc.freeze()


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """For tests that give a tensor of another shape than annotated, to see it refused in words."""
    shapes.is_on = False
    yield
    shapes.is_on = True
