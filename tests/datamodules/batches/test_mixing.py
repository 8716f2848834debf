import numpy as np
import pytest

from datamodules.batches.mixing import MixedSampler
from datamodules.batches.packing import StepSampler

TAUGHT, OWN = np.arange(10, 40), np.arange(5, 17)


def make(first_step: int, has_own: bool = True, rank: int = 0, world_size: int = 1) -> MixedSampler:
    taught = StepSampler(TAUGHT, 120, 60, 3, rank, world_size)
    own = StepSampler(OWN, 60, 60, 3, rank, world_size) if has_own else None
    return MixedSampler(taught, own, len(TAUGHT), first_step)


def test_a_teachers_text_goes_on_from_round_to_round_and_the_students_begins_anew() -> None:
    alone = StepSampler(TAUGHT, 120, 60, 3, 0, 1)
    steps = [step for epoch in range(3) for step in alone.plan(epoch)]
    own = StepSampler(OWN, 60, 60, 3, 0, 1).plan(0)
    for first_step in (0, 2, len(alone) + 1):
        plan = make(first_step).plan(0)
        assert [[item for item in step if item < len(TAUGHT)] for step in plan] == steps[first_step:][: len(alone)]
        assert [item - len(TAUGHT) for item in plan[0] if item >= len(TAUGHT)] == own[0]
    assert make(4, has_own=False).plan(0) == steps[4:][: len(alone)]
    assert make(0, has_own=False).plan(1) == alone.plan(1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_micro_batch_has_texts_of_one_kind_and_each_process_its_share(world_size: int) -> None:
    samplers = [make(1, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, *own in zip(samplers[0].plan(0), *samplers, strict=True):
        batches = [batch for batches in own for batch in batches if batch.counts]
        assert all(len({item < len(TAUGHT) for item in batch.items}) == 1 for batch in batches)
        assert sorted(item for batch in batches for item in batch.items) == sorted(step)
        kinds = [[batch.items[0] < len(TAUGHT) for batch in batches] for batches in own]
        assert all(kind == kinds[0] and set(kind) == {True, False} for kind in kinds)


def test_a_loader_that_resumes_skips_the_steps_that_are_done() -> None:
    sampler, whole = make(2), make(2)
    sampler.num_done = 3
    assert list(sampler) == list(whole)[3:] and len(sampler) == len(whole)
