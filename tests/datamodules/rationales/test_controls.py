"""Tests of the controls: each changes one thing about the rationales, the same way for the same seed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.answers.extractors import extract_neutral
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.examples.tokenization import ANSWER, PROMPT, RATIONALE, build_examples, split_completion
from datamodules.rationales.controls import MAX_RATIO, match_lengths, remove_answer, shuffle_rationales
from datamodules.rationales.store import Rationale, load_rationales, write_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions
from tests.tiny import (
    build,
    build_tokenizer,
    capture,
    make_questions,
    make_rationale,
    save_model,
    write_questions,
    write_store,
)

CANALS = Question("q", "csqa", "train", "Where are canals?", ("Michigan", "New York", "Rome", "Venice"), "D")
VENICE = Rationale("q", "csqa", "train", "big", "llama", 0, "", "D", True, "stop", "cot")
FILES = ("arc_train", "csqa_train", "gsm8k_train", "obqa_train", "strategyqa_train", "svamp_all")


# Where the answer stands.


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The answer is D) Venice. Venice has canals.", "Venice has canals."),
        ("Venice has canals. The correct answer is: D) Venice", "Venice has canals."),
        ("A) has none. D) Venice is the correct answer. It has 150.\nThe answer is D.", "A) has none. It has 150."),
        ("Venice has canals.\nD", "Venice has canals."),
        ("It has canals.\n\nTherefore, the answer is:\nD) Venice", "It has canals."),
        # Another answer is part of what is said.
        ("Some say the answer is C. Venice has more. The answer is D.", "Some say the answer is C. Venice has more."),
        ("The answer is D.", ""),
        ("Venice has canals.", "Venice has canals."),
    ],
)
def test_sentences_that_state_the_answer_are_removed_wherever_they_stand(text, left):
    assert remove_answer(text, CANALS, "D") == left


@pytest.mark.parametrize("position", ["first", "last"])
def test_the_answer_stands_where_it_should_in_the_prompts_words(position):
    texts = ["The answer is D) Venice. It has canals.", "It has canals. D is correct.", "It has canals."]
    pairs = [(CANALS, replace(VENICE, text=text, sample=index)) for index, text in enumerate(texts)]
    tokenizer = build_tokenizer()
    examples = build_examples(tokenizer, get_prompt("cot"), pairs, position)
    order = ["The answer is D) Venice.", "It has canals."]
    expected = " ".join(order if position == "first" else reversed(order))
    for example in examples:
        completion = example.token_ids[example.segments != PROMPT]
        assert tokenizer.decode(completion[:-1]) == expected and completion[-1] == tokenizer.eos_token_id
        answer = tokenizer.decode(example.token_ids[example.segments == ANSWER], skip_special_tokens=True)
        reasoning = tokenizer.decode(example.token_ids[example.segments == RATIONALE], skip_special_tokens=True)
        assert (answer.strip(), reasoning.strip()) == tuple(order)
        assert example.segments[-1] == (RATIONALE if position == "first" else ANSWER)
    assert len({example.text_hash for example in examples}) == 1


def test_a_logit_cache_tells_the_orders_apart():
    pairs = [(CANALS, replace(VENICE, text="It has canals. The answer is D) Venice."))]
    found = [build_examples(build_tokenizer(), get_prompt("cot"), pairs, order)[0] for order in (None, "last", "first")]
    assert found[0].text_hash == found[1].text_hash != found[2].text_hash


@pytest.mark.parametrize("file", FILES)
def test_published_rationales_keep_their_answer_and_lose_its_statements(shared_data: Path, file):
    path = shared_data / f"{file}.jsonl.gz"
    questions = {question.id: question for question in load_questions(str(path))}
    prompt, checked = get_prompt("cot"), 0
    for rationale in load_rationales([str(path)], questions)[:2000:7]:
        question = questions[rationale.question_id]
        if rationale.answer is None or not rationale.text.strip():
            continue
        reasoning, sentence = split_completion(question, rationale, prompt, normalize=True)
        found = extract_neutral(f"{reasoning} {sentence}", question)
        assert found is not None and found.answer == rationale.answer, rationale.id
        # Nothing else is lost: what is left are whole sentences of the text, in order.
        rest = rationale.text
        for part in reasoning.split("\n"):
            for sentence in part.split(". "):
                assert sentence.rstrip(".") in rest, rationale.id
                rest = rest[rest.index(sentence.rstrip(".")) :]
        checked += 1
    assert checked > 20


# Whose reasoning it is.


def make_pairs(number: int = 12, teachers: tuple = ("ada", "bob")) -> list[tuple[Question, Rationale]]:
    pairs = []
    for question in make_questions(number):
        for teacher in teachers:
            for sample in range(2):
                rationale = make_rationale(question, teacher, sample, right=sample == 0 or question.id != "q3")
                text = f"Reasons of {rationale.id}. {rationale.text}"
                pairs.append((question, replace(rationale, text=text)))
    return pairs


def test_shuffled_rationales_change_places_and_keep_their_answers():
    pairs = make_pairs()
    shuffled = shuffle_rationales(pairs, seed=0)
    originals = {rationale.id: rationale for _, rationale in pairs}
    reasonings = {
        rationale.id: remove_answer(rationale.text, question, rationale.answer) for question, rationale in pairs
    }
    # Both teachers' second samples of q3 are their only wrong ones, and have nobody to change places with.
    assert set(originals) - {rationale.id for _, rationale in shuffled} == {"q3/ada/1", "q3/bob/1"}
    used = Counter()
    for question, rationale in shuffled:
        assert rationale == replace(originals[rationale.id], text=rationale.text)
        [donor] = [identifier for identifier, reasoning in reasonings.items() if reasoning == rationale.text]
        assert donor.split("/")[0] != question.id and donor.split("/")[1:] == rationale.id.split("/")[1:]
        assert originals[donor].correct == rationale.correct
        used[donor] += 1
    assert set(used.values()) == {1}


def test_shuffling_follows_the_seed_and_not_the_order():
    pairs = make_pairs()
    texts = {rationale.id: rationale.text for _, rationale in shuffle_rationales(pairs, seed=0)}
    assert texts == {rationale.id: rationale.text for _, rationale in shuffle_rationales(pairs[::-1], seed=0)}
    assert texts != {rationale.id: rationale.text for _, rationale in shuffle_rationales(pairs, seed=1)}


def test_a_rationale_without_reasoning_is_no_partner():
    [pair, other, third] = make_pairs(3, ("ada",))[::2]
    bare = (pair[0], replace(pair[1], text="The answer is A) red."))
    kept = shuffle_rationales([bare, other, third], seed=0)
    assert [rationale.id for _, rationale in kept] == [other[1].id, third[1].id]


# How long it is.


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from("abc"), st.integers(0, 20)), max_size=60),
    st.sampled_from([["a", "b"], ["b", "a", "c"]]),
)
def test_matched_lengths_come_in_sets_of_nearly_one_length(items, compared):
    lengths, teachers, questions = ([item[place] for item in items] for place in range(3))
    kept = match_lengths(lengths, teachers, questions, compared, seed=0)
    chosen = {teacher: sorted(np.array(lengths, int)[kept & (np.array(teachers) == teacher)]) for teacher in compared}
    assert sum(map(len, chosen.values())) == kept.sum()
    for one in zip(*chosen.values(), strict=True):
        assert max(one) <= MAX_RATIO * min(one)
    if len(compared) == 2:
        assert kept.sum() / 2 == count_pairs(
            *(
                [length for length, teacher in zip(lengths, teachers, strict=True) if teacher == name]
                for name in compared
            )
        )


def count_pairs(left: list[int], right: list[int]) -> int:
    """Returns the most pairs that fit, by augmenting paths in the graph of all that do."""
    partner: dict[int, int] = {}

    def augment(one: int, seen: set[int]) -> bool:
        for other, length in enumerate(right):
            small, large = sorted((left[one], length))
            if large <= MAX_RATIO * small and other not in seen:
                seen.add(other)
                if other not in partner or augment(partner[other], seen):
                    partner[other] = one
                    return True
        return False

    return sum(augment(one, set()) for one in range(len(left)))


# What the data module makes of them.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, of whom bob is wordier and fails on two questions; ada's logits of both."""
    folder = tmp_path_factory.mktemp("controls")
    questions = make_questions(12)
    write_questions(folder / "colours_train.jsonl", questions)
    for seed, name in enumerate(("ada", "bob")):
        model = save_model(folder / name, seed=seed)
        rationales = [
            make_rationale(question, name, right=name == "ada" or index > 1) for index, question in enumerate(questions)
        ]
        if name == "bob":
            rationales = [replace(rationale, text=f"One may say this. {rationale.text}") for rationale in rationales]
        write_store(folder / f"{name}.parquet", rationales, model)
    stores = [str(folder / "ada.parquet"), str(folder / "bob.parquet")]
    capture(folder / "logits", str(folder / "ada"), str(folder / "colours_train.jsonl"), stores, top_k=4)
    return folder


