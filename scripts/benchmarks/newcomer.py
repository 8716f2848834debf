r"""A newcomer's first student: from a clone to a student of one's own six questions, by the pages' own commands.

What is run is `make install` of the README, and every block of the page that its table links first. The baseline is ten
minutes; the commands are counted up to the student. Then what a newcomer asks next, each a command with what it has to
print: files of other programs' forms, a pair of models' costs, a model that no network gives, help, and an evaluation.

    python -m scripts.benchmark newcomer --json
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.newcomer_steps import STEPS, write_formats

ROOT = Path(__file__).parents[2]
MINUTES = 10
FIRST_LINK = re.compile(r"^\| \[.*?\]\((\S+?\.md)\)", re.MULTILINE)
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUESTIONS = (
    ("What is a spoon of iron made of?", "iron", "wood"),
    ("What is a ladder of wood made of?", "wood", "glass"),
    ("What is a cup of glass made of?", "glass", "iron"),
    ("What is a rope of wool made of?", "wool", "iron"),
    ("What is a gate of iron made of?", "iron", "wool"),
    ("What is a chair of wood made of?", "wood", "iron"),
)


def write_own_file(path: Path) -> None:
    """Writes six questions with rationales, as somebody would who has read the page's first example."""
    lines = [
        f'{{"question": "{text}", "choices": ["{right}", "{wrong}"], "answer": "{right}", '
        f'"rationale": "The {text.split()[3]} is of {right}. The answer is A."}}\n'
        for text, right, wrong in QUESTIONS
    ]
    path.write_text("".join(lines))


def list_blocks(page: Path) -> list[str]:
    """Returns a page's blocks of commands."""
    return BLOCK.findall(page.read_text())


def run_block(block: str, folder: Path, code: int = 0, prints: tuple[str, ...] = ()) -> float:
    """Runs commands in the clone's environment; returns their seconds.

    Args:
        block: The commands.
        folder: The clone, or what it will be in.
        code: With which they are to end.
        prints: What they are to print, all of it.

    Raises:
        RuntimeError: They end otherwise, or do not print it.
    """
    start = time.perf_counter()
    script = f"set -e\n[ ! -f .venv/bin/activate ] || source .venv/bin/activate\n{block}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    seconds, said = time.perf_counter() - start, f"{done.stdout}{done.stderr}"
    if done.returncode != code or any(text not in said for text in prints):
        wanted = "".join(f" and {text!r}" for text in prints)
        raise RuntimeError(
            f"{block}\nended with {done.returncode}, not {code}{wanted}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return seconds


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs it; see the module's docstring."""
    given = make_parser("newcomer", __doc__).parse_args(args)
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "kindred"
        seconds = run_block(f"git clone --quiet '{ROOT}' '{clone}'", Path(scratch))
        if given.smoke:
            # This environment instead of one of its own, whose set-up takes minutes.
            (clone / ".venv").symlink_to(sys.prefix)
        else:
            seconds += run_block("make install", clone)
        yield Measurement("newcomer_setup", seconds, "s")
        readme = (clone / "README.md").read_text()
        link = FIRST_LINK.search(readme)
        assert link is not None
        # The clone, the set-up and its activation.
        commands = 3
        for block in list_blocks(clone / link[1]):
            if block.startswith("cat >"):
                write_own_file(clone / "mine.jsonl")
                continue
            seconds += run_block(block, clone)
            if (clone / "runs" / "mine" / "first" / "student").is_dir():
                break
            commands += len(re.findall(r"^python -m ", block, re.MULTILINE))
        # Of the block that trains, up to the training.
        commands += 1
        write_formats(clone / "formats.jsonl")
        taken = [(step, run_block(step.command, clone, step.code, step.prints)) for step in STEPS]
    yield Measurement.against("newcomer_first_student", seconds, 60 * MINUTES, "s")
    yield Measurement.against("newcomer_commands", commands, 5, "commands")
    for step, took in taken:
        yield Measurement(f"newcomer_{step.name}", took, "s", step.seconds, step.seconds and took / step.seconds)
