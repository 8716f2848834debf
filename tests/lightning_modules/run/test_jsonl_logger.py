"""A run's metrics reach the disk before a checkpoint that counts their steps, and not at every step."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.run import jsonl_logger
from lightning_modules.run.jsonl_logger import JsonlLogger, MetricsFirst
from tests.lightning_modules.conftest import World
from tests.lightning_modules.run.test_throughput import make
from tests.tiny import fit


def test_metrics_are_on_the_disk_before_a_checkpoint_and_at_the_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, synced = tmp_path / "metrics.jsonl", []

    def note(path: Path) -> None:
        synced.append((path.read_text().count("\n"), (tmp_path / "saved.ckpt").exists()))

    monkeypatch.setattr(jsonl_logger, "sync_path", note)
    module, data = make(world)
    trainer = fit(
        module,
        data,
        max_epochs=3,
        log_every_n_steps=1,
        logger=JsonlLogger(metrics),
        enable_checkpointing=True,
        callbacks=[MetricsFirst(), ModelCheckpoint(dirpath=tmp_path, filename="saved", save_on_train_epoch_end=True)],
    )
    steps = trainer.global_step // 3
    assert steps > 1
    # Before each epoch's checkpoint, and at the end.
    assert synced[0] == (steps, False) and len(synced) == 4
    assert synced[-1] == (metrics.read_text().count("\n"), True)
