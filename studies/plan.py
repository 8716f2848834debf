"""The commands of a study: each stage's own command line, made from the experiment's file and the grid."""

import json
from pathlib import Path

from studies.comparison import predictions_path
from studies.grid import Arm, Study, expand

# A name, and the commands to run in order: (stage, its arguments).
Job = tuple[str, list[tuple[str, list[str]]]]


class StudyPlan:
    """Turns a grid into jobs.

    Args:
        study: The grid.
        config: The experiment's file, whose sections hold what all arms share.
    """

    def __init__(self, study: Study, config: str):
        self.study, self.config = study, config
        self.folder = Path(study.root) / study.name

    def rationales(self, teacher: str) -> str:
        """Returns where a teacher's rationales are."""
        return self.study.teachers[teacher].rationales or str(self.folder / "teachers" / teacher / "rationales.parquet")

    def logits(self, teacher: str) -> str:
        """Returns where a teacher's logits are."""
        return str(self.folder / "teachers" / teacher / "logits")

    def annotate(self, teacher: str) -> Job:
        """Returns the job in which a teacher answers the training questions."""
        spec = self.study.teachers[teacher]
        return f"annotate-{teacher}", [
            ("annotate", self._command(
                model__teacher=spec.model, model__family=spec.family, data__questions=self.study.train_questions,
                output=self.rationales(teacher),
            ))
        ]  # fmt: skip

    def cache(self, teacher: str) -> Job:
        """Returns the job in which a teacher scores its rationales."""
        return f"cache_logits-{teacher}", [
            ("cache_logits", self._command(
                model__teacher=self.study.teachers[teacher].model, data__questions=self.study.train_questions,
                data__rationales=[self.rationales(teacher)], output=self.logits(teacher),
            ))
        ]  # fmt: skip

    def arm(self, arm: Arm) -> Job:
        """Returns the job that trains and evaluates an arm."""
        spec = self.study.students[arm.student]
        model, layers, commands = spec.model, spec.keep_layers, []
        if arm.supervision != "untuned":
            has_logits = arm.supervision == "rationale+logits"
            overrides: dict[str, object] = {
                "model__student": spec.model,
                "model__keep_layers": spec.keep_layers,
                "data__questions": self.study.train_questions,
                "data__supervision": arm.supervision,
                "data__rationales": [self.rationales(arm.teacher)] if arm.teacher else None,
                "data__teachers": [name] if arm.teacher and (name := self.study.teachers[arm.teacher].name) else None,
                "data__logits": [self.logits(arm.teacher)] if arm.teacher and has_logits else None,
                "data__order_seed": arm.seed,
                "seed_everything": arm.seed,
                "run__root": self.study.root,
                "run__group": self.study.name,
                "run__id": arm.id,
            }
            if not has_logits:
                overrides["model__loss__kl_weight"] = 0.0
            commands.append(("fit", self._command(**overrides)))
            model, layers = str(self.folder / arm.id / "student"), None
        commands.append(
            ("evaluate", self._command(
                model__student=model, model__keep_layers=layers, model__arm=arm.condition, model__seed=arm.seed,
                data__questions=self.study.test_questions, output=str(predictions_path(self.study, arm)),
            ))
        )  # fmt: skip
        return arm.id, commands

    def _command(self, **overrides: object) -> list[str]:
        return [f"--config={self.config}"] + [
            f"--{key.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in overrides.items()
        ]

    def phases(self) -> list[list[Job]]:
        """Returns the jobs in phases; those of one phase can run side by side."""
        models = [teacher for teacher, spec in self.study.teachers.items() if spec.model is not None]
        arms = expand(self.study)
        cached = sorted({arm.teacher for arm in arms if arm.teacher and arm.supervision == "rationale+logits"})
        waiting = [arm for arm in arms if arm.teacher in models]
        ready = [arm for arm in arms if arm not in waiting]
        return [
            [self.annotate(teacher) for teacher in models] + [self.arm(arm) for arm in ready],
            [self.cache(teacher) for teacher in cached],
            [self.arm(arm) for arm in waiting],
        ]
