"""What a step adds up: over its micro-batches, and over the processes in one message that the backward pass hides."""

from functools import cached_property
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from lightning_modules.run.stop_signal import is_stopping
from lightning_modules.run.throughput import count_step
from lightning_modules.student.optimization import refuse_infinite_loss
from lightning_modules.student.own_text import add_sums
from losses.distillation import LossSums


class StepTotals(NamedTuple):
    """Of all processes.

    Attributes:
        means: Over the supervised tokens, by metric; none of those that no token has.
        weight: Of all tokens, by which the step's gradient is divided.
        counts: See `count_step`.
        is_stopping: Whether one of them was signalled before the step's last backward pass.
    """

    means: dict[str, float]
    weight: float
    counts: list[int]
    is_stopping: bool


class StepSums:
    """Adds up a step.

    Args:
        batch: The process's micro-batches.
        trainer: Of the processes.
    """

    def __init__(self, batch: list[dict[str, Any]], trainer: L.Trainer):
        self._counts, self._trainer = count_step(batch), trainer
        self._sums: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []
        self._example_ids: list[list[str]] = []
        self._message: Tensor | None = None
        self._under_way: Any = None

    def add(self, sums: LossSums, micro_batch: dict[str, Any]) -> None:
        """Adds a micro-batch."""
        add_sums(self._sums, sums, micro_batch)
        self._losses.append(sums.total.detach())
        self._example_ids.append(micro_batch["example_ids"])

    def send(self) -> None:
        """Begins to add up over the processes; call when all micro-batches are added."""
        if self._trainer.world_size == 1:
            return
        pairs = torch.stack(list(self._sums.values())).flatten().double()
        beside = torch.tensor([*self._counts.tolist(), is_stopping() is not None], dtype=torch.float64)
        if pairs.is_cuda:
            # A copy from other memory would wait for all that the device has to do.
            beside = beside.pin_memory()
        # Lightning's reduction is preceded by a barrier, which waits for the device.
        self._message = torch.cat([pairs, beside.to(pairs.device, non_blocking=True)])
        self._under_way = torch.distributed.all_reduce(self._message, async_op=True)

    @cached_property
    def totals(self) -> StepTotals:
        """The sums, which whoever asks first waits for.

        Raises:
            ValueError: A loss is not a finite number.
        """
        own = torch.stack(self._losses)
        if self._message is None:
            pairs = torch.stack(list(self._sums.values())).flatten()
            numbers = [*torch.cat([pairs, own.to(pairs)]).tolist(), *self._counts.tolist(), False]
            numbers, losses = [*numbers[: len(pairs)], *numbers[-4:]], numbers[len(pairs) : -4]
        else:
            self._under_way.wait()
            both = torch.cat([self._message, own.to(self._message)]).tolist()
            numbers, losses = both[: len(self._message)], both[len(self._message) :]
        *numbers, tokens, squares, supervised, stopping = numbers
        sums = dict(zip(self._sums, zip(numbers[::2], numbers[1::2], strict=True), strict=True))
        total, weight = sums["loss"]
        refuse_infinite_loss(total, losses, self._example_ids, self._trainer.global_step)
        means = {name: total / count for name, (total, count) in sums.items() if count > 0}
        return StepTotals(means, weight, [int(tokens), int(squares), int(supervised)], stopping > 0)
