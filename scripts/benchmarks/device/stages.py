"""The stages themselves on the device, on the microworld.

stage STAGE             seconds of each stage in bf16, its start included; one that fails ends the part
stage fit OPTION        likewise, of a fit with one more option
syncs                   times that a fit's host waits for the GPU in a step: what torch.cuda.set_sync_debug_mode
                        warns of, by place on stderr
ranks STRATEGY          the greatest difference that two processes make to a fit's float32 weights, as a share of
                        what it changed of them; over NCCL, on a CPU over gloo
ranks_speed STRATEGY    tokens/s of the two, against those of one

Stages are forked from a process that has imported everything, so that they start at once.
"""

import importlib.util
import json
import os
import socket
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file

from datamodules.batches.packing import TrainingBatches
from datamodules.distillation import DistillationDataModule
from datamodules.examples.source import ExampleEncoding
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.reliability.bench import COMMANDS, OUTPUTS, ROOT
from scripts.benchmarks.reliability.processes import Stage, run_whole

STUDENT = ROOT / "configs" / "models" / "microworld" / "a-student"
# A fit's first steps fill caches.
WARM_UP = 3
FITS = {
    "bf16-true": ["--trainer.precision=bf16-true"],
    "workers": ["--trainer.precision=bf16-mixed", "--data.batches.num_workers=2"],
    "checkpointing": ["--trainer.precision=bf16-mixed", "--model.activation_checkpointing=true"],
    "lora": ["--trainer.precision=bf16-mixed", "--model.adapter.r=8"],
}
QLORA = ["--trainer.precision=bf16-mixed", "--model.adapter.r=8", "--model.adapter.quantize=true"]


def name_accelerator(place: Place) -> str:
    """Returns Lightning's setting."""
    return f"--trainer.accelerator={'cpu' if place.is_toy else 'gpu'}"


def run_stage(place: Place, stage: str, folder: Path, *more: str) -> float:
    """Runs a stage of the reliability bench on one device; returns its seconds.

    Raises:
        RuntimeError: It failed.
    """
    return run_whole(stage, [*COMMANDS[stage], name_accelerator(place), "--trainer.devices=1", *more], folder).seconds


def measure_stages(place: Place) -> Iterator[Measurement]:
    """Runs all stages in bf16, and a fit with each option; yields their seconds."""
    half = "--model.dtype=bfloat16"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("annotate", "cache_logits"):
            yield Measurement(f"stage {stage}", run_stage(place, stage, folder, half), "s")
        yield Measurement("stage fit", run_stage(place, "fit", folder, "--trainer.precision=bf16-mixed"), "s")
        yield Measurement("stage evaluate", run_stage(place, "evaluate", folder, half), "s")
        options = dict(FITS)
        if not place.is_toy and importlib.util.find_spec("bitsandbytes"):
            options["qlora"] = QLORA
        for option, more in options.items():
            seconds = run_stage(place, "fit", folder, *more, "--trainer.max_epochs=1", f"--run.id={option}")
            yield Measurement(f"stage fit {option}", seconds, "s")


class SyncWatch(L.Callback):
    """Lets torch warn of each wait for the GPU, after a fit's first steps.

    Args:
        place: On a CPU no host waits for a device, and nothing warns.
    """

    def __init__(self, place: Place):
        self.place, self.steps = place, 0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Begins to listen."""
        if trainer.global_step >= WARM_UP:
            self.steps += 1
            self._listen("warn")

    def on_train_end(self, *args: Any) -> None:
        """Stops listening."""
        self._listen("default")

    def _listen(self, mode: str) -> None:
        if not self.place.is_toy:
            torch.cuda.set_sync_debug_mode(mode)


def measure_syncs(place: Place) -> Iterator[Measurement]:
    """Yields how often a fit's step waits for the device."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("annotate", "cache_logits"):
            run_stage(place, stage, folder)
        data = DistillationDataModule(
            str(STUDENT),
            "microworld:train:24:0",
            supervision="rationale+logits",
            rationales=[str(folder / OUTPUTS["annotate"])],
            logits=[str(folder / OUTPUTS["cache_logits"])],
            prompt="plain",
            encoding=ExampleEncoding(512, cache_dir=str(folder / "tokenized")),
            batches=TrainingBatches(tokens_per_step=600),
        )
        module = DistillationModule(str(STUDENT), DistillationLoss(kl_weight=0.5))
        data.setup("fit")
        module.check(data)
        watch = SyncWatch(place)
        trainer = L.Trainer(
            accelerator="cpu" if place.is_toy else "gpu",
            devices=1,
            precision="bf16-mixed",
            max_epochs=4,
            gradient_clip_val=1.0,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            trainer.fit(module, data)
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in heard if "synchroniz" in str(w.message))
    for where, times in places.most_common():
        print(f"syncs: {times / watch.steps:.2f} a step at {where}", file=sys.stderr)
    yield Measurement("syncs", places.total() / watch.steps, f"a step, of {watch.steps}")


def find_port() -> str:
    """Returns a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def fit_together(place: Place, folder: Path, strategy: str) -> None:
    """Fits with two processes, as a launcher like torchrun begins them.

    Raises:
        RuntimeError: One failed.
    """
    args = [*COMMANDS["fit"], name_accelerator(place), "--trainer.precision=32-true", f"--run.id={strategy}"]
    args += ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--data.batches.tokens_per_batch=300"]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": find_port(), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = []
    for rank in range(2):
        # What a forked process inherits.
        os.environ |= {**world, "LOCAL_RANK": str(rank)}
        ranks.append(Stage("fit", args, folder))
    for key in (*world, "LOCAL_RANK"):
        del os.environ[key]
    for rank, ended in enumerate([stage.wait() for stage in ranks]):
        if ended.code != 0:
            raise RuntimeError(f"rank {rank} of {strategy}: {ended}")


def read_speed(folder: Path, run: str) -> float:
    """Returns a run's median tokens/s after its first steps."""
    lines = (folder / "runs" / "g" / run / "metrics.jsonl").read_text().splitlines()
    speeds: list[float | None] = [json.loads(line).get("speed/tokens_per_second") for line in lines]
    return statistics.median([speed for speed in speeds if speed is not None][WARM_UP:])


def compare_weights(folder: Path, run: str) -> float:
    """Returns the greatest difference of a run's weights to those of `one`, over the greatest change in training."""
    start = load_file(STUDENT / "model.safetensors")
    one, other = (load_file(folder / "runs" / "g" / name / "student" / "model.safetensors") for name in ("one", run))
    change = max(float((one[name] - start[name].float()).abs().max()) for name in one)
    return max(float((one[name] - other[name]).abs().max()) for name in one) / change


def measure_ranks(place: Place) -> Iterator[Measurement]:
    """Yields what two processes make of a fit; nothing, and a line on stderr, where there is one GPU."""
    if not place.is_toy and torch.cuda.device_count() < 2:
        print("ranks: there is one GPU; DDP and fsdp2 were not run", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("annotate", "cache_logits"):
            run_stage(place, stage, folder)
        alone = ["--trainer.precision=32-true", "--data.batches.tokens_per_batch=300", "--run.id=one"]
        run_stage(place, "fit", folder, *alone)
        for strategy in ("ddp", "fsdp2"):
            fit_together(place, folder, strategy)
            yield Measurement(f"ranks {strategy}", compare_weights(folder, strategy), "of the change", baseline=0)
            speeds = read_speed(folder, strategy), read_speed(folder, "one")
            yield Measurement.against(f"ranks_speed {strategy}", *speeds, "tokens/s")
