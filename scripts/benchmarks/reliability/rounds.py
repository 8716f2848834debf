"""One round of each kind of fault: a kill, a race of two processes, a full disk. Each says what went wrong, if any."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.reliability.bench import COMMANDS, OTHER_CONFIG, OUTPUTS, Bench, read_output
from scripts.benchmarks.reliability.processes import Ended, Stage

_REFUSALS = (
    "another process writes this",
    "another process trains this run",
    "another process has just written here",
    "this run was begun with another config",
)


@dataclass(frozen=True)
class Round:
    """What a round showed.

    Attributes:
        problem: What is wrong afterwards, or None.
        was_hit: Whether the fault came while the stage was at work.
    """

    problem: str | None
    was_hit: bool


def kill(bench: Bench, stage: str, folder: Path, seed: int) -> Round:
    """Kills a stage at a random moment, runs it again, and compares the result with an undisturbed one's."""
    moment = random.Random(seed).uniform(0, bench.seconds[stage])
    bench.begin(stage, folder)
    killed = Stage(stage, COMMANDS[stage], folder).wait(kill_after=moment)
    rerun = Stage(stage, COMMANDS[stage], folder).wait()
    problem = bench.find_difference(stage, folder, rerun)
    return Round(problem and f"killed after {moment:.3f} s: {problem}", killed.code == -9)


def race(bench: Bench, stage: str, folder: Path, seed: int, other: Bench | None = None) -> Round:
    """Runs a stage twice at once on one output; the second starts at a random moment of the first.

    Right is that one wins and the other is refused, or that both end with the one right result.

    Args:
        bench: Where the stage is undisturbed.
        stage: Its name.
        folder: To run in.
        seed: Of the moment.
        other: Where the second's config is undisturbed, if it has another.
    """
    generator = random.Random(seed)
    delay = generator.choice([0.0, generator.uniform(0, bench.seconds[stage])])
    bench.begin(stage, folder)
    second_args = [*COMMANDS[stage], *(OTHER_CONFIG if other else [])]
    first = Stage(stage, COMMANDS[stage], folder)
    first.wait_for(delay)
    second = Stage(stage, second_args, folder)
    ends = [first.wait(), second.wait()]
    problem = _judge_race([bench, other or bench], stage, folder, ends)
    return Round(problem and f"the second after {delay:.3f} s: {problem}", any(ended.code == 2 for ended in ends))


def _judge_race(benches: list[Bench], stage: str, folder: Path, ends: list[Ended]) -> str | None:
    shown = "; ".join(map(str, ends))
    winners = [bench for bench, ended in zip(benches, ends, strict=True) if ended.code == 0]
    if not winners:
        return f"none won: {shown}"
    for ended in ends:
        if ended.code != 0 and not _is_refusal(ended):
            return f"one failed: {shown}"
    found = read_output(stage, folder)
    if any(bench.contents[stage] != found for bench in winners):
        return f"one that ended well has not its result: {shown}"
    return winners[0].find_difference(stage, folder, Ended(0, [], benches[0].complaints[stage], 0.0))


def _is_refusal(ended: Ended) -> bool:
    return ended.code == 2 and len(ended.complaints) == 1 and any(text in ended.complaints[0] for text in _REFUSALS)


def fill_disk(bench: Bench, stage: str, folder: Path, seed: int) -> Round:
    """Runs a stage where no file can grow beyond a random size, and again where they can.

    Right is one line that names the path, exit code 2, and nothing half written under the output's name; the second
    run says and leaves what an undisturbed one does.
    """
    output = bench.folder / OUTPUTS[stage]
    sizes = [path.stat().st_size for path in (output.rglob("*") if output.is_dir() else [output]) if path.is_file()]
    limit = random.Random(seed).choice([0, 1, 2, 3, 4]) * max(sizes) // 5 + random.Random(seed).randrange(2) * 100
    bench.begin(stage, folder)
    ended = Stage(stage, COMMANDS[stage], folder, file_size=limit).wait()
    problem = None if ended.code == 0 else _judge_full(stage, folder, ended)
    if problem is None and (ended.code == 0 or _is_there(stage, folder)):
        problem = None if read_output(stage, folder) == bench.contents[stage] else "the result is another"
    if problem is None:
        problem = bench.find_difference(stage, folder, Stage(stage, COMMANDS[stage], folder).wait())
    return Round(problem and f"files of at most {limit} bytes: {problem}", ended.code != 0)


def _is_there(stage: str, folder: Path) -> bool:
    marks = {"cache_logits": "manifest.json", "fit": "DONE"}
    return (folder / OUTPUTS[stage] / marks[stage] if stage in marks else folder / OUTPUTS[stage]).exists()


def _judge_full(stage: str, folder: Path, ended: Ended) -> str | None:
    if ended.code != 2 or len(ended.complaints) != 1 or not ended.complaints[0].startswith("error: "):
        return f"not one line and exit 2: {ended}"
    if not re.search(rf"({re.escape(OUTPUTS[stage])}|data/tokenized/)", ended.complaints[0]):
        # A hidden file beside the output is named by its own path.
        name = Path(OUTPUTS[stage]).name
        if f".{name}." not in ended.complaints[0]:
            return f"names no path: {ended}"
    return None
