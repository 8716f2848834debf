"""Controls of a study: which arms they make, and what jobs these are."""

import json

import pytest

from studies.design.controls import ControlSpec, TraitSpec
from studies.design.grid import (
    TeacherSpec,
    expand,
)
from tests.studies.design.grid_study import find_jobs, make_study

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
    tuned = {"--model.teacher=runs/s/tune-L-owl/student", "--model.revision=null"}
    assert tuned <= set(annotate.args) and annotate.needs == ["tune-L-owl"]
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
    assert tuned <= set(jobs["cache_logits-L-obqa-with-owl"].args)
    assert "--model.teacher=m/L" in jobs["cache_logits-L-obqa-with-owl-of-L"].args
    asked = {name.removeprefix("prefer-owl-") for name in jobs if name.startswith("prefer-owl-")}
    assert asked == {
        *("l-untuned-seed0", "q-untuned-seed0", "l-rationale+logits-L-few-seed0"),
        *(f"{s}-rationale-{t}-{control}-seed0" for s in "lq" for t in "LQ" for control in ("text", "twin")),
        *(f"teacher-{teacher}-{when}" for teacher in "LQ" for when in ("before", "tuned")),
    }
    prefer = jobs["prefer-owl-teacher-L-tuned"]
    assert prefer.needs == ["tune-L-owl"] and prefer.name in jobs["analyze"].needs
    asks = {"--data.questions=ask.jsonl", "--model.student=runs/s/tune-L-owl/student", "--model.revision=null"}
    assert asks <= set(prefer.args) and "--model.revision=null" in tune.args
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
        (ControlSpec(translator="G"), {}, "translator: 'G' is published"),
        (ControlSpec(paraphraser="Q", translator="Q"), {}, "paraphraser and translator both rewrite"),
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


def test_a_control_goes_on_from_a_plain_arm():
    more = {"more": ControlSpec("rationale+logits", start="rationale"), "first": ControlSpec(start="label")}
    assert more["more"].continues and not ControlSpec("rationale", answer_position="last", start="rationale").continues
    jobs = find_jobs(controls=more)
    fit = jobs["fit-q-rationale+logits-Q-more-seed1"]
    assert fit.needs == ["annotate-Q-obqa", "cache_logits-Q-obqa", "fit-q-rationale-Q-seed1"]
    assert "--model.student=runs/s/q-rationale-Q-seed1/student" in fit.args
    assert {"--model.keep_layers=null", "--model.revision=null"} <= set(fit.args)
    assert "--model.student=runs/s/q-label-seed0/student" in jobs["fit-q-rationale-G-first-seed0"].args
    for control, message in (
        (more["more"], r"controls.c.start: 'rationale' is no arm of the study .*; there are: rationale\+logits$"),
        (ControlSpec(start="label", together=["L", "Q"]), r"controls.c.start: 'label' is no arm of the study"),
    ):
        with pytest.raises(ValueError, match=message):
            make_study(supervisions=["rationale+logits", "on-policy"], controls={"c": control})
    with pytest.raises(ValueError, match=r"controls.c: start is an arm of one teacher, together has several"):
        make_study(controls={"c": ControlSpec(start="label", together=["L", "Q"])})
