"""A benchmark's numbers with what they were measured on, and the page of all that are recorded."""

import ast
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from datamodules.files.atomic import write_text
from datamodules.files.command_line import CommandLine
from datamodules.provenance import find_git_commit
from scripts.benchmarks.measure import Measurement, find_doubts

DOCS = Path(__file__).parents[2] / "docs"
_PAGE = """# Benchmarks

Each against its baseline in the same run, which took turns with it, call by call. A plain name is by the wall's time
of the fastest call, `_median` by the median's, `_cpu` by the processor's, user and system. **Where the ratios of the
wall's and the processor's time are more than a tenth apart, other work disturbed, and the line says so.** Of a ratio
whose unit is seconds or bytes less is better, of `.../s` more.

This page is written by `python -m scripts.benchmark page`, from what `python -m scripts.benchmark NAME --record
docs/benchmarks` measured; `python -m scripts.benchmark NAME --help` says what a line means. Older and longer
measurements are among the [results](results/index.md).
"""


@dataclass
class Recorder:
    """A benchmark under way.

    Attributes:
        name: Its name.
        args: Its own part of the command line.
        load: How many processes wanted to run, on average over the minute before it began.
        started: When, by the monotonic clock.
        measured: What it has measured.
    """

    name: str
    args: list[str]
    load: float
    started: float
    measured: list[Measurement] = field(default_factory=list)

    @classmethod
    def start(cls, name: str, args: list[str]) -> "Recorder":
        """Begins."""
        return cls(name, args, os.getloadavg()[0], time.monotonic())

    def write(self, folder: Path) -> None:
        """Writes FOLDER/NAME.json."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "benchmark": self.name,
            "command": " ".join(["python -m scripts.benchmark", self.name, *self.args]),
            "date": date.today().isoformat(),
            "commit": find_git_commit(),
            "machine": f"{describe_cores()}, torch {torch.__version__}",
            "load": round(self.load, 1),
            "seconds": round(time.monotonic() - self.started),
            "measurements": [asdict(one) for one in self.measured],
        }
        write_text(folder / f"{self.name}.json", json.dumps(record, indent=1) + "\n")


def describe_cores() -> str:
    """Returns what a benchmark without a GPU was measured on."""
    return f"{os.cpu_count()} cores ({platform.machine()})"


def format_measurements(measured: Sequence[Measurement]) -> str:
    """Returns measurements as a Markdown table, with a column of doubts if there are any."""
    doubts = find_doubts(measured)
    lines = [
        ["what", "measured", "unit", "against", "ratio", *([""] if doubts else [])],
        ["---", "---:", "---", "---:", "---:", *(["---"] if doubts else [])],
    ]
    for one in measured:
        baseline = "" if one.baseline is None else f"{one.baseline:.4g}"
        ratio = "" if one.ratio is None else f"{one.ratio:.3g}"
        doubt = [doubts.get(one.name, "")] if doubts else []
        lines.append([one.name, f"{one.value:.4g}", one.unit, baseline, ratio, *doubt])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _format_section(record: dict[str, Any]) -> str:
    source = (Path(__file__).parent / f"{record['benchmark']}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring is not None
    return f"""## {record["benchmark"].capitalize()}

{docstring.split(chr(10))[0]}

`{record["command"]}`: {record["date"]}, commit {record["commit"][:7]}, {record["machine"]}, {record["seconds"]} s; \
{record["load"]} processes wanted to run when it began.

{format_measurements([Measurement(**one) for one in record["measurements"]])}
"""


def format_page(folder: Path) -> str:
    """Returns the page of a folder's records, by name.

    Raises:
        ValueError: There is none.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ValueError(f"{folder}: nothing is recorded; python -m scripts.benchmark NAME --record {folder} does it")
    return "\n".join([_PAGE, *(_format_section(json.loads(path.read_text(encoding="utf-8"))) for path in paths)])


def run_page(args: list[str]) -> None:
    """Writes the page; `args` are the command's own."""
    parser = CommandLine(prog="python -m scripts.benchmark page")
    parser.add_argument("--records", type=Path, default=DOCS / "benchmarks", help="the folder of --record")
    parser.add_argument("--output", type=Path, default=DOCS / "benchmarks.md")
    given = parser.parse_args(args)
    write_text(given.output, format_page(given.records))
