"""Teachers behind an endpoint and in an engine of their own, that a scheduler stops: what is under way is kept."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from datamodules.logit_cache.reader import LogitCache
from tests.chat_server import serve
from tests.halting.process import PATIENCE, wait_until, wait_until_halted
from tests.scripts.pipeline import COMMANDS, MODELS, ROOT, count_lines, end, run_stage, spawn

NUM_QUESTIONS = 40
OPTIONS = [f"--data.questions=microworld:train:{NUM_QUESTIONS}:0"]


def read_texts(path: Path) -> dict[str, str]:
    records = pq.read_table(path).to_pylist()
    return {record["question_id"]: record["text"] for record in records}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.slow
def test_an_endpoints_answers_that_are_under_way_are_kept(inside: Path, tmp_path: Path, number: signal.Signals) -> None:
    pytest.importorskip("openai", reason="the extra openai is not installed")
    output, part = tmp_path / "r.parquet", tmp_path / ".r.parquet.part-0.jsonl"
    with serve(str(MODELS / "a-teacher")) as server:
        # So far it gets by itself.
        server.hold = lambda number: number < 6 or server.released.wait()
        options = [
            *COMMANDS["annotate"], *OPTIONS, "--model.teacher=served", f"--output={output}",
            "--model.backend=OpenAIBackend", f"--model.backend.base_url={server.url}",
            "--model.backend.max_concurrent=4", "--model.max_new_tokens=4",
        ]  # fmt: skip
        process = spawn("annotate", options, inside)
        # Below the header.
        wait_until(process, lambda: count_lines(part) == 7 and len(server.bodies) == 10)
        process.send_signal(number)
        server.released.set()
        said, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 75, errors
        assert f"stopped by {number.name} after" in said and "Traceback" not in errors
        asked = len(server.bodies)
        assert count_lines(part) - 1 == server.num_answers == asked == 10 < NUM_QUESTIONS
        process = spawn("annotate", options, inside)
        said, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert len(server.bodies) == NUM_QUESTIONS
    assert len(read_texts(output)) == NUM_QUESTIONS


ENGINE = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'fake_vllm'}"}


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGUSR1, True), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_an_engine_stops_between_two_calls(inside: Path, tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """vLLM cannot run here; its calls are answered by transformers.

    A scheduler signals all of a job's processes: USR1 does not end an engine, and one that TERM ends is no failure.
    """
    output, part = tmp_path / "r.parquet", tmp_path / ".r.parquet.part-0.jsonl"
    options = [
        *COMMANDS["annotate"], *OPTIONS, f"--output={output}",
        "--model.backend=VLLMBackend", "--model.backend.requests_per_call=2",
    ]  # fmt: skip
    process = spawn("annotate", options, inside, f"open:{part.name}:2", **ENGINE)
    wait_until_halted(process)
    (os.killpg if to_all else os.kill)(process.pid, number)
    said, errors = end(process, signal.SIGCONT)
    assert process.returncode == 75, errors
    assert f"stopped by {number.name}" in said and "Traceback" not in errors
    if number == signal.SIGUSR1 or not to_all:
        assert "between two batches" in said
    assert 2 < count_lines(part) <= NUM_QUESTIONS
    process = spawn("annotate", options, inside, **ENGINE)
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    # As if nothing had happened, and as the same teacher writes in transformers.
    local = tmp_path / "local.parquet"
    run_stage("annotate", *OPTIONS, f"--output={local}")
    assert read_texts(output) == read_texts(local)


@pytest.mark.slow
def test_two_engines_share_what_is_missing(inside: Path, tmp_path: Path) -> None:
    """Each process has GPUs of its own, and annotate and cache_logits write what one process writes."""
    local, logits = tmp_path / "local.parquet", tmp_path / "local.logits"
    run_stage("annotate", f"--output={local}")
    scored = [
        f'--data.rationales=["{local}"]',
        "--model.temperatures=[1]",
        "--data.batches.tokens_per_batch=600",
        "--data.encoding.max_length=511",
    ]
    run_stage("cache_logits", f"--output={logits}", *scored, "--model.values=float16")
    log, output, cache = tmp_path / "log", tmp_path / "r.parquet", tmp_path / "logits"
    size = "tensor_parallel_size=2"
    for stage, options in {
        "annotate": [f"--output={output}", "--model.backend=VLLMBackend", f"--model.backend.{size}",
                     "--model.backend.engine.max_num_seqs=7", "--model.backend.requests_per_call=3"],
        "cache_logits": [f"--output={cache}", scored[0], *scored[2:], "--model.values=float16",
                         "--model.vllm=VLLMBackend", f"--model.vllm.{size}"],
    }.items():  # fmt: skip
        told = {**ENGINE, "FAKE_VLLM_LOG": str(log), "CUDA_VISIBLE_DEVICES": "4,5,6,7"}
        process = spawn(stage, [*COMMANDS[stage], *options, "--trainer.devices=2"], inside, **told)
        said, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, (said, errors)
        engines = [json.loads(line) for line in log.read_text().splitlines()]
        assert sorted(engine["gpus"] for engine in engines) == ["4,5", "6,7"]
        assert {engine["tensor_parallel_size"] for engine in engines} == {2}
        log.unlink()
    assert {engine["max_logprobs"] for engine in engines} == {8} and read_texts(output) == read_texts(local)
    pairs = zip(LogitCache(cache).read_all(), LogitCache(logits).read_all(), strict=True)
    for (own_id, own), (other_id, other) in pairs:
        assert own_id == other_id
        np.testing.assert_array_equal(own["support"], other["support"])
        np.testing.assert_allclose(own["log_probs"], other["log_probs"], atol=2e-3)
