"""Tests of batched generation, scoring, and of the writers that survive a kill."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from datamodules.annotation import QuestionDataModule
from datamodules.files.record_log import write_line
from datamodules.logit_cache.reader import LogitCache
from lightning_modules.model.generation import (
    Sample,
    choose_tokens,
    count_shared,
    generate_completions,
    keep_nucleus,
    read_prompts,
    score_endings,
)
from lightning_modules.run.writers import RecordWriter
from lightning_modules.teacher.annotator import Annotator
from tests.lightning_modules.conftest import World
from tests.tiny import TRAINER, build, capture

PROMPTS = [[5, 9, 30], [7] * 11, list(range(40, 61)), [100]]


@pytest.fixture
def model(world: World) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(world.teacher).eval()


def continue_greedily(model: PreTrainedModel, prompt: list[int], number: int) -> list[int]:
    """Takes the most probable token again and again, without padding, batch or cache."""
    ids = list(prompt)
    for _ in range(number):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_a_batch_of_mixed_lengths_continues_each_prompt_as_if_alone(model: PreTrainedModel) -> None:
    expected = [continue_greedily(model, prompt, 12) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in expected}) == len(PROMPTS)
    completions = generate_completions(model, PROMPTS, end_ids=[1], max_new_tokens=12)
    for (ids, reason), free in zip(completions, expected, strict=True):
        end = free.index(1) if 1 in free else None
        assert (ids, reason) == (free[:end], "length" if end is None else "stop")


def build_mistral(window: int | None) -> PreTrainedModel:
    """Builds an untrained Mistral, whose attention may see no further than a window."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=120, num_key_value_heads=1, sliding_window=window, initializer_range=0.3, **sizes)
    return MistralForCausalLM(config).eval()


@pytest.mark.parametrize("window", [None, 8])
def test_what_prompts_begin_with_is_read_once_and_changes_nothing(window: int | None) -> None:
    mistral = build_mistral(window)
    exemplars = list(range(60, 90))
    prompts = [exemplars + prompt for prompt in [*PROMPTS, [5]]]
    assert count_shared(prompts) == 30 and count_shared([exemplars, exemplars[:4]]) == 3 == count_shared([[1] * 4] * 2)
    completions = generate_completions(mistral, prompts, end_ids=[119], max_new_tokens=12)
    for (ids, _), prompt in zip(completions, prompts, strict=True):
        free = continue_greedily(mistral, prompt, 12)
        assert ids == (free[: free.index(119)] if 119 in free else free)
    read = []
    handle = mistral.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    generate_completions(mistral, prompts, end_ids=[119], max_new_tokens=1)
    handle.remove()
    assert read == ([(1, 30), (5, 21)] if window is None else [(5, 51)])


def test_a_row_that_ends_leaves_the_others_as_they_were(model: PreTrainedModel) -> None:
    """Whatever ends a row, and wherever: each row of a batch has an end token of its own place."""
    free = [continue_greedily(model, prompt, 12) for prompt in PROMPTS]
    for end in {token for ids in free for token in ids}:
        found = generate_completions(model, [*PROMPTS, PROMPTS[0]], end_ids=[end], max_new_tokens=12)
        for (ids, reason), own in zip(found, [*free, free[0]], strict=True):
            place = own.index(end) if end in own else None
            assert (ids, reason) == (own[:place], "length" if place is None else "stop")


def test_completions_stop_at_any_end_token(model: PreTrainedModel) -> None:
    free = continue_greedily(model, PROMPTS[2], 12)
    place = next(number for number in range(2, 12) if free[number] not in free[:number])
    (found,) = generate_completions(model, PROMPTS[2:3], end_ids=[free[place]], max_new_tokens=12)
    assert found == (free[:place], "stop")
    # The model's own end tokens count beside the tokenizer's.
    model.generation_config.eos_token_id = [1, free[place]]
    (found,) = generate_completions(model, PROMPTS[2:3], end_ids=[1], max_new_tokens=12)
    assert found == (free[:place], "stop")
    (found,) = generate_completions(model, PROMPTS[2:3], end_ids=[1], max_new_tokens=place)
    assert found == (free[:place], "length")


def test_a_published_models_own_decoding_settings_play_no_part(model: PreTrainedModel) -> None:
    arguments = (model, PROMPTS, [1], 12)
    greedy = generate_completions(*arguments)
    sampled = generate_completions(*arguments, temperature=1.0, seeds=[1, 2, 3, 4])
    own = {"repetition_penalty": 5.0, "top_p": 0.01, "min_new_tokens": 12, "no_repeat_ngram_size": 1}
    model.generation_config.update(**own)
    assert generate_completions(*arguments) == greedy
    assert generate_completions(*arguments, temperature=1.0, seeds=[1, 2, 3, 4]) == sampled


