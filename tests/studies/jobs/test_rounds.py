import json
from pathlib import Path
from typing import Any

import pytest

from losses.distillation import DistillationLoss
from tests.halting.process import locked_elsewhere
from tests.studies.jobs.rounds_plan import SECTIONS, make_plan


def test_each_round_waits_for_the_one_before_and_goes_on_from_it() -> None:
    jobs = {job.name: job for job in make_plan(keep_rounds=2, evaluate_every=2).jobs()}
    assert [name for name in jobs if name.startswith("evaluate")] == ["evaluate-round-2", "evaluate-round-4"]
    assert jobs["annotate-round-3"].needs == ["fit-round-2"]
    assert jobs["fit-round-3"].needs == ["fit-round-2", "annotate-round-3", "cache_logits-round-3"]
    third = jobs["fit-round-3"].args
    assert {"--trainer.max_steps=9", "--model.schedule_steps=12", "--data.own.first_step=6"} <= set(third)
    assert "--run.continues=runs/n/round-2" in third and "--model.student=s" in third
    stores = '["runs/n/samples/round-2.parquet", "runs/n/samples/round-3.parquet"]'
    assert f"--data.own.rationales={stores}" in third
    assert "--run.keep_checkpoints=true" in third and "--run.keep_checkpoints=false" in jobs["fit-round-4"].args


def test_a_rounds_student_is_evaluated_whatever_commit_the_section_names() -> None:
    jobs = {job.name: job.args for job in make_plan(SECTIONS | {"evaluate": {"model": {"revision": "r"}}}).jobs()}
    given = {"--model.student=runs/n/round-4/student", "--model.revision=null", "--model.keep_layers=null"}
    assert given <= set(jobs["evaluate-round-4"])


def test_the_student_writes_as_its_training_poses_and_has_room_for_it() -> None:
    jobs = {job.name: job for job in make_plan(samples=3).jobs()}
    first, second = jobs["annotate-round-1"].args, jobs["annotate-round-2"].args
    assert {"--model.teacher=s", "--model.keep_layers=[0, 1]", "--data.encoding.max_length=144"} <= set(first)
    assert {"--model.keep_ids=true", "--model.writer=round-1", "--model.num_samples=3"} <= set(first)
    assert "--model.teacher=runs/n/round-1/student" in second and not any("keep_layers" in arg for arg in second)
    # Questions have no store of tokens.
    assert not any("cache_dir" in arg for arg in first)
    seeds = [next(arg for arg in args if arg.startswith("--model.seed=")) for args in (first, second)]
    assert seeds[0] != seeds[1]
    cache = jobs["cache_logits-round-1"].args
    assert cache.index("--data.filters.correct_only=false") and "--data.filters.teachers=null" in cache


