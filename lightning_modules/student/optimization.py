"""The student's optimizer, and the number that keeps a float16 gradient within its range."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import torch
from torch import nn


def find_loss_divisor(precision: str, tokens_per_step: int) -> float:
    """Returns what a step's weighted sums are divided by before their gradients are scaled; 1 but in 16-mixed.

    A loss scale of 2^16 times the gradient of a sum over thousands of tokens is more than float16 holds. Any number
    does that all processes know beforehand; the step's own weight they learn after the backward pass.
    """
    return float(tokens_per_step) if precision == "16-mixed" else 1.0


def refuse_infinite_loss(total: float, losses: Sequence[float], example_ids: Sequence[list[str]], step: int) -> None:
    """Refuses a step with a loss that is not a finite number: in each process, since one of them has it.

    Args:
        total: Of all processes.
        losses: Of this process's micro-batches.
        example_ids: Of each.
        step: For the message.

    Raises:
        ValueError: A loss is not a finite number.
    """
    for loss, own in zip(losses, example_ids, strict=True):
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {step}, in the batch of examples {', '.join(own)}; lower the learning "
                "rate, or look at these"
            )
    if not math.isfinite(total):
        raise ValueError(f"the loss is {total} at step {step}, in another process, which names the examples")


def is_fused(device: torch.device, precision: str, clips: bool) -> bool:
    """Says whether AdamW is to be one kernel: on a CUDA GPU, unless Lightning clips gradients that it unscales."""
    return device.type == "cuda" and not (precision == "16-mixed" and clips)


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    schedule: str,
    warmup_ratio: float,
    trainer: L.Trainer,
    total: int,
) -> dict[str, Any]:
    """Returns AdamW with decay on matrices only, and a schedule over so many steps."""
    from transformers import get_scheduler  # loads transformers' own trainer, with peft and bitsandbytes

    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in parameters:
        if parameter.requires_grad:
            groups[parameter.ndim < 2]["params"].append(parameter)
    fused = is_fused(trainer.strategy.root_device, trainer.precision, bool(trainer.gradient_clip_val))
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=fused or None)
    scheduler = get_scheduler(
        schedule if schedule != "constant" else "constant_with_warmup",
        optimizer,
        # It begins at 0, at which a training's only step would learn nothing.
        num_warmup_steps=round(warmup_ratio * total) if total > 1 else 0,
        num_training_steps=total,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
