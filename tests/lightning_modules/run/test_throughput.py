"""Tests of throughput: the FLOPs against torch's own counter, the counts against the data, the warning."""

import json
import time
import warnings
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.flop_counter import FlopCounterMode

from datamodules.distillation import DistillationDataModule
from lightning_modules.model.adapters import Adapter, add_adapter
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.run import throughput
from lightning_modules.run.jsonl_logger import JsonlLogger
from lightning_modules.run.throughput import StepFlops, Throughput, find_peak_flops, is_plain_float32
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.conftest import World
from tests.tiny import build, build_llama, fit, save_model


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    model = build_llama(300, layers=3, width=24)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.config._attn_implementation = "eager"
    tokens = torch.randint(0, 300, (2, 7))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    assert StepFlops(model)(14, 2 * 7**2, 14) == counter.get_total_flops()


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    model = build_llama(300, layers=3, width=24)
    model.config._attn_implementation = "eager"
    for block in model.model.layers:
        block.mlp.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(0, 300, (2, 7))).logits.sum().backward()
    assert StepFlops(model)(14, 2 * 7**2, 14) == counter.get_total_flops()


def test_an_adapters_flops_are_those_that_torch_counts_but_for_the_first_inputs_gradient() -> None:
    pytest.importorskip("peft")
    model = build_llama(300, layers=3, width=24)
    model.config._attn_implementation = "eager"
    add_adapter(model, Adapter(r=2, dropout=0.0), "a student", None)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(0, 300, (2, 7))).logits.sum().backward()
    attention = model.model.layers[0].self_attn
    reading = [
        matrix.numel()
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        for matrix in (layer.base_layer.weight, layer.lora_A.default.weight)
    ]
    flops = StepFlops(model)(14, 2 * 7**2, 14)
    assert flops - counter.get_total_flops() == 2 * 14 * sum(reading)


def test_weights_in_four_bits_count_as_any_frozen_ones(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    student = save_model(tmp_path, width=64)
    frozen = load_causal_lm(student)
    packed = load_causal_lm(student, quantize_on=torch.device("cpu"))
    for block in frozen.model.layers:
        block.requires_grad_(False)
    assert (
        packed.num_parameters() < frozen.num_parameters()
        or packed.model.layers[0].mlp.up_proj.weight.dtype.itemsize == 1
    )
    assert StepFlops(packed).of_token == StepFlops(frozen).of_token


def make(world: World, **data: object) -> tuple[DistillationModule, DistillationDataModule]:
    options = {"prompt": "plain", "tokens_per_step": 300, "tokens_per_batch": 150, **data}
    return (
        DistillationModule(world.student),
        build(DistillationDataModule, world.student, world.questions, rationales=[world.rationales], **options),
    )


def read_speed(path: Path) -> list[dict]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {name.removeprefix("speed/"): value for name, value in record.items() if name.startswith("speed/")}
        for record in records
        if "train/loss" in record
    ]


def test_each_step_is_logged_with_what_was_seen_so_far_in_all_attempts(world: World, tmp_path: Path) -> None:
    options = {"log_every_n_steps": 1, "enable_checkpointing": True}

    def train(name: str, epochs: int, ckpt_path: str | None = None) -> list[dict]:
        module, data = make(world)
        save = ModelCheckpoint(tmp_path, "last", enable_version_counter=False, save_on_train_epoch_end=True)
        fit(
            module,
            data,
            ckpt_path,
            max_epochs=epochs,
            logger=JsonlLogger(tmp_path / name),
            callbacks=[Throughput(peak_flops=1e12), save],
            default_root_dir=tmp_path,
            **options,
        )
        lengths, labels = data.train_examples.lengths, data.count_supervised_tokens()
        records = read_speed(tmp_path / name)
        assert records[-1]["tokens_seen"] == epochs * lengths.sum()
        assert records[-1]["supervised_tokens_seen"] == epochs * labels
        return records

    first = train("first", 1)
    assert len(first) > 1
    assert [r["tokens_seen"] for r in first] == sorted({r["tokens_seen"] for r in first})
    assert first[-1]["eta_seconds"] == 0 < first[0]["eta_seconds"]
    for before, record in pairwise([{"tokens_seen": 0}, *first]):
        assert 0 < record["loader_share"] < 1 and record["peak_memory_gib"] > 0.01
        # Of the same step: FLOPs/s are tokens/s times FLOPs a token.
        seconds = (record["tokens_seen"] - before["tokens_seen"]) / record["tokens_per_second"]
        assert 0 < record["mfu"] * 1e12 * seconds < 1e9
    second = train("second", 2, str(tmp_path / "last.ckpt"))
    assert len(second) == len(first)


def test_what_is_unknown_is_not_logged(world: World, tmp_path: Path) -> None:
    module, data = make(world)
    fit(module, data, log_every_n_steps=1, logger=JsonlLogger(tmp_path / "m"), callbacks=[Throughput()])
    assert all("mfu" not in record and "tokens_per_second" in record for record in read_speed(tmp_path / "m"))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("NVIDIA RTX A6000", 155e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GB10", None),
    ],
)
def test_peaks_are_found_by_the_devices_name(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert find_peak_flops(torch.device("cuda"), torch.bfloat16) == peak


@pytest.mark.parametrize(("allowed", "peak"), [("highest", 67e12), ("high", 494e12)])
def test_the_peak_is_that_of_the_precision_in_use(allowed: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: allowed)
    cuda = torch.device("cuda")
    assert find_peak_flops(cuda, torch.float32) == peak and find_peak_flops(cuda, torch.float64) is None
    assert is_plain_float32(cuda, torch.float32) == (allowed == "highest")
    assert not is_plain_float32(cuda, torch.bfloat16) and not is_plain_float32(torch.device("cpu"), torch.float32)


def test_a_gpu_that_trains_in_float32_is_told_of(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(throughput, "is_plain_float32", lambda device, dtype: dtype == torch.float32)
    for precision, number in (("32-true", 1), ("bf16-mixed", 0)):
        module, data = make(world)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit(module, data, max_steps=1, precision=precision, callbacks=[Throughput()])
        assert sum("--trainer.precision=bf16-mixed" in str(warning.message) for warning in said) == number


class SlowLoader(L.Callback):
    """Makes the loader wait before each batch."""

    def on_train_start(self, trainer: L.Trainer, *args: object) -> None:
        collate = trainer.train_dataloader.collate_fn

        def wait(examples: list) -> dict:
            time.sleep(0.02)
            return collate(examples)

        object.__setattr__(trainer.train_dataloader, "collate_fn", wait)


@pytest.mark.parametrize("share", [0.001, 1.0])
def test_a_student_that_starves_is_told_of_once(world: World, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "WARM_UP_STEPS", 2)
    module, data = make(world)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(module, data, max_epochs=4, callbacks=[Throughput(starving_share=share), SlowLoader()])
    starving = [str(warning.message) for warning in said if "waits for its batches" in str(warning.message)]
    assert len(starving) == (share < 1)
