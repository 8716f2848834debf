"""A student as GGUF files in one folder, checked before the folder appears; with a card that says what was found."""

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from transformers import AutoConfig

from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.tokenization import load_tokenizer
from datamodules.files.atomic import atomic_path, hash_json, remove_torn
from datamodules.files.locks import hold
from datamodules.files.parsing import read_json_object
from datamodules.files.seals import hash_file
from datamodules.model_sources import loading, locate_pretrained, name_model
from datamodules.tasks.prompts import Prompt
from lightning_modules.export.architecture import Source, can_convert, convert, convert_by_llama_cpp, count_weights
from lightning_modules.export.card import CARD, CARD_KEY, describe_prompt
from lightning_modules.export.importance import measure_importance
from lightning_modules.export.learned import find_config, read_learned
from lightning_modules.export.probes import Probes, collect, collect_learned
from lightning_modules.export.quantization import write_gguf
from lightning_modules.export.verification import (
    check_template,
    check_tokens,
    compare_distributions,
    compare_greedy,
    refuse_difference,
)
from lightning_modules.export.vocabulary import add_vocabulary
from lightning_modules.model.adapters import find_base
from lightning_modules.model.llama_cpp import LlamaCpp, load_library, name_runtime
from lightning_modules.model.pretrained import check_model, identify_weights, load_causal_lm, read_weights
from lightning_modules.model.stored_weights import DTYPES, read_dtypes
from lightning_modules.student.model_card import describe_data

# Room in the file, beside what is known before, for what is known of it once it is read.
_FOUND_SIZE = 1 << 12
_NOT_EXACT = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")


@dataclass(frozen=True)
class Calibration:
    """What files are calibrated and checked on.

    Attributes:
        questions: The training questions' source.
        rationales: Files of training rationales; None takes what the student learned from in its run.
        prompt: How the student is asked.
        examples: Rationales to calibrate on, at most.
        max_new_tokens: Of a greedy text.
        longest: Longest rationale with its prompt, in tokens; longer ones are left out.
    """

    questions: str | list[str]
    rationales: list[str] | None
    prompt: Prompt
    examples: int = 128
    max_new_tokens: int = 64
    longest: int = 512


def refuse_quantized(student: str) -> None:
    """Raises a ValueError if a student's weights have been rounded already, to a half float or to fewer bits.

    Float16 files whose config says float32 were never wider: the microworld's models are kept so.
    """
    advice = "export from the float32 or bfloat16 weights that it was rounded from"
    if student.endswith(".gguf"):
        raise ValueError(f"{student}: is a GGUF file, whose weights are rounded or unpacked; {advice}")
    if base := find_base(student):
        # What an adapter was trained on may be rounded: rounding it anew would round twice.
        return refuse_quantized(base[0])
    if student.endswith(".ckpt"):
        stored = {str(weight.dtype).removeprefix("torch.") for weight in read_weights(student).values()}
    else:
        name, options = locate_pretrained(student, None)
        with loading(student, "model config"):
            config = AutoConfig.from_pretrained(name, **options)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(f"{student}: is quantised (quantization_config in its config.json); {advice}")
        stored = {DTYPES.get(own, own) for own in read_dtypes(student, None)}
        said = str(config.dtype).removeprefix("torch.")
        stored = stored - {"float16"} if said == "float32" else stored | {said}
    # Buffers may be whole numbers.
    if rounded := [own for own in sorted(stored) if own.startswith(("float16", "float8", "F8", "F6", "F4"))]:
        raise ValueError(f"{student}: its weights are {rounded[0]}; {advice}")


