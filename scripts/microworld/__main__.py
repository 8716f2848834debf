"""The microworld's entry point: writes its questions, and re-creates its model families from nothing.

python -m scripts.microworld questions --num 500 --split train --seed 0 --out data/microworld/train.jsonl
python -m scripts.microworld pretrain --config configs/microworld/bpe-neox-a.yaml
"""

import sys
from dataclasses import asdict
from pathlib import Path

from scripts.common.entry import run_main
from scripts.common.help import answer_command

if __name__ == "__main__":
    # Before the imports that take seconds.
    run_main(lambda: answer_command("microworld", sys.argv[1:]), str(Path(__file__).parent))

from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from datamodules.files.atomic import remove_torn, require_file, write_jsonl
from datamodules.files.locks import hold
from datamodules.files.parsing import read_json
from datamodules.tasks.microworld import Phrasing, Role, generate_questions
from scripts.microworld.families import Architecture, Parts, TokenizerKind, train_tokenizer
from scripts.microworld.pretraining import RECORD, Recipe, finish, pretrain


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
    tokenizer: TokenizerKind,
    architecture: Architecture,
    phrasing: Phrasing,
    student: Recipe,
    teacher: Recipe,
    seed: int = 0,
    out: Path = Path("configs/models/microworld"),
    state: Path = Path("data/microworld/pretraining"),
    held_out: int = 400,
    every: int = 100,
    threads: int = 1,
) -> None:
    """Trains a family's tokenizer, its student, and the teacher grown from it, and prints their held-out accuracy.

    A model that is there already is kept, and one that a kill stopped goes on, to the same weights to the bit. A
    model that misses its recipe's bounds of accuracy is not written.

    Args:
        tokenizer: A part of the family: its tokenizer.
        architecture: A part of the family: its models' architecture, like Llama or like GPT-NeoX.
        phrasing: A part of the family: how the text of its pre-training words a step.
        student: How the student is pre-trained: on single steps only.
        teacher: How the teacher goes on from the student: deeper, and on whole chains, too.
        seed: A part of the family: the seed of its initialisation. Text and its order do not depend on it.
        out: Folder that receives the folders `TOKENIZER-ARCHITECTURE-PHRASING[-initSEED]-ROLE`.
        state: Folder that keeps what is done of a model that is not finished.
        held_out: How many validation questions to measure on.
        every: After how many steps what is done is kept.
        threads: CPU threads. The weights repeat bit by bit only on the same machine with the same threads.

    Raises:
        ValueError: A model misses a bound, or a folder or a state is there that another recipe made.
    """
    torch.set_num_threads(threads)
    parts = Parts(tokenizer, architecture, phrasing, seed)
    trained: PreTrainedTokenizerBase | None = None
    start: Role | None = None
    recipes: dict[Role, Recipe] = {"student": student, "teacher": teacher}
    for role, recipe in recipes.items():
        folder, kept = out / f"{parts.name}-{role}", state / f"{parts.name}-{role}.safetensors"
        made_by = {"family": asdict(parts), "role": role, "recipe": asdict(recipe)}
        if not folder.exists():
            trained = trained or train_tokenizer(tokenizer)
            begun: PreTrainedModel | None = (
                AutoModelForCausalLM.from_pretrained(out / f"{parts.name}-{start}") if start else None
            )
            with hold(kept.with_suffix(".lock"), f"{folder}: another process makes it"):
                remove_torn(kept.parent, kept.name)
                remove_torn(out, folder.name)
                model = pretrain(trained, parts, role, recipe, kept, begun, every)
                finish(model, trained, folder, made_by, recipe, held_out)
        kept.unlink(missing_ok=True)
        record = read_json(require_file(folder / RECORD, "what made a model"))
        if record["made_by"] != made_by:
            raise ValueError(f"{folder}: was made by another recipe; remove it, or choose another --out")
        print(f"{folder}: accuracy {record['accuracy']:.3f} on {record['held_out']} held-out questions", flush=True)
        start = role


def run_command(args: list[str] | None = None) -> None:
    """Runs the subcommand that the first argument names."""
    commands: Any = {"questions": questions, "pretrain": pretrain_family}
    auto_cli(commands, args, as_positional=False, exit_on_error=False)


if __name__ == "__main__":
    run_main(run_command, str(Path(__file__).parent))
