"""Batches by token budget, grouped by length, the same for any number of processes; and their collation."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from datamodules.tokenization import ANSWER, PROMPT, Example


def group_by_length(lengths: Sequence[int], tokens_per_batch: int, seed: int | None) -> list[list[int]]:
    """Packs items of similar length so that rows x longest row stays within the budget.

    Args:
        lengths: Of the items, in tokens.
        tokens_per_batch: Budget in padded tokens; an item longer than this is a batch of its own.
        seed: Breaks ties between items of one length; None keeps their order.

    Returns:
        Batches of item numbers, longest items first, so that memory runs out at once or never.
    """
    items = np.arange(len(lengths)) if seed is None else np.random.default_rng(seed).permutation(len(lengths))
    order = sorted(items.tolist(), key=lambda item: -lengths[item])
    batches: list[list[int]] = []
    for item in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_batch:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


class TokenBudgetBatchSampler(Sampler[list[int]]):
    """Hands out the same global list of batches whatever the world size; rank r takes every world-th.

    The batches' composition depends on the seed, their order on the seed and the epoch. With a seed, every
    process gets equally many batches, as training in lockstep needs: where the count does not divide, the
    largest batches are split in two, or, if every batch is a single item, the shortest items are joined, which
    may exceed the budget. No item is dropped or seen twice.

    Args:
        lengths: Of the items, in tokens.
        tokens_per_batch: Budget in padded tokens.
        seed: For composition and order; None is for prediction: longest first in every epoch, shares may be uneven.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: There are fewer items to train on than processes.
    """

    def __init__(self, lengths: Sequence[int], tokens_per_batch: int, seed: int | None, rank: int, world_size: int):
        self.batches = group_by_length(lengths, tokens_per_batch, seed)
        if seed is not None and len(lengths) < world_size:
            raise ValueError(f"{len(lengths)} examples cannot be shared by {world_size} processes")
        while seed is not None and (excess := len(self.batches) % world_size):
            largest = max(range(len(self.batches)), key=lambda number: len(self.batches[number]))
            if len(self.batches[largest]) == 1:
                self.batches.sort(key=lambda batch: lengths[batch[0]])
                pairs, self.batches = self.batches[: 2 * excess], self.batches[2 * excess :]
                self.batches += [first + second for first, second in zip(pairs[::2], pairs[1::2], strict=True)]
                break
            batch = self.batches.pop(largest)
            self.batches += [batch[::2], batch[1::2]]
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0

    @property
    def sampler(self) -> "TokenBudgetBatchSampler":
        """Lightning announces epochs to `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(len(self.batches))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.batches))
        for number in order[self.rank :: self.world_size]:
            yield self.batches[number]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.batches), self.world_size))


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
