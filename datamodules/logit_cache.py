"""The logit cache: a teacher's sparse next-token distribution for every completion token.

A folder with `manifest.json` and `shard-*.safetensors`. In a shard, example e owns the rows
`offsets[e]:offsets[e + 1]`; row r is the distribution *of* completion token r, given everything before it:

    offsets          int64   [examples + 1]
    token_ids        int32   [rows]          the completion's tokens
    support          int32   [rows, k]       token ids, most probable first
    log_probs        float32 [rows, k]       at temperature 1
    log_normalizers  float32 [rows, T]       A_T = log sum over the vocabulary of exp(log p / T)
    log_tails        float32 [rows, T]       log of the mass outside the support, at temperature T

so that log p_T(i) = log_probs / T - A_T is exact for each stored T. The safetensors header's `examples` is a
JSON list of [example id, text hash]; its `signature` is the manifest's, so that shards of different captures
never mix.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from datamodules.files import atomic_path, hash_json, hash_path, write_json
from datamodules.tokenization import PROMPT, Example

SCHEMA_VERSION = 1
PLANES = ("token_ids", "support", "log_probs", "log_normalizers", "log_tails")


@dataclass(frozen=True)
class CacheDescription:
    """What every row of a cache depends on.

    Attributes:
        teacher: The teacher's name.
        revision: The teacher's commit, or the hash of its local files.
        tokenizer_fingerprint: See `fingerprint_tokenizer`.
        prompt_id: The prompt that stood before each completion.
        top_k: Size of the support.
        temperatures: The T for which normalisers and tails are stored.
        dtype: In which the teacher was run.
    """

    teacher: str
    revision: str
    tokenizer_fingerprint: str
    prompt_id: str
    top_k: int
    temperatures: tuple[float, ...]
    dtype: str

    @property
    def signature(self) -> str:
        """Hash of all fields."""
        return hash_json([str(value) for value in vars(self).values()])


@dataclass
class LogitCacheWriter:
    """Collects examples and writes them as shards; one writer per process, no locks.

    A shard appears whole or not at all, so a killed capture continues after its last shard.

    Attributes:
        folder: The cache.
        description: What the rows depend on.
        rank: The process's rank, which names its shards.
        rows_per_shard: A shard is written when it has at least so many rows.
    """

    folder: Path
    description: CacheDescription
    rank: int = 0
    rows_per_shard: int = 50_000
    _examples: list[tuple[str, str]] = field(default_factory=list)
    _planes: list[dict[str, np.ndarray]] = field(default_factory=list)

    def find_shards(self) -> list[Path]:
        """Returns the shards of this capture that are already complete.

        Raises:
            ValueError: One is of another teacher, tokenizer, prompt or setting.
        """
        shards = sorted(self.folder.glob("shard-*.safetensors"))
        for shard in shards:
            with safe_open(shard, framework="np") as file:
                if file.metadata()["signature"] != self.description.signature:
                    raise ValueError(
                        f"{shard}: written by another teacher, tokenizer, prompt or setting; choose another output"
                    )
        return shards

    def find_done(self) -> set[str]:
        """Returns the ids of the examples in complete shards."""
        return {identifier for shard in self.find_shards() for identifier, _ in _read_index(shard)[0]}

    def add(self, example: Example, planes: dict[str, np.ndarray]) -> None:
        """Adds one example's rows; `planes` as in the module's docstring, without `offsets`."""
        assert set(planes) == set(PLANES)
        self._examples.append((example.id, example.text_hash))
        self._planes.append(planes)
        if sum(len(planes["token_ids"]) for planes in self._planes) >= self.rows_per_shard:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last shard."""
        if not self._examples:
            return
        lengths = [len(planes["token_ids"]) for planes in self._planes]
        tensors = {name: np.concatenate([planes[name] for planes in self._planes]) for name in PLANES}
        tensors["offsets"] = np.cumsum([0, *lengths], dtype=np.int64)
        numbers = [int(shard.stem.split("-")[2]) for shard in self.folder.glob(f"shard-{self.rank:04d}-*.safetensors")]
        name = f"shard-{self.rank:04d}-{max(numbers, default=-1) + 1:05d}.safetensors"
        metadata = {"signature": self.description.signature, "examples": json.dumps(self._examples)}
        with atomic_path(self.folder / name) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        self._examples, self._planes = [], []

    def write_manifest(self, creation: dict) -> None:
        """Lists the shards of all processes; call once, after every process has flushed."""
        shards = [{"file": shard.name, "sha256": hash_path(shard)} for shard in self.find_shards()]
        write_json(
            self.folder / "manifest.json",
            {
                "schema": SCHEMA_VERSION,
                **vars(self.description),
                "signature": self.description.signature,
                "shards": shards,
                "creation": creation,
            },
        )


