from itertools import product

import pytest

from studies.design.controls import ControlSpec
from studies.design.grid import Arm, StudentSpec, TaskSpec, TeacherSpec, expand
from studies.design.parts import explain_missing_gamma
from studies.jobs.plan import StudyPlan
from tests.studies.design.grid_study import TEACHER, TWO_TASKS, list_logits, make_study


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
