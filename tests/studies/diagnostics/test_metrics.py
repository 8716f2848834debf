"""Diagnostics against plain formulas, one rationale and one token after the other, and in cases that are known."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from studies.diagnostics import likelihood, logits, ranks, surface, tokenizers
from studies.diagnostics.metrics import Fit, Mean, OfSet
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.texts import Reading
from tests.tiny import build_tokenizer


def make_fit(readings: list[Reading], teacher: str = "t", **options) -> Fit:
    return Fit(teacher, [item for item in readings if item.text.rationale.teacher == teacher], readings, **options)


def estimate(diagnostic: Mean | OfSet, fit: Fit) -> float:
    numbers = {key: index for index, key in enumerate({item.text.question.id for item in fit.readings})}
    places = np.array([numbers[item.text.question.id] for item in fit.readings])
    weights_RQ = np.random.default_rng(0).multinomial(len(numbers), [1 / len(numbers)] * len(numbers), size=50)
    found = diagnostic.estimate(fit, weights_RQ, places)
    assert found is not None and found.low <= found.value + 1e-12 and found.value - 1e-12 <= found.high
    return found.value


def value(function, fit: Fit) -> float:
    return estimate(Mean(function, None, ""), fit)


def test_surprisal_by_plain_formulas(readings: list[Reading]) -> None:
    fit = make_fit(readings)
    lists = [(item.text, item.nll.tolist()) for item in fit.readings]
    means = [sum(nll) / len(nll) for _, nll in lists]
    assert value(likelihood.nll, fit) == pytest.approx(sum(means) / len(means))
    total_bytes = sum(len(text.completion.encode()) for text, _ in lists)
    bits = sum(sum(nll) for _, nll in lists) / math.log(2)
    assert value(likelihood.bits_per_byte, fit) == pytest.approx(bits / total_bytes)
    firsts = [[nll[step] for step in text.steps] for text, nll in lists]
    others = [[x for index, x in enumerate(nll) if index not in text.steps] for text, nll in lists]
    assert value(likelihood.nll_first, fit) == pytest.approx(np.mean([np.mean(part) for part in firsts]))
    assert value(likelihood.nll_drop, fit) == pytest.approx(np.mean([np.mean(part) for part in others]))
    answers = [[x for x, flag in zip(nll, text.is_answer, strict=True) if flag] for text, nll in lists]
    assert value(likelihood.nll_answer, fit) == pytest.approx(np.mean([np.mean(part) for part in answers]))
    ifds = [
        math.exp(np.mean(nll[1:])) / math.exp(item.alone.mean())
        for (_, nll), item in zip(lists, fit.readings, strict=True)
    ]
    assert value(likelihood.ifd, fit) == pytest.approx(np.mean(ifds))
    right = np.mean([item.text.rationale.correct for item in fit.readings])
    assert value(likelihood.car, replace(fit, reward_weight=3.0)) == pytest.approx(right / (1 + 3 * np.mean(means)))
    rewards = {item.text.rationale.id: 0.5 for item in fit.readings}
    assert value(likelihood.car, replace(fit, rewards=rewards)) == pytest.approx(0.5 / (1 + np.mean(means)))


def test_casl_takes_away_what_the_share_of_first_tokens_explains(readings: list[Reading]) -> None:
    """Where first tokens cost 5 nats and others 2, rationales of many short steps cost no more than others."""
    flat = []
    for item in readings:
        nll = np.full(len(item.nll), 2.0)
        nll[item.text.steps] = 5.0
        flat.append(replace(item, nll=nll))
    fit = make_fit(flat, "u")
    plain = [item.nll.mean() for item in fit.readings]
    assert max(plain) - min(plain) > 0.05
    assert np.allclose(likelihood.nll_casl(fit), 2.0)


def test_casl_by_normal_equations(readings: list[Reading]) -> None:
    fit = make_fit(readings)
    table = []
    for item in readings:
        first = [item.nll[step] for step in item.text.steps]
        other = [x for index, x in enumerate(item.nll) if index not in item.text.steps]
        table.append([item.nll.mean(), 1.0, np.mean(other), np.mean(first), len(first) / len(item.nll)])
    target, design = np.array(table)[:, 0], np.array(table)[:, 1:]
    slope = np.linalg.solve(design.T @ design, design.T @ target)[3]
    expected = [item.nll.mean() - slope * len(item.text.steps) / len(item.nll) for item in fit.readings]
    assert np.allclose(likelihood.nll_casl(fit), expected)


def test_rsr_is_the_released_formula(readings: list[Reading]) -> None:
    """Mean of the rationales' mean ranks, clipped at 100, over the mean of their mean surprisals."""
    fit = make_fit(readings)
    mean_ranks, mean_nlls = [], []
    for item in fit.readings:
        clipped = [min(int(rank), 100) for rank in item.rank]
        mean_ranks.append(sum(clipped) / len(clipped))
        mean_nlls.append(sum(item.nll) / len(item.nll))
    assert max(item.rank.max() for item in fit.readings) > 100
    assert value(ranks.rsr, fit) == pytest.approx((sum(mean_ranks) / 8) / (sum(mean_nlls) / 8))
    assert value(ranks.rank, fit) == pytest.approx(sum(mean_ranks) / 8)
    known = replace(fit.readings[0], rank=np.array([1.0, 2, 3, 4, 1000]), nll=np.full(5, 2.0))
    one = Fit("t", [known], [known])
    assert value(ranks.rsr, one) == pytest.approx((1 + 2 + 3 + 4 + 100) / 10)
    assert value(ranks.rank_1, one) == pytest.approx(0.2) and value(ranks.token_shift, one) == pytest.approx(0.4)


