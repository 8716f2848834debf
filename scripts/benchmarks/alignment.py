"""A teacher's cached rows in another tokenizer's vocabulary: how fast they are converted, and what the cut costs.

    python -m scripts.benchmark alignment
    python -m scripts.benchmark alignment --model MODEL --rationales FILE.jsonl.gz
    python -m scripts.benchmark alignment --smoke      # the microworld's teacher a for its student b, in seconds

The teacher reads texts, its top 64 tokens are kept, and its rows are converted for students with other tokenizers:
those of the packages anthropic (before 0.39) and mistral-common where they are installed, and of `--tokenizers`. Lines,
one for each pair, and last the worst of all:

    alignment_rows_per_s    rows of the student's by second of the processor's time, one thread, batches of 8,192 rows
    alignment_scatter_kl    mean over exact rows of KL(all of the teacher's vocabulary || its top 64), converted, of
                            the latter's tokens and the rest, in nats
    cross_step_vs_same_step the processor's time of a step of the microworld's student b, its loading included, with
                            targets from a against targets from b
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.batches.packing import collate_examples
from datamodules.examples.alignment import EXACT, STRICT, Alignment, align
from datamodules.examples.encoding import encode_texts, find_end_tokens
from datamodules.examples.tokenization import Example, load_tokenizer
from datamodules.logit_cache.conversion import RowConverter
from datamodules.model_sources import name_model
from datamodules.text.token_bytes import VocabularyBytes, read_vocabulary
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.model.row_head import RowHead
from scripts.benchmarks.inputs import find_model, make_parser, write_texts
from scripts.benchmarks.measure import Measurement
from studies.inputs.cache_runs import MICROWORLD, build_published
from studies.inputs.cross_steps import measure_cross_steps

TOP_K, BATCH_ROWS = 64, 8192
PACKAGES = {"claude": ("anthropic", "tokenizer.json"), "mistral": ("mistral_common", "data/tokenizer.model.v1")}


class Text(NamedTuple):
    """A completion, and what the teacher thinks of it."""

    ids: np.ndarray
    text: str
    log_probs: np.ndarray


def find_packaged(folder: Path) -> Iterator[tuple[str, PreTrainedTokenizerBase]]:
    """Yields the tokenizers of installed packages; says on stderr which are not installed."""
    for name, (package, file) in PACKAGES.items():
        spec = find_spec(package)
        path = Path(spec.submodule_search_locations[0]) / file if spec and spec.submodule_search_locations else None
        if path is None or not path.is_file():
            print(f"skipped {name}: no {file} of the package {package.replace('_', '-')} is installed", file=sys.stderr)
        elif path.suffix == ".json":
            added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
            yield name, PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=added[0]["content"])
        else:
            (folder / name).mkdir()
            (folder / name / "tokenizer.model").write_bytes(path.read_bytes())
            special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
            config = json.dumps({"tokenizer_class": "LlamaTokenizer", **special})
            (folder / name / "tokenizer_config.json").write_text(config)
            yield name, load_tokenizer(str(folder / name))


def score(model: Any, examples: Sequence[Example], vocabulary: VocabularyBytes) -> Iterator[Text]:
    """Yields the examples' completions with the teacher's log-probabilities, float32 [rows, V]."""
    head = RowHead(model)
    for example in examples:
        ids = example.token_ids[example.num_prompt_tokens :]
        logits = torch.cat(list(head.run(collate_examples([example])).iterate_logits()))[:, : len(vocabulary)]
        yield Text(ids, vocabulary.join(ids).decode().strip(), logits.log_softmax(-1).numpy())


def keep_top(text: Text) -> dict[str, np.ndarray]:
    """Returns the rows of a top-k cache, without its quantisation."""
    order = np.argsort(-text.log_probs, axis=1)[:, :TOP_K].astype(np.int32)
    log_probs = np.take_along_axis(text.log_probs, order, 1)
    tails = np.log(np.maximum(1 - np.exp(log_probs.astype(np.float64)).sum(1, keepdims=True), 2.0**-24))
    own = text.log_probs[np.arange(len(text.ids)), text.ids]
    rows = {"token_ids": text.ids, "label_log_prob": own, "support": order, "log_probs": log_probs}
    return rows | {"log_normalizers": np.zeros_like(tails, np.float32), "log_tails": tails.astype(np.float32)}


def compare_cut(
    text: Text, table: np.ndarray, alignment: Alignment, planes: dict[str, np.ndarray], size: int
) -> list[float]:
    """Returns KL(all || cut) of each exact row, over the cut's tokens and the rest."""
    divergences = []
    for row in np.flatnonzero(np.isin(alignment.classes, [STRICT, EXACT]) & planes["has_target"]):
        p = np.exp(text.log_probs[alignment.governing[row]].astype(np.float64))
        whole = np.bincount(table % (size + 1), p, minlength=size + 1)
        used = planes["support"][row] >= 0
        cells = whole[planes["support"][row][used]]
        cut = np.append(planes["log_probs"][row, used, 0], planes["log_tails"][row, 0]).astype(np.float64)
        cells = np.append(cells, whole.sum() - cells.sum())
        divergences.append(float((cells * (np.log(np.maximum(cells, 1e-300)) - cut)).sum()))
    return divergences


