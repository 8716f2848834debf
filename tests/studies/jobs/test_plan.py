"""Tests of a study's jobs: what each is told, and what it needs."""

from studies.design.controls import ControlSpec
from studies.design.grid import TeacherSpec
from tests.studies.design.grid_study import TWO_TASKS, find_jobs


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
