"""The pages' commands: fenced `bash` blocks, in a small checkout, run or checked as they are written.

A block runs, in the page's order, in one folder for each page. A comment above a block says why it cannot run here:

    <!-- not run: needs SLURM -->

Its commands then are only parsed; `REASONS` lists what may be said. `<!-- slow -->` at a page's top leaves its run to
the slow tests.
"""

import contextlib
import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import yaml

from datamodules.tasks.questions import load_questions
from scripts import on_policy, study
from scripts.common.stages import STAGES
from studies.diagnostics.diagnosis import parse as parse_diagnosis

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REASONS = {
    "needs a GPU",
    "needs several GPUs",
    "needs SLURM",
    "needs the hub",
    "needs npm",
    "needs a key",
    "needs published files",
    "takes minutes",
    "CI runs it",
}
# The settings of the shipped configs that are smaller here; a hub model is the microworld's teacher.
SMALL = {
    "train:512:0": "train:16:0",
    "test:400:0": "test:8:0",
    "max_epochs: 6": "max_epochs: 1",
    "seeds: [23]": "seeds: 1",
    "model: HuggingFaceTB/SmolLM2-135M-Instruct}": "model: configs/models/microworld/a-teacher, family: a}",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "configs/models/microworld/a-teacher",
    '"task:openbookqa:train"': '"microworld:train:16:0"',
    '"task:openbookqa:(validation|test)"': '"microworld:test:8:0"',
    "prompt: (cot|instruction)": "prompt: plain",
    "limit: (256|128)}": "limit: 16, encoding: {max_length: 320}}",
    "    limit: 256": "    encoding: {max_length: 320}",
}
# Commands that a block does not run by itself: they are written down, to be run in this process or to be checked.
RECORDED = ("python", "make", "sbatch", "pip", "hf", "npm")
RECORDER = '#!/bin/bash\nprintf "%s\\0" $(($# + 1)) "${0##*/}" "$@" >> "$KINDRED_TEST_COMMANDS"\n'


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: Of its fence.
        text: The shell's.
        reason: Why it is only checked; None if it is run.
    """

    line: int
    text: str
    reason: str | None


def read_blocks(page: Path) -> list[Block]:
    """Returns a page's `bash` blocks."""
    lines, blocks = page.read_text().splitlines(), []
    for index, line in enumerate(lines):
        if line.strip() == "```bash":
            end = next(i for i in range(index + 1, len(lines)) if lines[i].strip() == "```")
            marked = re.fullmatch(r"\s*<!-- not run: (.+) -->", lines[index - 1])
            blocks.append(Block(index + 1, "\n".join(lines[index + 1 : end]), marked[1] if marked else None))
    return blocks


def is_slow(page: Path) -> bool:
    return "<!-- slow -->" in page.read_text().splitlines()[:3]


def make_checkout(folder: Path) -> None:
    """Fills a folder with what commands find in a clone, on small settings."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "studies"):
        (folder / name).symlink_to(ROOT / name)
    for config in [*folder.glob("configs/*/*.yaml")]:
        if config.parent.name in ("experiments", "studies", "sweeps"):
            text = config.read_text()
            for written, small in SMALL.items():
                text = re.sub(written, small, text)
            config.write_text(text)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "bin").mkdir()
    for name in RECORDED:
        (folder / "bin" / name).write_text(RECORDER)
        (folder / "bin" / name).chmod(0o755)
    # Published rationales of the questions that stand for OpenBookQA's.
    records = [
        {"id": question.id, "rationales": {"gpt-4o/L1": {"text": f"It is {question.gold}.", "answer": question.gold}}}
        for question in load_questions("microworld:train:16:0")
    ]
    (folder / "data" / "obqa").mkdir(parents=True)
    with gzip.open(folder / "data" / "obqa" / "rationales.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


class Shell:
    """A shell in a checkout, which keeps its variables from block to block as a user's does."""

    def __init__(self, folder: Path):
        self.folder = folder

    def expand(self, text: str) -> list[list[str]]:
        """Runs a block but for its `RECORDED` commands, and returns those with their arguments expanded."""
        recorded, state = self.folder / "bin" / "recorded", self.folder / "bin" / "state"
        recorded.write_bytes(b"")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        environment |= {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "KINDRED_TEST_COMMANDS": str(recorded)}
        before, after = (
            f"set -eu; touch {state}; source {state}",
            f"set +eu; declare -p CONFIG STUDY >{state} 2>/dev/null",
        )
        script = f"{before}\n{text}\n{after}; exit 0"
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, f"{text}\n{done.stderr}"
        words, commands = recorded.read_bytes().decode().split("\0")[:-1], []
        while words:
            count = int(words[0])
            commands.append(words[1 : 1 + count])
            words = words[1 + count :]
        return commands


def run(command: list[str]) -> None:
    """Runs a command of a block as its script would."""
    name, *args = command
    assert name == "python" and args[0] == "-m", f"only Kindred's scripts are run here: {command}"
    importlib.import_module(args[1]).main(args[2:])


def check(command: list[str]) -> None:
    """Checks a command that cannot run here as far as its script checks it before anything is loaded."""
    name, *args = command
    if name == "make":
        subprocess.run(["make", "-n", "VENV=none", *args], cwd=ROOT, check=True, capture_output=True)
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert all(extra in extras for names in re.findall(r"\[(.+?)\]", args[-1]) for extra in names.split(","))
    elif name == "sbatch":
        file, *rest = [arg for arg in args if not arg.startswith(("--nodes=", "--ntasks-per-node="))]
        assert (ROOT / file).is_file()
        check(["python", "-m", f"scripts.{Path(file).stem}", "--config", *rest])
    elif name == "python":
        script, rest = args[1].removeprefix("scripts."), args[2:]
        if script == "study" and rest[0] == "diagnose" and "study" not in yaml.safe_load(Path(rest[2]).read_text()):
            parse_diagnosis(rest[1:])
        elif script == "study":
            assert rest[0] in study.COMMANDS
            # What a diagnosis asks beside the study is not the study's.
            study.parse(rest[1:3] if rest[0] == "diagnose" else [arg for arg in rest[1:] if arg != "--dry-run"])
        elif script == "on_policy":
            assert rest[0] in on_policy.COMMANDS
            on_policy.parse(rest[1:])
        elif script in STAGES:
            STAGES[script].parse(rest)
        else:
            importlib.import_module(args[1]).parse(rest)
    else:
        assert name in ("hf", "npm")


def follow(page: Path, folder: Path) -> None:
    """Runs or checks all of a page's blocks in its folder, which is the working directory."""
    make_checkout(folder)
    shell = Shell(folder)
    for block in read_blocks(page):
        for command in shell.expand(block.text):
            with contextlib.redirect_stdout(open(os.devnull, "w")):
                try:
                    (check if block.reason else run)(command)
                except Exception as error:
                    raise AssertionError(f"{page.name}:{block.line}: {' '.join(command)}: {error!r}") from error
