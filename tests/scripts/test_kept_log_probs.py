"""Log-probabilities that an endpoint returns while it annotates: the cache they make, kills, refusals, a training."""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from datamodules.batches.teacher_rows import collate_targets
from datamodules.distillation import DistillationDataModule
from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.tokenization import encode_prompt, load_tokenizer
from datamodules.logit_cache.aligned import AlignmentSettings
from datamodules.logit_cache.format import UNKNOWN_TOKENIZER
from datamodules.logit_cache.reader import LogitCache
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions
from datamodules.text.token_bytes import read_vocabulary
from scripts import annotate, fit
from tests.chat_server import ChatServer, serve
from tests.halting.process import wait_until
from tests.scripts.conftest import Bench
from tests.scripts.pipeline import count_lines
from tests.tiny import build

pytest.importorskip("openai", reason="the extra openai is not installed")
ROOT = Path(__file__).parents[2]
TEACHER, STUDENT = (str(ROOT / "configs" / "models" / "microworld" / name) for name in ("a-teacher", "b-student"))
QUESTIONS = "microworld:train:6:0"
PART = "out/.r.parquet.part-0.jsonl"


@pytest.fixture
def server(bench: Bench) -> Iterator[ChatServer]:
    (bench.folder / "out").mkdir()
    with serve(TEACHER) as served:
        tokenizer = load_tokenizer(TEACHER)
        served.vocabulary = read_vocabulary(tokenizer, find_end_tokens(tokenizer))
        yield served


def make_command(server: ChatServer, *more: str) -> list[str]:
    return [
        "--model.teacher=a-teacher",
        "--model.family=a",
        "--model.max_new_tokens=96",
        "--model.backend=OpenAIBackend",
        f"--model.backend.base_url={server.url}",
        "--model.backend.retry_delay=0.01",
        f"--data.questions={QUESTIONS}",
        "--data.prompt=plain",
        "--output=out/r.parquet",
        "--model.log_probs=top_k",
        *more,
    ]


def list_files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.suffix == ".safetensors"}


@torch.no_grad()
def score(record: dict, own_template: bool = False) -> tuple[list[int], torch.Tensor]:
    """Returns the teacher's tokens of a rationale, and its whole distributions."""
    tokenizer = load_tokenizer(TEACHER)
    model = AutoModelForCausalLM.from_pretrained(TEACHER).eval()
    [question] = [item for item in load_questions(QUESTIONS) if item.id == record["question_id"]]
    prompt = tokenizer(get_prompt("plain").render(question, chat=True))["input_ids"]
    if own_template:
        _, prompt = encode_prompt(tokenizer, get_prompt("plain"), question)
    ids = tokenizer(record["text"], add_special_tokens=False)["input_ids"]
    written = [*ids, tokenizer.eos_token_id] if record["finish_reason"] == "stop" else ids
    logits = model(input_ids=torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1]
    return written, logits.log_softmax(-1)


