"""One training of the comparison across tokenizers, its answers, and its likelihood of texts that were held out."""

import random
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch

from datamodules.annotation import QuestionDataModule
from datamodules.batches.packing import BatchSize, TrainingBatches
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.evaluation import EvaluationDataModule
from datamodules.examples.encoding import PromptEncoding
from datamodules.examples.source import ExampleEncoding
from datamodules.files.atomic import write_jsonl
from datamodules.logit_cache.aligned import AlignmentSettings
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.rationales.controls import DistillationControls
from datamodules.rationales.store import Rationale, read_flat_rationales, write_rationales
from datamodules.tasks.microworld import generate_questions
from lightning_modules.evaluation.evaluator import Evaluator
from lightning_modules.evaluation.reference_scores import ReferenceScorer
from lightning_modules.run.writers import CacheWriter
from lightning_modules.student.student import DistillationModule
from lightning_modules.teacher.annotator import Annotator
from lightning_modules.teacher.teacher import LogitScorer
from losses.distillation import DistillationLoss
from scripts.benchmarks.across import retokenized
from scripts.benchmarks.across.sorted_logits import SortedLogitsModule, sort_caches
from studies.inputs.cache_runs import MICROWORLD
from studies.inputs.cross_steps import QUIET

Arm = Literal["text", "uld", "strict", "bytes", "chunks", "logits"]
LONGEST, TOKENS = 500, 1024


@dataclass(frozen=True)
class Scale:
    """How large the comparison is.

    Attributes:
        pool: Questions that training questions are drawn from.
        tests: Questions that are asked, and of whose rationales the likelihood is measured.
        steps: Optimizer steps of each training.
        pretraining: Steps in which the retokenized student reads.
    """

    pool: int = 1024
    tests: int = 100
    steps: int = 64
    pretraining: int = 200


@dataclass(frozen=True)
class Cell:
    """One training: whose student learns from whose texts, how, and from which questions.

    Attributes:
        student: a, b, or c, which is b with another tokenizer.
        teacher: a or b.
        arm: text alone, sorted logits, an alignment, or logits of the student's own tokenizer.
        n: Number of training questions.
        seed: Draws them, and their order.
    """

    student: str
    teacher: str
    arm: Arm
    n: int
    seed: int


