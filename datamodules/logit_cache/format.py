"""The logit cache on disk: a teacher's next-token distribution for every completion token, in few bytes.

A folder holds `manifest.json`, `shard-RRRR-NNNNN.safetensors` (process, number), `vocabulary.safetensors` and, for
the kind `hidden`, `head.safetensors`. Everything is little-endian. A shard holds whole examples, one after the other;
row r of an example is the distribution *of* completion token r, given everything before it. V is the tokenizer's
vocabulary, k a row's number of support entries, T the number of stored temperatures; `rows`, `entries` and `drawn` are
sums over the shard's examples.

    every kind
        tokens_low        U16 [rows]         the completion's token ids, modulo 65,536
        tokens_high       U8  [rows]         divided by 65,536; only where V > 65,536
        label_log_prob    F16 [rows]         log-probability of the completion's own token, at temperature 1; -inf where
                                             it is unknown, and somewhere in the tail of what another program kept
    top_k, adaptive, hybrid: the most probable tokens
        support_size      U8  [rows]         k; adaptive only, else k = min(top_k, V)
        support_low       U16 [entries]      token ids modulo 65,536
        support_high      U8  [rows, H]      how many of the row's ids have id // 65,536 = 1, ..., H; the row's entries
                                             are sorted by that number; H = (V - 1) // 65,536; only where H > 0
        values            U8 or F16 [entries]  r = log p - log p_max of the row: 4 ln(1 - code / 256), or r itself
        log_tail          F16 [rows]         log tau, the log of the mass outside the support, at temperature 1
        log_normalizers   F32 [rows, T]      B_T
    sampled, hybrid: draws with replacement from the whole distribution, or from what is outside the support
        drawn_size        U8  [rows]         how many different tokens were drawn
        drawn_low, drawn_high                as above
        drawn_counts      U8  [drawn]        how often each was
    labels: nothing else
    hidden
        hidden            F16, BF16 or F32 [rows, d]  the last hidden state; logits = softcap(scale * (weight h + bias))
                                             with `weight` [V', d] and, if there is one, `bias` [V'] in
                                             head.safetensors, softcap(x) = c tanh(x / c)
    index.examples        U8                 JSON list of the examples' ids
    index.text_hash       U64 [examples]     hash of each example's prompt and completion text
    index.completion_hash U64 [examples]     hash of its completion's text in UTF-8 alone, which does not depend on a
                                             chat template
    index.rows            U32 [examples]     (index.entries for adaptive, index.drawn for sampled and hybrid likewise)
    index.checksum        U32 [examples]     of the example's bytes of every plane above, planes in the order of names:
                                             the low half of their XXH3-64
    __metadata__          `signature`: hash of the manifest's fields that the rows depend on
    index.check           U8  [8]            two U32, the last bytes of the file: checksum of the header with its
                                             length, and of the other index planes in the order of names

Sizes and counts are U16 instead where `top_k`, or `draws`, is above 255. Then at each stored temperature
log p_T(i) = r_i / T - B_T, and sum_i exp(log p_T(i)) + tau_T = 1: B_T was computed from the decoded r, so nothing
is normalised by the reader, and 1 is always among the temperatures. tau_1 is exp(log_tail); any other tau_T is
what is left of 1. `sampled` estimates p by counts / draws (random sampling KD, Anshumann et al. 2025, arXiv
2503.16870); `hybrid` keeps the head's own probabilities and gives a drawn token tau_1 * count / draws, its
Horvitz-Thompson weight. Both are unbiased at temperature 1 and nothing else. What mass a padded head has beyond the
tokenizer's vocabulary is in the tail of `top_k` and `adaptive`, and is left out by draws.

`vocabulary.safetensors` says what the token ids mean without the teacher's tokenizer, to a student with another:
`bytes` U8 [bytes] of the tokens in the order of ids, `offsets` U32 [V + 1] into them, and `flags` U8 [V]: 1 of a
special token, whose bytes are its name and no text, 2 of one that ends a turn, 4 of a byte that is written only where
no other token can be. It is missing where a tokenizer is of a kind whose bytes cannot be known.

The manifest says what the rows depend on, lists the shards with size and sha256, and holds a bitmap of the token
ids in use (base64 of zlib, bit i % 8 of byte i // 8, least significant first) with the tokenizer's fingerprint on them.
Its `checksum` is the hash of its other fields' canonical JSON. A shard that it does not list belongs to a capture
that has not ended. Schema 2 had neither `vocabulary.safetensors` nor `index.completion_hash`: its caches serve the
teacher's own tokenizer only.
"""

import base64
import json
import re
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.files.atomic import hash_json
from datamodules.files.parsing import parse_json

