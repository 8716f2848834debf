"""What models take, before they run: parameters, floating-point operations, seconds on a device, bytes on disk.

All formulas are rough on purpose, and each says what it leaves out.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from datamodules.logit_cache.format import CacheDescription, list_planes
from datamodules.model_sources import loading, resolve_model
from lightning_modules.run.throughput import PEAK_TFLOPS

# Bytes a second of the devices' memory, from the makers' data sheets.
BANDWIDTH = {"B200": 8e12, "H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12, "L40S": 0.864e12, "L4": 0.3e12}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
PLANE_BYTES = {"U8": 1, "U16": 2, "F16": 2, "BF16": 2, "F32": 4}
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        peak_flops: FLOP/s in the precision that is computed in.
        bandwidth: Bytes a second of its memory.
        utilisation: Share of `peak_flops` that training and reading prompts reach: 0.3 to 0.5 on a large GPU.
    """

    peak_flops: float
    bandwidth: float
    utilisation: float

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"--utilisation={self.utilisation}: a share above 0 and at most 1")

    def compute_seconds(self, flops: float) -> float:
        """Returns how long so many floating-point operations take."""
        return flops / (self.peak_flops * self.utilisation)


def find_device(name: str, utilisation: float) -> Device:
    """Returns a GPU by name; its FLOP/s are dense ones in half precision.

    Raises:
        ValueError: It is unknown.
    """
    if name not in BANDWIDTH:
        raise ValueError(f"--device={name}: is unknown; there are {', '.join(BANDWIDTH)}")
    return Device(1e12 * PEAK_TFLOPS[name][0], BANDWIDTH[name], utilisation)


def count_parameters(model: str, keep_layers: list[int] | None = None) -> int:
    """Returns a model's parameters, tied ones once: of a folder exactly, of others what their name says (7b, 135M).

    Nothing is downloaded, and no weights are read. `keep_layers` leaves out layers of a folder's model.

    Raises:
        ValueError: The name says nothing.
    """
    name, _ = resolve_model(model, None)
    if Path(name).is_dir():
        with loading(model, "model config"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            if keep_layers is not None:
                config.num_hidden_layers = len(keep_layers)
            with torch.device("meta"):
                built = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return sum(parameter.numel() for parameter in built.parameters())
    if found := _SIZE.search(Path(name).name.replace("_", "-")):
        return round(float(found[1]) * (1e9 if found[2].lower() == "b" else 1e6))
    raise ValueError(f"{model}: its name says no size (such as 7b), which an estimate needs; name a local folder")


def weights_bytes(parameters: int, dtype: str) -> int:
    """Returns the bytes of a student, or of what a step of generation reads: its weights alone."""
    return parameters * BYTES[dtype]


def checkpoint_bytes(parameters: int, dtype: str) -> int:
    """Returns the bytes of one checkpoint of a whole student: its weights and AdamW's two moments.

    Tied weights are there once. A run keeps two while it trains, and none once it is done unless told to.
    """
    return 3 * weights_bytes(parameters, dtype)


def find_width(model: str) -> int:
    """Returns the width of a model's hidden states: of a folder; of others 4,096, as of 7 or 8 billion parameters."""
    name, _ = resolve_model(model, None)
    if not Path(name).is_dir():
        return 4096
    with loading(model, "model config"):
        return int(AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config().hidden_size)


def cache_row_bytes(made: CacheDescription, width: int) -> int:
    """Returns the bytes that a logit cache takes for a token: of its planes; the index beside them is left out.

    A support or a draw counts at its largest.

    Args:
        made: What a row holds.
        width: Of the hidden states, where these are kept.
    """
    entries = {"rows": 1, "entries": 0, "drawn": made.sparsity.draws or 0}
    if made.sparsity.top_k is not None:
        entries["entries"] = made.support_size
    # A plane of high ids has a column for each, one of normalisers for each temperature.
    columns = {"support_high": made.num_high, "drawn_high": made.num_high, "log_normalizers": len(made.temperatures)}
    columns["hidden"] = width
    planes = list_planes(made).items()
    return sum(PLANE_BYTES[plane.dtype] * entries[plane.per] * columns.get(name, 1) for name, plane in planes)


def training_flops(parameters: int, tokens: int, is_adapter: bool = False) -> int:
    """Returns 6·N·D: 2 forward, 4 backward for each parameter and token (Kaplan et al. 2020, arXiv 2001.08361).

    Frozen weights under an adapter need no gradient of their own: 4·N·D. Attention's products, which grow with the
    square of the length, and activations that are computed again are left out.
    """
    return (4 if is_adapter else 6) * parameters * tokens


def reading_flops(parameters: int, tokens: int) -> int:
    """Returns 2·N·D, one forward pass: a teacher that scores, or a prompt that is read."""
    return 2 * parameters * tokens


def generation_seconds(parameters: int, dtype: str, tokens: int, steps: int, device: Device) -> float:
    """Returns the seconds that new tokens take: the larger of what is computed and what is read from memory.

    Each step, in which every completion of a batch grows by a token, reads all weights once; the keys and values of
    earlier tokens, and what the software adds, are left out, so that this is a lower bound.

    Args:
        parameters: N.
        dtype: Of the weights in memory.
        tokens: New ones, of all completions.
        steps: Of all batches.
        device: What computes.
    """
    computing = device.compute_seconds(reading_flops(parameters, tokens))
    return max(computing, steps * weights_bytes(parameters, dtype) / device.bandwidth)
