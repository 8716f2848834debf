"""Diagnostics: a question's rationales read after one pass over its prompt, against one forward pass a rationale.

    python -m scripts.benchmark diagnose
    python -m scripts.benchmark diagnose --model MODEL --rationales FILE.jsonl.gz

The baseline reads prompt and rationale anew for each teacher, as released code does: the model's own forward, its whole
logits, surprisal, rank and entropy of the completion's rows. Both score the same texts with the same loaded weights.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.tasks.prompts import get_prompt
from lightning_modules.model.row_head import RowHead
from scripts.benchmarks.inputs import find_model, make_parser, write_texts
from scripts.benchmarks.measure import Costs, Measurement, compare
from studies.design.grid import StudentSpec
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.scoring import Span, score_rows, score_spans
from studies.diagnostics.sources import TaskSource, load_task


@torch.inference_mode()
def score_naively(model: Any, prompt_ids: list[int], completions: list[list[int]]) -> list[np.ndarray]:
    """Returns the surprisal of each completion's tokens, from one forward pass of its own."""
    found = []
    for token_ids in completions:
        logits_SV = model(torch.tensor([[*prompt_ids, *token_ids]])).logits[0]
        nll_N, _, _ = score_rows(logits_SV[len(prompt_ids) - 1 : -1].float(), torch.tensor(token_ids))
        found.append(nll_N.numpy())
    return found


def run(args: Sequence[str]) -> Iterator[Measurement]:
    """Runs it; see the module's docstring."""
    parser = make_parser("diagnose", __doc__)
    parser.add_argument(
        "--model", help="the student: a name, folder or GGUF file; null is SmolLM2 where it is installed"
    )
    parser.add_argument("--rationales", help="a published collection; null is texts of the microworld")
    parser.add_argument("--number", type=int, default=8, help="how many questions")
    parser.add_argument("--tokens-per-batch", type=int, default=512)
    parsed = parser.parse_args(args)
    if parsed.smoke:
        parsed.number = 2
    model = find_model(parsed.model, parsed.smoke)
    with tempfile.TemporaryDirectory() as folder:
        rationales = parsed.rationales or write_texts(Path(folder) / "microworld.jsonl", parsed.number)
        data = load_task("benchmark", TaskSource(rationales, [rationales]), parsed.number, 0)
    by_id = {question.id: question for question in data.questions}
    spec = StudentSpec(model, "benchmark")
    reader = StudentReader(spec, get_prompt("instruction"), Path(), "benchmark", "float32", parsed.tokens_per_batch)
    texts = reader.prepare([(by_id[item.question_id], item) for items in data.rationales.values() for item in items])
    texts.sort(key=lambda text: text.question.id)
    groups = [list(group) for _, group in groupby(texts, key=lambda text: text.question.id)]
    head = RowHead(reader.model)
    # The probe of the split, and whatever the first call warms up, are no one's.
    score_spans(head, [1, 2], [Span([3, 4])], 8)
    ours, naive, differences = Costs(), Costs(), []
    for group in groups:
        prompt_ids, ids = reader.prompts[group[0].question.id], [text.token_ids for text in group]
        read = partial(score_spans, head, prompt_ids, list(map(Span, ids)), parsed.tokens_per_batch)
        scores = ours.time(read, sum(map(len, ids)))
        expected = naive.time(partial(score_naively, reader.model, prompt_ids, ids), sum(map(len, ids)))
        differences += [np.abs(score.nll - nll).max() for score, nll in zip(scores, expected, strict=True)]
    yield from compare("diagnose_vs_one_by_one", ours, naive, "completion tokens/s")
    yield Measurement("diagnose_greatest_difference", float(np.max(differences)), "nats")
