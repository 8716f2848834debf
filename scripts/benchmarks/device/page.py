"""The page of results, and the same as lines of JSON beside it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from datamodules.files.atomic import write_text
from datamodules.provenance import find_git_commit
from scripts.benchmarks.device.parts import Failure
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.records import describe_cores, format_measurements

_PAGE = """# On a GPU

{day}, commit {commit}, {machine}, torch {torch}. Made by

    python -m scripts.benchmark gpu{options} --page {path}

`python -m scripts.benchmark gpu --help` says what is measured; [{lines}]({lines}) has every line as JSON.{warning}
{failures}
{tables}"""
_WARNING = """

**Toy sizes on a CPU: this page shows that every part runs, and no number on it means anything.**"""


def describe_machine(place: Place) -> str:
    """Returns what it was measured on."""
    if place.is_toy:
        return describe_cores()
    facts = torch.cuda.get_device_properties(0)
    return (
        f"{torch.cuda.device_count()} x {facts.name} ({facts.total_memory / 2**30:.0f} GiB), CUDA {torch.version.cuda}"
    )


def write_page(
    path: Path, place: Place, measured: Mapping[str, Sequence[Measurement]], failures: Sequence[Failure]
) -> None:
    """Writes the page, and the lines beside it."""
    lines = path.with_suffix(".jsonl")
    said = "\n".join(f"- **{failure.part} failed**: {failure.reason}" for failure in failures)
    page = _PAGE.format(
        day=date.today().isoformat(),
        commit=find_git_commit(),
        machine=describe_machine(place),
        torch=torch.__version__,
        options=" --cpu" if place.is_toy else "",
        path=path,
        lines=lines.name,
        warning=_WARNING if place.is_toy else "",
        failures=f"\n{said}\n" if said else "",
        tables="\n".join(
            f"## {part.capitalize()}\n\n{format_measurements(found)}\n" for part, found in measured.items() if found
        ),
    )
    write_text(lines, "".join(json.dumps(dataclasses.asdict(m)) + "\n" for own in measured.values() for m in own))
    write_text(path, page)
