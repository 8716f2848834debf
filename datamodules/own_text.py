"""What a student wrote itself, as it learns from it: its own tokens, and what teachers think of them.

On-policy distillation (Agarwal et al. 2024, arXiv 2306.13649) mends what a student does where its own words have led
it. Here the words are those of the student as it was at the beginning of a round.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat

from datamodules.examples.selection import RationaleFilters
from datamodules.examples.source import ExampleSource
from datamodules.examples.store import ExampleView
from datamodules.files.tables import read_metadata, read_table
from datamodules.logit_cache.aligned import AlignedCache, AlignmentSettings
from datamodules.logit_cache.format import read_manifest
from datamodules.logit_cache.matching import align_caches, assign_mixtures, assign_one_teacher, open_caches
from datamodules.logit_cache.mixture import RowReader
from datamodules.logit_cache.reader import LogitCache
from datamodules.rationales.controls import AS_WRITTEN
from datamodules.rationales.samples import SAMPLE_FIELDS
from datamodules.rationales.shown import check_shown, read_shown
from datamodules.tasks.prompts import Prompt, find_privilege, get_prompt

NGRAM = 4
DEFAULT_MIX = 0.25
STATISTICS = ("length", "truncated", "empty", f"distinct_{NGRAM}", "accuracy")


@dataclass(frozen=True)
class OwnText:
    """What the student wrote itself, which it learns from beside what a teacher wrote.

    Args:
        rationales: Stores that the student wrote (`annotate --model.keep_ids=true`), the newest last.
        logits: Logit caches of these texts: a teacher's for each store, or several teachers' with logit_weights.
        logit_weights: Mixes the distributions of these teachers, by weight.
        teacher_prompt: Name of the prompt after which the teachers read it, if that showed them the gold answer, as
            plain_with_gold does, or a rationale, as plain_with_rationale; null is any that did not.
        shown_rationales: The file of the rationales that it showed them.
        mix: Share of each step's tokens that are of a teacher's text, `data.rationales`; null is 0.25.
        first_step: Which of the steps of the teacher's text this training begins with.
        max_lost: Refuse to go on where a larger share of the newest samples is truncated or empty.
        min_distinct: Likewise, where less of a sample's runs of 4 tokens are different ones, on average.
    """

    rationales: list[str] | None = None
    logits: list[str] | None = None
    logit_weights: dict[str, PositiveFloat] | None = None
    teacher_prompt: str | None = None
    shown_rationales: str | None = None
    mix: ClosedUnitInterval | None = None
    first_step: NonNegativeInt = 0
    max_lost: ClosedUnitInterval = 0.5
    min_distinct: ClosedUnitInterval = 0.25

    def __post_init__(self) -> None:
        if (self.rationales is None) != (self.logits is None):
            raise ValueError("data.own.rationales and data.own.logits belong together: cache the logits of each store")
        for name in ("mix", "logit_weights", "teacher_prompt", "shown_rationales"):
            if self.rationales is None and getattr(self, name) is not None:
                raise ValueError(f"data.own.{name} would be ignored without data.own.rationales")
        names = "data.own.teacher_prompt", "data.own.shown_rationales"
        check_shown(names[0], self.teacher_prompt, names[1], self.shown_rationales)
        weights = self.logit_weights
        if weights is not None and (len(weights) < 2 or not np.isfinite(list(weights.values())).all()):
            raise ValueError("data.own.logit_weights mixes two teachers at least, by finite weights")
        if self.mix == 1:
            raise ValueError("data.own.mix=1 leaves nothing to what the student wrote; leave data.own.rationales out")

    @property
    def taught_share(self) -> float:
        """The share of a teacher's text."""
        if self.rationales is None:
            return 1.0
        return DEFAULT_MIX if self.mix is None else float(self.mix)

    def read_privileged(self, taught: ExampleSource) -> Prompt | None:
        """Returns the prompt of `teacher_prompt`, with the options of the student's; None where there is none.

        Raises:
            ValueError: No prompt has this name, or it shows neither the gold answer nor a rationale.
        """
        if self.teacher_prompt is None:
            return None
        encoding = taught.encoding
        prompt = get_prompt(self.teacher_prompt, False, encoding.template_options, encoding.prompt_language, True)
        if find_privilege(prompt.name) is None:
            raise ValueError(
                f"data.own.teacher_prompt {prompt.name!r} shows neither the gold answer nor a rationale; leave it out"
            )
        if self.shown_rationales is None:
            return prompt
        return replace(prompt, shown=read_shown(self.shown_rationales, taught.questions))


class OwnExamples(NamedTuple):
    """What was read of it.

    Attributes:
        examples: In the questions' order.
        caches: The logit caches.
        cache_of_example: By example id.
        log_probs: By example id, of the tokens when they were drawn, float32.
        statistics: Of the newest samples, by name.
    """

    examples: ExampleView
    caches: list[LogitCache | AlignedCache]
    cache_of_example: dict[str, RowReader]
    log_probs: dict[str, np.ndarray]
    statistics: dict[str, float]


