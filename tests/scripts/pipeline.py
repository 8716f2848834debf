"""The stages' command lines on the embedded default, and how tests run them: in this process, or as a user does."""

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import yaml

from scripts import study
from scripts.common.stages import MAINS
from tests.halting.process import PATIENCE

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs" / "models" / "microworld"
COMMON = ["--data.prompt=plain", "--trainer.enable_progress_bar=false"]
TRAIN = [*COMMON, "--data.questions=microworld:train:8:0"]
COMMANDS = {
    "annotate": [
        *TRAIN,
        f"--model.teacher={MODELS}/a-teacher",
        "--model.family=a",
        "--model.max_new_tokens=96",
        "--data.encoding.max_length=320",
        "--output=teacher/rationales.parquet",
    ],
    "cache_logits": [
        *TRAIN,
        f"--model.teacher={MODELS}/a-teacher",
        "--model.top_k=8",
        "--data.encoding.max_length=512",
        '--data.rationales=["teacher/rationales.parquet"]',
        "--output=teacher/logits",
    ],
    "fit": [
        *TRAIN,
        f"--model.student={MODELS}/a-student",
        "--model.loss.kl_weight=0.5",
        "--data.encoding.max_length=512",
        "--data.batches.tokens_per_step=600",
        "--data.validation.fraction=0.25",
        '--data.rationales=["teacher/rationales.parquet"]',
        "--data.supervision=rationale+logits",
        '--data.logits=["teacher/logits"]',
        "--trainer.max_epochs=2",
        "--run.group=g",
        "--run.id=r",
        "--run.keep_checkpoints=true",
    ],
    "evaluate": [
        *COMMON,
        "--data.questions=microworld:test:6:0",
        "--model.student=runs/g/r/student",
        "--model.max_new_tokens=96",
        "--model.arm=rationale+logits-a",
        "--data.encoding.max_length=320",
        "--output=predictions.parquet",
    ],
}


def run_stage(stage: str, *more: str) -> str:
    said = StringIO()
    with redirect_stdout(said):
        MAINS[stage]([*COMMANDS[stage], *more])
    return said.getvalue()


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spawn(
    stage: str, args: list[str], folder: Path, halt_at: str | None = None, **environment: str
) -> subprocess.Popen:
    """Starts a stage's script as a user does.

    Args:
        stage: The script.
        args: Its command line.
        folder: Its working directory.
        halt_at: Where it stops in its tracks, see `tests.halting`, lest it ends before the test has looked.
        environment: What is added to this process's.
    """
    # W&B's helper process, which a test in this process may have started, is not the script's.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **environment}
    if halt_at is not None:
        own |= {"HALT_AT": halt_at, "PYTHONPATH": f"{ROOT / 'tests' / 'halting'}:{own['PYTHONPATH']}"}
    return subprocess.Popen(
        [sys.executable, "-m", f"scripts.{stage}", *args],
        cwd=folder,
        env={**inherited, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # With a group of its own, which a test can signal as a whole.
        start_new_session=True,
        # A shell starts what runs in its background with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: subprocess.Popen, number: signal.Signals = signal.SIGKILL) -> tuple[str, str]:
    """Sends a signal to a process, which may have halted; returns what it said, once it has ended."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    said, errors = process.communicate(timeout=PATIENCE)
    return said, errors


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def run_study(folder: Path, content: dict, *args: str) -> None:
    """Runs the study that an experiment's content declares, as `tiny.yaml` in a folder of its own."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        study.main(["run", "--config=tiny.yaml", *args])
