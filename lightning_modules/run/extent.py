"""How long a training is to be: what would train nothing is refused, and one that ended before its plan is told."""

import math

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer


def _find_timer(trainer: L.Trainer) -> Timer | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, Timer)), None)


def check_extent(trainer: L.Trainer) -> None:
    """Refuses a training without a step or without an end, and another size of a step than the data's.

    Raises:
        ValueError: One of these.
    """
    if trainer.accumulate_grad_batches != 1 or any(
        isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks
    ):
        raise ValueError(
            "trainer.accumulate_grad_batches would be ignored: data.batches.tokens_per_step says what an optimizer "
            "step has, and data.batches.tokens_per_batch how much of it is computed at a time"
        )
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < math.inf:
        raise ValueError(f"trainer.gradient_clip_val={clip}: the greatest norm is a number of at least 0; 0 clips none")
    # Lightning has the attribute only where it is no time.
    if not hasattr(trainer, "val_check_interval"):
        raise ValueError(
            "trainer.val_check_interval is a time, which falls on other steps in each run; give a number of steps, or "
            "a share of an epoch"
        )
    for name in ("check_val_every_n_epoch", "val_check_interval"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name}=0 says never; set trainer.limit_val_batches=0 to validate never")
    timer = _find_timer(trainer)
    limits = {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "limit_train_batches": trainer.limit_train_batches,
        "max_time": timer._duration if timer else None,
    }
    if nothing := [f"trainer.{name}={value}" for name, value in limits.items() if value == 0]:
        raise ValueError(f"{nothing[0]} leaves nothing to train; raise it, or leave it out")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(
            "trainer.max_epochs=-1 has no end, which the learning rate's schedule needs; give a number, or "
            "trainer.max_steps"
        )


def find_early_end(trainer: L.Trainer) -> str | None:
    """Returns why a training ended before the steps that its configuration plans; None if it has taken them.

    Raises:
        ValueError: It has taken none.
    """
    planned, done = int(trainer.estimated_stepping_batches), trainer.global_step
    if done >= planned:
        return None
    timer = _find_timer(trainer)
    left = timer.time_remaining() if timer else None
    cause = "trainer.max_time was over" if left is not None and left <= 0 else "a callback stopped it"
    if not done:
        raise ValueError(f"the training ended before its first step: {cause}; there is no student to export")
    return f"after {done} of {planned} steps: {cause}"
