"""Stages that are stopped, in processes of their own: killed, signalled by a scheduler, interrupted by a user."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from datamodules.files.locks import hold
from datamodules.files.record_log import write_line
from datamodules.files.seals import read_sealed
from datamodules.logit_cache.reader import LogitCache
from lightning_modules.run.checkpoints import read_global_step
from tests.halting.process import PATIENCE, wait_until, wait_until_halted
from tests.scripts.pipeline import COMMANDS, count_lines, end, read_jsonl, run_stage, spawn


def test_killed_annotate_keeps_what_it_had(inside, tmp_path):
    output, part = tmp_path / "r.parquet", tmp_path / ".r.parquet.part-0.jsonl"
    options = [f"--output={output}", "--data.batches.tokens_per_batch=1", "--data.questions=microworld:train:60:0"]
    process = spawn("annotate", [*COMMANDS["annotate"], *options], inside, f"open:{part.name}:20")
    wait_until(process, lambda: count_lines(part) >= 4)
    end(process)
    assert not output.exists()
    # A mark in what was kept shows that it is not made again; a torn line is what a kill may leave.
    lines = part.read_text().splitlines()
    kept = {name: value for name, value in json.loads(lines[1]).items() if name != "crc32"}
    marked = write_line({**kept, "family": "kept"})[:-1]
    part.write_text("\n".join([lines[0], marked, *lines[2:], '{"question_id": "mi']))
    run_stage("annotate", *options)
    assert list(tmp_path.iterdir()) == [output]
    records = pq.read_table(output).to_pylist()
    assert [record["question_id"] for record in records if record["family"] == "kept"] == [kept["question_id"]]
    whole = tmp_path / "whole.parquet"
    run_stage("annotate", *options, f"--output={whole}")
    assert [{**record, "family": "a"} for record in records] == pq.read_table(whole).to_pylist()


@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
def test_a_rerun_that_has_nothing_left_to_ask_says_nothing_else(inside, tmp_path, stage, full_disk):
    output = tmp_path / "out.parquet"
    options = [f"--output={output}"] + (["--wandb.enabled=false"] if stage == "evaluate" else [])
    size = (inside / ("teacher/rationales.parquet" if stage == "annotate" else "predictions.parquet")).stat().st_size
    # The log of the records fits, the table with its schema and metadata does not.
    with full_disk(size - 1), pytest.raises(ValueError, match=r"out\.parquet: cannot be written: File too large"):
        run_stage(stage, *options)
    assert not output.exists() and (tmp_path / ".out.parquet.part-0.jsonl").is_file()
    with warnings.catch_warnings(record=True) as said:
        run_stage(stage, *options)
    assert [str(warning.message) for warning in said] == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("stage", ["annotate", "evaluate"])
@pytest.mark.slow
def test_a_second_writer_of_an_output_is_refused(inside, tmp_path, stage):
    output = tmp_path / "out.parquet"
    options = [f"--output={output}", "--data.batches.tokens_per_batch=1", "--data.questions=microworld:test:60:0"]
    options += ["--wandb.enabled=false"] if stage == "evaluate" else []
    process = spawn(stage, [*COMMANDS[stage], *options], inside, "open:.out.parquet.part-0.jsonl:2")
    wait_until(process, (tmp_path / ".out.parquet.part-0.jsonl").is_file)
    with pytest.raises(
        ValueError, match=rf"out.parquet: another process writes this output \(process {process.pid} on"
    ):
        run_stage(stage, *options)
    end(process)
    run_stage(stage, *options)
    assert len(set(pq.read_table(output)["question_id"].to_pylist())) == pq.read_table(output).num_rows == 60
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Some of what fits of thirty epochs write; the lines of metrics are opened for each checkpoint, too.
SOON, LATER = "open:metrics.jsonl:20", "open:metrics.jsonl:40"
ENDURE = ["--trainer.max_epochs=30", "--data.supervision=rationale", "--data.logits=null", "--model.loss.kl_weight=0"]
# Numbers of the command line are of jsonargparse's types, which checkpoints may not hold.
ENDURE += ["--model.learning_rate=2e-4", "--model.weight_decay=0.01"]


def check_resumed(folder: Path, whole: Path) -> None:
    """Checks that a resumed run's metrics have no gap and no repeat, and are those of a run without a break."""
    resumed, unbroken = (read_jsonl(run / "metrics.jsonl") for run in (folder, whole))
    assert [(record["step"], "val/loss" in record) for record in resumed] == [
        (record["step"], "val/loss" in record) for record in unbroken
    ]
    for name in ("train/loss", "val/loss", "train/learning_rate"):
        losses = [record[name] for record in resumed if name in record]
        assert losses == pytest.approx([record[name] for record in unbroken if name in record], rel=1e-3)


