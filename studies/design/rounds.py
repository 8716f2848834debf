"""On-policy distillation as an experiment declares it: rounds in which the student writes and a teacher corrects it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from datamodules.files.atomic import check_name
from datamodules.model_sources import name_model
from lightning_modules.student.own_text import OWN_LOSS
from losses.distillation import DistillationLoss


@dataclass(frozen=True)
class OnPolicy:
    """The rounds: in each the student answers questions, the teacher reads the answers, and the student learns.

    The optimizer's steps, its schedule and the step counter go on through the rounds; `fit.trainer.max_steps` says how
    many steps all of them have together.

    Attributes:
        name: Names the folder of the rounds.
        rounds: How many; they divide the steps.
        questions: How many the student answers in each round.
        samples: Its answers to each; more than one needs a temperature.
        temperature: Of its draws; 0 is greedy.
        top_p: They are from the fewest tokens that hold so much probability; 1 draws from all.
        max_new_tokens: Truncates an answer; a short one suffices to learn from, if `max_lost` allows it.
        mix: Share of each step's tokens that are of a teacher's text, `fit.data.rationales`, with the loss of `fit`;
            1 is the training that `fit` alone makes.
        keep_rounds: How many rounds' samples a round learns from, its own among them.
        start: The folder of a finished fit of the same student to begin from; null begins from `fit.model.student`. In
            a study the supervision, as `rationale`, of the arms of the same student, teacher and seed to begin from.
        loss: For what the student wrote.
        teacher: `self`: the student as it is when the round begins reads what it wrote, after `teacher_prompt`; null is
            whom `cache_logits.model.teacher` names.
        teacher_prompt: `with_gold` shows who reads the gold answer below the question, `with_rationale` a rationale of
            `shown_rationales`: privileged context, which the student never sees.
        shown_rationales: A file of rationales, of which `with_rationale` shows the first right one of each question or,
            where none is, the first; each question that the student answers needs one. In a study null shows those of
            the arm's teacher.
        teachers: Several that read what the student wrote, whose distributions are mixed by weight: models, as
            `cache_logits.model.teacher` would name them; null is that one.
        cross_entropy: Let loss.kl_weight be below 1, which teaches the student to write what it wrote.
        max_lost: Stop where a larger share of a round's samples is truncated or empty.
        min_distinct: Stop where less of a sample's runs of 4 tokens are different ones, on average.
        evaluate_every: Answer the test questions after every so many rounds, and after the last; null is the last
            alone. Without a section `evaluate` after none.
        seed: Of the questions' order and of the draws.
        backend: What draws, as `annotate.model.backend`; null is transformers.
        root: Folder of all runs.
    """

    name: str
    rounds: PositiveInt
    questions: PositiveInt
    samples: PositiveInt = 1
    temperature: NonNegativeFloat = 1.0
    top_p: ClosedUnitInterval = 1.0
    max_new_tokens: PositiveInt = 256
    mix: ClosedUnitInterval = 0.25
    keep_rounds: PositiveInt = 1
    start: str | None = None
    loss: DistillationLoss = OWN_LOSS
    teacher: Literal["self"] | None = None
    teacher_prompt: Literal["with_gold", "with_rationale"] | None = None
    shown_rationales: str | None = None
    teachers: dict[str, PositiveFloat] | None = None
    cross_entropy: bool = False
    max_lost: ClosedUnitInterval = 0.5
    min_distinct: ClosedUnitInterval = 0.25
    evaluate_every: PositiveInt | None = None
    seed: NonNegativeInt = 0
    backend: dict[str, Any] | None = None
    root: str = "runs"

    def __post_init__(self) -> None:
        check_name("on_policy.name", self.name)
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"on_policy.samples={self.samples} needs on_policy.temperature above 0: greedy samples are all alike"
            )
        check_teachers(self.teachers)
        if self.teacher is not None and self.teachers is not None:
            raise ValueError("on_policy.teacher is the student itself, on_policy.teachers are several; leave one out")
        if self.teacher is not None and self.teacher_prompt is None:
            raise ValueError(
                "on_policy.teacher=self needs on_policy.teacher_prompt=with_gold or with_rationale: else it teaches "
                "what it knows already"
            )
        if self.keep_rounds > self.rounds:
            raise ValueError(f"on_policy.keep_rounds={self.keep_rounds}, but there are {self.rounds} rounds; lower it")

    @property
    def weights(self) -> dict[str, float] | None:
        """The weights of several teachers, by the names that their caches have."""
        if self.teachers is None:
            return None
        return {name_model(model): float(weight) for model, weight in self.teachers.items()}

    @property
    def folder(self) -> Path:
        """The folder of the rounds."""
        return Path(self.root) / self.name


def check_teachers(teachers: Mapping[str, float] | None) -> None:
    """Raises a ValueError unless the teachers are none, or several whose caches have different names."""
    if teachers is None:
        return
    if len(teachers) < 2 or not all(map(math.isfinite, teachers.values())):
        raise ValueError("on_policy.teachers mixes two teachers at least, by finite weights; leave it out for one")
    if len({name_model(model) for model in teachers}) < len(teachers):
        raise ValueError(f"on_policy.teachers: two of {', '.join(teachers)} have the same name; rename a folder")
