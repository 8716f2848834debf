"""Evaluation: all of a batch's answers and options together, against one question and one option at a time.

    python -m scripts.benchmark evaluate
    python -m scripts.benchmark evaluate --model MODEL --questions FILE.jsonl.gz

The baseline is what a script written in an afternoon does: for each question transformers' own `generate`, greedy, with
its key-value cache, and for each option one forward pass over prompt and option. Both run the same loaded weights on
the same questions with the same greatest length, in turns; how far the answers and log-likelihoods agree says that both
do the same work.
"""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch

from datamodules.evaluation import EvaluationDataModule
from lightning_modules.evaluation.evaluator import Evaluator
from scripts.benchmarks.inputs import find_model, make_parser
from scripts.benchmarks.measure import Measurement, compare, generate_alone, race

TRAINER: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "use_distributed_sampler": False,
}


@torch.inference_mode()
def evaluate_naively(model: Any, data: EvaluationDataModule, max_new_tokens: int) -> dict[str, tuple[str, list[float]]]:
    """Returns each question's completion and its options' log-likelihoods."""
    found = {}
    for identifier, posed in data.posed.items():
        ids = generate_alone(model, posed.prompt_ids, max_new_tokens)
        text = data.tokenizer.decode(ids, skip_special_tokens=True).strip()
        scores = []
        for ending in data.options[identifier].ending_ids:
            own = torch.tensor([posed.prompt_ids + ending], device=model.device)
            log_p_LV = model(own).logits[0, -len(ending) - 1 : -1].float().log_softmax(-1)
            scores.append(log_p_LV.gather(-1, own[0, -len(ending) :, None]).sum().item())
        found[identifier] = text, scores
    return found


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs it; see the module's docstring."""
    parser = make_parser("evaluate", __doc__)
    parser.add_argument(
        "--model", help="the student: a name, folder or GGUF file; null is SmolLM2 where it is installed"
    )
    parser.add_argument("--questions", default="microworld:test:16:0", help="a source of questions")
    parser.add_argument("--number", type=int, default=16, help="how many questions")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parsed = parser.parse_args(args)
    if parsed.smoke:
        parsed.number, parsed.max_new_tokens, parsed.repeats = 2, 6, 2
    model = find_model(parsed.model, parsed.smoke)
    data = EvaluationDataModule(model, parsed.questions, limit=parsed.number)
    data.setup("predict")
    evaluator = Evaluator(model, max_new_tokens=parsed.max_new_tokens, runtime="transformers")
    evaluator.configure_model()
    ours, naive, batches, expected = race(
        lambda: L.Trainer(**TRAINER).predict(evaluator, data),
        lambda: evaluate_naively(evaluator.model, data, parsed.max_new_tokens),
        parsed.repeats,
        amount=len(data.posed),
    )
    records = [record for batch in batches or [] for record in batch]
    yield from compare("evaluate_vs_naive", ours, naive, "questions/s")
    equal, differences = 0, []
    for record in records:
        text, scores = expected[record["question_id"]]
        equal += record["completion"] == text
        pairs = zip(record["option_log_likelihoods"], scores, strict=True)
        differences += [abs(one - other) for one, other in pairs]
    yield Measurement("evaluate_equal_texts", equal / len(records), "share")
    yield Measurement("evaluate_likelihood_difference", max(differences), "nats at most")
