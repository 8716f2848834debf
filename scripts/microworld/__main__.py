"""The microworld's entry point: writes its questions, and re-creates its model families from nothing.

python -m scripts.microworld questions --num 500 --split train --seed 0 --out data/microworld/train.jsonl
python -m scripts.microworld pretrain --config configs/microworld/a.yaml
"""

import sys
from pathlib import Path

from scripts.common.entry import run_main
from scripts.common.help import answer_command

if __name__ == "__main__":
    # Before the imports that take seconds.
    run_main(lambda: answer_command("microworld", sys.argv[1:]), str(Path(__file__).parent))

from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from datamodules.files.atomic import write_jsonl
from datamodules.tasks.microworld import Family, Role, generate_questions
from scripts.microworld.pretraining import Recipe, evaluate, pretrain, save, train_tokenizer


def questions(num: int, split: Literal["train", "validation", "test"], seed: int, out: Path) -> None:
    """Writes questions, one JSON object a line, atomically.

    Args:
        num: How many questions.
        split: Which split; splits never share a question, whatever the seeds.
        seed: Seed of the list.
        out: The jsonl file.
    """
    write_jsonl(out, generate_questions(num, split, seed))
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
    torch.set_num_threads(threads)
    tokenizer = train_tokenizer(family, vocab)
    model = None
    recipes: dict[Role, Recipe] = {"student": student, "teacher": teacher}
    for role, recipe in recipes.items():
        folder = out / f"{family}-{role}"
        model = pretrain(tokenizer, family, role, recipe, start=model)
        save(model, tokenizer, folder)
        accuracy, completions = evaluate(folder, held_out)
        print(f"{folder}: accuracy {accuracy:.3f} on {held_out} held-out questions, e.g. {completions[0]!r}")


def run_command(args: list[str] | None = None) -> None:
    """Runs the subcommand that the first argument names."""
    commands: Any = {"questions": questions, "pretrain": pretrain_family}
    auto_cli(commands, args, as_positional=False, exit_on_error=False)


if __name__ == "__main__":
    run_main(run_command, str(Path(__file__).parent))
