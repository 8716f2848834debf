"""Prediction writers that survive a kill: a rerun asks the model only for what is missing.

They end in `teardown`, which runs after a success only, but, unlike `on_predict_end`, also in a process that had
nothing left to do.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from datamodules.files import hash_json
from datamodules.logit_writer import LogitCacheWriter
from datamodules.provenance import describe_creation


class RecordWriter(BasePredictionWriter):
    """Appends the records that `predict_step` returns to `.{output}.part-{rank}.jsonl`; merges them at the end.

    A rerun with the same configuration finds what earlier attempts finished, whatever their number of processes.

    Args:
        output: The file that the records end up in.
        config: Everything that the records depend on.
        finish: Writes `output` from all records; called by one process.
    """

    def __init__(self, output: Path, config: dict, finish: Callable[[list[dict]], None]):
        super().__init__(write_interval="batch")
        self.output, self.signature, self.finish = output, hash_json(config), finish

    def _find_parts(self) -> list[Path]:
        return sorted(self.output.parent.glob(f".{self.output.name}.part-*.jsonl"))

    def collect(self) -> list[dict]:
        """Returns the records of all part files; a last line that a kill tore is not a record.

        Raises:
            ValueError: A part file was begun with another configuration.
        """
        records = []
        for part in self._find_parts():
            lines = part.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            if lines and json.loads(lines[0]) != {"signature": self.signature}:
                raise ValueError(f"{part}: begun with another configuration; delete it, or choose another output")
            records += [json.loads(line) for line in lines[1:]]
        return records

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the folder, and cuts off a last line that a kill tore."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.part = self.output.with_name(f".{self.output.name}.part-{trainer.global_rank}.jsonl")
        if self.part.exists():
            end = self.part.read_bytes().rfind(b"\n") + 1
            with self.part.open("r+b") as file:
                file.truncate(end)

    def write_on_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, prediction: Any, *_: Any) -> None:
        """Appends one batch's records and forces them to the disk."""
        with self.part.open("a", encoding="utf-8") as file:
            header = [{"signature": self.signature}] if file.tell() == 0 else []
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in [*header, *prediction])
            file.flush()
            os.fsync(file.fileno())

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Merges the parts of all processes, once."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self.finish(self.collect())
            for part in self._find_parts():
                part.unlink()


class CacheWriter(BasePredictionWriter):
    """Writes the rows that `LogitScorer` returns to a logit cache; one process adds the manifest at the end.

    Args:
        writer: The cache's writer, which gets this process's rank.
        config: Everything that the rows depend on, for the creation record.
    """

    def __init__(self, writer: LogitCacheWriter, config: dict):
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
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            data = trainer.datamodule
            sources = {"questions": data.questions_source, "rationales": data.rationale_paths}
            self.writer.finish(data.tokenizer, {**describe_creation(self.config), **sources}, pl_module.export_head())
            self.writer.close()
