"""From examples to a process's batches: dataset, collation, worker processes, and resuming inside an epoch."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import TokenBudgetBatchSampler, collate_examples
from datamodules.files import hash_json
from datamodules.logit_cache import LogitCache
from datamodules.targets import ExactTensors, collate_targets
from datamodules.tokenization import Example


class ExampleDataset(Dataset):
    """Examples as a torch data set.

    Args:
        examples: The examples.
    """

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


@dataclass(frozen=True)
class Collate:
    """Collates examples; a class, so that workers can be spawned.

    Attributes:
        pad_id: Fills rows on the right.
        caches: By example id; empty where there are no logits.
    """

    pad_id: int
    caches: Mapping[str, LogitCache]

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """Returns `collate_examples`'s batch, with the teacher's `target` rows where there are caches."""
        batch = collate_examples(examples, self.pad_id)
        if self.caches:
            batch["target"] = ExactTensors(collate_targets(examples, self.caches))
            batch["temperatures"] = self.caches[examples[0].id].description.temperatures
        return batch


def ignore_signals(worker: int) -> None:
    """Makes a worker process leave signals to its parent, which ends it in order."""
    # A scheduler and Ctrl-C signal every process of a job.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def loader_options(
    examples: Sequence[Example], sampler: TokenBudgetBatchSampler, collate: Collate, num_workers: int, pin_memory: bool
) -> dict[str, Any]:
    """Returns a DataLoader's arguments, for the sampler's batches; its workers live on from epoch to epoch.

    Args:
        examples: What the sampler numbers.
        sampler: Chooses the batches.
        collate: Makes a batch of examples.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: For copies to a GPU.
    """
    return {
        "dataset": ExampleDataset(examples),
        "batch_sampler": sampler,
        "collate_fn": collate,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": ignore_signals,
        "pin_memory": pin_memory,
        # Without one, each pass would draw a seed from the global generator, which dropout uses.
        "generator": torch.Generator().manual_seed(0),
    }


class ResumableLoader(DataLoader):
    """Hands out batches from where training stands, in whatever epoch and place.

    The place is the trainer's own count of trained batches, so what workers have fetched ahead plays no part.
    Lightning's count of epochs is not read: a run limited by steps that is resumed at an epoch's end counts one too
    many. Nothing is fetched until the first batch is asked for: Lightning makes an iterator before it restores its
    counts.

    It is a DataLoader so that Lightning ends its workers with the training: collected as garbage, they would miss the
    message to end, and they ignore signals.

    Args:
        trainer: Counts.
        options: See `loader_options`.

    Attributes:
        seconds_waited: How long the training has waited for batches.
    """

    batch_sampler: TokenBudgetBatchSampler

    def __init__(self, trainer: L.Trainer, **options: Any):
        super().__init__(**options)
        self.trainer = trainer
        # Where a checkpoint stood: the epoch, its batches so far, and all batches so far.
        self.start = (0, 0, 0)
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[dict]:  # type: ignore[override]
        self.batch_sampler.epoch, self.batch_sampler.num_done, _ = self._find_place()
        asked = time.perf_counter()
        for batch in super().__iter__():
            self.seconds_waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def _find_place(self) -> tuple[int, int, int]:
        """Returns the epoch, how many of its batches this process has trained on, and how many in all."""
        epoch, num_done, before = self.start
        total = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        epochs, num_done = divmod(num_done + total - before, self.trainer.num_training_batches)
        return epoch + epochs, num_done, total

    def state_dict(self) -> dict:
        """Returns the place, and all that must be the same for an epoch's remaining batches to be those left."""
        sampler = self.batch_sampler
        epoch, num_done, total = self._find_place()
        return {
            "epoch": epoch,
            "num_done": num_done,
            "total": total,
            "world_size": sampler.world_size,
            # A config's number is of jsonargparse's own type, which no checkpoint may hold.
            "tokens_per_batch": int(sampler.tokens_per_batch),
            "order": hash_json(sampler.plan(epoch)),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on from a checkpoint's place.

        Raises:
            ValueError: It is inside an epoch, whose batches were others than they would be now.
        """
        self.start = (state["epoch"], state["num_done"], state["total"])
        if state["num_done"] == 0:
            return
        sampler = self.batch_sampler
        where = f"the checkpoint was saved inside an epoch, after {state['num_done']} batches"
        for name, value in (("world_size", sampler.world_size), ("tokens_per_batch", sampler.tokens_per_batch)):
            if state[name] != value:
                raise ValueError(
                    f"{where} with {name}={state[name]}, but now {name}={value}; continue with {state[name]}, or from "
                    "a checkpoint of an epoch's end"
                )
        if state["order"] != hash_json(sampler.plan(state["epoch"])):
            raise ValueError(
                f"{where} that are not those that the data and its settings now give; continue with the same, or from "
                "a checkpoint of an epoch's end"
            )
