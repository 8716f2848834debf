"""Which logit cache has a training's rows: opened, and held against the rationales and the student."""

from collections.abc import Sequence
from pathlib import Path

from datamodules.examples.source import ExampleSource
from datamodules.examples.store import ExampleView
from datamodules.files.tables import read_metadata
from datamodules.logit_cache.reader import LogitCache


def open_caches(
    paths: Sequence[str], logits_teacher: str | None, writers: set[str], rationales: Sequence[str]
) -> list[LogitCache]:
    """Opens logit caches, one for each teacher whose distributions are wanted.

    Args:
        paths: Of the caches.
        logits_teacher: Whose are wanted; None wants those of every rationale's writer.
        writers: Of the rationales.
        rationales: Their files.

    Raises:
        ValueError: The caches are of another teacher, or of another revision of it, than wrote the rationales, or of
            rows that do not go together.
    """
    caches = [LogitCache(Path(path)) for path in paths]
    cached = {cache.description.teacher for cache in caches}
    wanted = writers if logits_teacher is None else {logits_teacher}
    if cached != wanted:
        raise ValueError(
            f"{', '.join(paths)}: logits of {sorted(cached)}, but those of {sorted(wanted)} are wanted; set "
            "data.controls.logits_teacher to teach with another teacher's logits than the writer's"
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


def assign_caches(
    caches: Sequence[LogitCache], logits_teacher: str | None, examples: ExampleView, source: ExampleSource
) -> dict[str, LogitCache]:
    """Returns, by example id, the cache that holds its rows.

    Raises:
        ValueError: A cache was made of other texts, or for another tokenizer or prompt.
    """
    found: dict[str, LogitCache] = {}
    for cache in caches:
        own = examples
        if logits_teacher is None:
            own = examples.where(examples.column("teacher") == cache.description.teacher)
        cache.check(source.tokenizer_name, source.tokenizer, source.prompt.id, own)
        found |= dict.fromkeys(own.column("id"), cache)
    return found
