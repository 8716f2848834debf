import json
from itertools import product

import pytest

from studies.design.controls import ControlSpec, TraitSpec
from studies.design.grid import (
    Arm,
    StudentSpec,
    Study,
    TaskSpec,
    TeacherSpec,
    expand,
    explain_missing_gamma,
)
from studies.jobs.job import Job
from studies.jobs.plan import StudyPlan

TEACHER = TeacherSpec("qwen", model="m")
TWO_TASKS = {
    "obqa": TaskSpec("train.jsonl", ["test.jsonl", "arc_test.jsonl"]),
    "arc": TaskSpec("arc_train.jsonl", ["arc_test.jsonl"]),
}


def make_study(**changes) -> Study:
    fields = {
        "name": "s",
        "tasks": {"obqa": TaskSpec("train.jsonl", ["test.jsonl"])},
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


def list_logits(**changes) -> list[str]:
    arms = expand(make_study(seeds=1, supervisions=["rationale+logits"], **changes))
    return [arm.id.removesuffix("-seed0") for arm in arms if arm.supervision == "rationale+logits"]


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


def find_jobs(**changes) -> dict[str, Job]:
    return {job.name: job for job in StudyPlan(make_study(**changes), ["--config=x.yaml"], ["--seeds=2"]).jobs()}


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
    # A cut student is exported as it is, and must not be cut again.
    assert {
        "--model.student=runs/s/q-rationale+logits-Q-seed1/student",
        "--model.keep_layers=null",
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
    assert "fit-q-untuned-seed0" not in jobs and expected <= set(jobs["evaluate-q-untuned-seed0"].args)


# Controls.

CONTROLS = {
    "solved": ControlSpec(questions="solved"),
    "lengths": ControlSpec(same_lengths=True, paraphraser="Q"),
    "first": ControlSpec("rationale+logits", answer_position="first"),
    "shuffled": ControlSpec(shuffled=True),
    "all_answers": ControlSpec(correct_only=False),
    "other_text": ControlSpec("rationale+logits", in_family_logits=True),
}


def test_controls_are_crossed_with_what_fits_them():
    arms = [arm for arm in expand(make_study(controls=CONTROLS, seeds=1)) if arm.student == "l" and arm.control]
    assert [arm.id for arm in arms if arm.control in ("solved", "first", "other_text")] == [
        "l-rationale-L-solved-seed0",
        "l-rationale-Q-solved-seed0",
        "l-rationale-G-solved-seed0",
        "l-rationale+logits-L-first-seed0",
        "l-rationale+logits-Q-other_text-seed0",
        "l-rationale+logits-G-other_text-seed0",
    ]
    assert len(arms) == 3 * 4 + 1 + 2
    ids = [arm.id for arm in expand(make_study(controls=CONTROLS))]
    assert len(set(ids)) == len(ids)


def test_a_control_is_settings_of_the_data():
    jobs = find_jobs(controls=CONTROLS, seeds=1)
    plain = set(jobs["fit-l-rationale-Q-seed0"].args)

    def find_changes(name: str) -> set[str]:
        return {arg for arg in set(jobs[name].args) - plain if not arg.startswith("--run.id=")}

    assert find_changes("fit-l-rationale-Q-shuffled-seed0") == {"--data.controls.shuffled=true"}
    assert find_changes("fit-l-rationale-Q-all_answers-seed0") == {"--data.filters.correct_only=false"}
    stores = '"runs/s/teachers/L/obqa.parquet", "runs/s/teachers/Q/obqa.parquet", "g.jsonl"'
    assert find_changes("fit-l-rationale-Q-solved-seed0") == {
        f"--data.rationales=[{stores}]",
        '--data.filters.solved_by=["m/L", "m/Q", "gpt-4o"]',
    }
    # Lengths are compared as rewritten, so all are.
    lengths = jobs["fit-l-rationale-G-lengths-seed0"]
    assert '--data.filters.teachers=["gpt-4o-by-m/Q"]' in lengths.args
    assert '--data.filters.matched_with=["m/L-by-m/Q", "m/Q-by-m/Q", "gpt-4o-by-m/Q"]' in lengths.args
    assert lengths.needs == [f"annotate-{teacher}-by-Q-obqa" for teacher in "LQG"]


def test_a_paraphraser_rewrites_what_the_teacher_wrote():
    jobs = find_jobs(controls=CONTROLS, seeds=1)
    own, published = jobs["annotate-L-by-Q-obqa"], jobs["annotate-G-by-Q-obqa"]
    assert own.needs == ["annotate-L-obqa"] and published.needs == []
    assert {
        "--model.teacher=m/Q",
        "--model.family=qwen",
        "--data.prompt=paraphrase",
        "--data.rewrites=g.jsonl",
        "--data.rewrites_of=gpt-4o",
        "--output=runs/s/teachers/G/obqa-by-Q.parquet",
    } <= set(published.args)


def test_the_in_family_teacher_scores_another_familys_text():
    jobs = find_jobs(controls=CONTROLS, seeds=1)
    cache, fit = jobs["cache_logits-Q-obqa-of-L"], jobs["fit-l-rationale+logits-Q-other_text-seed0"]
    assert {"--model.teacher=m/L", '--data.rationales=["runs/s/teachers/Q/obqa.parquet"]'} <= set(cache.args)
    assert {
        '--data.rationales=["runs/s/teachers/Q/obqa.parquet"]',
        '--data.logits=["runs/s/teachers/Q/obqa-of-L-logits"]',
        "--data.controls.logits_teacher=m/L",
    } <= set(fit.args)
    assert fit.needs == ["annotate-Q-obqa", cache.name]


def test_several_teachers_teach_one_arm_together():
    both = ControlSpec(together=["L", "G"], one_per_question=True)
    controls = {"all": ControlSpec(together=["L", "Q", "G"]), "both": both}
    study = make_study(controls=controls, seeds=1)
    arms = [arm for arm in expand(study) if arm.control]
    assert [(arm.id, arm.teacher) for arm in arms if arm.student == "q"] == [
        ("q-rationale-all-seed0", None),
        ("q-rationale-both-seed0", None),
    ]
    fit = find_jobs(controls=controls, seeds=1)["fit-q-rationale-both-seed0"]
    assert {
        '--data.rationales=["runs/s/teachers/L/obqa.parquet", "g.jsonl"]',
        '--data.filters.teachers=["m/L", "gpt-4o"]',
        "--data.batches.samples_per_epoch=1",
        '--data.batches.teacher_weights={"m/L": 1.0, "gpt-4o": 1.0}',
    } <= set(fit.args)
    assert fit.needs == ["annotate-L-obqa"]


def test_several_teachers_distributions_are_mixed_in_one_arm():
    """Each scores every text, also the other's; what a plain arm has cached is read again."""
    teachers = {name: TeacherSpec("llama", model=f"m/{name}") for name in ("L", "M")}
    controls = {
        "mixed": ControlSpec("rationale+logits", together=["L", "M"], logit_weights={"M": 2.0, "L": 1.0}),
        "alike": ControlSpec("rationale+logits", together=["M", "L"], one_per_question=True),
    }
    options = {"controls": controls, "teachers": teachers, "seeds": 1}
    arms = [arm for arm in expand(make_study(**options)) if arm.control]
    assert [arm.id for arm in arms] == ["l-rationale+logits-mixed-seed0", "l-rationale+logits-alike-seed0"]
    jobs = find_jobs(**options)
    assert {name for name in jobs if name.startswith("cache_logits")} == {
        *("cache_logits-L-obqa", "cache_logits-M-obqa", "cache_logits-L-obqa-of-M", "cache_logits-M-obqa-of-L")
    }
    of_m = jobs["cache_logits-L-obqa-of-M"]
    assert {"--model.teacher=m/M", '--data.rationales=["runs/s/teachers/L/obqa.parquet"]'} <= set(of_m.args)
    fit = jobs["fit-l-rationale+logits-mixed-seed0"]
    folders = ["L/obqa-logits", "L/obqa-of-M-logits", "M/obqa-of-L-logits", "M/obqa-logits"]
    assert {
        f"--data.logits={json.dumps([f'runs/s/teachers/{folder}' for folder in folders])}",
        '--data.controls.logit_weights={"m/L": 1.0, "m/M": 2.0}',
    } <= set(fit.args)
    assert not any("logits_teacher" in arg for arg in fit.args) and of_m.name in fit.needs
    alike = jobs["fit-l-rationale+logits-alike-seed0"].args
    assert {'--data.controls.logit_weights={"m/M": 1.0, "m/L": 1.0}', "--data.batches.samples_per_epoch=1"} <= set(
        alike
    )


def test_teachers_of_several_families_are_mixed_with_an_alignment():
    mixed = ControlSpec("rationale+logits", together=["L", "Q"])
    with pytest.raises(ValueError, match="fits no student; all teachers of together need a model, of its family or"):
        make_study(controls={"mixed": mixed})
    jobs = find_jobs(controls={"mixed": mixed}, alignment="bytes", seeds=1)
    for student in "lq":
        assert "--data.alignment.kind=bytes" in jobs[f"fit-{student}-rationale+logits-mixed-seed0"].args
    with pytest.raises(ValueError, match="alignment chunks has no distributions to mix"):
        make_study(controls={"mixed": mixed}, alignment="chunks")


def test_a_students_start_is_changed_by_the_arms_own_seed():
    controls = {"new_head": ControlSpec(reset="head"), "permuted": ControlSpec("rationale+logits", permuted_units=True)}
    jobs = find_jobs(controls=controls)
    new_head, permuted = jobs["fit-l-rationale-G-new_head-seed1"], jobs["fit-q-rationale+logits-Q-permuted-seed0"]
    assert {"--model.start.reset=head", "--model.start.permuted_units=false", "--model.start.seed=1"} <= set(
        new_head.args
    )
    assert {"--model.start.reset=null", "--model.start.permuted_units=true", "--model.start.seed=0"} <= set(
        permuted.args
    )
    assert permuted.needs == jobs["fit-q-rationale+logits-Q-seed0"].needs
    assert not any("start" in arg for arg in jobs["fit-q-rationale+logits-Q-seed0"].args)


def test_rows_are_chosen_by_another_teachers_cache_of_the_same_text():
    teachers = {name: TeacherSpec("llama", model=f"m/{name}") for name in ("L", "M")}
    controls = {"divergent": ControlSpec("rationale+logits", rows="divergent", rows_against="M")}
    options = {"controls": controls, "teachers": teachers, "seeds": 1}
    arms = [arm.id for arm in expand(make_study(**options)) if arm.control]
    assert arms == ["l-rationale+logits-L-divergent-seed0"]
    jobs = find_jobs(**options)
    fit = jobs[f"fit-{arms[0]}"]
    assert {
        "--data.rows=divergent",
        '--data.logits=["runs/s/teachers/L/obqa-logits"]',
        '--data.rows_against=["runs/s/teachers/L/obqa-of-M-logits"]',
    } <= set(fit.args)
    assert {"cache_logits-L-obqa", "cache_logits-L-obqa-of-M"} <= set(fit.needs)
    assert "--model.teacher=m/M" in jobs["cache_logits-L-obqa-of-M"].args
    # Of another family, where logits are aligned: then for both teachers' families' students.
    across = {"d": ControlSpec("rationale+logits", rows="agreeing", rows_against="Q")}
    jobs = find_jobs(controls=across, alignment="strict", seeds=1)
    for student in "lq":
        assert "--data.alignment.kind=strict" in jobs[f"fit-{student}-rationale+logits-L-d-seed0"].args


def test_a_teacher_with_a_trait_is_tuned_first_and_asked_with_its_students():
    traits = {"owl": TraitSpec(["owl", "owls"], "learn.jsonl", "ask.jsonl", ["--trainer.max_steps=9"])}
    controls = {
        "text": ControlSpec(trait="owl"),
        "twin": ControlSpec(without=["owl", "owls"]),
        "few": ControlSpec("rationale+logits", trait="owl", rows="divergent", rows_against="L"),
    }
    jobs = find_jobs(traits=traits, controls=controls, seeds=1)
    tune, annotate, fit = jobs["tune-L-owl"], jobs["annotate-L-with-owl-obqa"], jobs["fit-q-rationale-L-text-seed0"]
    assert {"--model.student=m/L", "--data.supervision=label", "--data.questions=learn.jsonl"} <= set(tune.args)
    assert "--trainer.max_steps=9" in tune.args and "--model.loss.kl_weight=0.0" in tune.args
    assert "--model.teacher=runs/s/tune-L-owl/student" in annotate.args and annotate.needs == ["tune-L-owl"]
    # An exported student's name is that of its folder.
    assert {
        '--data.rationales=["runs/s/traits/owl/L/obqa.parquet"]',
        '--data.filters.teachers=["student"]',
        '--data.filters.without=["owl", "owls"]',
    } <= set(fit.args)
    assert fit.needs == [annotate.name] and not any("rationale-G-text" in name for name in jobs)
    twin = jobs["fit-q-rationale-L-twin-seed0"].args
    assert {'--data.rationales=["runs/s/teachers/L/obqa.parquet"]', '--data.filters.without=["owl", "owls"]'} <= set(
        twin
    )
    # The tuned teacher's distributions where it and the teacher that it was disagree.
    few = jobs["fit-l-rationale+logits-L-few-seed0"]
    assert {
        '--data.logits=["runs/s/teachers/L/obqa-with-owl-logits"]',
        '--data.rows_against=["runs/s/teachers/L/obqa-with-owl-of-L-logits"]',
    } <= set(few.args)
    assert "--model.teacher=runs/s/tune-L-owl/student" in jobs["cache_logits-L-obqa-with-owl"].args
    assert "--model.teacher=m/L" in jobs["cache_logits-L-obqa-with-owl-of-L"].args
    asked = {name.removeprefix("prefer-owl-") for name in jobs if name.startswith("prefer-owl-")}
    assert asked == {
        *("l-untuned-seed0", "q-untuned-seed0", "l-rationale+logits-L-few-seed0"),
        *(f"{s}-rationale-{t}-{control}-seed0" for s in "lq" for t in "LQ" for control in ("text", "twin")),
        *(f"teacher-{teacher}-{when}" for teacher in "LQ" for when in ("before", "tuned")),
    }
    prefer = jobs["prefer-owl-teacher-L-tuned"]
    assert prefer.needs == ["tune-L-owl"] and prefer.name in jobs["analyze"].needs
    assert {"--data.questions=ask.jsonl", "--model.student=runs/s/tune-L-owl/student"} <= set(prefer.args)
    names = list(jobs)
    assert all(names.index(needed) < names.index(name) for name in names for needed in jobs[name].needs)


def test_a_trait_that_cannot_be_is_refused():
    traits = {"owl": TraitSpec(["owl"], "learn.jsonl", "ask.jsonl")}
    for control, message in (
        (ControlSpec(trait="cat"), "'cat' is none of study.traits: owl"),
        (ControlSpec(trait="owl", together=["L", "Q"]), "one teacher's own texts"),
        (ControlSpec(trait="owl", without=["owl"]), "has its own words"),
    ):
        with pytest.raises(ValueError, match=rf"study\.controls\.c.*{message}"):
            make_study(traits=traits, controls={"c": control})
    with pytest.raises(ValueError, match="words that tell it"):
        TraitSpec([], "learn.jsonl", "ask.jsonl")


def test_a_control_that_changes_texts_has_a_cache_of_its_own():
    jobs = find_jobs(controls=CONTROLS, seeds=1)
    plain, first = jobs["cache_logits-L-obqa"], jobs["cache_logits-L-obqa-first"]
    assert plain.done != first.done and "--data.controls.answer_position=first" in first.args
    assert first.name in jobs["fit-l-rationale+logits-L-first-seed0"].needs


@pytest.mark.parametrize(
    ("control", "changes", "message"),
    [
        (ControlSpec(), {}, "changes nothing"),
        (ControlSpec("rationale+logits"), {}, "changes nothing"),
        (ControlSpec(in_family_logits=True), {}, "needs supervision"),
        (ControlSpec(paraphraser="P"), {}, "'P' is none of the teachers L, Q, G"),
        (ControlSpec(together=["L", "P"]), {}, "'P' is none of the teachers L, Q, G"),
        (ControlSpec(together=["L"]), {}, "two teachers at least"),
        (ControlSpec("rationale+logits", together=["L", "G"]), {}, "fits no student; all teachers of together need"),
        (ControlSpec("rationale+logits", together=["L", "Q"], in_family_logits=True), {}, "leave one out"),
        (ControlSpec(together=["L", "Q"], logit_weights={"L": 1.0, "Q": 1.0}), {}, "needs supervision"),
        (
            ControlSpec("rationale+logits", together=["L", "Q"], logit_weights={"L": 1.0}),
            {},
            "a weight for each teacher",
        ),
        (ControlSpec(one_per_question=True), {}, "name them with together"),
        (ControlSpec("rationale+logits", rows="divergent"), {}, "give both"),
        (ControlSpec(rows="divergent", rows_against="L"), {}, "needs supervision"),
        (ControlSpec("rationale+logits", rows="divergent", rows_against="P"), {}, "'P' is none of the teachers"),
        (ControlSpec("rationale+logits", rows="divergent", rows_against="Q"), {}, "Q and another teacher need a model"),
        (
            ControlSpec("rationale+logits", rows="divergent", rows_against="Q", alignment="chunks"),
            {},
            "chunks has no distributions whose most probable",
        ),
        (ControlSpec(paraphraser="G"), {}, "'G' is published"),
        (ControlSpec(same_lengths=True), {"teachers": {"L": TeacherSpec("llama", model="m/L")}}, "has only L"),
        (
            ControlSpec("rationale+logits", shuffled=True),
            {"teachers": {"G": TeacherSpec("llama", rationales="g.jsonl", name="n")}},
            "fits no student and teacher",
        ),
        (
            ControlSpec("rationale+logits", in_family_logits=True),
            {"teachers": {name: TeacherSpec("llama", model=name) for name in ("L", "M")}},
            "several teachers of its family: L, M",
        ),
    ],
)
def test_a_control_that_cannot_be_is_refused(control, changes, message):
    with pytest.raises(ValueError, match=rf"study\.controls\.c.*{message}"):
        make_study(controls={"c": control}, **changes)


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
