"""DistillKit's compressed log-probabilities: its compression config, read, and its bytes, decoded.

DistillKit (github.com/arcee-ai/DistillKit, `distillkit/compression` at a61c2e7) keeps of each distribution the `k` most
probable token ids, each in the bits that ids below `d` need, the most significant first, and their log-probabilities,
from the highest to the lowest:

    `exact_k` values of `exact_dtype`
    coefficients of `term_dtype`, one for each of `polynomial_terms`: a curve over the places 0, 1, ... of the others
    for each of `residual_bins` a scale, and `num_elements` codes of `element_bits`: what the curve leaves of the next

Each part takes whole bytes; numbers are little-endian. With `delta_encoding` all but the first value are differences to
the one before. How errors were diffused does not matter to who decodes. Nothing in the bytes says how they were made: a
config of another capture is told by their number, by values that do not fall, and by ids that are there twice.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.files.atomic import require_file
from datamodules.files.field_types import shorten
from datamodules.files.parsing import read_yaml

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
CURVES = {"sqrt": torch.sqrt, "exp": torch.exp}
# Of the values of one row: a curve through a few hundred points may add some mass, the wrong bytes add much.
LARGEST_SUM = 1.5
MAX_K = (1 << 16) - 1
# A code needs fewer than the value that it stands for.
MAX_ELEMENT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class ResidualBin:
    """What is left of some values, in few bits.

    Attributes:
        scale_dtype: Of the scale.
        element_bits: Of a code.
        num_elements: How many values.
    """

    scale_dtype: str
    element_bits: int
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Bytes of its codes."""
        return -(-self.element_bits * self.num_elements // 8)


@dataclass(frozen=True, kw_only=True)
class Compression:
    """DistillKit's `DistributionQuantizationConfig`; its fields' names and defaults are DistillKit's.

    Attributes:
        d: Ids are below it.
        k: How many tokens a row has.
        exact_k: How many values stand as they are.
        residual_bins: What the curve leaves, for values from `exact_k` on.
        exact_dtype: Of these values.
        polynomial_terms: Of the curve: powers, and `sqrt` and `exp`.
        term_dtype: Of its coefficients.
        delta_encoding: Whether values are differences.
        error_diffusion: Whether an error was carried over to the next value.
        normalize_t: Whether the curve's places lie between 0 and 1.
    """

    d: int
    k: int
    exact_k: int
    residual_bins: tuple[ResidualBin, ...]
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.d:
            raise ValueError(f"d must be at least 2, not {self.d}")
        if not 1 <= self.k <= min(self.d, MAX_K):
            raise ValueError(f"k must be from 1 to d, and at most {MAX_K:,}, not {self.k}")
        if not 0 <= self.exact_k <= self.k:
            raise ValueError(f"exact_k must be from 0 to k, not {self.exact_k}")
        if self.exact_k < self.k and not self.polynomial_terms and not self.residual_bins:
            raise ValueError("exact_k is below k, and neither polynomial_terms nor residual_bins say what the rest is")
        if sum(part.num_elements for part in self.residual_bins) > self.k - self.exact_k:
            raise ValueError("residual_bins hold more values than k - exact_k")
        for part in self.residual_bins:
            if not 1 <= part.element_bits <= MAX_ELEMENT_BITS or part.num_elements < 1:
                raise ValueError(f"a residual bin has 1 to {MAX_ELEMENT_BITS} element_bits and 1 element at least")

    @property
    def num_value_bytes(self) -> int:
        """Bytes of a row's log-probabilities."""
        size = self.exact_k * DTYPES[self.exact_dtype].itemsize
        size += len(self.polynomial_terms) * DTYPES[self.term_dtype].itemsize
        return size + sum(DTYPES[part.scale_dtype].itemsize + part.num_bytes for part in self.residual_bins)

    @property
    def index_bits(self) -> int:
        """Bits of an id."""
        return (self.d - 1).bit_length()

    @property
    def num_index_bytes(self) -> int:
        """Bytes of a row's ids."""
        return -(-self.k * self.index_bits // 8)

    def decode(self, values: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decodes rows.

        Args:
            values: uint8 [N, num_value_bytes].
            indices: uint8 [N, num_index_bytes].

        Returns:
            Token ids, int64 [N, k], and their log-probabilities, float64 [N, k], -inf of one that has none.

        Raises:
            ValueError: They were not made with this config.
        """
        ids = _unpack_bits(indices, self.index_bits, self.k)
        bytes_NB = _Bytes(values)
        exact = bytes_NB.take(self.exact_k, DTYPES[self.exact_dtype]).double()
        rest = self._draw_curve(bytes_NB.take(len(self.polynomial_terms), DTYPES[self.term_dtype]))
        place = 0
        for part in self.residual_bins:
            scale = bytes_NB.take(1, DTYPES[part.scale_dtype]).double()
            packed = bytes_NB.take(part.num_bytes, torch.uint8).numpy()
            codes = _unpack_bits(packed, part.element_bits, part.num_elements)
            # One bit is a sign.
            steps = 2 * codes - 1 if part.element_bits == 1 else codes - (1 << (part.element_bits - 1))
            rest[:, place : place + part.num_elements] += torch.from_numpy(steps) * scale
            place += part.num_elements
        log_probs = torch.cat([exact, rest], dim=1)
        if self.delta_encoding:
            log_probs = log_probs.cumsum(1)
        self._check(ids, log_probs[:, : self.exact_k].numpy(), log_probs.numpy())
        return ids, log_probs.numpy()

    def _draw_curve(self, coefficients: Tensor) -> Tensor:
        """Returns the curve at each place after the exact values, float64 [N, k - exact_k]."""
        number, dtype = self.k - self.exact_k, coefficients.dtype
        if not self.polynomial_terms:
            return torch.zeros(len(coefficients), number, dtype=torch.float64)
        places = torch.linspace(0, 1, number, dtype=dtype) if self.normalize_t else torch.arange(number, dtype=dtype)
        terms = [places**term if isinstance(term, int) else CURVES[term](places) for term in self.polynomial_terms]
        return (torch.stack(terms, dim=-1) * coefficients[:, None]).sum(-1).double()

    def _check(self, ids: np.ndarray, exact: np.ndarray, log_probs: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            is_sum = np.exp(log_probs).sum(1) <= LARGEST_SUM
        # A nan compares as false; differences are rounded, too.
        falls = (exact[:, 1:] <= exact[:, :-1] + 1e-3).all()
        ordered = np.sort(np.where(np.isneginf(log_probs), -1 - np.arange(self.k), ids), axis=1)
        if not is_sum.all() or not falls or (np.diff(ordered, axis=1) == 0).any() or ids.max(initial=0) >= self.d:
            raise ValueError(
                "its bytes are no falling log-probabilities of different ids: its compression config is another"
            )


class _Bytes:
    """Hands out rows' bytes, from the first on.

    Args:
        rows: uint8 [N, B].
    """

    def __init__(self, rows: np.ndarray):
        self._rest = rows

    def take(self, number: int, dtype: torch.dtype) -> Tensor:
        """Returns the next values of each row, [N, number]."""
        size = number * dtype.itemsize
        part, self._rest = self._rest[:, :size], self._rest[:, size:]
        # A view of nothing has no stride that would fit.
        return torch.from_numpy(part.copy()).view(dtype) if number else torch.empty(len(part), 0, dtype=dtype)


def _unpack_bits(packed: np.ndarray, bits: int, number: int) -> np.ndarray:
    """Returns the whole numbers of so many bits each, int64 [N, number], of uint8 [N, B]."""
    ordered = np.unpackbits(packed, axis=1)[:, : number * bits].reshape(len(packed), number, bits)
    values = np.zeros((len(packed), number), np.int64)
    for place in range(bits):
        values <<= 1
        values |= ordered[:, :, place]
    return values


def read_compression(path: Path) -> Compression:
    """Reads the config that DistillKit writes beside a capture, `compression_config.yaml`.

    Raises:
        ValueError: There is none, or a setting is unknown, missing, or of a wrong type or value.
    """
    record = read_yaml(require_file(path, "compression config"))
    try:
        if isinstance(record, dict) and "polynomial_degree" in record:
            raise ValueError("is of DistillKit's legacy compression, whose values may be logits; capture again")
        return Compression(**_read_fields(record, Compression))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_fields(record: Any, kind: type[Compression] | type[ResidualBin]) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ValueError(f"is no mapping: {shorten(record)}")
    known = {field.name: field for field in fields(kind)}
    if unknown := [name for name in record if name not in known]:
        raise ValueError(f"has the unknown setting {shorten(unknown[0])}; known are {', '.join(known)}")
    if missing := [name for name, field in known.items() if field.default is MISSING and name not in record]:
        raise ValueError(f"lacks the setting {missing[0]!r}")
    return {name: _read_value(name, value) for name, value in record.items()}


def _read_value(name: str, value: Any) -> Any:
    if name == "residual_bins" and isinstance(value, list):
        return tuple(ResidualBin(**_read_fields(part, ResidualBin)) for part in value)
    if name == "polynomial_terms":
        terms = [] if value is None else value
        if isinstance(terms, list) and all(type(term) is int or term in [*CURVES] for term in terms):
            return tuple(terms)
        raise ValueError(f"polynomial_terms must be powers, {' or '.join(CURVES)}, not {shorten(value)}")
    if name.endswith("_dtype"):
        fits, wanted = value in [*DTYPES], f"one of {', '.join(DTYPES)}"
    elif name in ("delta_encoding", "error_diffusion", "normalize_t"):
        fits, wanted = type(value) is bool, "true or false"
    else:
        fits, wanted = type(value) is int, "a whole number"
    if not fits:
        raise ValueError(f"{name} must be {wanted}, not {shorten(value)}")
    return value