SCHEMA_VERSION = 3
# Without the tokens' bytes.
OLD_SCHEMA_VERSION = 2
LOW_IDS = 1 << 16
MAX_VOCABULARY = 4 * LOW_IDS
# In place of the fingerprint of a teacher's tokenizer that nobody has, see `written_tokens`.
UNKNOWN_TOKENIZER = "unknown"
# A file of the cache's own folder: process, number.
# By the manifest's field.
OTHER_FILES = {"head": "head.safetensors", "token_bytes": "vocabulary.safetensors"}
SHARD_NAME = re.compile(r"shard-\d{4,}-\d{5,}\.safetensors")
DAMAGED_MANIFEST = "damaged; delete it and run python -m scripts.cache_logits again, which keeps the shards"
Dtype = Literal["float32", "bfloat16", "float16"]
Kind = Literal["top_k", "adaptive", "sampled", "hybrid", "hidden", "labels"]
Values = Literal["uint8", "float16", "bfloat16", "float32"]
DTYPES: dict[str, np.dtype] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # numpy has no such type; its bits
    "F32": np.dtype("<f4"),
}
HEAD_VALUES = ("uint8", "float16")
HIDDEN_VALUES = ("float16", "bfloat16", "float32")
# Which settings each kind has, and what they are unless given.
DEFAULTS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 64, "values": "uint8"},
    "adaptive": {"top_k": 64, "min_k": 1, "mass": 0.99, "values": "uint8"},
    "sampled": {"draws": 50, "draw_seed": 0},
    "hybrid": {"top_k": 16, "draws": 16, "values": "uint8", "draw_seed": 0},
    "hidden": {"values": "float16"},
    "labels": {},
}


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """What is kept of each distribution; a setting that the kind does not have is None.

    Attributes:
        kind: See the module's docstring.
        top_k: Size of the support; for `adaptive` at most, for `hybrid` that of the exact head.
        min_k: Smallest support of `adaptive`.
        mass: `adaptive` keeps the smallest support of at least this probability.
        draws: Samples a row.
        values: How log-probabilities, or hidden states, are stored.
        draw_seed: Of the draws; each example has a stream of its own.
    """

    kind: Kind = "top_k"
    top_k: int | None = None
    min_k: int | None = None
    mass: float | None = None
    draws: int | None = None
    values: Values | None = None
    draw_seed: int | None = None

    @classmethod
    def resolve(cls, kind: Kind, **given: object) -> "Sparsity":
        """Fills in the kind's defaults for what is None.

        Raises:
            ValueError: A setting is given that the kind would ignore, or one that makes no sense.
        """
        defaults = DEFAULTS[kind]
        given = {name: value for name, value in given.items() if value is not None}
        if ignored := sorted(set(given) - set(defaults)):
            has = ", ".join(defaults) or "no settings"
            raise ValueError(f"model.{ignored[0]} is given, but kind {kind} ignores it; it has {has}")
        made = cls(kind=kind, **{**defaults, **given})
        if kind == "adaptive" and not (made.min_k or 0) <= (made.top_k or 0):
            raise ValueError(f"model.min_k {made.min_k} is more than model.top_k {made.top_k}")
        if made.mass is not None and not 0 < made.mass <= 1:
            raise ValueError(f"model.mass must be above 0 and at most 1, not {made.mass}")
        if "values" in defaults and made.values not in (allowed := HIDDEN_VALUES if kind == "hidden" else HEAD_VALUES):
            raise ValueError(f"model.values must be one of {', '.join(allowed)} for kind {kind}, not {made.values}")
        return made


@dataclass(frozen=True)
class CacheDescription:
    """What every row of a cache depends on.

    Attributes:
        teacher: The teacher's name.
        revision: The teacher's commit, or the hash of its local files.
        tokenizer_fingerprint: Of the teacher's whole tokenizer, see `fingerprint_tokenizer`.
        prompt_id: The prompt that stood before each completion.
        vocabulary: Size of the tokenizer's vocabulary; support ids are below it.
        temperatures: The T for which normalisers are stored, 1 among them; none for `hidden`, which is exact at any,
            and for `labels`, which has no distributions.
        dtype: In which the teacher was run.
        sparsity: What is kept of each distribution.
        attention: How the teacher's attention was computed, if that was chosen; it rounds.
    """

    teacher: str
    revision: str
    tokenizer_fingerprint: str
    prompt_id: str
    vocabulary: int
    temperatures: tuple[float, ...]
    dtype: Dtype
    sparsity: Sparsity
    attention: str | None = None

    @property
    def signature(self) -> str:
        """Hash of all fields."""
        return hash_json(self.to_json())

    @property
    def num_high(self) -> int:
        """H: the largest id // 65,536."""
        return (self.vocabulary - 1) // LOW_IDS

    @property
    def support_size(self) -> int:
        """Size of a fixed support."""
        assert self.sparsity.top_k is not None
        return min(self.sparsity.top_k, self.vocabulary)

    @property
    def row_type(self) -> tuple[Any, ...]:
        """What two caches must have in common for their rows to share a batch; hidden states are each head's own."""
        if self.sparsity.kind == "hidden":
            return "hidden", self.teacher, self.revision
        if self.sparsity.kind == "labels":
            return ("labels",)
        return "weights" if self.sparsity.draws is not None else "log_probs", self.temperatures

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest's fields, `attention` only where it was chosen."""
        record = {**vars(self), "temperatures": list(self.temperatures), "sparsity": vars(self.sparsity)}
        if self.attention is None:
            del record["attention"]
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "CacheDescription":
        """Reads the manifest's fields."""
        values = {field.name: record[field.name] for field in fields(cls) if field.name != "attention"}
        values["attention"] = record.get("attention")
        values |= {"temperatures": tuple(values["temperatures"]), "sparsity": Sparsity(**values["sparsity"])}
        return cls(**values)


