"""What benchmarks share: one measurement, races with a baseline, and time and memory in a process of its own."""

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Measurement:
    """One number beside its baseline.

    Attributes:
        name: What was measured; stable, so that runs can be compared.
        value: The number.
        unit: Of `value` and `baseline`.
        baseline: The same of what it is compared with, in the same run; None where there is nothing to compare.
        ratio: value / baseline; None where that is 0, too.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None

    @classmethod
    def against(cls, name: str, value: float, baseline: float, unit: str) -> "Measurement":
        """Returns the measurement with its ratio."""
        return cls(name, value, unit, baseline, value / baseline)

    def __str__(self) -> str:
        beside = "" if self.baseline is None else f"  against {self.baseline:<12.5g}"
        beside += "" if self.ratio is None else f"  ratio {self.ratio:.3f}"
        return f"{self.name:<44} {self.value:<12.5g} {self.unit:<12}{beside}"


def time_calls(call: Callable[[], Any], repeats: int, warmups: int = 1) -> float:
    """Returns the median wall time of one call, in seconds."""
    for _ in range(warmups):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def race(ours: Callable[[], Any], baseline: Callable[[], Any], repeats: int) -> tuple[float, float, Any, Any]:
    """Calls both in turns; returns each one's least wall time in seconds, and what each returned last."""
    times: list[list[float]] = [[], []]
    found: list[Any] = [None, None]
    for _ in range(repeats):
        for number, call in enumerate((ours, baseline)):
            start = time.perf_counter()
            found[number] = call()
            times[number].append(time.perf_counter() - start)
    return min(times[0]), min(times[1]), found[0], found[1]


def generate_alone(model: Any, prompt_ids: Sequence[int], max_new_tokens: int) -> Any:
    """Returns the ids of one greedy completion, from transformers' own `generate`."""
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return made[0, ids.shape[1] :]


def read_peak_rss() -> int:
    """Returns the peak resident memory of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def run_apart(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a module's function in a fresh process, so that no allocator or cache of this one plays a part."""
    gc.collect()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)
