"""From examples to a process's share of each step: collation, worker processes, and resuming inside an epoch."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batches.mixing import MixedSampler
from datamodules.batches.packing import MicroBatch, StepSampler, collate_examples
from datamodules.batches.teacher_rows import ExactTensors, collate_targets
from datamodules.examples.tokenization import Example
from datamodules.files.atomic import hash_json
from datamodules.logit_cache.mixture import RowReader

# Loader processes of a process with a GPU.
GPU_WORKERS = 2


def check_processes(setting: str, number: int) -> None:
    """Raises a ValueError if a setting asks for more processes than the machine has processors."""
    if number > (processors := os.cpu_count() or 1):
        raise ValueError(
            f"{setting}={number}: each is a process, and this machine has {processors} processors; lower it"
        )


@dataclass(frozen=True)
class Collate:
    """Collates examples; a class, so that workers can be spawned.

    Attributes:
        caches: By example id; empty where there are no logits.
        log_probs: By the id of an example that the student wrote itself, of its tokens when they were drawn.
    """

    caches: Mapping[str, RowReader]
    log_probs: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """Returns `collate_examples`'s batch, with the teacher's `target` rows where there are caches.

        If the student wrote the examples, there is `drawn`, with `log_probs`, float32 [N], of its tokens.
        """
        batch = collate_examples(examples)
        if examples[0].id in self.log_probs:
            log_probs_N = np.concatenate([self.log_probs[example.id] for example in examples])
            batch["drawn"] = ExactTensors({"log_probs": torch.from_numpy(log_probs_N)})
        if examples[0].id in self.caches:
            batch["target"] = ExactTensors(collate_targets(examples, self.caches))
            batch["temperatures"] = self.caches[examples[0].id].description.temperatures
        return batch


class StepDataset(Dataset[Any]):
    """Examples as a torch data set that a `StepSampler`'s micro-batches index.

    Args:
        examples: What the sampler numbers.
        collate: Makes a micro-batch of examples.
    """

    def __init__(self, examples: Sequence[Example], collate: Collate):
        self.examples, self.collate = examples, collate

    def __getitem__(self, batch: MicroBatch) -> dict[str, Any]:
        """Returns the collated examples, and whether they `count`."""
        return {**self.collate([self.examples[number] for number in batch.items]), "counts": batch.counts}


def end_with_parent(worker: int) -> None:
    """Ends this worker once the training's process is gone; its own parent, the fork server, would not."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_forkserver() -> multiprocessing.context.BaseContext:
    """Returns how workers start: as forks of a process that has no threads and no signals.

    In a fork of a process with threads, such as a training's with others, a lock may be held for ever. And a scheduler
    and Ctrl-C signal every process of a job, whose workers are the training's to end.
    """
    context = multiprocessing.get_context("forkserver")
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # Imported once, since every worker has the command's module.
    context.set_forkserver_preload([__name__, *([spec.name] if spec else [])])
    sent = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, sent)
    try:
        # The server's own helper, at whose start some of them are let through again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, sent)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def loader_options(
    examples: Sequence[Example],
    sampler: StepSampler | MixedSampler,
    collate: Collate,
    num_workers: int | None,
    pin_memory: bool,
) -> dict[str, Any]:
    """Returns a DataLoader's arguments, for lists of a step's micro-batches; its workers live on from epoch to epoch.

    Args:
        examples: What the sampler numbers.
        sampler: Chooses the micro-batches.
        collate: Makes a micro-batch of examples.
        num_workers: Worker processes; 0 loads in this one, None chooses: a GPU is not to wait for collation.
        pin_memory: For copies to a GPU.
    """
    if num_workers is None:
        num_workers = min(GPU_WORKERS, (os.cpu_count() or 1) - 1) if pin_memory else 0
    return {
        "dataset": StepDataset(examples, collate),
        "batch_sampler": sampler,
        "collate_fn": list,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": end_with_parent,
        "multiprocessing_context": start_forkserver() if num_workers else None,
        "pin_memory": pin_memory,
        # Without one, each pass would draw a seed from the global generator, which dropout uses.
        "generator": torch.Generator().manual_seed(0),
    }


class ResumableLoader(DataLoader[Any]):
    """Hands out optimizer steps from where training stands, in whatever epoch and place.

    The place is the trainer's own count of steps, so what workers have fetched ahead plays no part.
    Lightning's count of epochs is not read: a run limited by steps that is resumed at an epoch's end counts one too
    many. Nothing is fetched until the first step is asked for: Lightning makes an iterator before it restores its
    counts.

    It is a DataLoader so that Lightning ends its workers with the training: collected as garbage, they would miss the
    message to end, and they ignore signals.

    Args:
        trainer: Counts.
        options: See `loader_options`.

    Attributes:
        seconds_waited: How long the training has waited for them.
    """

    batch_sampler: StepSampler | MixedSampler

    def __init__(self, trainer: L.Trainer, **options: Any):
        super().__init__(**options)
        self.trainer = trainer
        # Where a checkpoint stood: the epoch, its steps so far, and all steps so far.
        self.start = (0, 0, 0)
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        epoch, self.batch_sampler.num_done, _ = self._find_place()
        # Who asks to overfit wants the same steps again.
        self.batch_sampler.epoch = 0 if self.trainer.overfit_batches else epoch
        asked = time.perf_counter()
        for batch in super().__iter__():
            self.seconds_waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def _find_place(self) -> tuple[int, int, int]:
        """Returns the epoch, how many of its steps are done, and how many in all."""
        epoch, num_done, before = self.start
        total = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        epochs, num_done = divmod(num_done + total - before, self.trainer.num_training_batches)
        return epoch + epochs, num_done, total

    def state_dict(self) -> dict[str, Any]:
        """Returns the place, and what tells whether an epoch's remaining steps are those left."""
        epoch, num_done, total = self._find_place()
        order = hash_json(self.batch_sampler.plan(epoch))
        return {"epoch": epoch, "num_done": num_done, "total": total, "order": order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's place, whatever the number of processes that saved it.

        Raises:
            ValueError: It is inside an epoch, whose steps were others than they would be now.
        """
        self.start = (state["epoch"], state["num_done"], state["total"])
        if state["num_done"] and state["order"] != hash_json(self.batch_sampler.plan(state["epoch"])):
            raise ValueError(
                f"the checkpoint was saved inside an epoch, after {state['num_done']} steps that are not those that "
                "the data and its settings now give; continue with the same, or from a checkpoint of an epoch's end"
            )
