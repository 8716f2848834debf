"""Evaluation of a student: chain-of-thought answers, the log-likelihood of each option, and of teachers' rationales."""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import lightning as L
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt

from datamodules.answers.extractors import EXTRACTORS, MORE_EXTRACTORS, MoreExtractors
from datamodules.evaluation import EvaluationDataModule
from datamodules.examples.encoding import decode_completion, find_end_tokens
from datamodules.text.thinking import find_open_mark
from lightning_modules.evaluation.records import choose_options, examine, grade, vote
from lightning_modules.evaluation.reference_scores import ReferenceScorer
from lightning_modules.model.generation import (
    ReadPrompts,
    derive_seed,
    generate_completions,
    read_prompts,
    score_endings,
)
from lightning_modules.model.llama_cpp import LlamaCpp, check_gguf, is_installed, name_runtime
from lightning_modules.model.pretrained import Attention, Dtype, check_model, default_dtype, load_causal_lm
from lightning_modules.model.sharding import refuse_sharding
from lightning_modules.model.static_decoding import Generation, StaticDecoder, choose_decoder
from lightning_modules.model.token_budget import ModelMemory, fit_token_budget
from lightning_modules.teacher import vllm_rows
from lightning_modules.teacher.backends import Decoding, FinishReason, Request, Source, find_stop, watch_stops
from lightning_modules.teacher.vllm_backend import VLLMBackend, name_vllm

T = TypeVar("T")
# Token ids, and why there are no more.
Generated = tuple[list[int], FinishReason]
Runtime = Literal["transformers", "llama_cpp", "vllm"]


