"""Prediction writers that survive a kill: a rerun asks the model only for what is missing.

They end in `teardown`, which runs after a success only, but, unlike `on_predict_end`, also in a process that had
nothing left to do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from datamodules.files.record_log import RecordLog
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.provenance import describe_creation
from lightning_modules.run.stop_signal import leaving_if_stopped


class RecordWriter(BasePredictionWriter):
    """Logs the records that `predict_step` returns and the data has not `done`; `RecordLog` takes the arguments."""

    def __init__(self, output: Path, config: dict[str, Any], finish: Callable[[list[dict[str, Any]]], None]):
        super().__init__(write_interval="batch")
        self.records = RecordLog(output, config, finish)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Opens this process's part."""
        self.records.open(trainer.global_rank)

    def write_on_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, *_: Any) -> None:
        """Appends what is new of one batch's records."""
        done = trainer.datamodule.done
        self.records.append(
            [record for record in prediction if (record["question_id"], record.get("sample", 0)) not in done]
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Merges the parts of all processes, once."""
        with leaving_if_stopped("while it waited for the others"):
            trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.records.merge()


class CacheWriter(BasePredictionWriter):
    """Writes the rows that `LogitScorer` returns to a logit cache; one process adds the manifest at the end.

    Args:
        writer: The cache's writer, which gets this process's rank.
        config: Everything that the rows depend on, for the creation record.
    """

    def __init__(self, writer: LogitCacheWriter, config: dict[str, Any]):
        super().__init__(write_interval="batch")
        self.writer, self.config = writer, config

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Learns the process's rank and the examples by id, and takes its part of the folder."""
        self.writer.rank = trainer.global_rank
        self.writer.open()
        self.examples = {example.id: example for example in trainer.datamodule.examples}

    def write_on_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, *_: Any) -> None:
        """Adds one batch's examples."""
        self.writer.add([(self.examples[example_id], rows) for example_id, rows in prediction])

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes the last shard, and the manifest once all processes have."""
        pl_module.catch_up()
        self.writer.flush()
        if not trainer.is_global_zero:
            self.writer.close()
        with leaving_if_stopped("while it waited for the others"):
            trainer.strategy.barrier()
        if trainer.is_global_zero:
            data = trainer.datamodule
            sources = {"questions": data.source.questions, "rationales": data.source.rationales}
            self.writer.finish(data.tokenizer, {**describe_creation(self.config), **sources}, pl_module.export_head())
            self.writer.close()
