"""The card of a GGUF file: what was found about it when it was exported, in its metadata."""

from pathlib import Path
from typing import Any

from datamodules.files.parsing import parse_json_object
from datamodules.model_sources import loading
from datamodules.tasks.prompts import Prompt, get_prompt

CARD, CARD_KEY = "card.json", "kindred.card"


def read_card(path: Path) -> dict[str, Any]:
    """Returns the card in a GGUF file; empty where another program wrote it.

    Raises:
        ValueError: It is no GGUF file, or is damaged.
    """
    from gguf import GGUFReader  # an optional extra

    magic = b""
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path}: is no GGUF file; write one first: python -m scripts.export gguf")
    with loading(str(path), "GGUF metadata"):
        field = GGUFReader(path).fields.get(CARD_KEY)
        text = None if field is None else str(field.contents())
    return {} if text is None else parse_json_object(text, path)


def find_prompt(card: dict[str, Any], name: str | None) -> Prompt | None:
    """Returns how a file's student is asked: as is said, or else as its card says; None if neither does.

    Args:
        card: The file's.
        name: A prompt's; with what the card says beside it where that is the same.
    """
    own = card.get("prompt")
    own = own if isinstance(own, dict) else {}
    if (chosen := name or own.get("name")) is None:
        return None
    return get_prompt(str(chosen), template_options=own.get("template_options") if chosen == own.get("name") else None)
