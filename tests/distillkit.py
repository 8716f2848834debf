"""Captures as DistillKit writes them, by an encoder of its own: numbers and bits are put together one by one.

After arcee-ai/DistillKit at a61c2e7d25c2e990d45832e12bd8542bdee9c810: `distillkit/compression/monotonic_logprobs.py`
(`compress_monotonic_logprobs`), `compression/bitpack.py` (`pack_to_bytes`), `compression/config.py`,
`sample_common.py` (`compressed_logit_schema`) and `sample_logits_vllm.py` (`process_prompt_logprobs`).
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.uint64())),
        ("compressed_logprobs", pa.list_(pa.list_(pa.uint8()))),
        ("bytepacked_indices", pa.list_(pa.list_(pa.uint8()))),
    ]
)
EXACT = {"exact_dtype": "float32", "polynomial_terms": None, "residual_bins": [], "delta_encoding": False}


def pack_number(value: float, dtype: str) -> bytes:
    """Returns a number's bytes, the lowest first."""
    if dtype == "bfloat16":
        [bits] = struct.unpack("<I", struct.pack("<f", value))
        return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    return struct.pack({"float16": "<e", "float32": "<f", "float64": "<d"}[dtype], value)


def unpack_number(content: bytes, dtype: str) -> float:
    """Returns what `pack_number` has left of a number."""
    if dtype == "bfloat16":
        return struct.unpack("<f", b"\0\0" + content)[0]
    return struct.unpack({"float16": "<e", "float32": "<f", "float64": "<d"}[dtype], content)[0]


def pack_bits(values: list[int], bits: int) -> bytes:
    """Returns whole numbers in so many bits each, the highest bit first, filled up with zeros to whole bytes."""
    text = "".join(format(value, f"0{bits}b") for value in values)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def make_terms(config: dict[str, Any], number: int) -> np.ndarray:
    """Returns the curve's terms at each place, [number, terms]."""
    places = np.linspace(0, 1, number) if config.get("normalize_t") else np.arange(number, dtype=float)
    named = {"sqrt": np.sqrt, "exp": np.exp}
    terms = [named[term](places) if term in named else places**term for term in config["polynomial_terms"]]
    return np.stack(terms, axis=1)


def compress(log_probs: list[float], config: dict[str, Any]) -> tuple[bytes, list[float]]:
    """Returns the bytes of log-probabilities, which fall, and what is left of them."""
    values = np.array(log_probs, float)
    if config.get("delta_encoding", True):
        values = np.diff(values, prepend=0)
    exact_k, dtype = config["exact_k"], config.get("exact_dtype", "float32")
    packed = [pack_number(value, dtype) for value in values[:exact_k]]
    left = [unpack_number(part, dtype) for part in packed]
    rest, curve = values[exact_k:], np.zeros(len(values) - exact_k)
    if config.get("polynomial_terms"):
        terms, term_dtype = make_terms(config, len(rest)), config.get("term_dtype", "float32")
        fitted = np.linalg.lstsq(terms, rest, rcond=None)[0]
        coefficients = [pack_number(value, term_dtype) for value in fitted]
        packed += coefficients
        curve = terms @ [unpack_number(part, term_dtype) for part in coefficients]
    place = 0
    for part in config["residual_bins"]:
        bits, number = part["element_bits"], part["num_elements"]
        residual = rest[place : place + number] - curve[place : place + number]
        scale = pack_number(max(abs(residual)) / (1 if bits == 1 else 1 << (bits - 1)) or 1.0, part["scale_dtype"])
        step = unpack_number(scale, part["scale_dtype"])
        if bits == 1:
            codes = [int(min(max(round(value / step), 0), 1)) for value in residual]
            curve[place : place + number] += [(2 * code - 1) * step for code in codes]
        else:
            half = 1 << (bits - 1)
            codes = [int(min(max(round(value / step), -half), half - 1)) + half for value in residual]
            curve[place : place + number] += [(code - half) * step for code in codes]
        packed += [scale, pack_bits(codes, bits)]
        place += number
    found = np.array([*left, *curve])
    return b"".join(packed), (np.cumsum(found) if config.get("delta_encoding", True) else found).tolist()


def make_row(token_ids: list[int], best: list[list[tuple[int, float]]], config: dict[str, Any]) -> dict[str, Any]:
    """Returns one text's row: its tokens, and of each place the most probable next ones with log-probabilities."""
    bits = math.ceil(math.log2(config["d"]))
    ordered = [sorted(found, key=lambda pair: -pair[1]) for found in best]
    return {
        "input_ids": token_ids,
        "compressed_logprobs": [[*compress([value for _, value in found], config)[0]] for found in ordered],
        "bytepacked_indices": [[*pack_bits([number for number, _ in found], bits)] for found in ordered],
    }


def write_capture(folder: Path, rows: list[dict[str, Any]], config: dict[str, Any]) -> Path:
    """Writes rows and their compression config, as `sample_logits_vllm` does."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA
    if rows and "attention_mask" in rows[0]:
        schema = SCHEMA.append(pa.field("attention_mask", pa.list_(pa.int64())))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data_0.parquet")
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    return folder
