"""Tests of progress in logs: whole lines, every so often, without carriage returns."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from lightning_modules.run.progress import ProgressLines, bar_options, format_seconds
from tests.tiny import TRAINER


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = (self.weight - batch).square().sum()
        self.log("train/loss", loss)
        return loss

    def predict_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def make_trainer(seconds: float) -> L.Trainer:
    options = {**TRAINER, "enable_progress_bar": True, "callbacks": [ProgressLines(seconds)], "max_epochs": 2}
    return L.Trainer(**options)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_training_and_a_prediction_say_where_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    data = DataLoader(torch.full((2, 1), 2.0))
    trainer = make_trainer(0)
    trainer.fit(Line(), data)
    trainer.predict(Line(), data)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line.split(", ")[:2] for line in lines[:4]] == [[f"step {n}/4", "loss 4.0000"] for n in (1, 2, 3, 4)]
    assert [line.split(", ")[0] for line in lines[4:]] == ["batch 1/2", "batch 2/2"]
    assert all(line.endswith(" left") for line in lines)
    assert "\r" not in said.err + said.out


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_line_comes_every_so_often_only(capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(1000).fit(Line(), DataLoader(torch.zeros(2, 1)))
    assert capsys.readouterr().err == ""


def test_bars_are_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=3, unit="jobs", desc="study", **bar_options(0)) as bar:
        for name in ("a", "b much longer", "c"):
            bar.set_postfix_str(name, refresh=False)
            bar.update()
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert "\r" not in said.err and all(line == line.strip() for line in lines)
    assert lines[0].startswith("study: 0/3 jobs, ") and lines[-1].startswith("study: 3/3 jobs, ")
    assert lines[-1].endswith(", c")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2.0 min"), (9000, "2.5 h")])
def test_times_have_one_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
