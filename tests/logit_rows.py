"""Examples, descriptions and rows for tests of the logit cache: real reductions of random distributions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.examples.tokenization import ANSWER, PROMPT, RATIONALE, Example
from datamodules.files.atomic import hash_text
from datamodules.logit_cache.format import CacheDescription, Sparsity
from datamodules.logit_cache.writer import LogitCacheWriter
from lightning_modules.teacher.sparsify import sparsify
from tests.tiny import build_tokenizer

TOKENIZER = build_tokenizer()
VOCABULARY = len(TOKENIZER)
ADDED = {
    "top_k": {},
    "adaptive": {"mass": 0.9},
    "sampled": {"draws": 20},
    "hybrid": {"draws": 8},
    "hidden": {},
    "labels": {},
}


def describe(
    kind: Any = "top_k", vocabulary: int = VOCABULARY, temperatures: tuple[float, ...] = (1.0, 2.0), **settings: Any
) -> CacheDescription:
    """Describes a cache of the test's teacher."""
    if kind not in ("sampled", "hidden", "labels"):
        settings = {"top_k": 8, **settings}
    sparsity = Sparsity.resolve(kind, **{**ADDED[kind], **settings})
    temperatures = () if kind in ("hidden", "labels") else (1.0,) if sparsity.draws is not None else temperatures
    return CacheDescription("owner/teacher", "abc", "whole", "cot-1", vocabulary, temperatures, "float32", sparsity)


def make_example(number: int, vocabulary: int = VOCABULARY) -> Example:
    """Makes an example of one to six completion tokens."""
    segments = [PROMPT] * 2 + [RATIONALE] * (number % 5) + [ANSWER]
    ids = np.random.default_rng(number).integers(0, vocabulary, len(segments)).astype(np.int32)
    return Example(
        f"q{number}/owner/teacher/0",
        f"q{number}",
        ids,
        np.array(segments, np.int8),
        *[hash_text(f"{what} {number}") for what in ("text", "completion")],
    )


def make_logits(made: CacheDescription, example: Example) -> torch.Tensor:
    """Makes the teacher's logits of an example's completion, from sure to unsure."""
    size = len(example.token_ids) - example.num_prompt_tokens
    generator = torch.Generator().manual_seed(int(example.text_hash, 16))
    spread = torch.linspace(1, 6, size)[:, None]
    return spread * torch.randn(size, made.vocabulary, generator=generator)


def make_rows(made: CacheDescription, example: Example) -> dict[str, np.ndarray]:
    """Reduces `make_logits`, as a scorer does."""
    labels = torch.from_numpy(example.token_ids[example.num_prompt_tokens :]).long()
    generator = torch.Generator().manual_seed(int(example.text_hash, 16) % 1000)
    tensors = sparsify(make_logits(made, example), labels, made, [(generator, len(labels))])
    rows = {name: tensor.numpy() for name, tensor in tensors.items()} | {"token_ids": labels.numpy()}
    if made.sparsity.kind == "hidden":
        rows["hidden"] = make_logits(made, example)[:, :6].numpy()
    return rows


HEAD = {"weight": torch.arange(12.0).reshape(2, 6), "scale": 0.5, "softcap": 30.0}


def write_cache(
    folder: Path, examples: list[Example], made: CacheDescription | None = None, rank: int = 0, rows_per_shard: int = 12
) -> CacheDescription:
    """Captures what is not there yet, in batches of two, as a scorer would."""
    made = made or describe()
    writer = LogitCacheWriter(folder, made, rank=rank, rows_per_shard=rows_per_shard)
    done = writer.find_done()
    writer.open()
    left = [example for example in examples if example.id not in done]
    for start in range(0, len(left), 2):
        writer.add([(example, make_rows(made, example)) for example in left[start : start + 2]])
    writer.flush()
    writer.finish(TOKENIZER, {"config_hash": "x"}, HEAD if made.sparsity.kind == "hidden" else None)
    writer.close()
    return made
