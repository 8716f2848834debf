from itertools import product

import pytest

from studies.design.controls import ControlSpec
from studies.design.grid import (
    Arm,
    StudentSpec,
    TaskSpec,
    TeacherSpec,
    expand,
)
from studies.design.parts import explain_missing_gamma
from studies.jobs.plan import StudyPlan
from tests.studies.design.grid_study import TEACHER, TWO_TASKS, find_jobs, list_logits, make_study


def test_grid_is_crossed_and_logits_stay_in_the_family():
    arms = expand(make_study(seeds=1))
    assert [arm.id for arm in arms if arm.student == "l"] == [
        "l-untuned-seed0",
        "l-label-seed0",
        "l-rationale-L-seed0",
        "l-rationale-Q-seed0",
        "l-rationale-G-seed0",
        "l-rationale+logits-L-seed0",
    ]
    assert [arm.id for arm in arms if arm.supervision == "rationale+logits"] == [
        "l-rationale+logits-L-seed0",
        "q-rationale+logits-Q-seed0",
    ]


def test_an_alignment_fills_the_cells_of_other_families_models():
    # Published rationales still have no logits.
    assert list_logits(alignment="refuse") == ["l-rationale+logits-L", "q-rationale+logits-Q"]
    every = [f"{student}-rationale+logits-{teacher}" for student in "lq" for teacher in "LQ"]
    for alignment in ("strict", "bytes", "chunks"):
        assert list_logits(alignment=alignment) == every
    bare = {
        "bytes": ControlSpec("rationale+logits", alignment="bytes"),
        "mixed": ControlSpec("rationale+logits", alignment="strict", shuffled=True),
    }
    # One that swaps only the logits leaves what the student's own family teaches as it is.
    assert list_logits(controls=bare) == [
        "l-rationale+logits-L", "l-rationale+logits-Q-bytes", "l-rationale+logits-L-mixed",
        "l-rationale+logits-Q-mixed", "q-rationale+logits-Q", "q-rationale+logits-L-bytes",
        "q-rationale+logits-L-mixed", "q-rationale+logits-Q-mixed",
    ]  # fmt: skip


def test_every_trained_arm_has_every_seed_and_the_untuned_one():
    arms = expand(make_study(seeds=3))
    assert len({arm.id for arm in arms}) == len(arms) == 2 + 3 * 2 * 5
    assert [arm.seed for arm in arms if arm.condition == "untuned"] == [0, 0]
    assert sorted(arm.seed for arm in arms if arm.student == "q" and arm.condition == "rationale-L") == [0, 1, 2]


def test_published_rationales_have_no_logits_even_in_the_family():
    teachers = {"G": TeacherSpec("llama", rationales="g.jsonl", name="gpt-4o")}
    arms = expand(make_study(teachers=teachers, supervisions=["rationale+logits"]))
    assert {arm.supervision for arm in arms} == {"untuned"}


def test_arm_is_named_without_student_and_seed():
    assert Arm("l", "label", None, 1).condition == "label"
    assert Arm("l", "rationale+logits", "L", 1).condition == "rationale+logits-L"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"students": {}}, "students"),
        ({"teachers": {}}, "teachers"),
        ({"tasks": {}}, "tasks"),
        ({"tasks": {"obqa": TaskSpec("train.jsonl", [])}}, "obqa.test"),
        (
            {"tasks": {"same": TaskSpec("t", ["x"], against="pivot")}},
            "study.tasks.same.against: 'pivot' is no other task of the study: none",
        ),
        (
            {"tasks": {"same": TaskSpec("t", ["x"], against="same"), "pivot": TaskSpec("t", ["x"])}},
            "study.tasks.same.against: 'same' is no other task of the study: pivot",
        ),
        (
            {"tasks": {"same": TaskSpec("t", ["x"], against="pivot"), "pivot": TaskSpec("t", ["y"])}},
            "study.tasks.same.against: pivot has other questions; train and test must be alike",
        ),
        ({"students": {"a/b": StudentSpec("m", "x")}}, "'a/b'"),
        ({"supervisions": ["label", "rationale", "rationale"]}, "study.supervisions: .*: name each once"),
        (
            {"controls": {"b": ControlSpec(shuffled=True)}, "teachers": {"a": TEACHER, "a-b": TEACHER}},
            "2 arms would be called l-rationale-a-b-seed0",
        ),
        ({"controls": {"c": ControlSpec(alignment="bytes")}}, "study.controls.c: alignment is of logits"),
        (
            {"controls": {"c": ControlSpec("rationale+logits", in_family_logits=True, alignment="bytes")}},
            "study.controls.c: in_family_logits are of the student's own vocabulary",
        ),
        (
            {
                "controls": {"c": ControlSpec("rationale+logits", alignment="bytes")},
                "students": {"q": StudentSpec("m", "qwen")},
                "teachers": {"Q": TEACHER},
            },
            "study.controls.c: fits no student and teacher, since none of another family has a model",
        ),
        ({"tasks": TWO_TASKS}, r"G.rationales.*\['arc', 'obqa'\]"),
        ({"teachers": {"G": TeacherSpec("gpt", rationales={"arc": "g"}, name="n")}}, r"\['arc'\].*\['obqa'\]"),
    ],
)
def test_study_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_study(**change)


