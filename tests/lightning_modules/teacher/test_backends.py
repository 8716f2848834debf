"""Tests of the backends: texts that do not depend on batches, stop texts, seeds; and what vLLM is asked and answers."""

import sys
from pathlib import Path

import lightning as L
import pytest

from datamodules.annotation import QuestionDataModule
from lightning_modules.teacher.annotator import Annotator
from lightning_modules.teacher.backends import Decoding, Request, Source, TransformersBackend, find_stop
from lightning_modules.teacher.openai_backend import OpenAIBackend
from lightning_modules.teacher.vllm_backend import VLLMBackend, make_sampling, read_output
from tests.lightning_modules.conftest import World
from tests.tiny import TRAINER, build, build_tokenizer

MODELS = Path(__file__).parents[3] / "configs" / "models" / "microworld"


def annotate(data: QuestionDataModule, teacher: Annotator) -> dict[tuple[str, int], dict]:
    batches = L.Trainer(**TRAINER).predict(teacher, data)
    return {(record["question_id"], record["sample"]): record for records in batches for record in records}


def test_a_cache_of_fixed_shapes_draws_alike_and_keeps_what_was_drawn(world: World) -> None:
    found = []
    for backend in (TransformersBackend(), TransformersBackend("static")):
        data = build(QuestionDataModule, world.teacher, world.questions, prompt="plain", tokens_per_batch=600)
        options = {"max_new_tokens": 12, "temperature": 1.0, "num_samples": 3, "keep_ids": True}
        found.append(annotate(data, Annotator(world.teacher, backend, **options)))
        assert backend.num_tokens == 8 * 3 * 12
    log_probs = [[record.pop("log_probs") for record in records.values()] for records in found]
    assert found[0] == found[1]
    for one, other in zip(*log_probs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_stop_text_ends_a_rationale_and_is_cut_off() -> None:
    folder = str(MODELS / "a-teacher")
    free, stopped = (
        annotate(
            build(QuestionDataModule, folder, "microworld:test:12:0", prompt="plain", max_length=224),
            Annotator(folder, max_new_tokens=96, stop=stop),
        )
        for stop in ((), (" The answer", "no such text"))
    )
    for item, record in stopped.items():
        whole = free[item]
        assert " The answer" in whole["text"]
        assert record["text"] == whole["text"].partition(" The answer")[0]
        assert record["finish_reason"] == "stop"
        # It stopped there, rather than being cut afterwards.
        assert record["num_completion_tokens"] < whole["num_completion_tokens"]
    assert find_stop("a b c", ("c", "b")) == 2 and find_stop("a", ("b",)) is None
    with pytest.raises(ValueError, match=r"model\.stop holds an empty text"):
        Annotator(folder, stop=("a", ""))


def test_a_backend_that_is_not_installed_says_how_to_install_it(world: World) -> None:
    source = Source(world.teacher, None, "float32", None)
    for module, backend in (("vllm", VLLMBackend()), ("openai", OpenAIBackend("http://localhost/v1"))):
        with pytest.MonkeyPatch.context() as patch:
            # As if it were not there.
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ValueError, match=rf'pip install "kindred\[{module}\]"'):
                backend.check(source, 64, 7)


REQUEST = Request("q7", 1, "Why?", (5, 6, 7))


def test_vllm_is_asked_with_its_own_parameters() -> None:
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed: what it is asked was not checked with its class")
    made = make_sampling(vllm, REQUEST, Decoding(9, 0.7, ("\n\n",), 3), [2, 7])
    assert (made.max_tokens, made.temperature, made.stop) == (9, 0.7, ["\n\n"]) and made.stop_token_ids == [2, 7]
    assert made.seed == REQUEST.derive_seed(3) and (made.top_p, made.top_k, made.repetition_penalty) == (1, 0, 1)


def test_vllms_own_outputs_are_read() -> None:
    outputs = pytest.importorskip("vllm.outputs", reason="vLLM is not installed: its answers were not read")
    tokenizer = build_tokenizer()
    for reason in ("stop", "length", "abort"):
        ids = [*tokenizer(" Because.").input_ids, tokenizer.eos_token_id]
        answer = outputs.CompletionOutput(0, " Because.", ids, None, None, finish_reason=reason)
        made = outputs.RequestOutput("r", None, [5, 6, 7], None, [answer], True)
        if reason == "abort":
            with pytest.raises(ValueError, match="vLLM ended request r with 'abort'"):
                read_output(made, "w", tokenizer, ())
            continue
        found = read_output(made, "w", tokenizer, ())
        assert (found.text, found.token_ids, found.finish_reason) == (" Because.", ids, reason)
        assert (found.num_prompt_tokens, found.num_completion_tokens, found.revision) == (3, len(ids), "w")