@pytest.mark.parametrize(("number", "returns_end"), [(20, True), (3, False)])
def test_what_an_endpoint_returns_is_the_cache_of_what_it_wrote(
    bench: Bench, server: ChatServer, number: int, returns_end: bool
) -> None:
    server.returns_end = returns_end
    said = bench.run_main(annotate.main, make_command(server, f"--model.top_log_probs={number}"))
    assert all(body["logprobs"] is True and body["top_logprobs"] == number for body in server.bodies)
    cache, store = LogitCache(Path("out/r-logits")), pq.read_table("out/r.parquet")
    assert f"out/r-logits: log-probabilities of {cache.num_rows} tokens" in said
    assert cache.description.sparsity.kind == "top_k" and cache.description.sparsity.top_k == number
    assert cache.description.tokenizer_fingerprint == UNKNOWN_TOKENIZER
    own, theirs = cache.read_vocabulary(), server.vocabulary
    for record in store.to_pylist():
        identifier = f"{record['question_id']}/a-teacher/0"
        rows = cache.read_foreign([identifier])
        written, log_p = score(record)
        written = written if returns_end or record["finish_reason"] == "length" else written[:-1]
        assert own.join(rows["token_ids"]).decode().removeprefix(" ") == record["text"]
        assert len(rows["token_ids"]) == len(written)
        assert (rows["token_ids"][-1] == 0) == (returns_end and record["finish_reason"] == "stop")
        for index, token in enumerate(written):
            assert rows["label_log_prob"][index] == pytest.approx(log_p[index, token].item(), rel=2e-3, abs=1e-5)
            # Of tokens with the same bytes, or none, the cache cannot know which is which.
            expected: dict[bytes, float] = {}
            best = log_p[index].topk(number)
            for other, value in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                meaning = b"</s>" if other in theirs.ends else theirs.tokens[other]
                expected[meaning] = expected.get(meaning, 0) + np.exp(value)
            found: dict[bytes, float] = {}
            for other, value in zip(rows["support"][index].tolist(), rows["log_probs"][index].tolist(), strict=True):
                meaning = (b"</s>" if other in own.ends else own.tokens[other]) or b"</s>"
                found[meaning] = found.get(meaning, 0) + np.exp(value)
            for meaning, value in expected.items():
                if meaning:
                    assert found[meaning] == pytest.approx(value, rel=5e-3, abs=1e-6)
            mass = np.exp(best.values.double().numpy()).sum()
            assert np.exp(rows["log_tails"][index, 0]) == pytest.approx(1 - mass, rel=0.02, abs=2e-4)
    # Ids are given by first appearance.
    assert cache.read_tokens(next(iter(cache)))[0] == 1


def test_labels_are_what_was_written_alone(bench: Bench, server: ChatServer) -> None:
    annotate.main(make_command(server, "--model.log_probs=labels"))
    assert all(body["logprobs"] is True and "top_logprobs" not in body for body in server.bodies)
    cache = LogitCache(Path("out/r-logits"))
    assert cache.description.sparsity.kind == "labels"
    [(_, rows), *_] = cache.read_all()
    assert set(rows) == {"token_ids", "label_log_prob"} and (rows["label_log_prob"] <= 0).all()


def test_below_the_most_probable_is_tail_and_never_a_value(bench: Bench, server: ChatServer) -> None:
    def hide(content: list[dict]) -> list[dict]:
        content[3]["logprob"] = -9999.0
        others = [entry for entry in content[3]["top_logprobs"] if entry["token"] != content[3]["token"]]
        values = [-1.0, *[-9999.0] * (len(others) - 1)]
        content[3]["top_logprobs"] = [{**entry, "logprob": v} for entry, v in zip(others, values, strict=True)]
        return content

    server.change = hide
    annotate.main(make_command(server, "--model.top_log_probs=4"))
    cache = LogitCache(Path("out/r-logits"))
    made = cache.description.sparsity
    assert (made.kind, made.top_k, made.mass) == ("adaptive", 4, 1.0)
    for _, rows in cache.read_all():
        assert np.isneginf(rows["label_log_prob"][3]) and (rows["support"][3] >= 0).sum() == 1
        assert np.exp(rows["log_tails"][3, 0]) == pytest.approx(1 - np.exp(-1), abs=1e-3)
        others = np.delete(rows["label_log_prob"], 3)
        assert (others > -30).all()


