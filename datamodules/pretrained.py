"""Where a model or tokenizer lies: hub id, folder, GGUF file, a run's checkpoint, or a name of `configs/models`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import yaml

from datamodules.seals import check_run_file

FOLDER = Path(__file__).parents[1] / "configs" / "models"


@dataclass(frozen=True)
class ModelCard:
    """What `configs/models` says of a model; one file holds a family, whose members share what they do not override.

    Attributes:
        name: What `model:NAME` names.
        hub: Hub id.
        revision: Commit; None takes the hub's newest, whose commit artefacts record.
        family: Models that share tokenizer and lineage; logits are shared where the tokenizers' fingerprints agree.
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
    dtype: Literal["float32", "bfloat16", "float16"]
    context: int
    chat_template: bool
    lora_targets: list[str]
    licence: str


def list_models() -> list[ModelCard]:
    """Returns the models of `configs/models`, family by family.

    Raises:
        ValueError: A file is malformed.
    """
    cards = []
    for path in sorted(FOLDER.glob("*.yaml")):
        family = yaml.safe_load(path.read_text(encoding="utf-8"))
        models = family.pop("models")
        for name, own in models.items():
            card = {"name": name, **family, **own}
            if set(card) != {field.name for field in fields(ModelCard)}:
                raise ValueError(f"{path}: {name} needs exactly {', '.join(field.name for field in fields(ModelCard))}")
            cards.append(ModelCard(**card))
    return cards


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


def read_start(checkpoint: str) -> dict:
    """Returns the `model` section of the run's config that a checkpoint belongs to.

    Raises:
        ValueError: There is no such file, it lies in no run's folder, or it holds an adapter alone.
    """
    config = Path(checkpoint).parent.parent / "config.yaml"
    if not Path(checkpoint).is_file():
        raise ValueError(f"model: no such file: {checkpoint}")
    if not config.is_file():
        raise ValueError(f"{checkpoint}: lies in no run's folder, GROUP/ID/checkpoints, whose config.yaml it needs")
    check_run_file(config.parent, config.name)
    start = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
    if start.get("adapter") is not None:
        raise ValueError(f"{checkpoint}: holds an adapter alone; use the student that its run exports")
    return start


def resolve_model(model: str, revision: str | None) -> tuple[str, str | None]:
    """Returns the hub id or path, and the revision, that are meant.

    Of `model:NAME` those of its card; of a run's checkpoint those of the student that training began with.
    """
    if model.endswith(".ckpt"):
        start = read_start(model)
        return resolve_model(start["student"], start["revision"])
    card = find_card(model)
    return (card.hub, revision or card.revision) if card else (model, revision)


def locate_pretrained(model: str, revision: str | None) -> tuple[str, dict]:
    """Returns the name and the options that transformers' `from_pretrained` takes for this model.

    Args:
        model: Hub id, local folder, path of a `.gguf` file or of a run's `.ckpt`, or `model:NAME`.
        revision: Commit of a hub model.

    Raises:
        ValueError: A GGUF file that is missing, an unknown name, or a revision of something local.
    """
    model, revision = resolve_model(model, revision)
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"model: no such file: {model}")
        name, options = str(path.parent), {"gguf_file": path.name}
    else:
        name, options = model, {}
        # A hub id is `owner/name`; anything else that is no folder is a mistyped path.
        if not path.is_dir() and (model.count("/") != 1 or model.startswith((".", "/"))):
            raise ValueError(f"model: no such folder, and no hub id (owner/name): {model}")
    if revision is not None:
        if path.exists():
            raise ValueError(f"model: revision {revision} is given, but {model} is a local path")
        options["revision"] = revision
    return name, {**options, "trust_remote_code": False}
