"""Where a model or tokenizer lies: hub id, folder, GGUF file, a run's checkpoint, or a name of `configs/models`."""

from pathlib import Path

import yaml

from datamodules.model_cards import find_card
from datamodules.seals import check_run_file


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
