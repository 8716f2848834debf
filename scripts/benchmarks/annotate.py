"""Annotation: a teacher that answers many questions at once, against one `generate` call a question.

    python -m scripts.benchmark annotate
    python -m scripts.benchmark annotate --model MODEL --questions FILE.jsonl.gz

The baseline is what a script written in an afternoon does: transformers' own `generate`, greedy, with its key-value
cache, one prompt after another. Both answer the same questions with the same loaded weights and the same greatest
length, in turns; the share of equal texts says that both do the same work.
"""

from collections.abc import Iterator
from typing import Any

import torch

from datamodules.annotation import QuestionDataModule
from lightning_modules.teacher.backends import Decoding, Request, Source, TransformersBackend
from scripts.benchmarks.inputs import find_model, make_parser
from scripts.benchmarks.measure import Measurement, compare, generate_alone, race


def annotate_naively(model: Any, tokenizer: Any, requests: list[Request], max_new_tokens: int) -> dict[str, str]:
    """Generates one completion after another; returns the texts by question."""
    texts = {}
    for request in requests:
        with torch.inference_mode():
            ids = generate_alone(model, request.prompt_ids, max_new_tokens)
        texts[request.question_id] = tokenizer.decode(ids, skip_special_tokens=True)
    return texts


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs it; see the module's docstring."""
    parser = make_parser("annotate", __doc__)
    parser.add_argument(
        "--model", help="the teacher: a name, folder or GGUF file; null is SmolLM2 where it is installed"
    )
    parser.add_argument("--questions", default="microworld:train:16:0", help="a source of questions")
    parser.add_argument("--number", type=int, default=16, help="how many questions")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parsed = parser.parse_args(args)
    if parsed.smoke:
        parsed.number, parsed.max_new_tokens, parsed.repeats = 2, 8, 2
    model = find_model(parsed.model, parsed.smoke)
    data = QuestionDataModule(model, parsed.questions, limit=parsed.number)
    data.setup("predict")
    backend = TransformersBackend()
    backend.load(Source(model, None, "float32", None), data.tokenizer)
    decoding = Decoding(parsed.max_new_tokens, 0.0, (), 0)
    requests = [Request(item.question.id, 0, item.text, tuple(item.prompt_ids)) for item in data.posed.values()]
    ours, naive, found, texts = race(
        lambda: {request.question_id: completion for request, completion in backend.generate(requests, decoding)},
        lambda: annotate_naively(backend.model, data.tokenizer, requests, parsed.max_new_tokens),
        parsed.repeats,
        amount=len(requests),
    )
    tokens = sum(completion.num_completion_tokens or 0 for completion in found.values())
    equal = sum(found[identifier].text == text for identifier, text in texts.items())
    yield from compare("annotate_vs_naive", ours, naive, "questions/s")
    yield Measurement("annotate_tokens_per_s", tokens / min(ours.wall), "tokens/s")
    yield Measurement("annotate_equal_texts", equal / len(texts), "share")
