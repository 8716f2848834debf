"""An arm of a study whose student learns on-policy: rounds whose last training is the arm's own run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from datamodules.examples.tokenization import load_tokenizer
from datamodules.model_sources import resolve_model
from lightning_modules.run.folder import flatten
from studies.design.controls import ON_POLICY
from studies.design.grid import Arm, Study, expand
from studies.design.rounds import OnPolicy
from studies.jobs.job import Job
from studies.jobs.rounds import RoundsPlan
from studies.jobs.rounds_checks import list_changed


class ArmRounds(RoundsPlan):
    """An arm's rounds, which are kept in `rounds/<arm>` of the study, but for the last training.

    Args:
        arm: The arm.
        settings: The file's, of all arms.
        sections: The file's other sections, by stage.
        study: The study's folder.
        train: The job that would train the arm on its teacher's text alone.
        read: The job in which its teacher would read that.
        start: The training of the arm that this one goes on from, as `train` does; None for one of its own.

    Raises:
        ValueError: The settings are of one student or teacher, or do not go with the sections.
    """

    def __init__(
        self,
        arm: Arm,
        settings: OnPolicy,
        sections: Mapping[str, Any],
        study: Path,
        train: Job,
        read: Job,
        start: Job | None = None,
    ):
        self.arm, self.study, self.start = arm, study, settings.start
        self.needs = train.needs if settings.mix else [start.name] if start else []
        for name in ("teacher", "teachers", "evaluate_every"):
            if getattr(settings, name) is not None:
                raise ValueError(
                    f"on_policy.{name} is of one student or teacher; arms of a study learn from their teacher, and are "
                    "evaluated at the end; leave it out"
                )
        if idle := [name for name in list_changed(settings) if name in ("seed", "root")]:
            raise ValueError(
                f"on_policy.{idle[0]} would be ignored: rounds of a study's arms have the arm's seed, and are in "
                "study.root; leave it out"
            )
        own = {stage: flatten(sections.get(stage) or {}) for stage in ("annotate", "cache_logits", "fit")}
        own["fit"] |= read_settings(train.args)
        own["cache_logits"] |= read_settings(read.args)
        shown = settings.shown_rationales
        if settings.teacher_prompt == "with_rationale" and shown is None:
            [shown] = own["cache_logits"]["data.rationales"]
            self.needs = list(dict.fromkeys([*self.needs, *read.needs]))
        # What it goes on from is the student of `train`; without text of its own nothing is drawn by a seed.
        seed = arm.seed if settings.mix < 1 else 0
        named = replace(
            settings, name=arm.id, root=str(study / "rounds"), seed=seed, start=None, shown_rationales=shown
        )
        super().__init__(named, own, [], {"fit": train.args, "cache_logits": read.args})

    def run(self, number: int) -> Path:
        """Returns the folder of a round's training."""
        return self.study / self.arm.id if number == self.settings.rounds else super().run(number)

    @property
    def group(self) -> Path:
        """The study's folder."""
        return self.study

    def describe(self) -> dict[str, Any]:
        """Returns what all rounds have in common, as JSON has it."""
        return super().describe() | {"start": self.start}

    def name_job(self, stage: str, number: int) -> str:
        """Returns what a round's job is called."""
        is_last = stage == "fit" and number == self.settings.rounds
        return f"{stage}-{self.arm.id}" + ("" if is_last else f"-{self.name(number)}")

    def jobs(self) -> list[Job]:
        """Returns all jobs, each after what it needs; what the arm's teacher writes, the study's arms share."""
        found, needs = list[Job](), self.needs
        for number in range(1, self.settings.rounds + 1):
            found += self.round(number, needs)
            needs = [self.name_job("fit", number)]
        return found


def read_settings(args: list[str]) -> dict[str, Any]:
    """Returns the settings of a stage's command line, by dotted name."""
    pairs = [arg.removeprefix("--").split("=", 1) for arg in args if "=" in arg and not arg.startswith("--config=")]
    return {name: yaml.safe_load(value) for name, value in pairs}


def check_writers(study: Study) -> None:
    """Raises a ValueError if a student that lies on this machine and is to write cannot end what it writes."""
    for name in dict.fromkeys(arm.student for arm in expand(study) if arm.supervision == ON_POLICY):
        model = study.students[name].model
        if not Path(resolve_model(model, None)[0]).exists():
            continue
        try:
            load_tokenizer(model)
        except ValueError as error:
            raise ValueError(f"study.students.{name}: supervision {ON_POLICY} has it write, but {error}") from None