def read_own_text(own: OwnText, taught: ExampleSource, alignment: AlignmentSettings) -> OwnExamples:
    """Reads what the student wrote.

    Args:
        own: The settings.
        taught: Where a teacher's text comes from: the questions, and how they are tokenized.
        alignment: How logits of teachers with another tokenizer are used.

    Raises:
        ValueError: A store has no tokens as they were drawn, or of another tokenizer; a cache does not fit; or the
            samples are no longer worth learning from.
    """
    assert own.rationales is not None and own.logits is not None
    log_probs, newest = dict[str, np.ndarray](), set[str]()
    for path in own.rationales:
        found = _read_log_probs(path, taught.fingerprint)
        newest = set(found)
        log_probs |= found
    filters = RationaleFilters(correct_only=False, keep_truncated=True)
    source = ExampleSource(
        taught.tokenizer_name, taught.questions, own.rationales, taught.prompt.name, None, None, taught.encoding,
        filters, AS_WRITTEN,
    )  # fmt: skip
    examples = source.read_rationales()
    statistics = describe_samples(examples.where(np.array([name in newest for name in examples.column("id")])))
    check_samples(own, statistics)
    # A teacher that is the student itself has another name in each round.
    readers = {str(read_manifest(Path(path))["teacher"]) for path in own.logits}
    opened = open_caches(own.logits, None, readers, own.rationales, own.logit_weights, own.read_privileged(taught))
    caches: list[LogitCache | AlignedCache] = [*opened]
    if alignment.kind != "refuse":
        caches = [*align_caches(opened, alignment, examples, source)]
    elif any(cache.description.sparsity.kind == "labels" for cache in opened):
        for path in own.rationales:
            check_draws(path)
    cache_of_example: dict[str, RowReader] = {}
    if own.logit_weights:
        cache_of_example |= assign_mixtures(caches, own.logit_weights, examples, source, any_prompt=True)
    else:
        cache_of_example |= assign_one_teacher(caches, examples, source, any_prompt=True)
    return OwnExamples(examples, caches, cache_of_example, log_probs, statistics)


def _read_log_probs(path: str, fingerprint: str) -> dict[str, np.ndarray]:
    table = read_table(Path(path))
    if not {field.name for field in SAMPLE_FIELDS} <= set(table.column_names) or table["token_ids"].null_count:
        raise ValueError(
            f"{path}: has no tokens as they were drawn, which data.own needs; annotate with --model.keep_ids=true"
        )
    if others := set(table["tokenizer"].to_pylist()) - {fingerprint}:
        raise ValueError(
            f"{path}: tokens of tokenizer {others.pop()}, but the student's is {fingerprint}: another student wrote it"
        )
    names = zip(*(table[name].to_pylist() for name in ("question_id", "teacher", "sample")), strict=True)
    values = table["log_probs"].to_pylist()
    return {
        f"{question}/{writer}/{sample}": np.array(own, np.float32)
        for (question, writer, sample), own in zip(names, values, strict=True)
    }


def check_draws(path: str) -> None:
    """Raises a ValueError if a store's draws are not of the student's own distribution, at 1 and 1."""
    made = read_metadata(Path(path)).get("decoding", {})
    drawn = made.get("temperature"), made.get("top_p")
    if drawn != (1, 1):
        raise ValueError(
            f"{path}: drawn at temperature {drawn[0]} and top_p {drawn[1]}, but a cache of kind labels teaches without "
            "bias what was drawn at 1 and 1; capture another kind"
        )


def count_distinct(ids: np.ndarray) -> float:
    """Returns what share of a text's runs of `NGRAM` tokens are different ones; 1 for a shorter text."""
    if len(ids) < NGRAM:
        return 1.0
    windows = np.lib.stride_tricks.sliding_window_view(ids, NGRAM)
    return len(np.unique(windows, axis=0)) / len(windows)


def describe_samples(examples: ExampleView) -> dict[str, float]:
    """Returns the means over samples: tokens, whether truncated or empty, distinct n-grams, and answers that are right.

    A question without a gold answer plays no part in the last, which is left out where all are.
    """
    lengths = examples.lengths - examples.column("num_prompt_tokens").astype(int)
    truncated = examples.column("truncated").astype(bool)
    values: dict[str, np.ndarray] = {
        "length": lengths,
        "truncated": truncated,
        "empty": (examples.column("num_words") == 0) & ~truncated,
        f"distinct_{NGRAM}": np.array([count_distinct(item.token_ids[item.num_prompt_tokens :]) for item in examples]),
        "accuracy": np.array([value for value in examples.column("correct") if value is not None], float),
    }
    return {name: float(own.mean()) for name, own in values.items() if len(own)}


def check_samples(own: OwnText, statistics: dict[str, float]) -> None:
    """Raises a ValueError if the samples are truncated, empty or repeat themselves more than the settings allow."""
    assert own.rationales is not None
    path, truncated, empty = own.rationales[-1], statistics["truncated"], statistics["empty"]
    if truncated + empty > own.max_lost:
        raise ValueError(
            f"{path}: {truncated:.0%} of the student's samples are truncated and {empty:.0%} empty, more than "
            f"data.own.max_lost={own.max_lost:g}; begin from a student that ends its answers, mix more of a teacher's "
            "text, or raise max_new_tokens"
        )
    if (distinct := statistics[f"distinct_{NGRAM}"]) < own.min_distinct:
        raise ValueError(
            f"{path}: only {distinct:.0%} of the runs of {NGRAM} tokens in a sample are different ones, less than "
            f"data.own.min_distinct={own.min_distinct:g}: the student repeats itself; mix more of a teacher's text, or "
            "lower the learning rate"
        )
