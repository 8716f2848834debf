"""Where it is measured, at which sizes, and how long and how much memory a call takes there."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scripts.benchmarks.measure import read_peak_rss, time_calls


@dataclass(frozen=True)
class Place:
    """A device, and with it the sizes: real ones on a GPU, toy ones on a CPU, where times say nothing.

    Attributes:
        device: cuda or cpu.
    """

    device: str

    @property
    def is_toy(self) -> bool:
        """Whether sizes are toy ones."""
        return self.device == "cpu"

    @property
    def compiler(self) -> str:
        """The backend of torch.compile; at toy sizes one that compiles nothing."""
        return "eager" if self.is_toy else "inductor"

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        if not self.is_toy:
            torch.cuda.synchronize()

    def time(self, call: Callable[[], Any], repeats: int = 5, warmups: int = 1) -> float:
        """Returns the median seconds of a call, until the device is done."""

        def whole() -> None:
            call()
            self.wait()

        return time_calls(whole, 1 if self.is_toy else repeats, warmups)

    def measure_peak(self, call: Callable[[], Any]) -> float:
        """Returns the GiB that a call needs beyond what there is before it."""
        gc.collect()
        if self.is_toy:
            before = read_peak_rss()
            call()
            return (read_peak_rss() - before) / 2**30
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**30
