"""Teachers, students and texts on which logit caches are measured: the microworld's, and SmolLM2's own."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.batches.packing import PredictionSampler, collate_examples
from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.tokenization import (
    PROMPT,
    Example,
    build_examples,
    encode_prompt,
    fingerprint_tokenizer,
    load_tokenizer,
)
from datamodules.logit_cache.format import CacheDescription, Sparsity
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.rationales.store import Rationale, drop_truncated, load_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question, load_questions
from lightning_modules.model.generation import generate_completions
from lightning_modules.model.pretrained import load_causal_lm
from lightning_modules.model.row_head import RowHead
from lightning_modules.teacher.teacher import LogitScorer
from studies.inputs.cache_quality import Quality, Variant, compute_truths, list_sparsities

MICROWORLD = Path(__file__).parents[2] / "configs" / "models" / "microworld"
# SmolLM2 without a third of its middle layers stands for a student before it is trained.
SMOLLM2_STUDENT = [*range(10), *range(20, 30)]


@dataclass(frozen=True)
class Run:
    """A teacher that reads a text, and a student that would learn from it.

    Attributes:
        name: What tables call it.
        teacher: The teacher's path.
        model: The teacher, loaded.
        student: The student's model.
        tokenizer: Of both.
        examples: The text.
    """

    name: str
    teacher: str
    model: Any
    student: Any
    tokenizer: Any
    examples: list[Example]

    def describe(self, sparsity: Sparsity) -> tuple[LogitScorer, CacheDescription]:
        """Returns a scorer of such a cache, with the model in it, and the cache's description."""
        given = {name: value for name, value in vars(sparsity).items() if value is not None}
        scorer = LogitScorer(self.teacher, **given)
        scorer.model, scorer._head = self.model, RowHead(self.model)
        fingerprint = fingerprint_tokenizer(self.tokenizer)
        return scorer, scorer.describe(fingerprint, "benchmark", len(self.tokenizer))

    def widen(self, vocabulary: int, copies: int) -> tuple[np.ndarray, list[Example]]:
        """Returns a seeded injective map into a larger vocabulary, and the examples in it, several times over."""
        id_map = np.random.default_rng(0).permutation(vocabulary)[: len(self.tokenizer)]
        wide = [replace(example, token_ids=id_map[example.token_ids].astype(np.int32)) for example in self.examples]
        return id_map, [replace(example, id=f"{example.id}-{copy}") for copy in range(copies) for example in wide]

    def measure(self, folder: Path, copies: int, names: Sequence[str] | None = None) -> list[Quality]:
        """Writes a cache of each kind of `list_sparsities`, of so many copies of the text, and measures it."""
        sparsities = list_sparsities(len(self.tokenizer))
        variants = [
            Variant(name, self.describe(sparsities[name])[1], folder / name, copies=copies)
            for name in names or list(sparsities)
        ]
        return self._compare(variants)

    def write_wide(self, folder: Path, vocabulary: int, top_k: int, copies: int) -> Quality:
        """Writes a top-k cache of the examples in a larger vocabulary, `widen`'s, and measures it."""
        id_map, _ = self.widen(vocabulary, 0)
        made = self.describe(Sparsity.resolve("top_k", top_k=top_k))[1]
        wide = replace(made, vocabulary=vocabulary)
        return self._compare([Variant("wide", wide, folder, id_map, copies)])[0]

    def _compare(self, variants: list[Variant]) -> list[Quality]:
        teacher, student = RowHead(self.model), RowHead(self.student)
        full_VD: torch.Tensor | float = 0.0
        for truth in compute_truths(teacher, student, self.examples, len(self.tokenizer)):
            full_VD = full_VD + (truth.q_NV - truth.logits_NV.softmax(-1)).T @ truth.student_ND
            for variant in variants:
                variant.add(truth, teacher)
        assert isinstance(full_VD, torch.Tensor)
        return [variant.finish(self.tokenizer, full_VD) for variant in variants]

    def time_capture(self, folder: Path) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
        """Times capture of the text, top_k 64, and the teacher's plain forward.

        They take turns, batch by batch, on the batches of `tokens_per_batch` 2048.

        Returns:
            For capture and for the forward: of each batch the wall's seconds a token, and the processor's.
        """
        scorer, made = self.describe(Sparsity.resolve("top_k"))
        writer = LogitCacheWriter(folder, made)
        by_id = {example.id: example for example in self.examples}
        lengths = [len(example.token_ids) for example in self.examples]
        batches = [
            collate_examples([self.examples[number] for number in numbers])
            for numbers in PredictionSampler(lengths, 2048, rank=0, world_size=1)
        ]
        clocks = []
        for batch in [batches[0], *batches]:
            clocks.append([(time.perf_counter(), time.process_time())])
            self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            clocks[-1].append((time.perf_counter(), time.process_time()))
            writer.add([(by_id[example_id], rows) for example_id, rows in scorer.score(batch, made)])
            writer.flush()
            clocks[-1].append((time.perf_counter(), time.process_time()))
        # The first fills caches.
        tokens = np.array([batch["attention_mask"].sum() for batch in batches])
        ends = np.diff(np.array(clocks[1:]), axis=1) / tokens[:, None, None]
        plain, capture = ((ends[:, side, 0].tolist(), ends[:, side, 1].tolist()) for side in (0, 1))
        return capture, plain


