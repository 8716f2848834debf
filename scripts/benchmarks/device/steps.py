"""Whole optimizer steps of a random 1B student, with each option against bf16-mixed as it is by default.

    step OPTION             seconds of a step
    step_memory OPTION      GiB beyond the student and its optimizer
    step_mfu                share of the device's peak that the student's own operations reach
    budget_tokens           of a micro-batch, as a run chooses them for the device's memory
    budget_memory           GiB of two such micro-batches' step, against the device's memory

An option that does not fit is said as `step OPTION out of memory`.

Shapes: B sequences of S tokens, N supervised rows.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_modules.model.output_head import HeadSettings, get_head, run_body
from lightning_modules.model.token_budget import find_memory, measure_memory
from lightning_modules.run.throughput import StepFlops, find_peak_flops
from losses.distillation import DistillationLoss
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.device.targets import make_target, move_target
from scripts.benchmarks.measure import Measurement
from scripts.benchmarks.training import SIZES, WIDTHS

BATCH, LENGTH = 8, 1024
TOY_BATCH, TOY_LENGTH = 2, 32
TOY_MEMORY = 4 << 30


@dataclass(frozen=True)
class Option:
    """How a step is computed.

    Attributes:
        precision: bf16-mixed, bf16-true or float32.
        matmul: torch's name of how float32 is multiplied: highest, or high, which is TF32.
        mask: Whether attention is given a padding mask that leaves nothing out.
        attention: transformers' name.
        fused: Whether AdamW is one kernel.
        checkpointing: Whether activations are computed again.
        compile: Whether blocks are compiled.
    """

    precision: str = "bf16-mixed"
    matmul: str = "highest"
    mask: bool = False
    attention: str = "sdpa"
    fused: bool = True
    checkpointing: bool = False
    compile: bool = False


DEFAULT = "bf16-mixed"
OPTIONS = {
    DEFAULT: Option(),
    "bf16-true": Option(precision="bf16-true"),
    "float32": Option(precision="float32"),
    "float32 in TF32": Option(precision="float32", matmul="high"),
    "padding mask": Option(mask=True),
    "eager attention": Option(attention="eager"),
    "AdamW not fused": Option(fused=False),
    "activation checkpointing": Option(checkpointing=True),
    "compiled": Option(compile=True),
}


def build_student(place: Place, attention: str = "sdpa") -> LlamaForCausalLM:
    """Builds a random student of Llama-3.2-1B's shape on the device."""
    size = "tiny" if place.is_toy else "1b"
    intermediate, vocabulary = WIDTHS[size]
    config = LlamaConfig(
        **SIZES[size],
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    with torch.device(place.device):
        return LlamaForCausalLM(config)


def prepare_step(
    place: Place, model: LlamaForCausalLM, option: Option, batch: int | None = None
) -> tuple[Callable[[], None], int]:
    """Returns a call of one step, half of whose tokens are supervised, and the step's own FLOPs."""
    usual, length = (TOY_BATCH, TOY_LENGTH) if place.is_toy else (BATCH, LENGTH)
    batch, vocabulary, device = batch or usual, model.config.vocab_size, place.device
    if option.precision == "bf16-true":
        model.bfloat16()
    if option.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if option.compile:
        for block in model.base_model.layers:
            block.compile(dynamic=True, backend=place.compiler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=option.fused)
    ids_BS = torch.randint(vocabulary, (batch, length), device=device)
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[::2, -length // 16 :] = 0
    rows_N = torch.arange(batch * length, device=device).view(batch, length)[:, length // 2 - 1 : -1].flatten()
    labels_N = ids_BS[:, length // 2 :].flatten()
    target = move_target(make_target("sparse", len(rows_N), vocabulary, 64, 1), device)
    loss = DistillationLoss(kl_weight=0.5).at(0.0)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=option.precision == "bf16-mixed"):
            hidden = run_body(model, ids_BS, mask_BS if option.mask else None)
            hidden_ND = rearrange(hidden, "b s d -> (b s) d")[rows_N]
            head = get_head(model, HeadSettings())
            sums = loss.from_hidden(hidden_ND, head, labels_N, torch.zeros_like(labels_N, dtype=torch.bool), target)
        (sums.total / sums.weight).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, StepFlops(model)(batch * length, batch * length**2, len(rows_N))


def measure_option(place: Place, option: Option) -> tuple[float, float, int]:
    """Returns a step's seconds, its GiB, and its FLOPs."""
    model = build_student(place, option.attention).train()
    torch.set_float32_matmul_precision(option.matmul)
    try:
        step, flops = prepare_step(place, model, option)
        # The first makes the optimizer's state.
        step()
        seconds = place.time(step, repeats=3)
        return seconds, place.measure_peak(step), flops
    finally:
        torch.set_float32_matmul_precision("highest")


def measure_budget(place: Place) -> Iterator[Measurement]:
    """Yields the default token budget, and what a step of it takes; at toy sizes of a small one."""
    memory, length = find_memory(torch.device(place.device)) or TOY_MEMORY, TOY_LENGTH if place.is_toy else LENGTH
    model = build_student(place).train()
    found = measure_memory(model.config, "float32", length, is_mixed=True)
    tokens = found.count_training(memory, trains_all=True, recomputes=False)
    yield Measurement("budget_tokens", tokens, "tokens")
    step, _ = prepare_step(place, model, OPTIONS[DEFAULT], TOY_BATCH if place.is_toy else tokens // length)
    # The first makes the optimizer's state, the second's gradients come beside it.
    step()
    resident = 0 if place.is_toy else torch.cuda.memory_allocated() / 2**30
    yield Measurement.against("budget_memory", resident + place.measure_peak(step), memory / 2**30, "GiB")


def measure_steps(place: Place) -> Iterator[Measurement]:
    """Yields each option's time and memory."""
    try:
        yield from measure_budget(place)
    except torch.OutOfMemoryError:
        yield Measurement("budget out of memory", 1, "of 1")
    gc.collect()
    default: tuple[float, float] | None = None
    for name, option in OPTIONS.items():
        try:
            seconds, peak, flops = measure_option(place, option)
        except torch.OutOfMemoryError:
            yield Measurement(f"step {name} out of memory", 1, "of 1")
            continue
        finally:
            gc.collect()
            torch.compiler.reset()
        if name == DEFAULT:
            default = seconds, peak
            if limit := find_peak_flops(torch.device(place.device), torch.bfloat16):
                yield Measurement("step_mfu", flops / seconds / limit, "of peak")
        for what, value, place_of in (("step", seconds, 0), ("step_memory", peak, 1)):
            unit = "s" if what == "step" else "GiB"
            beside = default[place_of] if default else 0
            yield (
                Measurement.against(f"{what} {name}", value, beside, unit)
                if beside
                else Measurement(f"{what} {name}", value, unit)
            )
