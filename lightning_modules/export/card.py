"""The card of a GGUF file: what was found about it when it was exported, in its metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.files.gguf_metadata import read_texts
from datamodules.files.parsing import parse_json_object
from datamodules.tasks.prompts import Prompt, PromptLanguage, get_prompt

CARD, CARD_KEY = "card.json", "kindred.card"


def read_card(path: Path) -> dict[str, Any]:
    """Returns the card in a GGUF file; empty where another program wrote it.

    Raises:
        ValueError: It is no GGUF file, or is damaged.
    """
    magic = b""
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path}: is no GGUF file; write one first: python -m scripts.export gguf")
    text = read_texts(path).get(CARD_KEY)
    return {} if text is None else parse_json_object(text, path)


def describe_prompt(prompt: Prompt) -> dict[str, Any]:
    """Returns what a card says of how its student is asked."""
    return {"name": prompt.name, "template_options": prompt.template_options, "language": prompt.language}


def describe_run(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same, as a card that says nothing else, by the section `data` of a run's config."""
    encoding = data.get("encoding") or {}
    options, language = encoding.get("template_options"), encoding.get("prompt_language")
    return {"prompt": {"name": data.get("prompt"), "template_options": options, "language": language}}


def find_prompt(card: Mapping[str, Any], name: str | None) -> Prompt | None:
    """Returns how a file's student is asked: as is said, or else as its card says; None if neither does.

    Args:
        card: The file's, or what `describe_run` says.
        name: A prompt's; with what the card says beside it where that is the same.
    """
    own = card.get("prompt")
    own = own if isinstance(own, dict) else {}
    if (chosen := name or own.get("name")) is None:
        return None
    if chosen != own.get("name"):
        return get_prompt(str(chosen))
    language: PromptLanguage = "en" if own.get("language") == "en" else "question"
    return get_prompt(str(chosen), template_options=own.get("template_options"), language=language)
