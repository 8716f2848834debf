"""Which number format each weight of a GGUF file gets, and the file itself; llama.cpp's library rounds the weights."""

import ctypes
import errno
import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from lightning_modules.export.architecture import Source, StoredTensor
from lightning_modules.model.llama_cpp import load_library

T = gguf.GGMLQuantizationType
# A file's type: what most weights are, and llama.cpp's number for the mixture.
TYPES = {
    "f32": (T.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (T.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (T.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "Q8_0": (T.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "Q6_K": (T.Q6_K, gguf.LlamaFileType.MOSTLY_Q6_K),
    "Q5_K_M": (T.Q5_K, gguf.LlamaFileType.MOSTLY_Q5_K_M),
    "Q4_K_M": (T.Q4_K, gguf.LlamaFileType.MOSTLY_Q4_K_M),
    "Q4_0": (T.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_PLAIN = (T.F32, T.F16, T.BF16)
# Rows that no block of 256 fits get blocks of 32.
_SMALLER = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}


def _gets_more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def choose_format(tensor: StoredTensor, kind: str, source: Source, is_calibrated: bool) -> gguf.GGMLQuantizationType:
    """Returns a weight's format in a file of this type: llama.cpp's own mixtures.

    Args:
        tensor: The weight.
        kind: One of TYPES.
        source: What it belongs to.
        is_calibrated: The importance of inputs is known.
    """
    most, _ = TYPES[kind]
    if len(tensor.shape) < 2 or "norm" in tensor.name:
        return T.F32
    if most in _PLAIN:
        return most
    columns, name = tensor.shape[-1], tensor.name
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    chosen = most
    if name == "output.weight" or (source.is_tied and name == "token_embd.weight"):
        fits = columns % gguf.GGML_QUANT_SIZES[most][0] == 0
        chosen = T.Q8_0 if most is T.Q8_0 or not fits else T.Q6_K
    elif kind in ("Q4_K_M", "Q5_K_M") and any(part in name for part in ("attn_v.", "ffn_down.", "attn_qkv.")):
        if _gets_more_bits(layer, source.num_layers):
            chosen = T.Q6_K
    elif kind == "Q4_0" and "ffn_down." in name and is_calibrated and layer < source.num_layers // 8:
        chosen = T.Q4_1
    if columns % gguf.GGML_QUANT_SIZES[chosen][0] != 0:
        chosen = _SMALLER.get(chosen, chosen)
    return chosen if columns % gguf.GGML_QUANT_SIZES[chosen][0] == 0 else T.F16


def round_weight(
    weight: np.ndarray, kind: gguf.GGMLQuantizationType, importance: np.ndarray | None = None
) -> np.ndarray:
    """Returns a weight in a format, as the file's bytes: uint8 [rows, bytes], or floats.

    Args:
        weight: float32 [rows, columns], or [columns].
        kind: The format.
        importance: float32 [columns]; None counts all alike.
    """
    if kind is T.F32:
        return weight
    if kind is T.F16:
        return weight.astype(np.float16)
    if kind is T.BF16:
        return gguf.quants.quantize(weight, kind)
    rows, columns = weight.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    weight = np.ascontiguousarray(weight, np.float32)
    result = np.empty((rows, columns // block * size), np.uint8)
    own = None if importance is None else np.ascontiguousarray(importance, np.float32)
    assert own is None or own.shape == (columns,)
    written = load_library().ggml_quantize_chunk(
        int(kind),
        weight.ctypes.data_as(ctypes.c_void_p),
        result.ctypes.data_as(ctypes.c_void_p),
        0,
        rows,
        columns,
        None if own is None else own.ctypes.data_as(ctypes.c_void_p),
    )
    assert written == result.nbytes
    return result


def write_gguf(
    path: Path, source: Source, kind: str, importance: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> dict[str, int]:
    """Writes a file, and returns how many weights have each format.

    Args:
        path: The file.
        source: What it is written from.
        kind: One of TYPES.
        importance: By GGUF's name of a weight; of those that are not there all inputs count alike.
        texts: Further metadata.
    """
    writer = gguf.GGUFWriter(path, source.architecture)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, text in texts.items():
        writer.add_string(key, text)
    source.add_metadata(writer)
    formats = {tensor.name: choose_format(tensor, kind, source, bool(importance)) for tensor in source.tensors}
    for tensor in source.tensors:
        block, size = gguf.GGML_QUANT_SIZES[formats[tensor.name]]
        bytes_ = int(np.prod(tensor.shape)) // block * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), bytes_, formats[tensor.name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in source.tensors:
            writer.write_tensor_data(round_weight(tensor.read(), formats[tensor.name], importance.get(tensor.name)))
    except OSError as error:
        if error.errno is not None:
            raise
        # What numpy says where the disk takes less than it was given.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    finally:
        writer.close()
    counts: dict[str, int] = {}
    for kind_ in formats.values():
        counts[kind_.name] = counts.get(kind_.name, 0) + 1
    return counts
