"""Alignments on disk, beside the tokenized examples: computed once for a pair of tokenizations of the same texts.

A folder with `alignments.arrow`, an Arrow stream of one row per example that the examples and the cache share, which
is mapped into memory: `id`, `agrees` and, as lists, the fields of an `Alignment`, all of whose rows are NONE where the
tokens of one side do not spell the completion.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.examples import alignment as alignment_code
from datamodules.examples.alignment import NONE, Alignment, align
from datamodules.examples.store import ROWS_PER_BATCH, ExampleStore, map_batches, write_once
from datamodules.examples.tokenization import Example
from datamodules.files.atomic import hash_path, hash_text
from datamodules.logit_cache.format import UNKNOWN_TOKENIZER
from datamodules.logit_cache.reader import LogitCache
from datamodules.text import token_bytes as bytes_code
from datamodules.text.token_bytes import VocabularyBytes

_LISTS = {
    "classes": pa.int8(),
    "governing": pa.int32(),
    "out": pa.int32(),
    "chunks": pa.int32(),
    "teacher_chunks": pa.int32(),
}
SCHEMA = pa.schema(
    [pa.field("id", pa.string()), pa.field("agrees", pa.bool_())]
    + [pa.field(name, pa.list_(kind)) for name, kind in _LISTS.items()]
)


class AlignmentStore:
    """Reads alignments at random, by example.

    Args:
        folder: The store.
        verify: Check the file against its checksum.

    Raises:
        ValueError: The store is damaged.
    """

    def __init__(self, folder: Path, verify: bool = True):
        self.folder = folder
        self._batches = map_batches(folder / "alignments.arrow", "alignments", verify)
        self._values = {name: [batch[name].values.to_numpy() for batch in self._batches] for name in _LISTS}
        self._offsets = {name: [batch[name].offsets.to_numpy() for batch in self._batches] for name in _LISTS}

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the same file, which this process has verified.
        return AlignmentStore, (self.folder, False)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {
            identifier: (index, place)
            for index, batch in enumerate(self._batches)
            for place, identifier in enumerate(batch["id"].to_pylist())
        }

    def find(self, identifier: str) -> Alignment:
        """Returns an example's alignment, whose arrays are views of the map."""
        number, place = self._places[identifier]
        parts = {}
        for name in _LISTS:
            offsets = self._offsets[name][number]
            parts[name] = self._values[name][number][offsets[place] : offsets[place + 1]]
        return Alignment(**parts)

    def list_unaligned(self, identifiers: Iterable[str]) -> list[str]:
        """Returns those of the examples whose tokens, of one side, do not spell the completion."""
        agrees = [batch["agrees"].to_pylist() for batch in self._batches]
        places = ((identifier, self._places[identifier]) for identifier in identifiers)
        return [identifier for identifier, (number, place) in places if not agrees[number][place]]


def _align_example(
    example: Example, teacher_ids: np.ndarray, student: VocabularyBytes, teacher: VocabularyBytes, may_part: bool
) -> Alignment | None:
    student_ids = example.token_ids[example.num_prompt_tokens :]
    spelt = student.join(student_ids)
    # SentencePiece writes a space before a text.
    if example.completion_hash not in (hash_text(spelt), hash_text(spelt.removeprefix(b" "))):
        return None
    return align(student_ids, teacher_ids, student, teacher, may_part)


def _leave_unaligned(num_student: int, num_teacher: int) -> Alignment:
    classes = np.full(num_student, NONE, np.int8)
    nothing, nothing_there = np.full(num_student, -1, np.int32), np.full(num_teacher, -1, np.int32)
    return Alignment(classes, nothing, np.zeros_like(nothing), nothing, nothing_there)


def _align_examples(
    examples: Sequence[Example], cache: LogitCache, student: VocabularyBytes, teacher: VocabularyBytes
) -> list[tuple[bool, Alignment]]:
    """Returns of each example whether the tokens of both sides spell it, and its alignment."""
    # To what a teacher wrote, a completion may have added an answer sentence.
    may_part = cache.description.tokenizer_fingerprint == UNKNOWN_TOKENIZER
    found = []
    for example in examples:
        teacher_ids = cache.read_tokens(example.id)
        own = _align_example(example, teacher_ids, student, teacher, may_part)
        num_tokens = len(example.token_ids) - example.num_prompt_tokens
        found.append((own is not None, own or _leave_unaligned(num_tokens, len(teacher_ids))))
    return found


class AlignmentTable:
    """Alignments of a few examples, in memory.

    Args:
        examples: In the student's tokens.
        cache: Which has all of them.
        student: The bytes of the student's tokens.
        teacher: The bytes of the teacher's.
    """

    def __init__(
        self, examples: Sequence[Example], cache: LogitCache, student: VocabularyBytes, teacher: VocabularyBytes
    ):
        found = _align_examples(examples, cache, student, teacher)
        self._found = {example.id: own for example, own in zip(examples, found, strict=True)}

    def find(self, identifier: str) -> Alignment:
        """Returns an example's alignment."""
        return self._found[identifier][1]

    def list_unaligned(self, identifiers: Iterable[str]) -> list[str]:
        """Returns those of the examples whose tokens, of one side, do not spell the completion."""
        return [identifier for identifier in identifiers if not self._found[identifier][0]]


def open_alignments(
    cache_dir: Path, examples: ExampleStore, student: VocabularyBytes, cache: LogitCache
) -> AlignmentStore:
    """Opens the alignments of all examples that a cache has, and computes them first if no process has yet.

    Args:
        cache_dir: Folder of all stores.
        examples: In the student's tokens.
        student: The bytes of these.
        cache: In the teacher's tokens; of the same completions where it has the same ids.

    Raises:
        ValueError: The store is damaged or cannot be written, or the cache is damaged.
    """
    modules = (__file__, alignment_code.__file__, bytes_code.__file__)
    depends_on = {
        "code": [hash_path(Path(str(file))) for file in modules],
        "examples": examples.folder.name,
        "student": student.hash,
        "teacher": cache.manifest["token_bytes"]["sha256"],
        "shards": [entry["sha256"] for entry in cache.manifest["shards"]],
    }

    def align_all() -> Iterator[pa.RecordBatch]:
        teacher = cache.read_vocabulary()
        rows = [row for row, identifier in enumerate(examples.column("id")) if identifier in cache]
        for start in range(0, len(rows), ROWS_PER_BATCH):
            part = [examples.read(row) for row in rows[start : start + ROWS_PER_BATCH]]
            found = _align_examples(part, cache, student, teacher)
            columns: dict[str, Any] = {"id": [example.id for example in part]}
            columns |= {"agrees": [agrees for agrees, _ in found]}
            columns |= {name: [vars(own)[name] for _, own in found] for name in _LISTS}
            yield pa.record_batch(columns, schema=SCHEMA)

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as out:
            for batch in align_all():
                out.write_batch(batch)

    return AlignmentStore(write_once(cache_dir, "alignments.arrow", depends_on, write))
