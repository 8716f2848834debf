"""Tests of number formats: llama.cpp's mixtures, and rounding that weighs inputs."""

import numpy as np
import pytest

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

import gguf

from lightning_modules.export.architecture import Source, StoredTensor
from lightning_modules.export.quantization import TYPES, T, choose_format, round_weight

WEIGHT = np.random.default_rng(0).normal(size=(16, 512)).astype(np.float32)


def choose(name: str, kind: str, columns: int = 512, layers: int = 16, is_calibrated: bool = True) -> str:
    source = Source("llama", layers, True, [], lambda writer: None, lambda name: name)
    return choose_format(StoredTensor(name, (8, columns), lambda: WEIGHT), kind, source, is_calibrated).name


def test_mixtures_are_llama_cpps() -> None:
    assert [choose("token_embd.weight", kind) for kind in TYPES] == ["F32", "F16", "BF16", "Q8_0", *["Q6_K"] * 4]
    assert choose("blk.0.attn_norm.weight", "Q4_K_M") == "F32"
    downs = [choose(f"blk.{layer}.ffn_down.weight", "Q4_K_M") for layer in range(16)]
    # The first and last eighth, and every third between.
    assert [layer for layer, kind in enumerate(downs) if kind == "Q6_K"] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert set(downs) == {"Q4_K", "Q6_K"} and choose("blk.3.attn_q.weight", "Q5_K_M") == "Q5_K"
    assert (
        choose("blk.0.ffn_down.weight", "Q4_0") == "Q4_1"
        and choose("blk.0.ffn_down.weight", "Q4_0", 512, 16, False) == "Q4_0"
    )
    # Blocks of 256 do not fit rows of 576, and blocks of 32 not rows of 40.
    assert [choose("blk.3.attn_q.weight", kind, 576) for kind in ("Q4_K_M", "Q5_K_M", "Q6_K")] == [
        "Q5_0",
        "Q5_1",
        "Q8_0",
    ]
    assert choose("token_embd.weight", "Q4_K_M", 576) == "Q8_0" and choose("blk.3.attn_q.weight", "Q8_0", 40) == "F16"


@pytest.mark.parametrize("kind", [T.Q8_0, T.Q4_0, T.Q5_1])
def test_bytes_are_the_formats(kind: gguf.GGMLQuantizationType) -> None:
    back = gguf.quants.dequantize(round_weight(WEIGHT, kind), kind)
    assert back.shape == WEIGHT.shape and np.abs(back - WEIGHT).max() < 0.4
    if kind is T.Q8_0:
        np.testing.assert_array_equal(round_weight(WEIGHT, kind), gguf.quants.quantize(WEIGHT, kind))


@pytest.mark.parametrize("kind", [T.Q4_K, T.Q5_0])
def test_what_matters_is_kept_best(kind: gguf.GGMLQuantizationType) -> None:
    importance = np.where(np.arange(512) % 8 == 0, 100.0, 0.01).astype(np.float32)

    def measure(weights: np.ndarray | None) -> float:
        error = gguf.quants.dequantize(round_weight(WEIGHT, kind, weights), kind) - WEIGHT
        return float((error**2 * importance).sum())

    assert measure(importance) < 0.7 * measure(None)
