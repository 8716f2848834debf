"""The logit cache: how fast it is read, how small and how near it is, and what capture adds to the teacher.

    python -m scripts.benchmark cache --smollm2 FILE.gguf --rationales FILE.jsonl.gz ... [--png FILE]

The reader is compared, on the same rows of k = 64 and V = 151,936, with a parquet file of `list<list<uint8>>`
columns, 18-bit ids and bfloat16 log-probabilities, which is how DistillKit (arcee-ai, v1.0.0) stores its top-k rows
with `exact_k = k`: once read as its trainer does (a `datasets` row, a tensor of its
Python lists, the bits unpacked by torch), once as fast as that file allows (pyarrow to numpy, vectorised). There is
no teacher of that vocabulary here: SmolLM2's ids, or else the microworld's, are spread over it by a seeded map.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from datamodules.batches.teacher_rows import collate_targets
from datamodules.examples.tokenization import Example
from datamodules.logit_cache.reader import LogitCache
from scripts.benchmarks.inputs import make_parser
from scripts.benchmarks.measure import Costs, Measurement, compare
from studies.inputs.cache_quality import Quality, plot_qualities
from studies.inputs.cache_runs import Run, open_microworld, open_smollm2

# Copies of the text make caches large enough for the manifest, which does not grow with them, to weigh little.
TOP_K, WIDE, COPIES = 64, 151_936, 32
ID_BITS = 18


def write_list_columns(cache: LogitCache, path: Path) -> None:
    """Writes a cache's rows as the peer does, one row group a hundred examples."""
    weights = 1 << np.arange(ID_BITS - 1, -1, -1)
    columns: dict[str, list[list[list[int]]]] = {"ids": [], "log_probs": []}
    for _, rows in cache.read_all():
        bits = (rows["support"][..., None] & weights > 0).reshape(len(rows["support"]), -1)
        columns["ids"].append(np.packbits(bits, axis=1).tolist())
        columns["log_probs"].append(torch.from_numpy(rows["log_probs"]).bfloat16().view(torch.uint8).tolist())
    schema = pa.schema([(name, pa.list_(pa.list_(pa.uint8()))) for name in columns])
    pq.write_table(pa.table(columns, schema), path, row_group_size=100)


def unpack_bits(packed: torch.Tensor) -> torch.Tensor:
    """Returns ids int64 [..., k] from bytes [..., 18 k / 8], most significant bit first, in torch."""
    bits = (packed.unsqueeze(-1) >> torch.arange(7, -1, -1)) & 1
    bits = bits.reshape(*packed.shape[:-1], -1, ID_BITS)
    return (bits * (1 << torch.arange(ID_BITS - 1, -1, -1))).sum(-1)


def read_cache(caches: dict[str, LogitCache], examples: list[Example]) -> int:
    """Reads a batch of examples; returns its number of rows."""
    return len(collate_targets(examples, caches)["support"])


def read_as_trainer(data: datasets.Dataset, number: int) -> int:
    """Reads one example as the peer's trainer does; returns its number of rows."""
    row = data[number]
    ids = unpack_bits(torch.tensor([row["ids"]]).to(torch.uint8))
    log_probs = torch.tensor([row["log_probs"]]).to(torch.uint8).view(torch.bfloat16)
    assert ids.shape == log_probs.shape
    return ids.shape[1]