def open_data(folder: Path, teacher: str, **options) -> DistillationDataModule:
    stores = [str(folder / f"{name}.parquet") for name in ("ada", "bob")]
    questions, given = str(folder / "colours_train.jsonl"), {"prompt": "plain", "teachers": [teacher], **options}
    data = build(DistillationDataModule, str(folder / "ada"), questions, rationales=stores, **given)
    data.setup("fit")
    return data


def read_texts(data: RationaleDataModule) -> dict[str, str]:
    examples = data.examples
    return {
        example.id: data.tokenizer.decode(example.token_ids[example.num_prompt_tokens : -1]) for example in examples
    }


def test_matched_arms_have_equally_many(folder):
    found = [open_data(folder, name, matched_with=["ada", "bob"]) for name in ("ada", "bob")]
    assert len({len(data.examples) for data in found}) == 1 and 0 < len(found[0].examples) < 10
    assert found[0].source.num_left == {"rationales": 12, "correct": 12, "matched lengths": len(found[0].examples)}
    assert found[1].source.num_left == {"rationales": 12, "correct": 10, "matched lengths": len(found[1].examples)}
    for data, name in zip(found, ("ada", "bob"), strict=True):
        assert set(data.examples.column("teacher")) == {name}


def test_questions_that_all_solved_are_the_same_for_all(folder):
    found = [open_data(folder, name, solved_by=["ada", "bob"]) for name in ("ada", "bob")]
    assert [data.source.num_left["shared questions"] for data in found] == [10, 10]
    assert [*found[0].examples.column("question_id")] == [*found[1].examples.column("question_id")]


