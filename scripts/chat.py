"""Talks with a student in the terminal: each question is answered as it learned to, rationale first.

    python -m scripts.chat runs/GROUP/ID                        # a run's student, by transformers
    python -m scripts.chat exported/student-Q4_K_M.gguf         # the same as it runs elsewhere, by llama.cpp

A line is a question; options follow it, each after a `|`: `Which is soft? | a stone | a pillow`. ^C ends an answer, and
at the question the conversation.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datamodules.answers.extractors import extract_neutral, split_answer_sentence
from datamodules.files.command_line import CommandLine, parse_count
from datamodules.files.parsing import read_yaml
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question
from datamodules.tasks.records import LETTERS
from lightning_modules.export.card import describe_run, find_prompt, read_card
from scripts.common.entry import quiet_libraries, run_main

# Most tokens of a question with its prompt: room for a file's whole context may be gigabytes.
LONGEST_PROMPT = 2048
_SENTENCE_END = re.compile(r"[.!?。！？]\s+(?=\S)|\n(?=\S)")
# Continues token ids by so many at most, and shows all so far each time there is one more.
Continue = Callable[[list[int], Callable[[list[int]], bool]], list[int]]


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="a run's folder, a student's, or a GGUF file")
    parser.add_argument("--prompt", help="how the student is asked; a run's or a file's own by default, else cot")
    parser.add_argument("--max_new_tokens", type=parse_count, default=256, help="of an answer (256)")
    return parser.parse_args(sys.argv[1:] if args is None else args)


def read_question(line: str) -> Question:
    """Returns the question that a line asks.

    Raises:
        ValueError: It has no text, or one option alone, or too many.
    """
    text, *options = (part.strip() for part in line.split("|"))
    if not text or len(options) == 1 or len(options) > len(LETTERS) or "" in options:
        raise ValueError("a line is a question, or a question | an option | another option")
    return Question("asked", "chat", "test", text, tuple(options) or None, None)


def load(student: str, most: int) -> tuple[Any, Continue, int]:
    """Returns a student's tokenizer, what continues its prompts, and how many tokens of a prompt there is room for.

    Raises:
        ValueError: It cannot be loaded, or its context has no room for so many tokens.
    """
    # They take seconds, which --help need not wait for.
    from datamodules.examples.encoding import find_end_tokens
    from datamodules.examples.tokenization import load_tokenizer
    from lightning_modules.model.generation import generate_completions
    from lightning_modules.model.llama_cpp import LlamaCpp
    from lightning_modules.model.pretrained import check_model, load_causal_lm

    tokenizer, what = load_tokenizer(student), "--max_new_tokens with a prompt"
    ends = find_end_tokens(tokenizer)
    if student.endswith(".gguf"):
        engine = LlamaCpp(student, longest=LONGEST_PROMPT + most)
        engine.check(tokenizer, most + 1, what, -1)

        def continue_by_llama_cpp(prompt: list[int], show: Callable[[list[int]], bool]) -> list[int]:
            engine.forget()
            return engine.generate(prompt, ends, most, has_stopped=show)[0]

        return tokenizer, continue_by_llama_cpp, engine.room - most
    check_model(student, None, None, most + 1, what)
    model = load_causal_lm(student).eval().requires_grad_(False)

    def continue_by_transformers(prompt: list[int], show: Callable[[list[int]], bool]) -> list[int]:
        return generate_completions(model, [prompt], ends, most, has_stopped=show)[0][0]

    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = LONGEST_PROMPT if context is None else min(LONGEST_PROMPT, context - most)
    return tokenizer, continue_by_transformers, room


def read_lines() -> Iterator[str]:
    """Yields what is asked, until the input ends or ^C."""
    while True:
        try:
            line = input("question> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip():
            yield line


def main(args: list[str] | None = None) -> None:
    """Answers until there is no more question."""
    given = parse(args)
    from datamodules.examples.encoding import decode_completion
    from datamodules.examples.tokenization import encode_prompt

    quiet_libraries()
    path = Path(given.student)
    card = read_card(path) if path.suffix == ".gguf" and path.is_file() else {}
    if (path / "student").is_dir() and (path / "config.yaml").is_file():
        card, path = describe_run(read_yaml(path / "config.yaml")["data"]), path / "student"
    prompt = find_prompt(card, given.prompt) or get_prompt("cot")
    tokenizer, continue_ids, room = load(str(path), given.max_new_tokens)
    for line in read_lines():
        try:
            question = read_question(line)
            _, ids = encode_prompt(tokenizer, prompt, question)
            if len(ids) > room:
                raise ValueError(f"the question is {len(ids)} tokens with its prompt, more than {room}; shorten it")
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        shown = 0

        def show(so_far: list[int]) -> bool:
            nonlocal shown
            text = decode_completion(tokenizer, so_far).strip()
            # The last sentence may be the answer.
            *_, end = (0, *(match.end() for match in _SENTENCE_END.finditer(text)))
            print(text[shown:end], end="", flush=True)
            shown = max(shown, end)
            return False

        print("rationale: ", end="", flush=True)
        try:
            text = decode_completion(tokenizer, continue_ids(ids, show)).strip()
        except KeyboardInterrupt:
            print(" [stopped]")
            continue
        rationale, sentence = split_answer_sentence(text, question) or (text, "")
        found = extract_neutral(text, question)
        stated = f"{sentence} ({found.answer})" if found and sentence else found.answer if found else "none is stated"
        print(f"{rationale[shown:]}\nanswer: {stated}")


if __name__ == "__main__":
    run_main(main, __file__)
