"""In what precision a model's files hold its weights, read from their headers alone."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from datamodules.model_sources import loading, locate_pretrained
from lightning_modules.model.adapters import find_base
from lightning_modules.model.pretrained import Dtype

# As safetensors' headers call them.
DTYPES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def find_files(model: str, revision: str | None) -> list[str]:
    """Returns the safetensors files of a folder or a hub model, which are fetched; none of any other model."""
    if model.endswith((".ckpt", ".gguf")) or find_base(model):
        return []
    name, options = locate_pretrained(model, revision)
    options.pop("trust_remote_code")
    with loading(model, "model"):
        index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **options)
        files = [SAFE_WEIGHTS_NAME]
        if index is not None:
            files = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        return [str(cached_file(name, file, **options)) for file in files]


def read_dtypes(model: str, revision: str | None) -> set[str]:
    """Returns the dtypes that a model's safetensors files hold, as their headers call them."""
    stored = set()
    for file in find_files(model, revision):
        with loading(model, "model"), safe_open(file, framework="pt") as weights:
            stored |= {weights.get_slice(name).get_dtype() for name in weights.keys()}
    return stored


def find_loading_dtype(model: str, revision: str | None, dtype: Dtype) -> Dtype:
    """Returns the dtype in which a model's weights are to be loaded if all are to become `dtype` block by block.

    That of its files, if it is one and each of its numbers is one of `dtype`: then weights stay in the files' pages,
    which all of a node's processes share, until they are needed. If not, `dtype`.
    """
    stored = read_dtypes(model, revision)
    if len(stored) != 1 or (found := DTYPES.get(stored.pop())) is None:
        return dtype
    wanted = getattr(torch, dtype)
    return found if torch.promote_types(getattr(torch, found), wanted) == wanted else dtype
