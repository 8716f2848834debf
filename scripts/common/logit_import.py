"""The logit cache of what DistillKit captured, as `scripts.import_logits` makes it, and what is said of it."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import check_template_options
from datamodules.examples.source import ExampleEncoding
from datamodules.examples.store import ExampleView, open_store
from datamodules.examples.tokenization import fingerprint_tokenizer, load_tokenizer
from datamodules.files.atomic import check_place
from datamodules.files.parsing import parse_json_object
from datamodules.logit_cache.captured import COMPRESSION_CONFIG, CapturedText, find_captures, read_captures
from datamodules.logit_cache.captured_rationales import read_rationales
from datamodules.logit_cache.distillkit import read_compression
from datamodules.logit_cache.format import MAX_VOCABULARY, CacheDescription
from datamodules.logit_cache.imported import ImportCounts, describe_sparsity, import_captures
from datamodules.logit_cache.writer import LogitCacheWriter, refuse_other_folder
from datamodules.model_sources import name_model
from datamodules.provenance import describe_creation
from datamodules.rationales.controls import TextControls
from datamodules.rationales.store import write_rationales
from datamodules.tasks.prompts import Prompt, get_prompt
from datamodules.tasks.questions import Question, load_questions
from lightning_modules.model.pretrained import identify_weights
from lightning_modules.run.progress import format_bytes
from scripts.common.next_step import suggest


def import_logits(parsed: argparse.Namespace) -> Iterator[str]:
    """Imports, and yields lines about what it has found.

    Args:
        parsed: The command line of `scripts.import_logits`.

    Raises:
        ValueError: The capture, a text or the teacher is wrong, or the output cannot be written.
    """
    refuse_other_folder(parsed.output)
    options = parse_json_object(parsed.template_options, "--template_options")
    prompt = get_prompt(parsed.prompt, template_options=options)
    files = find_captures(parsed.captures)
    compression = read_compression(parsed.compression or files[0].with_name(COMPRESSION_CONFIG))
    questions = load_questions(parsed.questions)
    tokenizer, teacher = load_tokenizer(parsed.teacher, parsed.revision), name_model(parsed.teacher)
    if len(tokenizer) > MAX_VOCABULARY:
        raise ValueError(f"{teacher}: a vocabulary of {len(tokenizer)}; a cache holds {MAX_VOCABULARY} at most")
    check_template_options(tokenizer, options)
    settings = {name: str(value) for name, value in vars(parsed).items() if value is not None}
    creation = describe_creation({**settings, "data": {"questions": parsed.questions}})

    def read() -> Iterator[CapturedText]:
        return read_captures(files, compression, teacher, len(tokenizer))

    paths = parsed.rationales
    if parsed.write_rationales is not None:
        yield _write_rationales(parsed, read, tokenizer, prompt, questions, creation)
        paths = [str(parsed.write_rationales)]
    controls = TextControls(thinking="keep" if parsed.keep_thinking else "drop")
    store = open_store(Path(ExampleEncoding().cache_dir), tokenizer, prompt, questions, paths, controls)
    examples = ExampleView(store, np.flatnonzero(store.lengths))
    description = CacheDescription(
        teacher=teacher,
        revision=identify_weights(parsed.teacher, parsed.revision),
        tokenizer_fingerprint=fingerprint_tokenizer(tokenizer),
        prompt_id=prompt.id,
        vocabulary=len(tokenizer),
        # What a softened distribution has outside its most probable tokens was not captured.
        temperatures=(1.0,),
        dtype=parsed.dtype,
        sparsity=describe_sparsity(compression),
    )
    writer = LogitCacheWriter(parsed.output, description)
    counts = import_captures(writer, read(), compression, examples, tokenizer, creation)
    yield from _describe(counts, parsed.output, len(examples))
    yield "next: " + suggest("fit", [], [], _list_settings(parsed, paths, options))


def _write_rationales(
    parsed: argparse.Namespace,
    read: Callable[[], Iterator[CapturedText]],
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    questions: list[Question],
    creation: dict[str, Any],
) -> str:
    """Writes the rationales that the texts hold, and returns a line about them."""
    path = parsed.write_rationales
    check_place(path, ".parquet")
    rationales, counts = read_rationales(read(), tokenizer, prompt, questions, parsed.writer, parsed.keep_thinking)
    left_out = "".join(f"; left out: {number} {what}" for what, number in counts.items())
    if not rationales:
        raise ValueError(f"{parsed.captures[0]}: holds no rationale of {parsed.questions}{left_out}")
    write_rationales(path, rationales, {"collection": "distillkit", "counts": dict(counts), "creation": creation})
    right = sum(rationale.correct is True for rationale in rationales)
    return f"{path}: {len(rationales)} rationales by {parsed.writer}, {right} right{left_out}"


def _describe(counts: ImportCounts, output: Path, number: int) -> Iterator[str]:
    if not counts.tokens:
        yield f"{output}: complete already"
        return
    size = sum(file.stat().st_size for file in output.iterdir() if file.is_file())
    yield (
        f"{output}: {counts.examples} of {number} rationales, {counts.tokens} completion tokens, {format_bytes(size)}; "
        f"{counts.used} of {counts.texts} captured texts were of use"
    )
    if counts.outside:
        yield f"  {counts.outside} tokens are not among the captured ones: in the tail, with unknown probability"
    if counts.scaled:
        yield f"  {counts.scaled} rows added up to more than 1, at most to {counts.largest_sum:.4f}, and were scaled"
    if counts.beyond:
        yield f"  ids beyond the tokenizer's vocabulary, at most {counts.beyond:.2g} of a row, are in the tail"
    if counts.examples < number:
        yield (
            f"  {number - counts.examples} rationales have no row, which a training refuses: leave them out, or let "
            "--write_rationales write those that have"
        )


def _list_settings(parsed: argparse.Namespace, paths: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Returns what a training is told, by dotted name."""
    settings = {
        "model.student": "STUDENT",
        "data.questions": parsed.questions,
        "data.rationales": paths,
        "data.prompt": parsed.prompt,
        "data.supervision": "rationale+logits",
        "data.logits": [str(parsed.output)],
        "model.loss.kl_weight": "KL_WEIGHT",
    }
    if options:
        settings["data.encoding.template_options"] = options
    if parsed.keep_thinking:
        settings["data.controls.thinking"] = "keep"
    if parsed.write_rationales is not None and parsed.writer != name_model(parsed.teacher):
        settings["data.controls.logits_teacher"] = name_model(parsed.teacher)
    return settings
