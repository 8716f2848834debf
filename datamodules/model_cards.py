"""What `configs/models` says of models, and which family a model is of: nothing else in Kindred decides that."""

import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

from datamodules.files.parsing import read_yaml

FOLDER = Path(__file__).parents[1] / "configs" / "models"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Parts:
    """What a model's family is made of; two models share a part where it has the same name. Null is not known.

    Attributes:
        tokenizer: Those of one name have one fingerprint.
        architecture: As the model's config.json names its class.
        lineage: The weights that it grew out of: an initialisation, a base model, a line of pre-trained models.
        style: How it explains, which its post-training made.
    """

    tokenizer: str | None = None
    architecture: str | None = None
    lineage: str | None = None
    style: str | None = None

    def override(self, other: "Parts") -> "Parts":
        """Returns these parts, where they are not known those of another."""
        return Parts(**{name: own if own is not None else vars(other)[name] for name, own in vars(self).items()})


@dataclass(frozen=True)
class ModelCard:
    """What `configs/models` says of a model; one file holds a family, whose members share what they do not override.

    Attributes:
        name: What `model:NAME` names.
        hub: Hub id.
        revision: Commit; None takes the hub's newest, whose commit artefacts record.
        family: Models that share tokenizer and lineage; logits are shared where the tokenizers' fingerprints agree.
        parts: What of the family it has; a study tells by them which part matters.
        dtype: Of the published weights.
        context: Longest sequence in tokens, as the model's config has it.
        chat_template: Whether the tokenizer has a chat template; a model without one reads raw text.
        lora_targets: The linear layers that adapters are usually put on.
        licence: Of the weights.
    """

    name: str
    hub: str
    revision: str | None
    family: str
    parts: Parts
    dtype: Literal["float32", "bfloat16", "float16"]
    context: int
    chat_template: bool
    lora_targets: list[str]
    licence: str


@cache
def list_models() -> tuple[ModelCard, ...]:
    """Returns the models of `configs/models`, family by family.

    Raises:
        ValueError: A file is malformed.
    """
    cards = []
    for path in sorted(FOLDER.glob("*.yaml")):
        family = read_yaml(path)
        models = family.pop("models")
        for name, own in models.items():
            card = {"name": name, **family, **own}
            parts = {**family.get("parts", {}), **own.get("parts", {})}
            if not set(parts) <= {field.name for field in fields(Parts)}:
                raise ValueError(f"{path}: {name}: parts are {', '.join(field.name for field in fields(Parts))}")
            card["parts"] = Parts(**parts)
            if set(card) != {field.name for field in fields(ModelCard)}:
                raise ValueError(f"{path}: {name} needs exactly {', '.join(field.name for field in fields(ModelCard))}")
            cards.append(ModelCard(**card))
    return tuple(cards)


def find_card(model: str) -> ModelCard | None:
    """Returns the card that `model:NAME` names; None for a hub id or a local path.

    Raises:
        ValueError: There is no model of that name.
    """
    if not model.startswith("model:"):
        return None
    cards = {card.name: card for card in list_models()}
    name = model.removeprefix("model:")
    if name not in cards:
        raise ValueError(f"model {name!r} is unknown; there are: {', '.join(cards)}")
    return cards[name]


def find_parts(model: str | None, stated: Parts) -> Parts:
    """Returns a model's parts: those that are stated, and of the others what its card says.

    Args:
        model: `model:NAME` or a hub id; anything else, and None, has no card.
        stated: By a config.
    """
    cards = {name: card.parts for card in list_models() for name in (f"model:{card.name}", card.hub)}
    return stated.override(cards.get(model or "", Parts()))


def find_family(model: str, stated: str | None = None) -> str:
    """Returns the family that is stated, or that a name tells; `unknown` where it tells of none, or of two.

    Args:
        model: `model:NAME`, a hub id, a folder or GGUF file, or how a collection of rationales calls its teacher.
        stated: By a config or a file; null, empty and `unknown` state none.
    """
    if stated and stated != UNKNOWN:
        return stated
    cards = {name: card.family for card in list_models() for name in (f"model:{card.name}", card.hub)}
    if model in cards:
        return cards[model]
    found = {family for family, pattern in _read_patterns().items() if pattern.search(_find_name(model).casefold())}
    return found.pop() if len(found) == 1 else UNKNOWN


@cache
def _read_patterns() -> dict[str, re.Pattern[str]]:
    patterns = read_yaml(FOLDER.parent / "families.yaml")
    return {family: re.compile(pattern) for family, pattern in patterns.items()}


def _find_name(model: str) -> str:
    """Returns what of a path names the model: its last part, or, in the hub's cache, the part that holds the hub id."""
    # A collection's teacher is no path, and may tell behind a slash how it was asked: gpt-4o/L1.
    if not Path(model).exists():
        return model
    cached = [part for part in Path(model).parts if part.startswith("models--")]
    return cached[-1] if cached else Path(model).name
