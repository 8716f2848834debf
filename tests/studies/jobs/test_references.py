"""What a study's further outcomes add to its jobs."""

import dataclasses

import pytest

from studies.design.grid import TeacherSpec
from studies.design.tasks import LanguageSpec, TaskSpec
from studies.jobs.plan import StudyPlan
from tests.studies.design.grid_study import TWO_TASKS, find_jobs, make_study


def test_agreement_has_teachers_answer_the_test_questions() -> None:
    tasks = {"obqa": TWO_TASKS["obqa"]}
    plain, jobs = (find_jobs(tasks=tasks, seeds=1, outcomes=outcomes) for outcomes in ([], ["agreement"]))
    names = [f"{stage}-{teacher}-obqa-test{n}" for teacher in "LQ" for n in range(2)
             for stage in ("annotate", "cache_logits")]  # fmt: skip
    assert set(jobs) - set(plain) == set(names)
    written, scored = jobs["annotate-Q-obqa-test1"], jobs["cache_logits-Q-obqa-test1"]
    path = "runs/s/references/Q/obqa-test1.parquet"
    assert written.done == path and {"--model.teacher=m/Q", "--data.questions=arc_test.jsonl"} <= set(written.args)
    assert scored.needs == [written.name]
    # Right or wrong, students are compared on the same questions.
    assert {
        f'--data.rationales=["{path}"]', '--data.filters.teachers=["m/Q"]', "--data.filters.correct_only=false",
        "--data.filters.keep_truncated=true", "--data.questions=arc_test.jsonl",
    } <= set(scored.args)  # fmt: skip
    # Each arm is compared with its own teacher; a published one, and none, have nothing to compare with.
    folders = [f"runs/s/references/Q/obqa-test{n}" for n in range(2)]
    evaluate = jobs["evaluate-l-rationale-Q-seed0"]
    assert set(evaluate.args) - set(plain[evaluate.name].args) == {
        f'--data.references=["{folders[0]}.parquet", "{folders[1]}.parquet"]', "--data.teachers=null",
        f'--data.logits=["{folders[0]}-logits", "{folders[1]}-logits"]', "--data.keep_truncated=true",
        "--data.alignment.kind=strict",
    }  # fmt: skip
    assert {"cache_logits-Q-obqa-test0", "cache_logits-Q-obqa-test1"} <= set(evaluate.needs)
    for name in ("l-rationale-G-seed0", "l-label-seed0", "l-untuned-seed0"):
        assert jobs[f"evaluate-{name}"] == plain[f"evaluate-{name}"]


def test_an_arm_is_compared_on_the_tests_of_its_own_task() -> None:
    jobs = find_jobs(
        tasks=TWO_TASKS, seeds=1, outcomes=["agreement"], teachers={"L": TeacherSpec("llama", model="m/L")}
    )
    needs = jobs["evaluate-l-arc-rationale-L-seed0"].needs
    assert needs == ["fit-l-arc-rationale-L-seed0", "cache_logits-L-arc-test0"]


def test_references_are_scored_after_the_prompt_that_students_answer() -> None:
    plan = StudyPlan(make_study(outcomes=["agreement"]), ["--config=x.yaml"])
    plan.reference_prompt = "cot"
    jobs = {job.name: job for job in plan.jobs()}
    written, scored = jobs["annotate-L-obqa-test0"], jobs["cache_logits-L-obqa-test0"]
    assert "--data.prompt=cot" in scored.args and not any(arg.startswith("--data.prompt") for arg in written.args)


def test_each_arm_is_asked_how_likely_the_references_of_its_tests_are() -> None:
    task = TaskSpec("m.jsonl:{language}", ["t.jsonl:{language}"], references=["r-{language}.parquet"])
    jobs = find_jobs(
        tasks={"m": task}, languages=LanguageSpec(["de", "th"], ["pivot"]), seeds=1, supervisions=["label"],
        outcomes=["reference_likelihood"], teachers={"L": TeacherSpec("llama", model="m/L")},
    )  # fmt: skip
    assert '--data.references=["r-th.parquet"]' in jobs["evaluate-l-m-th-pivot-label-seed0"].args
    assert '--data.references=["r-de.parquet", "r-th.parquet"]' in jobs["evaluate-l-untuned-seed0"].args


@pytest.mark.parametrize(
    ("references", "outcomes", "message"),
    [
        ([], ["reference_likelihood"], r"^study\.tasks\.obqa\.references: there are none for .*reference_likelihood$"),
        (
            ["r.parquet"],
            ["likelihood"],
            r"^study\.tasks\.obqa\.references would be ignored: .* no reference_likelihood$",
        ),
        (
            ["r.parquet"],
            ["agreement", "reference_likelihood"],
            r"^study\.outcomes: agreement .* leave one of them out$",
        ),
        (["r-{language}.parquet"], ["reference_likelihood"], r"^study\.tasks\.obqa: .* needs study\.languages"),
    ],
    ids=["none", "ignored", "both", "place"],
)
def test_references_and_their_outcome_go_together(references: list[str], outcomes: list[str], message: str) -> None:
    task = dataclasses.replace(TWO_TASKS["obqa"], references=references)
    with pytest.raises(ValueError, match=message):
        make_study(tasks={"obqa": task}, outcomes=outcomes)