def test_entropy_where_tokens_surprise(readings: list[Reading]) -> None:
    fit = make_fit(readings)
    pooled = sorted(x for item in readings for x in item.nll)
    threshold = np.quantile(pooled, 0.8)
    kept = [h for item in fit.readings for h, x in zip(item.entropy, item.nll, strict=True) if x >= threshold]
    assert value(ranks.entropy_surprising, fit) == pytest.approx(sum(kept) / len(kept))
    assert value(ranks.entropy, fit) == pytest.approx(np.mean([item.entropy.mean() for item in fit.readings]))


def test_shifted_tokens_are_listed(reader: StudentReader, readings: list[Reading]) -> None:
    listed = ranks.list_shifted_tokens(reader.tokenizer, readings, 3)
    times = [number for _, number, _ in listed]
    assert times == sorted(times, reverse=True) and all(0 < shifted <= total for _, shifted, total in listed)


def test_surface_in_known_cases(readings: list[Reading]) -> None:
    fit = make_fit(readings, "u", teacher_accuracy=0.25)
    assert value(surface.correct, fit) == 0.5 and value(surface.answered, fit) == 1
    assert value(surface.teacher_accuracy, fit) == 0.25
    assert value(surface.steps, fit) == pytest.approx(np.mean([3, 4] * 4))
    assert value(surface.tokens, fit) == pytest.approx(np.mean([len(item.text.token_ids) for item in fit.readings]))
    per_step = sum(len(item.nll) for item in fit.readings) / sum(len(item.text.steps) for item in fit.readings)
    assert value(surface.step_tokens, fit) == pytest.approx(per_step)
    assert value(surface.answer_first, fit) == 0
    places = [item.text.completion.index("answer is") / len(item.text.completion) for item in fit.readings]
    assert value(surface.answer_position, fit) == pytest.approx(np.mean(places), abs=0.03)
    distinct = []
    for item in fit.readings:
        bigrams = list(pairwise(surface.split_words(item.text.completion)))
        distinct.append(len(set(bigrams)) / len(bigrams))
    assert value(surface.distinct_2, fit) == pytest.approx(np.mean(distinct))


