"""Tests of batches by token budget, their sharing by processes, and their collation."""

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules.batching import TokenBudgetBatchSampler, collate_examples, pad_rows
from datamodules.tokenization import ANSWER, PROMPT, RATIONALE, Example
from tests.tiny import TRAINER

LENGTHS = st.lists(st.integers(1, 40), min_size=4, max_size=30)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 120), st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 2))
def test_every_item_once_an_epoch(lengths: list, world: int, budget: int, seed: int | None, epoch: int) -> None:
    samplers = [TokenBudgetBatchSampler(lengths, budget, seed, rank, world) for rank in range(world)]
    shares = []
    for sampler in samplers:
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    items = [item for share in shares for batch in share for item in batch]
    assert sorted(items) == list(range(len(lengths)))
    assert all(batch for share in shares for batch in share)
    counts = {len(share) for share in shares}
    assert max(counts) - min(counts) <= (0 if seed is not None else 1)
    # Only where training needs equal counts, and every batch is a single item, may two be joined.
    over = [
        batch
        for share in shares
        for batch in share
        if len(batch) > 1 and len(batch) * max(lengths[i] for i in batch) > budget
    ]
    if over:
        assert seed is not None and len(over) < world
        assert {len(batch) for share in shares for batch in share} <= {1, 2}
        largest = max(lengths[item] for batch in over for item in batch)
        assert all(lengths[batch[0]] >= largest for share in shares for batch in share if len(batch) == 1)


@pytest.mark.parametrize("seed", [None, 7])
def test_the_global_list_is_the_same_for_any_number_of_processes(seed: int | None) -> None:
    lengths = np.random.default_rng(0).integers(7, 9, 48).tolist()
    alone = TokenBudgetBatchSampler(lengths, 32, seed, 0, 1)
    assert len(alone) % 12 == 0
    for world in (2, 3, 4):
        ranks = [list(TokenBudgetBatchSampler(lengths, 32, seed, rank, world)) for rank in range(world)]
        # At each step the processes together see what one process sees in as many steps.
        assert [batch for step in zip(*ranks, strict=True) for batch in step] == list(alone)


def test_order_depends_on_epoch_and_seed_and_prediction_is_longest_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 60).tolist()

    def order(seed: int | None, epoch: int) -> list[list[int]]:
        sampler = TokenBudgetBatchSampler(lengths, 60, seed, 0, 1)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0) != order(0, 1)
    assert sorted(order(0, 0)) == sorted(order(0, 1))
    assert sorted(order(0, 0)) != sorted(order(1, 0))
    assert order(None, 0) == order(None, 5)
    longest = [max(lengths[item] for item in batch) for batch in order(None, 0)]
    assert longest == sorted(longest, reverse=True)
    assert len(longest) < 30


def test_fewer_items_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 examples cannot be shared by 3 processes"):
        TokenBudgetBatchSampler([5, 5], 10, 0, 0, 3)
    assert len(TokenBudgetBatchSampler([5, 5], 10, None, 2, 3)) == 0


def test_epochs_reach_the_sampler_through_lightning() -> None:
    class Recorder(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[list[int]] = [[], []]

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.seen[self.current_epoch] += batch.tolist()
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Recorder()
    sampler = TokenBudgetBatchSampler([1] * 12, 2, 0, 0, 1)
    L.Trainer(**TRAINER, max_epochs=2).fit(module, DataLoader(list(range(12)), batch_sampler=sampler))
    assert sorted(module.seen[0]) == sorted(module.seen[1]) == list(range(12))
    assert module.seen[0] != module.seen[1]


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    made = []
    for number in range(draw(st.integers(1, 5))):
        lengths = [draw(st.integers(low, 6)) for low in (1, 0, 1)]
        segments = [
            kind for kind, length in zip((PROMPT, RATIONALE, ANSWER), lengths, strict=True) for _ in range(length)
        ]
        ids = draw(st.lists(st.integers(2, 99), min_size=len(segments), max_size=len(segments)))
        made.append(
            Example(f"q{number}/t/0", f"q{number}", np.array(ids, np.int32), np.array(segments, np.int8), "hash")
        )
    return made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(examples())
def test_rows_and_labels_are_a_naive_loops(made: list[Example]) -> None:
    batch = collate_examples(made, pad_id=0)
    longest = max(len(example.token_ids) for example in made)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(made), longest)
    expected = []
    for row, example in enumerate(made):
        ids = example.token_ids.tolist()
        assert batch["input_ids"][row].tolist() == ids + [0] * (longest - len(ids))
        assert batch["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (longest - len(ids))
        for place, token in enumerate(ids):
            if example.segments[place] != PROMPT:
                # The logits that predict a token stand one position before it.
                expected.append((row, place - 1, token, bool(example.segments[place] == ANSWER)))
    flat = [(int(number) // longest, int(number) % longest) for number in batch["rows"]]
    assert [(*place, label, answer) for place, label, answer in zip(
        flat, batch["labels"].tolist(), batch["is_answer"].tolist(), strict=True
    )] == expected  # fmt: skip
    assert batch["example_ids"] == [example.id for example in made]


def test_padding_left_and_right() -> None:
    rows = [np.array([1, 2, 3]), np.array([4])]
    assert pad_rows(rows, 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert pad_rows(rows, 9, left=True).tolist() == [[1, 2, 3], [9, 9, 4]]
