"""Diagnostics of the text alone: how long, how right, in what order, in whose words."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import sparse

from datamodules.answers.extractors import extract_neutral
from lightning_modules.evaluation.text_similarity import compare_rouge, split_words
from studies.diagnostics.metrics import Diagnostic, Fit, Mean, OfSet, OnSet, Values
from studies.diagnostics.texts import Reading
from studies.inputs.rationale_quality import locate_answer, names_options

# No teacher has this name.
OWN = ""


def tokens(fit: Fit) -> Values:
    """Mean length of a completion in the student's tokens."""
    return fit.collect(lambda reading: len(reading.nll))


def steps(fit: Fit) -> Values:
    """Mean number of steps: sentences, or lines."""
    return fit.collect(lambda reading: len(reading.text.steps))


def step_tokens(fit: Fit) -> Values:
    """Tokens per step."""
    return tokens(fit), steps(fit)  # type: ignore[return-value]


def correct(fit: Fit) -> Values:
    """Share of these rationales that reach the gold answer."""
    return fit.collect(lambda reading: _number(reading.text.rationale.correct))


def answered(fit: Fit) -> Values:
    """Share of rationales with an answer."""
    return fit.collect(lambda reading: float(reading.text.rationale.answer is not None))


def teacher_accuracy(fit: Fit) -> Values | None:
    """Share of right answers of all that the teacher answered, sampled or not."""
    return None if fit.teacher_accuracy is None else np.full(len(fit.readings), fit.teacher_accuracy)


def answer_first(fit: Fit) -> Values:
    """Share of rationales whose first sentence alone yields the answer, of those with several and an answer."""
    return fit.collect(lambda reading: _first_is_answer(reading))


def answer_position(fit: Fit) -> Values:
    """Where the statement of the answer begins, as a share of the completion's length."""
    return fit.collect(lambda reading: _place_answer(reading))


def lists_options(fit: Fit) -> Values:
    """Share of rationales that name two options or more, of questions with options."""
    return fit.collect(lambda reading: _number(names_options(reading.text.rationale.text, reading.text.question)))


def question_words(fit: Fit) -> Values:
    """Share of a completion's words that the question, or one of its options, has as well."""
    return fit.collect(_share_question_words)


def distinct_2(fit: Fit) -> Values:
    """Different bigrams over all bigrams of a completion: how little it repeats itself."""
    return fit.collect(_share_distinct_bigrams)


def rouge_l_own(fit: Fit) -> Values | None:
    """ROUGE-L (F) of the rationale against the student's own zero-shot chain of thought on the question."""
    if not fit.own:
        return None

    def compare(reading: Reading) -> float:
        own = fit.own[reading.text.question.id]
        return compare_rouge(reading.text.completion, [own])["rougeL"]

    return fit.collect(compare)


def jsd_1_teachers(fit: Fit) -> OnSet | None:
    """Jensen-Shannon divergence of word frequencies from all other teachers', bits: how peculiar its words are."""
    return _diverge(fit, 1, [name for name in fit.counts[1] if name not in (OWN, fit.teacher)])


def jsd_2_teachers(fit: Fit) -> OnSet | None:
    """The same of bigrams."""
    return _diverge(fit, 2, [name for name in fit.counts[2] if name not in (OWN, fit.teacher)])


def jsd_1_own(fit: Fit) -> OnSet | None:
    """Jensen-Shannon divergence of word frequencies from those of the student's own chains of thought, bits."""
    return _diverge(fit, 1, [name for name in fit.counts[1] if name == OWN])


def jsd_2_own(fit: Fit) -> OnSet | None:
    """The same of bigrams."""
    return _diverge(fit, 2, [name for name in fit.counts[2] if name == OWN])


def count_ngrams(texts: dict[str, Sequence[Sequence[str]]], n: int) -> dict[str, sparse.csr_matrix]:
    """Counts n-grams of words: [questions, features] for each name, with the same features.

    Args:
        texts: By name, for each question its texts.
        n: Words in a row.
    """
    features: dict[tuple[str, ...], int] = {}
    tables = {}
    for name, questions in texts.items():
        triples = []
        for question, group in enumerate(questions):
            words = [split_words(text) for text in group]
            found = Counter(gram for part in words for gram in zip(*(part[i:] for i in range(n)), strict=False))
            triples += [(question, features.setdefault(gram, len(features)), times) for gram, times in found.items()]
        tables[name] = np.array(triples, dtype=np.int64).reshape(-1, 3), len(questions)
    return {
        name: sparse.csr_matrix((table[:, 2], (table[:, 0], table[:, 1])), shape=(number, len(features)))
        for name, (table, number) in tables.items()
    }


def compute_jsd(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Jensen-Shannon divergence, in bits, of two vectors of counts (Lin 1991)."""
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    parts = [part[part > 0] * np.log2(part[part > 0] / middle[part > 0]) for part in (p, q)]
    return float(sum(part.sum() for part in parts) / 2)


def _diverge(fit: Fit, n: int, others: list[str]) -> OnSet | None:
    if not others:
        return None
    own, pooled = fit.counts[n][fit.teacher], sum(fit.counts[n][name] for name in others)

    def evaluate(kept: np.ndarray) -> float:
        weights = kept.astype(np.float64)
        return compute_jsd(own.T @ weights, pooled.T @ weights)

    return evaluate, own.shape[0]


def _number(value: bool | None) -> float:
    return math.nan if value is None else float(value)


def _first_is_answer(reading: Reading) -> float:
    place = locate_answer(reading.text.completion, reading.text.question)
    return math.nan if place is None else float(place[0])


def _place_answer(reading: Reading) -> float:
    found = extract_neutral(reading.text.completion, reading.text.question)
    return math.nan if found is None else found.start / len(reading.text.completion)


def _share_question_words(reading: Reading) -> float:
    question = reading.text.question
    asked = {word for text in (question.question, *(question.choices or ())) for word in split_words(text)}
    words = split_words(reading.text.completion)
    return sum(word in asked for word in words) / len(words) if words else math.nan


def _share_distinct_bigrams(reading: Reading) -> float:
    words = split_words(reading.text.completion)
    bigrams = list(pairwise(words))
    return len(set(bigrams)) / len(bigrams) if bigrams else math.nan


METRICS: list[Diagnostic] = [
    Mean(tokens, None, "arXiv 2601.14249, 2411.07133"),
    Mean(steps, None, "granularity: Unveiling the Key Factors, arXiv 2502.18001"),
    Mean(step_tokens, None, "arXiv 2604.06834"),
    Mean(correct, "higher", "arXiv 2601.14249"),
    Mean(answered, "higher", "this project"),
    Mean(teacher_accuracy, "higher", "arXiv 2601.14249, 2511.02833"),
    Mean(answer_first, None, "order of answer and rationale: arXiv 2404.09170"),
    Mean(answer_position, None, "arXiv 2404.09170"),
    Mean(lists_options, None, "Ranaldi & Freitas 2024"),
    Mean(question_words, None, "this project"),
    Mean(distinct_2, None, "Li et al. 2016, arXiv 1510.03055"),
    Mean(rouge_l_own, "higher", "Lin 2004; LLMs are In-context Teachers, findings-emnlp 2024.961"),
    OfSet(jsd_1_teachers, None, "Lin 1991"),
    OfSet(jsd_2_teachers, None, "Lin 1991"),
    OfSet(jsd_1_own, "lower", "Lin 1991"),
    OfSet(jsd_2_own, "lower", "Lin 1991"),
]
