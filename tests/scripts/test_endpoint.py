"""Annotation by an OpenAI-compatible endpoint on loopback: what is asked, kept, refused, retried, capped."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from datamodules.files.record_log import RecordLog
from datamodules.rationales.store import SCHEMA, read_metadata
from datamodules.tasks.prompts import get_prompt
from scripts import annotate
from tests.chat_server import ChatServer, serve
from tests.halting.process import PATIENCE, wait_until
from tests.scripts.conftest import Bench
from tests.scripts.pipeline import count_lines
from tests.tiny import make_questions

pytest.importorskip("openai", reason="the extra openai is not installed")
ROOT = Path(__file__).parents[2]
SERVES = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def model(bench_files: Path) -> str:
    return str(bench_files / "models" / "teacher")


@pytest.fixture
def server(model: str, bench: Bench) -> Iterator[ChatServer]:
    (bench.folder / "out").mkdir()
    with serve(model) as served:
        yield served


def make_command(server: ChatServer, *more: str) -> list[str]:
    return [
        "--model.teacher=tiny",
        "--model.family=tiny",
        "--model.max_new_tokens=6",
        "--model.backend=OpenAIBackend",
        f"--model.backend.base_url={server.url}",
        "--model.backend.retry_delay=0.01",
        "--data.questions=colours_train.jsonl",
        "--output=out/r.parquet",
        *more,
    ]


def read_parts(folder: Path) -> list[dict]:
    lines = (folder / "out" / ".r.parquet.part-0.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_a_store_by_an_endpoint_is_a_store_as_any(bench: Bench, server: ChatServer, capsys) -> None:
    prices = ["--model.backend.prompt_price=1e6", "--model.backend.completion_price=2e6"]
    annotate.main(make_command(server, *prices))
    table = pq.read_table("out/r.parquet")
    assert table.schema.remove_metadata().equals(SCHEMA)
    records = table.to_pylist()
    prompt = get_prompt("cot")
    questions = make_questions(8)
    assert [record["question_id"] for record in records] == [question.id for question in questions]
    assert sorted(server.prompts) == sorted(prompt.render(question, chat=True) for question in questions)
    for record in records:
        assert record["teacher"] == "tiny" and record["prompt_id"] == prompt.id
        assert record["num_prompt_tokens"] > 10 and 0 < record["num_completion_tokens"] <= 6
        assert record["finish_reason"] == ("stop" if record["num_completion_tokens"] < 6 else "length")
    metadata = read_metadata(Path("out/r.parquet"))
    assert metadata["revision"] == "tiny-2026" and metadata["backend"] == "OpenAIBackend"
    expected = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "stop": [], "seed": 0, "num_samples": 1}
    assert metadata["decoding"] == expected
    used = [sum(record[name] for record in records) for name in ("num_prompt_tokens", "num_completion_tokens")]
    said = capsys.readouterr().out
    assert f"8 requests (0 retries), {used[0]} prompt and {used[1]} completion tokens" in said
    assert f"${used[0] + 2 * used[1]:.4f}" in said
    assert not list(Path("out").glob(".*"))


def test_what_a_served_model_thinks_is_kept_apart_and_its_template_is_told(bench: Bench, server: ChatServer) -> None:
    server.reasoning = "Maybe the answer is A."
    annotate.main(
        make_command(server, "--data.encoding.template_options={enable_thinking: true, reasoning_effort: low}")
    )
    options = {"enable_thinking": True, "reasoning_effort": "low"}
    assert all(body["chat_template_kwargs"] == options for body in server.bodies)
    records = pq.read_table("out/r.parquet").to_pylist()
    assert {record["thinking"] for record in records} == {server.reasoning}
    assert not any(server.reasoning in record["text"] for record in records)
    prompt = get_prompt("cot", template_options=options)
    assert {record["prompt_id"] for record in records} == {prompt.id} != {get_prompt("cot").id}
    assert read_metadata(Path("out/r.parquet"))["prompt"]["template_options"] == options


def test_several_processes_are_refused(bench: Bench, server: ChatServer) -> None:
    command = make_command(server, "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert "start only one" in bench.refuse_main(annotate.main, command)


def test_samples_have_seeds_of_their_own_and_concurrency_is_bounded(bench: Bench, server: ChatServer) -> None:
    together = threading.Barrier(3)
    server.hold = lambda number: number < 3 and together.wait(PATIENCE)
    more = ["--model.temperature=1", "--model.num_samples=2", "--model.backend.max_concurrent=3"]
    annotate.main(make_command(server, *more))
    assert server.most_at_once == 3
    assert len({body["seed"] for body in server.bodies}) == 16
    first = {(r["question_id"], r["sample"]): r["text"] for r in pq.read_table("out/r.parquet").to_pylist()}
    assert len(first) == 16
    annotate.main(make_command(server, *more, "--model.backend.max_concurrent=16", "--output=out/again.parquet"))
    again = {(r["question_id"], r["sample"]): r["text"] for r in pq.read_table("out/again.parquet").to_pylist()}
    assert again == first
    assert len(set(first.values())) > 8


def test_a_server_that_dies_half_way_is_asked_only_for_the_rest(bench: Bench, model: str, server: ChatServer) -> None:
    server.dies_after = 3
    command = make_command(server, "--model.backend.max_concurrent=2", "--model.backend.max_retries=1")
    writes = "out/.r.parquet.part-0.jsonl"
    line = bench.refuse_main(annotate.main, command, writes)
    assert server.url in line and "no answer in 2 attempts" in line and "the same command asks for the rest" in line
    kept = {record["question_id"] for record in read_parts(bench.folder)}
    assert len(kept) == 3
    with serve(model) as other:
        # Another port: where the teacher is served does not change what it says.
        annotate.main([*command, f"--model.backend.base_url={other.url}"])
        rest = [get_prompt("cot").render(item, chat=True) for item in make_questions(8) if item.id not in kept]
        assert sorted(other.prompts) == sorted(rest)
    assert len(pq.read_table("out/r.parquet")) == 8


@pytest.mark.slow
def test_a_killed_run_is_continued_with_what_is_missing(bench: Bench, server: ChatServer) -> None:
    server.hold = lambda number: number < 3 or server.released.wait()
    command = make_command(server, "--model.backend.max_concurrent=1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "annotate.py"), *command],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # One more is under way.
    wait_until(process, lambda: count_lines(Path("out/.r.parquet.part-0.jsonl")) == 4 and len(server.bodies) == 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.released.set()
    kept = {record["question_id"] for record in read_parts(bench.folder)}
    assert len(kept) == 3
    asked = len(server.bodies)
    annotate.main(command)
    rest = [get_prompt("cot").render(item, chat=True) for item in make_questions(8) if item.id not in kept]
    assert sorted(server.prompts[asked:]) == sorted(rest)
    assert len(pq.read_table("out/r.parquet")) == 8


@pytest.mark.parametrize(
    "failure",
    [
        (429, '{"error": {"message": "slow down"}}', {"retry-after": "0.02"}),
        (503, "<html>busy</html>", {}),
        (200, "<html>a proxy's page</html>", {"Content-Type": "text/html"}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"message": {"content": "cut', {}),
    ],
)
def test_what_may_pass_is_tried_again(bench: Bench, server: ChatServer, failure: tuple, capsys) -> None:
    server.fail = lambda number: failure if number in (1, 2) else None
    annotate.main(make_command(server))
    assert len(server.bodies) == 10
    assert len(pq.read_table("out/r.parquet")) == 8
    assert "10 requests (2 retries)" in capsys.readouterr().out


def test_a_server_that_is_too_slow_is_asked_again(bench: Bench, server: ChatServer) -> None:
    server.hold = lambda number: server.released.wait()
    command = make_command(server, "--model.backend.timeout=0.1", "--model.backend.max_retries=1", "--data.limit=1")
    line = bench.refuse_main(annotate.main, command)
    assert "q0: no answer in 2 attempts, timeout of 0.1 s" in line
    assert "2 requests (1 retries)" in bench.said
    # One may be given up before it has reached the server.
    assert len(server.bodies) <= 2


def test_a_reply_that_stays_malformed_is_named(bench: Bench, server: ChatServer) -> None:
    server.fail = lambda number: (200, '{"choices": []}', {})
    line = bench.refuse_main(annotate.main, make_command(server, "--model.backend.max_retries=2", "--data.limit=1"))
    assert "q0: no answer in 3 attempts, a malformed reply: '{\"choices\": []}'" in line


def list_texts(folder: Path) -> str:
    return "".join(path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_a_key_comes_from_the_environment_and_goes_nowhere(bench: Bench, server: ChatServer, monkeypatch) -> None:
    server.key = KEY
    # Another server than OpenAI's is not told OpenAI's key.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-only")
    line = bench.refuse_main(annotate.main, make_command(server, "--model.backend.max_retries=0"))
    assert "401" in line and "sk-for-openai-only" not in line
    named = make_command(server, "--model.backend.key_variable=MY_KEY")
    assert "set the environment variable MY_KEY" in bench.refuse_main(annotate.main, named)
    monkeypatch.setenv("MY_KEY", "sk-wrong-9876543210")
    # The server's message repeats the key; one line says what is wrong, and no second question is asked of it.
    asked = len(server.bodies)
    line = bench.refuse_main(annotate.main, [*named, "--model.backend.max_concurrent=1"])
    assert "HTTP 401, the key in MY_KEY is refused" in line and "9876543210" not in line
    assert len(server.bodies) == asked + 1
    monkeypatch.setenv("MY_KEY", KEY)
    server.fail = lambda number: (
        (400, json.dumps({"error": {"message": f"no, {KEY}"}}), {}) if number == asked + 1 else None
    )
    line = bench.refuse_main(annotate.main, [*named, "--model.backend.max_concurrent=1"])
    assert "HTTP 400" in line and "no, ***" in line and KEY not in line
    bench.capsys.readouterr()
    annotate.main([*named, "--data.prompt=plain"])
    said = bench.capsys.readouterr()
    assert KEY not in said.out + said.err + list_texts(bench.folder)
    assert "MY_KEY" not in json.dumps(read_metadata(Path("out/r.parquet")))


def test_no_more_is_sent_than_the_caps_allow(bench: Bench, server: ChatServer) -> None:
    writes = "out/.r.parquet.part-0.jsonl"
    line = bench.refuse_main(annotate.main, make_command(server, "--model.backend.max_requests=3"), writes)
    assert "max_requests=3 reached, 5 of 8 not asked" in line
    assert len(server.bodies) == 3 and len(read_parts(bench.folder)) == 3
    # A retry counts.
    server.fail = lambda number: (429, "{}", {})
    capped = make_command(server, "--model.backend.max_requests=2", "--model.backend.max_concurrent=1")
    assert "max_requests=2 reached" in bench.refuse_main(annotate.main, capped)
    assert len(server.bodies) == 5
    server.fail = lambda number: None
    # A prompt has at most as many tokens as bytes, and a template's.
    before = sum(r["num_prompt_tokens"] + r["num_completion_tokens"] for r in read_parts(bench.folder))
    with pytest.raises(ValueError, match="max_tokens_total=900 reached"):
        annotate.main(make_command(server, "--model.backend.max_tokens_total=900"))
    spent = sum(r["num_prompt_tokens"] + r["num_completion_tokens"] for r in read_parts(bench.folder)) - before
    assert 0 < spent <= 900
    # The caps are no part of what was made, so that the same annotation is finished with higher ones.
    annotate.main(make_command(server))
    assert len(pq.read_table("out/r.parquet")) == 8


def test_a_dry_run_prints_every_missing_prompt_and_sends_nothing(bench: Bench, server: ChatServer) -> None:
    said = bench.run_main(annotate.main, make_command(server, "--dry-run", "--model.backend.key_variable=NOT_SET"))
    for question in make_questions(8):
        assert get_prompt("cot").render(question, chat=True) in said
    assert "8 requests" in said and "completions of 48 tokens at most; nothing was asked" in said
    assert server.bodies == [] and not list(Path("out").iterdir())


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.keep_layers=[0]", "keep_layers"),
        ("--model.revision=abc", "revision"),
        ("--model.backend.base_url=localhost:8000", "base_url"),
        ("--model.backend.base_url=http://me:secret@localhost/v1", "key_variable"),
        ("--model.backend.max_request=3", "max_request"),
        ("--model.backend=OpenAIBakend", "OpenAIBakend"),
        ("--model.backend.base_url=https://api.openai.com/v1", "OPENAI_API_KEY"),
    ],
)
def test_what_an_endpoint_cannot_heed_is_refused(
    bench: Bench, server: ChatServer, monkeypatch, option: str, named: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    line = bench.refuse_main(annotate.main, make_command(server, option))
    assert named in line and "secret" not in line
    assert server.bodies == []


@contextmanager
def run_transformers_serve() -> Iterator[tuple[subprocess.Popen, str]]:
    """Yields the server and where it is: at a port that the system gives it, which no other process then has."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["-c", "from transformers.cli.transformers import main; main()", "serve", "--device=cpu"]
    with Path("serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--dtype=float32", "--port=0", "--host=127.0.0.1"],
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
        try:
            wait_until(process, lambda: SERVES.search(Path("serve.log").read_text()) is not None)
            [address] = SERVES.findall(Path("serve.log").read_text())
            yield process, f"--model.backend.base_url={address}/v1"
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_transformers_serve_is_asked_and_dies_half_way(bench: Bench) -> None:
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module, reason=f"transformers serve needs {module}, which is not installed")
    folder = bench.folder / "models" / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}\n"
    tokenizer.save_pretrained(folder)
    command = [
        f"--model.teacher={folder}", "--model.backend=OpenAIBackend", "--model.max_new_tokens=6",
        "--model.backend.retry_delay=0.01", "--model.backend.max_retries=1", "--model.backend.max_concurrent=1",
        "--data.questions=colours_train.jsonl", "--output=out/r.parquet",
    ]  # fmt: skip
    with run_transformers_serve() as (process, address):
        real_append = RecordLog.append

        def append(log: RecordLog, records: list[dict]) -> None:
            real_append(log, records)
            if len(read_parts(bench.folder)) == 3:
                process.send_signal(signal.SIGKILL)
                process.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RecordLog, "append", append)
            with pytest.raises(ValueError, match="no answer in 2 attempts"):
                annotate.main([*command, address])
    kept = read_parts(bench.folder)
    # One more may have been under way.
    assert 3 <= len(kept) < 8
    with run_transformers_serve() as (_, address):
        said = bench.run_main(annotate.main, [*command, address])
    assert f"{8 - len(kept)} requests (0 retries)" in said
    served = pq.read_table("out/r.parquet").to_pylist()
    annotate.main(
        [f"--model.teacher={folder}", "--model.max_new_tokens=6", *command[-2:-1], "--output=out/local.parquet"]
    )
    local = pq.read_table("out/local.parquet").to_pylist()
    # The same weights, in the same float32, say the same wherever they run.
    columns = ("question_id", "text", "finish_reason", "answer", "num_prompt_tokens")
    assert [[r[name] for name in columns] for r in served] == [[r[name] for name in columns] for r in local]
