"""Two teachers of ten questions, and what a student learns from them."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.distillation import DistillationDataModule
from tests.tiny import build, make_questions, make_rationale, save_model, write_questions, write_store

QUESTIONS = make_questions(10)


def write_two_teachers(folder: Path) -> None:
    """Two teachers of one tokenizer, three rationales of each for every question: the second is wrong."""
    write_questions(folder / "colours_train.jsonl", QUESTIONS)
    for seed, name in enumerate(("ada", "bob")):
        model = save_model(folder / name, seed=seed)
        rationales = [
            make_rationale(question, name, sample, right=sample != 1) for question in QUESTIONS for sample in range(3)
        ]
        write_store(folder / f"{name}.parquet", rationales, model)


def make_data(
    folder: Path, stores: tuple = ("ada",), logits: tuple = (), more_logits: Sequence[str] = (), **options
) -> DistillationDataModule:
    data = build(
        DistillationDataModule,
        str(folder / "ada"),
        str(folder / "colours_train.jsonl"),
        rationales=[str(folder / f"{name}.parquet") for name in stores],
        logits=[*(str(folder / f"{name}-logits") for name in logits), *more_logits],
        **{"prompt": "plain", "supervision": "rationale+logits" if logits else "rationale", **options},
    )
    data.setup("fit")
    return data