@pytest.mark.slow
def test_the_order_of_answers_and_a_kill_change_nothing(bench: Bench, server: ChatServer) -> None:
    annotate.main(make_command(server))
    whole = list_files("out/r-logits")
    done = len(server.bodies)
    server.hold = lambda number: number < done + 2 or server.released.wait()
    again = make_command(server, "--output=out/s.parquet", "--model.backend.max_concurrent=2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.annotate", *again],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # The header and two answers; two more are under way.
    part = Path("out/.s.parquet.part-0.jsonl")
    wait_until(process, lambda: count_lines(part) == 3 and len(server.bodies) == done + 4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.released.set()
    assert not Path("out/s-logits").exists()
    annotate.main(again)
    assert len(server.bodies) == done + 8
    assert list_files("out/s-logits") == whole


def test_a_kill_between_the_cache_and_the_store_is_continued(
    bench: Bench, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("scripts.annotate.write_rationales", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            annotate.main(make_command(server))
    whole, asked = list_files("out/r-logits"), len(server.bodies)
    annotate.main(make_command(server))
    assert len(server.bodies) == asked and list_files("out/r-logits") == whole
    assert len(pq.read_table("out/r.parquet")) == 6
    said = bench.run_main(annotate.main, make_command(server))
    assert "complete already" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.top_log_probs=21"], "model.top_log_probs is 21, but an endpoint returns 20 at most; lower it"),
        (["--model.log_probs=hybrid"], "model.log_probs hybrid needs whole distributions, which nobody returns"),
        (["--model.log_probs=labels", "--model.top_log_probs=3"], "model.top_log_probs would be ignored"),
        (["--model.backend=TransformersBackend"], "model.log_probs: TransformersBackend returns none with its text"),
    ],
)
def test_what_cannot_be_kept_is_refused(bench: Bench, server: ChatServer, options: list, message: str) -> None:
    command = [part for part in make_command(server) if "backend." not in part or "Transformers" not in str(options)]
    assert message in bench.refuse_main(annotate.main, [*command, *options])
    assert server.bodies == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: None, "q0: the reply has no log-probabilities; leave model.log_probs out"),
        (lambda content: [{**entry, "top_logprobs": []} for entry in content], "set model.log_probs to labels"),
        (lambda content: [{**entry, "bytes": None} for entry in content], "the reply has no bytes of its token"),
    ],
)
def test_an_endpoint_that_returns_too_little_is_asked_once(bench, server: ChatServer, change, message: str) -> None:
    server.change = change
    line = bench.refuse_main(annotate.main, make_command(server, "--model.backend.max_concurrent=1"))
    assert server.url in line and message.removeprefix("q0: ") in line
    assert len(server.bodies) == 1


def test_malformed_log_probabilities_are_asked_for_again(bench: Bench, server: ChatServer) -> None:
    server.change = lambda content: content if len(server.bodies) > 2 else [{"token": "a", "logprob": "b"}]
    annotate.main(make_command(server, "--model.backend.max_concurrent=1"))
    assert len(server.bodies) == 8
    server.change = lambda content: [{**entry, "logprob": float("nan")} for entry in content]
    line = bench.refuse_main(
        annotate.main, make_command(server, "--output=out/s.parquet", "--model.backend.max_retries=1")
    )
    assert "malformed log-probabilities" in line


def test_a_folder_that_is_no_cache_is_refused_before_anything_is_asked(bench: Bench, server: ChatServer) -> None:
    Path("out/r-logits").mkdir()
    Path("out/r-logits/notes.txt").write_text("mine")
    line = bench.refuse_main(annotate.main, make_command(server))
    assert "out/r-logits: is no logit cache (it holds notes.txt)" in line and server.bodies == []


FIT = [
    f"--model.student={STUDENT}",
    "--model.loss.kl_weight=0.5",
    f"--data.questions={QUESTIONS}",
    "--data.prompt=plain",
    "--data.encoding.max_length=512",
    '--data.rationales=["out/r.parquet"]',
    "--data.supervision=rationale+logits",
    '--data.logits=["out/r-logits"]',
    "--data.filters.correct_only=false",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--run.id=run",
]


