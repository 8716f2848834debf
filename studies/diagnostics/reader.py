"""One student reads one task's rationales: scores, own answers and gradients, each computed once and kept."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from datamodules.batches.teacher_rows import collate_targets
from datamodules.examples.encoding import decode_completion, find_end_tokens
from datamodules.examples.tokenization import (
    Example,
    build_examples,
    encode_completions,
    encode_prompts,
    load_tokenizer,
)
from datamodules.files.atomic import hash_path, hash_text
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.token_map import TokenMap
from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import Prompt, get_prompt
from datamodules.tasks.questions import Question
from datamodules.text.thinking import split_thinking
from datamodules.text.token_bytes import read_vocabulary
from lightning_modules.model.generation import generate_completions
from lightning_modules.model.pretrained import Dtype, check_model, identify_weights, load_causal_lm
from lightning_modules.model.row_head import RowHead
from lightning_modules.student.cached_targets import KINDS, build_target
from losses.targets import SparseTarget
from studies.design.grid import StudentSpec
from studies.diagnostics.alignment import CacheAligner
from studies.diagnostics.directions import measure_direction
from studies.diagnostics.gradients import GradientSketch, compute_loss
from studies.diagnostics.overlap import count_overlap, find_tops
from studies.diagnostics.records import complete_records
from studies.diagnostics.scoring import Span, score_spans
from studies.diagnostics.texts import AlignedText, Direction, Overlap, Reading, Text, build_texts, name_question

PLANES = ("nll", "rank", "entropy", "alone", "local", "kl", "mass", "agreement")
SCORES = pa.schema([("key", pa.string()), *((name, pa.list_(pa.float32())) for name in PLANES)])
GRADIENTS = pa.schema([("key", pa.string()), ("square", pa.float64()), ("sketch", pa.list_(pa.float32()))])
DIRECTIONS = pa.schema(
    [("key", pa.string()), ("cosine", pa.float64()), ("divergent", pa.int64()), ("rows", pa.int64())]
)
OVERLAPS = pa.schema([("key", pa.string()), ("shared", pa.int64()), ("states", pa.int64())])
OWN = pa.schema([("key", pa.string()), ("text", pa.string())])
QUESTIONS_PER_BATCH = 16


class StudentReader:
    """Holds a student, which is loaded only if something has to be computed.

    Args:
        spec: The student.
        prompt: What it reads before a rationale.
        folder: Where records are kept.
        name: Of the student and the task, in the records' file names.
        dtype: Of the weights in memory.
        tokens_per_batch: Budget in padded tokens.
    """

    def __init__(self, spec: StudentSpec, prompt: Prompt, folder: Path, name: str, dtype: Dtype, tokens_per_batch: int):
        self.spec, self.prompt, self.folder, self.name = spec, prompt, folder, name
        self.dtype: Dtype = dtype
        self.tokens_per_batch = tokens_per_batch
        self.tokenizer = load_tokenizer(spec.model)

    @cached_property
    def model(self) -> Any:
        """The model, in evaluation mode, on the accelerator if there is one."""
        return self._load(self.spec.model, self.spec.keep_layers)

    def _load(self, name: str, keep_layers: list[int] | None) -> Any:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_causal_lm(name, None, self.dtype, keep_layers).to(device).eval().requires_grad_(False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every record depends on."""
        return {
            "weights": identify_weights(self.spec.model, None),
            "keep_layers": self.spec.keep_layers,
            "dtype": self.dtype,
            "prompt": self.prompt.id,
            "end": find_end_tokens(self.tokenizer),
        }

    def prepare(self, pairs: Sequence[tuple[Question, Rationale]]) -> list[Text]:
        """Tokenizes rationales and their questions' prompts.

        Raises:
            ValueError: One is longer than the student's context.
        """
        questions = {question.id: question for question, _ in pairs}
        encoded = encode_prompts(self.tokenizer, self.prompt, list(questions.values()))
        self.prompts = {key: ids for key, (_, ids) in zip(questions, encoded, strict=True)}
        texts = build_texts(self.tokenizer, self.prompt, pairs)
        longest = max(len(self.prompts[text.question.id]) + len(text.token_ids) for text in texts)
        highest = max(max(ids) for ids in (*self.prompts.values(), *(text.token_ids for text in texts)))
        what = "the longest prompt and rationale"
        check_model(self.spec.model, None, self.spec.keep_layers, longest, what, highest)
        return texts

    def open_caches(self, caches: dict[str, LogitCache], texts: Sequence[Text]) -> None:
        """Takes what of the texts is in teachers' caches.

        One of another tokenizer than the student's is only aligned with it; so is every other, if it knows its tokens'
        bytes.

        Args:
            caches: By teacher.
            texts: What will be scored.

        Raises:
            ValueError: A cache of the student's tokenizer is of draws or hidden states; a cache was not made of these
                texts.
        """
        self.examples: dict[str, Example] = {}
        self.caches: dict[str, LogitCache] = {}
        self.aligned: dict[str, AlignedText] = {}
        self.aligners: dict[str, CacheAligner] = {}
        for teacher, cache in caches.items():
            if cache.knows_bytes:
                self._align([text for text in texts if text.rationale.teacher == teacher], cache)
            if not cache.shares_tokenizer(self.tokenizer):
                continue
            if KINDS[cache.description.sparsity.kind] is not SparseTarget:
                kind = cache.description.sparsity.kind
                raise ValueError(f"{cache.folder}: is of the kind {kind}; diagnostics need top_k or adaptive")
            pairs = [(text.question, text.rationale) for text in texts if text.rationale.teacher == teacher]
            examples = [item for item in build_examples(self.tokenizer, self.prompt, pairs) if item.id in cache]
            cache.check(self.name, self.tokenizer, self.prompt.id, examples)
            self.examples |= {example.id: example for example in examples}
            self.caches |= {example.id: cache for example in examples}

    def _align(self, texts: Sequence[Text], cache: LogitCache) -> None:
        """Takes how a teacher's texts, as far as they are cached, are in its tokens and in the student's."""
        aligner = CacheAligner(cache, read_vocabulary(self.tokenizer, find_end_tokens(self.tokenizer)))
        cached = [text for text in texts if text.rationale.id in cache]
        pairs = [(text.question, text.rationale) for text in cached]
        cache.check_completions(build_examples(self.tokenizer, self.prompt, pairs))
        self.aligned |= {text.key: aligner.align(text.rationale.id, text.token_ids) for text in cached}
        if KINDS[cache.description.sparsity.kind] is SparseTarget:
            self.aligners |= {text.key: aligner for text in cached}

    def read(self, texts: Sequence[Text], local_steps: int) -> list[Reading]:
        """Scores every text with its prompt, without it, and step by step.

        Args:
            texts: Of `prepare`.
            local_steps: How many steps before it a step is read with, in the local scores.
        """
        by_question: dict[str, list[Text]] = defaultdict(list)
        for text in texts:
            by_question[text.question.id].append(text)

        def compute(missing: set[str]) -> Iterator[list[dict[str, Any]]]:
            head = RowHead(self.model)
            for question_id, group in by_question.items():
                if group := [text for text in group if self._name_scores(text) in missing]:
                    yield self._score(head, self.prompts[question_id], group, local_steps)

        config = {**self.identity, "local_steps": local_steps}
        path = self.folder / f"{self.name}-scores.parquet"
        keys = [self._name_scores(text) for text in texts]
        records = complete_records(path, SCORES, config, keys, compute)
        return [
            Reading(text, *(np.array(records[key][name], dtype=np.float64) for name in PLANES))
            for key, text in zip(keys, texts, strict=True)
        ]

    def _name_scores(self, text: Text) -> str:
        """Names a text's scores, which hold the comparison with a cache if there is one."""
        cache = self.caches.get(text.rationale.id)
        return text.key if cache is None else f"{text.key}#{hash_path(cache.folder / 'manifest.json')[:16]}"

    def _score(self, head: RowHead, prompt_ids: list[int], texts: list[Text], local_steps: int) -> list[dict[str, Any]]:
        """Returns the records of one question's texts."""
        spans = [Span(text.token_ids, has_target=text.rationale.id in self.caches) for text in texts]
        places = [[*text.steps.tolist(), len(text.token_ids)] for text in texts]
        later = []
        for number, starts in enumerate(places):
            # The first steps have no more before them than a whole rationale's reading gives them.
            for step in range(local_steps + 1, len(starts) - 1):
                first, start, end = starts[step - local_steps], starts[step], starts[step + 1]
                later.append((number, step))
                spans.append(Span(texts[number].token_ids[first:end], start - first))

        def read_targets(numbers: list[int]) -> SparseTarget:
            examples = [self.examples[texts[number].rationale.id] for number in numbers]
            planes = {
                name: plane.to(head.model.device) for name, plane in collate_targets(examples, self.caches).items()
            }
            cache = self.caches[examples[0].id]
            target = build_target(planes, cache.description.temperatures, None)
            assert isinstance(target, SparseTarget)
            return target

        scores = score_spans(head, prompt_ids, spans, self.tokens_per_batch, read_targets)
        local = {place: score.nll.mean() for place, score in zip(later, scores[len(texts) :], strict=True)}
        start_ids = [token for token in self.tokenizer("").input_ids if token != self.tokenizer.eos_token_id]
        alone = score_spans(head, start_ids, [Span(text.token_ids, 1) for text in texts], self.tokens_per_batch)
        records = []
        for number, (text, score, other) in enumerate(zip(texts, scores, alone, strict=False)):
            steps = np.split(score.nll, text.steps[1:])
            means = [local.get((number, step), part.mean()) for step, part in enumerate(steps)]
            own = {**score._asdict(), "alone": other.nll, "local": means}
            records.append(
                {"key": self._name_scores(text), **{name: [float(value) for value in own[name]] for name in PLANES}}
            )
        return records

    def answer(self, questions: Sequence[Question], prompt: str, max_new_tokens: int) -> dict[str, str]:
        """Returns the student's own greedy chain of thought on each question, by id."""
        keys = {name_question(question): question for question in questions}

        def compute(missing: set[str]) -> Iterator[list[dict[str, Any]]]:
            asked = [key for key in keys if key in missing]
            for start in range(0, len(asked), QUESTIONS_PER_BATCH):
                part = asked[start : start + QUESTIONS_PER_BATCH]
                posed = [keys[key] for key in part]
                prompts = [ids for _, ids in encode_prompts(self.tokenizer, get_prompt(prompt), posed)]
                found = generate_completions(self.model, prompts, find_end_tokens(self.tokenizer), max_new_tokens)
                # Its thinking is no part of what teachers' rationales are compared with.
                texts = [split_thinking(decode_completion(self.tokenizer, ids)).reply.strip() for ids, _ in found]
                yield [{"key": key, "text": text} for key, text in zip(part, texts, strict=True)]

        config = {**self.identity, "prompt": get_prompt(prompt).id, "max_new_tokens": max_new_tokens}
        path = self.folder / f"{self.name}-own.parquet"
        records = complete_records(path, OWN, config, list(keys), compute)
        return {question.id: records[key]["text"] for key, question in keys.items()}

    def differentiate(self, texts: Sequence[Text], dimension: int, seed: int) -> dict[str, tuple[float, np.ndarray]]:
        """Returns the squared norm and the projection of the gradient of each text's loss, by text key."""

        def compute(missing: set[str]) -> Iterator[list[dict[str, Any]]]:
            sketch = GradientSketch(self.model, dimension, seed)
            for text in texts:
                if text.key in missing:
                    loss = compute_loss(self.model, self.prompts[text.question.id], text.token_ids)
                    square, sketch_D = sketch.take(loss)
                    yield [{"key": text.key, "square": square, "sketch": sketch_D.tolist()}]
            sketch.remove()

        config = {**self.identity, "dimension": dimension, "seed": seed}
        path = self.folder / f"{self.name}-gradients.parquet"
        records = complete_records(path, GRADIENTS, config, [text.key for text in texts], compute)
        return {
            key: (record["square"], np.array(record["sketch"], dtype=np.float64)) for key, record in records.items()
        }

    def direct(self, texts: Sequence[Text]) -> dict[str, Direction]:
        """Returns what their teachers' distributions would change, by text key, of those that are cached."""
        own = {self._name_direction(text): text for text in texts if text.key in self.aligners}

        def compute(missing: set[str]) -> Iterator[list[dict[str, Any]]]:
            sketch = GradientSketch(self.model, 1, 0)
            for key, text in own.items():
                if key in missing:
                    rows = self.aligners[text.key].read_common(text.rationale.id, text.token_ids)
                    found = Direction(math.nan, 0, 0)
                    if rows is not None:
                        prompt_ids = self.prompts[text.question.id]
                        found = measure_direction(sketch, self.model, prompt_ids, text.token_ids, rows)
                    yield [{"key": key, **found._asdict()}]
            sketch.remove()

        path = self.folder / f"{self.name}-directions.parquet"
        records = complete_records(path, DIRECTIONS, self.identity, list(own), compute)
        return {text.key: Direction(*(records[key][name] for name in Direction._fields)) for key, text in own.items()}

    def _name_direction(self, text: Text) -> str:
        return f"{text.key}#{hash_path(self.aligners[text.key].cache.folder / 'manifest.json')[:16]}"

    def visit(
        self, questions: Sequence[Question], own: Mapping[str, str], prompt: str, max_new_tokens: int, teacher: str
    ) -> dict[str, Overlap]:
        """Returns what a teacher has in common with the student along the student's own answers, by question id.

        Args:
            questions: Some of those that it answered.
            own: Its answers, from `answer` with this prompt and length.
            prompt: What both read.
            max_new_tokens: Of the answers.
            teacher: Hub id, local folder or GGUF file; loaded only if something has to be computed.

        Raises:
            ValueError: There is no such model, or its context is too short.
        """
        keys = {f"{hash_text(identify_weights(teacher, None))[:16]}#{name_question(item)}": item for item in questions}

        def compute(missing: set[str]) -> Iterator[list[dict[str, Any]]]:
            asked = [question for key, question in keys.items() if key in missing]
            sides = [self._encode(self.tokenizer, prompt, asked, own)]
            tokenizer = load_tokenizer(teacher)
            sides.append(self._encode(tokenizer, prompt, asked, own))
            longest = max(len(prompt_ids) + len(ids) for prompt_ids, ids in sides[1])
            check_model(teacher, None, None, longest, f"{teacher} reads the longest prompt and answer")
            models = [self.model, self._load(teacher, None)]
            both = [read_vocabulary(each, find_end_tokens(each)) for each in (self.tokenizer, tokenizer)]
            tokens = TokenMap(both[1], both[0], both[0].ends[0])
            for question, *pairs in zip(asked, *sides, strict=True):
                first, second = (
                    (ids, find_tops(model, vocabulary, prompt_ids, ids))
                    for model, vocabulary, (prompt_ids, ids) in zip(models, both, pairs, strict=True)
                )
                overlap = count_overlap(first, second, tokens)
                yield [{"key": key, **overlap._asdict()} for key, item in keys.items() if item is question]

        config = {**self.identity, "prompt": get_prompt(prompt).id, "max_new_tokens": max_new_tokens}
        path = self.folder / f"{self.name}-overlaps.parquet"
        records = complete_records(path, OVERLAPS, config, list(keys), compute)
        return {item.id: Overlap(records[key]["shared"], records[key]["states"]) for key, item in keys.items()}

    @staticmethod
    def _encode(
        tokenizer: PreTrainedTokenizerBase, prompt: str, questions: Sequence[Question], own: Mapping[str, str]
    ) -> list[tuple[list[int], list[int]]]:
        """Returns the ids of each question's prompt and of the answer to it, its end included."""
        prompts = encode_prompts(tokenizer, get_prompt(prompt), questions)
        completions = encode_completions(tokenizer, [(own[question.id], "") for question in questions])
        return [(list(ids), list(own_ids)) for (_, ids), (own_ids, _) in zip(prompts, completions, strict=True)]
