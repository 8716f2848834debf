"""What a stage says last: what matters of its result, and the command that comes next."""

import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.store import Rationale, find_repeats
from datamodules.tasks.prompts import find_privilege
from lightning_modules.evaluation.summary import format_summary
from lightning_modules.run.folder import RunFolder, read_metrics
from lightning_modules.run.progress import format_bytes, format_seconds
from scripts.common.next_step import suggest

# Settings of the data that every stage of one experiment shares.
SHARED = ("data.questions", "data.limit")


def describe_rationales(output: Path, rationales: Sequence[Rationale], is_local: bool, args: Sequence[str]) -> str:
    """Returns how many of a teacher's rationales are right, and what comes next; warns if none is.

    Args:
        output: Their file.
        rationales: All of them.
        is_local: Whether the teacher can be asked for its logits.
        args: The stage's command line.
    """
    total = len(rationales)
    answered = sum(rationale.answer is not None for rationale in rationales)
    graded = sum(rationale.correct is not None for rationale in rationales)
    correct = sum(rationale.correct is True for rationale in rationales)
    truncated = sum(rationale.finish_reason == "length" for rationale in rationales)
    share = (
        f" ({correct / graded:.1%}{'' if graded == total else f' of {graded} with a gold answer'})" if graded else ""
    )
    summary = f"{output}: {total} rationales, {answered} with an answer, {correct} right{share}, {truncated} truncated"
    if repeats := find_repeats([*rationales]):
        summary += f", {len(repeats)} that repeat another sample word by word"
    if not graded:
        warnings.warn(
            "no question has a gold answer, so no rationale is known to be right: learn from all of them with "
            "--data.filters.correct_only=false",
            stacklevel=2,
        )
    elif not correct:
        cut = f"; {truncated} were cut off: raise --model.max_new_tokens" if truncated else ""
        warnings.warn(
            f"none of the {total} rationales is right, and a student learns from right ones alone: look at some "
            f"(--dry-run shows the prompts){cut}",
            stacklevel=2,
        )
    settings = {"data.questions": "QUESTIONS", "data.rationales": [str(output)]}
    if is_local:
        following = suggest("cache_logits", args, [*SHARED, "model.teacher", "model.revision"], settings)
    else:
        following = suggest("fit", args, SHARED, {"model.student": "STUDENT", **settings})
    return f"{summary}\nnext: {following}"


def describe_cache(output: Path, data: RationaleDataModule, num_before: int, args: Sequence[str]) -> str:
    """Returns how large a logit cache is, and what comes next.

    Args:
        output: The cache.
        data: What is cached.
        num_before: How many examples it held before.
        args: The stage's command line.
    """
    cache = LogitCache(output)
    in_all = f" added to {num_before}" if num_before else ""
    size = sum(file.stat().st_size for file in output.iterdir() if file.is_file())
    settings = {
        "model.student": "STUDENT",
        "data.rationales": data.source.rationales,
        "data.supervision": "rationale+logits",
        "data.logits": [str(output)],
        "model.loss.kl_weight": "KL_WEIGHT",
    }
    # What a teacher read with privileged context in view is for a student's own text, which rounds train on.
    following = "" if find_privilege(data.prompt.name) else f"\nnext: {suggest('fit', args, ['data.'], settings)}"
    each = f"{format_bytes(size)} ({size / cache.num_rows:.0f} bytes a token)"
    added = f"{len(cache) - num_before} examples{in_all}"
    return f"{output}: {added}, {cache.num_rows} completion tokens, {each}{following}"


def describe_run(run: RunFolder, args: Sequence[str]) -> str:
    """Returns a finished run's last losses, its student, and what comes next."""
    records = read_metrics(run.path)
    losses = []
    for name in ("train", "val"):
        if values := [record[f"{name}/loss"] for record in records if f"{name}/loss" in record]:
            losses.append(f"{name} {values[-1]:.4f} (at first {values[0]:.4f})")
    if not losses:
        losses = ["none was logged, of fewer steps than trainer.log_every_n_steps"]
    settings = {
        "model.student": str(run.student),
        "data.questions": "QUESTIONS",
        "output": str(run.path / "predictions.parquet"),
    }
    following = suggest("evaluate", args, ["data.prompt", "data.encoding.template_options"], settings)
    return f"loss: {', '.join(losses)}\nstudent: {run.student}\nnext: {following}"


def describe_training(run: RunFolder, data: DistillationDataModule, end: str, seconds: float) -> str:
    """Returns how a training ended, after which steps, of what, and how long this attempt took."""
    return f"{run.path}: done {end}, {len(data.train_examples)} examples, {format_seconds(seconds)}"


def describe_predictions(output: Path, records: Sequence[dict[str, Any]]) -> str:
    """Returns what matters of a student's answers."""
    command = shlex.join(["python", "-m", "scripts.evaluate", "metrics", str(output)])
    return f"{output}: {len(records)} predictions\n{format_summary(records)}\nall metrics: {command}"
