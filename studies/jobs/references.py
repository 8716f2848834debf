"""What students are compared with on test questions: what their teachers answer, and how they would have gone on."""

from collections.abc import Callable
from pathlib import Path

from studies.design.grid import TeacherSpec
from studies.design.tasks import TaskSpec
from studies.jobs.job import Job


def refer(
    command: Callable[..., list[str]],
    folder: Path,
    teacher: tuple[str, str, TeacherSpec],
    task: tuple[str, TaskSpec],
    prompt: str | None,
) -> list[tuple[Job, Job]]:
    """Returns, for each source of a task's test questions, the jobs in which a teacher answers and scores itself.

    All that it writes is kept, right or wrong: students are compared with it on the same questions.

    Args:
        command: Makes a stage's command line.
        folder: Of the teacher's references.
        teacher: A model: its name in the study, in files, and what else is known of it.
        task: Its name, and what it is.
        prompt: After which the teacher scores; None is what its section says.
    """
    (name, writer, spec), jobs = teacher, []
    for number, questions in enumerate(task[1].test):
        place = f"{task[0]}-test{number}"
        path, output = str(folder / f"{place}.parquet"), str(folder / f"{place}-logits")
        args = command(
            [*spec.annotate, *task[1].annotate], model__teacher=spec.model, model__family=spec.family,
            data__questions=questions, output=path,
        )  # fmt: skip
        written = Job(f"annotate-{name}-{place}", "annotate", args, path, [])
        asked = {} if prompt is None else {"data__prompt": prompt}
        args = command(
            [], **asked, model__teacher=spec.model, data__questions=questions, data__rationales=[path],
            data__filters__teachers=[writer], data__filters__correct_only=False, data__filters__keep_truncated=True,
            output=output,
        )  # fmt: skip
        done = f"{output}/manifest.json"
        jobs.append((written, Job(f"cache_logits-{name}-{place}", "cache_logits", args, done, [written.name])))
    return jobs


def compare(references: list[tuple[Job, Job]]) -> tuple[dict[str, object], list[str]]:
    """Returns the settings of an evaluation that is compared with these, and the jobs that it needs."""
    if not references:
        return {}, []
    settings: dict[str, object] = {
        "data__references": [written.done for written, _ in references],
        "data__teachers": None,
        "data__logits": [str(Path(scored.done).parent) for _, scored in references],
        "data__keep_truncated": True,
        "data__alignment__kind": "strict",
    }
    return settings, [scored.name for _, scored in references]
