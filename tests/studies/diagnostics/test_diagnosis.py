"""The whole diagnosis of tiny teachers: its files, its order, its resumption, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.examples.tokenization import load_tokenizer
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import write_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.text.token_bytes import END, SPECIAL, VocabularyBytes
from studies.design.grid import StudentSpec
from studies.diagnostics import reader as reader_module
from studies.diagnostics.alignment import find_shared
from studies.diagnostics.diagnosis import Diagnosis, diagnose, parse
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.sources import TaskSource, TeacherSource, load_task
from tests.tiny import capture, make_questions, make_rationale, save_model, write_questions, write_store


@pytest.fixture(scope="module")
def diagnosis(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    """Teachers `t` and `u` without the gold answers, `v` with; `t` is a model of the student's tokenizer."""
    folder = tmp_path_factory.mktemp("diagnosis")
    student = save_model(folder / "student")
    stranger = save_model(folder / "stranger", corpus=("stranger", "things"))
    teacher = save_model(folder / "t", seed=3)
    questions = make_questions(9)
    source = write_questions(folder / "colours_train.jsonl", questions)
    own = write_store(folder / "t.parquet", [make_rationale(item, "t") for item in questions], teacher)
    logits = capture(folder / "logits", teacher, source, [own])
    others = [make_rationale(item, name, right=item.gold != "A") for item in questions[:7] for name in ("u", "v")]
    write_rationales(folder / "uv.parquet", others, {"gold_conditioned": {"u": False, "v": True}})
    teachers = {
        "t": TeacherSource(logits=logits, tokenizer=teacher, model=teacher),
        "u": TeacherSource(),
        "v": TeacherSource(),
    }
    task = TaskSource(source, [own, str(folder / "uv.parquet")], teachers)
    return Diagnosis(
        "d",
        {"s": StudentSpec(student, "tiny"), "x": StudentSpec(stranger, "strange")},
        {"colours": task},
        prompt="plain",
        own_prompt="plain",
        own_tokens=8,
        num_questions=6,
        gradient_questions=4,
        local_steps=1,
        projection=16,
        num_resamples=50,
        root=str(folder / "runs"),
    )


def read_rows(diagnosis: Diagnosis) -> dict[tuple[str, str], dict[str, Any]]:
    content = json.loads((diagnosis.folder / "diagnostics.json").read_text())
    return {(row["student"], row["teacher"]): row for row in content["rows"]}


def test_a_diagnosis_has_a_row_for_each_teacher_and_student(
    diagnosis: Diagnosis, recwarn: pytest.WarningsRecorder
) -> None:
    table = diagnose(diagnosis)
    assert any("1 of 3 teachers were shown the gold answers" in str(warning.message) for warning in recwarn)
    content = json.loads((diagnosis.folder / "diagnostics.json").read_text())
    rows = read_rows(diagnosis)
    assert list(rows) == [(student, teacher) for student in "sx" for teacher in "tuv"]
    assert len(content["metrics"]) >= 38
    for row in rows.values():
        assert row["num_questions"] == row["num_rationales"] == 6
        for name in content["metrics"]:
            if name in row:
                low, high = row["intervals"][name]
                assert np.isfinite([low, row[name], high]).all() and low <= row[name] <= high, name
    assert [rows["s", teacher]["gold_conditioned"] for teacher in "tuv"] == [False, False, True]
    # The cache and the tokenizer are t's; the stranger's tokenizer is another.
    assert {name for name in ("kl", "covered_mass", "agreement") if name in rows["s", "t"]} == {
        "kl", "covered_mass", "agreement",
    }  # fmt: skip
    assert not any("kl" in rows[key] for key in rows if key != ("s", "t"))
    # What of it the student's tokens can take is known of either student.
    shares = [f"aligned_{name}" for name in ("strict", "exact", "conditional", "spanning", "none")]
    assert [rows["s", "t"][name] for name in shares] == [1, 0, 0, 0, 0] and rows["s", "t"]["shared_mass"] == 1
    assert sum(rows["x", "t"][name] for name in shares) == pytest.approx(1) and 0.1 < rows["x", "t"][shares[0]] < 1
    assert 0 < rows["x", "t"]["shared_mass"] < 1
    assert not any(name in rows[key] for key in rows if key[1] != "t" for name in (*shares, "shared_mass"))
    # So is where its distributions would move them, and what it thinks of their own answers.
    for name in ("gradient_cosine", "divergent_tokens", "top_overlap_own"):
        assert [key for key in rows if name in rows[key]] == [("s", "t"), ("x", "t")]
        assert all(-1 <= rows[key][name] <= 1 for key in (("s", "t"), ("x", "t")))
    assert rows["s", "t"]["vocabulary_overlap"] == 1 > rows["x", "t"]["vocabulary_overlap"]
    assert "vocabulary_overlap" not in rows["s", "u"]
    # u and v wrote the same.
    assert rows["s", "u"]["nll"] == pytest.approx(rows["s", "v"]["nll"])
    assert rows["s", "t"]["correct"] == 1 > rows["s", "u"]["correct"]
    headings = [line.split("; ")[1] for line in table.splitlines() if line.startswith("colours")]
    assert headings == ["shown the gold answer", "not shown the gold answer"] * 2
    with Image.open(diagnosis.folder / "diagnostics.png") as image:
        assert image.width > 1000


