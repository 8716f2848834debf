"""Tests of checkpoints as files: the last two are kept, a full disk costs none, what is damaged is not continued."""

import multiprocessing
import resource
from pathlib import Path

import lightning as L
import pytest
import torch

from datamodules.files.atomic import read_whole_lines, remove_torn, write_jsonl
from lightning_modules.run.checkpoints import (
    LAST,
    PREVIOUS,
    RotatingCheckpointIO,
    StepCheckpoint,
    find_checkpoint,
    is_whole,
    read_global_step,
)
from lightning_modules.run.folder import RunFolder, RunSettings
from lightning_modules.run.jsonl_logger import JsonlLogger
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.conftest import World
from tests.tiny import fit


def save(folder: Path, step: int, size: int = 100) -> None:
    RotatingCheckpointIO().save_checkpoint({"global_step": step, "weights": torch.zeros(size)}, folder / LAST)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in range(1, 5):
        save(tmp_path, step)
        assert find_checkpoint(tmp_path) == tmp_path / LAST
        assert read_global_step(tmp_path / LAST) == step
    assert read_global_step(tmp_path / PREVIOUS) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_a_file_that_all_read_is_the_first_processs_to_check(tmp_path: Path) -> None:
    save(tmp_path, 1)
    content = bytearray((tmp_path / LAST).read_bytes())
    content[content.index(bytes(400)) + 100] ^= 255
    (tmp_path / LAST).write_bytes(content)
    assert [is_whole(tmp_path / LAST, rank) for rank in (0, 1)] == [False, True]


def test_processes_that_found_different_checkpoints_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first found the newest damaged, and has removed it."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    other = [PREVIOUS]

    def gather(found: list, own: str | None) -> None:
        found[:] = [other[0], own]

    for name, answer in {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: 1,
        "all_gather_object": gather,
    }.items():
        monkeypatch.setattr(torch.distributed, name, answer)
    with pytest.raises(SystemExit) as left:
        RotatingCheckpointIO().load_checkpoint(tmp_path / LAST)
    assert left.value.code == 75
    other[0] = LAST
    assert RotatingCheckpointIO().load_checkpoint(tmp_path / LAST, weights_only=True)["global_step"] == 2


def test_a_flipped_byte_that_matters_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint = tmp_path / LAST
    content = checkpoint.read_bytes()
    noticed = 0
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 255
        checkpoint.write_bytes(damaged)
        if is_whole(checkpoint):
            # A byte that nothing depends on, such as padding.
            state = torch.load(checkpoint, weights_only=True)
            assert state["global_step"] == 1 and torch.equal(state["weights"], torch.zeros(100))
        else:
            noticed += 1
    assert noticed > 0


def test_where_both_are_damaged_no_other_run_is_begun_silently(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"last\.ckpt and .*previous\.ckpt: damaged; delete the run's folder"):
        find_checkpoint(tmp_path)


def fill_disk(folder: Path) -> None:
    """Saves where no file may grow beyond 64 KiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    with pytest.raises(ValueError, match=r"last\.ckpt: cannot be written: File too large; the same command"):
        save(folder, 3, size=10**6)


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    process = multiprocessing.get_context("spawn").Process(target=fill_disk, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [read_global_step(tmp_path / name) for name in (LAST, PREVIOUS)] == [2, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / f".{LAST}.tmp-0123abcd").write_bytes(b"half")
    (tmp_path / f".{LAST}.tmp").mkdir()
    (tmp_path / f".{LAST}.tmp" / "0-of-2.pt").write_bytes(b"half")
    remove_torn(tmp_path)
    remove_torn(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == [tmp_path / LAST]


class Places(L.Callback):
    """Notes after how many steps, of all and of the epoch, each checkpoint is saved."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, int]] = []
        self.written: list[int] = []

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        if isinstance(logger := trainer.logger, JsonlLogger):
            self.written.append(read_whole_lines(logger.path)[-1]["step"])
        self.saved.append((trainer.global_step, trainer.fit_loop.epoch_loop.batch_idx + 1))


def test_an_epochs_last_step_is_left_to_its_own_checkpoint(world: World, tmp_path: Path) -> None:
    places = Places()
    data = world.teach(tokens_per_step=300)
    step = StepCheckpoint(tmp_path, "last", enable_version_counter=False, every_n_train_steps=1)
    options = {"max_epochs": 2, "enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer = fit(DistillationModule(world.student), data, callbacks=[places, step], **options)
    number = int(trainer.num_training_batches)
    assert number == 3
    assert places.saved == [(1, 1), (2, 2), (4, 1), (5, 2)]


def test_a_steps_metrics_are_written_once_and_before_the_checkpoint_that_counts_it(
    world: World, tmp_path: Path
) -> None:
    data = world.teach(tokens_per_step=300)
    places, logger = Places(), JsonlLogger(tmp_path / "metrics.jsonl")
    step = StepCheckpoint(tmp_path, "last", enable_version_counter=False, every_n_train_steps=1)
    options = {"max_epochs": 2, "enable_checkpointing": True, "log_every_n_steps": 1, "logger": logger}
    fit(DistillationModule(world.student), data, callbacks=[places, step], **options)
    assert places.written == [number - 1 for number, _ in places.saved]
    records = read_whole_lines(logger.path)
    assert [record["step"] for record in records if "train/loss" in record] == list(range(6))


@pytest.mark.parametrize(("step", "number"), [(0, 0), (1, 1), (2, 4), (3, 6)])
def test_metrics_end_at_the_checkpoint_whatever_was_validated_after_it(tmp_path: Path, step: int, number: int) -> None:
    run, trained, validated = (
        RunFolder(RunSettings(root=str(tmp_path), id="run"), {}),
        {"train/loss": 1},
        {"val/loss": 1},
    )
    run.begin("", {}, {}, "32-true", 0)
    # The second validation was made by an attempt that went on with it.
    lines = [(0, trained), (1, trained), (1, validated), (2, validated), (2, trained), (2, validated), (3, trained)]
    records = [{"step": at, **said} for at, said in lines]
    write_jsonl(run.path / "metrics.jsonl", records)
    run.begin("", {}, {}, "32-true", step)
    assert read_whole_lines(run.path / "metrics.jsonl") == records[:number]
