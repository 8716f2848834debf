"""What targets from another tokenizer add to an optimizer step, loading included: the microworld's smaller student."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L

from datamodules.batches.packing import BatchSize, TrainingBatches
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.examples.source import ExampleEncoding
from datamodules.logit_cache.aligned import AlignmentSettings
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.rationales.controls import DistillationControls
from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.questions import load_questions
from lightning_modules.run.writers import CacheWriter
from lightning_modules.student.student import DistillationModule
from lightning_modules.teacher.teacher import LogitScorer
from losses.distillation import DistillationLoss
from studies.inputs.cache_runs import MICROWORLD

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
WRITER, TOKENS = "microworld", 4096


class _Clock(L.Callback):
    """Takes the processor's time between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.process_time())


def _write_texts(path: Path, questions: str) -> None:
    rationales = [
        Rationale(
            question_id=question.id,
            task=question.task,
            split=question.split,
            teacher=WRITER,
            family="a",
            sample=0,
            text=f"{question.question} It can {question.choice(str(question.gold))}.",
            answer=question.gold,
            correct=True,
            finish_reason="stop",
            prompt_id="plain",
        )
        for question in load_questions(questions)
    ]
    write_rationales(path, rationales, {})


def _capture(folder: Path, questions: str, family: str) -> None:
    teacher, encoding = str(MICROWORLD / f"{family}-teacher"), ExampleEncoding(500, cache_dir=str(folder / "tokenized"))
    texts = [str(folder / "texts.parquet")]
    data = RationaleDataModule(teacher, questions, texts, "plain", encoding=encoding, batches=BatchSize(TOKENS))
    scorer = LogitScorer(teacher)
    data.setup("predict")
    writer = LogitCacheWriter(folder / family, scorer.describe(data.fingerprint, data.prompt.id, len(data.tokenizer)))
    trainer = L.Trainer(**QUIET, callbacks=[CacheWriter(writer, {})])
    trainer.predict(scorer, data, return_predictions=False)


def _time_steps(folder: Path, questions: str, family: str, kind: Any) -> list[float]:
    student = str(MICROWORLD / "b-student")
    data = DistillationDataModule(
        student,
        questions,
        "rationale+logits",
        [str(folder / "texts.parquet")],
        [str(folder / family)],
        alignment=AlignmentSettings(kind=kind),
        prompt="plain",
        encoding=ExampleEncoding(500, cache_dir=str(folder / "tokenized")),
        controls=DistillationControls(logits_teacher=f"{family}-teacher"),
        batches=TrainingBatches(TOKENS, tokens_per_step=TOKENS),
    )
    clock = _Clock()
    trainer = L.Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=0, callbacks=[clock])
    trainer.fit(DistillationModule(student, DistillationLoss(kl_weight=0.5)), data)
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


def measure_cross_steps(num_questions: int, rounds: int) -> dict[str, float]:
    """Returns the median of the processor's seconds of a step by alignment; all take turns.

    Student and texts are the same; `refuse` reads a cache of the student's own tokenizer, the others a foreign one.

    Args:
        num_questions: Of the microworld, whose texts are learnt.
        rounds: How often each trains for two epochs.
    """
    questions = f"microworld:train:{num_questions}:0"
    runs = {"refuse": "b", "strict": "a", "bytes": "a", "chunks": "a"}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_texts(folder / "texts.parquet", questions)
        for family in ("a", "b"):
            _capture(folder, questions, family)
        for _ in range(rounds):
            for kind, family in runs.items():
                times[kind] += _time_steps(folder, questions, family, kind)
    return {kind: statistics.median(taken) for kind, taken in times.items()}
