"""What each job of a study takes, from its own parsed command line: examples, tokens, steps, disk, GPU hours.

What lies on this machine is read: questions, tokenizers, rationales that are written already. What does not is assumed,
and nothing is downloaded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotation import QuestionDataModule
from datamodules.batches.packing import EpochDraw, PredictionSampler, StepSampler
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.examples.tokenization import load_tokenizer
from datamodules.logit_cache.format import CacheDescription
from datamodules.model_sources import resolve_model
from datamodules.tasks.questions import count_questions
from lightning_modules.model.pretrained import default_dtype
from lightning_modules.run.progress import format_bytes
from lightning_modules.student.student import TRUE_PRECISIONS
from studies.design.cost import (
    Device,
    cache_row_bytes,
    checkpoint_bytes,
    count_parameters,
    find_width,
    generation_seconds,
    reading_flops,
    training_flops,
    weights_bytes,
)
from studies.design.grid import StudentSpec
from studies.text_table import format_table

# Tokens of an answer alone, which a label is.
ANSWER_TOKENS = 10
# Bits a weight that a GGUF file's type takes, the few weights of more bits among them.
WEIGHT_BITS = {"f16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q4_0": 4.6}


@dataclass(frozen=True)
class Assumptions:
    """What is taken for true of what is not there yet.

    Attributes:
        device: What computes.
        prompt_tokens: Of a question whose file or whose model's tokenizer is not on this machine.
        rationale_tokens: Of a rationale that is not written yet; all count as right, so that none is filtered out.
    """

    device: Device
    prompt_tokens: int = 120
    rationale_tokens: int = 150


@dataclass(frozen=True)
class Work:
    """What a job takes.

    Attributes:
        examples: Of an epoch, or that are asked or scored.
        tokens: Read or written, of all epochs.
        steps: Optimizer steps.
        kept: Bytes on disk once it is done.
        meanwhile: Bytes more while it runs.
        hours: On the device.
    """

    examples: int = 0
    tokens: int = 0
    steps: int = 0
    kept: int = 0
    meanwhile: int = 0
    hours: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, own.name) + getattr(other, own.name) for own in fields(self)))


def _is_here(sources: str | list[str], tokenizer: str | None) -> bool:
    """Says whether questions and tokenizer can be read without a network."""
    named = [sources] if isinstance(sources, str) else sources
    has_questions = all(not source.startswith("task:") or "@" in source for source in named)
    return has_questions and (tokenizer is None or Path(resolve_model(tokenizer, None)[0]).exists())


def _read_prompts(data: QuestionDataModule, assumed: Assumptions) -> np.ndarray:
    """Returns the length of each question's prompt."""
    if data.rewrites is None and _is_here(data.questions_source, data.tokenizer_name):
        data.setup("predict")
        return np.array([len(item.prompt_ids) or len(item.text) // 4 for item in data.posed.values()])
    number = data.draw.number or count_questions(data.questions_source, data.limit)
    return np.full(number, assumed.prompt_tokens)


def _generate(model: str, layers: list[int] | None, dtype: str, data: Any, answers: int, assumed: Assumptions) -> Work:
    """Returns what asking a model takes."""
    prompts_Q = _read_prompts(data, assumed)
    parameters, new = count_parameters(model, layers), len(prompts_Q) * answers * assumed.rationale_tokens
    asked = np.repeat(prompts_Q, answers) + data.max_new_tokens
    batches = len(PredictionSampler(asked, data.token_budget, 0, 1))
    read = answers * int(prompts_Q.sum())
    seconds = assumed.device.compute_seconds(reading_flops(parameters, read))
    seconds += generation_seconds(parameters, dtype, new, batches * assumed.rationale_tokens, assumed.device)
    return Work(len(asked), read + new, hours=seconds / 3600)


def estimate_annotation(cli: Any, assumed: Assumptions) -> Work:
    """Returns what a teacher's answers take; those of an endpoint no device of ours."""
    teacher, data = cli.model, cli.datamodule
    data.max_new_tokens = teacher.decoding.max_new_tokens
    if not teacher.backend.is_local:
        data.tokenizer_name = None
        prompts_Q = _read_prompts(data, assumed)
        read = teacher.num_samples * (int(prompts_Q.sum()) + len(prompts_Q) * assumed.rationale_tokens)
        return Work(teacher.num_samples * len(prompts_Q), read)
    return _generate(teacher.teacher, teacher.keep_layers, teacher.teacher_dtype, data, teacher.num_samples, assumed)


def estimate_evaluation(cli: Any, student: str, layers: list[int] | None, assumed: Assumptions) -> Work:
    """Returns what a student's answers take; options' and references' likelihoods, a prompt more each, are left out.

    Args:
        cli: The job's command line.
        student: What the student was before its training, which has its size and its tokenizer.
        layers: Those of its layers that are kept.
        assumed: See there.
    """
    data = cli.datamodule
    data.tokenizer_name, data.max_new_tokens = student, cli.model.max_new_tokens
    # They may be yet to be written.
    data.reference_paths = []
    return _generate(student, layers, default_dtype(student), data, cli.model.num_samples, assumed)


def estimate_file(answers: Work, student: StudentSpec, kind: str) -> Work:
    """Returns what a student's file takes: its bytes, and as many answers, by processors alone.

    Args:
        answers: What the student's own take.
        student: What was trained.
        kind: The file's type.
    """
    kept = round(count_parameters(student.model, student.keep_layers) * WEIGHT_BITS[kind] / 8)
    return Work(answers.examples, answers.tokens, kept=kept)


def _read_lengths(
    data: DistillationDataModule | RationaleDataModule, is_label: bool, assumed: Assumptions
) -> np.ndarray:
    """Returns the length of each example that there is, or will be."""
    source, logits = data.source, getattr(data, "logit_paths", [])
    own = (data.own.rationales or []) if isinstance(data, DistillationDataModule) else []
    is_here = _is_here(source.questions, source.tokenizer_name)
    if is_here and (is_label or all(Path(path).exists() for path in [*source.rationales, *logits, *own])):
        data.setup("fit")
        return (data.train_examples if isinstance(data, DistillationDataModule) else data.examples).lengths
    written = ANSWER_TOKENS if is_label else assumed.rationale_tokens
    lengths = np.full(count_questions(source.questions, source.limit), assumed.prompt_tokens + written)
    if is_here and not is_label:
        lengths = source.read_labels().lengths + written
    if isinstance(data, DistillationDataModule):
        lengths = lengths[round(data.validation.fraction * len(lengths)) :]
    cut: np.ndarray = np.minimum(lengths, data.encoding.max_length)
    return cut


def estimate_training(cli: Any, assumed: Assumptions) -> Work:
    """Returns what a training takes: exactly the steps and tokens of its plan where its examples are there."""
    student, data, batches = cli.model, cli.datamodule, cli.datamodule.batches
    lengths = _read_lengths(data, data.supervision == "label", assumed)
    draw = None
    if batches.samples_per_epoch is not None and data.is_set_up:
        examples = data.train_examples
        names = examples.column("question_id"), examples.column("teacher")
        draw = EpochDraw(*names, batches.samples_per_epoch, batches.teacher_weights)
    budgets = batches.tokens_per_step, data.token_budget
    sampler = StepSampler(lengths, *budgets, batches.order_seed, 0, 1, draw)
    first = [number for step in sampler.plan(0) for number in step]
    trainer = cli.trainer
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else float("inf")
    most = trainer.max_steps if trainer.max_steps not in (None, -1) else float("inf")
    steps = int(min(epochs * sampler.num_steps, most))
    tokens = int(int(lengths[first].sum()) * steps / sampler.num_steps)
    parameters = count_parameters(student.student, student.keep_layers)
    dtype = TRUE_PRECISIONS.get(trainer.precision, student.student_dtype or "float32")
    flops = training_flops(parameters, tokens, student.adapter is not None)
    # An adapter's own weights are few.
    saved = 0 if student.adapter is not None else 2 * checkpoint_bytes(parameters, dtype)
    exported = 0 if student.export_form == "adapter" else weights_bytes(parameters, dtype)
    kept = exported + (saved if cli.run.keep_checkpoints else 0)
    hours = assumed.device.compute_seconds(flops) / 3600
    return Work(len(first), tokens, steps, kept, 0 if cli.run.keep_checkpoints else saved, hours)


def estimate_cache(cli: Any, assumed: Assumptions) -> Work:
    """Returns what a teacher's distributions take."""
    teacher, data = cli.model, cli.datamodule
    lengths = _read_lengths(data, False, assumed)
    tokens = int(lengths.sum())
    is_set = hasattr(data, "examples")
    rows = tokens - int(data.examples.column("num_prompt_tokens").astype(int).sum()) if is_set else 0
    rows = rows or len(lengths) * assumed.rationale_tokens
    name = resolve_model(teacher.teacher, None)[0]
    # Without its tokenizer as many ids as large vocabularies have.
    vocabulary = len(load_tokenizer(teacher.teacher, teacher.teacher_revision)) if Path(name).exists() else 150_000
    flops = reading_flops(count_parameters(teacher.teacher, teacher.keep_layers), tokens)
    hours = assumed.device.compute_seconds(flops) / 3600
    made = CacheDescription("", "", "", "", vocabulary, teacher.temperatures, teacher.teacher_dtype, teacher.sparsity)
    size = rows * cache_row_bytes(made, find_width(teacher.teacher))
    return Work(len(lengths), tokens, kept=size, hours=hours)


def _write_bytes(size: int) -> str:
    return format_bytes(size) if size else "–"


def format_work(work: Iterable[tuple[str, Work]]) -> str:
    """Returns a table of what jobs, or arms, take, and the sum of all but the bytes meanwhile, of which the most."""
    named = [*work]
    total = sum((own for _, own in named), Work())
    rows = [
        (
            name, f"{own.examples:,}", f"{own.tokens:,}", f"{own.steps:,}" if own.steps else "–",
            _write_bytes(own.kept), _write_bytes(own.meanwhile), f"{own.hours:.2g}",
        )
        for name, own in [*named, ("in all", total)]
    ]  # fmt: skip
    most = _write_bytes(max((own.meanwhile for _, own in named), default=0))
    rows[-1] = (*rows[-1][:5], f"{most} each", rows[-1][6])
    columns: Sequence[str] = ("", "examples", "tokens", "steps", "disk", "meanwhile", "GPU hours")
    return format_table(columns, rows, right=range(1, 7))
