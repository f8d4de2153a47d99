"""Devices and dtypes by name."""

import os

import torch

from eap.runtime.errors import UserError, first_line, quoted

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def find_device(device: str | torch.device | None) -> torch.device:
    """The requested device, if it is available; None: CUDA, else MPS, else the CPU."""
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else device
    if str(device) == "cuda" and torch.cuda.is_available():
        # Each process of torchrun has its own device.
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return torch.device("cuda", number)
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        available = ["cpu"]
        available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(
            f"device {quoted(str(device))} is not available ({first_line(error)}); "
            f"this machine has {', '.join(available)}"
        ) from None
    return chosen


def float64_device(device: torch.device) -> torch.device:
    """`device` if it supports float64, for sums over examples, else the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A supported floating-point dtype, by name."""
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise UserError(f"dtype {quoted(dtype)} is not supported; use one of {names}")
    return chosen
