"""What a model's own files say of its parts, and whether a study's description of its models agrees with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from transformers import AutoConfig

from datamodules.examples.tokenization import fingerprint_tokenizer, load_tokenizer
from datamodules.files.hub import is_cached
from datamodules.model_cards import Parts
from datamodules.model_sources import loading, locate_pretrained, resolve_model


class DescribedModel(NamedTuple):
    """A model, and which parts it is said to have."""

    model: str
    parts: Parts


@dataclass(frozen=True)
class PartFacts:
    """What a model's files say.

    Attributes:
        fingerprint: Of its tokenizer.
        architectures: Classes that its config names.
        bases: Hub ids of the models that its card (README.md) says it was made from.
    """

    fingerprint: str
    architectures: list[str]
    bases: list[str]


def read_facts(model: str) -> PartFacts | None:
    """Returns what a model's files say of its parts; None where they do not lie on this machine.

    Raises:
        ValueError: They cannot be read.
    """
    name, revision = resolve_model(model, None)
    if not (Path(name).exists() or (name.count("/") == 1 and is_cached(name, revision))):
        return None
    place, options = locate_pretrained(model, None)
    with loading(model, "config"):
        config = AutoConfig.from_pretrained(place, **options)
    return PartFacts(
        fingerprint_tokenizer(load_tokenizer(model)), config.architectures or [], _read_bases(name, revision)
    )


def _read_bases(name: str, revision: str | None) -> list[str]:
    card: Path | None = Path(name) / "README.md"
    if not Path(name).exists():
        found = huggingface_hub.try_to_load_from_cache(name, "README.md", revision=revision)
        card = Path(found) if isinstance(found, str) else None
    if card is None or not card.is_file():
        return []
    with loading(name, "model card"):
        said = (huggingface_hub.metadata_load(card) or {}).get("base_model")
    return [said] if isinstance(said, str) else list(said or [])


def check_parts(models: Mapping[str, DescribedModel]) -> None:
    """Compares what is said of models' parts with their files, where these lie on this machine.

    Args:
        models: By what a message calls each, for example `study.students.a`.

    Raises:
        ValueError: An architecture is another one; two tokenizers of one name differ, or two of two names do not; or a
            model and the one that it was made from are said to be of two lineages.
    """
    facts = {
        model: read_facts(model)
        for model in dict.fromkeys(own.model for own in models.values() if any(vars(own.parts).values()))
    }
    known = {where: (own, found) for where, own in models.items() if (found := facts.get(own.model)) is not None}
    for where, (own, found) in known.items():
        stated = own.parts.architecture
        if stated is not None and found.architectures and stated not in found.architectures:
            raise ValueError(
                f"{where}.parts.architecture: {stated}, but the config of {own.model} says {found.architectures[0]}"
            )
    for (where, (own, found)), (other_where, (other, other_found)) in combinations(known.items(), 2):
        names = own.parts.tokenizer, other.parts.tokenizer
        same = found.fingerprint == other_found.fingerprint
        if None not in names and (names[0] == names[1]) != same:
            said = "the same" if same else "different"
            raise ValueError(
                f"{where}.parts.tokenizer: {names[0]}, and {other_where}'s is {names[1]}, but their files are {said}"
            )
        lines = own.parts.lineage, other.parts.lineage
        ids = {resolve_model(own.model, None)[0], *found.bases} & {
            resolve_model(other.model, None)[0],
            *other_found.bases,
        }
        if None not in lines and lines[0] != lines[1] and ids:
            raise ValueError(
                f"{where}.parts.lineage: {lines[0]}, and {other_where}'s is {lines[1]}, but both come from {min(ids)}"
            )
