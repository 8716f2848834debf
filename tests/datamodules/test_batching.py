"""Tests of batches by token budget, their sharing by processes, and their collation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batching import (
    EpochDraw,
    TokenBudgetBatchSampler,
    collate_examples,
    count_padded,
    pack,
    pad_rows,
)
from datamodules.tokenization import ANSWER, PROMPT, RATIONALE, Example

LENGTHS = st.lists(st.integers(1, 40), min_size=4, max_size=30)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 120), st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 2))
def test_every_item_once_an_epoch(lengths: list, world: int, budget: int, seed: int | None, epoch: int) -> None:
    samplers = [TokenBudgetBatchSampler(lengths, budget, seed, rank, world) for rank in range(world)]
    shares = []
    for sampler in samplers:
        sampler.epoch = epoch
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    batches = [batch for share in shares for batch in share]
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    assert all(batches)
    counts = {len(share) for share in shares}
    assert max(counts) - min(counts) <= (0 if seed is not None else 1)
    # Only where the number of batches is fixed may the budget be exceeded, and by no more than fixes it.
    over = max((count_padded(batch, np.array(lengths)) for batch in batches if len(batch) > 1), default=0)
    if over > budget:
        assert seed is not None
        order, _ = samplers[0]._order(epoch)
        assert len(pack(order, np.array(lengths), min(int(over / 1.01), over - 1))) > len(batches)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(LENGTHS, st.integers(2, 4), st.integers(1, 120), st.integers(0, 2))
def test_loads_of_the_processes_differ_by_one_batch_at_most(lengths: list, world: int, budget: int, epoch: int) -> None:
    loads = []
    sizes = [0]
    for rank in range(world):
        sampler = TokenBudgetBatchSampler(lengths, budget, 0, rank, world)
        sampler.epoch = epoch
        sizes += (own := [count_padded(batch, np.array(lengths)) for batch in sampler])
        loads.append(np.cumsum(own))
    # Not only at the epoch's end.
    assert np.max(np.max(loads, axis=0) - np.min(loads, axis=0)) <= max(sizes)


@pytest.mark.parametrize("seed", [None, 7])
def test_the_global_list_is_the_same_for_any_number_of_processes(seed: int | None) -> None:
    lengths = np.random.default_rng(0).integers(7, 9, 48).tolist()
    alone = TokenBudgetBatchSampler(lengths, 32, seed, 0, 1)
    assert len(alone) % 12 == 0
    for world in (2, 3, 4):
        ranks = [list(TokenBudgetBatchSampler(lengths, 32, seed, rank, world)) for rank in range(world)]
        # At each step the processes together see what one process sees in as many steps.
        for number, step in enumerate(zip(*ranks, strict=True)):
            assert sorted(step) == sorted(list(alone)[number * world : (number + 1) * world])


def test_every_epoch_has_as_many_batches_as_the_first_and_mixes_them_anew() -> None:
    lengths = np.random.default_rng(0).integers(50, 200, 500)
    sampler = TokenBudgetBatchSampler(lengths, 1000, 0, 0, 2)
    epochs = [sampler.plan(epoch) for epoch in range(20)]
    assert {len(plan) for plan in epochs} == {sampler.num_batches}
    # Not only are the same batches in another order.
    assert len({tuple(sorted(batch)) for plan in epochs for batch in plan}) > 0.9 * 20 * sampler.num_batches
    padded = [sum(count_padded(batch, lengths) for batch in plan) for plan in epochs]
    assert max(padded) < 1.05 * lengths.sum()


def make_draw(num_samples: int, weights: dict | None) -> EpochDraw:
    """One question with one rationale of a and four of b, one with none of a, one with a single rationale."""
    question_ids = np.array(["q0"] * 5 + ["q1"] * 3 + ["q2"], dtype=object)
    teachers = np.array(["b", "a", "b", "b", "b", "b", "b", "c", "a"], dtype=object)
    return EpochDraw(question_ids, teachers, num_samples, weights)


def count_draws(draw: EpochDraw, number: int = 4000) -> np.ndarray:
    counts = np.zeros(9)
    for epoch in range(number):
        drawn = draw(np.random.default_rng((0, epoch)))
        assert len(set(drawn.tolist())) == len(drawn)
        counts[drawn] += 1
    return counts / number


def test_rationales_are_drawn_alike_without_weights() -> None:
    expected = [0.2] * 5 + [1 / 3] * 3 + [1]
    np.testing.assert_allclose(count_draws(make_draw(1, None)), expected, atol=0.03)
    expected = [0.4] * 5 + [2 / 3] * 3 + [1]
    np.testing.assert_allclose(count_draws(make_draw(2, None)), expected, atol=0.03)


def test_a_teachers_weight_is_shared_by_its_rationales_of_a_question() -> None:
    draw = make_draw(1, {"a": 3.0, "b": 1.0, "c": 1.0})
    expected = [1 / 16, 3 / 4, *[1 / 16] * 3, 1 / 4, 1 / 4, 1 / 2, 1]
    np.testing.assert_allclose(count_draws(draw), expected, atol=0.03)


def test_an_epochs_batches_hold_what_is_drawn() -> None:
    lengths = [5, 9, 4, 7, 5, 3, 6, 8, 5]
    draw = make_draw(2, None)
    sampler = TokenBudgetBatchSampler(lengths, 12, 3, 0, 1, draw)
    plans = [sampler.plan(epoch) for epoch in range(50)]
    assert {len(plan) for plan in plans} == {sampler.num_batches}
    drawn = [sorted(item for batch in plan for item in batch) for plan in plans]
    assert all(len(items) == 5 and len(set(items)) == 5 and 8 in items for items in drawn)
    assert len(set(map(tuple, drawn))) > 10
    assert plans == [sampler.plan(epoch) for epoch in range(50)]


def test_order_depends_on_epoch_and_seed_and_prediction_is_longest_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 60).tolist()

    def order(seed: int | None, epoch: int) -> list[list[int]]:
        sampler = TokenBudgetBatchSampler(lengths, 60, seed, 0, 1)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 0) == order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(None, 0) == order(None, 5)
    longest = [max(lengths[item] for item in batch) for batch in order(None, 0)]
    assert longest == sorted(longest, reverse=True)
    assert len(longest) < 30


def test_fewer_items_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 examples cannot be shared by 3 processes"):
        TokenBudgetBatchSampler([5, 5], 10, 0, 0, 3)
    assert len(TokenBudgetBatchSampler([5, 5], 10, None, 2, 3)) == 0


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
