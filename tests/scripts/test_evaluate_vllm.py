"""Tests of an evaluation through vLLM, which does not run here: its calls are answered by the same student."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from scripts import evaluate
from tests.scripts.pipeline import MODELS, ROOT

COMMON = ["--data.prompt=plain", "--data.questions=microworld:test:6:0", "--model.max_new_tokens=48"]
COMMON += ["--data.encoding.max_length=320", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
COMMON += [f"--model.student={MODELS}/a-student"]
VLLM = ["--model.runtime=vllm", "--model.vllm=VLLMBackend"]


def run(output: Path, *more: str) -> list[dict]:
    evaluate.main([*COMMON, *more, f"--output={output}"])
    return pq.read_table(output).to_pylist()


def test_vllm_gives_the_table_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fake = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fake_vllm" / "vllm.py")))
    monkeypatch.setattr("lightning_modules.teacher.vllm_backend.import_vllm", lambda: fake)
    plain = run(tmp_path / "plain.parquet")
    # Less than all in a call.
    found = run(tmp_path / "vllm.parquet", *VLLM, "--model.vllm.requests_per_call=4")
    assert {row["runtime"] for row in plain} == {"transformers"} and {row["runtime"] for row in found} == {"vLLM 0.0"}
    assert len(found) == 6 and {row["finish_reason"] for row in plain} == {"stop"}
    for first, second in zip(plain, found, strict=True):
        assert second.pop("option_log_likelihoods") == pytest.approx(first.pop("option_log_likelihoods"), rel=1e-4)
        assert first | {"runtime": ""} == second | {"runtime": ""}
    capsys.readouterr()
    # The engine's own settings change no result; the other runtime does.
    run(tmp_path / "vllm.parquet", "--model.runtime=vllm")
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was made with another configuration"):
        run(tmp_path / "vllm.parquet")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.vllm=VLLMBackend"], "model.vllm is given without model.runtime=vllm, and would be ignored"),
        ([*VLLM, "--model.keep_layers=[0]"], "model.keep_layers: vLLM loads whole models"),
        ([*VLLM, "--trainer.accelerator=gpu"], "trainer.accelerator=gpu: vLLM takes the GPUs itself"),
        (["--model.runtime=vllm"], "this needs vLLM, in an environment of its own"),
    ],
)
def test_what_vllm_cannot_do_is_refused_in_one_line(tmp_path: Path, monkeypatch, more: list, message: str) -> None:
    if "needs vLLM" not in message:
        monkeypatch.setattr("lightning_modules.teacher.vllm_backend.import_vllm", lambda: SimpleNamespace())
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        run(tmp_path / "x.parquet", *more)
    assert not (tmp_path / "x.parquet").exists()
