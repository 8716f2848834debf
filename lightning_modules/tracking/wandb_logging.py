"""What Weights & Biases is told: flat axes to group runs by, artifacts with their lineage, tables of predictions.

W&B is a view, offline unless `WANDB_MODE=online`; the record is `metrics.jsonl`, the axes are `axes.json`.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
import wandb
from jsonargparse.typing import PositiveInt
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from datamodules.distillation import DistillationDataModule
from datamodules.evaluation import EvaluationDataModule
from datamodules.files.atomic import hash_json, hash_path, hash_text, write_json
from datamodules.files.seals import check_run_file
from datamodules.model_cards import UNKNOWN, find_family
from datamodules.model_sources import name_model, resolve_model
from datamodules.rationales.store import read_families
from datamodules.tasks.questions import Question, format_question, load_questions
from datamodules.text.plain_text import shorten
from lightning_modules.evaluation.metrics import Metrics
from lightning_modules.run.folder import RunFolder, RunSettings
from lightning_modules.run.wandb_mode import Mode, Wanted, begin_run, check_project, choose_mode, read_mode
from lightning_modules.student.student import DistillationModule
from losses.schedules import bounds

# Of W&B, which refuses a run with a longer one.
_LONGEST_TAG = 64


@dataclass(frozen=True)
class Axes:
    """What runs are grouped and compared by: one flat value each, since the UI cannot group by nested ones.

    Attributes:
        teacher: Who wrote the rationales, several joined by `+`; None if nobody taught.
        teacher_family: Likewise.
        student: The student that training began with.
        student_family: `unknown` where neither the config nor its name tells.
        supervision: `label`, `rationale`, `rationale+logits`; `untuned` before training.
        kl_weight: The divergence's share; the largest that a schedule reaches. None before training.
        temperature: Of the divergence, likewise.
        divergence: Its name; None before training.
        seed: The training seed.
        task: Whose questions are learned from, or are answered in an evaluation.
    """

    teacher: str | None
    teacher_family: str | None
    student: str
    student_family: str | None
    supervision: str
    kl_weight: float | None
    temperature: float | None
    divergence: str | None
    seed: int
    task: str

    @property
    def tags(self) -> list[str]:
        """Coarse facets, as long as W&B takes them: those of an evaluation of many tasks have all their names."""
        families = (self.teacher_family, self.student_family)
        relation = (
            [] if {None, UNKNOWN} & set(families) else ["in-family" if families[0] == families[1] else "cross-family"]
        )
        return [shorten(tag, _LONGEST_TAG) for tag in (self.supervision, self.task, *relation) if tag]


def _join(names: Iterable[str]) -> str:
    return "+".join(sorted(set(names)))


def join_tasks(questions: Iterable[Question]) -> str:
    """Returns the questions' tasks as one value."""
    return _join(question.task for question in questions)


def describe_axes(student: DistillationModule, data: DistillationDataModule, family: str | None, seed: int) -> Axes:
    """Returns a run's axes.

    Args:
        student: What is trained.
        data: What it learns from, set up.
        family: The student's, if it is known.
        seed: The training seed.
    """
    teachers = set(data.train_examples.column("teacher")) if data.supervision != "label" else set()
    families = read_families(data.source.rationales)
    return Axes(
        teacher=_join(teachers) or None,
        teacher_family=_join(find_family(teacher, families.get(teacher)) for teacher in teachers) or None,
        student=name_model(student.student),
        student_family=find_family(resolve_model(student.student, None)[0], family),
        supervision=data.supervision,
        kl_weight=bounds(student.loss.kl_weight)[1],
        temperature=bounds(student.loss.temperature)[1],
        divergence=student.loss.divergence,
        seed=seed,
        task=join_tasks(load_questions(data.source.questions)),
    )