class Plane(NamedTuple):
    """One plane: its safetensors dtype, and whether it has one entry a row, a support entry or a drawn token."""

    dtype: str
    per: Literal["rows", "entries", "drawn"]


def list_planes(description: CacheDescription) -> dict[str, Plane]:
    """Returns the planes of such a cache by name, sorted."""
    sparsity, has_high = description.sparsity, description.num_high > 0
    planes = {"tokens_low": Plane("U16", "rows"), "label_log_prob": Plane("F16", "rows")}
    if has_high:
        planes["tokens_high"] = Plane("U8", "rows")
    if sparsity.kind in ("top_k", "adaptive", "hybrid"):
        size = "U8" if description.support_size < 256 else "U16"
        planes["support_low"] = Plane("U16", "entries")
        planes["values"] = Plane("U8" if sparsity.values == "uint8" else "F16", "entries")
        planes["log_tail"] = Plane("F16", "rows")
        planes["log_normalizers"] = Plane("F32", "rows")
        if has_high:
            planes["support_high"] = Plane(size, "rows")
        if sparsity.kind == "adaptive":
            planes["support_size"] = Plane(size, "rows")
    if sparsity.draws is not None:
        size = "U8" if sparsity.draws < 256 else "U16"
        planes |= {"drawn_low": Plane("U16", "drawn"), "drawn_counts": Plane(size, "drawn")}
        planes["drawn_size"] = Plane(size, "rows")
        if has_high:
            planes["drawn_high"] = Plane(size, "rows")
    if sparsity.kind == "hidden":
        dtypes = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
        planes["hidden"] = Plane(dtypes[str(sparsity.values)], "rows")
    return dict(sorted(planes.items()))


def render_manifest(record: dict[str, Any]) -> str:
    """Returns the manifest's text, with its checksum."""
    return json.dumps({**record, "checksum": hash_json(record)}, indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns a finished cache's manifest.

    Raises:
        ValueError: There is none, it is of another schema, or a byte of it has changed.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no finished logit cache (no manifest.json); run python -m scripts.cache_logits")
    content = path.read_bytes()
    try:
        manifest = parse_json(content, path)
    except ValueError:
        raise ValueError(f"{path}: {DAMAGED_MANIFEST}") from None
    if not isinstance(manifest, dict) or manifest.get("schema") not in (OLD_SCHEMA_VERSION, SCHEMA_VERSION):
        schema = manifest.get("schema") if isinstance(manifest, dict) else None
        raise ValueError(f"{path}: schema {schema}, but this version reads {SCHEMA_VERSION}; capture again")
    manifest.pop("checksum", None)
    if render_manifest(manifest).encode() != content:
        raise ValueError(f"{path}: {DAMAGED_MANIFEST}")
    if strange := [entry["file"] for entry in manifest["shards"] if not SHARD_NAME.fullmatch(entry["file"])]:
        raise ValueError(f"{path}: lists {strange[0]!r}, which is no shard of this folder")
    return manifest


def pack_ids(ids: np.ndarray) -> str:
    """Returns a set of token ids as the manifest's bitmap."""
    bits = np.zeros(int(ids.max()) + 1, np.uint8)
    bits[ids] = 1
    return base64.b64encode(zlib.compress(np.packbits(bits, bitorder="little").tobytes())).decode()


def unpack_ids(bitmap: str) -> np.ndarray:
    """Returns the token ids of such a bitmap, ascending."""
    content = np.frombuffer(zlib.decompress(base64.b64decode(bitmap)), np.uint8)
    return np.flatnonzero(np.unpackbits(content, bitorder="little"))
