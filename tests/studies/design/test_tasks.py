"""Languages as an axis of a study: which tasks and texts they make, what jobs these are, and what is refused."""

import json

import pytest

from studies.design.controls import ControlSpec
from studies.design.grid import TaskSpec, TeacherSpec, expand
from studies.design.tasks import LanguageSpec
from studies.jobs.job import Job
from tests.studies.design.grid_study import find_jobs, make_study

TASKS = {"m": TaskSpec("m.jsonl:{language}", ["task:msvamp:test:{language}"], annotate=["--model.stop=[x]"])}
LANGUAGES = LanguageSpec(["de", "th"], ["same", "pivot", "mixed"])
PUBLISHED = TeacherSpec("gpt", rationales="g_{language}.jsonl", name="gpt-4o")
AXIS = {"tasks": TASKS, "languages": LANGUAGES, "seeds": 1}
TEACHERS = {"L": TeacherSpec("llama", model="m/L"), "Q": TeacherSpec("qwen", model="m/Q")}


def read(job: Job, name: str) -> str:
    [found] = [arg.partition("=")[2] for arg in job.args if arg.startswith(f"--{name}=")]
    return found


def test_question_and_rationale_languages_are_crossed_with_all_else() -> None:
    study = make_study(**AXIS, teachers={"L": TEACHERS["L"], "G": PUBLISHED}, supervisions=["rationale"])
    arms = [arm.id for arm in expand(study) if arm.student == "l" and arm.teacher == "G"]
    kinds = ("same", "pivot", "mixed")
    assert arms == [f"l-m-{tag}-{kind}-rationale-G-seed0" for tag in ("de", "th") for kind in kinds]
    assert study.learned["m-th-same"].spec == TaskSpec(
        "m.jsonl:th", ["task:msvamp:test:th"], against="m-th-pivot", annotate=TASKS["m"].annotate
    )
    names = ["m-de-same", "m-de-pivot", "m-de-mixed", "m-same", "m-pivot", "m-mixed"]
    assert [study.find_against(name) for name in names] == [
        *("m-de-pivot", None, "m-de-pivot"), *("m-pivot", None, "m-pivot"),
    ]  # fmt: skip


def test_a_teacher_writes_once_in_english_for_all_languages() -> None:
    jobs = find_jobs(**AXIS, teachers={"L": TEACHERS["L"], "G": PUBLISHED}, supervisions=["rationale"])
    assert [name for name in jobs if name.startswith(("annotate", "pivot"))] == [
        *("annotate-L-m-en-same", "annotate-L-m-de-same", "pivot-L-m-de-pivot"),
        *("annotate-L-m-th-same", "pivot-L-m-th-pivot", "pivot-G-m-de-pivot", "pivot-G-m-th-pivot"),
    ]
    assert read(jobs["annotate-L-m-en-same"], "data.questions") == "m.jsonl:en"
    folder = "runs/s/teachers/L"
    pivot = jobs["pivot-L-m-th-pivot"]
    assert (pivot.stage, pivot.needs, pivot.done) == ("pivot", ["annotate-L-m-en-same"], f"{folder}/m-th-pivot.parquet")
    assert pivot.args == [
        *(f"{folder}/m-en-same.parquet", "--teacher=m/L", "--translations=m.jsonl:th", "--questions=m.jsonl:en"),
        f"--output={folder}/m-th-pivot.parquet",
    ]
    assert jobs["pivot-G-m-de-pivot"].args[0] == "g_en.jsonl" and jobs["pivot-G-m-de-pivot"].needs == []
    assert read(jobs["fit-l-m-de-same-rationale-G-seed0"], "data.rationales") == '["g_de.jsonl"]'
    mixed = jobs["fit-l-m-de-mixed-rationale-L-seed0"]
    assert read(mixed, "data.questions") == "m.jsonl:de" and mixed.needs == [
        "annotate-L-m-de-same",
        pivot.name.replace("th", "de"),
    ]
    assert json.loads(read(mixed, "data.filters.teachers")) == ["m/L", "m/L-pivot"]
    assert read(mixed, "data.batches.samples_per_epoch") == "1"
    assert json.loads(read(mixed, "data.batches.teacher_weights")) == {"m/L": 1.0, "m/L-pivot": 1.0}


