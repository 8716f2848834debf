"""Diagnostics: a question's rationales read after one pass over its prompt, against one forward pass a rationale.

    python -m scripts.benchmark diagnose --smollm2 FILE.gguf --rationales FILE.jsonl.gz

The baseline reads prompt and rationale anew for each teacher, as released code does: the model's own forward, its whole
logits, surprisal, rank and entropy of the completion's rows. Both score the same texts with the same loaded weights.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.tasks.prompts import get_prompt
from lightning_modules.model.row_head import RowHead
from scripts.benchmarks.measure import Measurement
from studies.design.grid import StudentSpec
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.scoring import Span, score_rows, score_spans
from studies.diagnostics.sources import TaskSource, load_task


@torch.inference_mode()
def score_naively(model: Any, prompt_ids: list[int], token_ids: list[int]) -> np.ndarray:
    """Returns the surprisal of a completion's tokens, from one forward pass of its own."""
    logits_SV = model(torch.tensor([[*prompt_ids, *token_ids]])).logits[0]
    labels_N = torch.tensor(token_ids)
    nll_N, _, _ = score_rows(logits_SV[len(prompt_ids) - 1 : -1].float(), labels_N)
    return nll_N.numpy()


def run(args: Sequence[str]) -> Iterator[Measurement]:
    """Runs it; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark diagnose")
    parser.add_argument("--smollm2", required=True, help="the student: SmolLM2-135M-Instruct as GGUF, or any other")
    parser.add_argument("--rationales", required=True, help="a published collection")
    parser.add_argument("--number", type=int, default=8, help="how many questions")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parsed = parser.parse_args(args)
    data = load_task("benchmark", TaskSource(parsed.rationales, [parsed.rationales]), parsed.number, 0)
    by_id = {question.id: question for question in data.questions}
    spec = StudentSpec(parsed.smollm2, "smollm2")
    reader = StudentReader(spec, get_prompt("instruction"), Path(), "benchmark", "float32", parsed.tokens_per_batch)
    texts = reader.prepare([(by_id[item.question_id], item) for items in data.rationales.values() for item in items])
    texts.sort(key=lambda text: text.question.id)
    groups = [list(group) for _, group in groupby(texts, key=lambda text: text.question.id)]
    head = RowHead(reader.model)
    # The probe of the split, and whatever the first call warms up, are no one's.
    score_spans(head, [1, 2], [Span([3, 4])], 8)
    ours = naive = 0.0
    differences = []
    for group in groups:
        prompt_ids = reader.prompts[group[0].question.id]
        start = time.perf_counter()
        scores = score_spans(head, prompt_ids, [Span(text.token_ids) for text in group], parsed.tokens_per_batch)
        middle = time.perf_counter()
        expected = [score_naively(reader.model, prompt_ids, text.token_ids) for text in group]
        ours, naive = ours + middle - start, naive + time.perf_counter() - middle
        differences += [np.abs(score.nll - nll).max() for score, nll in zip(scores, expected, strict=True)]
    tokens = sum(len(text.token_ids) for text in texts)
    yield Measurement.against("diagnose_vs_one_by_one", tokens / ours, tokens / naive, "completion tokens/s")
    yield Measurement("diagnose_greatest_difference", float(np.max(differences)), "nats")
