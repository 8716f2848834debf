"""Tests of the parts of a study's families: what the shipped grid tells apart, and the models that it needs."""

from pathlib import Path

import pytest

from scripts import study
from studies.design.grid import StudentSpec, Study, TaskSpec, TeacherSpec
from studies.design.parts import check_study, decompose_study, list_unidentified, require_models

STUDY = Path(__file__).parents[3] / "configs" / "studies" / "microworld_parts.yaml"


def test_the_microworlds_study_tells_three_parts_apart() -> None:
    own = study.parse([f"--config={STUDY}"]).study
    assert [effect.parts for effect in decompose_study(own).effects] == [("tokenizer",), ("architecture",), ("style",)]
    assert not list_unidentified(own)
    check_study(own)


def test_a_model_that_is_not_there_is_named_before_a_study_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STUDY.parents[2])
    teacher = {"x": TeacherSpec("x", rationales="r.parquet", name="x")}
    task = {"x": TaskSpec("microworld:train:4:0", ["microworld:test:4:0"])}

    def needing(model: str) -> Study:
        return Study("s", task, {"x": StudentSpec(model, "x")}, teacher, ["label"])

    require_models(needing("configs/models/microworld/a-student"))
    require_models(needing("owner/name"))
    require_models(needing("model:smollm2-135m-instruct"))
    with pytest.raises(ValueError, match=r"^study\.students\.x\.model: no such folder, .*: nowhere/at/all$"):
        require_models(needing("nowhere/at/all"))
    command = r"python -m scripts\.microworld pretrain --config configs/microworld/bpe-llama-a\.yaml"
    with pytest.raises(ValueError, match=f"no such folder, .*; `{command}` makes it$"):
        require_models(needing("nowhere/at/bpe-llama-a-student"))
