"""Tests of what fit's command line decides by the machine."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.files.atomic import read_meta
from scripts import fit
from scripts.common.fit_cli import take_tf32
from tests.scripts.pipeline import MODELS, read_jsonl

ARGS = [
    f"--model.student={MODELS}/a-student",
    "--data.prompt=plain",
    "--data.questions=microworld:train:4:0",
    "--data.supervision=label",
    "--data.encoding.max_length=512",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=2",
]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("more", "precision"),
    [
        ([], "bf16-mixed"),
        (["--trainer.accelerator=cpu"], "32-true"),
        (["--trainer.precision=32-true"], "32-true"),
        (["--model.dtype=bfloat16"], "32-true"),
        (["--model.dtype=bfloat16", "--model.adapter.r=4"], "bf16-mixed"),
    ],
)
def test_a_gpu_with_bfloat16_is_used_so_unless_a_setting_says_otherwise(monkeypatch, more: list, precision: str):
    assert fit.parse([*ARGS, *more]).trainer.precision == "32-true"
    monkeypatch.setattr("scripts.common.fit_cli.has_bfloat16_gpu", lambda: True)
    assert fit.parse([*ARGS, *more]).trainer.precision == precision


def test_a_run_goes_on_in_the_precision_that_it_began_in(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    class KilledError(Exception):
        pass

    def die(cli: fit.FitCLI, start: float) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("scripts.common.fit_cli.has_bfloat16_gpu", lambda: True)
        patch.setattr(fit, "finish", die)
        with pytest.raises(KilledError):
            fit.main(ARGS)
        assert "precision: bf16-mixed, as trainer.precision says nothing" in capsys.readouterr().out
    path = fit.main(ARGS)
    assert read_meta(path)["precision"] == "bf16-mixed" and (path / "DONE").exists()
    # On another machine it has the same name, and other numbers.
    other = fit.main([*ARGS, "--run.root=elsewhere"])
    assert other.name == path.name and read_meta(other)["precision"] == "32-true"
    first, second = (read_jsonl(folder / "metrics.jsonl")[1]["train/loss"] for folder in (path, other))
    assert first != second and first == pytest.approx(second, rel=0.05)


@pytest.mark.parametrize(
    ("device", "precision", "products"),
    [("cuda", "32-true", "high"), ("cuda", "bf16-mixed", "highest"), ("cpu", "32-true", "highest")],
)
def test_float32_on_a_gpu_multiplies_in_tf32(device: str, precision: str, products: str) -> None:
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)
    before = torch.get_float32_matmul_precision()
    try:
        take_tf32(trainer)
        assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)
