"""Checks that the engine computes the given model, by comparison with the model's own logits."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from eap.model.families import Family
from eap.model.model import Model
from eap.model.plain import evaluating
from eap.model.runs import run_tokens
from eap.runtime.errors import UserError, first_line

# Largest difference of logits, relative to their range, that rounding can explain.
LOGIT_TOLERANCE = {
    torch.float64: 1e-5,  # Hugging Face computes some parts in float32 even then
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}

# Largest root mean square of the differences, relative to the standard deviation of the logits,
# that rounding can explain: at most .062 and .007 in all families and in two trained models.
SPREAD_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}

# Number of tokens in the prompts of the check. Prompts are longer if the model has an attention
# window of at most `WIDEST` positions; wider windows are not tested.
CHECKED = 12
WIDEST = 256


def check_weights(name: str, hf: nn.Module) -> None:
    """Check that all weights are present and finite.

    Raises:
        UserError: some weights are offloaded, or hold NaN or infinity.
    """
    for parameter_name, parameter in hf.named_parameters():
        if parameter.is_meta:
            raise UserError(
                f"{name}: parts of the weights are offloaded or were never made; give a device "
                "map that has every layer on a device"
            )
        if not parameter.is_floating_point():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UserError(
                f"{name}: {parameter_name} holds {kind} instead of floating point; quantised "
                "weights must be dequantised first"
            )
        if parameter.numel():
            low, high = torch.aminmax(parameter.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise UserError(f"{name}: the weights hold NaN or infinity, in {parameter_name}")


def check_prompts(config: Any, family: Family, n_rows: int) -> Int[Tensor, "2 pos"]:
    """Two random prompts on which logits are compared.

    The prompts have `CHECKED` tokens, or more than a narrow attention window, but not more than the
    model has positions.

    Args:
        config: configuration of the Hugging Face model.
        family: family of the model.
        n_rows: number of rows of the embedding.
    """
    windows = [family.windows(config, layer) or 0 for layer in range(config.num_hidden_layers)]
    n_positions = max([CHECKED] + [window + 4 for window in windows if window <= WIDEST])
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:
        n_positions = min(n_positions, limit)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(n_rows, (2, n_positions), generator=generator)


@torch.no_grad()
def last_logits(
    name: str, model: nn.Module, run: Callable[[], Tensor]
) -> Float[Tensor, "batch d_vocab"]:
    """Logits of a model's own forward pass at the last position, without dropout.

    Args:
        name: name of the model, for messages.
        model: model that is run; its state is not changed.
        run: function that runs the model and returns the logits at all positions.

    Raises:
        UserError: the forward pass fails.
    """
    with evaluating(model):
        try:
            return run()[:, -1].detach()
        except Exception as error:  # the model's code may raise any error
            raise UserError(f"{name}: its own forward pass fails: {first_line(error)}") from error


def check_logits(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    expected: Float[Tensor, "batch d_vocab"],
    whose: str,
    dtype: torch.dtype,
) -> None:
    """Compare the engine's logits at the last token with the logits of the given model.

    Args:
        model: model as the engine computes it.
        tokens: two prompts.
        expected: logits of the given model.
        whose: name of the owner of these logits, for the message.
        dtype: dtype of the given model.

    Raises:
        UserError: the logits differ by more than rounding, relative to their range.
    """
    logits = run_tokens(model, tokens.to(model.device))
    expected = expected.to(logits)
    difference = (logits - expected).double()
    error = float(difference.abs().max() / (expected.max() - expected.min()))
    spread = float(difference.square().mean().sqrt() / expected.double().std(-1).mean())
    kinds = (model.dtype, dtype)
    tolerance = max(LOGIT_TOLERANCE.get(kind, 0.0) for kind in kinds)
    of_spread = SPREAD_TOLERANCE.get(min(kinds, key=lambda kind: kind.itemsize), torch.inf)
    if not (error <= tolerance and spread <= of_spread):  # true also for NaN
        raise UserError(
            f"{model.name}: the engine's logits differ from {whose} by {error:.1e} of their range "
            f"(at most {tolerance:.0e} is rounding): the model computes something that its family "
            "does not, such as a forward method that was replaced or a setting of its own"
        )


# Settings that say where a model comes from, not what it computes.
NO_SETTINGS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def hash_parameters(hf: PreTrainedModel) -> dict[str, str]:
    """SHA-256 of a model's parameters and of its configuration, for models without files."""
    settings = {
        name: value for name, value in hf.config.to_dict().items() if name not in NO_SETTINGS
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        digest.update(name.encode())
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)
    return {
        "weights_sha256": digest.hexdigest(),
        "settings_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
