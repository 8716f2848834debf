"""Tests of posing questions: prompts on the left, options as answer sentences."""

from types import SimpleNamespace

import pytest

from datamodules.generation import QuestionDataModule
from tests.tiny import make_questions, save_model, write_questions

QUESTIONS = make_questions(9)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("questions")
    return save_model(folder / "model"), write_questions(folder / "colours_test.jsonl", QUESTIONS)


def make_data(paths: tuple[str, str], **options) -> QuestionDataModule:
    data = QuestionDataModule(*paths, **{"prompt": "plain", "tokens_per_batch": 200, **options})
    data.setup("predict")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    return data


def test_each_question_is_posed_once_unless_done(paths: tuple[str, str]) -> None:
    data = make_data(paths)
    data.done = {"q2", "q5"}
    seen = []
    for batch in data.predict_dataloader():
        assert batch["input_ids"].numel() <= 200 or len(batch["question_ids"]) == 1
        for identifier, ids, mask in zip(
            batch["question_ids"], batch["input_ids"], batch["attention_mask"], strict=True
        ):
            seen.append(identifier)
            question = data.posed[identifier].question
            text = data.tokenizer.decode(ids[mask.bool()])
            assert text == data.prompt.render(question, chat=False)
            # Padding is on the left, so that a completion follows the prompt.
            assert mask.tolist() == sorted(mask.tolist())
    assert sorted(seen) == [f"q{index}" for index in range(9) if index not in (2, 5)]


def test_options_are_whole_answer_sentences(paths: tuple[str, str]) -> None:
    data = make_data(paths)
    for item in data.posed.values():
        texts = [data.tokenizer.decode(ids) for ids in item.option_ids]
        assert texts == [f"The answer is {choice}.</s>" for choice in item.question.choices]


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
