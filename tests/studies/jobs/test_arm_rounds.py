"""Rounds as an arm of a study."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from studies.design.grid import StudentSpec
from studies.design.rounds import OnPolicy
from studies.design.tasks import LanguageSpec
from studies.jobs.arm_rounds import check_writers
from studies.jobs.job import Job
from studies.jobs.plan import StudyPlan
from tests.studies.design.grid_study import make_study
from tests.tiny import build_tokenizer, save_model

SECTIONS: dict[str, Any] = {"fit": {"data": {"prompt": "plain"}, "trainer": {"max_steps": 4}}, "cache_logits": {}}


def make_plan(study: dict[str, Any] = {}, **settings: Any) -> StudyPlan:  # noqa: B006 (not changed)
    rounds = OnPolicy(**{"name": "n", "rounds": 2, "questions": 8, "max_new_tokens": 64, **settings})
    study = {"supervisions": ["rationale", "on-policy"], "seeds": 1, **study}
    return StudyPlan(make_study(**study), ["--config=x.yaml"], None, rounds, SECTIONS)


def find_jobs(plan: StudyPlan) -> dict[str, Job]:
    return {job.name: job for job in plan.jobs()}


def test_an_arms_rounds_follow_one_another_and_end_in_the_arms_own_run() -> None:
    jobs = find_jobs(make_plan())
    arm = "q-on-policy-Q-seed0"
    # Without an alignment only a teacher of the family reads what a student writes.
    assert {name for name in jobs if name.startswith("evaluate") and "on-policy" in name} == {
        "evaluate-l-on-policy-L-seed0",
        f"evaluate-{arm}",
    }
    assert jobs[f"annotate-{arm}-round-1"].needs == ["annotate-Q-obqa"]
    assert jobs[f"annotate-{arm}-round-2"].needs == [f"fit-{arm}-round-1"]
    last = jobs[f"fit-{arm}"]
    assert last.done == f"runs/s/{arm}/DONE" and f"--run.continues=runs/s/rounds/{arm}/round-1" in last.args
    assert jobs[f"evaluate-{arm}"].needs == [last.name]
    # A command line's last word counts.
    given = dict(arg.split("=", 1) for arg in last.args)
    assert (given["--run.root"], given["--run.group"], given["--run.id"]) == ("runs", "s", arm)
    assert (given["--data.supervision"], given["--model.loss.kl_weight"]) == ("rationale", "0.0")
    assert (given["--trainer.max_steps"], given["--model.schedule_steps"]) == ("4", "4")
    read = dict(arg.split("=", 1) for arg in jobs[f"cache_logits-{arm}-round-2"].args)
    assert (read["--model.teacher"], read["--data.filters.teachers"]) == ("m/Q", "null")
    assert read["--data.rationales"] == f'["runs/s/rounds/{arm}/samples/round-2.parquet"]'


def test_the_rounds_of_a_size_draw_from_its_questions_and_go_on_from_its_own_start() -> None:
    jobs = find_jobs(make_plan({"sizes": [8, 16], "seeds": 2}, start="rationale"))
    arm = "q-on-policy-Q-n16-seed1"
    given = dict(arg.split("=", 1) for arg in jobs[f"annotate-{arm}-round-2"].args)
    draw = {"number": 8, "part": 1, "seed": 1, "limit_seed": 1}
    assert given["--data.limit"] == "16" and json.loads(given["--data.draw"]) == draw
    fit = dict(arg.split("=", 1) for arg in jobs[f"fit-{arm}"].args)
    assert (fit["--data.limit"], fit["--data.limit_seed"]) == ("16", "1")
    assert fit["--model.student"] == "runs/s/q-rationale-Q-n16-seed1/student"


def test_a_teacher_of_another_family_reads_by_the_studys_alignment() -> None:
    jobs = find_jobs(make_plan({"alignment": "strict"}))
    assert "--data.alignment.kind=strict" in jobs["fit-l-on-policy-Q-seed0-round-1"].args
    assert "--data.alignment.kind=refuse" in jobs["fit-l-on-policy-L-seed0"].args
    # Published rationales have nobody who could read.
    assert not any("on-policy-G" in name for name in jobs)


def test_an_arm_goes_on_from_the_same_teachers_finished_text_fit() -> None:
    jobs = find_jobs(make_plan(start="rationale"))
    arm, start = "q-on-policy-Q-seed0", "q-rationale-Q-seed0"
    assert jobs[f"annotate-{arm}-round-1"].needs == ["annotate-Q-obqa", f"fit-{start}"]
    first = dict(arg.split("=", 1) for arg in jobs[f"annotate-{arm}-round-1"].args)
    assert first["--model.teacher"] == f"runs/s/{start}/student" and "--model.keep_layers" not in first
    for name in (f"fit-{arm}-round-1", f"fit-{arm}"):
        given = dict(arg.split("=", 1) for arg in jobs[name].args)
        # Layers were left out, and a commit was read, before the training that it goes on from.
        assert given["--model.student"] == f"runs/s/{start}/student"
        assert (given["--model.keep_layers"], given["--model.revision"]) == ("null", "null")
    assert jobs[f"fit-{arm}"].done == f"runs/s/{arm}/DONE"
    # Without the teacher's text it still waits for what it goes on from.
    alone = find_jobs(make_plan(start="rationale", mix=0.0))
    assert alone[f"annotate-{arm}-round-1"].needs == [f"fit-{start}"]
    labels = find_jobs(make_plan({"supervisions": ["label", "on-policy"]}, start="label"))
    assert "--model.student=runs/s/q-label-seed0/student" in labels[f"fit-{arm}"].args


@pytest.mark.parametrize("file", [None, "r.parquet"])
def test_an_arms_teacher_reads_with_its_own_rationale_in_view_or_a_files(file: str | None) -> None:
    arm = "q-on-policy-Q-seed0"
    jobs = find_jobs(make_plan(teacher_prompt="with_rationale", shown_rationales=file, mix=0.0))
    own = jobs["annotate-Q-obqa"]
    # Without a mix nothing else waits for what is shown.
    assert jobs[f"annotate-{arm}-round-1"].needs == ([own.name] if file is None else [])
    shown = file or own.done
    for number in (1, 2):
        read = dict(arg.split("=", 1) for arg in jobs[f"cache_logits-{arm}-round-{number}"].args)
        assert (read["--data.prompt"], read["--data.shown_rationales"]) == ("instruction_with_rationale", shown)
        assert (read["--model.teacher"], read["--data.rationales"]) == (
            "m/Q",
            f'["runs/s/rounds/{arm}/samples/round-{number}.parquet"]',
        )
    given = dict(arg.split("=", 1) for arg in jobs[f"fit-{arm}"].args)
    assert given["--data.own.teacher_prompt"] == "instruction_with_rationale"
    assert given["--data.own.shown_rationales"] == shown and given["--data.rationales"] == "null"
    other = dict(arg.split("=", 1) for arg in jobs["cache_logits-l-on-policy-L-seed0-round-1"].args)
    assert other["--data.shown_rationales"] == (file or jobs["annotate-L-obqa"].done)
    mixed = find_jobs(make_plan(teacher_prompt="with_rationale", shown_rationales=file))
    assert mixed[f"annotate-{arm}-round-1"].needs == [own.name]


def test_rounds_of_a_teachers_text_alone_are_an_arm_of_every_seed() -> None:
    jobs = find_jobs(make_plan({"seeds": 2}, max_new_tokens=256, mix=1.0))
    assert "fit-q-on-policy-Q-seed1" in jobs and not any("on-policy" in name for name in jobs if "annotate" in name)


@pytest.mark.parametrize(
    ("study", "settings", "message"),
    [
        (
            {},
            {"start": "runs/x"},
            r"^on_policy.start: 'runs/x' is no arm of the study .* begin from; there are: rationale$",
        ),
        ({"supervisions": ["on-policy"]}, {"start": "rationale"}, r"^on_policy.start: 'rationale' is no .* are: none$"),
        ({}, {"start": "on-policy"}, r"^on_policy.start: 'on-policy' is no arm of the study"),
        ({}, {"start": "untuned"}, r"^on_policy.start: 'untuned' is no arm of the study"),
        ({}, {"teacher": "self", "teacher_prompt": "with_gold"}, r"^on_policy.teacher is of one student"),
        ({}, {"seed": 1}, r"^on_policy.seed would be ignored: rounds of a study's arms have the arm's seed"),
        ({}, {"root": "r"}, r"^on_policy.root would be ignored: rounds of a study's arms"),
        ({}, {"shown_rationales": "r"}, r"^on_policy.shown_rationales would be ignored"),
        (
            {},
            {"teacher_prompt": "with_rationale", "mix": 1.0, "max_new_tokens": 256},
            r"^on_policy.teacher_prompt would be ignored with",
        ),
        ({}, {"rounds": 3}, r"^on_policy.rounds=3 does not divide fit.trainer.max_steps=4"),
        ({"sizes": [4, 8]}, {}, r"^on_policy.questions=8 in a round, but fit.data.limit=4 in all; lower it$"),
        ({"languages": LanguageSpec(["de"], ["same"])}, {}, r"^study.languages: supervision on-policy has no arms in"),
    ],
)
def test_what_does_not_go_with_arms_is_refused(study: dict, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(study, **settings).jobs()


def test_a_student_that_cannot_end_what_it_writes_is_refused(tmp_path: Path) -> None:
    student = save_model(tmp_path / "student", seed=1)
    students = {"q": StudentSpec(student, "qwen")}
    check_writers(make_study(supervisions=["on-policy"], students=students))
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(student)
    check_writers(make_study(students=students))
    message = rf"^study.students.q: supervision on-policy has it write, but {re.escape(student)}: .* with an end token$"
    with pytest.raises(ValueError, match=message):
        check_writers(make_study(supervisions=["on-policy"], students=students))
