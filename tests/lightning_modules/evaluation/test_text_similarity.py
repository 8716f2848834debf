"""Tests of texts' likeness against the reference packages, sacrebleu and rouge-score."""

import random
from pathlib import Path
from statistics import fmean

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from datamodules.files.atomic import read_records
from lightning_modules.evaluation.text_similarity import compare_rouge, compare_texts, split_words

WORDS = "the answer is that iron conducts heat, so a nail gets warm; it's 3.5 degrees (or more) – see B.".split()
ROUGES = ("rouge1", "rouge2", "rougeL")
HINDI, CHINESE, THAI = "सूरज पूर्व में उगता है और पश्चिम में डूबता है", "太阳从东方升起，在西方落下。", "ดวงอาทิตย์ขึ้นทางทิศตะวันออก"


def make_texts(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 30))) for _ in range(number)]


def check_against_references(written: list[str], given_texts: list[list[str]]) -> None:
    """Holds all measures against their packages; texts have as many given ones each."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(list(ROUGES))
    found = compare_texts(written, given_texts)
    scores = [scorer.score_multi(texts, text) for text, texts in zip(written, given_texts, strict=True)]
    streams = list(zip(*given_texts, strict=True))
    assert found == pytest.approx(
        {
            **{name: fmean(score[name].fmeasure for score in scores) for name in ROUGES},
            "bleu": sacrebleu.corpus_bleu(written, streams).score / 100,
            "chrf": sacrebleu.corpus_chrf(written, streams).score / 100,
        },
        abs=1e-9,
    )


@pytest.mark.parametrize("number", [1, 3])
def test_measures_are_those_of_the_reference_packages(number: int) -> None:
    sets = [make_texts(40, seed) for seed in range(1, 1 + number)]
    check_against_references(make_texts(40, 0), [list(texts) for texts in zip(*sets, strict=True)])


@pytest.mark.parametrize("text", ["", "warm", " ", "...", "It is warm."])
@pytest.mark.parametrize("other", ["", "warm", "cold", "It is cold."])
def test_the_shortest_texts_are_compared_as_the_reference_packages_do(text: str, other: str) -> None:
    check_against_references([text, "the nail is warm"], [[other], ["the nail is not warm"]])


def test_published_rationales_are_compared_as_the_reference_packages_do(shared_data: Path) -> None:
    pairs: list[tuple[str, str]] = []
    for _, record in read_records(shared_data / "csqa_train.jsonl.gz"):
        texts = [entry["text"] for entry in record["rationales"].values()]
        # rouge-score splits words at letters that are not ASCII.
        pairs += [(texts[0], texts[-1])] if all(text.isascii() for text in texts) and len(texts) > 1 else []
        if len(pairs) == 1000:
            break
    assert len(pairs) == 1000
    check_against_references([written for written, _ in pairs], [[given_text] for _, given_text in pairs])


def test_empty_texts_count() -> None:
    text = "the cat sat on the mat"
    found = compare_texts([text] + [""] * 9, [[text]] * 10)
    assert found["chrf"] == pytest.approx(0.12195, abs=1e-5)
    assert [found[name] for name in ROUGES] == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("text", [HINDI, CHINESE, THAI, "Ça c’est déjà très bien connu."])
def test_a_text_of_any_script_is_wholly_like_itself(text: str) -> None:
    assert list(compare_texts([text], [[text]]).values()) == pytest.approx([1] * 5)
    assert compare_rouge(text, [text[: len(text) // 2]])["rouge1"] < 1


def test_words_of_any_script() -> None:
    assert split_words("It's 3.5 cm; वह घर गया।") == ["it", "s", "3", "5", "cm", "वह", "घर", "गया"]
    assert split_words("他们GO去 ラ") == ["他", "们", "go", "去", "ラ"]


def test_bleu_of_chinese_is_that_of_sacrebleus_chinese_tokens() -> None:
    written, given_text = CHINESE, "太阳从东边升起，又在西方落下。"
    expected = sacrebleu.corpus_bleu([written], [[given_text]], tokenize="zh").score / 100
    assert compare_texts([written], [[given_text]])["bleu"] == pytest.approx(expected)


def test_texts_may_have_unequal_numbers_of_given_ones() -> None:
    written = ["iron is warm today", "iron is cold"]
    assert compare_texts(written, [["iron is warm today", "no"], ["iron is cold"]]) == pytest.approx(
        dict.fromkeys((*ROUGES, "bleu", "chrf"), 1)
    )


@given(st.lists(st.sampled_from("abc"), max_size=70), st.lists(st.sampled_from("abc"), max_size=70))
def test_rouge_l_is_of_the_longest_common_subsequence(written: list[str], given_words: list[str]) -> None:
    lengths = [[0] * (len(given_words) + 1) for _ in range(len(written) + 1)]
    for row, word in enumerate(written):
        for column, other in enumerate(given_words):
            lengths[row + 1][column + 1] = (
                lengths[row][column] + 1 if word == other else max(lengths[row][column + 1], lengths[row + 1][column])
            )
    total = len(written) + len(given_words)
    expected = 2 * lengths[-1][-1] / total if total else 0
    assert compare_rouge(" ".join(written), [" ".join(given_words)])["rougeL"] == pytest.approx(expected)
