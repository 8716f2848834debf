"""Tokenized examples on disk: written once, mapped into memory by every arm, run and process that needs the same.

A folder named by the hash of all that the tokens depend on, with `examples.arrow`, an Arrow stream that
`datasets.Dataset.from_file` reads, too, and `manifest.json`, which holds its checksum. In record batches of
`ROWS_PER_BATCH` rows, it has one row per rationale, or per question where gold labels are the supervision:

    id, question_id, teacher   string
    answered                   bool       whether the rationale reached an answer
    correct                    bool       null where unknown
    imported                   bool       whether the rationale comes from a published collection
    truncated                  bool       whether the rationale was cut off
    repeats                    bool       whether an earlier sample of the same teacher and question has the same text
    text_hash, completion_hash string
    num_prompt_tokens          int32
    num_words                  int32      of the rationale's text, whatever the tokenizer; 0 for gold labels
    token_ids                  list<int32>
    segments                   list<int8>

Every rationale of the files has a row, so that arms that filter differently share one store; one without anything
to supervise has no tokens. Controls that change texts have stores of their own.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from datamodules.examples.tokenization import Example, build_examples, hash_tokenizer
from datamodules.files.atomic import (
    atomic_path,
    check_place,
    hash_json,
    hash_path,
    hash_source,
    part_language,
    remove_torn,
    require_file,
    write_json,
)
from datamodules.files.locks import hold
from datamodules.rationales.controls import AS_WRITTEN, TextControls, shuffle_rationales
from datamodules.rationales.store import Rationale, find_repeats, load_rationales
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.questions import Question
from datamodules.text.languages import ENGLISH, FOLDER, resolve_tag
from datamodules.text.words import count_words

ROWS_PER_BATCH = 4096
SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("id", "question_id", "teacher")]
    + [pa.field(name, pa.bool_()) for name in ("answered", "correct", "imported", "truncated", "repeats")]
    + [pa.field(name, pa.string()) for name in ("text_hash", "completion_hash")]
    + [pa.field(name, pa.int32()) for name in ("num_prompt_tokens", "num_words")]
    + [pa.field("token_ids", pa.list_(pa.int32())), pa.field("segments", pa.list_(pa.int8()))]
)

_LISTS = ("token_ids", "segments")
# The rooms, and two modules, whose code turns text into tokens.
_TEXT_TO_TOKENS = ("answers/*.py", "examples/*.py", "text/*.py", "rationales/controls.py", "tasks/prompts.py")


class ExampleStore:
    """Reads a store at random, by row.

    Args:
        folder: The store.
        verify: Check the file against its checksum.

    Raises:
        ValueError: The store is damaged.
    """

    def __init__(self, folder: Path, verify: bool = True):
        self.folder = folder
        self._batches = map_batches(folder / "examples.arrow", "tokenized examples", verify)
        # One array for each record batch; none of them is copied from the map.
        self._values = {name: [batch[name].values.to_numpy() for batch in self._batches] for name in _LISTS}
        self._offsets = [batch["token_ids"].offsets.to_numpy() for batch in self._batches]

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the same file, which this process has verified.
        return ExampleStore, (self.folder, False)

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, int64."""
        return np.concatenate([np.diff(offsets) for offsets in self._offsets], dtype=np.int64)

    @property
    def highest_id(self) -> int:
        """The highest of all token ids; -1 if there is none."""
        return max((int(values.max()) for values in self._values["token_ids"] if len(values)), default=-1)

    def holds(self, token: int) -> np.ndarray:
        """Says of each row whether a token is in it."""
        counts = []
        for values, offsets in zip(self._values["token_ids"], self._offsets, strict=True):
            before = np.concatenate([[0], np.cumsum(values == token)])
            counts.append(before[offsets[1:]] - before[offsets[:-1]])
        return np.concatenate(counts) > 0

    def column(self, name: str) -> list[Any]:
        """Returns a whole column's Python values."""
        return [value for batch in self._batches for value in batch[name].to_pylist()]

    def read(self, row: int) -> Example:
        """Returns one row; its arrays are views of the map."""
        number, place = divmod(row, ROWS_PER_BATCH)
        batch, offsets = self._batches[number], self._offsets[number]
        tokens = slice(offsets[place], offsets[place + 1])
        return Example(
            **{name: batch[name][place].as_py() for name in ("id", "question_id", "text_hash", "completion_hash")},
            **{name: self._values[name][number][tokens] for name in _LISTS},
        )


