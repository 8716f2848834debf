"""Tests of the parts of a study's families: what the shipped grid tells apart, and the models that it needs."""

from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.model_cards import Parts
from scripts import study
from studies.design.grid import StudentSpec, Study, TaskSpec, TeacherSpec, expand
from studies.design.parts import check_alignment, check_study, decompose_study, list_unidentified, require_models

STUDY = Path(__file__).parents[3] / "configs" / "studies" / "microworld_parts.yaml"


def test_the_microworlds_study_tells_three_parts_apart() -> None:
    own = study.parse([f"--config={STUDY}"]).study
    assert [effect.parts for effect in decompose_study(own).effects] == [("tokenizer",), ("architecture",), ("style",)]
    assert not list_unidentified(own)
    check_study(own)


def test_families_with_one_tokenizer_need_no_alignment() -> None:
    """Which a training would refuse, after the teachers had written and read everything."""
    plan = study.parse([f"--config={STUDY}"])
    kinds = {
        (arm.student, arm.teacher): next(arg for arg in plan.fit(arm).args if "alignment.kind" in arg)
        for arm in expand(plan.study)
        if arm.supervision == "rationale+logits"
    }
    assert len(kinds) == 16
    for (student, teacher), setting in kinds.items():
        shares = student.partition("-")[0] == teacher.partition("-")[0]
        assert setting == f"--data.alignment.kind={'refuse' if shares else 'strict'}"


def test_one_tokenizer_that_nothing_names_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STUDY.parents[2])
    own = study.parse([f"--config={STUDY}"]).study
    blank = {
        role: {name: replace(spec, parts=Parts()) for name, spec in getattr(own, role).items()}
        for role in ("students", "teachers")
    }
    with pytest.raises(ValueError, match=r"^study\.alignment would be ignored: student unigram-llama-a and teacher un"):
        check_alignment(replace(own, **blank))


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
