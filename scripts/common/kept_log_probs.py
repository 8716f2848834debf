"""The logit cache that annotate leaves beside the rationales whose log-probabilities it kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.logit_cache.format import UNKNOWN_TOKENIZER, CacheDescription, Sparsity
from datamodules.logit_cache.written_tokens import Written, unpack_tokens, write_cache
from datamodules.rationales.store import Rationale
from lightning_modules.teacher.annotator import Annotator


def name_cache(output: Path) -> Path:
    """Returns the folder of the cache beside a store."""
    return output.with_name(f"{output.stem}-logits")


def write_kept(
    folder: Path, teacher: Annotator, rationales: Sequence[Rationale], packed: Sequence[str], metadata: dict[str, Any]
) -> str:
    """Writes the cache, and returns a line about it.

    Args:
        folder: See `name_cache`.
        teacher: Who wrote.
        rationales: What was written, in the store's order.
        packed: Of each, its tokens; see `pack_tokens`.
        metadata: Of the store.

    Raises:
        ValueError: The folder holds something else, another process writes it, or the disk is full.
    """
    has_best = teacher.log_probs == "top_k"

    def read() -> Iterator[Written]:
        for rationale, text in zip(rationales, packed, strict=True):
            if rationale.text:
                yield Written(rationale.id, rationale.question_id, rationale.text, *unpack_tokens(text))

    def describe(vocabulary: int, sparsity: Sparsity, temperatures: tuple[float, ...]) -> CacheDescription:
        return CacheDescription(
            teacher=metadata["teacher"],
            revision=metadata["revision"],
            tokenizer_fingerprint=UNKNOWN_TOKENIZER,
            prompt_id=rationales[0].prompt_id,
            vocabulary=vocabulary,
            temperatures=temperatures,
            dtype=teacher.teacher_dtype,
            sparsity=sparsity,
        )

    num_rows = write_cache(folder, read, has_best, describe, metadata["creation"])
    return f"{folder}: log-probabilities of {num_rows} tokens; a training reads them with data.alignment.kind"
