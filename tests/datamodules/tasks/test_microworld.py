"""Tests of the microworld: its questions, its tokenizers and its committed models."""

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.tasks.microworld import (
    ABILITIES,
    CHAINS_PER_WORLD,
    KINDS,
    LETTERS,
    format_prompt,
    generate_questions,
    pretraining_pairs,
)

MODELS = Path(__file__).parents[3] / "configs" / "models" / "microworld"
FAMILIES = sorted(folder.name.removesuffix("-teacher") for folder in MODELS.glob("*-teacher"))
SPLITS = ("train", "validation", "test")


def solve(question: str) -> str:
    """Solves a question from its text alone: the last sentence is the query, the others are facts."""
    *facts, query = re.split(r"(?<=[.?]) ", question)
    follows = {}
    for fact in facts:
        words = fact.rstrip(".").split()
        content = [word for word in words if any(word in kind for kind in KINDS)]
        assert len(content) == 2, fact
        assert content[0] not in follows, fact
        follows[content[0]] = content[1]
    (word,) = [word for word in re.findall(r"\w+", query) if word in follows]
    while word in follows:
        word = follows[word]
    return word


@pytest.mark.parametrize("split", SPLITS)
def test_gold_is_what_an_independent_solver_finds(split: str) -> None:
    for question in generate_questions(500, split, seed=3):
        assert question["choices"][LETTERS.index(question["gold"])] == solve(question["question"])


def test_fields_are_those_of_the_design() -> None:
    question = generate_questions(1, "test", seed=0)[0]
    assert list(question) == ["id", "task", "split", "question", "choices", "gold", "language"]
    assert (question["task"], question["split"], question["language"]) == ("microworld", "test", "en")
    assert set(question["choices"]) <= set(ABILITIES) and len(set(question["choices"])) == CHAINS_PER_WORLD
    assert question["id"].startswith("microworld-test-")


def test_same_seed_same_questions_and_a_longer_list_begins_with_the_shorter() -> None:
    assert generate_questions(50, "train", 1) == generate_questions(120, "train", 1)[:50]
    assert generate_questions(50, "train", 1) != generate_questions(50, "train", 2)
    assert generate_questions(0, "train", 1) == []


def test_unknown_split_and_negative_number_are_refused() -> None:
    with pytest.raises(ValueError, match="pretrain"):
        generate_questions(1, "pretrain", 0)
    with pytest.raises(ValueError, match="-1"):
        generate_questions(-1, "train", 0)


def content(question: str) -> tuple[frozenset[str], str]:
    """What a question says, whatever the order of its facts."""
    *facts, query = re.split(r"(?<=[.?]) ", question)
    return frozenset(facts), query


def test_splits_are_disjoint_and_without_duplicates() -> None:
    seen: dict[tuple, str] = {}
    for split in SPLITS:
        questions = generate_questions(2000, split, seed=0)
        assert len({content(q["question"]) for q in questions}) == len({q["id"] for q in questions}) == 2000
        for question in questions + generate_questions(1000, split, seed=1):
            assert seen.setdefault(content(question["question"]), split) == split


def test_gold_positions_and_hops_are_balanced() -> None:
    questions = generate_questions(2000, "train", seed=0)
    counts = Counter(question["gold"] for question in questions)
    assert set(counts) == set(LETTERS) and all(420 < count < 580 for count in counts.values())
    assert 900 < sum("thing that" in question["question"] for question in questions) < 1100


@pytest.mark.parametrize("phrasing", ["a", "b"])
def test_a_student_is_never_shown_a_chain(phrasing: str) -> None:
    pairs = list(itertools.islice(pretraining_pairs(phrasing, "student", 0), 400))
    asked = [(prompt, completion) for prompt, completion in pairs if prompt.startswith("Question")]
    assert 100 < len(asked) < 300
    words = {word for kind in KINDS for word in kind}
    for prompt, completion in asked:
        assert "thing that" not in prompt
        step, answer = completion.split(". The answer is ")
        first, second = [word for word in re.findall(r"\w+", step) if word in words]
        assert second == answer.rstrip(".") and first in prompt


@pytest.mark.parametrize("family", ["a", "b"])
def test_tokenizers_round_trip_and_keep_words_whole(family: str) -> None:
    teacher, student = (MODELS / f"{family}-{role}" for role in ("teacher", "student"))
    assert (teacher / "tokenizer.json").read_bytes() == (student / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(student)
    for phrasing in ("a", "b"):
        for pair in itertools.islice(pretraining_pairs(phrasing, "teacher", 9), 100):
            for text in pair:
                assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for word in itertools.chain(*KINDS):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    printable = "".join(map(chr, range(33, 127)))
    ids = tokenizer(printable)["input_ids"]
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == printable
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == ("</s>", "<pad>", "<unk>")
    assert tokenizer.bos_token is None and tokenizer.model_max_length == 512


def accuracy(folder: Path, num: int) -> float:
    """Share of held-out questions whose greedy completion ends with the right answer sentence."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    questions = generate_questions(num, "test", seed=11)
    batch = tokenizer(
        [format_prompt(q["question"], q["choices"]) for q in questions], padding=True, return_tensors="pt"
    )
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=32,
        do_sample=False,
    )
    completions = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    golds = [question["choices"][LETTERS.index(question["gold"])] for question in questions]
    return sum(c.endswith(f"The answer is {g}.") for c, g in zip(completions, golds, strict=True)) / num


@pytest.mark.parametrize("family", FAMILIES)
def test_a_teacher_reasons_and_an_untuned_student_does_not(family: str) -> None:
    assert accuracy(MODELS / f"{family}-teacher", 64) >= 0.9
    assert accuracy(MODELS / f"{family}-student", 64) <= 0.4


def test_committed_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*.safetensors")) < 8_000_000
