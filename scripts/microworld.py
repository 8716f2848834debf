"""The microworld's entry point: writes its questions, and re-creates its model families from nothing.

python scripts/microworld.py questions --num 500 --split train --seed 0 --out data/microworld/train.jsonl
python scripts/microworld.py pretrain --config configs/microworld/a.yaml
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules.microworld import Family, generate_questions
from lightning_modules.pretraining import Recipe, evaluate, pretrain, save, train_tokenizer


def questions(num: int, split: Literal["train", "validation", "test"], seed: int, out: Path) -> None:
    """Writes questions, one JSON object a line, atomically.

    Args:
        num: How many questions.
        split: Which split; splits never share a question, whatever the seeds.
        seed: Seed of the list.
        out: The jsonl file.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for question in generate_questions(num, split, seed):
                file.write(json.dumps(question, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    print(f"{num} questions of split {split} in {out}")


def pretrain_family(
    family: Family,
    vocab: int,
    student: Recipe,
    teacher: Recipe,
    out: Path = Path("configs/models/microworld"),
    held_out: int = 400,
    threads: int = 1,
) -> None:
    """Trains a family's tokenizer, its student, and the teacher grown from it, and prints their held-out accuracy.

    Args:
        family: "a" (Llama, unigram) or "b" (GPT-NeoX, BPE).
        vocab: Upper bound of the tokenizer's vocabulary.
        student: How the student is pre-trained: on single steps only.
        teacher: How the teacher goes on from the student: deeper, and on whole chains, too.
        out: Folder that receives `FAMILY-ROLE` folders.
        held_out: How many validation questions to measure on.
        threads: CPU threads. The weights repeat bit by bit only on the same machine with the same threads.
    """
    import torch

    torch.set_num_threads(threads)
    tokenizer = train_tokenizer(family, vocab)
    model = None
    for role, recipe in (("student", student), ("teacher", teacher)):
        folder = out / f"{family}-{role}"
        model = pretrain(tokenizer, family, role, recipe, start=model)
        save(model, tokenizer, folder)
        accuracy, completions = evaluate(folder, held_out)
        print(f"{folder}: accuracy {accuracy:.3f} on {held_out} held-out questions, e.g. {completions[0]!r}")


if __name__ == "__main__":
    auto_cli({"questions": questions, "pretrain": pretrain_family})
