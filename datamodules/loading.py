"""From examples to a process's batches: dataset, collation, worker processes, and resuming inside an epoch."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import TokenBudgetBatchSampler, collate_examples
from datamodules.files import hash_json
from datamodules.logit_cache import LogitCache
from datamodules.targets import collate_targets
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
            batch["target"] = collate_targets(examples, self.caches)
            batch["temperatures"] = self.caches[examples[0].id].description.temperatures
        return batch


def ignore_signals(worker: int) -> None:
    """Makes a worker process leave signals to its parent, which ends it in order."""
    # A scheduler and Ctrl-C signal every process of a job.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def make_loader(
    examples: Sequence[Example], sampler: TokenBudgetBatchSampler, collate: Collate, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Returns a loader of the sampler's batches; its workers live on from epoch to epoch.

    Args:
        examples: What the sampler numbers.
        sampler: Chooses the batches.
        collate: Makes a batch of examples.
        num_workers: Worker processes; 0 loads in this one.
        pin_memory: For copies to a GPU.
    """
    return DataLoader(
        ExampleDataset(examples),
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=pin_memory,
        # Without one, each pass would draw a seed from the global generator, which dropout uses.
        generator=torch.Generator().manual_seed(0),
    )


class ResumableLoader:
    """Hands out an epoch's batches from where training stands.

    A pass begins at the trainer's own count of the epoch's batches, so what workers have fetched ahead plays no
    part. Nothing is fetched until the first batch is asked for: Lightning makes an iterator before it restores its
    counts and before it announces the epoch.

    Args:
        loader: Over a TokenBudgetBatchSampler.
        trainer: Counts.
    """

    def __init__(self, loader: DataLoader, trainer: L.Trainer):
        self.loader, self.trainer = loader, trainer
        assert isinstance(loader.batch_sampler, TokenBudgetBatchSampler)
        # Lightning announces epochs to it.
        self.batch_sampler = loader.batch_sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict]:
        self.batch_sampler.num_done = self._count_done()
        yield from self.loader

    def _count_done(self) -> int:
        """Returns how many batches of the epoch this process has trained on."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed

    def state_dict(self) -> dict:
        """Returns the place in the epoch, and all that must be the same for its remaining batches to be those left."""
        sampler = self.batch_sampler
        return {
            "epoch": sampler.epoch,
            "num_done": self._count_done(),
            "num_batches": self.trainer.num_training_batches,
            "world_size": sampler.world_size,
            "tokens_per_batch": sampler.tokens_per_batch,
            "order": hash_json(sampler.plan(sampler.epoch)),
        }

    def load_state_dict(self, state: dict) -> None:
        """Checks that an epoch begun elsewhere can be ended here; where it goes on, the trainer's count says.

        Raises:
            ValueError: The checkpoint was saved inside an epoch whose batches were others than they would be now.
        """
        if not 0 < state["num_done"] < state["num_batches"]:
            return
        sampler = self.batch_sampler
        place = f"the checkpoint was saved after {state['num_done']} of epoch {state['epoch']}'s {state['num_batches']}"
        for name, value in (("world_size", sampler.world_size), ("tokens_per_batch", sampler.tokens_per_batch)):
            if state[name] != value:
                raise ValueError(
                    f"{place} batches with {name}={state[name]}, but now {name}={value}; continue with "
                    f"{state[name]}, or from a checkpoint at an epoch's end"
                )
        if state["order"] != hash_json(sampler.plan(state["epoch"])):
            raise ValueError(
                f"{place} batches, which are not those that the data and its settings now give; continue with the "
                "same, or from a checkpoint at an epoch's end"
            )
