import pytest

from studies.grid import Arm, StudentSpec, Study, TeacherSpec, expand
from studies.plan import StudyPlan


def make_study(**changes) -> Study:
    fields = {
        "name": "s",
        "train_questions": "train.jsonl",
        "test_questions": "test.jsonl",
        "students": {"l": StudentSpec("m/l", "llama"), "q": StudentSpec("m/q", "qwen", [0, 2])},
        "teachers": {
            "L": TeacherSpec("llama", model="m/L"),
            "Q": TeacherSpec("qwen", model="m/Q"),
            "G": TeacherSpec("gpt", rationales="g.jsonl", name="gpt-4o"),
        },
        "supervisions": ["label", "rationale", "rationale+logits"],
        "seeds": 2,
    }
    return Study(**{**fields, **changes})


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
        ({"supervisions": ["rationales"]}, "'rationales'"),
        ({"students": {}}, "student"),
        ({"teachers": {}}, "teacher"),
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


def test_phases_make_what_later_ones_read():
    phases = [[name for name, _ in phase] for phase in StudyPlan(make_study(seeds=1), "x.yaml").phases()]
    assert phases[0] == [
        "annotate-L", "annotate-Q",
        "l-untuned-seed0", "q-untuned-seed0",
        "l-label-seed0", "l-rationale-G-seed0", "q-label-seed0", "q-rationale-G-seed0",
    ]  # fmt: skip
    assert phases[1] == ["cache_logits-L", "cache_logits-Q"]
    assert set(phases[2]) == {
        f"{student}-rationale-{teacher}-seed0" for student in "lq" for teacher in "LQ"
    } | {"l-rationale+logits-L-seed0", "q-rationale+logits-Q-seed0"}  # fmt: skip


def test_no_cache_is_made_that_no_arm_reads():
    plan = StudyPlan(make_study(supervisions=["label", "rationale"]), "x.yaml")
    assert plan.phases()[1] == []


def find_commands(job_name: str, **changes) -> dict[str, list[str]]:
    for phase in StudyPlan(make_study(**changes), "x.yaml").phases():
        for name, commands in phase:
            if name == job_name:
                return dict(commands)
    raise AssertionError(job_name)


def test_arm_is_trained_on_its_teacher_and_evaluated_on_the_test_questions():
    commands = find_commands("q-rationale+logits-Q-seed1")
    assert {
        "--config=x.yaml",
        "--model.student=m/q",
        "--model.keep_layers=[0, 2]",
        "--data.questions=train.jsonl",
        "--data.supervision=rationale+logits",
        '--data.rationales=["runs/s/teachers/Q/rationales.parquet"]',
        '--data.logits=["runs/s/teachers/Q/logits"]',
        "--data.order_seed=1",
        "--seed_everything=1",
        "--run.id=q-rationale+logits-Q-seed1",
    } <= set(commands["fit"])
    # A cut student is exported as it is, and must not be cut again.
    assert {
        "--model.student=runs/s/q-rationale+logits-Q-seed1/student",
        "--model.keep_layers=null",
        "--data.questions=test.jsonl",
        "--model.arm=rationale+logits-Q",
        "--model.seed=1",
    } <= set(commands["evaluate"])


def test_arm_without_logits_has_no_divergence():
    for name in ("q-label-seed0", "q-rationale-L-seed0", "l-rationale-G-seed0"):
        fit = find_commands(name)["fit"]
        assert "--model.loss.kl_weight=0.0" in fit and "--data.logits=null" in fit
    assert not any("kl_weight" in arg for arg in find_commands("l-rationale+logits-L-seed0")["fit"])
    assert '--data.teachers=["gpt-4o"]' in find_commands("l-rationale-G-seed0")["fit"]
    assert '--data.rationales=["g.jsonl"]' in find_commands("l-rationale-G-seed0")["fit"]


def test_untuned_student_is_cut_and_not_trained():
    commands = find_commands("q-untuned-seed0")
    assert set(commands) == {"evaluate"}
    assert {"--model.student=m/q", "--model.keep_layers=[0, 2]", "--model.arm=untuned"} <= set(commands["evaluate"])