@pytest.fixture(scope="module")
def unbroken(pipeline: Path) -> Path:
    """The run that the interrupted ones are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pipeline)
        patch.setenv("WANDB_MODE", "disabled")
        run_stage("fit", *ENDURE, "--run.id=unbroken")
    return pipeline / "runs" / "g" / "unbroken"


def test_killed_fit_continues_at_its_last_checkpoint(inside, unbroken, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside, LATER)
    wait_until(process, (run / "checkpoints" / "last.ckpt").is_file)
    end(process)
    assert not (run / "DONE").exists()
    begun = json.loads((run / "meta.json").read_text())
    first = read_jsonl(run / "metrics.jsonl")[0]
    run_stage("fit", *options)
    assert (run / "DONE").is_file()
    assert json.loads((run / "meta.json").read_text()) == begun
    assert read_jsonl(run / "metrics.jsonl")[0] == first
    check_resumed(run, unbroken)


@pytest.mark.slow
def test_killed_fit_continues_inside_an_epoch(inside, unbroken, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}", "--run.checkpoint_steps=1", "--data.batches.num_workers=1"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside, LATER)
    wait_until(process, lambda: (last := run / "checkpoints" / "last.ckpt").is_file() and read_global_step(last) >= 4)
    end(process)
    assert not (run / "DONE").exists()
    # The rest need not start a worker in each of its epochs.
    run_stage("fit", *options, "--data.batches.num_workers=0")
    facts = [read_sealed(folder / "DONE") for folder in (run, unbroken)]
    # Each knows its own files.
    assert all("student/kindred.json" in own.pop("sha256") for own in facts) and facts[0] == facts[1]
    resumed, whole = (
        {r["step"]: r for r in read_jsonl(f / "metrics.jsonl") if "train/loss" in r} for f in (run, unbroken)
    )
    # A kill between a step's checkpoint and its line of metrics loses the line.
    assert len(set(whole) - set(resumed)) <= 1 and set(resumed) <= set(whole)
    for step, record in resumed.items():
        assert record["train/loss"] == pytest.approx(whole[step]["train/loss"], rel=1e-3)
        assert record["train/learning_rate"] == pytest.approx(whole[step]["train/learning_rate"])


@pytest.mark.slow
def test_ctrl_c_ends_fit_in_order_and_the_same_command_continues(inside, unbroken, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside, SOON, WANDB_MODE="offline")
    wait_until_halted(process)
    assert (run / "checkpoints" / "last.ckpt").is_file()
    _, said = end(process, signal.SIGINT)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "interrupted" in said.splitlines()[-1]
    assert not (run / "DONE").exists() and not (run / "student").exists()
    run_stage("fit", *options)
    assert (run / "DONE").is_file()
    check_resumed(run, unbroken)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.slow
def test_a_schedulers_signal_stops_fit_inside_an_epoch_without_a_loss(inside, unbroken, tmp_path, number):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}", "--data.batches.num_workers=1"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside, SOON, WANDB_MODE="offline")
    wait_until_halted(process)
    assert count_lines(run / "metrics.jsonl") >= 5
    # A scheduler signals every process of a job: loader workers and what W&B has started, too.
    os.killpg(process.pid, number)
    said, errors = end(process, signal.SIGCONT)
    assert process.returncode == 75, errors
    assert f"stopped by {number.name} " in said and " at step " in said and "Traceback" not in errors
    step = read_global_step(run / "checkpoints" / "last.ckpt")
    before = (run / "metrics.jsonl").read_text()
    # The last step's line is there, and what is there stays.
    assert [record["step"] for record in read_jsonl(run / "metrics.jsonl") if "train/loss" in record][-1] == step - 1
    run_stage("fit", *options, "--data.batches.num_workers=0")
    assert (run / "metrics.jsonl").read_text().startswith(before)
    check_resumed(run, unbroken)
    assert_same_student(run, unbroken)


def assert_same_student(run: Path, other: Path) -> None:
    weights, expected = (load_file(folder / "student" / "model.safetensors") for folder in (run, other))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("stage", ["fit", "annotate"])
@pytest.mark.slow
def test_a_signal_while_the_script_still_imports_is_not_lost(inside, tmp_path, stage):
    output = f"--run.root={tmp_path}" if stage == "fit" else f"--output={tmp_path}/r.parquet"
    process = spawn(stage, [*COMMANDS[stage], output], inside, "import:torch:1")
    wait_until_halted(process)
    assert catches(Path(f"/proc/{process.pid}/status").read_text(), signal.SIGUSR1)
    said, errors = end(process, signal.SIGUSR1)
    assert process.returncode == 75, errors
    assert "stopped by SIGUSR1" in said


def catches(status: str, number: signal.Signals) -> bool:
    """Says whether a process has a handler for a signal, from what /proc has to say of it."""
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("stage", ["annotate", "cache_logits", "evaluate"])
@pytest.mark.slow
def test_a_signal_stops_a_prediction_between_two_batches(inside, tmp_path, stage):
    output = tmp_path / ("cache" if stage == "cache_logits" else "r.parquet")
    options = ["--data.batches.tokens_per_batch=1", f"--output={output}"]
    # A shard a batch, and a line.
    more, place = {
        "cache_logits": ("--rows_per_shard=1", "os.rename:shard-0000-00001.safetensors:1"),
    }.get(stage, ("--data.questions=microworld:train:16:0", "open:.r.parquet.part-0.jsonl:2"))
    options.append(more)
    process = spawn(stage, [*COMMANDS[stage], *options], inside, place)
    wait_until_halted(process)
    said, errors = end(process, signal.SIGTERM)
    assert process.returncode == 75, errors
    assert "stopped by SIGTERM between two batches" in said and "Traceback" not in errors
    run_stage(stage, *options)
    whole = tmp_path / "whole" / output.name
    run_stage(stage, *options, f"--output={whole}")
    if stage == "cache_logits":
        caches = [dict(LogitCache(path).read_all()) for path in (output, whole)]
        assert caches[0].keys() == caches[1].keys()
        for rows, expected in zip(*(cache.values() for cache in caches), strict=True):
            assert all(np.array_equal(rows[name], expected[name]) for name in expected)
    else:
        assert pq.read_table(output).to_pylist() == pq.read_table(whole).to_pylist()


@pytest.fixture(scope="module")
def stopped(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was stopped after some steps, each with its checkpoint."""
    root = tmp_path_factory.mktemp("stopped")
    options = [*ENDURE, f"--run.root={root}", "--run.checkpoint_steps=1"]
    process = spawn("fit", [*COMMANDS["fit"], *options], pipeline, SOON)
    wait_until_halted(process)
    assert count_lines(root / "g" / "r" / "metrics.jsonl") >= 5
    end(process, signal.SIGUSR1)
    assert process.returncode == 75
    return root


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(inside, unbroken, stopped, tmp_path, damage):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    run, options = tmp_path / "g" / "r", [*ENDURE, f"--run.root={tmp_path}"]
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    last.write_bytes(content[: len(content) // 2] if damage == "truncate" else content)
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged; going on from previous\.ckpt"):
        run_stage("fit", *options)
    check_resumed(run, unbroken)
    assert_same_student(run, unbroken)


def test_two_processes_do_not_train_one_run(inside, tmp_path):
    run = tmp_path / "g" / "r"
    options = [*ENDURE, f"--run.root={tmp_path}"]
    process = spawn("fit", [*COMMANDS["fit"], *options], inside, SOON)
    wait_until(process, (run / "metrics.jsonl").is_file)
    with pytest.raises(ValueError, match=rf"another process trains this run \(process {process.pid} on "):
        run_stage("fit", *options)
    end(process)
    with hold(run / ".lock", "another process trains this run"):
        pass


@pytest.mark.slow
def test_a_fit_that_is_killed_again_and_again_ends_the_same(inside, unbroken, tmp_path):
    """The benchmark of faults has twenty rounds of it, at any moment, and of the other stages."""
    run, generator = tmp_path / "g" / "r", random.Random(0)
    options = [*ENDURE, f"--run.root={tmp_path}", "--run.checkpoint_steps=1", "--data.batches.num_workers=1"]
    for round_ in ("trains", "starts", "trains"):
        done = count_lines(run / "metrics.jsonl")
        process = spawn("fit", [*COMMANDS["fit"], *options], inside, LATER)
        if round_ == "trains":
            wait_until(process, lambda done=done: count_lines(run / "metrics.jsonl") > done)
            # It also saves.
            time.sleep(generator.uniform(0, 0.2))
        else:
            # It takes up the run, which it has to itself by then.
            wait_until(process, lambda own=f"process {process.pid} ": (run / ".lock").read_text().startswith(own))
            time.sleep(generator.uniform(0, 0.2))
        end(process)
        assert not (run / "DONE").exists()
    # Workers, which the kills were to meet, would be started anew in each of the epochs that are left.
    run_stage("fit", *options, "--data.batches.num_workers=0", "--run.checkpoint_steps=null")
    assert_same_student(run, unbroken)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}


def find_second(process: subprocess.Popen) -> int:
    """Returns the id of the process that the first of two has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    [second] = [child for child in children if b"scripts.fit" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return int(second)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_between_two_steps(inside, tmp_path):
    options = [
        *ENDURE,
        f"--run.root={tmp_path}",
        "--data.batches.tokens_per_step=300",
        "--data.batches.tokens_per_batch=1",
    ]
    options += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=12"]
    for name, number in (("whole", None), ("r", signal.SIGTERM), ("r", signal.SIGUSR1), ("r", None)):
        run = tmp_path / "g" / name
        done = count_lines(run / "metrics.jsonl")
        halt_at = None if number is None else SOON
        process = spawn("fit", [*COMMANDS["fit"], *options, f"--run.id={name}"], inside, halt_at)
        if number is not None:
            wait_until_halted(process)
            assert count_lines(run / "metrics.jsonl") >= done + 4
            os.kill(find_second(process), number)
        said, errors = end(process, signal.SIGCONT)
        assert process.returncode == (0 if number is None else 75), errors
        assert number is None or "stopped by a signal to another process" in said
    check_resumed(run, tmp_path / "g" / "whole")
    assert_same_student(run, tmp_path / "g" / "whole")


def test_script_ends_with_one_line_and_exit_code_2(tmp_path):
    process = spawn("fit", [*COMMANDS["fit"], "--data.supervison=label"], tmp_path)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and out == ""
    [line] = err.splitlines()
    assert line.startswith("error: ") and "supervison" in line
    assert list(tmp_path.iterdir()) == []