class TrackingLogger(WandbLogger):
    """A W&B logger that goes offline where W&B refuses the run.

    Args:
        wanted: Whether to log, and whether it must be online.
        mode: See `choose_mode`.
        options: Of the run.
    """

    def __init__(self, wanted: Wanted, mode: Mode, **options: Any):
        super().__init__(mode=mode, **options)
        # Lightning passes it on unset, too, and W&B warns of it in every run.
        del self._wandb_init["anonymous"]
        self._wanted, self._mode = wanted, mode

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]  # Lightning's types are not followed
    def experiment(self) -> Any:
        """The W&B run, which begins when it is first asked for."""

        def begin(mode: Mode) -> Any:
            self._mode = self._wandb_init["mode"] = mode
            return WandbLogger.experiment.fget(self)

        return begin_run(begin, self._mode, self._wanted)


def build_wandb_loggers(settings: RunSettings, run: RunFolder) -> list[WandbLogger]:
    """Returns the run's W&B logger, or nothing if W&B is off.

    Every attempt of a run is a fragment of its own in `wandb/`, with the run's id.
    """
    # Of several processes one logs.
    mode = choose_mode(settings.wandb) if rank_zero_only.rank == 0 else read_mode(settings.wandb)
    if mode == "disabled":
        return []
    return [
        TrackingLogger(
            settings.wandb,
            mode,
            project=settings.project,
            group=settings.group,
            name=run.id,
            id=hash_text(run.id) if "," in run.id else run.id,  # of what a name may have, W&B refuses the comma here
            save_dir=run.path.absolute(),  # W&B's service stays in the folder in which its first run began
            job_type="fit",
            config=run.config,
            settings=wandb.Settings(silent=True),
        )
    ]


def _refer(name: str, kind: str, path: Path, sha256: str, **metadata: Any) -> wandb.Artifact:
    """Returns an artifact that says where a file or folder lies and what is in it; nothing is uploaded."""
    # A version of an artifact is told from another by its reference alone; the name has the content's hash.
    # W&B refuses the + of rationale+logits, letters beyond ASCII, and more than 128 characters.
    name = re.sub(r"[^\w.-]", "-", f"{name[:100]}-{sha256[:8]}", flags=re.ASCII)
    artifact = wandb.Artifact(name, type=kind, metadata={**metadata, "sha256": sha256})
    artifact.add_reference(path.absolute().as_uri(), name=path.name, checksum=False)
    return artifact


