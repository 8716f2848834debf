"""The data path against the training that it feeds, and training with cached logits against its neighbours.

    python -m scripts.benchmark data --model SmolLM2.gguf --rationales obqa_train.jsonl.gz gsm8k_train.jsonl.gz

The model is both student and teacher, in float32 on the CPU. Each file of published rationales is its own source of
questions. Lines:

    padding_share_FILE      padded tokens of an epoch that are padding, all rationales of a file; padding_share: worst
    data_vs_student         tokens/s of the loader, logits decoded, against tokens/s of training the student
    kd_step_vs_sft_step     seconds of rationale+logits against rationale, over the same batches: of each batch, the
                            fastest of several rounds in turn, since other processes disturb
    train_tokens_vs_trl_gkd and train_memory_vs_trl_gkd
                            completion tokens/s and peak resident memory of rationale+logits against TRL's
                            GKDTrainer(lmbda=0, beta=0), whose teacher is online, over the same batches
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch.utils.data import DataLoader

from datamodules.batches.packing import TrainingBatches, count_padded
from datamodules.distillation import DistillationDataModule
from datamodules.examples.selection import RationaleFilters
from datamodules.examples.source import ExampleEncoding
from datamodules.model_sources import name_model
from datamodules.rationales.controls import DistillationControls
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from scripts import cache_logits
from scripts.benchmarks.measure import Measurement, read_peak_rss, run_apart

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class Setting(NamedTuple):
    """What is measured: a model, a file of rationales, a folder for what is captured, and sizes."""

    model: str
    rationales: str
    folder: str
    limit: int
    steps: int
    tokens_per_batch: int

    def load_data(self, with_logits: bool) -> DistillationDataModule:
        """Returns the first questions' rationales, with or without the model's logits."""
        options: dict[str, Any] = {}
        if with_logits:
            options = {"supervision": "rationale+logits", "logits": [f"{self.folder}/logits"]}
            options["controls"] = DistillationControls(logits_teacher=name_model(self.model))
        return self._load(
            limit=self.limit,
            encoding=ExampleEncoding(cache_dir=f"{self.folder}/tokenized"),
            batches=TrainingBatches(self.tokens_per_batch, self.tokens_per_batch),
            **options,
        )

    def load_all_data(self) -> DistillationDataModule:
        """Returns all questions' rationales, whatever their answers."""
        return self._load(
            encoding=ExampleEncoding(4096, cache_dir=f"{self.folder}/tokenized"),
            batches=TrainingBatches(self.tokens_per_batch, 2048),
            filters=RationaleFilters(correct_only=False),
        )

    def _load(self, **settings: Any) -> DistillationDataModule:
        data = DistillationDataModule(self.model, self.rationales, rationales=[self.rationales], **settings)
        data.setup("fit")
        return data


class Trained(NamedTuple):
    """Of each optimizer step, seconds and completion tokens; of the process, peak bytes."""

    seconds: list[float]
    tokens: list[int]
    memory: int