@dataclass(frozen=True)
class Bench:
    """The comparison's files, and its trainings.

    Attributes:
        folder: Where texts, caches and students are kept.
        scale: How large it is.
        new_tokens: Truncates an answer.
    """

    folder: Path
    scale: Scale = Scale()
    new_tokens: int = 96

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """The pool."""
        return generate_questions(self.scale.pool, "train", 0)

    def draw(self, teacher: str, n: int, seed: int) -> tuple[str, str]:
        """Writes so many questions of the pool, of which fewer are the first of more, and their rationales."""
        path, texts = self.folder / f"train-{n}-{seed}.jsonl", self.folder / f"{teacher}-{n}-{seed}.parquet"
        drawn = random.Random(seed).sample(self.questions, len(self.questions))[:n]
        write_jsonl(path, drawn)
        ids = {question["id"] for question in drawn}
        pool = read_flat_rationales(str(self.folder / f"{teacher}-train.parquet"))
        write_rationales(texts, [rationale for rationale in pool if rationale.question_id in ids], {})
        return str(path), str(texts)

    def find_model(self, model: str) -> str:
        """Returns the name of a student, or of a teacher, which is called `a-teacher` or `b-teacher`."""
        if model == "c":
            return str(self.folder / "c-student")
        return str(MICROWORLD / (model if model.endswith("teacher") else f"{model}-student"))

    def name_teacher(self, teacher: str) -> str:
        """Returns what the logit cache calls a teacher."""
        return f"{teacher}-teacher"

    def prepare(self) -> None:
        """Writes what is not there: texts of both teachers, their logits of their own, and the third student."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.folder / "train.jsonl", self.questions)
        write_jsonl(self.folder / "test.jsonl", generate_questions(self.scale.tests, "test", 0))
        for family in ("a", "b"):
            for split in ("train", "test"):
                if not (self.folder / f"{family}-{split}.parquet").is_file():
                    self._annotate(family, split)
            if not (self.folder / f"{family}-logits").is_dir():
                self.capture(family, f"{family}-teacher")
        retokenized.build(Path(self.find_model("c")), self.scale.pretraining)

    def _annotate(self, family: str, split: str) -> None:
        teacher = self.find_model(f"{family}-teacher")
        encoding, questions = PromptEncoding(LONGEST), str(self.folder / f"{split}.jsonl")
        data = QuestionDataModule(teacher, questions, "plain", encoding=encoding, batches=BatchSize(32768))
        annotator = Annotator(teacher, max_new_tokens=self.new_tokens, family=family)
        batches: Any = L.Trainer(**QUIET).predict(annotator, data)
        records = [{name: value for name, value in one.items() if name != "revision"} for own in batches for one in own]
        rationales = sorted((Rationale(**record) for record in records), key=lambda rationale: rationale.question_id)
        write_rationales(self.folder / f"{family}-{split}.parquet", rationales, {})

    def capture(self, name: str, model: str) -> None:
        """Writes a teacher's logits of the pool's texts of this name."""
        teacher, texts = self.find_model(model), [str(self.folder / f"{name}-train.parquet")]
        questions = str(self.folder / "train.jsonl")
        data = RationaleDataModule(
            teacher, questions, texts, "plain", encoding=self._encoding, batches=BatchSize(TOKENS)
        )
        scorer = LogitScorer(teacher)
        data.setup("predict")
        made = scorer.describe(data.fingerprint, data.prompt.id, len(data.tokenizer))
        writer = LogitCacheWriter(self.folder / f"{name}-logits", made)
        trainer = L.Trainer(**QUIET, callbacks=[CacheWriter(writer, {})])
        trainer.predict(scorer, data, return_predictions=False)

    @property
    def _encoding(self) -> ExampleEncoding:
        return ExampleEncoding(LONGEST, cache_dir=str(self.folder / "tokenized"))

    def run(self, cell: Cell) -> dict[str, Any]:
        """Trains and asks; returns the cell with `correct` of each test question and `nll` of its rationale, in nats.

        The rationales are the teacher's of the test questions. `coverage` is the share of the training's rows in each
        class of alignment.
        """
        student = self.find_model(cell.student)
        aligned = {"strict": "strict", "bytes": "bytes", "chunks": "chunks", "uld": "strict"}.get(cell.arm, "refuse")
        has_logits = cell.arm != "text"
        kind: Any = aligned
        questions, texts = self.draw(cell.teacher, cell.n, cell.seed)
        data = DistillationDataModule(
            student,
            questions,
            "rationale+logits" if has_logits else "rationale",
            [texts],
            [str(self.folder / f"{cell.teacher}-logits")] if has_logits else None,
            alignment=AlignmentSettings(kind=kind),
            prompt="plain",
            encoding=self._encoding,
            controls=DistillationControls(logits_teacher=self.name_teacher(cell.teacher) if has_logits else None),
            batches=TrainingBatches(TOKENS, tokens_per_step=TOKENS, order_seed=cell.seed),
        )
        data.setup("fit")
        coverage = data.coverage
        loss = DistillationLoss(kl_weight=0.5 if has_logits else 0.0)
        kind_of_module = DistillationModule
        if cell.arm == "uld":
            caches: Any = data.cache_of_example
            sorted_caches: Any = sort_caches(caches)
            data.cache_of_example, kind_of_module = sorted_caches, SortedLogitsModule
        module = kind_of_module(student, loss, learning_rate=2e-3)
        L.seed_everything(cell.seed, verbose=False)
        trainer = L.Trainer(**QUIET, max_epochs=-1, max_steps=self.scale.steps, num_sanity_val_steps=0)
        trainer.fit(module, data)
        return asdict(cell) | self._ask(student, cell.teacher, module.model) | {"coverage": coverage}

    def _ask(self, student: str, teacher: str, model: Any) -> dict[str, Any]:
        data = EvaluationDataModule(
            student,
            str(self.folder / "test.jsonl"),
            references=[str(self.folder / f"{teacher}-test.parquet")],
            prompt="plain",
            encoding=PromptEncoding(LONGEST),
            batches=BatchSize(32768),
        )
        evaluator = Evaluator(student, max_new_tokens=self.new_tokens, score_options=False)
        model.config.use_cache = True
        evaluator.model, evaluator._scorer = model.eval().requires_grad_(False), ReferenceScorer(model)
        with torch.inference_mode():
            batches: Any = L.Trainer(**QUIET).predict(evaluator, data)
        records = sorted((record for own in batches for record in own), key=lambda record: record["question_id"])
        nll = [-np.mean([score["log_likelihood"] for score in record["references"]]) for record in records]
        return {
            "correct": [int(record["correct_neutral"]) for record in records],
            "nll": [round(float(value), 5) for value in nll],
        }