def test_kl_is_that_of_both_models(diagnosis: Diagnosis) -> None:
    """Against both models' whole distributions: a bucket's KL is below, and near, the whole one."""
    diagnose(diagnosis)
    data = load_task("colours", diagnosis.tasks["colours"], 6, 0)
    folder = Path(diagnosis.root).parent
    kls = []
    models = [
        StudentReader(StudentSpec(str(folder / name), "f"), get_prompt("plain"), folder, "k", "float32", 64)
        for name in ("t", "student")
    ]
    for question, rationale in zip(data.questions, data.rationales["t"], strict=True):
        [text] = models[1].prepare([(question, rationale)])
        ids = torch.tensor([[*models[1].prompts[question.id], *text.token_ids]])
        rows = slice(len(models[1].prompts[question.id]) - 1, -1)
        log_p, log_q = (item.model(ids).logits[0, rows].double().log_softmax(-1).detach() for item in models)
        kls.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    found = read_rows(diagnosis)["s", "t"]["kl"]
    assert 0.3 * np.mean(kls) < found <= np.mean(kls) + 1e-3


def test_shared_mass_and_ends_are_those_of_the_teachers_rows(diagnosis: Diagnosis) -> None:
    diagnose(diagnosis)
    cache = LogitCache(Path(str(diagnosis.tasks["colours"].teachers["t"].logits)))
    reader = StudentReader(diagnosis.students["x"], get_prompt("plain"), diagnosis.folder, "k", "float32", 64)
    teacher = load_tokenizer(str(diagnosis.tasks["colours"].teachers["t"].tokenizer))
    vocabulary = set(reader.tokenizer.get_vocab())
    data = load_task("colours", diagnosis.tasks["colours"], 6, 0)
    shared = cached = 0.0
    agree = []
    texts = reader.prepare(list(zip(data.questions, data.rationales["t"], strict=True)))
    reader.open_caches({}, texts)
    for text, reading in zip(texts, reader.read(texts, 1), strict=True):
        rows = cache.read_foreign([text.rationale.id])
        for support, log_probs in zip(rows["support"].tolist(), rows["log_probs"].tolist(), strict=True):
            for token, log_prob in zip(support, log_probs, strict=True):
                if token >= 0:
                    cached += np.exp(log_prob)
                    # Both are byte-level, so that equal bytes have equal names; "<pad>" is special.
                    name = teacher.convert_ids_to_tokens(token)
                    shared += np.exp(log_prob) * (name in vocabulary and name != "<pad>")
        best = rows["support"][-1][rows["log_probs"][-1].argmax()]
        agree.append((best == teacher.eos_token_id) == (reading.rank[-1] == 1))
    row = read_rows(diagnosis)["x", "t"]
    assert row["shared_mass"] == pytest.approx(shared / cached, rel=1e-6)
    assert row["end_agreement"] == pytest.approx(np.mean(agree))


