"""Steps of which a share is a teacher's text and the rest what the student wrote, as a round of training takes them.

A teacher's text goes on from round to round as if it were learnt from alone, so that rounds of nothing else are one
training; what the student wrote begins anew in each.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from datamodules.batches.packing import MicroBatch, StepSampler, divide
from datamodules.examples.store import ExampleView
from datamodules.examples.tokenization import Example


class JoinedExamples(Sequence[Example]):
    """The examples of two stores, one after the other.

    Args:
        first: Those of the lower numbers.
        second: The others.
    """

    def __init__(self, first: ExampleView, second: ExampleView):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, number: int) -> Example:  # type: ignore[override]
        return self.first[number] if number < len(self.first) else self.second[number - len(self.first)]


class MixedSampler(Sampler[list[MicroBatch]]):
    """Hands each process its share of every step, as `StepSampler`; no micro-batch has texts of both kinds.

    Args:
        taught: Steps of a teacher's text, or None.
        own: Steps of what the student wrote, numbered from 0 like the teacher's, or None.
        num_taught: Of the teacher's examples, after which the student's are numbered.
        first_step: Which of the teacher's steps comes first.
    """

    def __init__(self, taught: StepSampler | None, own: StepSampler | None, num_taught: int, first_step: int):
        sampler = taught or own
        assert sampler is not None
        self.taught, self.own = taught, own
        self.num_taught, self.first_step = num_taught, first_step
        self.num_steps, self.rank, self.world_size = sampler.num_steps, sampler.rank, sampler.world_size
        self.lengths = np.concatenate([part.lengths for part in (taught, own) if part is not None])
        self.tokens_per_batch = sampler.tokens_per_batch
        # Which steps come next; a loader that resumes sets them.
        self.epoch, self.num_done = 0, 0

    def plan(self, epoch: int) -> list[list[int]]:
        """Returns an epoch's steps, each with all its items, a teacher's first; it is as long as the first part's."""
        start = epoch * self.num_steps
        taught = self._take(self.taught, self.first_step + start, 0)
        own = self._take(self.own, start, self.num_taught)
        return [first + second for first, second in zip(taught, own, strict=True)]

    def _take(self, sampler: StepSampler | None, start: int, offset: int) -> list[list[int]]:
        if sampler is None:
            return [[] for _ in range(self.num_steps)]
        plan = lru_cache(sampler.plan)
        places = [divmod(number, sampler.num_steps) for number in range(start, start + self.num_steps)]
        return [[item + offset for item in plan(epoch)[place]] for epoch, place in places]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for step in self.plan(self.epoch)[self.num_done :]:
            items = np.array(step)
            parts = (items[items < self.num_taught], items[items >= self.num_taught])
            yield [
                batch
                for part in parts
                if len(part)
                for batch in divide(part, self.lengths, self.tokens_per_batch, self.world_size)[self.rank]
            ]

    def __len__(self) -> int:
        return self.num_steps
