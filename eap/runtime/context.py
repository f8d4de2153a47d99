"""Reset of torch settings that a caller may have left on, so that verbs do not depend on them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave autocast and inference mode, and make new tensors on the CPU unless a device is named.

    All three settings belong to the calling thread, so no other thread sees a change. The default
    dtype belongs to the whole process and is left alone; this package names the dtype of every
    tensor that it makes.
    """
    with ExitStack() as stack:
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        yield
