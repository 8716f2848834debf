"""Batches by token budget, grouped by length, the same for any number of processes; and their collation."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from datamodules.tokenization import ANSWER, PROMPT, Example

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
    for place, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if (place - starts[-1] + 1) * longest > tokens_per_batch and place > starts[-1]:
            starts.append(place)
            longest = length
    return np.split(order, starts[1:])


def count_padded(batch: np.ndarray | list[int], lengths: np.ndarray) -> int:
    """Returns rows x longest row."""
    return len(batch) * int(lengths[batch].max())


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


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Hands out the same global list of batches whatever the world size, in steps of one batch for each process.

    The batches and their order depend on the seed and the epoch. With a seed, every process gets equally many
    batches, as training in lockstep needs, and in every epoch as many as in the first, as a schedule of the learning
    rate needs. Where too few batches come out, those with most rows are split; where too many, the budget is
    exceeded by as little as does (a percent or so; more only where single items are batches). In each step, the
    process with the smallest load so far gets the largest batch, so that the loads, in padded tokens, never differ by
    more than one batch. No item is dropped or seen twice.

    Args:
        lengths: Of the items, in tokens.
        tokens_per_batch: Budget in padded tokens.
        seed: For composition and order; None is for prediction: longest first in every epoch, shares may be uneven.
        rank: This process.
        world_size: Number of processes.
        draw: Chooses an epoch's items, equally many in each; None takes all.

    Raises:
        ValueError: There are fewer items to train on than processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        tokens_per_batch: int,
        seed: int | None,
        rank: int,
        world_size: int,
        draw: EpochDraw | None = None,
    ):
        self.lengths, self.tokens_per_batch = np.asarray(lengths, dtype=np.int64), tokens_per_batch
        self.seed, self.rank, self.world_size, self.draw = seed, rank, world_size, draw
        # Which batches come next; a loader that resumes sets them.
        self.epoch, self.num_done = 0, 0
        order, _ = self._order(0)
        self.num_batches = len(pack(order, self.lengths, tokens_per_batch)) if len(order) else 0
        if seed is not None:
            if len(order) < world_size:
                raise ValueError(f"{len(order)} examples cannot be shared by {world_size} processes")
            self.num_batches = min(-(-self.num_batches // world_size), len(order) // world_size) * world_size

    def _order(self, epoch: int) -> tuple[np.ndarray, np.random.Generator | None]:
        """Returns the epoch's items by length, and its generator."""
        if self.seed is None:
            return order_by_length(self.lengths, None), None
        rng = np.random.default_rng((self.seed, epoch))
        items = np.arange(len(self.lengths)) if self.draw is None else self.draw(rng)
        return items[order_by_length(self.lengths[items], rng)], rng

    def plan(self, epoch: int) -> list[list[int]]:
        """Returns the global list of an epoch's batches; each step of the processes takes the next `world_size`."""
        order, rng = self._order(epoch)
        if not self.num_batches:
            return []
        budget = self.tokens_per_batch
        batches = pack(order, self.lengths, budget)
        while len(batches) > self.num_batches:
            budget = max(budget + 1, int(1.01 * budget))
            batches = pack(order, self.lengths, budget)
        while len(batches) < self.num_batches:
            widest = batches.pop(max(range(len(batches)), key=lambda number: len(batches[number])))
            batches += [widest[::2], widest[1::2]]
        numbers = range(len(batches)) if rng is None else rng.permutation(len(batches)).tolist()
        return [batches[number].tolist() for number in numbers]

    def _share(self, batches: list[list[int]]) -> Iterator[list[int]]:
        """Yields this process's batch of each step."""
        if self.seed is None:
            yield from batches[self.rank :: self.world_size]
            return
        loads = np.zeros(self.world_size, dtype=np.int64)
        for start in range(0, len(batches), self.world_size):
            step = batches[start : start + self.world_size]
            sizes = np.array([count_padded(batch, self.lengths) for batch in step])
            places = np.empty(self.world_size, dtype=np.int64)
            places[np.argsort(loads, kind="stable")] = np.argsort(-sizes, kind="stable")
            loads += sizes[places]
            yield step[places[self.rank]]

    def __iter__(self) -> Iterator[list[int]]:
        yield from list(self._share(self.plan(self.epoch)))[self.num_done :]

    def __len__(self) -> int:
        return len(range(self.rank, self.num_batches, self.world_size))


def pad_rows(rows: Sequence[npt.ArrayLike], value: int, left: bool = False) -> torch.Tensor:
    """Pads integer rows to the longest: int64 [rows, longest]."""
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    longest = max(map(len, arrays))
    padded = torch.full((len(arrays), longest), value, dtype=torch.int64)
    for number, row in enumerate(arrays):
        part = slice(longest - len(row), longest) if left else slice(0, len(row))
        padded[number, part] = torch.from_numpy(row)
    return padded


def collate_examples(examples: list[Example], pad_id: int) -> dict:
    """Makes a right-padded batch that names the supervised rows.

    Returns:
        `input_ids` and `attention_mask`, int64 [B, S]; `rows`, int64 [N], numbers into the flattened [B * S]
        positions, each the position *before* a completion token; `labels`, int64 [N], that token; `is_answer`,
        bool [N]; `example_ids`. Rows follow the examples' order, so cached planes are concatenated to match.
    """
    input_ids = pad_rows([example.token_ids for example in examples], pad_id)
    longest = input_ids.shape[1]
    attention_mask = pad_rows([np.ones_like(example.token_ids) for example in examples], 0)
    positions = [np.flatnonzero(example.segments != PROMPT) for example in examples]
    rows = np.concatenate([number * longest + position - 1 for number, position in enumerate(positions)])
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
