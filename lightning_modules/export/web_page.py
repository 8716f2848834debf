"""A folder with a web page that runs a student's GGUF file in a browser; it asks nothing of any other place."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.examples.tokenization import load_tokenizer
from datamodules.files.atomic import hash_path
from datamodules.files.parsing import read_json_object
from datamodules.text.plain_text import clean_line, shorten
from lightning_modules.export.card import find_prompt, read_card
from lightning_modules.export.gguf_export import writing_folder
from lightning_modules.export.web_prompt import describe_answers, describe_prompt, list_refused
from lightning_modules.export.web_runtime import COMPAT, VERSION, WLLAMA, find_files
from lightning_modules.model.llama_cpp import LlamaCpp

PAGE, STUDENT, MODEL = Path(__file__).with_name("page"), "student.json", "student.gguf"
# A browser holds the file in one piece, which cannot be longer.
LARGEST = 2**31 - 1
# Most tokens of a prompt with its answer: a phone's memory must hold them.
CONTEXT = 2048
# What of a card a page shows, and what it is called there.
_FACTS = {
    "student": "Student",
    "type": "Weights",
    "parameters": "Parameters",
    "teachers": "Teachers",
    "data": "Learned from",
    "student_results": "Accuracy before rounding",
    "kl": "Differs from the student by, nats a token",
}


@dataclass(frozen=True)
class Page:
    """What a page's folder is made of.

    Attributes:
        content: Its `student.json`: the prompt, facts about the student, and the hashes of the other files.
        sources: Where each other file is copied from, by its name.
    """

    content: dict[str, Any]
    sources: dict[str, Path]


def _say(value: object) -> str:
    """Returns a value of a card as a text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_say(own)}" for key, own in value.items())
    if isinstance(value, list):
        return "; ".join(map(_say, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def collect_page(student: str, prompt: str | None, runtime: Path, compat: Path | None, max_new_tokens: int) -> Page:
    """Returns the page of a student.

    Args:
        student: Its GGUF file.
        prompt: How it is asked; None takes what the file's card says.
        runtime: The folder of the npm package wllama.
        compat: That of wllama-compat, for browsers that need it; None leaves it out.
        max_new_tokens: Of an answer.

    Raises:
        ValueError: The file is none, or too large; the runtime is not known; or llama.cpp would read the prompts
            otherwise than evaluate poses them.
    """
    path = Path(student)
    if path.is_file() and path.stat().st_size > LARGEST:
        raise ValueError(f"{student}: is larger than the {LARGEST:,} bytes of a browser; export fewer bits a weight")
    card = read_card(path)
    if (own := find_prompt(card, prompt)) is None:
        raise ValueError(f"--prompt: say how the student is asked, since {student} does not")
    files = find_files(runtime, WLLAMA) | ({} if compat is None else find_files(compat, COMPAT))
    tokenizer = load_tokenizer(student)
    engine = LlamaCpp(student, longest=CONTEXT)
    try:
        engine.check(tokenizer, 1, "a text", -1)
        context, posed = engine.room, describe_prompt(engine, tokenizer, own)
        refused = list_refused(engine, tokenizer)
    finally:
        engine.close()
    if max_new_tokens >= context:
        raise ValueError(f"--max_new_tokens: {max_new_tokens} leave no room for a prompt in {context} tokens")
    facts = [
        [label, shorten(clean_line(_say(card[key])), 500)]
        for key, label in _FACTS.items()
        if card.get(key) not in (None, {})
    ]
    sources = {**{file.name: file for file in sorted(PAGE.iterdir())}, **files, MODEL: path}
    content = {
        "name": shorten(clean_line(path.stem), 100),
        "prompt": posed,
        "answers": describe_answers(own),
        "refused": refused,
        "context": context,
        "max_new_tokens": max_new_tokens,
        "bytes": path.stat().st_size,
        "compat": compat is not None,
        "facts": [*facts, ["Bytes", f"{path.stat().st_size:,}"], ["Runs by", f"llama.cpp ({WLLAMA.name} {VERSION})"]],
        "files": {name: hash_path(source) for name, source in sources.items()},
    }
    # As it is read again, so that both can be compared.
    return Page(json.loads(json.dumps(content)), sources)


def is_written(page: Page, output: Path) -> bool:
    """Says whether a folder holds this very page."""
    if not (output / STUDENT).is_file() or read_json_object(output / STUDENT) != page.content:
        return False
    files = page.content["files"]
    return all((output / name).is_file() and hash_path(output / name) == own for name, own in files.items())


def write_page(page: Page, output: Path) -> int:
    """Writes a page's folder, whole or not at all, and returns its bytes.

    Raises:
        ValueError: The folder is there, or is written by another process, or the disk is full.
    """
    with writing_folder(output) as folder:
        for name, source in page.sources.items():
            # Not `copyfile`, whose errors name the source.
            with source.open("rb") as read, (folder / name).open("wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
        (folder / STUDENT).write_text(json.dumps(page.content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in output.iterdir())
