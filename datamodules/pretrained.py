"""Where a pre-trained model or tokenizer lies: a hub id, a local folder, or a GGUF file."""

from pathlib import Path


def locate_pretrained(model: str, revision: str | None) -> tuple[str, dict]:
    """Returns the name and the options that transformers' `from_pretrained` takes for this model.

    Args:
        model: Hub id, local folder, or path of a `.gguf` file.
        revision: Commit of a hub model.

    Raises:
        ValueError: A GGUF file that is missing, or a revision of something local.
    """
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