def refuse_used(output: Path) -> None:
    """Raises a ValueError if a folder that is to be made holds something, or is a file."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: is there already; choose another --output")


@contextmanager
def writing_folder(output: Path) -> Iterator[Path]:
    """Yields a folder that becomes `output` once all is written into it, and nothing before.

    Raises:
        ValueError: The folder is there, or is written by another process, or the disk is full.
    """
    with hold(output.with_name(f".{output.name}.lock"), f"{output}: another process writes this folder"):
        # Another process may have ended since this one began.
        refuse_used(output)
        remove_torn(output.parent, escape(output.name))
        with atomic_path(output) as folder:
            folder.mkdir()
            yield folder


def _convert(model: Any, tokenizer: Any, llama_cpp: Path | None, scratch: Path) -> Source:
    """Returns what the files are written from."""
    if llama_cpp is not None:
        return convert_by_llama_cpp(model, tokenizer, llama_cpp, scratch)
    if not can_convert(model.config):
        raise ValueError(
            f"{model.name_or_path}: its architecture ({model.config.model_type}) is not written here; name a checkout "
            "of llama.cpp with --llama_cpp, whose converter may know it"
        )
    return convert(model, tokenizer)


def check_convertible(model: str) -> None:
    """Refuses, by its config and tokenizer alone, a model that is not written here without llama.cpp's converter.

    Args:
        model: Folder, GGUF file or hub id.

    Raises:
        ValueError: Its architecture or its tokenizer is not known here.
    """
    name, options = locate_pretrained(model, None)
    with loading(model, "model config"):
        config = AutoConfig.from_pretrained(name, **options)
    if not can_convert(config):
        raise ValueError(f"{model}: its architecture ({config.model_type}) is not written as GGUF here")
    # Nothing is written before the header is.
    add_vocabulary(GGUFWriter(os.devnull, "llama"), load_tokenizer(model), config.vocab_size)


def _describe(student: str, source: Source, probes: Probes, calibration: Calibration) -> dict[str, Any]:
    """Returns what a card says of all files."""
    sources = [calibration.questions] if isinstance(calibration.questions, str) else calibration.questions
    return {
        "student": name_model(student),
        "student_weights": identify_weights(student, None),
        "architecture": source.architecture,
        "parameters": count_weights(source),
        "tied_head": source.is_tied,
        "runtime": name_runtime(),
        "prompt": describe_prompt(probes.prompt),
        "teachers": probes.teachers,
        "data": [describe_data(own)[1] for own in sources],
        "calibration": {
            "rationales": [
                {"file": Path(own).name, "sha256": hash_file(Path(own))} for own in calibration.rationales or []
            ],
            "examples": len(probes.calibration),
            "tokens": sum(len(example.token_ids) for example in probes.calibration),
        },
        "left_out_characters": "".join(sorted({letter for piece in probes.unwritable for letter in piece})),
    }


def _verify(
    files: Mapping[str, Path], model: Any, tokenizer: Any, probes: Probes, calibration: Calibration
) -> dict[str, dict[str, Any]]:
    """Returns what is found by type.

    Raises:
        ValueError: A file is not the student.
    """
    opened: dict[str, LlamaCpp] = {}
    most = calibration.max_new_tokens
    try:
        for kind, path in files.items():
            opened[kind] = LlamaCpp(str(path), longest=calibration.longest + most)
        found: dict[str, dict[str, Any]] = {
            kind: {"texts_equal": check_tokens(own, kind, tokenizer, probes)} for kind, own in opened.items()
        }
        if tokenizer.chat_template:
            check_template(files[next(iter(files))], tokenizer, probes)
        for kind, own in opened.items():
            found[kind]["tokens_per_s"] = _measure_speed(own, tokenizer, probes, most)
        distributions = compare_distributions(opened, lambda ids: model(torch.tensor([ids])).logits[0].float(), probes)
        for kind, own in opened.items():
            found[kind] |= distributions[kind]
            if kind in ("f16", "f32"):
                found[kind] |= compare_greedy(own, model, tokenizer, probes, most)
            refuse_difference(kind, found[kind])
        return found
    finally:
        for own in opened.values():
            own.close()


def _measure_speed(model: LlamaCpp, tokenizer: Any, probes: Probes, most: int) -> float:
    """Returns tokens a second of a few greedy texts, one at a time, beside whatever else runs here."""
    ends, written, begin = find_end_tokens(tokenizer), 0, time.perf_counter()
    for _, prompt in probes.prompts[:3]:
        model.forget()
        written += len(model.generate(prompt, ends, most)[0]) + 1
    return written / (time.perf_counter() - begin)


def _put_card(path: Path, card: Mapping[str, Any], room: str) -> None:
    """Writes a card into the room that a file has for it."""
    text = json.dumps(card).encode()
    assert len(text) <= len(room)
    with path.open("r+b") as file:
        start = file.read(len(room) + (1 << 12)).find(room.encode())
        assert start >= 0
        file.seek(start)
        file.write(text)


def _write_files(
    folder: Path,
    student: str,
    model: Any,
    tokenizer: Any,
    source: Source,
    types: list[str],
    calibration: Calibration,
    probes: Probes,
    results: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes a file for each type into a folder, checks them, and returns their card."""
    is_needed = any(kind in _NOT_EXACT for kind in types)
    texts = [example.token_ids.tolist() for example in probes.calibration] if is_needed else []
    importance = measure_importance(model, texts, source.rename) if texts else {}
    stem = f"{name_model(student).rpartition('/')[2]}"
    files = {kind: folder / f"{stem}-{kind}.gguf" for kind in types}
    common = _describe(student, source, probes, calibration) | {"student_results": dict(results)}
    room = " " * (len(json.dumps(common)) + _FOUND_SIZE)
    named = {"general.name": stem, CARD_KEY: room}
    formats = {
        kind: write_gguf(path, source, kind, importance if kind in _NOT_EXACT else {}, named)
        for kind, path in files.items()
    }
    found = _verify(files, model, tokenizer, probes, calibration)
    card: dict[str, Any] = {**common, "files": {}}
    for kind, path in files.items():
        # A file says nothing that another machine, or hour, would say otherwise.
        speed = found[kind].pop("tokens_per_s")
        own = {"type": kind, "formats": formats[kind], "bytes": path.stat().st_size, **found[kind]}
        _put_card(path, common | own, room)
        card["files"][path.name] = {**own, "sha256": hash_file(path), "tokens_per_s": speed}
    return card


