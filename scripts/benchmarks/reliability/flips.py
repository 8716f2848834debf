"""Flipped bits in artefacts: how many load with other content, and nobody is told."""

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.files.seals import read_sealed
from scripts.benchmarks.reliability import contents


@dataclass(frozen=True)
class Artefact:
    """What is damaged, and how it is read.

    Attributes:
        files: Patterns of the files below the bench's folder that are damaged.
        path: What is read.
        read: Reads it.
    """

    files: list[str]
    path: str
    read: Callable[[Path], Any]


ARTEFACTS = {
    "rationale store": Artefact(["teacher/rationales.parquet"], "teacher/rationales.parquet", contents.read_rationales),
    "predictions": Artefact(["predictions.parquet"], "predictions.parquet", contents.read_predictions),
    "evaluation's metrics": Artefact(
        ["predictions.parquet.metrics.json"], "predictions.parquet.metrics.json", read_sealed
    ),
    "exported student": Artefact(["runs/g/r/student/*"], "runs/g/r/student", contents.read_student),
    "metrics.jsonl and DONE": Artefact(["runs/g/r/metrics.jsonl", "runs/g/r/DONE"], "runs/g/r", contents.read_run),
    "logit cache": Artefact(["teacher/logits/*"], "teacher/logits", contents.read_cache),
    "tokenized store": Artefact(["data/tokenized/STORE/*"], "data/tokenized/STORE", contents.read_examples),
    "checkpoint": Artefact(["runs/g/r/checkpoints/last.ckpt"], "runs/g/r/checkpoints", contents.read_checkpoint),
}


@dataclass(frozen=True)
class Flipped:
    """Of some flips, descriptions of those that loaded with other content, and of those that ended in a traceback."""

    silent: list[str]
    unclean: list[str]


def flip(name: str, folder: Path, number: int, seed: int) -> Flipped:
    """Flips one bit at a time at random places of an artefact, and reads it.

    Args:
        name: Of the artefact.
        folder: Where all stages have run; it is as before afterwards.
        number: Of flips.
        seed: Of the places.
    """
    artefact, generator = ARTEFACTS[name], random.Random(f"{name} {seed}")
    stores = sorted(path.name for path in (folder / "data" / "tokenized").iterdir())
    path, patterns = (
        artefact.path.replace("STORE", stores[0]),
        [p.replace("STORE", stores[0]) for p in artefact.files],
    )
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if not file.name.startswith("."))
    if name == "checkpoint":
        # The one before would be taken in its place.
        (folder / path / "previous.ckpt").unlink()
    whole, flipped = contents.digest(artefact.read(folder / path)), Flipped([], [])
    for _ in range(number):
        # Each file as often as the others, since what is short matters as much.
        file = generator.choice(files)
        content = file.read_bytes()
        place, bit = generator.randrange(len(content)), generator.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        where = f"{file.relative_to(folder)}, byte {place}, bit {bit}"
        try:
            with warnings.catch_warnings(record=True):
                found = contents.digest(artefact.read(folder / path))
            if found != whole:
                flipped.silent.append(where)
        except (ValueError, OSError):
            pass
        except Exception as error:
            flipped.unclean.append(f"{where}: {type(error).__name__}: {error}")
        file.write_bytes(content)
    return flipped