class RunRecord(L.Callback):
    """Writes the run's axes, and tells W&B of them and of what the run learns from.

    Args:
        run: The run.
        family: The student's, if it is known.
        seed: The training seed.
    """

    def __init__(self, run: RunFolder, family: str | None, seed: int):
        self.run, self.family, self.seed = run, family, seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Does so in one process; the data is set up by now."""
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        axes = describe_axes(pl_module, data, self.family, self.seed)
        write_json(self.run.path / "axes.json", asdict(axes))
        if (experiment := _find_experiment(trainer)) is None:
            return
        experiment.config.update(asdict(axes), allow_val_change=True)
        experiment.tags = axes.tags
        hashes = _read_hashes(self.run)
        inputs = [("logit-cache", path) for path in [*data.logit_paths, *data.rows_against]]
        if axes.teacher is not None:
            inputs += [("rationales", path) for path in data.source.rationales]
        for kind, path in inputs:
            artifact = _refer(Path(path).stem, kind, Path(path), hashes[path], teacher=axes.teacher)
            experiment.log_artifact(artifact)


@contextmanager
def close_on_error() -> Iterator[None]:
    """Ends the W&B run that an error leaves open, before its files may be removed."""
    try:
        yield
    except Exception:
        if wandb.run is not None:
            wandb.finish(exit_code=1)
        raise


def log_student(trainer: L.Trainer, run: RunFolder) -> None:
    """Tells W&B of the exported student and what it learned from, and ends the W&B run."""
    if (experiment := _find_experiment(trainer)) is None:
        return
    sha256 = hash_path(run.student)
    experiment.log_artifact(
        _refer(f"student-{run.id}", "student", run.student, sha256, learned_from=_read_hashes(run))
    )  # fmt: skip
    experiment.finish()


def _find_experiment(trainer: L.Trainer) -> Any | None:
    """Returns the trainer's W&B run, None if it has none."""
    return next((logger.experiment for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)


def _read_hashes(run: RunFolder) -> dict[str, str]:
    hashes: dict[str, str] = json.loads((run.path / "meta.json").read_text())["data"]
    return hashes


@dataclass(frozen=True)
class EvaluationLog:
    """How an evaluation is shown in Weights & Biases.

    Attributes:
        enabled: Log to W&B, offline unless WANDB_MODE says otherwise, or is out of reach; `required` refuses to begin
            without W&B online.
        project: The W&B project.
        group: Runs that belong together; null takes that of the student's run, or `default`.
        student_family: The family of an untuned student; null is what its name tells.
        samples: Predictions in the table; the same questions whatever the student.
    """

    enabled: Wanted = True
    project: str = "kindred"
    group: str | None = None
    student_family: str | None = None
    samples: PositiveInt = 200

    def __post_init__(self) -> None:
        check_project("wandb.project", self.project)


def log_evaluation(
    settings: EvaluationLog,
    output: Path,
    config: dict[str, Any],
    data: EvaluationDataModule,
    records: list[dict[str, Any]],
    metrics: dict[str, Metrics],
) -> None:
    """Logs an evaluation as a W&B run of its own, in the group of the student's run and with its axes.

    With one task its metrics are `test/NAME`; with several, `test/TASK/NAME`, and `test/NAME` is the tasks' mean.

    Args:
        settings: Where and how much.
        output: The predictions; the run is kept beside them and has their name.
        config: The evaluation's resolved config.
        data: What was asked.
        records: Predictions.
        metrics: By task.
    """
    if (mode := choose_mode(settings.enabled)) == "disabled":
        return
    questions = {identifier: posed.question for identifier, posed in data.posed.items()}
    model = config["model"]
    trained = Path(model["student"]).parent
    if (trained / "axes.json").is_file():
        check_run_file(trained, "axes.json")
        axes, group = Axes(**json.loads((trained / "axes.json").read_text())), trained.parent.name
    else:
        family = find_family(resolve_model(model["student"], None)[0], settings.student_family)
        axes = Axes(None, None, name_model(model["student"]), family, model["arm"], None, None, None, model["seed"], "")
        group = "default"
    axes = replace(axes, task=join_tasks(questions.values()))
    begin = partial(
        wandb.init,
        project=settings.project,
        group=settings.group or group,
        name=output.stem,
        id=hash_json({**config, "output": str(output)})[:10],
        resume="allow",
        dir=output.parent.absolute(),
        job_type="evaluate",
        tags=axes.tags,
        config={**config, **asdict(axes)},
        settings=wandb.Settings(silent=True),
    )
    experiment = begin_run(lambda mode: begin(mode=mode), mode, settings.enabled)
    values = defaultdict(list)
    for name, value in ((name, estimate.value) for own in metrics.values() for name, estimate in own.items()):
        values[f"test/{name}"].append(value)
    shown: dict[str, Any] = {name: fmean(of_tasks) for name, of_tasks in values.items()}
    if len(metrics) > 1:
        shown |= {f"test/{task}/{name}": own[name].value for task, own in metrics.items() for name in own}
    references = data.collect_reference_texts()
    columns: list[str | int] = ["question", "gold", "teacher_rationale", "completion", "answer", "correct"]
    table = wandb.Table(columns=columns)
    for record in sorted(records, key=lambda record: hash_text(record["question_id"]))[: settings.samples]:
        question = questions[record["question_id"]]
        rationale = next((text for texts in references.get(question.id, {}).values() for text in texts), None)
        answer, correct = record["answer_neutral"], record["correct_neutral"]
        table.add_data(format_question(question), question.gold, rationale, record["completion"], answer, correct)
    experiment.log({**shown, "test/predictions": table})
    experiment.finish()
