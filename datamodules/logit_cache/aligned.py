"""A logit cache of another tokenizer than the student's, read as rows in the student's vocabulary."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import ClosedUnitInterval

from datamodules.examples.store import ExampleStore, ExampleView
from datamodules.examples.tokenization import Example
from datamodules.logit_cache.alignment_store import AlignmentStore, AlignmentTable, open_alignments
from datamodules.logit_cache.codec import Arrays
from datamodules.logit_cache.conversion import RowConverter, convert_chunks
from datamodules.logit_cache.reader import LogitCache
from datamodules.text.token_bytes import VocabularyBytes

AlignmentKind = Literal["refuse", "strict", "bytes", "chunks"]


@dataclass(frozen=True, kw_only=True)
class AlignmentSettings:
    """How the logits of a teacher with another tokenizer teach the student.

    Args:
        kind: refuse, they do not. strict: where one student's token is one teacher's token of the same bytes, by the
            tokens that both vocabularies have. bytes: wherever the teacher's distribution says what bytes come next, by
            the longest student's token that begins a teacher's token. chunks: by the probability of the text between
            places where both end a token, of which a cache of labels is enough. A row that has no target keeps its
            cross-entropy alone.
        spans: bytes: chain gives student's tokens that reach over a teacher's token the product of the probabilities
            along the text; skip gives such rows no target. Null is chain.
        whitespace: bytes: skip gives rows whose token is only white space no target; keep gives them one. Null is skip.
        max_unaligned: Share of the examples that may go without targets since their texts are not what the tokens of
            either side spell, as those of a tokenizer that normalizes; more is refused. Null is 0.01.

    Raises:
        ValueError: A setting is given that the kind would ignore.
    """

    kind: AlignmentKind = "refuse"
    spans: Literal["chain", "skip"] | None = None
    whitespace: Literal["keep", "skip"] | None = None
    max_unaligned: ClosedUnitInterval | None = None

    def __post_init__(self) -> None:
        given = {"spans": self.spans, "whitespace": self.whitespace, "max_unaligned": self.max_unaligned}
        has = {"refuse": (), "bytes": tuple(given)}.get(self.kind, ("max_unaligned",))
        if ignored := [name for name, value in given.items() if value is not None and name not in has]:
            raise ValueError(
                f"data.alignment.{ignored[0]} is given, but alignment {self.kind} ignores it; leave it out"
            )


class AlignedCache:
    """Reads a cache's rows as rows in the student's vocabulary; see `RowConverter`.

    Args:
        cache: Of the teacher.
        alignments: Of all examples that will be read.
        settings: How rows are converted.
        teacher: The bytes of the teacher's tokens.
        student: The bytes of the student's tokens.
        student_end: The id with which the student ends a turn.

    Attributes:
        description: What the rows depend on; their temperatures are those of the converted ones.
    """

    def __init__(
        self,
        cache: LogitCache,
        alignments: AlignmentStore | AlignmentTable,
        settings: AlignmentSettings,
        teacher: VocabularyBytes,
        student: VocabularyBytes,
        student_end: int,
    ):
        assert settings.kind != "refuse"
        self.cache, self.alignments, self.settings = cache, alignments, settings
        self.description = cache.description
        self._converter: RowConverter | None = None
        if settings.kind != "chunks":
            made = cache.description
            self._converter = RowConverter(
                teacher,
                student,
                student_end,
                alignment=settings.kind,
                spans=settings.spans or "chain",
                whitespace=settings.whitespace or ("skip" if settings.kind == "bytes" else "keep"),
                kind=made.sparsity.kind,
                temperatures=made.temperatures,
            )
            self.description = replace(made, temperatures=self._converter.temperatures)

    def __contains__(self, example_id: str) -> bool:
        return example_id in self.cache

    @classmethod
    def open(
        cls,
        cache: LogitCache,
        settings: AlignmentSettings,
        cache_dir: Path,
        examples: ExampleStore,
        student: VocabularyBytes,
        student_end: int,
    ) -> "AlignedCache":
        """Aligns the examples that a cache has with a student's tokenizer, unless some process has done so before.

        Args:
            cache: Of the teacher.
            settings: How rows are converted.
            cache_dir: Folder of the tokenized examples.
            examples: In the student's tokens.
            student: The bytes of these.
            student_end: The id with which the student ends a turn.

        Raises:
            ValueError: The cache does not know its tokens' bytes, or what ends a turn.
        """
        teacher = _read_teacher(cache)
        alignments = open_alignments(cache_dir, examples, student, cache)
        return cls(cache, alignments, settings, teacher, student, student_end)

    @classmethod
    def of_examples(
        cls,
        cache: LogitCache,
        settings: AlignmentSettings,
        examples: Sequence[Example],
        student: VocabularyBytes,
        student_end: int,
    ) -> "AlignedCache":
        """Aligns a few examples, which the cache has, in memory; see `open`."""
        teacher = _read_teacher(cache)
        alignments = AlignmentTable(examples, cache, student, teacher)
        return cls(cache, alignments, settings, teacher, student, student_end)

    def check_completions(self, examples: ExampleView | Sequence[Example]) -> None:
        """Refuses a cache that was not made of these completions, or too many that do not align; names those that do.

        Raises:
            ValueError: Examples are missing, a completion's text differs, or more than the settings allow have tokens
                that do not spell it.
        """
        self.cache.check_completions(examples)
        ids = examples.column("id") if isinstance(examples, ExampleView) else [example.id for example in examples]
        unaligned = self.alignments.list_unaligned(ids)
        allowed = 0.01 if self.settings.max_unaligned is None else self.settings.max_unaligned
        if not unaligned:
            return
        found = (
            f"{self.folder}: the tokens of teacher or student do not spell {len(unaligned)} of {len(examples)} "
            f"completions, the first is {unaligned[0]!r}"
        )
        if len(unaligned) > allowed * len(examples):
            raise ValueError(
                f"{found}: more than data.alignment.max_unaligned {allowed:g}; a tokenizer that changes its text "
                "cannot be aligned; take another, or allow more"
            )
        warnings.warn(f"{found}; they have no target", stacklevel=2)

    @property
    def folder(self) -> Path:
        """The cache's."""
        return self.cache.folder

    @property
    def table(self) -> np.ndarray:
        """The student's id of each of the teacher's, int32 [V]; -1 for none."""
        assert self._converter is not None
        return self._converter.table

    def read(self, *examples: Example) -> Arrays:
        """Returns the converted rows of the examples, one after the other.

        Raises:
            ValueError: An example's bytes are damaged.
        """
        rows = self.cache.read_foreign([example.id for example in examples])
        alignments = [self.alignments.find(example.id) for example in examples]
        if self._converter is None:
            return convert_chunks(rows, alignments)
        labels = np.concatenate([example.token_ids[example.num_prompt_tokens :] for example in examples])
        return self._converter.convert(rows, alignments, labels)


def _read_teacher(cache: LogitCache) -> VocabularyBytes:
    cache.require_token_bytes()
    teacher = cache.read_vocabulary()
    if not teacher.ends:
        raise ValueError(
            f"{cache.folder}: does not know which token ends its teacher's turn, which data.alignment needs; "
            "capture again"
        )
    return teacher
