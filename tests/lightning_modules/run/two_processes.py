"""Runs under two processes: `two_processes.py WORLD OUTPUT`; test_two_processes.py reads what it writes."""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from datamodules.annotation import QuestionDataModule
from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.evaluation import EvaluationDataModule
from datamodules.files.atomic import write_json
from datamodules.logit_cache.aligned import AlignmentKind, AlignmentSettings
from datamodules.logit_cache.writer import LogitCacheWriter
from lightning_modules.evaluation.evaluator import Evaluator
from lightning_modules.model import token_budget
from lightning_modules.run.checkpoints import RngState
from lightning_modules.run.preemption import Preemption
from lightning_modules.run.stop_signal import StopListener
from lightning_modules.run.throughput import Throughput
from lightning_modules.run.writers import CacheWriter, RecordWriter
from lightning_modules.student.student import DistillationModule
from lightning_modules.teacher.annotator import Annotator
from lightning_modules.teacher.teacher import LogitScorer
from losses.distillation import DistillationLoss
from tests.lightning_modules.run.resumable import Signal
from tests.tiny import TRAINER, build, fit

# Steps of one to three examples each; the processes' shares differ, and a share may be nothing.
STEPS: dict[str, Any] = {"tokens_per_step": 300, "tokens_per_batch": 100}
SAVING: dict[str, Any] = {"precision": "64-true", "enable_checkpointing": True}
DDP: dict[str, Any] = {"strategy": "ddp", "devices": 2}
ALIGNMENTS: tuple[AlignmentKind, ...] = ("bytes", "chunks")


