"""Tests of the metrics against slow references, scikit-like formulas written out."""

import itertools
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, BertTokenizerFast

from datamodules.answers.extractors import EXTRACTORS
from lightning_modules.evaluation.metrics import (
    LIKELIHOOD_METRICS,
    estimate_share,
    format_table,
    macro_f1,
    measure,
    to_json,
)
from lightning_modules.evaluation.proportions import wilson_interval
from lightning_modules.evaluation.records import LIKELIHOODS

WORDS = "the answer is that iron conducts heat, so a nail gets warm; it's 3.5 degrees (or more) – see B.".split()


def make_record(number: int, answer: str | None, gold: str | None = "A", **changes) -> dict:
    """Makes a prediction about two options, of which the given one is found."""
    correct = None if gold is None else answer == gold
    return {
        "task": "t",
        "split": "test",
        "question_id": f"q{number}",
        "gold": gold,
        "completion": "It is so. The answer is A.",
        "rationale_length": 9,
        "finish_reason": "stop",
        **{f"answer_{name}": answer for name in (*EXTRACTORS, *LIKELIHOODS)},
        **{f"correct_{name}": correct for name in (*EXTRACTORS, *LIKELIHOODS)},
        "exact_match": correct,
        "rationale_answer": None,
        "sentence_answer": answer,
        "option_log_likelihoods": [-1.0, -2.0],
        "num_completion_tokens": 7,
        "samples": None,
        "num_votes": None,
        "references": None,
        **changes,
    }


def test_each_likelihood_has_its_name() -> None:
    assert set(LIKELIHOOD_METRICS) == set(LIKELIHOODS)


def test_splits_of_a_task_are_apart() -> None:
    answers = [("dev", "A"), ("dev", "B"), ("test", "A"), ("test", "A"), ("test", None)]
    records = [make_record(index, answer, split=split) for index, (split, answer) in enumerate(answers)]
    metrics = measure([*records, make_record(9, "A", task="other")])
    assert {name: own["accuracy_neutral"].n for name, own in metrics.items()} == {"t/dev": 2, "t/test": 3, "other": 1}
    assert metrics["t/dev"]["accuracy_neutral"].value == 1 / 2


def test_languages_are_apart_and_keep_their_names() -> None:
    languages = ["de", "de", "th", "en", "en"]
    records = [make_record(index, "A", language=language) for index, language in enumerate(languages)]
    sizes = {name: own["accuracy_neutral"].n for name, own in measure(records).items()}
    assert sizes == {"t/de": 2, "t/th": 1, "t": 2, "t/de+en+th": 5}
    assert list(measure(records[2:3])) == ["t/th"]
    splits = [{**record, "split": split} for record, split in zip(records[:2], ("dev", "test"), strict=True)]
    assert list(measure(splits)) == ["t/dev/de", "t/test/de"]