class Clock(L.Callback):
    """Times each batch from one's end to the next's."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def on_train_start(self, *args: Any) -> None:
        """Starts."""
        self.times.append(time.perf_counter())

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: list, *_: Any):
        """Notes the time."""
        self.times.append(time.perf_counter())
        self.tokens.append(sum(len(part["labels"]) for part in batch))


def capture(setting: Setting) -> None:
    """Caches the model's logits of the rationales, as the script does."""
    args = [
        f"--model.teacher={setting.model}",
        f"--data.questions={setting.rationales}",
        f"--data.rationales=[{setting.rationales}]",
        f"--data.limit={setting.limit}",
        f"--data.encoding.cache_dir={setting.folder}/tokenized",
        f"--output={setting.folder}/logits",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    with contextlib.redirect_stdout(sys.stderr):
        cache_logits.main(args)


def measure_padding(setting: Setting) -> float:
    """Returns the share of padding in an epoch of all the file's rationales, in the default budget."""
    data = setting.load_all_data()
    data.trainer = L.Trainer(**QUIET)
    lengths = data.train_examples.lengths
    padded = sum(count_padded(step, lengths) for step in data.make_sampler(data.train_examples, 0).plan(1))
    return 1 - int(lengths.sum()) / padded


def measure_loader(setting: Setting) -> float:
    """Returns the completion tokens/s of the loader without workers, in this process."""
    data = setting.load_data(True)
    data.trainer = L.Trainer(**QUIET)
    sampler = data.make_sampler(data.train_examples, 0)
    loader = DataLoader(**data.loader_options(data.train_examples, sampler))
    num_tokens, start = 0, time.perf_counter()
    while time.perf_counter() < start + 3:
        num_tokens += sum(len(part["labels"]) for step in loader for part in step)
    return num_tokens / (time.perf_counter() - start)


def train(setting: Setting, with_logits: bool) -> Trained:
    """Trains for some steps with or without the cached logits."""
    loss = DistillationLoss(kl_weight=1.0) if with_logits else DistillationLoss()
    module = DistillationModule(setting.model, loss, learning_rate=1e-5, schedule="constant", warmup_ratio=0.0)
    clock = Clock()
    trainer = L.Trainer(**QUIET, max_steps=setting.steps, callbacks=[clock], num_sanity_val_steps=0)
    trainer.fit(module, setting.load_data(with_logits))
    seconds = [end - start for start, end in pairwise(clock.times)]
    return Trained(seconds, clock.tokens, read_peak_rss())


def train_trl(setting: Setting) -> Trained:
    """Trains on the same batches with TRL, its teacher online."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    data = setting.load_data(False)
    data.trainer = L.Trainer(**QUIET)
    sampler = data.make_sampler(data.train_examples, data.batches.order_seed)
    loader = DataLoader(**data.loader_options(data.train_examples, sampler))
    batches = []
    for [batch], _ in zip(loader, range(setting.steps), strict=False):
        labels = torch.full_like(batch["input_ids"], -100)
        labels.view(-1)[batch["rows"] + 1] = batch["labels"]
        batches.append({"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels})
    times: list[float] = []

    class Timer(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    config = GKDConfig(
        output_dir=f"{setting.folder}/gkd",
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=1,
        max_steps=len(batches),
        learning_rate=1e-5,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    student, teacher = (load_causal_lm(setting.model) for _ in range(2))
    trainer = GKDTrainer(
        student,
        teacher,
        config,
        # A row is a number; the collator has the batch, so that TRL pads and splits nothing anew.
        data_collator=lambda rows: {"prompts": torch.empty(1, 0), **batches[rows[0]["number"]]},
        train_dataset=Dataset.from_dict({"number": list(range(len(batches)))}),
        processing_class=data.tokenizer,
        callbacks=[Timer()],
    )
    trainer.train()
    tokens = [int((batch["labels"] != -100).sum()) for batch in batches]
    seconds = [end - start for start, end in pairwise(times)]
    return Trained(seconds, tokens, read_peak_rss())


def rate(trained: Trained) -> float:
    """Returns completion tokens/s after the first step, in which buffers are made."""
    return sum(trained.tokens[1:]) / sum(trained.seconds[1:])


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the measurements."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark data", description=__doc__)
    parser.add_argument("--model", required=True, help="the student and teacher: hub id, folder or GGUF file")
    parser.add_argument("--rationales", required=True, nargs="+", help="published rationales; the first are trained on")
    parser.add_argument("--limit", type=int, default=4, help="questions that are trained on")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parsed = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (parsed.limit, parsed.steps, parsed.tokens_per_batch)
        settings = [Setting(parsed.model, path, folder, *sizes) for path in parsed.rationales]
        shares = []
        for setting in settings:
            shares.append(run_apart(measure_padding, setting))
            yield Measurement(f"padding_share_{Path(setting.rationales).name.split('.')[0]}", shares[-1], "of tokens")
        yield Measurement("padding_share", max(shares), "of tokens")

        setting = settings[0]
        run_apart(capture, setting)
        rounds = [
            [run_apart(train, setting, with_logits) for with_logits in (False, True)] for _ in range(parsed.rounds)
        ]
        sft, kd = ([of_kind.seconds[1:] for of_kind in kind] for kind in zip(*rounds, strict=True))
        sft_seconds, kd_seconds = (sum(map(min, zip(*kind, strict=True))) / (parsed.steps - 1) for kind in (sft, kd))
        student = max(rate(plain) for plain, _ in rounds)
        yield Measurement.against("data_vs_student", run_apart(measure_loader, setting), student, "tokens/s")
        yield Measurement.against("kd_step_vs_sft_step", kd_seconds, sft_seconds, "s/step")
        gkd = run_apart(train_trl, setting)
        best = max((cached for _, cached in rounds), key=rate)
        yield Measurement.against("train_tokens_vs_trl_gkd", rate(best), rate(gkd), "tokens/s")
        yield Measurement.against("train_memory_vs_trl_gkd", best.memory, gkd.memory, "bytes")