class ExampleView(Sequence[Example]):
    """Rows of a store, in some order; an example is built when it is asked for, and not kept.

    Args:
        store: The store.
        rows: int64, their numbers.
    """

    def __init__(self, store: ExampleStore, rows: np.ndarray):
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, key: int) -> Example: ...

    @overload
    def __getitem__(self, key: slice) -> "ExampleView": ...

    def __getitem__(self, key: int | slice) -> "Example | ExampleView":
        if isinstance(key, slice):
            return ExampleView(self.store, self.rows[key])
        return self.store.read(int(self.rows[key]))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, int64."""
        lengths: np.ndarray = self.store.lengths[self.rows]
        return lengths

    def column(self, name: str) -> np.ndarray:
        """Returns a column's values for each example, as objects."""
        values: np.ndarray = np.array(self.store.column(name), dtype=object)[self.rows]
        return values

    def where(self, kept: np.ndarray) -> "ExampleView":
        """Returns the examples that a bool array marks."""
        return ExampleView(self.store, self.rows[kept])


def drop_too_long(examples: ExampleView, max_length: int, skip: bool) -> ExampleView:
    """Keeps the examples that fit the context.

    Raises:
        ValueError: Some do not, and `skip` is off; the message counts them and names the first.
    """
    long = examples.where(examples.lengths > max_length)
    if len(long) and not skip:
        names = ", ".join(f"{example.id!r} ({len(example.token_ids)} tokens)" for example in long[:3])
        raise ValueError(
            f"{len(long)} of {len(examples)} examples are longer than the context of {max_length} tokens: {names}"
            f"{', ...' if len(long) > 3 else ''}; set skip_too_long to leave them out"
        )
    return examples.where(examples.lengths <= max_length)


def _read_pairs(
    questions: list[Question], paths: list[str] | None, control: TextControls
) -> list[tuple[Question, Rationale | None]]:
    """Returns each question, or each of its rationales, in the questions' order."""
    if paths is None:
        return [(question, None) for question in questions]
    by_question: dict[str, list[Rationale]] = {question.id: [] for question in questions}
    for rationale in load_rationales(paths, {question.id: question for question in questions}):
        by_question[rationale.question_id].append(rationale)
    pairs = [(question, rationale) for question in questions for rationale in by_question[question.id]]
    return [*(shuffle_rationales(pairs, control.shuffle_seed) if control.shuffled else pairs)]


def _tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    pairs: list[tuple[Question, Rationale | None]],
    control: TextControls,
) -> Iterator[pa.RecordBatch]:
    repeats = find_repeats(rationale for _, rationale in pairs if rationale is not None)
    for start in range(0, len(pairs), ROWS_PER_BATCH):
        part = pairs[start : start + ROWS_PER_BATCH]
        examples = build_examples(tokenizer, prompt, part, control.position, control.thinking == "keep")
        rationales = [rationale for _, rationale in part]
        columns = {
            **{
                name: [vars(example)[name] for example in examples]
                for name in ("id", "question_id", "text_hash", "completion_hash", *_LISTS)
            },
            "teacher": [example.teacher for example in examples],
            "num_prompt_tokens": [example.num_prompt_tokens for example in examples],
            "num_words": [count_words(rationale.text) if rationale else 0 for rationale in rationales],
            "answered": [rationale is not None and rationale.answer is not None for rationale in rationales],
            "correct": [rationale.correct if rationale else None for rationale in rationales],
            "imported": [rationale.finish_reason == "imported" if rationale else False for rationale in rationales],
            "truncated": [rationale.is_truncated if rationale else False for rationale in rationales],
            "repeats": [rationale is not None and rationale.id in repeats for rationale in rationales],
        }
        yield pa.record_batch(columns, schema=SCHEMA)