def test_languages_together_have_intervals_over_questions_not_translations() -> None:
    languages = ["bn", "de", "en", "fr"]
    # Each question is answered right in all of its languages, or in none.
    records = [
        make_record(n, "A" if n // 4 < 12 else "B", language=languages[n % 4], group=f"p{n // 4}") for n in range(80)
    ]
    metrics = measure(records)
    whole, german = metrics["t/bn+de+en+fr"]["accuracy_neutral"], metrics["t/de"]["accuracy_neutral"]
    assert (whole.value, german.value, whole.n, german.n) == (0.6, 0.6, 80, 20)
    assert whole.low == pytest.approx(german.low, abs=0.02) and whole.high == pytest.approx(german.high, abs=0.02)


def test_questions_that_a_revision_replaced_are_also_left_out() -> None:
    answers = [("A", True), ("B", True), ("A", False)]
    records = [make_record(n, answer, replaced_in_rev2=replaced) for n, (answer, replaced) in enumerate(answers)]
    metrics = measure(records)["t"]
    assert (metrics["accuracy_neutral"].value, metrics["accuracy_neutral"].n) == (2 / 3, 3)
    assert (metrics["accuracy_neutral_kept"].value, metrics["accuracy_neutral_kept"].n) == (1, 1)
    assert not [name for name in measure(records[2:])["t"] if name.endswith("_kept")]


def test_fertility_is_tokens_a_word_and_a_character_where_nothing_separates_words() -> None:
    records = [
        make_record(0, "A", completion="It is so.", num_completion_tokens=6, language="en"),
        make_record(1, "A", completion="是这样。", num_completion_tokens=8, language="zh"),
        make_record(2, "A", completion="", num_completion_tokens=1, language="th"),
    ]
    metrics = measure(records)
    assert (metrics["t"]["fertility"].value, metrics["t"]["fertility"].n) == (2, 3)
    # Three characters and a full stop.
    assert (metrics["t/zh"]["fertility"].value, metrics["t/zh"]["fertility"].n) == (2, 4)
    assert "fertility" not in metrics["t/th"]


def test_shares_of_questions_in_groups_are_over_groups() -> None:
    # Ten passages of eight questions, which are all answered right or all wrong.
    groups = [f"passage {number // 8}" for number in range(80)]
    records = [make_record(n, "A" if n // 8 < 6 else "B", group=group) for n, group in enumerate(groups)]
    alone = [{**record, "group": None} for record in records]
    found, single = (measure(own)["t"]["accuracy_neutral"] for own in (records, alone))
    assert found.value == single.value == 0.6 and found.n == 80
    assert (single.low, single.high) == pytest.approx(wilson_interval(48, 80))
    # As of nine trials, ten groups less one, with t for the normal quantile.
    assert (found.low, found.high) == pytest.approx(wilson_interval(5.4, 9, 2.262157))
    assert estimate_share([True] * 8, ["a"] * 4 + ["b"] * 4).low == pytest.approx(wilson_interval(2, 2)[0])
    assert estimate_share([True] * 8, ["a"] * 8).low == pytest.approx(wilson_interval(1, 1)[0])


def test_shares_are_counted_over_the_questions_that_they_are_of() -> None:
    records = [
        make_record(0, "A"),
        make_record(1, "B"),
        make_record(2, None),
        make_record(3, "A", gold=None, exact_match=None),
        make_record(4, "A", finish_reason="length", rationale_answer="B"),
        make_record(5, "A", rationale_answer="A", samples=["x", "y"], num_votes=1),
    ]
    metrics = measure(records)["t"]
    assert (metrics["accuracy_neutral"].value, metrics["accuracy_neutral"].n) == (3 / 5, 5)
    assert (metrics["extraction_rate_neutral"].value, metrics["extraction_rate_neutral"].n) == (5 / 6, 6)
    assert metrics["exact_match"].value == 3 / 5
    assert metrics["stated"].value == 5 / 6
    assert metrics["truncated"].value == 1 / 6
    assert (metrics["consistency"].value, metrics["consistency"].n) == (1 / 2, 2)
    assert (metrics["votes"].value, metrics["votes"].n) == (1 / 2, 1)
    assert (metrics["rationale_words"].value, metrics["completion_tokens"].value) == (3, 7)
    # "It is so." six times: three words of 18, two pairs of 12.
    assert (metrics["distinct_1"].value, metrics["distinct_2"].value) == (3 / 18, 2 / 12)


def test_nothing_is_said_where_there_is_nothing_to_say() -> None:
    unknown = make_record(0, None, gold=None, option_log_likelihoods=[], completion="", rationale_length=0)
    names = set(measure([unknown])["t"])
    assert names == {
        "extraction_rate_neutral",
        "extraction_rate_paper",
        "completion_tokens",
        "rationale_words",
        "truncated",
        "stated",
    }
    number = make_record(0, "72", gold="72", option_log_likelihoods=[])
    assert not {"macro_f1_neutral", "acc", "ece"} & set(measure([number])["t"])


def test_wilsons_interval() -> None:
    estimate = estimate_share([True] * 15 + [False] * 5)
    z, p, n = 1.959963984540054, 0.75, 20
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert [estimate.low, estimate.high] == pytest.approx(expected)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABCD") | st.none()), min_size=1, max_size=20))
def test_macro_f1_is_the_mean_over_the_gold_letters(pairs: list[tuple[str, str | None]]) -> None:
    scores = []
    for letter in {gold for gold, _ in pairs}:
        hits = sum(gold == letter == answer for gold, answer in pairs)
        said = sum(answer == letter for _, answer in pairs)
        wanted = sum(gold == letter for gold, _ in pairs)
        scores.append(2 * hits / (said + wanted))
    assert macro_f1(*map(list, zip(*pairs, strict=True))) == pytest.approx(fmean(scores), abs=1e-6)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.lists(st.floats(-30, 0), min_size=2, max_size=5)), min_size=1, max_size=20)
)
def test_calibration_is_that_of_the_options_own_probabilities(pairs: list[tuple[int, list[float]]]) -> None:
    records, brier, bins, is_close = [], [], [[] for _ in range(15)], False
    for index, (gold, scores) in enumerate(pairs):
        records.append(make_record(index, "A", gold="AB"[gold], option_log_likelihoods=scores))
        total = sum(math.exp(score) for score in scores)
        p = [math.exp(score) / total for score in scores]
        brier.append(sum((value - (place == gold)) ** 2 for place, value in enumerate(p)))
        best = max(range(len(p)), key=p.__getitem__)
        # Where rounding decides which of two bins or options it is, there is nothing to compare.
        is_close |= abs(max(p) * 15 % 1 - 0.5) > 0.4999 and max(p) < 0.99
        is_close |= sorted(p)[-1] - sorted(p)[-2] < 1e-5
        bins[min(int(max(p) * 15), 14)].append((max(p), best == gold))
    metrics = measure(records)["t"]
    assert metrics["brier"].value == pytest.approx(fmean(brier), abs=1e-9)
    if not is_close:
        gaps = (abs(sum(confidence - hit for confidence, hit in own)) for own in bins)
        assert metrics["ece"].value == pytest.approx(sum(gaps) / len(pairs), abs=2e-6)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    right = [make_record(number, "A", option_log_likelihoods=[0.0, -1000.0]) for number in range(3)]
    wrong = [make_record(number, "A", gold="B", option_log_likelihoods=[0.0, -1000.0, -1000.0]) for number in range(3)]
    for records, ece, brier in ((right, 0, 0), (wrong, 1, 2)):
        metrics = measure(records)["t"]
        assert metrics["ece"].value == pytest.approx(ece, abs=2e-6)
        assert metrics["brier"].value == brier