def test_own_words_are_nearest(readings: list[Reading]) -> None:
    fit = make_fit(readings)
    echo = {item.text.question.id: item.text.completion for item in fit.readings}
    other = dict.fromkeys(echo, "zebras quack")
    firsts = [item for item in fit.readings if item.text.completion == echo[item.text.question.id]]
    assert value(surface.rouge_l_own, Fit("t", firsts, readings, own=echo)) == pytest.approx(1)
    assert value(surface.rouge_l_own, Fit("t", firsts, readings, own=other)) == 0
    words = {"t": [["a b a"], ["c"]], "u": [["a b a"], ["c"]], "v": [["x y"], ["z"]], surface.OWN: [["a"], ["a"]]}
    counts = {n: surface.count_ngrams(words, n) for n in (1, 2)}
    ones = np.ones(2)
    assert counts[1]["t"].toarray()[:, :3].tolist() == [[2, 1, 0], [0, 0, 1]]
    assert surface.compute_jsd(counts[1]["t"].T @ ones, counts[1]["u"].T @ ones) == 0
    assert surface.compute_jsd(counts[1]["t"].T @ ones, counts[1]["v"].T @ ones) == pytest.approx(1)
    fit = Fit("t", firsts, readings, counts=counts)
    own = estimate(OfSet(surface.jsd_1_own, None, ""), fit)
    p, q = np.array([0.5, 0.25, 0.25]), np.array([1.0, 0, 0])
    entropies = [-sum(x * math.log2(x) for x in part if x) for part in ((p + q) / 2, p, q)]
    assert own == pytest.approx(entropies[0] - (entropies[1] + entropies[2]) / 2)
    assert 0 < estimate(OfSet(surface.jsd_1_teachers, None, ""), fit) < 1


def test_tokenizers_in_known_cases(readings: list[Reading]) -> None:
    fit = make_fit(readings)
    tokens = sum(len(item.text.token_ids) - 1 for item in fit.readings)
    total = sum(len(item.text.completion.encode()) for item in fit.readings)
    assert value(tokenizers.fertility, fit) == pytest.approx(tokens / total)
    text = replace(fit.readings[0].text, completion="a 123 b 45 c 6", offsets=np.array(
        [(0, 1), (1, 3), (3, 4), (4, 5), (5, 7), (7, 10), (10, 12), (12, 14)]
    ))  # fmt: skip
    item = replace(fit.readings[0], text=text)
    assert value(tokenizers.number_tokens, Fit("t", [item], [item])) == pytest.approx((3 + 1) / 2)
    first, second = (tokenizers.list_vocabulary(build_tokenizer(corpus)) for corpus in (("red",), ("purple",)))
    both = replace(fit, vocabularies=(first, second))
    assert value(tokenizers.vocabulary_overlap, both) == pytest.approx(len(first & second) / len(first | second))
    assert value(tokenizers.vocabulary_overlap, replace(fit, vocabularies=(first, first))) == 1
    assert " answer" in first or " The" in first or any(token.startswith(" ") for token in first)


def test_what_cannot_be_had_is_left_out(readings: list[Reading]) -> None:
    fit = make_fit(readings)
    weights_RQ, places = np.ones((3, 4)), np.repeat(np.arange(4), 2)
    for diagnostic in [*logits.METRICS, Mean(surface.rouge_l_own, None, ""), Mean(tokenizers.number_tokens, None, "")]:
        assert diagnostic.estimate(fit, weights_RQ, places) is None


def test_intervals_shrink_with_questions_and_cover() -> None:
    """95 % intervals of a mean over questions with two rationales each, which are alike."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        effects = rng.normal(3, 1, 40)
        metric = Mean(lambda fit, effects=effects: np.repeat(effects, 2), None, "")  # type: ignore[misc]
        weights_RQ = rng.multinomial(40, np.full(40, 1 / 40), size=300)
        found = metric.estimate(Fit("t", [], []), weights_RQ, np.repeat(np.arange(40), 2))
        assert found is not None
        covered += found.low <= 3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=30)
    metric = OfSet(lambda fit: (lambda kept: float(values[kept].mean()), 30), None, "")
    found = metric.estimate(Fit("t", [], []), np.ones((1, 1)), np.zeros(1, int))
    assert found is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(30))
