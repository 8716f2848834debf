"""A study's students as files: which jobs there are, and what is refused before any runs."""

import json
import shutil
from pathlib import Path

import pytest

from lightning_modules.model import llama_cpp
from scripts import evaluate, export
from studies.design.grid import StudentSpec, TaskSpec
from studies.design.quantization import check_precision, check_quantization
from studies.jobs.estimate import Work, estimate_file
from tests.studies.design.grid_study import find_jobs, make_study

MODELS = Path(__file__).parents[3] / "configs" / "models" / "microworld"
KINDS = ["none", "Q8_0", "Q4_K_M"]


def test_each_trained_arm_is_exported_and_each_file_answers():
    plain, jobs = find_jobs(seeds=1), find_jobs(seeds=1, quantization=KINDS)
    assert [job for job in jobs.values() if job.name in plain][:-1] == [*plain.values()][:-1]
    added = jobs.keys() - plain.keys()
    trained = [name.removeprefix("fit-") for name in plain if name.startswith("fit-")]
    assert added == {
        f"{before}{arm}{after}"
        for arm in trained
        for before, after in (("export-", ""), ("evaluate-", "-Q8_0"), ("evaluate-", "-Q4_K_M"))
    }
    made, own = jobs["export-l-label-seed0"], jobs["evaluate-l-label-seed0-Q4_K_M"]
    assert made.needs == ["fit-l-label-seed0", "evaluate-l-label-seed0"] and own.needs == [made.name]
    given = export.parse(made.args)
    assert (given.student, given.types) == ("runs/s/l-label-seed0/student", "Q8_0,Q4_K_M")
    assert made.done == f"{given.output}/card.json" and own.done == "runs/s/predictions/Q4_K_M/l-label-seed0.parquet"
    asked = evaluate.parse([arg for arg in own.args if not arg.startswith("--config=")])
    assert asked.model.student == f"{given.output}/student-Q4_K_M.gguf" and asked.model.runtime == "llama_cpp"
    assert jobs["analyze"].needs[-1] == "evaluate-q-rationale+logits-Q-seed0-Q4_K_M"


def test_a_files_bytes_are_told_before_it_is_there():
    student = StudentSpec("models/SmolLM2-135M-Instruct-Q8_0.gguf", "smollm2")
    files = {kind: estimate_file(Work(7, 9, hours=1.0), student, kind) for kind in ("f16", "Q4_K_M")}
    assert files["f16"].kept > 3 * files["Q4_K_M"].kept > 2e8 and (files["f16"].examples, files["f16"].hours) == (7, 0)


def test_students_in_half_precision_are_refused():
    for dtype in ("float32", "bfloat16"):
        check_precision(make_study(quantization=KINDS), dtype)
    check_precision(make_study(), "float16")
    with pytest.raises(ValueError, match=r"study\.quantization: .* weights float16; files are written from float32 or"):
        check_precision(make_study(quantization=KINDS), "float16")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [(["Q8_0"], "name `none`"), (["none"], "name `none`"), (["none", "Q8_0", "Q8_0"], "name each once")],
)
def test_types_without_what_they_are_compared_with_are_refused(kinds, message):
    with pytest.raises(ValueError, match=f"study.quantization: .*{message}"):
        make_study(quantization=kinds)


def test_what_could_not_be_exported_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")
    folder = shutil.copytree(MODELS / "a-student", tmp_path / "other")

    def study(**changes):
        fields = {"tasks": {"m": TaskSpec("microworld:train:4:0", ["microworld:test:4:0"])}, "teachers": {}}
        fields["students"] = {"a": StudentSpec(str(MODELS / "a-student"), "a"), "b": StudentSpec(str(folder), "b")}
        fields["teachers"] = make_study().teachers
        return make_study(**{**fields, "supervisions": ["label"], "quantization": KINDS, **changes})

    check_quantization(study())
    with pytest.raises(ValueError, match="a question of the split 'test'"):
        check_quantization(study(tasks={"m": TaskSpec("microworld:test:4:0", ["microworld:test:4:0"])}))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": {"type": "BertPreTokenizer"}}))
    with pytest.raises(ValueError, match=r"study\.students\.b: .*llama\.cpp is not known to have a tokenizer like it"):
        check_quantization(study())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"study\.students\.b: .*its architecture \(llama\) is not written"):
        check_quantization(study())
    monkeypatch.setattr(llama_cpp, "PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ValueError, match=r"study\.quantization needs .*; install it with: pip install"):
        check_quantization(study())
    check_quantization(study(quantization=[]))
