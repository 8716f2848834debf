"""The data path against the training that it feeds, and training with cached logits against its neighbours.

    python -m scripts.benchmark data
    python -m scripts.benchmark data --model MODEL --rationales obqa_train.jsonl.gz gsm8k_train.jsonl.gz

The model is both student and teacher, in float32 on the CPU. Each file of published rationales is its own source of
questions. Lines:

    padding_share_FILE      padded tokens of an epoch that are padding, all rationales of a file; padding_share: worst
    data_vs_student         tokens/s of the loader, logits decoded, against tokens/s of training the student
    kd_step_vs_sft_step     seconds of an optimizer step of rationale+logits against rationale, over the same batches
    train_tokens_vs_trl_gkd and train_memory_vs_trl_gkd
                            completion tokens/s and peak resident memory of rationale+logits against TRL's
                            GKDTrainer(lmbda=0, beta=0), whose teacher is online, over the same batches; left out
                            where TRL is not installed

All that train take turns, step by step, each in a process of its own.
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
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
from scripts.benchmarks.inputs import find_model, make_parser, write_texts
from scripts.benchmarks.measure import Measurement, compare, read_peak_rss, run_apart
from scripts.benchmarks.turns import Turn, race_apart

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
    max_length: int

    def load_data(self, with_logits: bool) -> DistillationDataModule:
        """Returns the first questions' rationales, with or without the model's logits."""
        options: dict[str, Any] = {}
        if with_logits:
            options = {"supervision": "rationale+logits", "logits": [f"{self.folder}/logits"]}
            options["controls"] = DistillationControls(logits_teacher=name_model(self.model))
        return self._load(
            limit=self.limit,
            encoding=ExampleEncoding(self.max_length, cache_dir=f"{self.folder}/tokenized"),
            batches=TrainingBatches(self.tokens_per_batch, self.tokens_per_batch),
            **options,
        )

    def load_all_data(self) -> DistillationDataModule:
        """Returns all questions' rationales, whatever their answers."""
        return self._load(
            encoding=ExampleEncoding(4 * self.max_length, cache_dir=f"{self.folder}/tokenized"),
            batches=TrainingBatches(self.tokens_per_batch, 2048),
            filters=RationaleFilters(correct_only=False),
        )

    def _load(self, **settings: Any) -> DistillationDataModule:
        data = DistillationDataModule(self.model, self.rationales, rationales=[self.rationales], **settings)
        data.setup("fit")
        return data


class TurnClock(L.Callback):
    """Takes a turn for each optimizer step.

    Args:
        turn: This process's.
    """

    def __init__(self, turn: Turn):
        self.turn = turn

    def on_train_batch_start(self, *args: Any) -> None:
        """Waits."""
        self.turn.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: list[dict[str, Any]], *_: Any
    ) -> None:
        """Gives the turn away."""
        self.turn.stop(sum(len(part["labels"]) for part in batch))


def capture(setting: Setting) -> None:
    """Caches the model's logits of the rationales, as the script does."""
    args = [
        f"--model.teacher={setting.model}",
        f"--data.questions={setting.rationales}",
        f"--data.rationales=[{setting.rationales}]",
        f"--data.limit={setting.limit}",
        f"--data.encoding.max_length={setting.max_length}",
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


def train(turn: Turn, setting: Setting, with_logits: bool) -> int:
    """Trains for some steps with or without the cached logits; returns the process's peak bytes."""
    loss = DistillationLoss(kl_weight=1.0) if with_logits else DistillationLoss()
    module = DistillationModule(setting.model, loss, learning_rate=1e-5, schedule="constant", warmup_ratio=0.0)
    trainer = L.Trainer(**QUIET, max_steps=setting.steps, callbacks=[TurnClock(turn)], num_sanity_val_steps=0)
    trainer.fit(module, setting.load_data(with_logits))
    return read_peak_rss()


def train_trl(turn: Turn, setting: Setting) -> int:
    """Trains on the same batches with TRL, its teacher online; returns the process's peak bytes."""
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

    class Timer(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn.start()

        def on_step_end(self, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
            turn.stop(int((batches[state.global_step - 1]["labels"] != -100).sum()))

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
    return read_peak_rss()


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the measurements."""
    parser = make_parser("data", __doc__)
    parser.add_argument("--model", help="the student and teacher: a name, folder or GGUF file; null is SmolLM2")
    parser.add_argument("--rationales", nargs="+", help="published rationales; the first are trained on")
    parser.add_argument("--limit", type=int, default=16, help="questions that are trained on")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps, of which the first is not counted")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=500, help="the longest example that is trained on")
    parsed = parser.parse_args(args)
    if parsed.smoke:
        parsed.limit, parsed.steps, parsed.tokens_per_batch = 8, 3, 256
    model = find_model(parsed.model, parsed.smoke)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (parsed.limit, parsed.steps, parsed.tokens_per_batch, parsed.max_length)
        texts = parsed.rationales or [write_texts(Path(folder) / "microworld.jsonl", 16 if parsed.smoke else 256)]
        settings = [Setting(model, path, folder, *sizes) for path in texts]
        shares = []
        for setting in settings:
            shares.append(run_apart(measure_padding, setting))
            yield Measurement(f"padding_share_{Path(setting.rationales).name.split('.')[0]}", shares[-1], "of tokens")
        yield Measurement("padding_share", max(shares), "of tokens")

        setting = settings[0]
        run_apart(capture, setting)
        sides: dict[str, tuple[Any, ...]] = {"sft": (train, setting, False), "kd": (train, setting, True)}
        if find_spec("trl"):
            sides["trl"] = (train_trl, setting)
        else:
            print("skipped train_tokens_vs_trl_gkd: TRL is not installed", file=sys.stderr)
        found = race_apart(sides)
        costs = {side: own.leave_out(1) for side, (own, _) in found.items()}
        student = sum(costs["sft"].amounts) / sum(costs["sft"].wall)
        yield Measurement.against("data_vs_student", run_apart(measure_loader, setting), student, "tokens/s")
        # The same batches in the same order: a step is a step.
        kd, sft = (replace(costs[side], amounts=[]) for side in ("kd", "sft"))
        yield from compare("kd_step_vs_sft_step", kd, sft, "s/step")
        if "trl" in costs:
            yield from compare("train_tokens_vs_trl_gkd", costs["kd"], costs["trl"], "tokens/s")
            yield Measurement.against("train_memory_vs_trl_gkd", found["kd"][1], found["trl"][1], "bytes")
