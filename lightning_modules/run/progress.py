"""Progress that reads well: a bar in a terminal, a line every so often in a log."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar

SECONDS = 30.0


def is_watched() -> bool:
    """Says whether a person watches: both outputs are a terminal's."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class _Lines:
    """Takes what tqdm writes to redraw its bar; each is a line, without carriage return or padding."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Does nothing: every line is flushed."""


def bar_options(seconds: float = SECONDS) -> dict[str, Any]:
    """Returns what makes tqdm write a line every so many seconds where nobody watches; nothing where somebody does."""
    if is_watched():
        return {}
    form = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
    # The least interval is the greatest, too, after which tqdm's own thread would draw.
    return {"file": _Lines(), "mininterval": seconds, "maxinterval": max(seconds, 10.0), "bar_format": form}


def format_seconds(seconds: float) -> str:
    """Returns a time as one number: seconds, minutes or hours."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def format_bytes(size: float) -> str:
    """Returns bytes in the unit that leaves few digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


class ProgressLines(ProgressBar):
    """Says where a trainer stands, in a line on stderr at most every so many seconds.

    Args:
        seconds: The least time between two lines.
    """

    def __init__(self, seconds: float = SECONDS):
        super().__init__()
        self.seconds, self._enabled = seconds, True
        self._start = self._last = 0.0
        self._first = 0

    def disable(self) -> None:
        """Says nothing: of several processes, one does."""
        self._enabled = False

    def enable(self) -> None:
        """Says it again."""
        self._enabled = True

    def _begin(self, done: int) -> None:
        self._start = self._last = time.monotonic()
        self._first = done

    def _say(self, what: str, done: int, total: float, more: str = "") -> None:
        """Writes a line if the last is long enough ago."""
        now = time.monotonic()
        if not self._enabled or now - self._last < self.seconds:
            return
        self._last = now
        left = (total - done) * (now - self._start) / max(done - self._first, 1)
        of = f"{what} {done}/{total:.0f}{more}, {format_seconds(now - self._start)} gone, {format_seconds(left)} left"
        print(of, file=sys.stderr, flush=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._begin(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Says which step of how many is done, and its loss."""
        loss = trainer.callback_metrics.get("train/loss")
        more = "" if loss is None else f", loss {loss:.4f}"
        self._say("step", trainer.global_step, float(trainer.estimated_stepping_batches), more)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._begin(0)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Says which of how many batches is done."""
        self._say("batch", batch_idx + 1, sum(trainer.num_predict_batches))
