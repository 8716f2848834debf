"""A tiny world on disk, made once: models, questions, rationales, logit caches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.distillation import DistillationDataModule
from tests.tiny import build, capture, make_questions, make_rationale, save_model, write_questions, write_store


@dataclass(frozen=True)
class World:
    """Paths of what a pipeline reads."""

    folder: Path
    teacher: str
    student: str
    questions: str
    rationales: str
    logits: str
    full_logits: str

    def teach(self, **settings: Any) -> DistillationDataModule:
        """Returns the teacher's rationales as the student reads them, posed plainly, with further settings."""
        own = {"rationales": [self.rationales], "prompt": "plain"}
        return build(DistillationDataModule, self.student, self.questions, **own, **settings)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-equality and tiny models: more threads only cost."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Eight questions; a teacher's rationales of them; its logits with k = 8 and with the whole vocabulary."""
    folder = tmp_path_factory.mktemp("world")
    teacher, student = save_model(folder / "teacher", seed=1), save_model(folder / "student", seed=2, padding=5)
    items = make_questions(8)
    questions = write_questions(folder / "colours_train.jsonl", items)
    rationales = write_store(folder / "r.parquet", [make_rationale(item, "teacher") for item in items], teacher)
    logits = capture(folder / "logits", teacher, questions, [rationales])
    full = capture(folder / "full", teacher, questions, [rationales], top_k=300, values="float16")
    return World(folder, teacher, student, questions, rationales, logits, full)
