"""Tests of the pre-training of the microworld's families: it goes on after a kill, and keeps only what is good."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from scripts.microworld.__main__ import run_command
from scripts.microworld.families import Parts, Size
from scripts.microworld.measuring import evaluate
from scripts.microworld.pretraining import Recipe, Stage, finish, pretrain, save
from tests.halting.process import wait_until

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


def test_a_killed_pretraining_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    state = killed / "state" / "bpe-neox-a-student.safetensors"
    # Before the second that it writes, at the latest.
    halting = {"PYTHONPATH": f"{ROOT / 'tests' / 'halting'}:{ROOT}", "HALT_AT": f"os.rename:{state.name}:2"}
    call = [sys.executable, "-m", "scripts.microworld", *command(killed)]
    process = subprocess.Popen(call, cwd=ROOT, env={**os.environ, **halting})
    wait_until(process, state.exists)
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

    run(whole)  # keeps what is there
    with pytest.raises(ValueError, match="bpe-neox-a-teacher: was made by another recipe"):
        run(whole, teacher=TEACHER | {"lr": 0.1})


def test_families_are_named_by_their_parts_and_have_one_of_two_recipes() -> None:
    families = {file.stem: yaml.safe_load(file.read_text()) for file in FAMILIES.glob("*.yaml")}
    recipes = {name: (family.pop("student"), family.pop("teacher")) for name, family in families.items()}
    assert {Parts(**family).name: family for family in families.values()} == families
    kinds = ("", "long-")
    assert set(recipes.values()) == {(f"recipes/{kind}student.yaml", f"recipes/{kind}teacher.yaml") for kind in kinds}
    assert len({(f["tokenizer"], f["architecture"], f["phrasing"]) for f in families.values()}) == 8


def test_a_seed_changes_the_first_weights_alone(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "b-student")
    recipe = Recipe(Size(layers=1, width=16, heads=2), [Stage(0)], at_least=0.9)

    def first(*parts: Any, name: str | None = None) -> PreTrainedModel:
        return pretrain(tokenizer, Parts("bpe", *parts), "student", recipe, tmp_path / (name or str(parts)))

    model, again, other = first("neox", "a"), first("neox", "b"), first("neox", "a", 1)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(other.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert first("llama", "a").config.model_type == "llama"

    with pytest.raises(ValueError, match=r"state: is the state of another recipe; remove it"):
        first("neox", "a", name="state"), first("neox", "a", 1, name="state")
    with pytest.raises(ValueError, match=r"made: is not written, .* not 0\.9 to 1\.0"):
        finish(model, tokenizer, tmp_path / "made", {}, recipe, 2)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_the_recipe_makes_a_teacher_of_a_shipped_student(tmp_path: Path) -> None:
    """The student's pre-training takes minutes; the teacher's, shortened, goes on from what ships of it."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "b-student")
    start = AutoModelForCausalLM.from_pretrained(MODELS / "b-student")
    recipe = Recipe(Size(layers=4, width=64, heads=4), [Stage(200, documents=0.3)], lr=2e-3, warmup=50, batch=16)
    teacher = pretrain(tokenizer, Parts("bpe", "neox", "b"), "teacher", recipe, tmp_path / "state", start)
    save(teacher, tokenizer, tmp_path / "teacher")
    assert evaluate(MODELS / "b-student", 100)[0] <= 0.4
    assert evaluate(tmp_path / "teacher", 100)[0] >= 0.9
