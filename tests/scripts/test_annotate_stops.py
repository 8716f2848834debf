"""Annotation without a trainer, by an endpoint and by an engine, that a scheduler stops: what is under way is kept."""

import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chat_server import serve
from tests.scripts.pipeline import COMMANDS, MODELS, ROOT, count_lines, run_stage, spawn, wait_until

NUM_QUESTIONS = 40
OPTIONS = [f"--data.questions=microworld:train:{NUM_QUESTIONS}:0"]


def read_texts(path: Path) -> dict[str, str]:
    records = pq.read_table(path).to_pylist()
    return {record["question_id"]: record["text"] for record in records}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
def test_an_endpoints_answers_that_are_under_way_are_kept(inside: Path, tmp_path: Path, number: signal.Signals) -> None:
    pytest.importorskip("openai", reason="the extra openai is not installed")
    output, part = tmp_path / "r.parquet", tmp_path / ".r.parquet.part-0.jsonl"
    with serve(str(MODELS / "a-teacher")) as server:
        server.delay = 0.3
        options = [
            *COMMANDS["annotate"], *OPTIONS, "--model.teacher=served", f"--output={output}",
            "--model.backend=OpenAIBackend", f"--model.backend.base_url={server.url}",
            "--model.backend.max_concurrent=4", "--model.max_new_tokens=4",
        ]  # fmt: skip
        process = spawn("annotate", options, inside)
        # Below the header.
        wait_until(process, lambda: count_lines(part) > 4)
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        assert f"stopped by {number.name} after" in said and "Traceback" not in errors
        asked = len(server.bodies)
        assert count_lines(part) - 1 == server.num_answers == asked < NUM_QUESTIONS
        process = spawn("annotate", options, inside)
        assert process.wait(60) == 0
        process.communicate()
        assert len(server.bodies) == NUM_QUESTIONS
    assert len(read_texts(output)) == NUM_QUESTIONS


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=lambda number: number.name)
def test_an_engine_stops_between_two_calls(inside: Path, tmp_path: Path, number: signal.Signals) -> None:
    """vLLM cannot run here; its calls are answered by transformers."""
    output, part = tmp_path / "r.parquet", tmp_path / ".r.parquet.part-0.jsonl"
    options = [
        *COMMANDS["annotate"], *OPTIONS, f"--output={output}",
        "--model.backend=VLLMBackend", "--model.backend.requests_per_call=2",
    ]  # fmt: skip
    path = f"{ROOT}:{ROOT / 'tests' / 'fake_vllm'}"
    process = spawn("annotate", options, inside, PYTHONPATH=path)
    wait_until(process, lambda: count_lines(part) > 2)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert f"stopped by {number.name} after" in said and "Traceback" not in errors
    assert 2 < count_lines(part) <= NUM_QUESTIONS
    process = spawn("annotate", options, inside, PYTHONPATH=path)
    assert process.wait(60) == 0, process.communicate()
    process.communicate()
    # As if nothing had happened, and as the same teacher writes in transformers.
    local = tmp_path / "local.parquet"
    run_stage("annotate", *OPTIONS, f"--output={local}")
    assert read_texts(output) == read_texts(local)
