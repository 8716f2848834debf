"""A study as a list of jobs: each is a stage's own command line, with what it needs and what it leaves behind."""

import json
from dataclasses import dataclass
from pathlib import Path

from studies.comparison import predictions_path
from studies.grid import Arm, Study, expand


@dataclass(frozen=True)
class Job:
    """One command: `python scripts/{stage}.py {args}`.

    Attributes:
        name: Names the job, for example `fit-b-rationale-a-seed0`.
        stage: The script.
        args: Its command line.
        done: The file that exists when the job is finished.
        needs: Names of the jobs that must be finished first; they come before it in the list.
    """

    name: str
    stage: str
    args: list[str]
    done: str
    needs: list[str]


class StudyPlan:
    """Turns a grid into jobs.

    Args:
        study: The grid.
        config: The study's file, whose sections hold what all arms share.
        overrides: What the command line changes in its section `study`.
    """

    def __init__(self, study: Study, config: str, overrides: list[str] | None = None):
        self.study, self.config, self.overrides = study, config, overrides or []
        self.folder = Path(study.root) / study.name

    def task(self, arm: Arm) -> str:
        """Returns the name of the task that a trained arm learns."""
        return arm.task or next(iter(self.study.tasks))

    def rationales(self, teacher: str, task: str) -> str:
        """Returns where a teacher's rationales for a task are."""
        published = self.study.teachers[teacher].rationales
        if published is None:
            return str(self.folder / "teachers" / teacher / f"{task}.parquet")
        return published if isinstance(published, str) else published[task]

    def logits(self, teacher: str, task: str) -> str:
        """Returns where a teacher's logits for a task are."""
        return str(self.folder / "teachers" / teacher / f"{task}-logits")

    def annotate(self, teacher: str, task: str) -> Job:
        """Returns the job in which a teacher answers a task's training questions."""
        spec, output = self.study.teachers[teacher], self.rationales(teacher, task)
        args = self._command(
            model__teacher=spec.model, model__family=spec.family, data__questions=self.study.tasks[task].train,
            output=output,
        )  # fmt: skip
        return Job(f"annotate-{teacher}-{task}", "annotate", args, done=output, needs=[])

    def cache(self, teacher: str, task: str) -> Job:
        """Returns the job in which a teacher scores its rationales."""
        output = self.logits(teacher, task)
        args = self._command(
            model__teacher=self.study.teachers[teacher].model, data__questions=self.study.tasks[task].train,
            data__rationales=[self.rationales(teacher, task)], output=output,
        )  # fmt: skip
        needs = [self.annotate(teacher, task).name]
        return Job(f"cache_logits-{teacher}-{task}", "cache_logits", args, f"{output}/manifest.json", needs)

    def fit(self, arm: Arm) -> Job:
        """Returns the job that trains an arm."""
        spec, task = self.study.students[arm.student], self.task(arm)
        settings: dict[str, object] = {
            "model__student": spec.model,
            "model__keep_layers": spec.keep_layers,
            "data__questions": self.study.tasks[task].train,
            "data__supervision": arm.supervision,
            "data__rationales": None,
            "data__teachers": None,
            "data__logits": None,
            "data__order_seed": arm.seed,
            "seed_everything": arm.seed,
            "run__root": self.study.root,
            "run__group": self.study.name,
            "run__id": arm.id,
            "run__student_family": spec.family,
        }
        needs = []
        if arm.teacher:
            teacher = self.study.teachers[arm.teacher]
            settings["data__rationales"] = [self.rationales(arm.teacher, task)]
            settings["data__teachers"] = [teacher.name] if teacher.name else None
            if teacher.model:
                needs.append(self.annotate(arm.teacher, task).name)
        if arm.supervision == "rationale+logits":
            assert arm.teacher is not None
            settings["data__logits"] = [self.logits(arm.teacher, task)]
            needs.append(self.cache(arm.teacher, task).name)
        else:
            settings["model__loss__kl_weight"] = 0.0
        return Job(f"fit-{arm.id}", "fit", self._command(**settings), str(self.folder / arm.id / "DONE"), needs)

    def evaluate(self, arm: Arm) -> Job:
        """Returns the job in which an arm answers the test questions."""
        spec, output = self.study.students[arm.student], str(predictions_path(self.study, arm))
        model, layers, needs = spec.model, spec.keep_layers, []
        if arm.supervision != "untuned":
            model, layers, needs = str(self.folder / arm.id / "student"), None, [self.fit(arm).name]
        tasks = self.study.tasks.values() if arm.task is None else [self.study.tasks[arm.task]]
        tests = list(dict.fromkeys(source for task in tasks for source in task.test))
        args = self._command(
            model__student=model, model__keep_layers=layers, model__arm=arm.condition, model__seed=arm.seed,
            data__questions=tests if len(tests) > 1 else tests[0], output=output,
            wandb__group=self.study.name, wandb__student_family=spec.family,
        )  # fmt: skip
        return Job(f"evaluate-{arm.id}", "evaluate", args, output, needs)

    def analyze(self, needs: list[str]) -> Job:
        """Returns the job that compares the arms."""
        args = ["analyze", f"--config={self.config}", *self.overrides]
        return Job("analyze", "study", args, str(self.folder / "results.json"), needs)

    def _command(self, **overrides: object) -> list[str]:
        return [f"--config={self.config}"] + [
            f"--{key.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in overrides.items()
        ]

    def jobs(self) -> list[Job]:
        """Returns all jobs, each after what it needs; the last one compares the arms."""
        arms = expand(self.study)
        models = [teacher for teacher, spec in self.study.teachers.items() if spec.model is not None]
        cached = {(arm.teacher, self.task(arm)) for arm in arms if arm.supervision == "rationale+logits"}
        jobs = [self.annotate(teacher, task) for teacher in models for task in self.study.tasks]
        jobs += [
            self.cache(teacher, task) for teacher in models for task in self.study.tasks if (teacher, task) in cached
        ]
        for arm in arms:
            jobs += [self.evaluate(arm)] if arm.supervision == "untuned" else [self.fit(arm), self.evaluate(arm)]
        needs = [job.name for job in jobs if job.stage == "evaluate"]
        return [*jobs, self.analyze(needs)]