def measure(
    pair: str, teacher: VocabularyBytes, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], seconds: float
) -> Iterator[Measurement]:
    """Measures one pair of vocabularies."""
    end, *others = find_end_tokens(tokenizer)
    student, parts, divergences = read_vocabulary(tokenizer, [end, *others]), [], list[float]()
    converters = {
        kind: RowConverter(teacher, student, end, kind="top_k", temperatures=[1.0], alignment=kind, spans="chain")
        for kind in ("strict", "bytes")
    }
    for text in texts:
        labels = np.array([*encode_texts(tokenizer, [text.text])[0].ids, end], np.int32)
        if (alignment := align(labels, text.ids, student, teacher)) is not None:
            parts.append((keep_top(text), alignment, labels))
            planes = converters["bytes"].convert(parts[-1][0], [alignment], labels)
            table = converters["bytes"].table
            divergences += compare_cut(text, table, alignment, planes, len(student))
    copies = -(-BATCH_ROWS // sum(len(labels) for _, _, labels in parts))
    rows = {name: np.concatenate([part[name] for part, _, _ in parts] * copies) for name in parts[0][0]}
    alignments = [alignment for _, alignment, _ in parts] * copies
    labels = np.concatenate([labels for _, _, labels in parts] * copies)
    for kind, converter in converters.items():
        converter.convert(rows, alignments, labels)
        start, calls = time.process_time(), 0
        while time.process_time() - start < seconds:
            converter.convert(rows, alignments, labels)
            calls += 1
        speed = calls * len(labels) / (time.process_time() - start)
        yield Measurement(f"alignment_rows_per_s {pair} {kind}", speed, "rows/s")
    yield Measurement(f"alignment_scatter_kl {pair}", float(np.mean(divergences)), "nats")


def run(args: list[str]) -> Iterator[Measurement]:
    """Measures every pair; see the module's docstring."""
    parser = make_parser("alignment", __doc__)
    parser.add_argument(
        "--model", help="the teacher: a name, folder or GGUF file; null is SmolLM2 where it is installed"
    )
    parser.add_argument(
        "--rationales", help="published rationales that a GPT wrote, jsonl.gz; null is the microworld's"
    )
    parser.add_argument("--tokenizers", nargs="*", default=[], help="of further students: names or folders")
    parser.add_argument("--questions", type=int, default=24, help="how many questions' rationales are read")
    given = parser.parse_args(args)
    source = find_model(given.model, given.smoke)
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, tokenizer = load_causal_lm(source), load_tokenizer(source)
        questions = 8 if given.smoke else given.questions
        texts_path = given.rationales or write_texts(Path(folder) / "microworld.jsonl", questions)
        examples = build_published(tokenizer, texts_path, questions)
        # A model of the microworld's own, smoke or not, teaches a student of the other family.
        name, students = name_model(source), [(path, load_tokenizer(path)) for path in given.tokenizers]
        if Path(source).parent == MICROWORLD:
            students.append(("b", load_tokenizer(str(MICROWORLD / "b-student"))))
        else:
            students += find_packaged(Path(folder))
        teacher = read_vocabulary(tokenizer, find_end_tokens(tokenizer))
        texts = list(score(model, examples, teacher))
        for student_name, student in students:
            for measurement in measure(f"{name} {student_name}", teacher, student, texts, 0.1 if given.smoke else 2.0):
                found.append(measurement)
                yield measurement
    for metric, worst in (("alignment_rows_per_s", min), ("alignment_scatter_kl", max)):
        if values := [one for one in found if one.name.startswith(metric)]:
            yield Measurement(metric, worst(one.value for one in values), values[0].unit)
    steps = {
        kind: 1e3 * seconds for kind, seconds in measure_cross_steps(*((16, 1) if given.smoke else (256, 4))).items()
    }
    same = steps.pop("refuse")
    for kind, milliseconds in steps.items():
        yield Measurement.against(f"cross_step_vs_same_step {kind}", milliseconds, same, "ms")
    yield Measurement.against("cross_step_vs_same_step", max(steps.values()), same, "ms")
