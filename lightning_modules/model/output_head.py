"""Splits a causal language model into its body and its output head, and verifies the split on the model itself."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from transformers import PreTrainedModel

from losses.fused_head import Kernel, OutputHead
from losses.kernel_trial import find_kernel_fault

# What architectures call the number that their logits are multiplied or divided by, and the one that caps them.
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "logits_mup_width_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "softcap")


class HeadSettings(NamedTuple):
    """How an architecture turns the head's product into logits; see `OutputHead`."""

    scale: float = 1.0
    softcap: float | None = None


def run_body(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Returns the last hidden states, [B, S, D], as they enter the output head; no mask leaves attention causal."""
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden


def get_head(model: PreTrainedModel, settings: HeadSettings) -> OutputHead:
    """Returns the output head with its parameters as they are now."""
    linear = model.get_output_embeddings()
    return OutputHead(linear.weight, linear.bias, *settings)


def try_kernels(kernel: Kernel | None, device: torch.device) -> None:
    """Says that a GPU's logits are left to torch, and why.

    Raises:
        ValueError: Triton was asked for, and does not run.
    """
    is_wanted = kernel == "triton" or (kernel is None and device.type == "cuda")
    if not is_wanted or (fault := find_kernel_fault(device)) is None:
        return
    if kernel == "triton":
        raise ValueError(f"loss.kernel triton does not run here: {fault}; use torch")
    rank_zero_only(print)(f"the loss goes over logits in torch, for Triton's kernels do not run here: {fault}")


def _guess_settings(config: dict[str, Any]) -> list[HeadSettings]:
    """Returns what the config's numbers may mean, and last that they mean nothing."""
    numbers = [config[name] for name in SCALES if config.get(name)]
    scales = [scale for number in numbers for scale in (number, 1 / number)]
    softcaps = [config[name] for name in SOFTCAPS if config.get(name)]
    return [HeadSettings(*pair) for pair in product([*scales, 1.0], [*softcaps, None])]


def _tolerate(dtype: torch.dtype) -> float:
    """Returns how far equal numbers may be apart, as a share of the largest."""
    # A float32 product summed in another order differs by less; a bfloat16 one is rounded at each step.
    return 1e-4 if dtype == torch.float32 else 2e-2


@contextmanager
def _on_trial(model: PreTrainedModel) -> Iterator[None]:
    """Leaves out dropout, and flash attention: it takes no float32, which weights are before autocast rules."""
    was_training, attention = model.training, model.config._attn_implementation
    model.eval()
    if "flash" in attention:
        model.config._attn_implementation = "eager"
    yield
    model.config._attn_implementation = attention
    model.train(was_training)


@torch.no_grad()
def needs_padding_mask(model: PreTrainedModel) -> bool:
    """Says whether a model must be told of padding on the right, which a causal model's tokens never attend to.

    Without a mask attention takes its fastest kernels, which know of causality alone. It is tried on the model itself.
    """
    weight = model.get_input_embeddings().weight
    input_ids = torch.arange(16, device=weight.device).view(2, 8) % len(weight)
    mask = torch.ones_like(input_ids)
    mask[1, 5:] = 0
    with _on_trial(model):
        expected, found = (run_body(model, input_ids, own)[mask.bool()].float() for own in (mask, None))
    return not bool((found - expected).abs().max() <= _tolerate(weight.dtype) * expected.abs().max())


@torch.no_grad()
def find_head_settings(model: PreTrainedModel) -> HeadSettings | None:
    """Finds settings with which body and head give the model's own logits on a few tokens.

    Architectures scale and cap their logits under several names, and one name does not always mean the same, so
    every reading of the config is tried against the model.

    Returns:
        The settings; None, with a warning, where none gives the model's logits.
    """
    linear = model.get_output_embeddings()
    if model.base_model is not model and isinstance(linear, torch.nn.Linear):
        input_ids = torch.arange(8, device=linear.weight.device)[None] % linear.out_features
        mask = torch.ones_like(input_ids)
        with _on_trial(model):
            expected = model(input_ids=input_ids, attention_mask=mask).logits[0].float()
            hidden = run_body(model, input_ids, mask)[0]
        tolerance = _tolerate(linear.weight.dtype) * expected.abs().max()
        for settings in _guess_settings(model.config.get_text_config().to_dict()):
            logits = get_head(model, settings).project(hidden).float()
            if logits.shape == expected.shape and (logits - expected).abs().max() <= tolerance:
                return settings
    warnings.warn(
        f"{type(model).__name__} cannot be split into a body and a linear output head; its logits are kept in memory",
        stacklevel=2,
    )
    return None
