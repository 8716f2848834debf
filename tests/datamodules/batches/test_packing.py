"""Tests of steps and batches by token budget, their division among processes, and collation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batches.packing import (
    EpochDraw,
    PredictionSampler,
    StepSampler,
    collate_examples,
    count_padded,
    divide,
    pack,
    pad_rows,
)
from datamodules.examples.tokenization import ANSWER, PROMPT, RATIONALE, Example

LENGTHS = st.lists(st.integers(1, 40), min_size=4, max_size=30)


@settings(max_examples=200, derandomize=True)
@given(LENGTHS, st.integers(1, 120), st.integers(0, 3), st.integers(0, 2))
def test_every_item_once_an_epoch(lengths: list, budget: int, seed: int, epoch: int) -> None:
    sampler = StepSampler(lengths, budget, budget, seed, 0, 1)
    steps = sampler.plan(epoch)
    assert sorted(item for step in steps for item in step) == list(range(len(lengths)))
    assert all(steps) and len(steps) == len(sampler)
    # Only where the number of steps is fixed may the budget be exceeded, and by no more than fixes it.
    over = max((count_padded(step, np.array(lengths)) for step in steps if len(step) > 1), default=0)
    if over > budget:
        order, _ = sampler._order(epoch)
        assert len(pack(order, np.array(lengths), min(int(over / 1.01), over - 1))) > len(steps)


@settings(max_examples=200, derandomize=True)
@given(LENGTHS, st.integers(1, 8), st.integers(1, 200), st.booleans())
def test_a_step_is_divided_among_any_number_of_processes(lengths: list, world: int, budget: int, ordered: bool) -> None:
    """Every item counts once; nothing exceeds the memory; all compute equally often; loads are about equal."""
    numbers = np.array(lengths)
    step = np.argsort(-numbers) if ordered else np.arange(len(lengths))
    shares = divide(step, numbers, budget, world)
    assert len(shares) == world and len({len(share) for share in shares}) == 1
    parts = [part for share in shares for part in share]
    assert sorted(item for part in parts if part.counts for item in part.items) == list(range(len(lengths)))
    assert all(count_padded(part.items, numbers) <= max(budget, numbers.max()) for part in parts)
    # What does not count is there only where there are fewer items than micro-batches.
    idle = [part for part in parts if not part.counts]
    assert not idle or all(len(part.items) == 1 for part in parts)
    # No more forward passes than the memory needs, but that all must have as many.
    assert len(shares[0]) == -(-len(pack(step, numbers, budget)) // world)


def test_processes_get_equal_loads() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(180, 200, 120))[::-1]
    for world in (2, 3, 8):
        shares = divide(np.arange(120), lengths, 10**6, world)
        loads = [sum(count_padded(part.items, lengths) for part in share) for share in shares]
        assert all(len(share) == 1 for share in shares)
        assert max(loads) < 1.15 * lengths.sum() / world


def list_parts(lengths: list, budget: int, world: int) -> list[list[tuple[list, bool]]]:
    shares = divide(np.arange(len(lengths)), np.array(lengths), budget, world)
    return [[(part.items, part.counts) for part in share] for share in shares]


def test_the_largest_micro_batches_are_not_always_the_same_processs() -> None:
    assert list_parts([8, 7, 6, 5], 8, 2) == [[([0], True), ([3], True)], [([1], True), ([2], True)]]


def test_a_process_without_an_item_repeats_the_shortest() -> None:
    assert list_parts([9, 2], 20, 3) == [[([0], True)], [([1], True)], [([1], False)]]
    assert list_parts([9], 20, 2) == [[([0], True)], [([0], False)]]


@pytest.mark.parametrize("tokens_per_batch", [1, 700, 10**6])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_steps_are_the_same_for_any_number_of_processes_and_any_memory(world: int, tokens_per_batch: int) -> None:
    lengths = np.random.default_rng(0).integers(20, 200, 100)
    expected = StepSampler(lengths, 2048, 2048, 7, 0, 1).plan(1)
    assert 6 <= len(expected) <= 12
    ranks = [StepSampler(lengths, 2048, tokens_per_batch, 7, rank, world) for rank in range(world)]
    for sampler in ranks:
        sampler.epoch, sampler.num_done = 1, 2
    shares = [list(sampler) for sampler in ranks]
    assert all(len(share) == len(expected) - 2 for share in shares)
    for index, step in enumerate(expected[2:]):
        items = [item for share in shares for part in share[index] if part.counts for item in part.items]
        assert sorted(items) == sorted(step)


def test_every_epoch_has_as_many_steps_as_the_first_and_mixes_them_anew() -> None:
    lengths = np.random.default_rng(0).integers(50, 200, 500)
    sampler = StepSampler(lengths, 1000, 1000, 0, 0, 2)
    epochs = [sampler.plan(epoch) for epoch in range(20)]
    assert {len(plan) for plan in epochs} == {len(sampler)}
    # Not only are the same steps in another order.
    assert len({tuple(sorted(step)) for plan in epochs for step in plan}) > 0.9 * 20 * len(sampler)
    padded = [sum(count_padded(step, lengths) for step in plan) for plan in epochs]
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


def test_an_epochs_steps_hold_what_is_drawn() -> None:
    lengths = [5, 9, 4, 7, 5, 3, 6, 8, 5]
    draw = make_draw(2, None)
    sampler = StepSampler(lengths, 12, 12, 3, 0, 1, draw)
    plans = [sampler.plan(epoch) for epoch in range(50)]
    assert {len(plan) for plan in plans} == {len(sampler)}
    drawn = [sorted(item for step in plan for item in step) for plan in plans]
    assert all(len(items) == 5 and len(set(items)) == 5 and 8 in items for items in drawn)
    assert len(set(map(tuple, drawn))) > 10
    assert plans == [sampler.plan(epoch) for epoch in range(50)]


def test_order_depends_on_epoch_and_seed() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 60).tolist()

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return StepSampler(lengths, 60, 60, seed, 0, 1).plan(epoch)

    assert plan(0, 0) == plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)


@settings(max_examples=100, derandomize=True)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 4), st.integers(1, 120))
def test_prediction_sees_every_item_once_longest_first(lengths: list, world: int, budget: int) -> None:
    shares = [list(PredictionSampler(lengths, budget, rank, world)) for rank in range(world)]
    assert sorted(item for share in shares for batch in share for item in batch) == list(range(len(lengths)))
    for rank, share in enumerate(shares):
        assert len(share) == len(PredictionSampler(lengths, budget, rank, world))
        longest = [max(lengths[item] for item in batch) for batch in share]
        assert longest == sorted(longest, reverse=True)
        assert all(len(batch) == 1 or count_padded(batch, np.array(lengths)) <= budget for batch in share)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    # Where only some are missing, their batches are what they were.
    is_missing = [length % 3 == 0 for length in lengths]
    whole = PredictionSampler(lengths, budget, 0, 1).batches
    left = [PredictionSampler(lengths, budget, rank, world, is_missing).batches for rank in range(world)]
    expected = [batch for batch in whole if any(is_missing[item] for item in batch)]
    assert left == [expected[rank::world] for rank in range(world)]


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
            Example(
                f"q{number}/t/0", f"q{number}", np.array(ids, np.int32), np.array(segments, np.int8), "hash", "hash"
            )
        )
    return made


@settings(max_examples=100, derandomize=True)
@given(examples())
def test_rows_and_labels_are_a_naive_loops(made: list[Example]) -> None:
    batch = collate_examples(made)
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
