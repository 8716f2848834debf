"""Tests of the teacher's sparse distributions: against numpy, and against the teacher itself, one prefix at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from datamodules.distillation import RationaleDataModule
from datamodules.generation import QuestionDataModule
from datamodules.logit_cache import LogitCache
from lightning_modules.teacher import Annotator, LogitScorer
from tests.lightning_modules.conftest import World
from tests.tiny import capture, make_questions, make_rationale, save_model, write_questions, write_store


@pytest.mark.parametrize("tokens_per_batch", [1, 300, 10_000])
def test_cached_rows_are_the_teachers_own_next_token_distributions(
    world: World, tmp_path: Path, tokens_per_batch: int
) -> None:
    """Row r is the distribution of completion token r: asked of the teacher with exactly the tokens before it."""
    folder = capture(
        tmp_path / "cache",
        world.teacher,
        world.questions,
        [world.rationales],
        tokens_per_batch=tokens_per_batch,
        values="float16",
    )
    cache = LogitCache(Path(folder))
    teacher = AutoModelForCausalLM.from_pretrained(world.teacher)
    data = RationaleDataModule(world.teacher, world.questions, [world.rationales], prompt="plain")
    data.setup("predict")
    assert set(cache) == {example.id for example in data.examples}
    for example in data.examples[::3]:
        planes = cache.read(example)
        ids, start = torch.tensor(example.token_ids).long(), example.num_prompt_tokens
        np.testing.assert_array_equal(planes["token_ids"], example.token_ids[start:])
        assert len(planes["support"]) == len(ids) - start
        for row, place in enumerate(range(start, len(ids))):
            with torch.no_grad():
                log_p = teacher(ids[None, :place]).logits[0, -1].log_softmax(-1)
            best = log_p.topk(8)
            np.testing.assert_allclose(planes["log_probs"][row], best.values, atol=1e-2)
            np.testing.assert_allclose(planes["log_probs"][row], log_p[planes["support"][row]], atol=1e-2)
            assert planes["label_log_prob"][row] == pytest.approx(log_p[ids[place]].item(), abs=1e-2)


def test_a_padded_teachers_extra_ids_are_in_the_tail(tmp_path: Path) -> None:
    teacher = save_model(tmp_path / "wide", padding=40, seed=5)
    questions = make_questions(2)
    source = write_questions(tmp_path / "colours_train.jsonl", questions)
    store = write_store(tmp_path / "r.parquet", [make_rationale(item, "wide") for item in questions], teacher)
    cache = LogitCache(Path(capture(tmp_path / "cache", teacher, source, [store], top_k=1000)))
    data = RationaleDataModule(teacher, source, [store], prompt="plain")
    data.setup("predict")
    vocabulary = len(data.tokenizer)
    for example in data.examples:
        planes = cache.read(example)
        assert planes["support"].shape[1] == vocabulary and planes["support"].max() < vocabulary
        assert np.isfinite(planes["log_tails"]).all()


def test_scorer_describes_what_the_rows_depend_on(world: World) -> None:
    scorer = LogitScorer(world.teacher, top_k=4, temperatures=[2.0, 1.0, 2.0])
    made = scorer.describe("fingerprint", "prompt", 300)
    assert (made.teacher, made.sparsity.top_k, made.temperatures) == ("teacher", 4, (1.0, 2.0))
    shallow = LogitScorer(world.teacher, keep_layers=[0]).describe("fingerprint", "prompt", 300)
    assert shallow.teacher == "teacher-1layers"
    other = LogitScorer(world.student).describe("fingerprint", "prompt", 300)
    assert len({made.revision, other.revision}) == 2
    for wrong in ([0.0], [-1.0], [float("inf")], [float("nan")]):
        with pytest.raises(ValueError, match="temperatures must be above 0 and finite"):
            LogitScorer(world.teacher, temperatures=wrong)
    assert LogitScorer(world.teacher, temperatures=[3.0]).temperatures == (1.0, 3.0)
    assert LogitScorer(world.teacher, "sampled").temperatures == (1.0,)
    with pytest.raises(
        ValueError, match=r"temperatures is \[2\.0\], but kind hybrid is unbiased at temperature 1 only"
    ):
        LogitScorer(world.teacher, "hybrid", temperatures=[2.0])
    with pytest.raises(ValueError, match=r"temperatures is given, but kind hidden ignores it"):
        LogitScorer(world.teacher, "hidden", temperatures=[1.0])
    with pytest.raises(ValueError, match="a vocabulary of 262145; a cache holds 262144 at most"):
        scorer.describe("fingerprint", "prompt", 262_145)


def test_what_cannot_work_is_refused_before_a_model_is_loaded(world: World) -> None:
    with pytest.raises(ValueError, match="num_samples=2 needs a temperature above 0"):
        Annotator(world.teacher, num_samples=2)
    data = QuestionDataModule(world.teacher, world.questions, max_length=1000)
    with pytest.raises(ValueError, match=r"max_length \+ model\.max_new_tokens is 1064, more than the context of 1024"):
        Annotator(world.teacher, max_new_tokens=64).check(data)