def _answer(model: Any, tokenizer: Any, prompt_name: str, questions: list[Question], num_tokens: int) -> list[Example]:
    """Returns the model's own greedy completions, as examples."""
    prompt, end_ids = get_prompt(prompt_name), find_end_tokens(tokenizer)
    examples = []
    for start in range(0, len(questions), 16):
        part = questions[start : start + 16]
        prompts = [encode_prompt(tokenizer, prompt, question)[1] for question in part]
        completions = generate_completions(model, prompts, end_ids, num_tokens)
        for question, ids, (completion, _) in zip(part, prompts, completions, strict=True):
            tokens = np.array([*ids, *completion, end_ids[0]], np.int32)
            segments = np.full(len(tokens), PROMPT + 1, np.int8)
            segments[: len(ids)] = PROMPT
            examples.append(Example(f"{question.id}/own/0", question.id, tokens, segments, "0" * 16, "0" * 16))
    return examples


def open_microworld(number: int) -> Run:
    """The microworld's teacher a reads its own greedy rationales; its student is the family's."""
    teacher = str(MICROWORLD / "a-teacher")
    model, tokenizer = load_causal_lm(teacher), load_tokenizer(teacher)
    questions = load_questions(f"microworld:train:{number}:0")
    examples = _answer(model, tokenizer, "plain", questions, 96)
    student = load_causal_lm(str(MICROWORLD / "a-student"))
    return Run("microworld", teacher, model, student, tokenizer, examples)


def build_published(tokenizer: Any, path: str, number: int) -> list[Example]:
    """Returns examples of a published collection's first questions, one of a GPT's rationales each."""
    questions = {question.id: question for question in load_questions(path)}
    first = list(questions.values())[:number]
    chosen: dict[str, Rationale] = {}
    for rationale in drop_truncated(load_rationales([path], questions), path, keep=False):
        if "gpt" in rationale.teacher:
            chosen.setdefault(rationale.question_id, rationale)
    pairs = [(question, chosen[question.id]) for question in first if question.id in chosen]
    return build_examples(tokenizer, get_prompt("instruction"), pairs)


def open_smollm2(path: str, rationales: Sequence[str], number: int) -> tuple[Run, Run]:
    """SmolLM2 reads a teacher's rationales of the first published collection, and its own greedy ones, on them all."""
    model, tokenizer = load_causal_lm(path), load_tokenizer(path)
    student = load_causal_lm(path, keep_layers=SMOLLM2_STUDENT)
    published = build_published(tokenizer, rationales[0], number)
    posed = [question for path_ in rationales for question in load_questions(path_)[: number // 2]]
    own = _answer(model, tokenizer, "cot", posed, 128)
    return (
        Run("SmolLM2-135M, published rationales", path, model, student, tokenizer, published),
        Run("SmolLM2-135M, its own rationales", path, model, student, tokenizer, own),
    )
