"""Toy language models over a few byte strings, and what they give texts, by summing over token strings."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.examples.alignment import Alignment, align
from datamodules.logit_cache.conversion import RowConverter
from datamodules.text.token_bytes import END, SPECIAL, VocabularyBytes

SPECIALS = [b"<pad>", b"<unk>"]


def make_vocabulary(tokens: Sequence[bytes]) -> VocabularyBytes:
    """Returns the vocabulary of these tokens, SPECIALS among them or not, and of one more that ends a turn."""
    flags = [SPECIAL if token in SPECIALS else 0 for token in tokens]
    return VocabularyBytes.from_tokens([*tokens, b""], [*flags, SPECIAL | END])


class ToyModel:
    """A language model whose next-token distribution depends on all tokens before, and on nothing learnt."""

    def __init__(self, tokens: Sequence[bytes], seed: int):
        self.tokens, self.seed, self.end = list(tokens), seed, len(tokens)
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def log_probs(self, context: tuple[int, ...]) -> np.ndarray:
        """Returns log p of the next token, float64 [V], the end of turn last."""
        if context not in self._known:
            logits = np.random.default_rng([self.seed, *context]).normal(0, 1.5, len(self.tokens) + 1)
            self._known[context] = logits - np.log(np.exp(logits).sum())
        return self._known[context]

    def begins_with(self, text: bytes, context: tuple[int, ...]) -> float:
        """Returns the probability that what follows begins with a text, over all ways to write it."""
        total = 0.0
        for index, token in enumerate(self.tokens):
            p = float(np.exp(self.log_probs(context)[index]))
            if token.startswith(text):
                total += p
            elif text.startswith(token):
                total += p * self.begins_with(text[len(token) :], (*context, index))
        return total

    def rows(self, ids: Sequence[int], temperatures: Sequence[float]) -> dict[str, np.ndarray]:
        """Returns the rows of a completion with the whole vocabulary as their support."""
        log_probs = np.stack([self.log_probs(tuple(ids[:place])) for place in range(len(ids))])
        softened = [np.log(np.exp(log_probs / temperature).sum(1)) for temperature in temperatures]
        return {
            "token_ids": np.array(ids, np.int32),
            "label_log_prob": log_probs[np.arange(len(ids)), ids],
            "support": np.tile(np.arange(self.end + 1, dtype=np.int32), (len(ids), 1)),
            "log_probs": log_probs,
            "log_normalizers": np.where(np.array(temperatures) == 1, 0, np.stack(softened, 1)),
            "log_tails": np.full((len(ids), len(temperatures)), -np.inf),
        }


def cut_support(rows: dict[str, np.ndarray], temperatures: Sequence[float], width: int) -> dict[str, np.ndarray]:
    """Returns rows with the most probable tokens alone, the rest in the tail."""
    order = np.argsort(-rows["log_probs"], axis=1, kind="stable")
    tails = [
        np.log(
            np.exp(
                np.take_along_axis(rows["log_probs"], order[:, width:], 1) / T - rows["log_normalizers"][:, [n]]
            ).sum(1)
        )
        for n, T in enumerate(temperatures)
    ]
    kept = {name: np.take_along_axis(rows[name], order[:, :width], 1) for name in ("support", "log_probs")}
    return rows | kept | {"log_tails": np.stack(tails, 1)}


def draw_vocabulary(generator: np.random.Generator, size: int) -> list[bytes]:
    """Returns two letters and strings of them."""
    tokens = {b"a", b"b"}
    while len(tokens) < size:
        tokens.add(bytes(generator.choice(list(b"ab"), generator.integers(2, 6)).tolist()))
    return sorted(tokens)


def draw_cut(generator: np.random.Generator, text: bytes, tokens: Sequence[bytes]) -> list[int]:
    """Cuts a text into tokens at random, an end of turn after the last."""
    ids, place = [], 0
    while place < len(text):
        fits = [index for index, token in enumerate(tokens) if text.startswith(token, place)]
        ids.append(int(generator.choice(fits)))
        place += len(tokens[ids[-1]])
    return [*ids, len(tokens)]


def align_toys(student: Sequence[bytes], student_ids: list[int], teacher: Sequence[bytes], ids: list[int]) -> Alignment:
    """Aligns two cuts of one text."""
    alignment = align(student_ids, ids, make_vocabulary(student), make_vocabulary(teacher))
    assert alignment is not None
    return alignment


def make_converter(teacher: Sequence[bytes], student: Sequence[bytes], **options: Any) -> RowConverter:
    """Returns a converter between the vocabularies of these tokens."""
    settings: dict[str, Any] = {"kind": "top_k", "temperatures": (1.0,), "alignment": "bytes"} | options
    return RowConverter(make_vocabulary(teacher), make_vocabulary(student), len(student), **settings)


def to_dense(planes: dict[str, np.ndarray], size: int, index: int = 0) -> np.ndarray:
    """Returns probabilities [N, size + 1] of the student's ids, the tail last."""
    dense = np.zeros((len(planes["support"]), size + 1))
    for row, (ids, log_probs) in enumerate(zip(planes["support"], planes["log_probs"][..., index], strict=True)):
        used = ids >= 0
        assert len(set(ids[used])) == used.sum(), "an id stands twice in a row"
        assert np.isneginf(log_probs[~used]).all()
        dense[row, ids[used]] = np.exp(log_probs[used])
    dense[:, -1] = np.exp(planes["log_tails"][:, index])
    return dense