def test_an_end_of_turn_is_shared_whatever_it_is_called() -> None:
    student = VocabularyBytes.from_tokens([b"", b"a", b"bc", b""], [SPECIAL, 0, 0, SPECIAL | END])
    teacher = VocabularyBytes.from_tokens([b"", b"bc", b"b", b"", b"a"], [SPECIAL | END, 0, 0, SPECIAL, 0])
    assert find_shared(teacher, student).tolist() == [True, True, False, False, True]
    endless = VocabularyBytes.from_tokens([b"a"], [0])
    assert find_shared(teacher, endless).tolist() == [False, False, False, False, True]


def test_a_second_run_computes_nothing_and_more_questions_only_what_is_missing(
    diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnosis = replace(diagnosis, students={"s": diagnosis.students["s"]}, num_questions=5)
    diagnose(diagnosis)
    before = read_rows(diagnosis)
    scored: list[int] = []
    original = reader_module.score_spans

    def count(*args: Any, **kwargs: Any) -> Any:
        scored.append(len(args[2]))
        return original(*args, **kwargs)

    monkeypatch.setattr(reader_module, "score_spans", count)
    diagnose(diagnosis)
    assert read_rows(diagnosis) == before and not scored
    diagnose(replace(diagnosis, num_questions=7))
    # Two calls a question, with the prompt and without.
    assert len(scored) == 2


def test_a_killed_diagnosis_goes_on(diagnosis: Diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students = {"s": diagnosis.students["s"]}
    whole = replace(diagnosis, students=students, root=str(tmp_path / "whole"), gradient_questions=2)
    diagnose(whole)
    broken = replace(whole, root=str(tmp_path / "broken"))
    original, calls = reader_module.score_spans, 0

    def kill(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(reader_module, "score_spans", kill)
    with pytest.raises(KeyboardInterrupt):
        diagnose(broken)
    parts = list((broken.folder / "diagnostics").glob(".*.part-0.jsonl"))
    assert len(parts) == 1 and len(parts[0].read_text().splitlines()) > 3
    diagnose(broken)
    assert not list((broken.folder / "diagnostics").glob(".*"))
    assert read_rows(broken) == read_rows(whole)


def test_teachers_are_compared_on_the_questions_that_all_answered(diagnosis: Diagnosis) -> None:
    spec = diagnosis.tasks["colours"]
    data = load_task("colours", spec, 100, 0)
    assert {question.id for question in data.questions} == {f"q{number}" for number in range(7)}
    fewer = load_task("colours", spec, 4, 0)
    assert fewer.questions == data.questions[:4] != load_task("colours", spec, 4, 1).questions
    alone = load_task("colours", replace(spec, teachers={"x": TeacherSource(name="t", family="f")}), 100, 0)
    assert len(alone.questions) == 9 and alone.accuracies == {"x": 1.0}
    assert alone.teachers["x"].family == "f" and data.teachers["t"].family == "tiny"
    with pytest.raises(ValueError, match=r"colours: no rationale of 'w'; there are t, u, v"):
        load_task("colours", replace(spec, teachers={"w": TeacherSource()}), 4, 0)


def test_teachers_without_a_shared_question_are_refused(tmp_path: Path) -> None:
    questions = make_questions(3)
    rationales = [make_rationale(questions[0], "t"), *(make_rationale(item, "u") for item in questions[1:])]
    write_rationales(tmp_path / "r.parquet", rationales, {})
    spec = TaskSource(write_questions(tmp_path / "q.jsonl", questions), [str(tmp_path / "r.parquet")])
    with pytest.raises(ValueError, match=r"c: no question was answered by all teachers; 't' answered fewest"):
        load_task("c", spec, 4, 0)


def test_settings_are_checked_before_anything_loads(tmp_path: Path) -> None:
    config = tmp_path / "d.yaml"
    config.write_text(
        "name: d\nstudents: {s: {model: m, family: f}}\ntasks: {c: {questions: q.jsonl, rationales: [r.parquet]}}\n"
    )
    assert parse(["--config", str(config), "--num_questions=3"]).num_questions == 3
    with pytest.raises(Exception, match="number_questions"):
        parse(["--config", str(config), "--number_questions=3"])
    with pytest.raises(Exception, match="prompt 'cots' is unknown"):
        parse(["--config", str(config), "--prompt=cots"])