@pytest.mark.parametrize(
    "fields",
    [{}, {"model": "m", "rationales": "r", "name": "n"}, {"rationales": "r"}, {"model": "m", "name": "n"}],
)
def test_teacher_is_refused(fields):
    with pytest.raises(ValueError, match="teacher"):
        TeacherSpec("llama", **fields)


def test_a_model_whose_name_tells_its_family_needs_not_say_it():
    assert StudentSpec("model:qwen2.5-0.5b-instruct").family == "qwen2.5"
    assert TeacherSpec(model="Qwen/Qwen2.5-7B-Instruct").family == "qwen2.5"
    assert TeacherSpec(rationales="r.jsonl", name="gpt-4o/L1").family == "gpt"
    assert StudentSpec("model:qwen2.5-0.5b-instruct", "own").family == "own"


def test_a_family_that_no_name_tells_must_be_said():
    with pytest.raises(ValueError, match=r"student m/x: configs/families\.yaml knows no family"):
        StudentSpec("m/x")
    with pytest.raises(ValueError, match=r"teacher alpaca: configs/families\.yaml"):
        TeacherSpec(rationales="r.jsonl", name="alpaca")


def test_jobs_need_what_makes_their_input():
    jobs = find_jobs(seeds=1)
    needs = {name: job.needs for name, job in jobs.items()}
    assert needs["annotate-L-obqa"] == needs["fit-q-label-seed0"] == needs["fit-l-rationale-G-seed0"] == []
    assert needs["cache_logits-Q-obqa"] == needs["fit-l-rationale-Q-seed0"] == ["annotate-Q-obqa"]
    assert needs["fit-q-rationale+logits-Q-seed0"] == ["annotate-Q-obqa", "cache_logits-Q-obqa"]
    assert needs["evaluate-q-label-seed0"] == ["fit-q-label-seed0"] and needs["evaluate-q-untuned-seed0"] == []
    assert needs["analyze"] == [name for name in jobs if name.startswith("evaluate-")]
    assert jobs["analyze"].args == ["analyze", "--config=x.yaml", "--seeds=2"]
    names = list(jobs)
    assert all(names.index(needed) < names.index(name) for name in names for needed in needs[name])
    assert len({job.done for job in jobs.values()}) == len(jobs)


def test_no_cache_is_made_that_no_arm_reads():
    assert not any(job.stage == "cache_logits" for job in find_jobs(supervisions=["label", "rationale"]).values())


def test_each_arm_learns_one_task_and_the_untuned_student_answers_all_tests():
    published = TeacherSpec("gpt", rationales={"obqa": "o.jsonl", "arc": "a.jsonl"}, name="gpt-4o")
    jobs = find_jobs(tasks=TWO_TASKS, teachers={"G": published, "Q": TeacherSpec("qwen", model="m/Q")}, seeds=1)
    fit = jobs["fit-l-arc-rationale-G-seed0"].args
    assert {"--data.questions=arc_train.jsonl", '--data.rationales=["a.jsonl"]'} <= set(fit)
    assert "--data.questions=arc_test.jsonl" in jobs["evaluate-l-arc-rationale-G-seed0"].args
    both = '--data.questions=["test.jsonl", "arc_test.jsonl"]'
    assert both in jobs["evaluate-l-obqa-label-seed0"].args and both in jobs["evaluate-l-untuned-seed0"].args
    assert jobs["fit-q-arc-rationale+logits-Q-seed0"].needs == ["annotate-Q-arc", "cache_logits-Q-arc"]


def test_arm_is_trained_on_its_teacher_and_evaluated_on_the_test_questions():
    jobs = find_jobs()
    assert {
        "--config=x.yaml",
        "--model.student=m/q",
        "--model.keep_layers=[0, 2]",
        "--data.questions=train.jsonl",
        "--data.supervision=rationale+logits",
        '--data.rationales=["runs/s/teachers/Q/obqa.parquet"]',
        '--data.logits=["runs/s/teachers/Q/obqa-logits"]',
        "--data.batches.order_seed=1",
        "--seed_everything=1",
        "--run.id=q-rationale+logits-Q-seed1",
    } <= set(jobs["fit-q-rationale+logits-Q-seed1"].args)
    # A cut student is exported as it is, and must not be cut again; nor is its folder of a commit.
    assert {
        "--model.student=runs/s/q-rationale+logits-Q-seed1/student",
        "--model.keep_layers=null",
        "--model.revision=null",
        "--data.questions=test.jsonl",
        "--model.arm=rationale+logits-Q",
        "--model.seed=1",
    } <= set(jobs["evaluate-q-rationale+logits-Q-seed1"].args)