def _hash_input(source: str) -> str:
    require_file(Path(part_language(source)[0]), "input")
    return str(hash_source(source))


def _identify_languages(questions: list[Question]) -> dict[str, Any]:
    """Returns what the texts depend on where questions are in other languages than English: those files."""
    tags = sorted({resolve_tag(question.language) for question in questions} - {ENGLISH})
    return {"languages": {tag: hash_path(FOLDER / f"{tag}.yaml") for tag in tags}} if tags else {}


def open_store(
    cache_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    questions: list[Question],
    rationales: list[str] | None,
    control: TextControls = AS_WRITTEN,
) -> ExampleStore:
    """Opens the store of these questions and rationales, and writes it first if no process has yet.

    Where several processes need the same, one writes it and the others wait; what a killed one left is removed.

    Args:
        cache_dir: Folder of all stores.
        tokenizer: The student's.
        prompt: What stands before each completion.
        questions: All of the source's.
        rationales: Files; None is for gold labels.
        control: What is changed in the rationales.

    Raises:
        ValueError: A rationale's file is malformed, or the store is damaged or cannot be written.
    """
    depends_on = {
        # The code and the library that turn text into tokens; nobody has to remember to count a version up.
        "code": [
            hash_path(file) for files in _TEXT_TO_TOKENS for file in sorted(Path(__file__).parents[1].glob(files))
        ],
        "tokenizers": version("tokenizers"),
        "tokenizer": hash_tokenizer(tokenizer),
        "prompt": prompt.id,
        **_identify_languages(questions),
        "control": control.identity,
        "questions": hash_json([question.content for question in questions]),
        "rationales": rationales and [_hash_input(path) for path in rationales],
    }

    def write(temporary: Path) -> None:
        pairs = _read_pairs(questions, rationales, control)
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as out:
            for batch in _tokenize(tokenizer, prompt, pairs, control):
                out.write_batch(batch)

    return ExampleStore(write_once(cache_dir, "examples.arrow", depends_on, write))


def map_batches(path: Path, what: str, verify: bool) -> list[pa.RecordBatch]:
    """Returns the record batches of a file that `write_once` wrote, mapped into memory.

    Args:
        path: The file.
        what: Names what it holds, for the message.
        verify: Check it against its checksum.

    Raises:
        ValueError: It is damaged.
    """
    try:
        checksum = json.loads((path.parent / "manifest.json").read_text())["sha256"]
        if verify and hash_path(path) != checksum:
            raise ValueError("it is not the file that manifest.json lists")
        batches: list[pa.RecordBatch] = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the {what} are damaged ({error}); delete their folder") from None
    return batches


def write_once(cache_dir: Path, name: str, depends_on: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Returns the folder of a file that depends on these facts alone, and writes it first if no process has yet.

    Args:
        cache_dir: Folder of all such folders.
        name: Of the file; `manifest.json` beside it has its checksum.
        depends_on: The facts, as JSON.
        write: Writes the file at a path.

    Raises:
        ValueError: It cannot be written.
    """
    folder = cache_dir / hash_json(depends_on)
    if folder.is_dir():
        return folder
    check_place(folder)
    lock = folder.with_name(f".{folder.name}.lock")
    with hold(lock, f"{folder}: another process writes this store", wait=True):
        if folder.is_dir():
            return folder
        remove_torn(cache_dir, folder.name)
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            write(temporary / name)
            checksum = hash_path(temporary / name)
            write_json(temporary / "manifest.json", {"sha256": checksum, "depends_on": depends_on})
    return folder