class SentMessages(L.Callback):
    """Notes the collective calls of each step, and of each batch of a validation, that are Kindred's or Lightning's.

    Those of DDP's gradients are neither.
    """

    def __init__(self) -> None:
        self.of_steps: list[list[str]] = []
        self._watched = ExitStack()

    def on_train_start(self, *args: Any) -> None:
        """Begins to watch."""
        for name in ("all_reduce", "barrier", "broadcast", "all_gather"):
            self._watched.enter_context(patch.object(torch.distributed, name, self._watch(name)))

    def _watch(self, name: str) -> Callable:
        own = getattr(torch.distributed, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.of_steps[-1].append(f"async {name}" if kwargs.get("async_op") else name)
            return own(*args, **kwargs)

        return call

    def on_train_batch_start(self, *args: Any) -> None:
        """Begins a step."""
        self.of_steps.append([])

    def on_validation_batch_start(self, *args: Any) -> None:
        """Begins a batch."""
        self.of_steps.append([])

    def on_train_end(self, *args: Any) -> None:
        """Ends."""
        self._watched.close()

    def on_exception(self, *args: Any) -> None:
        """Ends."""
        self._watched.close()


def make_student(
    world: dict, alignment: AlignmentKind = "refuse", **options
) -> tuple[DistillationModule, Callable[..., DistillationDataModule]]:
    """Returns the student of the invariance tests, and a maker of its data; with an alignment one of other tokens."""
    # The segments' weights differ, so that micro-batches of equal length have different weights.
    loss = DistillationLoss(kl_weight=0.5, temperature=2.0, rationale_weight=0.3, answer_weight=2.0)
    aligned: dict[str, Any] = {"kind": alignment}
    if alignment == "bytes":
        aligned |= {"spans": "skip"}
    student = world["student" if alignment == "refuse" else "foreign_student"]
    module = DistillationModule(student, loss, learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, **options)

    def make_data(**options) -> DistillationDataModule:
        return build(
            DistillationDataModule,
            student,
            world["questions"],
            "rationale+logits",
            logits=[world["logits"]],
            alignment=AlignmentSettings(**aligned),
            rationales=[world["rationales"]],
            prompt="plain",
            **options,
        )

    return module, make_data


def make_predictors(world: dict, output: Path, limit: int) -> list:
    """Returns (module, data, writer) of an annotation and of an evaluation that write sorted records to `output`."""
    runs = []
    for name, module in (
        ("annotate", Annotator(world["teacher"], max_new_tokens=8)),
        ("evaluate", Evaluator(world["student"], max_new_tokens=8)),
    ):
        kind = EvaluationDataModule if name == "evaluate" else QuestionDataModule
        data = build(kind, world["teacher"], world["questions"], prompt="plain", limit=limit, tokens_per_batch=200)

        def finish(records: list[dict], path: Path = output / f"{name}-{limit}.json") -> None:
            write_json(path, sorted(records, key=lambda record: record["question_id"]))

        runs.append((module, data, RecordWriter(output / f"{name}-{limit}.jsonl", {"limit": limit}, finish)))
    return runs


def predict(module: L.LightningModule, data: L.LightningDataModule, writer: L.Callback, **options) -> None:
    """Predicts under a real trainer."""
    data.setup("predict")
    L.Trainer(**{**TRAINER, **options}, callbacks=[writer]).predict(module, data, return_predictions=False)


def main(world: dict, output: Path) -> None:
    """Runs every scenario under two processes, in one process group."""
    module, make_data = make_student(world)
    trainer = fit(module, make_data(), max_epochs=3, precision="64-true", **DDP)
    if trainer.is_global_zero:
        torch.save(module.model.state_dict(), output / "one_batch_each.pt")

    module, make_data = make_student(world)
    trainer = fit(module, make_data(tokens_per_batch=1), max_epochs=3, precision="64-true", **DDP)
    if trainer.is_global_zero:
        torch.save(module.model.state_dict(), output / "four_batches_each.pt")

    for alignment in ALIGNMENTS:
        module, make_data = make_student(world, alignment)
        trainer = fit(module, make_data(**STEPS), precision="64-true", **DDP)
        if trainer.is_global_zero:
            torch.save(module.model.state_dict(), output / f"{alignment}.pt")

    # On GPUs of two sizes, of which the smaller decides; and what a step sends.
    module, make_data = make_student(world)
    data, sent = make_data(**{**STEPS, "tokens_per_batch": None}), SentMessages()
    sizes = {0: 3 << 30, 1: 5 << 29}
    with patch.object(token_budget, "find_memory", lambda device: sizes[int(os.environ.get("LOCAL_RANK", 0))]):
        trainer = fit(module, data, callbacks=[Throughput(), Preemption(StopListener()), sent], **DDP)
    write_json(output / f"budget-{trainer.global_rank}.json", {"tokens": data.token_budget, "sent": sent.of_steps})

    # From a checkpoint of one process, and to one of two.
    saving = {**SAVING, "default_root_dir": output}
    save = ModelCheckpoint(output, "of-{step}", auto_insert_metric_name=False, every_n_train_steps=2, save_top_k=-1)
    module, make_data = make_student(world)
    fit(module, make_data(**STEPS), max_epochs=2, callbacks=[RngState(), save], **saving, **DDP)
    module, make_data = make_student(world)
    trainer = fit(
        module, make_data(**STEPS), world["checkpoint"], max_epochs=2, callbacks=[RngState()], **saving, **DDP
    )
    if trainer.is_global_zero:
        torch.save(module.model.state_dict(), output / "resumed.pt")

    # Three held-out questions and five to learn from, in steps of one: one process has nothing of its own to do.
    module, make_data = make_student(world)
    module.learning_rate = 0.0
    trainer = fit(module, make_data(tokens_per_step=1, fraction=0.4, seed=3), **DDP)
    write_json(output / f"val-{trainer.global_rank}.json", {k: float(v) for k, v in trainer.callback_metrics.items()})

    # Six held-out questions, a batch each, and a signal to the second process in the first of them.
    module, make_data = make_student(world)
    rank, listener, sent = int(os.environ.get("LOCAL_RANK", 0)), StopListener(), SentMessages()
    callbacks = [sent, Preemption(listener, output / "stopped.ckpt"), *([Signal(listener, 0, 0)] if rank else [])]
    with suppress(SystemExit):
        fit(module, make_data(tokens_per_step=1, fraction=0.8), callbacks=callbacks, num_sanity_val_steps=0, **DDP)
    write_json(output / f"stopped-{rank}.json", sent.of_steps)

    # Five questions in batches of two or one, and one question: then a process has nothing to do.
    for limit in (5, 1):
        for predictor in make_predictors(world, output, limit):
            predict(*predictor, **DDP)

    for name, rationales in (("logits", world["rationales"]), ("one_example", world["one_rationale"])):
        scorer = LogitScorer(world["teacher"], top_k=8)
        data = build(
            RationaleDataModule,
            world["teacher"],
            world["questions"],
            rationales=[rationales],
            prompt="plain",
            tokens_per_batch=200,
        )
        data.setup("predict")
        writer = LogitCacheWriter(
            output / name,
            scorer.describe(data.fingerprint, data.prompt.id, len(data.tokenizer)),
            rows_per_shard=100,
        )
        predict(scorer, data, CacheWriter(writer, {}), **DDP)

    # A sharded teacher; in batches of two examples and of all, so that the processes' shares differ.
    for name, rationales, budget in (
        ("sharded", world["rationales"], 200),
        ("sharded_one_batch", world["rationales"], 10_000),
    ):
        scorer = LogitScorer(world["teacher"], top_k=8)
        data = build(
            RationaleDataModule,
            world["teacher"],
            world["questions"],
            [rationales],
            prompt="plain",
            tokens_per_batch=budget,
        )
        data.setup("predict")
        made = scorer.describe(data.fingerprint, data.prompt.id, len(data.tokenizer))
        writer = LogitCacheWriter(output / name, made, rows_per_shard=100)
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        predict(scorer, data, CacheWriter(writer, {}), strategy=strategy, devices=2)
        assert all(isinstance(parameter, DTensor) for parameter in scorer.model.base_model.layers.parameters())


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
