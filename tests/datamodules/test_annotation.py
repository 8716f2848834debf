"""Tests of posing questions: each is asked once."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules.annotation import QuestionDataModule, QuestionDraw
from datamodules.examples.selection import draw_questions
from tests.tiny import build, make_questions, save_model, write_questions

QUESTIONS = make_questions(9)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("questions")
    return save_model(folder / "model"), write_questions(folder / "colours_test.jsonl", QUESTIONS)


def make_data(paths: tuple[str, str], **options) -> QuestionDataModule:
    data = build(QuestionDataModule, *paths, **{"prompt": "plain", "tokens_per_batch": 200, **options})
    data.setup("predict")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return data


def test_each_question_and_sample_is_asked_once_and_what_is_done_only_beside_what_is_not(paths) -> None:
    data = make_data(paths)
    data.num_samples, data.max_new_tokens = 2, 20

    def list_batches() -> list[list[tuple[str, int]]]:
        return [list(zip(batch["question_ids"], batch["samples"], strict=True)) for batch in data.predict_dataloader()]

    plan, seen = list_batches(), []
    for items in plan:
        # A batch has room for prompts and completions.
        longest = max(len(data.posed[identifier].prompt_ids) for identifier, _ in items)
        assert len(items) * (longest + 20) <= 200 or len(items) == 1
        seen += items
    asked = [(f"q{index}", sample) for index in range(9) for sample in range(2)]
    assert sorted(seen) == asked == data.find_missing()
    data.done = {*plan[0], plan[1][0], plan[-1][-1]}
    assert data.find_missing() == [item for item in asked if item not in data.done]
    assert list_batches() == plan[1:]
    # An engine that batches by itself is asked for nothing twice.
    data.requests_per_batch = 5
    assert [item for items in list_batches() for item in items] == data.find_missing()


def test_a_prompt_is_what_the_model_reads(paths: tuple[str, str]) -> None:
    data = make_data(paths)
    for item in data.posed.values():
        assert item.text == data.prompt.render(item.question, chat=False)
        assert data.tokenizer.decode(item.prompt_ids) == item.text


def test_without_a_tokenizer_a_prompt_is_a_chats_message(paths: tuple[str, str]) -> None:
    data = build(QuestionDataModule, None, paths[1], prompt="cot")
    data.setup("predict")
    assert data.fingerprint is None
    for item in data.posed.values():
        assert item.text == data.prompt.render(item.question, chat=True)
        assert item.prompt_ids == []


def test_long_prompts_are_refused_or_left_out(paths: tuple[str, str]) -> None:
    lengths = sorted(len(item.prompt_ids) for item in make_data(paths).posed.values())
    assert lengths[-1] > lengths[-2] or lengths[-1] > lengths[0]
    limit = lengths[-1] - 1
    number = sum(length > limit for length in lengths)
    with pytest.raises(
        ValueError, match=f"{number} of 9 questions are longer than max_length={limit} tokens, the first"
    ):
        make_data(paths, max_length=limit)
    assert len(make_data(paths, max_length=limit, skip_too_long=True).posed) == 9 - number
    with pytest.raises(ValueError, match="9 of 9 questions are longer than max_length=3"):
        make_data(paths, max_length=3, skip_too_long=True)
    assert list(make_data(paths, limit=4).posed) == ["q0", "q1", "q2", "q3"]


def test_parts_share_no_question_until_all_had_their_turn() -> None:
    questions = make_questions(10)
    parts = [QuestionDraw(3, part, seed=1).choose(questions) for part in range(4)]
    ids = [[question.id for question in part] for part in parts]
    assert len({*ids[0], *ids[1], *ids[2]}) == 9
    assert all(part == sorted(part, key=lambda name: int(name[1:])) for part in ids)
    assert ids[3] not in ids[:3] and ids[0] != [question.id for question in QuestionDraw(3, 0, 2).choose(questions)]
    assert QuestionDraw().choose(questions) == questions
    with pytest.raises(ValueError, match=r"data.draw.number=11, but there are 10 questions; lower it"):
        QuestionDraw(11).choose(questions)
    with pytest.raises(ValueError, match=r"would be ignored without data.draw.number"):
        QuestionDraw(part=1)


@pytest.mark.parametrize(("number", "total"), [(4, 10), (3, 10), (300, 512), (7, 8), (10, 10), (1, 3)])
def test_no_question_comes_twice_before_all_had_their_turn(number: int, total: int) -> None:
    questions = make_questions(total)
    turns = Counter[str]()
    for part in range(3 * total // number):
        own = [question.id for question in QuestionDraw(number, part, seed=1).choose(questions)]
        turns.update(own)
        assert len(own) == len({*own}) == number
        counts = [turns[question.id] for question in questions]
        assert max(counts) - min(counts) <= 1


def test_parts_that_divide_the_questions_are_shuffles_cut_into_pieces() -> None:
    for part in range(6):
        order = np.random.default_rng((7, part // 3)).permutation(12)[part % 3 * 4 :][:4]
        drawn = QuestionDraw(4, part, seed=7).choose(make_questions(12))
        assert [question.id for question in drawn] == [f"q{place}" for place in sorted(order)]


def test_a_part_is_of_the_questions_that_a_training_draws(paths: tuple[str, str]) -> None:
    questions = [item.question for item in make_data(paths).posed.values()]
    drawn = {question.id for question in draw_questions(questions, 4, 3)}
    assert drawn != {"q0", "q1", "q2", "q3"}
    parts = [make_data(paths, limit=4, draw=QuestionDraw(2, part, limit_seed=3)).posed for part in range(2)]
    assert {*parts[0], *parts[1]} == drawn and not {*parts[0]} & {*parts[1]}
    with pytest.raises(ValueError, match=r"^data.draw.limit_seed=3 would be ignored: it draws those of data.limit$"):
        make_data(paths, draw=QuestionDraw(2, limit_seed=3))
