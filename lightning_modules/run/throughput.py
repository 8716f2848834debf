"""How fast a student trains, how long it still will, and what it waits for."""

import re
import resource
import sys
import time
import warnings
from typing import Any

import lightning as L
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor
from transformers import PreTrainedModel

# Dense TFLOP/s in a half precision (bfloat16; V100, T4: float16), in TF32 and in float32, from the makers' data sheets,
# which often print the sparse ones, twice as large. The first name that is found in the device's counts.
PEAK_TFLOPS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "GH200": (989, 494, 67),
    "H200": (989, 494, 67),
    "H100 NVL": (835, 417, 60),
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 494, 67),
    "H800": (989, 494, 67),
    "H20": (148, 74, 44),
    "A100": (312, 156, 19.5),
    "A800": (312, 156, 19.5),
    "A30": (165, 82, 10.3),
    "A40": (150, 75, 37.4),
    "A10": (125, 62.5, 31.2),
    "A10G": (70, 35, 31.2),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 6000 Ada": (364, 182, 91.1),
    "RTX A6000": (155, 77.4, 38.7),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
}
# An attempt's first steps start workers and fill caches.
WARM_UP_STEPS = 20


def is_plain_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Says whether a GPU multiplies in float32, with nothing of what makes it fast."""
    return device.type == "cuda" and dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"


def find_peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Returns a device's peak FLOP/s in the precision that it multiplies in, None where it is unknown."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return None
    name = torch.cuda.get_device_name(device)
    column = 0 if dtype != torch.float32 else 2 if is_plain_float32(device, dtype) else 1
    return next((1e12 * peak[column] for known, peak in PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def read_peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process had at a time: on its GPU, or resident where it has none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def count_step(batch: list[dict[str, Any]]) -> Tensor:
    """Returns int64 [3] of a process's share of a step: tokens, squared sequence lengths' sum, supervised tokens."""
    counts = torch.zeros(3, dtype=torch.int64)
    for micro_batch in batch:
        if micro_batch["counts"]:
            lengths_B = micro_batch["attention_mask"].sum(1)
            supervised = lengths_B.new_tensor(len(micro_batch["labels"]))
            counts += torch.stack([lengths_B.sum(), lengths_B.square().sum(), supervised])
    return counts


class StepFlops:
    """The floating-point operations of a dense student's forward and backward pass, recomputation left out.

    A weight matrix costs 2 FLOPs a weight and token in the forward pass, 2 for the gradient of its input, and 2
    for its own, if it is trained; a weight held in 4 bits counts as any other, without its unpacking. Under an adapter
    the input's gradient is counted where the first layer reads the frozen embedding, too, which needs none: an eighth
    of a layer too much, or less. Attention costs 12 · layers · width for each pair of tokens of a sequence, forward and
    backward (Chowdhery et al. 2022, "PaLM", appendix B; as there, the causal half is not subtracted). The output head
    runs on supervised tokens alone.

    Args:
        model: The student; its matrices may be spread over processes.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config().to_dict()
        width = (config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]) * config[
            "num_attention_heads"
        ]
        self.of_pair: int = 12 * config["num_hidden_layers"] * width
        head = model.get_output_embeddings().weight
        lookup = model.get_input_embeddings().weight
        self.of_row = self._count(head)
        self.of_token = sum(
            self._count(parameter)
            for parameter in model.parameters()
            if parameter.ndim >= 2 and parameter is not head and parameter is not lookup
        )

    @staticmethod
    def _count(parameter: Tensor) -> int:
        # bitsandbytes holds two 4-bit weights in a byte, and beside them the shape of the weights.
        packed = getattr(parameter, "quant_state", None)
        weights = parameter.numel() if packed is None else packed.shape.numel()
        return (4 + 2 * parameter.requires_grad) * weights

    def __call__(self, tokens: int, squared_lengths: int, supervised_tokens: int) -> int:
        """Returns the FLOPs of a step, of what `count_step` counts."""
        return self.of_token * tokens + self.of_pair * squared_lengths + self.of_row * supervised_tokens