class Evaluator(L.LightningModule):
    """Answers questions with a student under `Trainer.predict`; one record of `list_columns` for each question."""

    def __init__(
        self,
        student: str,
        revision: str | None = None,
        dtype: Dtype | None = None,
        keep_layers: list[int] | None = None,
        max_new_tokens: PositiveInt = 256,
        num_samples: PositiveInt = 1,
        temperature: NonNegativeFloat = 0.0,
        sampling_seed: NonNegativeInt = 0,
        stop: tuple[str, ...] = (),
        score_options: bool = True,
        arm: str = "untuned",
        seed: NonNegativeInt = 0,
        attention: Attention | None = None,
        runtime: Runtime | None = None,
        vllm: VLLMBackend | None = None,
        generation: Generation | None = None,
        more_extractors: tuple[MoreExtractors, ...] = (),
    ):
        """Stores the settings; the student is loaded when the trainer starts.

        Args:
            student: Hub id, local folder (an exported student), a run's checkpoint (`.ckpt`), or GGUF file.
            revision: Commit of a hub model.
            dtype: Of the weights in memory; null is the model card's, or float32 where there is none.
            keep_layers: Keep only these decoder layers.
            max_new_tokens: Truncates a completion.
            num_samples: Completions of each question, of which each extractor's most frequent answer counts (Wang et
                al. 2023, arXiv 2203.11171); more than one needs a temperature.
            temperature: 0 is greedy.
            sampling_seed: Of the draws; each question and sample has its own, whatever the batch.
            stop: Texts that end a completion, which is cut before them, as in annotate. What a base model invents after
                its answer, a next question say, is not read in any case; this saves the time that it takes.
            score_options: Also compute each option's log-likelihood; `data.option_text` says as what.
            arm: Recorded with each prediction.
            seed: The arm's training seed, recorded with each prediction.
            attention: How attention is computed: eager, sdpa, or flash_attention_2, which needs its package; null is
                transformers' choice for the architecture.
            runtime: What runs the student: transformers; llama_cpp, which runs a GGUF file as it is, on processors; or
                vllm, which batches by itself, on GPUs. Null is llama_cpp for a GGUF file, where it is installed and no
                other setting asks for transformers, which unpacks the file's weights: another model, by its rounding,
                than runs elsewhere.
            vllm: vLLM's own settings, if it runs the student.
            generation: How transformers computes a token: dynamic, static or compiled; see `TransformersBackend`.
            more_extractors: What else reads the answers, beside neutral and paper, into columns of its own: english,
                which takes every text for English, as neutral did up to version 3.
        """
        super().__init__()
        if vllm is not None and runtime != "vllm":
            raise ValueError("model.vllm is given without model.runtime=vllm, and would be ignored")
        if not math.isfinite(temperature):
            raise ValueError(f"model.temperature must be finite, not {temperature}")
        if num_samples > 1 and temperature == 0:
            raise ValueError(f"num_samples={num_samples} needs a temperature above 0: greedy samples are all alike")
        if "" in stop:
            raise ValueError("model.stop holds an empty text, which every completion begins with")
        self.stop, self.student, self.student_revision = stop, student, revision
        self.extractors = EXTRACTORS | {name: own for name, own in MORE_EXTRACTORS.items() if name in more_extractors}
        self.student_dtype: Dtype = dtype or default_dtype(student)
        self.keep_layers, self.attention, self.generation = keep_layers, attention, generation
        self.num_samples, self.temperature, self.sampling_seed = num_samples, temperature, sampling_seed
        self.arm, self.seed, self.max_new_tokens, self.score_options = arm, seed, max_new_tokens, score_options
        given = dict(
            generation=generation, dtype=dtype, keep_layers=keep_layers, attention=attention, revision=revision
        )
        self.has_chosen, needed = runtime is not None, [name for name, value in given.items() if value is not None]
        if runtime == "llama_cpp" and not student.endswith(".gguf"):
            raise ValueError(
                f"model.runtime=llama_cpp runs GGUF files, not {student}; python -m scripts.export makes one"
            )
        if needed and (runtime == "llama_cpp" or (runtime == "vllm" and generation is not None)):
            raise ValueError(f"model.{needed[0]} is given with model.runtime={runtime}, and would be ignored")
        fits = student.endswith(".gguf") and not needed and is_installed()
        self.runtime: Runtime = runtime or ("llama_cpp" if fits else "transformers")
        self.engine = (vllm or VLLMBackend()) if runtime == "vllm" else None
        self.model: Any = None
        self.llama: LlamaCpp | None = None
        # Most tokens of a text, which `check` finds: llama.cpp makes room for as many.
        self.longest: int | None = None
        self._scorer: ReferenceScorer | None = None
        self._decoder: StaticDecoder | None = None

    @property
    def source(self) -> Source:
        """What is loaded, and how."""
        return Source(self.student, self.student_revision, self.student_dtype, self.keep_layers, self.attention)

    def name_runtime(self) -> str:
        """Returns what predictions record: what runs the student, with its version where its numbers depend on it."""
        return {"transformers": lambda: "transformers", "llama_cpp": name_runtime, "vllm": name_vllm}[self.runtime]()

    def configure_model(self) -> None:
        """Loads the student, once."""
        if self.runtime == "llama_cpp":
            self.llama = self.llama or LlamaCpp(self.student, self.longest)
        elif self.engine is not None:
            self.engine.load(self.source, self.trainer.datamodule.tokenizer)
        elif self.model is None:
            self.model = load_causal_lm(*self.source[:4], attention=self.attention)
            self.model.eval().requires_grad_(False)
            self._scorer = ReferenceScorer(self.model)

    def check(self, data: EvaluationDataModule) -> None:
        """Raises a ValueError if the student cannot be loaded, a text may not fit its context, or a setting is idle."""
        if not self.score_options and data.option_text != "sentence":
            raise ValueError(f"data.option_text={data.option_text} is ignored where model.score_options is false")
        length = data.encoding.max_length + self.max_new_tokens
        what = "data.encoding.max_length + model.max_new_tokens"
        if data.find_longest() > length:
            length, what = data.find_longest(), "the longest prompt and reference"
        if self.runtime != "transformers" and data.reference_paths:
            if self.has_chosen:
                raise ValueError("data.references needs model.runtime=transformers, which scores them")
            self.runtime = "transformers"
        if self.engine is not None:
            # It writes a token after what it only reads.
            self.engine.check(self.source, max(length, data.find_longest_options() + 1), data.highest_id)
            return
        if self.runtime == "llama_cpp":
            name_runtime()
            self.longest = max(length, data.find_longest_options())
            check_gguf(self.student, data.tokenizer, length, what, data.highest_id)
            return
        if self.student.endswith(".gguf"):
            warnings.warn(
                f"{self.student}: transformers unpacks its weights, which is another model than llama.cpp runs; "
                "model.runtime=llama_cpp runs the file itself (pip install 'kindred[gguf-export]')",
                stacklevel=2,
            )
        check_model(self.student, self.student_revision, self.keep_layers, length, what, data.highest_id)

    def setup(self, stage: str) -> None:
        """Tells the data what a batch needs room for, and an engine its place."""
        refuse_sharding(self.trainer, "load it in bfloat16 (model.dtype)")
        if self.engine is not None:
            self.trainer.datamodule.requests_per_batch = self.engine.requests_per_call
            self.engine.place(self.trainer)
        self.trainer.datamodule.max_new_tokens = self.max_new_tokens
        self.trainer.datamodule.num_completions = self.num_samples
        if self.runtime == "transformers":
            source = (self.student, self.student_revision, self.student_dtype, self.keep_layers, self.attention)
            fit_token_budget(self.trainer, ModelMemory.count_writing, *source)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Returns one record for each question."""
        data: EvaluationDataModule = self.trainer.datamodule
        posed = [data.posed[identifier] for identifier in batch["question_ids"]]
        likelihoods, completions = self._answer(data, batch["question_ids"])
        references = self._score_references(data, batch["question_ids"])
        records, runtime = [], self.name_runtime()
        for item, own, samples, scores in zip(posed, likelihoods, completions, references, strict=True):
            question = item.question
            mark = find_open_mark(item.text)
            decoded = [decode_completion(data.tokenizer, ids) for ids, _ in samples]
            texts = [(mark + text[: find_stop(text, self.stop)]).strip() for text in decoded]
            answers, place, votes = vote(texts, question, self.extractors)
            ids, finish_reason = samples[place]
            answers |= choose_options(own, data.options[question.id].texts, question)
            records.append(
                {
                    "arm": self.arm,
                    "seed": self.seed,
                    "runtime": runtime,
                    "task": question.task,
                    "split": question.split,
                    "question_id": question.id,
                    "group": question.cluster,
                    "language": question.language,
                    "replaced_in_rev2": question.replaced_in_rev2,
                    "gold": question.gold,
                    "completion": texts[place],
                    "finish_reason": finish_reason,
                    **{f"answer_{name}": answer for name, answer in answers.items()},
                    **{f"correct_{name}": grade(name, answers[name], bool(own), question) for name in answers},
                    **examine(texts[place], question, data.prompt),
                    "option_log_likelihoods": own,
                    "num_prompt_tokens": len(item.prompt_ids),
                    "num_completion_tokens": len(ids),
                    "samples": texts if self.num_samples > 1 else None,
                    "num_votes": votes if self.num_samples > 1 else None,
                    "references": scores,
                }
            )
        return records

    def _answer(
        self, data: EvaluationDataModule, question_ids: list[str]
    ) -> tuple[list[list[float]], list[Sequence[Generated]]]:
        """Returns the log-likelihoods of each question's options, and its completions."""
        if self.llama is not None:
            return self._answer_by_llama_cpp(self.llama, data, question_ids)
        if self.engine is not None:
            return self._answer_by_vllm(self.engine, data, question_ids)
        read = read_prompts(self.model, [data.posed[identifier].prompt_ids for identifier in question_ids])
        return self._score_options(data, question_ids, read), self._generate(data, question_ids, read)

    def _answer_by_llama_cpp(
        self, engine: LlamaCpp, data: EvaluationDataModule, question_ids: list[str]
    ) -> tuple[list[list[float]], list[Sequence[Generated]]]:
        """Returns the same of a GGUF file, question by question, so that no other plays a part."""
        likelihoods, completions = list[list[float]](), list[Sequence[Generated]]()
        ends, has_stopped = find_end_tokens(data.tokenizer), watch_stops(data.tokenizer, self.stop)
        for identifier in question_ids:
            engine.forget()
            options = data.options[identifier]
            scores = engine.score_endings(options.prompt_ids, options.ending_ids) if self.score_options else []
            likelihoods.append(scores)
            seeds = [derive_seed(self.sampling_seed, identifier, n) for n in range(self.num_samples)]
            prompt = data.posed[identifier].prompt_ids
            settings = (ends, self.max_new_tokens, self.temperature)
            completions.append([engine.generate(prompt, *settings, seed, has_stopped) for seed in seeds])
        return likelihoods, completions

    def _answer_by_vllm(
        self, engine: VLLMBackend, data: EvaluationDataModule, question_ids: list[str]
    ) -> tuple[list[list[float]], list[Sequence[Generated]]]:
        """Returns the same, all questions at once."""
        likelihoods: list[list[float]] = [[] for _ in question_ids]
        if self.score_options:
            options = [data.options[identifier] for identifier in question_ids]
            endings = [own.ending_ids for own in options]
            likelihoods = vllm_rows.score_endings(engine.score, [own.prompt_ids for own in options], endings)
        decoding = Decoding(self.max_new_tokens, self.temperature, self.stop, self.sampling_seed)
        requests = [
            Request(posed.question.id, sample, posed.text, tuple(posed.prompt_ids))
            for posed in (data.posed[identifier] for identifier in question_ids)
            for sample in range(self.num_samples)
        ]
        ends = engine.end_ids
        completions = []
        for _, completion in engine.generate(requests, decoding):
            ids = completion.token_ids or []
            completions.append((ids[:-1] if ids and ids[-1] in ends else ids, completion.finish_reason))
        return likelihoods, split_evenly(completions, self.num_samples)

    def _score_options(
        self, data: EvaluationDataModule, question_ids: list[str], read: ReadPrompts
    ) -> list[list[float]]:
        """Returns the log-likelihoods of each question's options."""
        if not self.score_options:
            return [[] for _ in question_ids]
        options = [data.options[identifier] for identifier in question_ids]
        if data.option_text != "sentence":
            read = read_prompts(self.model, [own.prompt_ids for own in options])
        return score_endings(self.model, read, [own.ending_ids for own in options])

    def _generate(
        self, data: EvaluationDataModule, question_ids: list[str], read: ReadPrompts
    ) -> list[Sequence[Generated]]:
        """Returns each question's completions: token ids and finish reason."""
        number, most = self.num_samples, len(data.posed) * self.num_samples * self.max_new_tokens
        self._decoder = self._decoder or choose_decoder(self.model, self.generation, most)
        completions = generate_completions(
            self.model,
            read.repeat(number),
            find_end_tokens(data.tokenizer),
            self.max_new_tokens,
            self.temperature,
            [derive_seed(self.sampling_seed, identifier, n) for identifier in question_ids for n in range(number)],
            watch_stops(data.tokenizer, self.stop),
            decoder=self._decoder,
        )
        return split_evenly(completions, number)

    def _score_references(
        self, data: EvaluationDataModule, question_ids: list[str]
    ) -> list[list[dict[str, Any]] | None]:
        """Returns the scores of each question's references; None where there are none."""
        own = [data.references.get(identifier, []) for identifier in question_ids]
        if not any(own):
            return [None] * len(own)
        assert self._scorer is not None
        scores = iter(self._scorer.score([*itertools.chain(*own)], data.token_budget))
        return [[next(scores) for _ in references] or None for references in own]


def split_evenly(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Returns parts of so many items each, in order."""
    return [items[first : first + size] for first in range(0, len(items), size)]
