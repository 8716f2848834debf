"""What benchmarks share: one measurement, what calls cost, races in turns, and time and memory in a process of its own.

Other work on the machine slows the one and then the other. So what is compared takes turns, call by call, and is
measured twice: by the wall's time, the least and the median, and by the processor's, user and system, of all threads.
Where the two ratios lie apart, that is said, and neither is to be trusted.
"""

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# Of the smaller of two ratios.
TRUSTED_DIFFERENCE = 0.1


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
        """Returns the measurement with its ratio, if there is one."""
        return cls(name, value, unit, baseline, value / baseline if baseline else None)

    def __str__(self) -> str:
        beside = "" if self.baseline is None else f"  against {self.baseline:<12.5g}"
        beside += "" if self.ratio is None else f"  ratio {self.ratio:.3f}"
        return f"{self.name:<44} {self.value:<12.5g} {self.unit:<12}{beside}"


@dataclass
class Costs:
    """What each of several calls of one kind took.

    Attributes:
        wall: Seconds of each.
        cpu: Seconds of the processor's, of all threads of the process.
        amounts: What each did, such as tokens; what is compared then is amounts a second.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)

    def time(self, call: Callable[[], Any], amount: float | None = None) -> Any:
        """Calls, notes what it took, and returns what the call did."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        self.add(time.perf_counter() - wall, time.process_time() - cpu, amount)
        return found

    def add(self, wall: float, cpu: float, amount: float | None = None) -> None:
        """Notes a call."""
        self.wall.append(wall)
        self.cpu.append(cpu)
        if amount is not None:
            self.amounts.append(amount)

    def leave_out(self, number: int) -> "Costs":
        """Returns these without the first calls, in which buffers are made."""
        return Costs(self.wall[number:], self.cpu[number:], self.amounts[number:])

    def rate(self, seconds: Sequence[float]) -> list[float]:
        """Returns the seconds of each call, or what it did in one."""
        if not self.amounts:
            return list(seconds)
        return [amount / second for amount, second in zip(self.amounts, seconds, strict=True)]


def compare(name: str, ours: Costs, baseline: Costs, unit: str = "s") -> Iterator[Measurement]:
    """Yields NAME by the best call's wall time, NAME_median by the median's, NAME_cpu by the processor's best.

    Args:
        name: Of the measurement.
        ours: What is measured.
        baseline: What it is compared with, which took turns with it.
        unit: Of the seconds, or of amounts a second.
    """
    best = max if ours.amounts else min
    pairs = [(costs.rate(costs.wall), costs.rate(costs.cpu)) for costs in (ours, baseline)]
    (our_wall, our_cpu), (its_wall, its_cpu) = pairs
    yield Measurement.against(name, best(our_wall), best(its_wall), unit)
    yield Measurement.against(f"{name}_median", statistics.median(our_wall), statistics.median(its_wall), unit)
    yield Measurement.against(f"{name}_cpu", best(our_cpu), best(its_cpu), unit)


def find_doubts(measured: Sequence[Measurement]) -> dict[str, str]:
    """Returns, by name, why a ratio is not to be trusted: by the processor's time it differs by more than a tenth.

    That of the best calls and that of the medians are each held against the processor's.
    """
    ratios = {one.name: one.ratio for one in measured if one.ratio}
    doubts = {}
    for name, wall in ratios.items():
        cpu = ratios.get(f"{name.removesuffix('_median')}_cpu")
        if cpu and (apart := max(wall, cpu) / min(wall, cpu) - 1) > TRUSTED_DIFFERENCE:
            said = f"{wall:.3f} by the wall's time, {cpu:.3f} by the processor's, {100 * apart:.0f} % apart"
            doubts[name] = f"not to be trusted: {said}; run it again on a quieter machine"
    return doubts


def race(
    ours: Callable[[], Any], baseline: Callable[[], Any], repeats: int, amount: float | None = None
) -> tuple[Costs, Costs, Any, Any]:
    """Calls both in turns; returns what each one's calls took, and what each returned last."""
    our_costs, its_costs = Costs(), Costs()
    our_result = its_result = None
    for _ in range(repeats):
        our_result = our_costs.time(ours, amount)
        its_result = its_costs.time(baseline, amount)
    return our_costs, its_costs, our_result, its_result


def time_calls(call: Callable[[], Any], repeats: int, warmups: int = 1) -> float:
    """Returns the median wall time of one call, in seconds."""
    for _ in range(warmups):
        call()
    costs = Costs()
    for _ in range(repeats):
        costs.time(call)
    return statistics.median(costs.wall)


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
