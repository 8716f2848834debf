"""Tests of loading: workers and what they must not disturb."""

import os
import random
import signal
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batches.loading import Collate, loader_options
from datamodules.batches.packing import StepSampler
from datamodules.examples.store import ExampleView, open_store
from datamodules.tasks.prompts import get_prompt
from tests.tiny import build_tokenizer, make_questions


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ExampleView:
    cache_dir = tmp_path_factory.mktemp("tokenized")
    store = open_store(cache_dir, build_tokenizer(), get_prompt("plain"), make_questions(40), None)
    return ExampleView(store, np.arange(40))


def make_loader(examples: ExampleView, num_workers: int) -> DataLoader:
    sampler = StepSampler(examples.lengths, 200, 100, 0, 0, 1)
    return DataLoader(**loader_options(examples, sampler, Collate({}), num_workers, pin_memory=False))


def list_ids(step: list[dict]) -> list[str]:
    return [identifier for batch in step for identifier in batch["example_ids"]]


def test_workers_outlive_the_signals_that_a_scheduler_sends_to_all_and_end_when_told(examples: ExampleView) -> None:
    expected = [list_ids(step) for step in make_loader(examples, 0)]
    loader = make_loader(examples, 2)
    iterator = iter(loader)
    seen = [list_ids(next(iterator))]
    workers = iterator._workers
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(worker.pid, number)
    seen += [list_ids(step) for step in iterator]
    assert seen == expected
    # The same workers serve the next pass.
    loader.batch_sampler.epoch = 1
    again = [list_ids(step) for step in loader]
    assert loader._iterator is iterator and again != expected
    assert sorted(chain.from_iterable(again)) == sorted(chain.from_iterable(expected))
    iterator._shutdown_workers()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generators(examples: ExampleView, num_workers: int) -> None:
    def read_states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = read_states()
    loader = make_loader(examples, num_workers)
    for _ in range(2):
        assert sum(len(list_ids(step)) for step in loader) == 40
    assert read_states() == before
    if num_workers:
        loader._iterator._shutdown_workers()
