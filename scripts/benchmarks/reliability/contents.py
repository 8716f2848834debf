"""What an artefact says, read as its readers read it, for comparing it with what it should say."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from datamodules.examples.store import SCHEMA, ExampleStore
from datamodules.examples.tokenization import load_tokenizer
from datamodules.files.seals import read_sealed
from datamodules.files.tables import read_metadata, read_table
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import load_rationales
from datamodules.tasks.questions import load_questions
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.run.checkpoints import find_checkpoint
from lightning_modules.run.folder import read_metrics

# What a clock says.
_TIMED = "speed/"


def digest(value: Any) -> str:
    """Returns a hash of nested values, tensors and arrays to the bit."""
    return hashlib.sha256(_write(value)).hexdigest()


def _write(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"{" + b",".join(repr(key).encode() + b":" + _write(item) for key, item in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_write, value)) + b"]"
    if isinstance(value, torch.Tensor):
        return _write(value.detach().contiguous().view(-1).view(torch.uint8).numpy()) + str(value.dtype).encode()
    if isinstance(value, np.ndarray):
        return str((value.dtype, value.shape)).encode() + value.tobytes()
    return repr(value).encode("utf-8", "surrogatepass")


def read_rationales(path: Path) -> Any:
    """Returns a rationale store's rows."""
    questions = {question.id: question for question in load_questions("microworld:train:512:0")}
    return [vars(rationale) for rationale in load_rationales([str(path)], questions)]


def read_predictions(path: Path) -> Any:
    """Returns the rows of predictions, and of what they were made."""
    return [read_table(path).to_pylist(), read_metadata(path).get("weights")]


def read_cache(folder: Path) -> Any:
    """Returns each example's rows."""
    return dict(LogitCache(folder).read_all())


def read_weights(run: Path) -> Any:
    """Returns the weights of a run's student, and its metrics but for what a clock says."""
    metrics = [
        {name: value for name, value in record.items() if not name.startswith(_TIMED)} for record in read_metrics(run)
    ]
    metrics = [record for record in metrics if len(record) > 1]
    facts = {name: value for name, value in read_sealed(run / "DONE").items() if name != "sha256"}
    return [load_file(run / "student" / "model.safetensors"), metrics, facts]


def read_student(folder: Path) -> Any:
    """Returns what is loaded of an exported student: weights, config, generation settings, tokenizer."""
    model = load_causal_lm(str(folder))
    tokenizer = load_tokenizer(str(folder))
    settings = [model.config.to_dict(), model.generation_config.to_dict(), tokenizer.backend_tokenizer.to_str()]
    return [model.state_dict(), json.dumps(settings, default=repr), str(tokenizer)]


def read_run(run: Path) -> Any:
    """Returns a run's metrics and what is known of its end."""
    return [read_metrics(run), read_sealed(run / "DONE")]


def read_examples(folder: Path) -> Any:
    """Returns the rows of a tokenized store."""
    store = ExampleStore(folder)
    return [{name: store.column(name) for name in SCHEMA.names}, store.lengths]


def read_checkpoint(folder: Path) -> Any:
    """Returns the checkpoint that a run goes on from."""
    path = find_checkpoint(folder)
    return None if path is None else torch.load(path, map_location="cpu", weights_only=True)


def read_study(folder: Path) -> Any:
    """Returns what a study's files say: rationales, caches, students, predictions, and the table."""
    readers: dict[str, Callable[[Path], Any]] = {
        "teachers/*/*.parquet": read_rationales,
        "teachers/*/manifest.json": lambda path: read_cache(path.parent),
        "teachers/*/*/manifest.json": lambda path: read_cache(path.parent),
        "*/DONE": lambda path: read_weights(path.parent),
        "predictions/*.parquet": lambda path: read_table(path).to_pylist(),
        "table.md": Path.read_text,
    }
    return {
        str(path.relative_to(folder)): read(path)
        for pattern, read in readers.items()
        for path in sorted(folder.glob(pattern))
    }