def test_arm_without_logits_has_no_divergence():
    jobs = find_jobs()
    for name in ("fit-q-label-seed0", "fit-q-rationale-L-seed0", "fit-l-rationale-G-seed0"):
        assert {"--model.loss.kl_weight=0.0", "--data.logits=null"} <= set(jobs[name].args)
    assert not any("kl_weight" in arg for arg in jobs["fit-l-rationale+logits-L-seed0"].args)
    published = jobs["fit-l-rationale-G-seed0"].args
    assert {'--data.filters.teachers=["gpt-4o"]', '--data.rationales=["g.jsonl"]'} <= set(published)


def test_untuned_student_is_cut_and_not_trained():
    jobs = find_jobs()
    expected = {"--model.student=m/q", "--model.keep_layers=[0, 2]", "--model.arm=untuned"}
    untuned = jobs["evaluate-q-untuned-seed0"].args
    assert "fit-q-untuned-seed0" not in jobs and expected <= set(untuned)
    assert not any(arg.startswith("--model.revision=") for arg in untuned)


# Controls.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"students": {"l": StudentSpec("m", "llama")}}, "all students are of the family llama"),
        ({"teachers": {"L": TeacherSpec("llama", model="m")}}, "all teachers are of the family llama"),
        ({"teachers": {name: TeacherSpec(name, model="m") for name in ("gpt", "gemma")}}, "no teacher is of a student"),
    ],
)
def test_a_grid_without_gamma_says_why(changes, reason):
    found = explain_missing_gamma(make_study(**changes))
    assert found is None if reason is None else reason in found


def test_an_alignment_is_of_the_arms_that_need_it_and_their_caches_are_their_teachers():
    controls = {
        "own": ControlSpec("rationale+logits", in_family_logits=True),
        "bytes": ControlSpec("rationale+logits", alignment="bytes"),
    }
    jobs = find_jobs(seeds=1, alignment="strict", controls=controls)
    found = {
        name.removeprefix("fit-").removesuffix("-seed0"): arg.removeprefix("--data.alignment.kind=")
        for name, job in jobs.items()
        for arg in job.args
        if arg.startswith("--data.alignment.kind=")
    }
    crossed = {name: value for name, value in found.items() if value != "refuse"}
    assert crossed == {
        "l-rationale+logits-Q": "strict", "q-rationale+logits-L": "strict",
        "l-rationale+logits-Q-bytes": "bytes", "q-rationale+logits-L-bytes": "bytes",
    }  # fmt: skip
    assert {"l-label", "l-rationale-Q", "l-rationale+logits-L", "l-rationale+logits-Q-own"} <= set(found)
    # What the section `fit` says for one kind is no mistake of the others.
    settings = {name: [arg for arg in jobs[f"fit-{name}-seed0"].args if "alignment" in arg][1:] for name in found}
    assert settings["l-rationale+logits-Q-bytes"] == []
    assert settings["l-rationale+logits-Q"] == ["--data.alignment.spans=null", "--data.alignment.whitespace=null"]
    assert len(settings["l-label"]) == len(settings["l-rationale+logits-L"]) == 3
    # The teacher scored its own text once, whoever learns from it.
    assert [name for name in jobs if name.startswith("cache_logits")] == [
        "cache_logits-L-obqa", "cache_logits-Q-obqa", "cache_logits-Q-obqa-of-L",
        "cache_logits-G-obqa-of-L", "cache_logits-L-obqa-of-Q", "cache_logits-G-obqa-of-Q",
    ]  # fmt: skip
    fit = jobs["fit-l-rationale+logits-Q-seed0"]
    assert "cache_logits-Q-obqa" in fit.needs
    assert '--data.logits=["runs/s/teachers/Q/obqa-logits"]' in fit.args
    assert not any("alignment" in arg for job in find_jobs().values() for arg in job.args)


def test_sizes_are_an_axis_whose_questions_a_seed_draws_once_for_all_arms():
    study = make_study(supervisions=["label", "rationale", "rationale+logits"], sizes=[32, 128], seeds=2)
    arms = [arm for arm in expand(study) if arm.supervision != "untuned"]
    assert len(arms) == 2 * len(expand(make_study(supervisions=study.supervisions, seeds=2))) - 2 * len(study.students)
    jobs = {job.name: job for job in StudyPlan(study, []).jobs()}
    for size, seed in product((32, 128), range(2)):
        for condition in ("label", "rationale-Q", "rationale+logits-L"):
            args = jobs[f"fit-l-{condition}-n{size}-seed{seed}"].args
            assert {f"--data.limit={size}", f"--data.limit_seed={seed}"} <= set(args)
    # Teachers write, and score, once for all sizes.
    assert sum(job.stage in ("annotate", "cache_logits") for job in jobs.values()) == sum(
        job.stage in ("annotate", "cache_logits")
        for job in StudyPlan(make_study(supervisions=study.supervisions), []).jobs()
    )
    with pytest.raises(ValueError, match=r"study.sizes: 128, 32: name each once, ascending"):
        make_study(sizes=[128, 32])
    with pytest.raises(ValueError, match=r"study.target_accuracy would be ignored"):
        make_study(sizes=[32], target_accuracy=0.5)