class Throughput(L.Callback):
    """Logs after each optimizer step, as `speed/NAME`, and says once when the loader starves the student.

    - `tokens_per_second`, `supervised_tokens_per_second`: of all processes, without validation and checkpoints
    - `tokens_seen`, `supervised_tokens_seen`: of all attempts
    - `loader_share`: how much of the step this process waited for its loader
    - `eta_seconds`: until the last step, at the attempt's pace, validation and checkpoints included
    - `peak_memory_gib`: on the GPU, or of the process where there is none
    - `mfu`: model FLOPs utilization, the share of the devices' peak that the model's own operations reach (see
      `StepFlops`); only where the peak is known

    Args:
        peak_flops: FLOP/s of one device in the precision that is trained in; null takes what is known of common GPUs.
        starving_share: Warn if the student waits for its loader for more than this share of its time.
    """

    def __init__(self, peak_flops: PositiveFloat | None = None, starving_share: ClosedUnitInterval = 0.25):
        self.peak_flops, self.starving_share = peak_flops, starving_share
        self.tokens_seen = self.supervised_tokens_seen = 0
        self._peak: float | None = None
        self._flops: StepFlops | None = None
        self._step_counts: list[int] = []
        self._busy = self._waited = 0.0
        self._all_busy = self._all_waited = 0.0
        self._has_warned = False

    def state_dict(self) -> dict[str, int]:
        """Returns what later attempts continue to count."""
        return {"tokens_seen": self.tokens_seen, "supervised_tokens_seen": self.supervised_tokens_seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on counting."""
        self.tokens_seen = state_dict["tokens_seen"]
        self.supervised_tokens_seen = state_dict["supervised_tokens_seen"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the attempt's clock, and says so where a GPU is to train in its slowest precision."""
        autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = autocast.get(trainer.precision, next(pl_module.parameters()).dtype)
        self._peak = self.peak_flops or find_peak_flops(pl_module.device, dtype)
        if trainer.is_global_zero:
            self._say_what_is_slow_or_unknown(pl_module.device, dtype)
        self._flops = StepFlops(pl_module.model) if self._peak else None
        self._total_steps = int(trainer.estimated_stepping_batches)
        self._first_step, self._start = trainer.global_step, time.perf_counter()
        self._waited_before = trainer.train_dataloader.seconds_waited

    def _say_what_is_slow_or_unknown(self, device: torch.device, dtype: torch.dtype) -> None:
        if is_plain_float32(device, dtype):
            warnings.warn(
                "training in float32, which a GPU multiplies several times as slowly as bfloat16; "
                "--trainer.precision=bf16-mixed keeps the weights in float32",
                stacklevel=2,
            )
        if device.type == "cuda" and self._peak is None:
            name = torch.cuda.get_device_name(device)
            warnings.warn(
                f"no MFU is logged: the peak of {name} is not known here; --throughput.peak_flops=FLOPS tells it",
                stacklevel=2,
            )

    def on_train_batch_start(self, *args: Any) -> None:
        """Starts the step's clock."""
        self._batch_start = time.perf_counter()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Takes the step's counts, before any callback can save a checkpoint of the step."""
        self._step_counts = pl_module.step_sums.totals.counts
        self.tokens_seen += self._step_counts[0]
        self.supervised_tokens_seen += self._step_counts[2]

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Logs."""
        self._busy = time.perf_counter() - self._batch_start
        waited = trainer.train_dataloader.seconds_waited
        self._waited, self._waited_before = waited - self._waited_before, waited
        self._log(trainer)
        self._warn_of_starving(trainer.global_step - self._first_step)

    def _log(self, trainer: L.Trainer) -> None:
        seconds = self._busy + self._waited
        tokens, squared_lengths, supervised = self._step_counts
        done = trainer.global_step - self._first_step
        values = {
            "tokens_per_second": tokens / seconds,
            "supervised_tokens_per_second": supervised / seconds,
            "tokens_seen": self.tokens_seen,
            "supervised_tokens_seen": self.supervised_tokens_seen,
            "loader_share": self._waited / seconds,
            "eta_seconds": (self._total_steps - trainer.global_step) * (time.perf_counter() - self._start) / done,
            "peak_memory_gib": read_peak_memory(trainer.strategy.root_device) / 2**30,
        }
        if self._peak and self._flops:
            flops = self._flops(tokens, squared_lengths, supervised)
            values["mfu"] = flops / (seconds * self._peak * trainer.world_size)
        # Lightning would send each number to the device, to fetch it again.
        self.log_dict({f"speed/{name}": torch.tensor(float(value)) for name, value in values.items()})

    def _warn_of_starving(self, done: int) -> None:
        if self._has_warned or done <= WARM_UP_STEPS:
            return
        self._all_busy += self._busy
        self._all_waited += self._waited
        share = self._all_waited / (self._all_busy + self._all_waited)
        if done > 2 * WARM_UP_STEPS and share > self.starving_share:
            self._has_warned = True
            warnings.warn(
                f"the student waits for its batches for {share:.0%} of its time; give data.batches.num_workers more "
                "processes, or data.encoding.cache_dir and the logit cache a faster disk",
                stacklevel=2,
            )