def test_samples_depend_on_their_prompt_and_seed_alone(model: PreTrainedModel) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    seeds = list(range(len(prompts)))
    sampled = generate_completions(model, prompts, [1], 12, 1.0, seeds)
    assert len({tuple(ids) for ids, _ in sampled}) > 6
    alone = [
        generate_completions(model, [prompt], [1], 12, 1.0, [seed])[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert sampled == alone
    order = [7, 2, 11, 0]
    assert generate_completions(model, [prompts[n] for n in order], [1], 12, 1.0, order) == [sampled[n] for n in order]
    # Almost no temperature is greedy.
    cold = generate_completions(model, prompts, [1], 6, 1e-4, seeds)
    assert cold == generate_completions(model, prompts, [1], 6)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    logits = torch.tensor([[0.0, 1.0, float("-inf"), 2.0, -1.0]])
    draws = torch.from_numpy(np.random.default_rng(0).random(20_000))
    for temperature in (0.5, 1.0, 2.0):
        tokens = choose_tokens(logits.expand(len(draws), -1), temperature, draws)
        p = (logits[0] / temperature).softmax(-1)
        # Three standard errors of a share of a half are 0.011.
        torch.testing.assert_close(tokens.bincount(minlength=5) / len(draws), p, rtol=0, atol=0.011)
        edges = choose_tokens(logits.expand(2, -1), temperature, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
        assert edges.tolist() == [0, 4]


def score_naively(model: PreTrainedModel, prompt: list[int], ending: list[int]) -> float:
    """Adds up the log-probability of each token, without padding, batch or cache."""
    total = 0.0
    for index, token in enumerate(ending):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ending[:index]]), use_cache=False).logits[0, -1]
        total += logits.log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("exemplars", [[], list(range(60, 90))])
def test_endings_are_scored_as_if_alone_and_leave_the_prompts_as_they_were(
    window: int | None, exemplars: list[int]
) -> None:
    mistral = build_mistral(window)
    prompts = [exemplars + prompt for prompt in [*PROMPTS, PROMPTS[0]]]
    endings = [[[4, 8, 15], [16]], [], [[23, 42, 1, 7, 7], [9, 1], [9, 1]], [[3]], [[4, 8, 15]]]
    read = read_prompts(mistral, prompts)
    scores = score_endings(mistral, read, endings)
    assert [len(own) for own in scores] == [2, 0, 3, 1, 1]
    for prompt, own, found in zip(prompts, endings, scores, strict=True):
        assert found == pytest.approx([score_naively(mistral, prompt, ending) for ending in own], rel=1e-5)
    # What is generated afterwards is what would have been.
    assert generate_completions(mistral, read, [119], 12) == generate_completions(mistral, prompts, [119], 12)


def test_endings_of_one_token_need_no_second_look(model: PreTrainedModel) -> None:
    read = read_prompts(model, PROMPTS)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run again"))
    assert score_endings(model, read, [[]] * 4) == [[]] * 4
    assert [len(own) for own in score_endings(model, read, [[[3], [5]]] * 4)] == [2] * 4


def make_data(world: World, **options) -> QuestionDataModule:
    data = build(
        QuestionDataModule, world.teacher, world.questions, prompt="plain", **{"tokens_per_batch": 150, **options}
    )
    data.setup("predict")
    return data


def annotate(world: World, output: Path, callbacks: tuple = (), config: dict | None = None, **options) -> list[dict]:
    """Annotates as the script does; returns the records that were merged in this run."""
    merged: list[dict] = []

    def finish(records: list[dict]) -> None:
        merged.extend(sorted(records, key=lambda record: record["question_id"]))
        output.write_text("done")

    writer = RecordWriter(output, config or {"a": 1}, finish)
    data = make_data(world)
    data.done = {(record["question_id"], record["sample"]) for record in writer.records.collect()}
    trainer = L.Trainer(**TRAINER, callbacks=[writer, *callbacks])
    trainer.predict(Annotator(world.teacher, max_new_tokens=6, **options), data, return_predictions=False)
    return merged


class Killed(L.Callback):
    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        if args[2] == 1:
            raise RuntimeError("killed")


