"""Optimizer steps and batches by token budget, grouped by length; the same steps for any number of processes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.utils.data import Sampler

from datamodules.examples.tokenization import ANSWER, PROMPT, Example

# Tokens of a batch on a processor: of texts that are read, and of those that are written, whose cache takes less.
CPU_TOKENS, CPU_WRITTEN_TOKENS = 2048, 8192
# How far apart two items' lengths may be, as a share, for chance to decide which is the longer: the higher, the freer
# are batches to mix, and the more padding they hold.
LENGTH_NOISE = 0.03


def order_by_length(lengths: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Returns item numbers, longest first; the generator decides between nearly equal lengths, None keeps order."""
    keys = lengths if rng is None else lengths * rng.uniform(1, 1 + LENGTH_NOISE, len(lengths))
    return np.argsort(-keys, kind="stable")


def pack(order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Cuts a list of items into batches with rows x longest row within the budget.

    Args:
        order: Item numbers, ordered by length.
        lengths: Of all items, in tokens.
        tokens_per_batch: Budget in padded tokens; an item longer than this is a batch of its own.
    """
    starts, longest = [0], 0
    for index, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if (index - starts[-1] + 1) * longest > tokens_per_batch and index > starts[-1]:
            starts.append(index)
            longest = length
    return np.split(order, starts[1:])


def count_padded(batch: np.ndarray | list[int], lengths: np.ndarray) -> int:
    """Returns rows x longest row."""
    return len(batch) * int(lengths[batch].max())


@dataclass(frozen=True)
class BatchSize:
    """How much is computed at a time.

    Args:
        tokens_per_batch: What fits a process's memory at a time, in padded tokens; it does not change the result. Null
            is what fits a GPU's memory, as its size and the model's config say, and a few thousand on a processor.
    """

    tokens_per_batch: PositiveInt | None = None

    def choose(self, default: int) -> int:
        """Returns the setting, or a processor's default."""
        return default if self.tokens_per_batch is None else self.tokens_per_batch


@dataclass(frozen=True)
class TrainingBatches(BatchSize):
    """What a training reads in which order, and how much at a time.

    Args:
        tokens_per_step: Budget of an optimizer step, in padded tokens of all processes together. Each computes its
            share in as many micro-batches of `tokens_per_batch` as it takes.
        order_seed: Draws, packs and shuffles each epoch's steps.
        samples_per_epoch: Draw so many of each question's rationales anew each epoch; null takes all of them.
        teacher_weights: By teacher, in what proportion its rationales are drawn where a question has several teachers;
            null draws every rationale alike. Needs samples_per_epoch.
        num_workers: Loader processes; null is none where the CPU trains, and two for each process with a GPU.

    Raises:
        ValueError: `teacher_weights` are not above 0, or nothing is drawn by them.
    """

    tokens_per_step: PositiveInt = 2048
    order_seed: NonNegativeInt = 0
    samples_per_epoch: PositiveInt | None = None
    teacher_weights: dict[str, float] | None = None
    num_workers: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.teacher_weights is None:
            return
        if self.samples_per_epoch is None:
            raise ValueError(
                "data.batches.teacher_weights is for drawing rationales; set data.batches.samples_per_epoch too"
            )
        if wrong := {name: weight for name, weight in self.teacher_weights.items() if not 0 < weight < math.inf}:
            raise ValueError(f"data.batches.teacher_weights must be above 0 and finite, not {wrong}")


class EpochDraw:
    """Draws some of each question's examples anew each epoch.

    A question's examples are drawn one after another, without replacement, each with a probability in proportion to
    its teacher's weight, which the teacher's examples of that question share; without weights they are all alike.

    Args:
        question_ids: Of each example.
        teachers: Of each example.
        num_samples: How many of each question's examples an epoch has, or all where there are no more.
        weights: By teacher, above 0.
    """

    def __init__(
        self, question_ids: np.ndarray, teachers: np.ndarray, num_samples: int, weights: dict[str, float] | None
    ):
        self.num_samples = num_samples
        _, self.questions = np.unique(question_ids.astype(str), return_inverse=True)
        names, numbers = np.unique(teachers.astype(str), return_inverse=True)
        self.weights = np.ones(len(numbers))
        if weights is not None:
            pairs = self.questions * len(names) + numbers
            self.weights = np.array([weights[name] for name in names])[numbers] / np.bincount(pairs)[pairs]

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the numbers of the examples drawn, int64, ascending.

        The examples with the smallest of exponential times with these rates: Efraimidis & Spirakis 2006, "Weighted
        random sampling with a reservoir".
        """
        times = rng.exponential(size=len(self.weights)) / self.weights
        order = np.lexsort((times, self.questions))
        grouped = self.questions[order]
        place = np.arange(len(order)) - np.searchsorted(grouped, grouped)
        return np.sort(order[place < self.num_samples])


@dataclass(frozen=True)
class MicroBatch:
    """Items that a process computes at a time.

    Attributes:
        items: Their numbers.
        counts: False for an item that is there once more, only so that all processes compute equally often.
    """

    items: list[int]
    counts: bool = True


def divide(step: np.ndarray, lengths: np.ndarray, tokens_per_batch: int, world_size: int) -> list[list[MicroBatch]]:
    """Divides an optimizer step among processes: equally many micro-batches for each, of about equal size.

    Args:
        step: Item numbers, ordered by length.
        lengths: Of all items, in tokens.
        tokens_per_batch: Budget of a micro-batch, in padded tokens; a longer item is one of its own.
        world_size: Number of processes.

    Returns:
        Each process's micro-batches. Where there are fewer items than processes, some repeat one that does not count.
    """
    batches = pack(step, lengths, tokens_per_batch)
    number = -(-len(batches) // world_size) * world_size
    if len(batches) < number:
        # The smallest budget that does with so many makes them most alike.
        low, high = int(lengths[step].max()), tokens_per_batch
        while low < high:
            middle = (low + high) // 2
            if len(pack(step, lengths, middle)) <= number:
                high = middle
            else:
                low = middle + 1
        batches = pack(step, lengths, high)
    while len(batches) < number and max(map(len, batches)) > 1:
        widest = batches.pop(max(range(len(batches)), key=lambda place: len(batches[place])))
        batches += [widest[::2], widest[1::2]]
    batches.sort(key=lambda batch: -count_padded(batch, lengths))
    parts = [MicroBatch(batch.tolist()) for batch in batches]
    parts += [MicroBatch([int(step[-1])], counts=False)] * (number - len(parts))
    # To and fro, so that no process always gets the largest.
    rounds = [parts[start : start + world_size] for start in range(0, number, world_size)]
    rounds = [dealt[::-1] if turn % 2 else dealt for turn, dealt in enumerate(rounds)]
    return [list(own) for own in zip(*rounds, strict=True)]


class StepSampler(Sampler[list[MicroBatch]]):
    """Hands each process its share of every optimizer step, as micro-batches that fit its memory.

    Which examples a step has, and the steps' order, depend on the examples, the step's budget, the seed and the epoch
    alone: any number of processes with any memory takes the same steps. Every epoch has as many as the first, as a
    schedule of the learning rate needs: where too few come out, those with most rows are split; where too many, the
    budget is exceeded by as little as does (a percent or so). No item is dropped or seen twice.

    Args:
        lengths: Of the items, in tokens.
        tokens_per_step: Budget of a step, in padded tokens; a longer item is a step of its own.
        tokens_per_batch: Budget of a micro-batch, likewise.
        seed: For composition and order.
        rank: This process.
        world_size: Number of processes.
        draw: Chooses an epoch's items, equally many in each; None takes all.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        tokens_per_step: int,
        tokens_per_batch: int,
        seed: int,
        rank: int,
        world_size: int,
        draw: EpochDraw | None = None,
    ):
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.tokens_per_step, self.tokens_per_batch = tokens_per_step, tokens_per_batch
        self.seed, self.rank, self.world_size, self.draw = seed, rank, world_size, draw
        # Which steps come next; a loader that resumes sets them.
        self.epoch, self.num_done = 0, 0
        order, _ = self._order(0)
        self.num_steps = len(pack(order, self.lengths, tokens_per_step))

    def _order(self, epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        """Returns the epoch's items by length, and its generator."""
        rng = np.random.default_rng((self.seed, epoch))
        items = np.arange(len(self.lengths)) if self.draw is None else self.draw(rng)
        return items[order_by_length(self.lengths[items], rng)], rng

    def plan(self, epoch: int) -> list[list[int]]:
        """Returns an epoch's steps, each with all its items."""
        order, rng = self._order(epoch)
        budget = self.tokens_per_step
        steps = pack(order, self.lengths, budget)
        while len(steps) > self.num_steps:
            budget = max(budget + 1, int(1.01 * budget))
            steps = pack(order, self.lengths, budget)
        while len(steps) < self.num_steps:
            widest = steps.pop(max(range(len(steps)), key=lambda number: len(steps[number])))
            steps += [widest[::2], widest[1::2]]
        return [steps[number].tolist() for number in rng.permutation(len(steps)).tolist()]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for step in self.plan(self.epoch)[self.num_done :]:
            yield divide(np.array(step), self.lengths, self.tokens_per_batch, self.world_size)[self.rank]

    def __len__(self) -> int:
        return self.num_steps


class PredictionSampler(Sampler[list[int]]):
    """Hands out batches within a token budget, longest first; the processes take turns, so that shares may be uneven.

    Args:
        lengths: Of the items, in tokens.
        tokens_per_batch: Budget in padded tokens.
        rank: This process.
        world_size: Number of processes.
        is_missing: Of each item; batches without a missing one are left out, and no item changes its batch. Null is
            all.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        tokens_per_batch: int,
        rank: int,
        world_size: int,
        is_missing: Sequence[bool] | None = None,
    ):
        numbers = np.asarray(lengths, dtype=np.int64)
        batches = pack(order_by_length(numbers, None), numbers, tokens_per_batch) if len(numbers) else []
        if is_missing is not None:
            batches = [batch for batch in batches if any(is_missing[item] for item in batch)]
        self.batches = [batch.tolist() for batch in batches[rank::world_size]]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches

    def __len__(self) -> int:
        return len(self.batches)


def pad_rows(rows: Sequence[npt.ArrayLike], value: int, left: bool = False) -> torch.Tensor:
    """Pads integer rows to the longest: int64 [rows, longest]."""
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    longest = max(map(len, arrays))
    padded = torch.full((len(arrays), longest), value, dtype=torch.int64)
    for index, row in enumerate(arrays):
        part = slice(longest - len(row), longest) if left else slice(0, len(row))
        padded[index, part] = torch.from_numpy(row)
    return padded


def collate_examples(examples: list[Example]) -> dict[str, Any]:
    """Makes a batch, padded on the right with token 0, which no loss or attention sees, that names the supervised rows.

    Returns:
        `input_ids` and `attention_mask`, int64 [B, S]; `rows`, int64 [N], numbers into the flattened [B * S]
        positions, each the position *before* a completion token; `labels`, int64 [N], that token; `is_answer`,
        bool [N]; `example_ids`. Rows follow the examples' order, so cached planes are concatenated to match.
    """
    # A tokenizer's own padding may lie beyond a model's embedding.
    input_ids = pad_rows([example.token_ids for example in examples], 0)
    longest = input_ids.shape[1]
    attention_mask = pad_rows([np.ones_like(example.token_ids) for example in examples], 0)
    positions = [np.flatnonzero(example.segments != PROMPT) for example in examples]
    rows = np.concatenate([index * longest + position - 1 for index, position in enumerate(positions)])
    kept = list(zip(examples, positions, strict=True))
    labels = np.concatenate([example.token_ids[position] for example, position in kept])
    segments = np.concatenate([example.segments[position] for example, position in kept])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "rows": torch.from_numpy(rows),
        "labels": torch.from_numpy(labels.astype(np.int64)),
        "is_answer": torch.from_numpy(segments == ANSWER),
        "example_ids": [example.id for example in examples],
    }