def _read_index(shard: Path) -> tuple[list[tuple[str, str]], np.ndarray]:
    with safe_open(shard, framework="np") as file:
        return [tuple(entry) for entry in json.loads(file.metadata()["examples"])], file.get_tensor("offsets")


class LogitCache:
    """Reads a logit cache at random, by example; shards are mapped into memory, never loaded whole.

    Args:
        folder: The cache.

    Raises:
        ValueError: It is missing, unfinished, of another schema, or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"{folder}: no finished logit cache (no manifest.json); run scripts/cache_logits.py")
        manifest = json.loads(path.read_text())
        if manifest.get("schema") != SCHEMA_VERSION:
            raise ValueError(f"{path}: schema {manifest.get('schema')}, but this version reads {SCHEMA_VERSION}")
        names = CacheDescription.__dataclass_fields__
        fields = {name: manifest[name] for name in names}
        self.description = CacheDescription(**{**fields, "temperatures": tuple(fields["temperatures"])})
        self._places: dict[str, tuple[Path, str, int, int]] = {}
        for entry in manifest["shards"]:
            shard = folder / entry["file"]
            if not shard.is_file() or hash_path(shard) != entry["sha256"]:
                raise ValueError(f"{shard}: missing, or not the file that manifest.json lists; capture again")
            examples, offsets = _read_index(shard)
            for number, (identifier, text_hash) in enumerate(examples):
                if identifier in self._places:
                    raise ValueError(f"{shard}: example {identifier!r} is in two shards")
                self._places[identifier] = (shard, text_hash, int(offsets[number]), int(offsets[number + 1]))

    def __contains__(self, example_id: str) -> bool:
        return example_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def check(self, student: str, fingerprint: str, prompt_id: str, examples: Sequence[Example]) -> None:
        """Refuses a cache that was not made of these examples, for this tokenizer and prompt.

        Args:
            student: The student's name, for the message.
            fingerprint: Of the student's tokenizer.
            prompt_id: Of the student's prompt.
            examples: What will be read.

        Raises:
            ValueError: Tokenizer, prompt or text differ, or examples are missing.
        """
        made = self.description
        if made.tokenizer_fingerprint != fingerprint:
            raise ValueError(
                f"{self.folder}: teacher {made.teacher!r} (tokenizer {made.tokenizer_fingerprint}) and student "
                f"{student!r} (tokenizer {fingerprint}) do not share a tokenizer; its logits cannot be used"
            )
        if made.prompt_id != prompt_id:
            raise ValueError(f"{self.folder}: captured with prompt {made.prompt_id}, but the data uses {prompt_id}")
        missing = [example.id for example in examples if example.id not in self]
        if missing:
            raise ValueError(
                f"{self.folder}: {len(missing)} of {len(examples)} examples are not cached, the first is "
                f"{missing[0]!r}; run scripts/cache_logits.py on the same rationales"
            )
        for example in examples:
            if self._places[example.id][1] != example.text_hash:
                raise ValueError(
                    f"{self.folder}: the text of {example.id!r} was changed after its logits were cached; capture again"
                )

    def read(self, example: Example) -> dict[str, np.ndarray]:
        """Returns the planes of one example's completion rows, in order.

        Raises:
            ValueError: The cached tokens are not the example's.
        """
        shard, _, start, stop = self._places[example.id]
        with safe_open(shard, framework="np") as file:
            planes = {name: file.get_slice(name)[start:stop] for name in PLANES}
        if not np.array_equal(planes["token_ids"], example.token_ids[example.segments != PROMPT]):
            raise ValueError(f"{shard}: the cached tokens of {example.id!r} are not those of the completion")
        return planes


def is_finished(folder: Path) -> bool:
    """Says whether a capture into this folder ended; a folder that holds something else is refused.

    Raises:
        ValueError: The folder holds files that no cache has.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is no logit cache (it is no folder); choose another output")
    strange = [path.name for path in folder.glob("*") if not re.fullmatch(r"manifest\.json|shard-.*|\..*", path.name)]
    if strange:
        raise ValueError(f"{folder}: is no logit cache (it holds {strange[0]}); choose another output")
    return (folder / "manifest.json").is_file()