@pytest.mark.parametrize(
    ("log_probs", "alignment"), [("top_k", "strict"), ("top_k", "bytes"), ("top_k", "chunks"), ("labels", "chunks")]
)
@pytest.mark.parametrize("returns_end", [True, False])
def test_a_student_of_another_family_learns_from_an_endpoint(
    bench: Bench, server: ChatServer, log_probs: str, alignment: str, returns_end: bool
) -> None:
    server.returns_end = returns_end
    annotate.main(make_command(server, f"--model.log_probs={log_probs}"))
    said = bench.run_main(fit.main, [*FIT, f"--data.alignment.kind={alignment}"])
    assert Path("runs/default/run/DONE").exists(), said


def test_an_answer_sentence_that_was_added_has_no_target(bench: Bench, server: ChatServer) -> None:
    """The student's prompt adds it where a rationale does not state its answer; what the teacher wrote stays taught."""
    annotate.main(make_command(server))
    data = build(
        DistillationDataModule,
        STUDENT,
        QUESTIONS,
        "rationale+logits",
        rationales=["out/r.parquet"],
        logits=["out/r-logits"],
        prompt="plain",
        correct_only=False,
        alignment=AlignmentSettings(kind="bytes", whitespace="keep"),
    )
    data.setup("fit")
    student = read_vocabulary(data.tokenizer, find_end_tokens(data.tokenizer))
    texts = {f"{record['question_id']}/a-teacher/0": record for record in pq.read_table("out/r.parquet").to_pylist()}
    added = 0
    for example in data.examples:
        has_target = collate_targets([example], data.cache_of_example)["has_target"].numpy()
        ids = example.token_ids[example.num_prompt_tokens :]
        ends = np.cumsum([len(student.tokens[token]) for token in ids])
        length = len(texts[example.id]["text"].encode())
        is_longer = ends - 1 > length
        assert not has_target[is_longer].any()
        own = has_target[~is_longer]
        assert own[:-1].mean() > 0.8
        added += is_longer.any()
    assert 0 < added < len(data.examples)


@pytest.mark.parametrize(("options", "kind"), [(["--model.top_log_probs=30"], "top_k"), ([], "labels")])
def test_vllm_keeps_what_it_returns(bench: Bench, monkeypatch: pytest.MonkeyPatch, options: list, kind: str) -> None:
    """vLLM itself does not run here; its calls are answered by the same teacher in transformers."""
    fake = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fake_vllm" / "vllm.py")))
    monkeypatch.setattr("lightning_modules.teacher.vllm_backend.import_vllm", lambda: fake)
    (bench.folder / "out").mkdir()
    annotate.main([
        f"--model.teacher={TEACHER}", "--model.family=a", "--model.max_new_tokens=96", "--model.backend=VLLMBackend",
        f"--data.questions={QUESTIONS}", "--data.prompt=plain", "--data.encoding.max_length=320",
        "--output=out/r.parquet", f"--model.log_probs={kind}", "--trainer.accelerator=cpu", *options,
    ])  # fmt: skip
    cache = LogitCache(Path("out/r-logits"))
    own = cache.read_vocabulary()
    for record in pq.read_table("out/r.parquet").to_pylist():
        rows = cache.read_foreign([f"{record['question_id']}/a-teacher/0"])
        written, log_p = score(record, own_template=True)
        assert own.join(rows["token_ids"]).decode().removeprefix(" ") == record["text"]
        assert (rows["token_ids"][-1] == 0) == (record["finish_reason"] == "stop")
        expected = log_p[torch.arange(len(written)), written]
        np.testing.assert_allclose(rows["label_log_prob"], expected, rtol=2e-3, atol=1e-5)
        if kind == "top_k":
            best = log_p.topk(30).values.double().exp()
            np.testing.assert_allclose(np.exp(rows["log_tails"][:, 0]), 1 - best.sum(1), atol=2e-4)
            # Written greedily, so that the text's own token is the most probable.
            np.testing.assert_allclose(np.exp(rows["log_probs"].max(1)), best[:, 0], rtol=5e-3)
