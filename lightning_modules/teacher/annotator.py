"""The teacher that answers questions, under `Trainer.predict` or without a trainer: annotate."""

from collections.abc import Iterator
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from datamodules.annotation import QuestionDataModule
from datamodules.answers.extractors import extract_neutral, find_stated_answer
from datamodules.answers.grading import is_correct
from datamodules.logit_cache.format import Kind
from datamodules.logit_cache.written_tokens import pack_tokens, trim_tokens
from datamodules.rationales.store import Rationale, name_paraphrase
from datamodules.rationales.translated import keeps_answer
from datamodules.text.thinking import find_open_mark, split_thinking
from lightning_modules.model.sharding import refuse_sharding
from lightning_modules.model.token_budget import ModelMemory, fit_token_budget
from lightning_modules.teacher.backends import Backend, Decoding, Request, TransformersBackend
from lightning_modules.teacher.reply_tokens import count_kept
from lightning_modules.teacher.teacher import TeacherModule
from lightning_modules.teacher.vllm_backend import VLLMBackend


class Annotator(TeacherModule):
    """Answers questions with a chain of thought; every rationale is kept, whatever its answer."""

    def __init__(
        self,
        teacher: str,
        backend: Backend | None = None,
        max_new_tokens: PositiveInt = 256,
        temperature: NonNegativeFloat = 0.0,
        num_samples: PositiveInt = 1,
        stop: tuple[str, ...] = (),
        seed: NonNegativeInt = 0,
        log_probs: Kind | None = None,
        top_log_probs: PositiveInt | None = None,
        top_p: ClosedUnitInterval = 1.0,
        keep_ids: bool = False,
        writer: str | None = None,
        **kwargs: Any,
    ):
        """Stores the settings.

        Args:
            teacher: Hub id, local folder, or GGUF file; the model's name at an endpoint.
            backend: What runs the teacher: TransformersBackend, which null is; VLLMBackend; or OpenAIBackend, an
                endpoint. Its own arguments change where and how fast, not what is written.
            max_new_tokens: Truncates a rationale, which is then marked `length`.
            temperature: 0 is greedy.
            num_samples: Rationales of each question; more than one needs a temperature.
            stop: Texts that end a rationale, which is cut before them.
            seed: Of the draws; each question and sample has its own, whatever the batch.
            log_probs: Keeps the log-probabilities that an endpoint or vLLM returns with its text, as a logit cache
                beside the rationales, for students of any tokenizer: top_k, of the most probable tokens; labels, of
                the text's own alone.
            top_log_probs: How many, if top_k; null is 20, the most that an endpoint returns.
            top_p: Draws from the fewest tokens that hold so much probability; 1 draws from all.
            keep_ids: Keeps the token ids as drawn, with their log-probabilities, for a student that learns from them.
            writer: How the rationales name their teacher; null is its own name.
            kwargs: See `TeacherModule`.
        """
        super().__init__(teacher, **kwargs)
        if num_samples > 1 and temperature == 0:
            raise ValueError(f"num_samples={num_samples} needs a temperature above 0: greedy samples are all alike")
        self.backend = backend or TransformersBackend()
        self.decoding = Decoding(max_new_tokens, temperature, stop, seed, top_p)
        self.num_samples, self.keep_ids, self.writer = num_samples, keep_ids, writer
        if keep_ids:
            self.backend.keep_ids(stop)
        self.log_probs = log_probs
        if (number := count_kept(log_probs, top_log_probs)) is not None:
            self.backend.keep_log_probs(number)

    @property
    def engine(self) -> VLLMBackend | None:
        """The backend, if it is vLLM."""
        return self.backend if isinstance(self.backend, VLLMBackend) else None

    def check(self, data: QuestionDataModule) -> None:
        """Raises a ValueError if the backend cannot run the teacher, or a generation may leave its context."""
        self.backend.check(self.source, data.encoding.max_length + self.decoding.max_new_tokens, data.highest_id)

    def prepare(self, data: QuestionDataModule) -> None:
        """Tells the data what it is asked for."""
        data.num_samples, data.max_new_tokens = self.num_samples, self.decoding.max_new_tokens
        if self.engine is not None:
            data.requests_per_batch = self.engine.requests_per_call

    def setup(self, stage: str) -> None:
        """Prepares the trainer's data, and an engine's place."""
        refuse_sharding(self.trainer, "spread one with VLLMBackend.tensor_parallel_size")
        self.prepare(self.trainer.datamodule)
        self.backend.num_tokens = len(self.trainer.datamodule.find_asked()) * self.decoding.max_new_tokens
        if self.engine is not None:
            self.engine.place(self.trainer)
        else:
            fit_token_budget(self.trainer, ModelMemory.count_writing, *self.source)

    def configure_model(self) -> None:
        """Loads the backend's model, once."""
        self.model = self.backend.load(self.source, self.trainer.datamodule.tokenizer)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Returns one record for each question and sample."""
        items = list(zip(batch["question_ids"], batch["samples"], strict=True))
        return list(self.annotate(self.trainer.datamodule, items))

    def annotate(self, data: QuestionDataModule, items: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """Yields the fields of a Rationale, and the weights' `revision`, for each (question id, sample).

        Where log-probabilities are kept, `tokens` are those of the text, see `pack_tokens`. A rewritten rationale keeps
        the answer it had, unless it now states another; a translation that does is none, and has no answer.
        """
        requests, options = [], data.prompt.template_options
        for question_id, sample in items:
            posed = data.posed[question_id]
            requests.append(Request(question_id, sample, posed.text, tuple(posed.prompt_ids), options))
        for request, completion in self.backend.generate(requests, self.decoding):
            question = data.posed[request.question_id].question
            # Some templates open the thinking themselves.
            split = split_thinking(find_open_mark(request.text) + completion.text)
            text, thinking = split.reply.strip(), completion.thinking or split.thinking
            teacher, original = self.writer or self.teacher_name, data.originals.get(question.id)
            extraction = find_stated_answer(text, question) if original else extract_neutral(text, question)
            answer = extraction.answer if extraction else None
            if original is not None:
                teacher = name_paraphrase(original.teacher, teacher)
                is_kept = not data.prompt.translates or keeps_answer(text, question, original.answer)
                answer = (answer or (original.answer if text else None)) if is_kept else None
            rationale = Rationale(
                question_id=question.id,
                task=question.task,
                split=question.split,
                teacher=teacher,
                family=self.family,
                sample=request.sample,
                text=text,
                answer=answer,
                correct=is_correct(answer, question),
                finish_reason=completion.finish_reason,
                prompt_id=data.prompt.id,
                num_prompt_tokens=completion.num_prompt_tokens,
                num_completion_tokens=completion.num_completion_tokens,
                thinking=thinking,
                **completion.describe_sample(data.fingerprint),
            )
            tokens = {}
            if self.log_probs is not None:
                has_ended = completion.finish_reason == "stop" and not self.decoding.stop
                tokens["tokens"] = pack_tokens(*trim_tokens(completion.tokens, text, has_ended))
            yield {"revision": completion.revision, **vars(rationale), **tokens}