def test_all_answers_are_more_than_the_right_ones(folder):
    assert open_data(folder, "bob", correct_only=False).source.num_left == {"rationales": 12}
    assert open_data(folder, "bob").source.num_left == {"rationales": 12, "correct": 10}


def test_a_shuffled_arm_ends_with_its_own_questions_answer(folder):
    plain, shuffled = open_data(folder, "bob", answer_position="last"), open_data(folder, "bob", shuffled=True)
    before, after = read_texts(plain), read_texts(shuffled)
    assert before.keys() == after.keys() and before != after
    for identifier, text in after.items():
        assert text.rpartition(" The answer")[2] == before[identifier].rpartition(" The answer")[2]
    reasonings = [sorted(text.rpartition(" The answer")[0] for text in texts.values()) for texts in (before, after)]
    assert reasonings[0] == reasonings[1]
    assert read_texts(open_data(folder, "bob", shuffled=True, shuffle_seed=1)) != after
    first = read_texts(open_data(folder, "bob", shuffled=True, answer_position="first"))
    assert all(text.startswith("The answer is") for text in first.values())


@pytest.mark.parametrize("control", [{"shuffled": True}, {"answer_position": "first"}])
def test_logits_of_other_texts_are_refused(folder, control):
    logits = {"supervision": "rationale+logits", "logits": [str(folder / "logits")], "logits_teacher": "ada"}
    # ada's logits on bob's text: whose distribution it is, whatever the text.
    assert len(open_data(folder, "bob", **logits).train_examples) == 10
    with pytest.raises(ValueError, match=r"text of 'q.*' was changed after its logits were cached"):
        open_data(folder, "bob", **logits, **control)


def test_controls_that_would_do_nothing_are_refused(folder):
    for control in ({"shuffled": True}, {"answer_position": "last"}):
        with pytest.raises(ValueError, match="supervision label"):
            open_data(folder, "ada", supervision="label", **control)
    with pytest.raises(ValueError, match=r"matched_with does not name \['bob'\]"):
        open_data(folder, "bob", matched_with=["ada"])
    with pytest.raises(ValueError, match=r"no rationale of \['eve'\]"):
        open_data(folder, "bob", matched_with=["bob", "eve"])


def test_lengths_that_match_nothing_are_named(folder, tmp_path):
    long = [
        replace(make_rationale(question, "eve"), text="so " * 90 + "The answer is A) red.")
        for question in make_questions(12)
    ]
    write_rationales(tmp_path / "eve.parquet", long, {})
    data = build(
        DistillationDataModule,
        str(folder / "ada"),
        str(folder / "colours_train.jsonl"),
        rationales=[str(folder / "ada.parquet"), str(tmp_path / "eve.parquet")],
        teachers=["ada"],
        matched_with=["ada", "eve"],
        prompt="plain",
    )
    with pytest.raises(ValueError, match=r"none of 24 rationales is left.*matched_with is on"):
        data.setup("fit")
