"""Which logit cache has a training's rows: opened, and held against the rationales and the student."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.examples.alignment import CLASSES
from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.source import ExampleSource
from datamodules.examples.store import ExampleView
from datamodules.files.tables import read_metadata
from datamodules.logit_cache.aligned import AlignedCache, AlignmentSettings
from datamodules.logit_cache.mixture import CacheMixture, RowReader
from datamodules.logit_cache.reader import LogitCache
from datamodules.tasks.prompts import Prompt, find_privilege
from datamodules.text.token_bytes import read_vocabulary

# How a student learns without logits.
_TEXT_ALONE = "--data.supervision=rationale --data.logits=null --model.loss.kl_weight=0"


def require_caches(paths: Sequence[str]) -> None:
    """Raises a ValueError that says how to learn without them unless there are finished logit caches at these paths."""
    for path in paths:
        if not Path(path, "manifest.json").is_file():
            raise ValueError(
                f"data.logits: {path}: no finished logit cache (no manifest.json); run python -m scripts.cache_logits, "
                f"or learn from the rationales' text alone: {_TEXT_ALONE}"
            )


def open_caches(
    paths: Sequence[str],
    logits_teacher: str | None,
    writers: set[str],
    rationales: Sequence[str],
    weights: Mapping[str, float] | None = None,
    privileged: Prompt | None = None,
) -> list[LogitCache]:
    """Opens logit caches, one for each teacher whose distributions are wanted.

    Args:
        paths: Of the caches.
        logits_teacher: Whose are wanted; None wants those of every rationale's writer.
        writers: Of the rationales.
        rationales: Their files.
        weights: Of the teachers whose mixture is wanted, by name.
        privileged: The prompt after which the teachers read, if it showed them the gold answer or a rationale.

    Raises:
        ValueError: The caches are of another teacher, or of another revision of it, than wrote the rationales, or of
            rows that do not go together; or a teacher saw privileged context, or did not, unlike it should.
    """
    caches = [LogitCache(Path(path)) for path in paths]
    for cache in caches:
        _check_privilege(cache, privileged)
    cached = {cache.description.teacher for cache in caches}
    if weights is not None:
        _check_mixture(caches, cached, weights)
        writers = cached
    wanted = writers if logits_teacher is None else {logits_teacher}
    if cached != wanted:
        raise ValueError(
            f"{', '.join(paths)}: logits of {sorted(cached)}, but those of {sorted(wanted)} are wanted; set "
            "data.controls.logits_teacher to teach with another teacher's logits than the writer's, or learn from the "
            f"rationales' text alone: {_TEXT_ALONE}"
        )
    if len({cache.description.row_type for cache in caches}) > 1:
        raise ValueError(f"{', '.join(paths)}: captured with different temperatures or kinds of rows")
    revisions = {cache.description.teacher: cache.description.revision for cache in caches}
    for path in (Path(path) for path in rationales if path.endswith(".parquet")):
        made = read_metadata(path)
        if made.get("teacher") in revisions and made["revision"] != revisions[made["teacher"]]:
            raise ValueError(
                f"{path}: written by revision {made['revision']} of {made['teacher']!r}, but the logits are of "
                f"revision {revisions[made['teacher']]}; capture again"
            )
    return caches


def open_others(paths: Sequence[str], caches: Sequence[LogitCache]) -> list[LogitCache]:
    """Opens the logit caches of another teacher than those whose distributions teach.

    Args:
        paths: Of the caches; none is fine.
        caches: Those that teach.

    Raises:
        ValueError: They are of several teachers, or of one that teaches, or do not say what is most probable.
    """
    others = [LogitCache(Path(path)) for path in paths]
    for other in others:
        _check_privilege(other, None)
    if len(names := {other.description.teacher for other in others}) > 1:
        raise ValueError(f"data.rows_against holds logits of {sorted(names)}; name the caches of one teacher")
    for cache in [*caches, *others] if others else ():
        if (kind := cache.description.sparsity.kind) not in ("top_k", "adaptive"):
            raise ValueError(
                f"{cache.folder}: kind {kind} has no most probable token for data.rows; capture kind top_k"
            )
    made = {(cache.description.teacher, cache.description.revision) for cache in caches}
    for other in others:
        if (other.description.teacher, other.description.revision) in made:
            raise ValueError(f"{other.folder}: of the teacher that teaches; data.rows_against needs another")
    return others


def _check_privilege(cache: LogitCache, privileged: Prompt | None) -> None:
    """Refuses a teacher that saw privileged context that nobody asked for, or read after another prompt than was."""
    made = cache.description.prompt_id
    if privileged is not None and made != privileged.id:
        more = ", with data.own.shown_rationales" if privileged.shows_rationale else ""
        raise ValueError(
            f"{cache.folder}: captured with prompt {made}, but data.own.teacher_prompt is {privileged.id}{more}"
        )
    name = made.rpartition("-")[0]
    if privileged is None and (shown := find_privilege(name)):
        raise ValueError(
            f"{cache.folder}: captured with prompt {made}, which showed the teacher {shown}; capture with another, or, "
            f"for what the student wrote, set data.own.teacher_prompt={name}"
        )


def _check_mixture(caches: Sequence[LogitCache], cached: set[str], weights: Mapping[str, float]) -> None:
    if cached != set(weights):
        raise ValueError(
            f"logit_weights names {sorted(weights)}, but the logits given are of {sorted(cached)}; "
            "name each of these teachers"
        )
    for cache in caches:
        if (kind := cache.description.sparsity.kind) in ("hidden", "labels"):
            raise ValueError(f"{cache.folder}: kind {kind} does not mix with logit_weights; capture kind top_k")


def assign_caches(
    caches: Sequence[LogitCache | AlignedCache],
    logits_teacher: str | None,
    examples: ExampleView,
    source: ExampleSource,
) -> dict[str, LogitCache | AlignedCache]:
    """Returns, by example id, the cache that holds its rows.

    Raises:
        ValueError: See `assign_one_teacher`.
    """
    found: dict[str, LogitCache | AlignedCache] = {}
    for teacher in dict.fromkeys(cache.description.teacher for cache in caches):
        own = examples if logits_teacher is not None else examples.where(examples.column("teacher") == teacher)
        found |= assign_one_teacher([cache for cache in caches if cache.description.teacher == teacher], own, source)
    return found


def assign_mixtures(
    caches: Sequence[LogitCache | AlignedCache],
    weights: Mapping[str, float],
    examples: ExampleView,
    source: ExampleSource,
    any_prompt: bool = False,
) -> dict[str, CacheMixture]:
    """Returns, by example id, the mixture of all teachers' rows; a teacher may have a cache for each writer's texts.

    Raises:
        ValueError: A teacher's caches lack an example, hold one twice, or were made of other texts, or for another
            tokenizer or prompt.
    """
    identifiers = examples.column("id")
    found = [
        assign_one_teacher(
            [cache for cache in caches if cache.description.teacher == teacher], examples, source, any_prompt
        )
        for teacher in weights
    ]
    mixtures: dict[tuple[int, ...], CacheMixture] = {}
    mixed = {}
    for identifier in identifiers:
        readers = [own[identifier] for own in found]
        key = tuple(map(id, readers))
        if key not in mixtures:
            mixtures[key] = CacheMixture(readers, list(weights.values()))
        mixed[identifier] = mixtures[key]
    return mixed


def assign_one_teacher(
    caches: Sequence[LogitCache | AlignedCache],
    examples: ExampleView,
    source: ExampleSource,
    any_prompt: bool = False,
) -> dict[str, LogitCache | AlignedCache]:
    """Returns, by example id, which of one teacher's caches holds its rows.

    Raises:
        ValueError: They lack an example, hold one twice, or are of other texts, or for another tokenizer or prompt.
    """
    holders = np.array([[identifier in cache for identifier in examples.column("id")] for cache in caches])
    if (twice := holders.sum(0) > 1).any():
        identifier = examples.column("id")[int(twice.argmax())]
        both = [str(cache.folder) for cache, holds in zip(caches, holders[:, twice.argmax()], strict=True) if holds]
        raise ValueError(f"{' and '.join(both)} both hold {identifier!r}; name one of them in data.logits")
    # What no cache holds is the first one's to miss.
    holders[0] |= ~holders.any(0)
    found: dict[str, LogitCache | AlignedCache] = {}
    for cache, holds in zip(caches, holders, strict=True):
        own = examples.where(holds)
        check_texts(cache, own, source, any_prompt)
        found |= dict.fromkeys(own.column("id"), cache)
    return found


def check_texts(
    cache: LogitCache | AlignedCache, examples: ExampleView, source: ExampleSource, any_prompt: bool = False
) -> None:
    """Refuses a cache that does not hold the rows of these examples' texts.

    Args:
        cache: The cache.
        examples: What will be read of it.
        source: Of the examples.
        any_prompt: Whether the teacher may have read the completions after a prompt of its own.

    Raises:
        ValueError: It was made of other texts, or for another tokenizer or prompt; or, of an aligned cache, too many
            texts are not what the tokens of both sides spell.
    """
    if isinstance(cache, AlignedCache):
        cache.check_completions(examples)
        if cache.settings.kind == "chunks" or not cache.cache.shares_tokenizer(source.tokenizer):
            return
        cache = cache.cache
    prompt_id = None if any_prompt else source.prompt.id
    cache.check(source.tokenizer_name, source.tokenizer, prompt_id, examples)


def align_caches(
    caches: Sequence[LogitCache], settings: AlignmentSettings, examples: ExampleView, source: ExampleSource
) -> Sequence[LogitCache | AlignedCache]:
    """Returns the caches, aligned with the student's tokenizer unless that is to be refused.

    A cache of the student's own tokenizer beside others is converted, too, into the very same distributions, so that
    the rows of all can share a batch.

    Args:
        caches: Of the teachers.
        settings: How rows are converted.
        examples: What will be read of them.
        source: Of the examples.

    Raises:
        ValueError: The alignment would be ignored, a cache does not have what it needs, or the bytes of one side's
            tokens are unknown.
    """
    if settings.kind == "refuse":
        for cache in caches:
            if cache.description.sparsity.kind == "labels":
                raise ValueError(
                    f"{cache.folder}: kind labels teaches with data.alignment.kind chunks only, or as data.own.logits"
                )
        return caches
    if settings.kind != "chunks":
        if all(cache.shares_tokenizer(source.tokenizer) for cache in caches):
            folders = ", ".join(str(cache.folder) for cache in caches)
            raise ValueError(
                f"data.alignment.kind {settings.kind} would be ignored: {folders} and student "
                f"{source.tokenizer_name!r} share a tokenizer; leave it out"
            )
        for cache in caches:
            if cache.description.sparsity.kind == "labels":
                raise ValueError(
                    f"{cache.folder}: kind labels has no distributions, which data.alignment.kind {settings.kind} "
                    "needs; set it to chunks, or capture another kind"
                )
    ends = find_end_tokens(source.tokenizer)
    student = read_vocabulary(source.tokenizer, ends)
    cache_dir = Path(source.encoding.cache_dir)
    return [AlignedCache.open(cache, settings, cache_dir, examples.store, student, ends[0]) for cache in caches]


def measure_coverage(cache_of_example: Mapping[str, RowReader], examples: ExampleView) -> dict[str, float]:
    """Returns the share of the completions' tokens that are of each class of alignment; none without one.

    Of a mixture, each of its teachers counts alike.
    """
    classes = []
    for identifier in examples.column("id"):
        cache = cache_of_example[identifier]
        for reader in cache.readers if isinstance(cache, CacheMixture) else [cache]:
            if isinstance(reader, AlignedCache):
                classes.append(reader.alignments.find(identifier).classes)
    if not classes:
        return {}
    counts = np.bincount(np.concatenate(classes), minlength=len(CLASSES))
    return dict(zip(CLASSES, (counts / counts.sum()).tolist(), strict=True))
