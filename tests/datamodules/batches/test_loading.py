"""Tests of loading: workers and what they must not disturb."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain
from multiprocessing import forkserver
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.batches.loading import GPU_WORKERS, Collate, ResumableLoader, check_processes, loader_options
from datamodules.batches.packing import MicroBatch, StepSampler
from datamodules.batches.teacher_rows import ExactTensors
from datamodules.examples.store import ExampleView, open_store
from datamodules.logit_cache.reader import LogitCache
from datamodules.tasks.prompts import get_prompt
from tests.logit_rows import make_example, write_cache
from tests.tiny import TRAINER, build_tokenizer, make_questions


@pytest.fixture(scope="module", autouse=True)
def own_server() -> None:
    """Another test's fork server may have begun without what keeps signals from its workers."""
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ExampleView:
    return open_examples(tmp_path_factory.mktemp("tokenized"))


def open_examples(cache_dir: Path) -> ExampleView:
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
    for worker in workers:
        worker.join(600)
    assert not any(worker.is_alive() for worker in workers)


HOLDER = """
import sys, time
from tests.datamodules.batches.test_loading import list_ids, make_loader, open_examples
from pathlib import Path
if __name__ == "__main__":
    iterator = iter(make_loader(open_examples(Path(sys.argv[1])), 2))
    next(iterator)
    print(*(worker.pid for worker in iterator._workers), flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_training_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "holder.py").write_text(HOLDER)
    command = [sys.executable, str(tmp_path / "holder.py"), str(tmp_path / "tokenized")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [Path(f"/proc/{number}") for number in process.stdout.readline().split()]
        assert len(workers) == 2 and all(worker.exists() for worker in workers)
        process.kill()
    while any(worker.exists() for worker in workers):
        time.sleep(0.1)


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


def make_resumable(examples: ExampleView, num_done: int = 0, seed: int = 0, **trainer) -> ResumableLoader:
    """A loader of a trainer that has taken so many steps."""
    sampler = StepSampler(examples.lengths, 200, 100, seed, 0, 1)
    loader = ResumableLoader(
        L.Trainer(**TRAINER, **trainer), **loader_options(examples, sampler, Collate({}), 0, False)
    )
    loader.trainer.fit_loop.max_batches = len(sampler)
    loader.trainer.fit_loop.epoch_loop.batch_progress.total.processed = num_done
    return loader


def list_steps(loader: ResumableLoader) -> list[list[str]]:
    return [list_ids(step) for step in loader]


def plan_ids(loader: ResumableLoader, epoch: int) -> list[list[str]]:
    """The ids of an epoch's steps, each in order of id, as the sampler plans them."""
    examples = loader.dataset.examples
    return [sorted(examples[item].id for item in step) for step in loader.batch_sampler.plan(epoch)]


def test_steps_come_from_where_the_trainer_stands(examples: ExampleView) -> None:
    loader = make_resumable(examples)
    size = len(loader)
    assert size > 3
    for num_done, epoch, place in ((0, 0, 0), (2, 0, 2), (size, 1, 0), (2 * size + 3, 2, 3)):
        loader.trainer.fit_loop.epoch_loop.batch_progress.total.processed = num_done
        assert [sorted(step) for step in list_steps(loader)] == plan_ids(loader, epoch)[place:]
        state = loader.state_dict()
        assert (state["epoch"], state["num_done"], state["total"]) == (epoch, place, num_done)


def test_who_overfits_gets_the_first_epochs_steps_again(examples: ExampleView) -> None:
    loader = make_resumable(examples, overfit_batches=1.0)
    first = list_steps(loader)
    loader.trainer.fit_loop.epoch_loop.batch_progress.total.processed = len(loader)
    assert list_steps(loader) == first
    assert [sorted(step) for step in first] == plan_ids(loader, 0)


def test_a_checkpoints_place_is_gone_on_from_with_the_same_steps_only(examples: ExampleView) -> None:
    stopped = make_resumable(examples)
    size = len(stopped)
    stopped.trainer.fit_loop.epoch_loop.batch_progress.total.processed = size + 2
    state = stopped.state_dict()
    # Lightning restores its count of steps, or starts a new one; what counts is what was done since.
    for since in (0, 1):
        resumed = make_resumable(examples, size + 2 + since)
        resumed.load_state_dict(state)
        assert [sorted(step) for step in list_steps(resumed)] == plan_ids(resumed, 1)[2 + since :]
    other = make_resumable(examples, seed=1)
    with pytest.raises(ValueError, match="inside an epoch, after 2 steps that are not those that the data"):
        other.load_state_dict(state)
    # At an epoch's end no step is left over, so another order may follow.
    stopped.trainer.fit_loop.epoch_loop.batch_progress.total.processed = size
    other.load_state_dict(stopped.state_dict())
    assert other.start == (1, 0, size)


def test_the_time_that_training_waits_is_what_loading_takes(
    examples: ExampleView, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("datamodules.batches.loading.time.perf_counter", lambda: float(next(clock)))
    loader = make_resumable(examples)
    assert loader.seconds_waited == 0
    list_steps(loader)
    # Two readings a step, one before it is asked for and one after.
    assert loader.seconds_waited == len(loader)


def test_a_batch_is_what_collate_makes_and_whether_it_counts(
    examples: ExampleView, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = StepSampler(examples.lengths, 200, 100, 0, 0, 1)
    options = loader_options(examples, sampler, Collate({}), 2, pin_memory=True)
    assert options["pin_memory"] and options["persistent_workers"] and options["num_workers"] == 2
    assert not loader_options(examples, sampler, Collate({}), 0, pin_memory=False)["persistent_workers"]
    for on_gpu, number in ((True, GPU_WORKERS), (False, 0)):
        monkeypatch.setattr("os.cpu_count", lambda: 8)
        assert loader_options(examples, sampler, Collate({}), None, pin_memory=on_gpu)["num_workers"] == number
    for counts in (True, False):
        batch = options["dataset"][MicroBatch([3, 1], counts)]
        assert batch["example_ids"] == [examples[3].id, examples[1].id] and batch["counts"] is counts
        assert "target" not in batch and "temperatures" not in batch


def test_no_more_processes_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for processors, allowed in ((2, 2), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda processors=processors: processors)
        check_processes("data.batches.num_workers", allowed)
        message = rf"^data\.batches\.num_workers={allowed + 1}: each is a process, .* has {allowed} processors; "
        with pytest.raises(ValueError, match=message):
            check_processes("data.batches.num_workers", allowed + 1)


def test_targets_come_with_their_temperatures_where_there_are_caches(tmp_path: Path) -> None:
    made = [make_example(number) for number in range(3)]
    write_cache(tmp_path, made)
    collate = Collate(dict.fromkeys((example.id for example in made), LogitCache(tmp_path)))
    for part in (made, made[:1]):
        batch = collate(part)
        assert batch["temperatures"] == (1.0, 2.0) and isinstance(batch["target"], ExactTensors)
