"""A random 1B teacher in bf16: capture of its logits, and generation.

    capture_rows_per_second     of top 64, model and head, against the model's body alone
    generate BATCH              tokens/s of greedy texts of 128 tokens, so many at a time
    generate_token BATCH        milliseconds of one token of all texts

Shapes: B sequences of S tokens, N supervised rows.
"""

from collections.abc import Iterator
from functools import partial

import torch

from datamodules.logit_cache.format import CacheDescription, Sparsity
from lightning_modules.model.generation import generate_completions
from lightning_modules.model.output_head import run_body
from lightning_modules.model.row_head import RowHead
from lightning_modules.teacher.sparsify import reduce_rows
from scripts.benchmarks.device.place import Place
from scripts.benchmarks.device.steps import build_student
from scripts.benchmarks.measure import Measurement

BATCH, LENGTH, NEW_TOKENS, PROMPT = 16, 1024, 128, 200
GENERATED = (16, 128)


@torch.inference_mode()
def measure_capture(place: Place) -> Iterator[Measurement]:
    """Yields how fast rows are captured."""
    model = build_student(place).eval().requires_grad_(False).bfloat16()
    batch, length = (2, 32) if place.is_toy else (BATCH, LENGTH)
    vocabulary = model.config.vocab_size
    ids_BS = torch.randint(vocabulary, (batch, length), device=place.device)
    rows_N = torch.arange(batch * length, device=place.device).view(batch, length)[:, length // 4 : -1].flatten()
    labels_N = ids_BS.flatten()[rows_N + 1]
    names, counts = [str(number) for number in range(batch)], [len(rows_N) // batch] * batch
    sparsity = Sparsity.resolve("top_k", top_k=64)
    made = CacheDescription("random", "r", "t", "p", vocabulary, (1.0, 2.0), "bfloat16", sparsity)
    head = RowHead(model)
    inputs = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS), "rows": rows_N}
    body = place.time(lambda: run_body(model, ids_BS, None), repeats=3)
    seconds = place.time(
        lambda: reduce_rows(head.run(inputs).iterate_logits(), labels_N, made, names, counts), repeats=3
    )
    yield Measurement.against("capture_rows_per_second", len(rows_N) / seconds, len(rows_N) / body, "rows/s")


def measure_generation(place: Place) -> Iterator[Measurement]:
    """Yields how fast texts are generated."""
    model = build_student(place).eval().requires_grad_(False).bfloat16()
    model.generation_config.eos_token_id = None
    new_tokens = 4 if place.is_toy else NEW_TOKENS
    for batch in (2,) if place.is_toy else GENERATED:
        # Of different lengths, as questions are.
        prompts = [torch.randint(model.config.vocab_size, (PROMPT - row % 9,)).tolist() for row in range(batch)]
        seconds = place.time(partial(generate_completions, model, prompts, [], new_tokens), repeats=1)
        yield Measurement(f"generate {batch}", batch * new_tokens / seconds, "tokens/s")
        yield Measurement(f"generate_token {batch}", 1000 * seconds / new_tokens, "ms")
