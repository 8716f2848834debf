"""Tests of what a step adds up in one process; of two, see `run/test_two_processes.py`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_modules.student.step_sums import StepSums
from losses.distillation import LossSums


def make_batch(lengths: list[int], supervised: int, counts: bool = True) -> dict[str, Any]:
    """Returns what is read of a micro-batch."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = [f"q{length}" for length in lengths]
    return {"attention_mask": mask, "labels": torch.zeros(supervised), "counts": counts, "example_ids": ids}


def make_sums(total: float, weight: float, right: float) -> LossSums:
    """Returns a micro-batch's sums, with a metric of answers that none of its tokens has."""
    parts = {"accuracy_rationale": (torch.tensor(right), torch.tensor(weight))}
    return LossSums(
        torch.tensor(total, requires_grad=True),
        torch.tensor(weight),
        parts | {"accuracy_answer": (torch.tensor(0.0), torch.tensor(0.0))},
    )


def add_up(*parts: tuple[dict[str, Any], LossSums]) -> StepSums:
    """Returns a step of these micro-batches, in one process."""
    sums = StepSums([batch for batch, _ in parts], SimpleNamespace(world_size=1, global_step=3))  # type: ignore[arg-type]
    for batch, own in parts:
        sums.add(own, batch)
    sums.send()
    return sums


def test_a_step_is_the_mean_of_its_micro_batches_by_their_tokens() -> None:
    repeated = (make_batch([9], 5, counts=False), make_sums(100.0, 5.0, 5.0))
    totals = add_up(
        (make_batch([3, 5], 4), make_sums(6.0, 4.0, 1.0)), (make_batch([2], 1), make_sums(4.0, 1.0, 1.0)), repeated
    ).totals
    assert totals.means == {"loss": 2.0, "accuracy_rationale": pytest.approx(0.4)}
    assert totals.weight == 5 and totals.is_stopping is False
    assert totals.counts == [3 + 5 + 2, 9 + 25 + 4, 5]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_its_examples(wrong: float) -> None:
    sums = add_up((make_batch([3], 2), make_sums(1.0, 1.0, 0.0)), (make_batch([7, 8], 2), make_sums(wrong, 1.0, 0.0)))
    with pytest.raises(ValueError, match=f"the loss is {wrong} at step 3, in the batch of examples q7, q8; lower"):
        _ = sums.totals