def test_a_share_of_one_is_rounds_of_the_fit_alone_and_of_none_leaves_the_teachers_text_out() -> None:
    assert {job.stage for job in make_plan(mix=1.0).jobs()} == {"fit", "evaluate"}
    # No room is kept for what the student would write.
    encoding = SECTIONS["fit"]["data"] | {"encoding": {"max_length": 200}}
    make_plan(SECTIONS | {"fit": SECTIONS["fit"] | {"data": encoding}}, mix=1.0)
    args = make_plan(mix=0.0).jobs()[2].args
    assert {"--data.rationales=null", "--data.own.mix=0.0", "--data.supervision=rationale"} <= set(args)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("trainer", {}, "fit.trainer.max_steps must say how many optimizer steps"),
        ("trainer", {"max_steps": 10}, "on_policy.rounds=4 does not divide fit.trainer.max_steps=10"),
        ("trainer", {"max_steps": 12, "max_epochs": 3}, "fit.trainer.max_epochs would be ignored"),
        ("model", {}, "on_policy: fit.model.student must say what is trained, and on which questions; add it"),
        ("data", {"prompt": "plain"}, "on_policy: fit.data.questions must say what is trained"),
        ("data", {"questions": "q", "limit": 7}, "on_policy.questions=8 in a round, but fit.data.limit=7 in all"),
        ("data", {"questions": "q", "encoding": {"max_length": None}}, "fit.data.encoding.max_length must be a number"),
    ],
)
def test_sections_that_do_not_go_with_rounds_are_refused(section: str, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(SECTIONS | {"fit": SECTIONS["fit"] | {section: values}})


def test_several_teachers_read_and_are_weighed() -> None:
    jobs = {job.name: job for job in make_plan(keep_rounds=2, teachers={"x/t": 1, "x/u": 3}).jobs()}
    assert "--model.teacher=x/u" in jobs["cache_logits-round-2-2"].args
    args = jobs["fit-round-2"].args
    caches = ", ".join(f'"runs/n/samples/round-{own}-logits-{place}"' for own in (1, 2) for place in (1, 2))
    assert {f"--data.own.logits=[{caches}]", '--data.own.logit_weights={"x/t": 1.0, "x/u": 3.0}'} <= set(args)
    assert {"cache_logits-round-2-1", "cache_logits-round-2-2"} < set(jobs["fit-round-2"].needs)


def test_the_student_itself_reads_with_the_gold_answer_in_view() -> None:
    cache = SECTIONS["cache_logits"] | {"model": {"teacher": "t", "revision": "r"}}
    plan = make_plan(SECTIONS | {"cache_logits": cache}, teacher="self", teacher_prompt="with_gold")
    jobs = {job.name: job.args for job in plan.jobs()}
    first, second = jobs["cache_logits-round-1"], jobs["cache_logits-round-2"]
    assert {"--model.teacher=s", "--model.keep_layers=[0, 1]", "--data.prompt=plain_with_gold"} <= set(first)
    assert {"--model.teacher=runs/n/round-1/student", "--model.keep_layers=null", "--model.revision=null"} <= set(
        second
    )
    assert "--data.own.teacher_prompt=plain_with_gold" in jobs["fit-round-2"]
    named = {job.name: job.args for job in make_plan(teacher_prompt="with_gold").jobs()}["cache_logits-round-2"]
    assert "--data.prompt=instruction_with_gold" in named and not any("--model.teacher" in arg for arg in named)


def test_the_student_itself_reads_with_a_rationale_in_view_which_is_annotated_first() -> None:
    annotate = {"model": {"teacher": "t"}, "output": "r.parquet"}
    shown = {"teacher": "self", "teacher_prompt": "with_rationale", "shown_rationales": "r.parquet", "mix": 0.0}
    jobs = {job.name: job for job in make_plan(SECTIONS | {"annotate": annotate}, **shown).jobs()}
    assert jobs["annotate-round-1"].needs == ["annotate"] and "cache_logits" not in jobs
    read, train = jobs["cache_logits-round-2"].args, jobs["fit-round-2"].args
    assert {"--data.prompt=plain_with_rationale", "--data.shown_rationales=r.parquet"} <= set(read)
    own = {"teacher_prompt": "plain_with_rationale", "shown_rationales": "r.parquet"}
    assert {f"--data.own.{name}={value}" for name, value in own.items()} <= set(train)
    # Nothing else of a round says what is shown.
    assert not any("shown" in arg for arg in jobs["annotate-round-2"].args)


def test_rounds_go_on_with_the_settings_that_they_began_with(tmp_path: Path) -> None:
    make_plan(root=str(tmp_path)).claim()
    store = tmp_path / "n" / "samples" / "round-1.parquet"
    store.parent.mkdir()
    store.touch()
    make_plan(root=str(tmp_path)).claim()
    with pytest.raises(
        ValueError, match=r"on_policy.mix was 0.25 and is 0.5, on_policy.loss.divergence was 'reverse_kl'"
    ):
        make_plan(root=str(tmp_path), mix=0.5, loss=DistillationLoss(kl_weight=1.0)).claim()


def test_settings_may_be_corrected_until_something_was_made_by_them(tmp_path: Path, monkeypatch) -> None:
    def claim(**settings: Any) -> None:
        make_plan(root=str(tmp_path), **settings).claim()

    folder, queued = tmp_path / "n", tmp_path / "queued"
    queued.touch()
    # Whatever cluster this machine belongs to.
    queue = tmp_path / "bin" / "squeue"
    queue.parent.mkdir()
    queue.write_text(f"#!/bin/sh\ncat '{queued}'\n")
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{queue.parent}:/usr/bin:/bin")
    claim()
    claim(mix=0.5)
    # A lock is what a kill leaves of a job that has not written yet.
    (folder / "samples").mkdir()
    (folder / "samples" / ".round-1.parquet.lock").touch()
    claim(mix=0.1)
    log = folder / "logs" / "annotate-round-1.log"
    log.parent.mkdir()
    with locked_elsewhere(log), pytest.raises(ValueError, match=r"mix was 0.1 and is 0.5; choose another name"):
        claim(mix=0.5)
    claim(mix=0.2)
    entry = {"job": "17_0", "log": "l", "done": "d"}
    (folder / "submitted.json").write_text(json.dumps({"annotate-round-1": entry}))
    claim(mix=0.3)
    queued.write_text("17_0|PENDING|Dependency\n")
    with pytest.raises(ValueError, match=r"mix was 0.3 and is 0.5"):
        claim(mix=0.5)
    queued.write_text("")
    (folder / "round-1").mkdir()
    (folder / "round-1" / "meta.json").touch()
    with pytest.raises(ValueError, match=r"mix was 0.3 and is 0.5"):
        claim(mix=0.5)


def test_more_questions_in_a_round_than_there_are_are_refused() -> None:
    data = SECTIONS["fit"]["data"] | {"questions": "microworld:train:7:0"}
    fit = SECTIONS["fit"] | {"data": data}
    make_plan(SECTIONS | {"fit": fit}, questions=7).check_questions()
    with pytest.raises(
        ValueError, match=r"^on_policy.questions=8 in a round, but microworld:train:7:0 has 7; lower it"
    ):
        make_plan(SECTIONS | {"fit": fit}, questions=8).check_questions()
    several = fit | {"data": data | {"questions": ["microworld:train:7:0", "microworld:train:7:1"]}}
    make_plan(SECTIONS | {"fit": several}, questions=8).check_questions()
    # The student answers none of them.
    make_plan(SECTIONS | {"fit": fit}, questions=8, mix=1.0).check_questions()
