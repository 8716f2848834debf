"""How alike texts are: ROUGE, BLEU and chrF, also of scripts that are written without spaces."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import regex
import sacrebleu

from datamodules.text.words import separate_characters

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def split_words(text: str) -> list[str]:
    """Returns a text's words in lower case: runs of letters, their marks and digits of any script.

    Of text in ASCII these are rouge-score's tokens; that one drops every other letter.
    """
    words: list[str] = _WORD.findall(separate_characters(text.lower()))
    return words


def compare_texts(written: Sequence[str], given: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns `rouge1`, `rouge2`, `rougeL`, `bleu` and `chrf` of texts, each against one or more given ones; 1 is best.

    An empty text counts, as wholly unlike.
    """
    # Any: sacrebleu takes None where a text has fewer given ones, but its annotations do not say so.
    streams: list[Any] = [
        [texts[place] if place < len(texts) else None for texts in given] for place in range(max(map(len, given)))
    ]
    spaced: list[Any] = [[None if text is None else separate_characters(text) for text in stream] for stream in streams]
    rouges = [compare_rouge(text, texts) for text, texts in zip(written, given, strict=True)]
    return {
        **{name: fmean(rouge[name] for rouge in rouges) for name in rouges[0]},
        "bleu": sacrebleu.corpus_bleu([separate_characters(text) for text in written], spaced).score / 100,
        "chrf": sacrebleu.corpus_chrf(written, streams).score / 100,
    }


def compare_rouge(written: str, given: Sequence[str]) -> dict[str, float]:
    """Returns the F1 of ROUGE-1, -2 and -L (Lin 2004, without stemming) against the nearest given text by each."""
    words, others = split_words(written), [split_words(text) for text in given]
    return {
        **{f"rouge{n}": max(_overlap_ngrams(words, other, n) for other in others) for n in (1, 2)},
        "rougeL": max(_f1(_measure_common(words, other), len(words), len(other)) for other in others),
    }


def _f1(common: int, written: int, given: int) -> float:
    return 2 * common / (written + given) if common else 0.0


def _overlap_ngrams(written: Sequence[str], given: Sequence[str], n: int) -> float:
    counts = [Counter(zip(*(words[place:] for place in range(n)), strict=False)) for words in (written, given)]
    return _f1((counts[0] & counts[1]).total(), *(own.total() for own in counts))


def _measure_common(written: Sequence[str], given: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence, by the bits of one integer (Hyyrö 2004)."""
    places: Counter[str] = Counter()
    for index, word in enumerate(written):
        places[word] |= 1 << index
    full = row = (1 << len(written)) - 1
    for word in given:
        matches = row & places[word]
        row = ((row + matches) | (row - matches)) & full
    return len(written) - row.bit_count()
