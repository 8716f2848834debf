"""Where a model or tokenizer lies: hub id, folder, GGUF file, a run's checkpoint, or a name of `configs/models`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from datamodules.files.hub import could_not_ask, describe_missing, is_cached, is_reachable
from datamodules.files.parsing import read_yaml
from datamodules.files.seals import DONE, check_run_file
from datamodules.model_cards import find_card
from datamodules.text.plain_text import describe_error, shorten

# How a local model is named.
_LOCAL = "its folder, or a GGUF file"


@contextmanager
def loading(model: str, what: str) -> Iterator[None]:
    """Turns what a library raises over a model's files into a ValueError that names the model.

    It may surround nothing but that library's call, so that no mistake of Kindred's own is taken for the files'.

    Args:
        model: Whose files.
        what: Is loaded.
    """
    try:
        yield
    except Exception as error:  # transformers, tokenizers, peft and torch fail in any way on what a file may say
        # A local folder that lacks a file may have been looked for there, too.
        if could_not_ask(error) and not Path(model).exists():
            name, revision = resolve_model(model, None)
            raise ValueError(describe_missing(name, "model", _LOCAL, revision)) from error
        message = shorten(describe_error(error), 300)
        raise ValueError(f"{model}: no {what} can be loaded: {message}") from error


def read_start(checkpoint: str) -> dict[str, Any]:
    """Returns the `model` section of the run's config that a checkpoint belongs to.

    Raises:
        ValueError: There is no such file, it lies in no run's folder, the run's config is none, or leads back to the
            checkpoint, or it holds an adapter alone.
    """
    start = _read_start(checkpoint)
    seen, student = {Path(checkpoint).resolve()}, start["student"]
    while student.endswith(".ckpt"):
        if Path(student).resolve() in seen:
            raise ValueError(f"{checkpoint}: its run began with {start['student']}, which began with it; take another")
        seen.add(Path(student).resolve())
        student = _read_start(student)["student"]
    return start


def _is_start(section: Any) -> TypeGuard[dict[str, Any]]:
    """Says whether a config's section has what a checkpoint needs of it, each of its type."""
    if not isinstance(section, dict) or not {"student", "revision", "keep_layers"} <= section.keys():
        return False
    layers = section["keep_layers"] or []
    return (
        isinstance(section["student"], str)
        and isinstance(section["revision"], str | None)
        and isinstance(layers, list)
        and all(type(number) is int for number in layers)
    )


def _read_start(checkpoint: str) -> dict[str, Any]:
    run = Path(checkpoint).parent.parent
    config = run / "config.yaml"
    if not Path(checkpoint).is_file() and (run / DONE).is_file():
        raise ValueError(
            f"model: no such file: {checkpoint}; its run is done and has kept its student alone: name "
            f"{run / 'student'}, or train with --run.keep_checkpoints=true"
        )
    if not Path(checkpoint).is_file():
        raise ValueError(f"model: no such file: {checkpoint}")
    if not config.is_file():
        raise ValueError(f"{checkpoint}: lies in no run's folder, GROUP/ID/checkpoints, whose config.yaml it needs")
    check_run_file(config.parent, config.name)
    content = read_yaml(config)
    start = content.get("model") if isinstance(content, dict) else None
    if not _is_start(start):
        raise ValueError(f"{config}: is no run's config: its section model needs student, revision and keep_layers")
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


def name_model(model: str) -> str:
    """Returns how artefacts name a model: the hub id, the folder's name, or the GGUF file's stem."""
    model, _ = resolve_model(model, None)
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem
    return path.name if path.is_dir() else model


def require_folder(model: str, what: str) -> None:
    """Raises a ValueError that begins with `what` if a model's name is neither a folder's, nor a file's or a hub id."""
    # A hub id is `owner/name`; anything else that is no folder is a mistyped path.
    if Path(model).exists() or (model.count("/") == 1 and not model.startswith((".", "/", "~"))):
        return
    recipe = Path("configs/microworld", f"{Path(model).name.rpartition('-')[0]}.yaml")
    made_by = f"; `python -m scripts.microworld pretrain --config {recipe}` makes it" if recipe.is_file() else ""
    raise ValueError(f"{what}: no such folder, and no hub id (owner/name): {model}{made_by}")


def is_out_of_reach(model: str, revision: str | None) -> bool:
    """Says whether only the hub's cache can be read, and not the hub.

    Raises:
        ValueError: It has nothing of this hub id; the message says how to get it.
    """
    if is_reachable():
        return False
    if not is_cached(model, revision):
        raise ValueError(describe_missing(model, "model", _LOCAL, revision))
    return True


def locate_pretrained(model: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options that transformers' `from_pretrained` takes for this model.

    Args:
        model: Hub id, local folder, path of a `.gguf` file or of a run's `.ckpt`, or `model:NAME`.
        revision: Commit of a hub model.

    Raises:
        ValueError: A GGUF file that is missing, an unknown name, a revision of something local, or a hub's model that
            is not in its cache where there is no network.
    """
    model, revision = resolve_model(model, revision)
    if not model.strip():
        raise ValueError("model: the name is empty; give a folder or a hub id (owner/name)")
    path = Path(model)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"model: no such file: {model}")
        name, options = str(path.parent), dict[str, Any](gguf_file=path.name)
    else:
        name, options = model, {}
        require_folder(model, "model")
        if not path.is_dir() and is_out_of_reach(model, revision):
            options["local_files_only"] = True
    if revision is not None:
        if path.exists():
            raise ValueError(f"model: revision {revision} is given, but {model} is a local path")
        options["revision"] = revision
    return name, {**options, "trust_remote_code": False}
