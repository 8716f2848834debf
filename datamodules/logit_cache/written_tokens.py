"""The log-probabilities that a server returns with what it writes, and the logit cache that they make.

A server names tokens by what they stand for, and nobody may know its vocabulary: ids are given in the order in which
tokens first appear, rationale by rationale, and the cache knows the bytes of each. Id 0 is the end of turn. Where a
server does not return the row of the token that ended a completion, there is no such row, and what a student learns of
ending has no target. A token that stands for no text, as a control token does, is never of use to a student: its mass
is the tail's. Two tokens of the same bytes count as one.
"""

import base64
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.examples.tokenization import Example
from datamodules.files.atomic import hash_text
from datamodules.logit_cache.codec import SMALLEST_TAIL, Arrays
from datamodules.logit_cache.format import CacheDescription, Sparsity
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.text.token_bytes import END, SPECIAL, VocabularyBytes

# What a token stands for: its bytes; or the name of one that stands for no text.
Meaning = bytes | str
END_ID = 0


class WrittenToken(NamedTuple):
    """One token of a completion, as a server returns it.

    Attributes:
        meaning: What it stands for.
        log_prob: Its log-probability; None where the server only says that it is below those of `best`.
        best: The most probable tokens there, with their log-probabilities; none where they were not asked for.
    """

    meaning: Meaning
    log_prob: float | None
    best: tuple[tuple[Meaning, float], ...]


def pack_tokens(tokens: Sequence[WrittenToken], end: WrittenToken | None) -> str:
    """Returns a text's tokens and what ended it as a short text, for a log of records."""
    lines = [
        token and [_name(token.meaning), token.log_prob, [[_name(other), value] for other, value in token.best]]
        for token in [*tokens, end]
    ]
    return base64.b64encode(zlib.compress(json.dumps(lines, ensure_ascii=False).encode())).decode()


def unpack_tokens(text: str) -> tuple[list[WrittenToken], WrittenToken | None]:
    """Returns the tokens and the end of such a text."""
    *tokens, end = [
        line and WrittenToken(_read(line[0]), line[1], tuple((_read(other), value) for other, value in line[2]))
        for line in json.loads(zlib.decompress(base64.b64decode(text)))
    ]
    return tokens, end


def _name(meaning: Meaning) -> str:
    return "b" + meaning.decode("latin-1") if isinstance(meaning, bytes) else "n" + meaning


def _read(name: str) -> Meaning:
    return name[1:].encode("latin-1") if name[0] == "b" else name[1:]


class Written(NamedTuple):
    """A rationale's tokens.

    Attributes:
        rationale_id: The rationale's id.
        question_id: Its question's.
        text: Its text.
        tokens: Of the text, in order.
        end: What ended it, if the server returned that.
    """

    rationale_id: str
    question_id: str
    text: str
    tokens: list[WrittenToken]
    end: WrittenToken | None


def trim_tokens(
    tokens: Sequence[WrittenToken], text: str, has_ended: bool
) -> tuple[list[WrittenToken], WrittenToken | None]:
    """Takes the tokens of a text out of all that a server wrote: its thinking, white space around, an end of turn.

    Args:
        tokens: All.
        text: The rationale's text.
        has_ended: Whether the teacher ended it.

    Returns:
        The tokens that make the text, or " " and the text; and the one that ended it. All tokens, where none make it.
    """
    parts = [token.meaning if isinstance(token.meaning, bytes) else b"" for token in tokens]
    wanted = text.encode()
    start = b"".join(parts).rfind(wanted)
    begins = np.cumsum([0, *map(len, parts)])
    inside = np.flatnonzero((begins[1:] > start) & (begins[:-1] < start + len(wanted)) & (np.diff(begins) > 0))
    if start < 0 or not len(inside):
        return list(tokens), None
    kept, after = [tokens[number] for number in inside.tolist()], int(inside[-1]) + 1
    made = b"".join(parts[number] for number in inside)
    if made not in (wanted, b" " + wanted):
        return list(tokens), None
    # White space after the text is no end of turn, nor is what comes after it the end of the text.
    is_end = has_ended and after == len(tokens) - 1 and (parts[after].strip() or not parts[after])
    return kept, tokens[after] if is_end else None


