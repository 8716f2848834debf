"""A study of two students and three teachers, that tests change."""

from studies.design.grid import StudentSpec, Study, TaskSpec, TeacherSpec, expand
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


def list_logits(**changes) -> list[str]:
    arms = expand(make_study(seeds=1, supervisions=["rationale+logits"], **changes))
    return [arm.id.removesuffix("-seed0") for arm in arms if arm.supervision == "rationale+logits"]


def find_jobs(**changes) -> dict[str, Job]:
    return {job.name: job for job in StudyPlan(make_study(**changes), ["--config=x.yaml"], ["--seeds=2"]).jobs()}