def test_distributions_of_pivots_are_the_teachers_own() -> None:
    jobs = find_jobs(**AXIS, teachers=TEACHERS, supervisions=["rationale+logits"])
    mixed = jobs["fit-l-m-de-mixed-rationale+logits-L-seed0"]
    folder = "runs/s/teachers/L"
    assert json.loads(read(mixed, "data.logits")) == [f"{folder}/m-de-same-logits", f"{folder}/m-de-pivot-logits"]
    assert read(mixed, "data.controls.logits_teacher") == "m/L"
    same = jobs["fit-l-m-de-same-rationale+logits-L-seed0"]
    assert not any("logits_teacher" in arg for arg in same.args) and "cache_logits-L-m-de-same" in same.needs
    tests = read(jobs["evaluate-l-untuned-seed0"], "data.questions")
    assert json.loads(tests) == ["task:msvamp:test:de", "task:msvamp:test:th"]


def test_controls_are_of_every_text() -> None:
    controls = {"solved": ControlSpec(questions="solved"), "by_Q": ControlSpec(paraphraser="Q")}
    jobs = find_jobs(**AXIS, teachers=TEACHERS, supervisions=[], controls=controls)
    solved = jobs["fit-l-m-th-mixed-rationale-L-solved-seed0"]
    assert json.loads(read(solved, "data.filters.solved_by")) == ["m/L", "m/L-pivot", "m/Q", "m/Q-pivot"]
    rewritten = jobs["fit-l-m-th-pivot-rationale-L-by_Q-seed0"]
    assert json.loads(read(rewritten, "data.filters.teachers")) == ["m/L-pivot-by-m/Q"]
    assert jobs["annotate-L-by-Q-m-th-pivot"].needs == ["pivot-L-m-th-pivot"]


def test_pivots_alone_are_translated() -> None:
    controls = {"in_words": ControlSpec(translator="Q")}
    jobs = find_jobs(**AXIS, teachers=TEACHERS, supervisions=[], controls=controls)
    fits = [name for name in jobs if name.startswith("fit-l-")]
    assert fits == [f"fit-l-m-{tag}-pivot-rationale-{by}-in_words-seed0" for tag in ("de", "th") for by in "LQ"]
    job = jobs["annotate-L-translated-by-Q-m-de-pivot"]
    assert (read(job, "data.prompt"), read(job, "data.questions"), job.needs) == (
        *("translate", "m.jsonl:de"), ["pivot-L-m-de-pivot"],
    )  # fmt: skip
    assert read(job, "data.rewrites") == "runs/s/teachers/L/m-de-pivot.parquet"
    assert json.loads(read(jobs[fits[0]], "data.rationales")) == [job.done]
    with pytest.raises(ValueError, match=r"controls.c.translator: translates English pivots; study.languages.rat"):
        make_study(tasks=TASKS, languages=LanguageSpec(["de"], ["same"]), teachers=TEACHERS,
                   controls={"c": ControlSpec(translator="Q")})  # fmt: skip


def test_a_task_without_the_place_stays_as_it_is() -> None:
    plain = {"obqa": TaskSpec("train.jsonl", ["test.jsonl"])}
    before = find_jobs(tasks=plain, teachers=TEACHERS)
    assert [*make_study(tasks=TASKS | plain, languages=LANGUAGES, teachers=TEACHERS).learned][-1] == "obqa"
    job = find_jobs(tasks=TASKS | plain, languages=LANGUAGES, teachers=TEACHERS)["fit-l-obqa-rationale-L-seed0"]
    assert job.needs == ["annotate-L-obqa"] == before["fit-l-rationale-L-seed0"].needs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"languages": None}, r"study.tasks.m: \{language\} needs study.languages"),
        ({"tasks": {"m": TaskSpec("t", ["x:{language}"])}}, "study.languages would be ignored: no task"),
        ({"tasks": TASKS | {"o": TaskSpec("t", ["x:{language}"])}}, r"study.tasks.o: \{language\} needs"),
        ({"tasks": TASKS | {"m-de-same": TaskSpec("t", ["x"])}}, "study.languages makes a task m-de-same, and so does"),
        ({"tasks": {"m": TaskSpec("{language}", ["x"], against="n")}}, "study.tasks.m.against: study.languages says"),
        ({"teachers": {"G": TeacherSpec("gpt", rationales="g", name="n")}}, r"study.teachers.G.rationales: g: needs"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_study(**{**AXIS, "teachers": TEACHERS, **change})


@pytest.mark.parametrize(
    ("questions", "rationales", "message"),
    [
        (["xx"], ["same"], "study.languages.questions: language 'xx' is unknown; there are: ar, bn"),
        (["de, th"], ["same"], "study.languages.questions: language 'de, th' is unknown"),
        (["en-GB"], ["same"], "study.languages.questions: en-GB is the pivot's language"),
        ([], ["same"], "study.languages.questions: name one at least"),
        (["de"], ["same", "same"], "study.languages.rationales: name one at least, and each once"),
    ],
)
def test_languages_that_cannot_be_are_refused(questions: list[str], rationales: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageSpec(questions, rationales)
