"""A random 1B teacher in bf16: capture of its logits, and generation.

    capture_rows_per_second     of top 64, model and head, against the model's body alone
    generate BATCH WAY          tokens/s of greedy texts of 128 tokens, so many at a time, against dynamic
    generate_token BATCH WAY    milliseconds of one token of all texts
    generate_compile            seconds that the first compiled token takes, which all later shapes spare
    generate_record BATCH       seconds that CUDA graphs of a batch's shape take, once
    generate_equal WAY          share of greedy texts in float32, of 4 layers, that are those of dynamic

Shapes: B sequences of S tokens, N supervised rows.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from datamodules.logit_cache.format import CacheDescription, Sparsity
from lightning_modules.model.generation import generate_completions
from lightning_modules.model.output_head import run_body
from lightning_modules.model.pretrained import keep_only_layers
from lightning_modules.model.row_head import RowHead
from lightning_modules.model.static_decoding import StaticDecoder
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
    batches = (2,) if place.is_toy else GENERATED
    # Of different lengths, as questions are.
    prompts = [torch.randint(model.config.vocab_size, (PROMPT - row % 9,)).tolist() for row in range(max(batches))]
    ways: dict[str, StaticDecoder | None] = {
        "dynamic": None,
        "static": StaticDecoder(model),
        "compiled": StaticDecoder(model, place.compiler),
    }
    write = partial(generate_completions, model, end_ids=[])
    first = place.time(lambda: write(prompts[: batches[0]], max_new_tokens=2, decoder=ways["compiled"]), 1, 0)
    yield Measurement("generate_compile", first, "s")
    for batch in batches:
        speeds: dict[str, float] = {}
        for way, decoder in ways.items():
            call = partial(write, prompts[:batch], max_new_tokens=new_tokens, decoder=decoder)
            warm_up = place.time(call, 1, 0)
            seconds = place.time(call, 1, 0)
            speeds[way] = batch * new_tokens / seconds
            yield Measurement.against(f"generate {batch} {way}", speeds[way], speeds["dynamic"], "tokens/s")
            yield Measurement(f"generate_token {batch} {way}", 1000 * seconds / new_tokens, "ms")
        yield Measurement(f"generate_record {batch}", warm_up - seconds, "s")
    yield from compare_texts(place, prompts, new_tokens)


def compare_texts(place: Place, prompts: Sequence[Sequence[int]], new_tokens: int) -> Iterator[Measurement]:
    """Yields how many texts are the same whichever way they are generated."""
    model = build_student(place).eval().requires_grad_(False)
    keep_only_layers(model, list(range(min(4, model.config.num_hidden_layers))))
    model.generation_config.eos_token_id = None
    wanted = generate_completions(model, prompts, [], new_tokens)
    for way, backend in (("static", None), ("compiled", place.compiler)):
        found = generate_completions(model, prompts, [], new_tokens, decoder=StaticDecoder(model, backend))
        equal = sum(one == other for one, other in zip(found, wanted, strict=True))
        yield Measurement.against(f"generate_equal {way}", equal / len(wanted), 1.0, "of the texts")