def test_rationales_are_compared_with_each_teachers_without_their_answers() -> None:
    records = [make_record(0, "A"), make_record(1, "A")]
    references = {"q0": {"kin": ["It is so."], "other": ["No.", "It is so."]}, "q1": {"kin": ["Nothing alike"]}}
    metrics = measure(records, references)["t"]
    assert (metrics["rouge1/kin"].value, metrics["rouge1/kin"].n) == (0.5, 2)
    assert (metrics["rouge1/other"].value, metrics["rouge1/other"].n) == (1, 1)


def test_references_are_weighed_by_their_tokens() -> None:
    scores = [
        {"teacher": "kin", "num_tokens": 1, "num_compared": 1, "log_likelihood": -1.0, "kl": 0.5, "agreement": 1.0},
        {"teacher": "kin", "num_tokens": 3, "num_compared": 3, "log_likelihood": -5.0, "kl": 0.7, "agreement": 1.0},
        {
            "teacher": "other",
            "num_tokens": 2,
            "num_compared": None,
            "log_likelihood": -4.0,
            "kl": None,
            "agreement": None,
        },
    ]
    metrics = measure([make_record(0, "A", references=scores[:1]), make_record(1, "A", references=scores[1:])])["t"]
    assert metrics["perplexity/kin"].value == pytest.approx(math.exp(6 / 4))
    assert (metrics["kl/kin"].value, metrics["kl/kin"].n) == (pytest.approx(1.2 / 4), 4)
    assert metrics["agreement/kin"].value == 0.5
    assert metrics["perplexity/other"].value == pytest.approx(math.exp(2)) and "kl/other" not in metrics


def test_tasks_are_kept_apart_and_no_question_counts_twice() -> None:
    records = [make_record(0, "A"), make_record(0, "B", task="u"), make_record(1, "B", task="u")]
    metrics = measure(records)
    assert {task: own["accuracy_neutral"].value for task, own in metrics.items()} == {"t": 1, "u": 0}
    with pytest.raises(ValueError, match="question 'q1' of u is predicted twice"):
        measure([*records, records[2]])
    for order in itertools.permutations(records):
        assert to_json(measure(order)) == to_json(metrics)


def test_the_table_has_a_column_for_each_task() -> None:
    table = format_table(
        measure([make_record(0, "A"), make_record(0, "7", "7", task="u", option_log_likelihoods=[])])
    ).splitlines()
    assert table[0].split() == ["t", "u"]
    [line] = [line for line in table if line.startswith("macro_f1_neutral")]
    assert line.split() == ["macro_f1_neutral", "1", "(n=1)", "–"]
    [line] = [line for line in table if line.startswith("accuracy_neutral")]
    assert line.count("100.0% [20.7%, 100.0%] (n=1)") == 2


def test_bert_score_embeds_with_a_local_model(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "is", "so", "no", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(tmp_path)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    references = {"q0": {"same": ["It is so."], "other": ["no no"]}}
    metrics = measure([make_record(0, "A")], references, str(tmp_path))["t"]
    assert metrics["bert_score/same"].value == pytest.approx(1, abs=1e-5)
    assert metrics["bert_score/other"].value < 0.99
