"""Tests of a teacher that answers: alike whatever is asked with it, counted, and refused before it is loaded."""

import pytest

from datamodules.annotation import QuestionDataModule
from datamodules.examples.tokenization import encode_completion
from lightning_modules.teacher.annotator import Annotator
from tests.lightning_modules.conftest import World
from tests.lightning_modules.teacher.test_backends import MODELS, annotate
from tests.tiny import build


@pytest.mark.parametrize("name", ["a-teacher", "b-teacher"])
def test_greedy_texts_are_the_same_alone_and_with_31_others(name: str) -> None:
    """Two trained tiny models, in float32."""
    texts = []
    for tokens_per_batch in (1, 32 * 320):
        data = build(
            QuestionDataModule,
            str(MODELS / name),
            "microworld:test:32:0",
            prompt="plain",
            max_length=224,
            tokens_per_batch=tokens_per_batch,
        )
        found = annotate(data, Annotator(str(MODELS / name), max_new_tokens=96))
        batches = list(data.predict_dataloader())
        assert len(batches) == (32 if tokens_per_batch == 1 else 1)
        texts.append({item: (record["text"], record["finish_reason"]) for item, record in found.items()})
    assert texts[0] == texts[1]
    assert len({text for text, _ in texts[0].values()}) > 16


def test_samples_are_the_same_whatever_is_asked_with_them(world: World) -> None:
    teacher = Annotator(world.teacher, max_new_tokens=12, temperature=1.0, num_samples=3, seed=5)
    texts = []
    for tokens_per_batch, done in ((1, set()), (10_000, set()), (10_000, {("q0", 0), ("q0", 2), ("q3", 1)})):
        data = build(
            QuestionDataModule, world.teacher, world.questions, prompt="plain", tokens_per_batch=tokens_per_batch
        )
        # An engine that batches by itself is asked for what is missing alone.
        data.done, data.requests_per_batch = done, 100 if done else None
        found = annotate(data, teacher)
        assert set(found) == {(f"q{index}", sample) for index in range(8) for sample in range(3)} - done
        texts.append({item: record["text"] for item, record in found.items()})
    assert texts[0] == texts[1]
    assert texts[2].items() <= texts[0].items()
    assert len(set(texts[0].values())) > 20
    data = build(QuestionDataModule, world.teacher, world.questions, prompt="plain")
    other = annotate(data, Annotator(world.teacher, max_new_tokens=12, temperature=1.0, num_samples=3, seed=6))
    assert sum(other[item]["text"] == text for item, text in texts[0].items()) < 4


def test_tokens_are_counted_with_the_end_token() -> None:
    folder = str(MODELS / "a-teacher")
    data = build(QuestionDataModule, folder, "microworld:test:12:0", prompt="plain", max_length=224)
    reasons = set()
    for record in annotate(data, Annotator(folder, max_new_tokens=20)).values():
        assert record["num_prompt_tokens"] == len(data.posed[record["question_id"]].prompt_ids)
        assert record["finish_reason"] == ("length" if record["num_completion_tokens"] == 20 else "stop")
        if record["finish_reason"] == "stop":
            [own] = [encode_completion(data.tokenizer, record["text"], "")[0]]
            assert record["num_completion_tokens"] == len(own)
        reasons.add(record["finish_reason"])
        assert len(record["revision"]) == 16
    assert reasons == {"stop", "length"}


def test_what_cannot_work_is_refused_before_a_model_is_loaded(world: World) -> None:
    with pytest.raises(ValueError, match="num_samples=2 needs a temperature above 0"):
        Annotator(world.teacher, num_samples=2)
    data = build(QuestionDataModule, world.teacher, world.questions, max_length=1000)
    with pytest.raises(ValueError, match=r"max_length \+ model\.max_new_tokens is 1064, more than the context of 1024"):
        Annotator(world.teacher, max_new_tokens=64).check(data)
