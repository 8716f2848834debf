"""A student's prompt for a web page: in parts that the page fills in, checked against what evaluate poses."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import check_template_options, list_controls, render_chat
from datamodules.examples.tokenization import encode_prompts
from datamodules.tasks.prompts import Prompt, list_exemplars, word_prompt
from datamodules.tasks.questions import AnswerKind, Question, load_questions
from datamodules.text.languages import ENGLISH
from lightning_modules.model.llama_cpp import LlamaCpp

# What a page asks: it knows no expressions.
KINDS: tuple[AnswerKind, ...] = ("choice", "boolean", "number")


def list_probes() -> list[Question]:
    """Returns questions of each kind, on which a page's prompts are compared with evaluate's."""
    own = [question for kind in KINDS for question, _, _ in list_exemplars(kind, ENGLISH)]
    return [*own, *load_questions("microworld:test:8:0")]


def fill(parts: dict[str, Any], question: Question) -> str:
    """Returns the prompt that a page poses, as its script fills it in."""
    lines = [f"{letter}) {choice}" for letter, choice in zip(question.letters, question.choices or (), strict=True)]
    values = {"question": question.question, "choices": "\n".join(lines), "letters": ", ".join(question.letters)}
    message = "".join(text + values.get(name, "") for text, name in parts["parts"][question.kind])
    return f"{parts['before']}{message}{parts['after']}"


def describe_prompt(engine: LlamaCpp, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> dict[str, Any]:
    """Returns how a page poses questions of each kind, without the start token that llama.cpp puts before a text.

    Args:
        engine: The student's GGUF file.
        tokenizer: The file's.
        prompt: How the student is asked.

    Raises:
        ValueError: llama.cpp would read a prompt as other tokens than evaluate poses.
    """
    check_template_options(tokenizer, prompt.template_options)
    chat = bool(tokenizer.chat_template)
    before, after = "", ""
    if chat:
        before, _, after = (piece.text for piece in render_chat(tokenizer, "KINDRED", prompt.template_options))
    start = "" if engine.bos_id is None else str(tokenizer.convert_ids_to_tokens(engine.bos_id))
    parts = {
        "name": prompt.name,
        "before": before.removeprefix(start),
        "after": after,
        "parts": {kind: prompt.list_parts(kind, chat) for kind in KINDS},
    }
    _check(engine, tokenizer, prompt, parts, start, list_probes())
    return parts


def _check(
    engine: LlamaCpp,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    parts: dict[str, Any],
    start: str,
    probes: Sequence[Question],
) -> None:
    unknown, compared = tokenizer.unk_token_id, 0
    for question, (text, ids) in zip(probes, encode_prompts(tokenizer, prompt, probes), strict=True):
        own = fill(parts, question)
        if own != text.removeprefix(start):
            raise ValueError(
                f"{engine.path}: what its chat template writes depends on the question; no page can pose it alike"
            )
        # What llama.cpp does with characters that there is no token for is its own.
        if unknown is not None and unknown in ids:
            continue
        compared += 1
        if (found := engine.tokenize(own, add_special=True, parse_special=True)) != ids:
            raise ValueError(
                f"{engine.path}: llama.cpp reads the prompt {json.dumps(own[-40:])} as tokens {found[:12]}, but "
                f"evaluate poses {ids[:12]}; export the student's own file"
            )
    if not compared:
        raise ValueError(f"{engine.path}: its tokenizer has no tokens for any of {len(probes)} questions")


def describe_answers(prompt: Prompt) -> dict[str, tuple[str, str]]:
    """Returns, by kind, what a student learned to write before its answer and after it."""
    own = word_prompt(prompt.name, ENGLISH, ENGLISH)
    sentences = {kind: own.number if kind == "number" else own.answer for kind in KINDS}
    return {kind: (text[: text.index("{")], text[text.rindex("}") + 1 :]) for kind, text in sentences.items()}


def list_refused(engine: LlamaCpp, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns what no question may hold: the names of control tokens, which llama.cpp in a browser reads as these."""
    return sorted({*engine.list_controls(), *list_controls(tokenizer).values()} - {""})