def test_an_annotation_that_was_killed_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    whole = annotate(world, tmp_path / "whole.parquet")
    assert [record["question_id"] for record in whole] == [f"q{index}" for index in range(8)]
    assert not list(tmp_path.glob(".*"))
    output = tmp_path / "resumed.parquet"
    with pytest.raises(RuntimeError, match="killed"):
        annotate(world, output, (Killed(),))
    assert not output.exists()
    (part,) = tmp_path.glob(".resumed.parquet.part-*.jsonl")
    done = part.read_text().splitlines()
    assert 1 < len(done) < 9
    # The kill tore the last line in the middle of a character.
    part.write_bytes(part.read_bytes() + '{"question_id": "q0", "text": "é'.encode()[:-1])
    # What was done is not asked for again.
    first = {name: value for name, value in json.loads(done[1]).items() if name != "crc32"}
    marked = write_line({**first, "text": "kept"})[:-1]
    part.write_bytes(part.read_bytes().replace(done[1].encode(), marked.encode()))
    resumed = annotate(world, output)
    expected = [
        {**record, "text": "kept"} if record["question_id"] == first["question_id"] else record for record in whole
    ]
    assert resumed == expected
    assert output.exists() and not part.exists()


def test_what_a_kill_lost_in_the_middle_of_a_batch_comes_back_to_the_bit(world: World, tmp_path: Path) -> None:
    whole = annotate(world, tmp_path / "whole.parquet", keep_ids=True)
    with pytest.raises(RuntimeError, match="killed"):
        annotate(world, tmp_path / "killed.parquet", (Killed(),), keep_ids=True)
    (part,) = tmp_path.glob(".killed.parquet.part-*.jsonl")
    lines = part.read_text().splitlines(keepends=True)
    for kept in range(1, len(lines)):
        (tmp_path / f".r{kept}.parquet.part-0.jsonl").write_text("".join(lines[:kept]))
        assert annotate(world, tmp_path / f"r{kept}.parquet", keep_ids=True) == whole


def test_killed_before_the_merge_a_rerun_merges(world: World, tmp_path: Path) -> None:
    """All records are there, no question is left, and predicting nothing must still write the output."""

    class KilledAtTheEnd(L.Callback):
        def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            raise RuntimeError("killed")

    output = tmp_path / "r.parquet"
    with pytest.raises(RuntimeError, match="killed"):
        annotate(world, output, (KilledAtTheEnd(),))
    assert not output.exists()
    assert len(annotate(world, output)) == 8
    assert output.exists()


def test_a_torn_header_is_written_anew(world: World, tmp_path: Path) -> None:
    (tmp_path / ".r.parquet.part-0.jsonl").write_text('{"signat')
    assert len(annotate(world, tmp_path / "r.parquet")) == 8


def test_parts_of_another_configuration_are_refused(world: World, tmp_path: Path) -> None:
    output = tmp_path / "r.parquet"
    with pytest.raises(RuntimeError, match="killed"):
        annotate(world, output, (Killed(),))
    with pytest.raises(ValueError, match=r"part-0\.jsonl: begun with another configuration; delete it"):
        annotate(world, output, config={"a": 2})


def test_a_capture_that_was_killed_before_its_manifest_is_finished_by_a_rerun(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    capture(folder, world.teacher, world.questions, [world.rationales])
    (folder / "manifest.json").unlink()
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    capture(folder, world.teacher, world.questions, [world.rationales])
    assert len(LogitCache(folder)) == 8
    assert {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")} == shards


def test_another_attention_is_another_cache(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    capture(folder, world.teacher, world.questions, [world.rationales])
    assert "attention" not in json.loads((folder / "manifest.json").read_text())
    with pytest.raises(ValueError, match="written by another teacher, tokenizer, prompt or setting"):
        capture(folder, world.teacher, world.questions, [world.rationales], attention="eager")
    capture(tmp_path / "eager", world.teacher, world.questions, [world.rationales], attention="eager")
    assert LogitCache(tmp_path / "eager").description.attention == "eager"


def test_a_nucleus_is_the_fewest_tokens_that_hold_so_much() -> None:
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert keep_nucleus(probs, 0.75).tolist() == [[0, 0.5, 0, 0.25], [0.25, 0.25, 0.25, 0]]
    assert keep_nucleus(probs, 1e-9).count_nonzero(-1).tolist() == [1, 1]
    draws = torch.linspace(0, 1 - 2**-53, 200, dtype=torch.float64)
    tokens = choose_tokens(probs[:1].log().expand(200, -1), 1.0, draws, top_p=0.75)
    assert set(tokens.tolist()) == {1, 3} and (tokens == 1).double().mean() == pytest.approx(2 / 3, abs=0.01)


def test_samples_are_what_was_drawn_with_its_log_probabilities(model: PreTrainedModel) -> None:
    samples: list[Sample] = []
    completions = generate_completions(model, PROMPTS, [1], 12, 1.3, [1, 2, 3, 4], samples=samples)
    for prompt, (ids, reason), sample in zip(PROMPTS, completions, samples, strict=True):
        assert sample.ids == [*ids, *([sample.ids[-1]] if reason == "stop" else [])]
        logits = model(torch.tensor([[*prompt, *sample.ids]])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, torch.tensor(sample.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.log_probs), wanted, atol=1e-4, rtol=1e-4)