class TokenIds:
    """Gives tokens ids in the order in which they first appear."""

    def __init__(self) -> None:
        self._ids: dict[Meaning, int] = {}
        self._ends: set[Meaning] = set()

    def add(self, written: Written) -> None:
        """Takes in all tokens of a rationale."""
        if written.end is not None:
            self._ends.add(written.end.meaning)
        for token in _list_rows(written):
            for meaning in (token.meaning, *(other for other, _ in token.best)):
                self._ids.setdefault(meaning, len(self._ids) + 1)

    def __len__(self) -> int:
        return len(self._ids) + 1

    def __getitem__(self, meaning: Meaning) -> int:
        return END_ID if meaning in self._ends else self._ids[meaning]

    def describe(self) -> VocabularyBytes:
        """Returns what the ids stand for."""
        tokens, flags = [b""], [SPECIAL | END]
        for meaning in self._ids:
            is_text = isinstance(meaning, bytes) and meaning not in self._ends
            tokens.append(meaning if is_text and isinstance(meaning, bytes) else b"")
            flags.append(0 if is_text else SPECIAL)
        return VocabularyBytes.from_tokens(tokens, flags)

    def count_best(self, token: WrittenToken) -> int:
        """Returns the number of different tokens among the best."""
        return len({self[meaning] for meaning, _ in token.best})

    def make_rows(self, written: Written, size: int) -> Arrays:
        """Returns a rationale's rows, as `logit_codec` takes them.

        Args:
            written: The rationale.
            size: Of the support; 0 for the kind labels.
        """
        tokens = _list_rows(written)
        rows: Arrays = {
            "token_ids": np.array([self[token.meaning] for token in tokens], np.int64),
            "label_log_prob": np.array([self._find_log_prob(token) for token in tokens], np.float64),
        }
        if not size:
            return rows
        support, log_probs = np.full((len(tokens), size), -1, np.int64), np.full((len(tokens), size), -np.inf)
        for row, token in enumerate(tokens):
            found: dict[int, float] = {}
            for meaning, value in token.best:
                known = found.get(number := self[meaning], -np.inf)
                found[number] = float(np.logaddexp(known, value))
            best = sorted(found, key=lambda number: -found[number])[:size]
            support[row, : len(best)], log_probs[row, : len(best)] = best, [found[number] for number in best]
        # A rounded sum cannot say that nothing else is there.
        outside = np.maximum(1 - np.exp(log_probs).sum(1), SMALLEST_TAIL)
        return rows | {"support": support, "log_probs": log_probs, "log_tails": np.log(outside)[:, None]}

    @staticmethod
    def _find_log_prob(token: WrittenToken) -> float:
        """Returns a token's own log-probability; -inf where it is somewhere in the tail."""
        if token.log_prob is not None:
            return token.log_prob
        return max((value for meaning, value in token.best if meaning == token.meaning), default=-np.inf)


def write_cache(
    folder: Path,
    read: Callable[[], Iterator[Written]],
    has_best: bool,
    describe: Callable[[int, Sparsity, tuple[float, ...]], CacheDescription],
    creation: dict[str, Any],
) -> int:
    """Writes the cache of what a teacher wrote, or what a killed process has left of it.

    Args:
        folder: The cache.
        read: Yields all rationales, as often as it is called in the same order.
        has_best: The kind is top_k, or adaptive where some rows have fewer tokens than others; otherwise labels.
        describe: Makes a description of the vocabulary's size, what is kept, and the temperatures.
        creation: The creation record.

    Returns:
        The number of rows.

    Raises:
        ValueError: The folder holds something else, another process writes it, or the disk is full.
    """
    ids = TokenIds()
    for written in read():
        ids.add(written)
    if not len(ids) > 1:
        return 0
    sizes = {ids.count_best(token) for written in read() for token in _list_rows(written)} if has_best else {0}
    size = max(sizes)
    if not has_best:
        sparsity = Sparsity.resolve("labels")
    elif len(sizes) == 1:
        sparsity = Sparsity.resolve("top_k", top_k=size, values="float16")
    else:
        sparsity = Sparsity.resolve("adaptive", top_k=size, mass=1.0, values="float16")
    writer = LogitCacheWriter(folder, describe(len(ids), sparsity, (1.0,) if has_best else ()))
    done, num_rows = writer.find_done(), 0
    writer.open()
    try:
        for written in read():
            num_rows += len(_list_rows(written))
            if written.rationale_id not in done:
                writer.add([(_make_example(written), ids.make_rows(written, size))])
        writer.flush()
        writer.finish(ids.describe(), creation)
    finally:
        writer.close()
    return num_rows


def _list_rows(written: Written) -> list[WrittenToken]:
    return [*written.tokens, *filter(None, [written.end])]


def _make_example(written: Written) -> Example:
    """Returns the completion as a cache names it; its prompt and its tokens are the teacher's alone."""
    nothing = np.array([], np.int32)
    text_hash = hash_text(written.text)
    return Example(
        id=written.rationale_id,
        question_id=written.question_id,
        token_ids=nothing,
        segments=nothing.astype(np.int8),
        text_hash=text_hash,
        completion_hash=text_hash,
    )