def read_vectorised(file: pq.ParquetFile, group: int) -> int:
    """Reads a row group with neither Python lists nor torch; returns its number of rows."""
    table = file.read_row_group(group)
    planes = []
    for name in ("ids", "log_probs"):
        flat = table[name].combine_chunks().flatten().flatten().to_numpy()
        planes.append(flat.reshape(-1, TOP_K * (ID_BITS if name == "ids" else 16) // 8))
    bits = np.unpackbits(planes[0], axis=1).reshape(len(planes[0]), TOP_K, ID_BITS)
    padded = np.concatenate([np.zeros((*bits.shape[:2], 32 - ID_BITS), np.uint8), bits], axis=2)
    ids = np.packbits(padded, axis=2).view(">u4")[..., 0].astype(np.int64)
    log_probs = (planes[1].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert ids.shape == log_probs.shape
    return len(ids)


def race_readers(readers: Sequence[list[partial[int]]], seconds: float) -> list[Costs]:
    """Runs readers, lists of calls that return tokens, in turns of some calls; returns what each turn took."""
    costs = [Costs() for _ in readers]
    position = 0
    while min(sum(own.cpu) for own in costs) < seconds:
        for own, calls in zip(costs, readers, strict=True):
            start, wall, tokens = time.process_time(), time.perf_counter(), 0
            while time.process_time() - start < 0.2:
                tokens += calls[position % len(calls)]()
                position += 1
            own.add(time.perf_counter() - wall, time.process_time() - start, tokens)
    return costs


def measure_readers(run: Run, folder: Path, copies: int, seconds: float) -> Iterator[Measurement]:
    """Compares the readers on the same rows, each with one thread, in random order, from the page cache."""
    torch.set_num_threads(1)
    quality = run.write_wide(folder / "wide", WIDE, TOP_K, copies)
    cache = LogitCache(folder / "wide")
    write_list_columns(cache, folder / "lists.parquet")
    data = datasets.Dataset.from_parquet(str(folder / "lists.parquet"), cache_dir=str(folder / "datasets"))
    file = pq.ParquetFile(folder / "lists.parquet")
    _, examples = run.widen(WIDE, copies)
    order = np.random.default_rng(0).permutation(len(examples))
    caches = dict.fromkeys(cache, cache)
    batches = [[examples[n] for n in order[start : start + 32]] for start in range(0, len(order), 32)]
    ours, trainer, vectorised = race_readers(
        [
            [partial(read_cache, caches, batch) for batch in batches],
            [partial(read_as_trainer, data, int(number)) for number in order],
            [partial(read_vectorised, file, group) for group in range(file.num_row_groups)],
        ],
        seconds,
    )
    yield Measurement("reader_tokens_per_s", sum(ours.amounts) / sum(ours.cpu), "tokens/s")
    yield from compare("reader_vs_list_column", ours, trainer, "tokens/s")
    yield from compare("reader_vs_vectorised_parquet", ours, vectorised, "tokens/s")
    yield Measurement("bytes_per_token_top64_v151936", quality.bytes_per_token, "bytes/token")
    yield Measurement("decode_kl_mean", quality.kl_mean, "nats")
    yield Measurement("decode_kl_p99", quality.kl_p99, "nats")


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs all of it; see the module's docstring."""
    parser = make_parser("cache", __doc__)
    parser.add_argument("--smollm2", help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--rationales", nargs="+", help="published rationales, jsonl.gz; the first are scored")
    parser.add_argument("--questions", type=int, default=48, help="how many questions' rationales are read")
    parser.add_argument("--png", type=Path, help="bytes against KL and gradient angle")
    given = parser.parse_args(args)
    questions, copies, seconds = (4, 2, 0.2) if given.smoke else (given.questions, COPIES, 2.0)
    if (given.smollm2 is None) != (given.rationales is None):
        raise ValueError("--smollm2 and --rationales belong together")
    curves: dict[str, list[Quality]] = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = Path(temporary)
        runs = [open_microworld(questions)]
        if given.smollm2:
            published, greedy = open_smollm2(given.smollm2, given.rationales, questions)
            runs.append(published)
            [adaptive] = greedy.measure(folder / "greedy", copies, ["adaptive 0.99"])
            yield Measurement("adaptive_bytes_per_token_smollm2", adaptive.bytes_per_token, "bytes/token")
            yield Measurement("adaptive_kl_mean_smollm2", adaptive.kl_mean, "nats")
            yield Measurement("adaptive_support_smollm2", adaptive.support_mean, "tokens")
        yield from measure_readers(runs[-1], folder, copies, seconds)
        torch.set_num_threads(2)
        for run_ in runs:
            capture, plain = (Costs(*own) for own in run_.time_capture(folder / f"{run_.name}-capture"))
            name = "capture_overhead" if run_ is runs[-1] else f"capture_overhead_{run_.name}"
            yield from compare(name, capture, plain, "s/token")
            curves[run_.name] = run_.measure(folder / run_.name, copies)
    for title, qualities in curves.items():
        # Standard output is for measurements alone.
        print(Quality.format_all(qualities, title), file=sys.stderr)
    if given.png:
        plot_qualities(curves, given.png)
