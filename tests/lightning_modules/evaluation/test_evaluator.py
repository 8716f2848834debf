"""Tests of the evaluator: answers, likelihoods, votes and references, each against a slow road."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from datamodules.evaluation import EvaluationDataModule
from datamodules.logit_cache.aligned import AlignmentSettings
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question
from lightning_modules.evaluation.evaluator import Evaluator
from lightning_modules.evaluation.records import PREDICTION_SCHEMA
from lightning_modules.evaluation.reference_scores import ReferenceScorer
from tests.lightning_modules.conftest import World
from tests.lightning_modules.model.test_generation import continue_greedily, score_naively
from tests.tiny import TRAINER, build, build_llama, build_tokenizer, save_model, write_questions

QUESTION = Question("q", "t", "test", "Which?", ("red", "blue", "green"), "B")


def evaluate(world: World, evaluator: Evaluator | None = None, **options) -> tuple[dict, EvaluationDataModule]:
    """Returns the records by question id, and the data."""
    settings = {"prompt": "plain", "tokens_per_batch": 400, "max_length": 600, **options}
    data = build(EvaluationDataModule, settings.pop("tokenizer", world.teacher), world.questions, **settings)
    evaluator = evaluator or Evaluator(world.student, max_new_tokens=5, arm="kin", seed=3)
    data.setup("predict")
    evaluator.check(data)
    batches = L.Trainer(**TRAINER).predict(evaluator, data)
    return {record["question_id"]: record for records in batches for record in records}, data


@pytest.fixture(scope="module")
def student(world: World) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(world.student).eval()


@pytest.mark.parametrize("option_text", ["sentence", "choice"])
def test_records_are_those_of_one_question_at_a_time(world: World, student: PreTrainedModel, option_text: str) -> None:
    records, data = evaluate(world, option_text=option_text)
    assert list(records) != list(data.posed) and set(records) == set(data.posed)
    for identifier, record in records.items():
        posed, options = data.posed[identifier], data.options[identifier]
        assert set(record) == set(PREDICTION_SCHEMA.names)
        assert (record["arm"], record["seed"], record["gold"]) == ("kin", 3, posed.question.gold)
        assert record["num_prompt_tokens"] == len(posed.prompt_ids)
        own = [score_naively(student, options.prompt_ids, ending) for ending in options.ending_ids]
        assert record["option_log_likelihoods"] == pytest.approx(own, rel=1e-4)
        normalised = {
            "likelihood": own,
            "likelihood_norm": [score / len(text) for score, text in zip(own, options.texts, strict=True)],
        }
        for name, scores in normalised.items():
            best = posed.question.letters[scores.index(max(scores))]
            assert record[f"answer_{name}"] == best
            assert record[f"correct_{name}"] == (best == posed.question.gold)
        ids = continue_greedily(student, posed.prompt_ids, 5)
        ids = ids[: ids.index(1)] if 1 in ids else ids
        assert record["completion"] == data.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert record["num_completion_tokens"] == len(ids)
        assert record["samples"] is None is record["num_votes"] is record["references"]


def test_samples_are_drawn_whatever_the_batch_and_vote(world: World) -> None:
    options = {"max_new_tokens": 5, "num_samples": 4, "temperature": 1.0}
    first, _ = evaluate(world, Evaluator(world.student, **options))
    second, _ = evaluate(world, Evaluator(world.student, **options), tokens_per_batch=100_000)
    other, _ = evaluate(world, Evaluator(world.student, sampling_seed=1, **options))
    assert {key: record["samples"] for key, record in first.items()} == {
        key: record["samples"] for key, record in second.items()
    }
    assert first["q0"]["samples"] != other["q0"]["samples"]
    for record in first.values():
        assert len(record["samples"]) == 4 and record["completion"] in record["samples"]


def test_a_cache_of_fixed_shapes_answers_alike(world: World) -> None:
    options = {"max_new_tokens": 9, "num_samples": 3, "temperature": 1.0, "stop": (" of",)}
    grown, fixed = (evaluate(world, Evaluator(world.student, generation=way, **options))[0] for way in (None, "static"))
    assert grown == fixed
    with pytest.raises(ValueError, match=r"model\.generation is given with model\.runtime=vllm, and would be ignored"):
        Evaluator(world.student, runtime="vllm", generation="static")
    with pytest.raises(ValueError, match=r"model\.generation is given with model\.runtime=llama_cpp, and would be"):
        Evaluator("s.gguf", runtime="llama_cpp", generation="static")
    assert Evaluator("s.gguf", generation="static").runtime == "transformers"


def test_references_are_scored_as_if_alone(world: World, student: PreTrainedModel) -> None:
    records, data = evaluate(world, references=[world.rationales], logits=[world.full_logits])
    teacher = AutoModelForCausalLM.from_pretrained(world.teacher).eval()
    for identifier, record in records.items():
        [reference], [score] = data.references[identifier], record["references"]
        ids, start = reference.example.token_ids.tolist(), reference.example.num_prompt_tokens
        assert score["num_tokens"] == len(ids) - start
        expected = score_naively(student, ids[:start], ids[start:])
        assert score["log_likelihood"] == pytest.approx(expected, rel=1e-5)
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, start - 1 : -1].double() for model in (teacher, student)]
        # The student's head is wider than the tokenizer, the teacher's is not.
        log_p, log_q = (rows.log_softmax(-1)[:, : len(data.tokenizer)] for rows in logits)
        assert score["kl"] == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item(), rel=2e-3)
        assert score["agreement"] == (logits[0].argmax(-1) == logits[1].argmax(-1)).sum()


def test_references_of_another_tokenizer_are_compared_where_tokens_are_the_same(world: World, tmp_path: Path) -> None:
    stranger = save_model(tmp_path / "stranger", corpus=("stranger", "things"), seed=2)
    options = {"references": [world.rationales], "logits": [world.full_logits], "prompt": "plain", "max_length": 600}
    own = build(EvaluationDataModule, world.teacher, world.questions, **options)
    data = build(EvaluationDataModule, stranger, world.questions, alignment=AlignmentSettings(kind="strict"), **options)
    sides = []
    for name, each in ((stranger, data), (world.teacher, own)):
        each.setup("predict")
        sides.append((AutoModelForCausalLM.from_pretrained(name).eval(), each))
    scores = ReferenceScorer(sides[0][0]).score([item for [item] in data.references.values()], 400)
    for identifier, score in zip(data.references, scores, strict=True):
        tokens = []
        for model, each in sides:
            [reference] = each.references[identifier]
            ids, start = reference.example.token_ids.tolist(), reference.example.num_prompt_tokens
            with torch.no_grad():
                logits_NV = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            # Byte-level tokenizers: tokens of the same bytes have the same name, and so have ends of turn here.
            names = each.tokenizer.convert_ids_to_tokens(ids[start:])
            ends = np.cumsum([len(name) if name != each.tokenizer.eos_token else 0 for name in names]).tolist()
            places = [(*span, name) for *span, name in zip([0, *ends], ends, names, strict=False)]
            tokens.append((places, logits_NV))
        (places, logits_NV), (others, others_NV) = tokens
        common = [(places.index(place), others.index(place)) for place in places if place in others]
        assert 0 < score["num_compared"] == len(common) < score["num_tokens"]
        shared = set(data.tokenizer.get_vocab())
        agreement = 0
        for row, other in common:
            order = own.tokenizer.convert_ids_to_tokens(others_NV[other].argsort(descending=True).tolist())
            best = next(name for name in order if name in shared)
            agreement += data.tokenizer.convert_ids_to_tokens(int(logits_NV[row].argmax())) == best
        assert score["agreement"] == agreement
    refused = build(EvaluationDataModule, stranger, world.questions, **options)
    with pytest.raises(ValueError, match="do not share a tokenizer"):
        refused.setup("predict")


def test_references_without_logits_have_a_likelihood_alone(world: World) -> None:
    records, _ = evaluate(world, references=[world.rationales])
    for record in records.values():
        [score] = record["references"]
        assert score["log_likelihood"] < 0 and score["kl"] is None is score["agreement"]


def test_a_cache_that_does_not_fit_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"captured with prompt plain-.*, but the data uses cot-"):
        evaluate(world, references=[world.rationales], logits=[world.logits], prompt="cot")
    with pytest.raises(ValueError, match="are also in another cache; name one of them"):
        evaluate(world, references=[world.rationales], logits=[world.logits, world.full_logits])


def test_more_than_one_sample_needs_a_temperature(world: World) -> None:
    with pytest.raises(ValueError, match="num_samples=2 needs a temperature above 0"):
        Evaluator(world.student, num_samples=2)


def test_a_reference_beyond_the_context_is_refused(world: World, tmp_path: Path) -> None:
    _, data = evaluate(world, references=[world.rationales], limit=1)
    prompt, longest = len(data.posed["q0"].prompt_ids), data.find_longest()
    assert prompt + 1 < longest
    small = Evaluator(save_model(tmp_path / "small", context=longest - 1), max_new_tokens=1)
    with pytest.raises(ValueError, match=f"the longest prompt and reference is {longest}, more than the context"):
        evaluate(world, small, references=[world.rationales], limit=1, max_length=prompt)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base model that runs on: it has learnt a text in which one question follows the other, and no end token."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer()
    asked = get_prompt("plain").render(QUESTION, False)
    text = f"{asked}It is a sea. The answer is blue.\n\nQuestion: Which?\nA) red\nB) blue\nAnswer:\nThe answer is red."
    ids = torch.tensor([tokenizer(text).input_ids])
    model = build_llama(len(tokenizer), width=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model"), write_questions(folder / "q_test.jsonl", [QUESTION])


def test_llama_cpp_makes_room_for_the_longest_text_alone(world: World, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")
    from lightning_modules.export.architecture import convert
    from lightning_modules.export.quantization import write_gguf

    tokenizer, file = build_tokenizer(), tmp_path / "m.gguf"
    write_gguf(file, convert(build_llama(len(tokenizer), width=64, context=8192), tokenizer), "f32", {}, {})
    evaluator = Evaluator(str(file), max_new_tokens=5)
    evaluate(world, evaluator, tokenizer=str(file))
    assert evaluator.llama is not None and (evaluator.llama.context, evaluator.llama.room) == (8192, 605)


@pytest.mark.parametrize("stop", [(), ("\n\nQuestion:",), (".\n",)])
def test_the_untuned_baseline_is_scored_by_its_own_answer(base_model: tuple[str, str], stop: tuple[str, ...]) -> None:
    data = build(EvaluationDataModule, *base_model, prompt="plain", max_length=600)
    evaluator = Evaluator(base_model[0], max_new_tokens=70, stop=stop)
    data.setup("predict")
    evaluator.check(data)
    [[record]] = L.Trainer(**TRAINER).predict(evaluator, data)
    written = record["completion"]
    whole = "It is a sea. The answer is blue.\n\nQuestion: Which?\nA) red\nB) blue\nAnswer:\nThe answer is red"
    assert written.startswith(whole) if not stop else written == whole.split(stop[0])[0]
    assert (record["answer_neutral"], record["correct_neutral"]) == ("B", True)
    assert record["rationale_length"] == len("It is a sea.") or stop == (".\n",)
    assert record["finish_reason"] == ("stop" if stop else "length")
    assert (record["num_completion_tokens"] < 70) == bool(stop)


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.stop holds an empty text"):
        Evaluator("student", stop=("",))
