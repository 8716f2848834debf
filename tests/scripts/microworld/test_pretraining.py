"""Tests of the pre-training of the microworld's families: it goes on after a kill, and keeps only what is good."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from scripts.microworld.__main__ import run_command

ROOT = Path(__file__).parents[3]
FAMILIES = ROOT / "configs" / "microworld"
MODELS = ROOT / "configs" / "models" / "microworld"
STUDENT = {
    "size": {"layers": 1, "width": 16, "heads": 2},
    "batch": 2,
    "stages": [{"steps": 60, "chains": 2}, {"steps": 9}],
}
TEACHER = {"size": {"layers": 2, "width": 16, "heads": 2}, "batch": 2, "stages": [{"steps": 7}]}


def run(folder: Path, **changes: object) -> None:
    """Pre-trains a tiny family in this process."""
    run_command([*command(folder), *(f"--{name}={json.dumps(value)}" for name, value in changes.items())])


def command(folder: Path) -> list[str]:
    """The command that pre-trains a tiny family into a folder."""
    settings = {"tokenizer": "bpe", "architecture": "neox", "phrasing": "a", "student": STUDENT, "teacher": TEACHER}
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    places = [f"--out={folder / 'models'}", f"--state={folder / 'state'}"]
    return ["pretrain", f"--config={folder / 'tiny.yaml'}", "--held_out=2", "--every=2", *places]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """A tiny model's weights."""
    return load_file(folder / "model.safetensors")


def test_a_killed_pretraining_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-m", "scripts.microworld", *command(killed)], cwd=ROOT)
    state = killed / "state" / "bpe-neox-a-student.safetensors"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9 and not (killed / "models").exists()
    run(killed)
    run(whole)
    for role in ("student", "teacher"):
        folder = Path("models") / f"bpe-neox-a-{role}"
        assert {file.name for file in (killed / folder).iterdir()} == {file.name for file in (whole / folder).iterdir()}
        for file in (killed / folder).iterdir():
            assert file.read_bytes() == (whole / folder / file.name).read_bytes(), file.name
    assert not list((killed / "state").iterdir())

    made = weights(whole / "models" / "bpe-neox-a-teacher")
    run(whole)  # keeps what is there
    assert all(
        torch.equal(made[name], value) for name, value in weights(whole / "models" / "bpe-neox-a-teacher").items()
    )
    with pytest.raises(ValueError, match="bpe-neox-a-teacher: was made by another recipe"):
        run(whole, teacher=TEACHER | {"lr": 0.1})
