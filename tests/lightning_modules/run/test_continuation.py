from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.files.atomic import write_json
from lightning_modules.run.continuation import ContinuingCheckpointIO, begin_anew, find_end, identify_end


def test_a_run_that_has_not_ended_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no finished run"):
        identify_end(str(tmp_path))
    write_json(tmp_path / "meta.json", {"config_hash": "x", "config": {}})
    with pytest.raises(ValueError, match="is no finished run"):
        identify_end(str(tmp_path))
    (tmp_path / "DONE").write_text("{}")
    assert identify_end(str(tmp_path))["config_hash"] == "x"
    with pytest.raises(ValueError, match=r"kept no checkpoint; train it with --run.keep_checkpoints=true"):
        find_end(str(tmp_path))


def make_checkpoint() -> dict[str, Any]:
    """Returns what a checkpoint says of three steps."""
    counts = {"ready": 3, "completed": 3, "started": 3, "processed": 3}
    progress = {"total": dict(counts), "current": dict(counts)}
    steps = {"optimizer": {"step": {"total": {"ready": 3, "completed": 3}}}}
    return {
        "epoch": 2,
        "global_step": 3,
        "DistillationDataModule": {"epoch": 1},
        "callbacks": {"Throughput": {"tokens_seen": 5}, "ModelCheckpoint{'monitor': None}": {"dirpath": "there"}},
        "loops": {
            "fit_loop": {
                "state_dict": {"combined_loader": [{"epoch": 1}]},
                "epoch_progress": {name: dict(own) for name, own in progress.items()},
                "epoch_loop.batch_progress": {name: dict(own) for name, own in progress.items()},
                "epoch_loop.val_loop.batch_progress": {name: dict(own) for name, own in progress.items()},
                "epoch_loop.state_dict": {"_batches_that_stepped": 3},
                "epoch_loop.automatic_optimization.optim_progress": steps,
            }
        },
        "optimizer_states": [torch.ones(2)],
    }


def test_the_optimizer_goes_on_and_the_data_begins_anew() -> None:
    checkpoint = make_checkpoint()
    steps = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    begin_anew(checkpoint)
    loop = checkpoint["loops"]["fit_loop"]
    assert checkpoint["global_step"] == 3 and checkpoint["epoch"] == 0
    assert "DistillationDataModule" not in checkpoint and loop["state_dict"] == {}
    assert checkpoint["callbacks"] == {"Throughput": {"tokens_seen": 5}}
    assert loop["epoch_loop.automatic_optimization.optim_progress"] is steps
    assert loop["epoch_progress"]["total"]["completed"] == loop["epoch_loop.batch_progress"]["current"]["ready"] == 0


def test_only_another_runs_checkpoint_begins_anew_and_stays_as_it_is(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    reader = ContinuingCheckpointIO(own)
    for folder in (own, other):
        reader.save_checkpoint(make_checkpoint(), folder / "last.ckpt")
    before = (other / "last.ckpt").read_bytes()
    assert reader.load_checkpoint(own / "last.ckpt")["epoch"] == 2
    assert reader.load_checkpoint(other / "last.ckpt")["epoch"] == 0
    assert (other / "last.ckpt").read_bytes() == before
