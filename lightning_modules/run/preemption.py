"""Ends a training or a prediction in order when a scheduler asks for it; the same command then continues."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_modules.run.stop_signal import EXIT_STOPPED, StopListener, leave


class StopQuestion:
    """All processes' question whether one was signalled; the answer is there when they ask again.

    Neither waits for what a GPU has to compute: the message has a stream of its own.

    Args:
        device: Of this process.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._message: Tensor | None = None
        self._under_way: Any = None

    def ask(self, is_signalled: bool) -> bool:
        """Returns whether a process was signalled when all last asked; if none was, asks anew."""
        with torch.cuda.stream(self._stream):
            if self._message is not None:
                self._under_way.wait()
                if self._message.item() > 0:
                    return True
            self._message = torch.tensor(int(is_signalled), device=self._device)
            self._under_way = torch.distributed.all_reduce(self._message, async_op=True)
        return False


class Preemption(L.Callback):
    """Leaves with `EXIT_STOPPED` at the next place where nothing is lost.

    A training saves at the end of an optimizer step, once one process was signalled, and leaves when that step's
    metrics are written. In a validation it saves before the next batch, of several processes before the one after it,
    so that no step is lost however long the validation takes; the resumed run begins the validation anew. The processes
    agree on it. A prediction keeps each batch's results, so that each process leaves by itself.

    Args:
        listener: Knows of the signal.
        checkpoint: Where a training is saved.
    """

    def __init__(self, listener: StopListener, checkpoint: Path | None = None):
        self.listener, self.checkpoint = listener, checkpoint
        self._is_leaving = False
        self._question: StopQuestion | None = None

    def _listen(self) -> None:
        # Lightning puts its own handler of SIGTERM in place, which would end the run with exit code 0.
        self.listener.listen()

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens: Lightning's handler would let one process of several wait for the others within it."""
        self._listen()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens."""
        self._listen()
        # Before each step Lightning would ask the first process for a signal that it no longer gets, and wait.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens."""
        self._listen()

    def _is_signalled(self, trainer: L.Trainer) -> bool:
        """Whether a process was signalled; all of them ask at once."""
        is_own = self.listener.received is not None
        if trainer.world_size == 1:
            return is_own
        self._question = self._question or StopQuestion(trainer.strategy.root_device)
        return self._question.ask(is_own)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Saves after an optimizer step, if a process was signalled."""
        is_alone = trainer.world_size == 1
        self._is_leaving = self.listener.received is not None if is_alone else pl_module.step_sums.totals.is_stopping
        if self._is_leaving and not trainer.is_last_batch:
            trainer.save_checkpoint(self.checkpoint)

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves and leaves in the middle of a training's validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and self._is_signalled(trainer):
            begin_validation_anew(trainer)
            trainer.save_checkpoint(self.checkpoint)
            self._leave(trainer, f"in the validation at step {trainer.global_step}")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Leaves, once what came after the step is written."""
        if self._is_leaving:
            self._leave(trainer, f"at step {trainer.global_step}")

    def on_predict_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Leaves before the next batch."""
        if self.listener.received is not None:
            self._leave(trainer, "between two batches")

    def _leave(self, trainer: L.Trainer, where: str) -> None:
        if trainer.is_global_zero:
            leave(where)
        raise SystemExit(EXIT_STOPPED)


def begin_validation_anew(trainer: L.Trainer) -> None:
    """Makes a checkpoint of a training that validates say that the validation's first batch has only begun.

    Lightning goes on within a validation that such a checkpoint was saved in; of the batches before, nobody has kept
    the metrics.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    # The total is the epoch's, of which several validations may be part.
    before = progress.total.completed - progress.current.completed
    for counts, done in ((progress.total, before), (progress.current, 0)):
        counts.ready = counts.started = done + 1
        counts.processed = counts.completed = done