def _identify(student: str, types: list[str], calibration: Calibration, llama_cpp: Path | None) -> str:
    """Returns a hash of all that an export's files depend on; see `export_gguf` for the arguments."""
    learned = [find_config(student)] if calibration.rationales is None else map(Path, calibration.rationales)
    own = {"prompt": calibration.prompt.id, "rationales": [hash_file(path) for path in learned]}
    settings = {**vars(calibration), **own}
    weights = identify_weights(student, None)
    return hash_json([weights, types, settings, str(llama_cpp), name_runtime()])


def is_exported(output: Path, student: str, types: list[str], calibration: Calibration, llama_cpp: Path | None) -> bool:
    """Says whether a folder holds this very export; see `export_gguf` for the arguments.

    Raises:
        ValueError: It does, but one of its files is missing or damaged.
    """
    if not (output / CARD).is_file():
        return False
    card = read_json_object(output / CARD)
    if card.get("identity") != _identify(student, types, calibration, llama_cpp):
        return False
    for name, own in card["files"].items():
        file = output / name
        if not file.is_file() or hash_file(file) != own["sha256"]:
            raise ValueError(f"{file}: is missing or damaged; remove {output}, and the same command exports it anew")
    return True


def _collect(student: str, tokenizer: Any, calibration: Calibration) -> Probes:
    """Returns what a student's files are checked on."""
    numbers = calibration.examples, calibration.longest
    if calibration.rationales is None:
        learned = read_learned(student)
        return collect_learned(tokenizer, learned.questions, learned.examples, learned.prompt, *numbers)
    return collect(tokenizer, calibration.questions, calibration.rationales, calibration.prompt, *numbers)


def export_gguf(
    student: str,
    types: list[str],
    calibration: Calibration,
    output: Path,
    llama_cpp: Path | None = None,
    results: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a folder with a GGUF file for each type and their card, and returns the card.

    Args:
        student: Folder, checkpoint or hub id of float32 or bfloat16 weights; an adapter is merged.
        types: Of `quantization.TYPES`.
        calibration: Training rationales, or the run that the student lies in.
        output: The folder, which must not be there.
        llama_cpp: A checkout whose converter is used; None writes the architectures that are known here.
        results: What is known of the student's accuracy, for the card.

    Raises:
        ValueError: The student cannot be exported, a file is not the student, or the folder is there, or is written by
            another process.
    """
    load_library()
    refuse_quantized(student)
    identity = _identify(student, types, calibration, llama_cpp)
    tokenizer = load_tokenizer(student)
    probes = _collect(student, tokenizer, calibration)
    longest = max(len(own.token_ids) for own in (*probes.calibration, *probes.measured))
    check_model(student, None, None, longest, "the longest rationale with its prompt (--calibration_length)")
    model = load_causal_lm(student).eval().requires_grad_(False)
    with (
        writing_folder(output) as folder,
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.tmp") as scratch,
    ):
        source = _convert(model, tokenizer, llama_cpp, Path(scratch))
        card = _write_files(folder, student, model, tokenizer, source, types, calibration, probes, results or {})
        card["identity"] = identity
        (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card
