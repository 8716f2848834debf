"""Tests of the teacher's sparse distributions: against numpy, and against the teacher itself, one prefix at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from datamodules.distillation import RationaleDataModule
from datamodules.logit_cache.reader import LogitCache
from lightning_modules.teacher.teacher import LogitScorer
from tests.lightning_modules.conftest import World
from tests.tiny import build, capture, make_questions, make_rationale, save_model, write_questions, write_store


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
    data = build(RationaleDataModule, world.teacher, world.questions, [world.rationales], prompt="plain")
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
    data = build(RationaleDataModule, teacher, source, [store], prompt="plain")
    data.setup("predict")
    vocabulary = len(data.tokenizer)
    for example in data.examples:
        planes = cache.read(example)
        assert planes["support"].shape[1] == vocabulary and planes["support"].max() < vocabulary
        assert np.isfinite(planes["log_tails"]).all()


def test_scorer_describes_what_the_rows_depend_on(world: World) -> None:
    scorer = LogitScorer(world.teacher, top_k=4, temperatures=[2.0, 1.0])
    made = scorer.describe("fingerprint", "prompt", 300)
    assert (made.teacher, made.sparsity.top_k, made.temperatures) == ("teacher", 4, (1.0, 2.0))
    shallow = LogitScorer(world.teacher, keep_layers=[0]).describe("fingerprint", "prompt", 300)
    assert shallow.teacher == "teacher-1layers"
    other = LogitScorer(world.student).describe("fingerprint", "prompt", 300)
    assert len({made.revision, other.revision}) == 2
    for wrong in ([0.0], [-1.0], [float("inf")], [float("nan")]):
        with pytest.raises(ValueError, match="temperatures must be above 0 and finite"):
            LogitScorer(world.teacher, temperatures=wrong)
    with pytest.raises(ValueError, match=r"temperatures is \[2\.0, 2\.0\]: one is there twice"):
        LogitScorer(world.teacher, temperatures=[2.0, 2.0])
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


KINDS: dict[str, dict] = {
    "adaptive": {"mass": 0.8, "top_k": 32},
    "sampled": {"draws": 200},
    "hybrid": {"top_k": 4, "draws": 100},
    "hidden": {"values": "float32"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_captured_from_the_teachers_own_distributions(world: World, tmp_path: Path, kind: str) -> None:
    settings = {"top_k": None, "temperatures": None, **KINDS[kind]}
    folder = Path(
        capture(tmp_path / "cache", world.teacher, world.questions, [world.rationales], kind=kind, **settings)
    )
    cache = LogitCache(folder)
    cache.verify()
    teacher = AutoModelForCausalLM.from_pretrained(world.teacher)
    data = build(RationaleDataModule, world.teacher, world.questions, [world.rationales], prompt="plain")
    data.setup("predict")
    cache.check("student", data.tokenizer, data.prompt.id, data.examples)
    for example in data.examples:
        rows = cache.read(example)
        ids = torch.tensor(example.token_ids).long()
        with torch.no_grad():
            p = teacher(ids[None]).logits[0, example.num_prompt_tokens - 1 : -1].softmax(-1)
        if kind == "hidden":
            logits = torch.from_numpy(rows["hidden"]) @ cache.read_head()["weight"].T
            assert cache.manifest["head"]["scale"] == 1 and cache.manifest["head"]["softcap"] is None
            torch.testing.assert_close(logits.softmax(-1), p, rtol=0, atol=1e-6)
            continue
        support = torch.from_numpy(rows["support"])
        own = p.gather(1, support.clamp(min=0))
        if kind == "adaptive":
            found = torch.from_numpy(rows["log_probs"]).exp()
            torch.testing.assert_close(found, own.where(support >= 0, 0.0), rtol=0, atol=0.01)
            mass = own.where(support >= 0, 0.0).sum(1)
            assert ((mass >= 0.8) | ((support >= 0).sum(1) == 32)).all()
        else:
            weights = torch.from_numpy(rows["weights"])
            expected = torch.zeros_like(p).scatter_add(1, support.clamp(min=0), weights)
            # At most 200 draws a row: a standard error of 0.035, and 0.05 for what 100 draws of half the mass tell.
            torch.testing.assert_close(expected, p, rtol=0, atol=0.2)
            assert (expected - p).square().mean() < 1e-4


def test_draws_are_the_examples_own_whatever_its_batch(world: World, tmp_path: Path) -> None:
    caches = [
        LogitCache(
            Path(
                capture(
                    tmp_path / str(budget), world.teacher, world.questions, [world.rationales],
                    kind="sampled", top_k=None, temperatures=None, draws=20, tokens_per_batch=budget,
                )
            )
        )
        for budget in (1, 10_000)
    ]  # fmt: skip
    supports = [{i: rows["support"] for i, rows in cache.read_all()} for cache in caches]
    assert supports[0].keys() == supports[1].keys()
    # A row whose draw falls on a boundary may differ by rounding.
    same = [np.array_equal(supports[0][i], supports[1][i]) for i in supports[0]]
    assert sum(same) >= len(same) - 1
