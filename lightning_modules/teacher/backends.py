"""What generates a teacher's completions: one narrow interface, and the local implementation behind it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import decode_completion, find_end_tokens
from datamodules.logit_cache.written_tokens import WrittenToken
from datamodules.tasks.prompts import TemplateOptions
from lightning_modules.model.generation import Sample, derive_seed, generate_completions
from lightning_modules.model.pretrained import Attention, Dtype, check_model, identify_weights, load_causal_lm
from lightning_modules.model.static_decoding import Generation, StaticDecoder, choose_decoder

FinishReason = Literal["stop", "length", "content_filter"]


class Source(NamedTuple):
    """Which teacher: hub id, folder, GGUF file or served name; a hub model's commit; and how it is loaded."""

    teacher: str
    revision: str | None
    dtype: Dtype
    keep_layers: list[int] | None
    attention: Attention | None = None


@dataclass(frozen=True)
class Decoding:
    """How completions are chosen.

    Attributes:
        max_new_tokens: Truncates a completion.
        temperature: 0 is greedy.
        stop: Texts that end a completion, which is cut before them.
        seed: Of all draws.
        top_p: They are from the nucleus that holds so much probability; 1 draws from all tokens.
    """

    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...]
    seed: int
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise ValueError(f"model.temperature must be finite, not {self.temperature}")
        if "" in self.stop:
            raise ValueError("model.stop holds an empty text, which every completion begins with")
        if not self.top_p:
            raise ValueError("model.top_p must be above 0; 1 draws from all tokens")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(f"model.top_p {self.top_p} would be ignored: at model.temperature 0 nothing is drawn")


@dataclass(frozen=True)
class Request:
    """One completion to generate.

    Attributes:
        question_id: Whose question it is.
        sample: 0, 1, ... where a question is asked several times.
        text: The prompt's text; where the backend applies the chat template, the user's message alone.
        prompt_ids: The prompt's token ids; empty where the backend tokenizes.
        template_options: What a backend that applies the chat template tells it beside the message.
    """

    question_id: str
    sample: int
    text: str
    prompt_ids: tuple[int, ...]
    template_options: TemplateOptions = field(default_factory=dict)

    def derive_seed(self, seed: int) -> int:
        """Returns this completion's own seed, below 2**31, which no other completion plays a part in."""
        return derive_seed(seed, self.question_id, self.sample)


@dataclass(frozen=True)
class Completion:
    """What a teacher answered.

    Attributes:
        text: The text, without end tokens and stop texts; what the model thinks is there, between its marks.
        token_ids: Its ids, as generated; None where the backend does not tell.
        finish_reason: `stop`; `length`, if truncated; `content_filter`, if a provider withheld some or all of it.
        num_prompt_tokens: As the backend counts; None where it does not.
        num_completion_tokens: Likewise, with an end token.
        revision: The weights that answered.
        thinking: What a backend told apart from the text as the model's thinking.
        tokens: All that was written, with log-probabilities, where they are kept and there is a text; see
            `Backend.keep_log_probs`.
        sample: What was drawn, where it is kept; see `Backend.keep_ids`.
    """

    text: str
    token_ids: list[int] | None
    finish_reason: FinishReason
    num_prompt_tokens: int | None
    num_completion_tokens: int | None
    revision: str
    thinking: str = ""
    tokens: Sequence[WrittenToken] = ()
    sample: Sample | None = None

    def describe_sample(self, fingerprint: str | None) -> dict[str, Any]:
        """Returns the fields of a Rationale that hold what was drawn; nothing where it is not kept."""
        if self.sample is None:
            return {}
        return {"token_ids": self.sample.ids, "log_probs": self.sample.log_probs, "tokenizer": fingerprint}


class Backend(ABC):
    """Generates completions.

    Its own arguments say where and how fast; what a completion depends on is in `Source` and `Decoding`, so that
    an annotation goes on with another server, batch or cap.

    Attributes:
        is_local: It runs under `Trainer.predict`, on the trainer's devices, a batch of requests at a time. Others
            batch by themselves, get all requests at once, and need no trainer.
        takes_gpus: It takes a node's GPUs by itself, and the trainer's processes, a share of the requests each, none.
        takes_text: It applies the chat template and tokenizes; others take token ids.
        num_tokens: That are to be written at most: of all that is asked, so that what a killed process lost is computed
            as it was.
    """

    is_local: ClassVar[bool] = False
    takes_gpus: ClassVar[bool] = False
    takes_text: ClassVar[bool] = False
    num_tokens: int = 0

    @abstractmethod
    def check(self, source: Source, longest: int, highest_id: int) -> None:
        """Raises a ValueError if it cannot work; loads and sends nothing.

        Args:
            source: The teacher.
            longest: Most tokens of a prompt and its completion; 0 if the prompts are not tokenized.
            highest_id: Of the prompts' tokens; -1 if they are not tokenized.
        """

    @abstractmethod
    def load(self, source: Source, tokenizer: PreTrainedTokenizerBase | None) -> nn.Module | None:
        """Makes itself ready, once; returns the module that a trainer is to place on its device, if there is one."""

    @abstractmethod
    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[Request, Completion]]:
        """Yields each request with its completion, in any order, as they come.

        Where the process is to stop (`is_stopping`), it begins nothing, yields what is under way, and ends.
        """

    def keep_log_probs(self, number: int) -> None:
        """Makes completions come with the log-probabilities of their tokens; call before anything is loaded.

        Args:
            number: Of the most probable tokens at each place; 0 keeps those of what was written alone.

        Raises:
            ValueError: The backend has none, or not so many.
        """
        raise ValueError(
            f"model.log_probs: {type(self).__name__} returns none with its text; leave it out, and run python -m "
            "scripts.cache_logits on the rationales"
        )

    def keep_ids(self, stop: Sequence[str]) -> None:
        """Makes completions come with what was drawn; call before anything is loaded.

        Args:
            stop: Texts that are to end a completion, which its ids would not.

        Raises:
            ValueError: The backend does not tell; or there are such texts.
        """
        raise ValueError(
            f"model.keep_ids: {type(self).__name__} does not return token ids with their log-probabilities; use "
            "TransformersBackend or VLLMBackend"
        )

    def summarize(self) -> str | None:
        """Returns a line about what was spent, if that is worth one."""
        return None


def refuse_stops(stop: Sequence[str]) -> None:
    """Raises a ValueError if texts cut completions whose ids are to be kept."""
    if stop:
        raise ValueError("model.stop cuts a text whose ids go on; leave it out, or model.keep_ids")


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Returns where the first of the stop texts begins; None if there is none."""
    return min((place for end in stop if (place := text.find(end)) >= 0), default=None)


def watch_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Callable[[list[int]], bool] | None:
    """Returns what tells whether a completion ends with these ids, since it holds a stop text; None without any."""
    if not stop:
        return None
    # A token that is text is a byte at least, so that this many hold the longest stop text and its last token.
    tail = 2 * max(len(text.encode()) for text in stop) + 8
    return lambda ids: find_stop(decode_completion(tokenizer, ids[-tail:]), stop) is not None


class TransformersBackend(Backend):
    """Generates with transformers, in this process: any model of the hub, of a folder, of a GGUF file."""

    is_local = True

    def __init__(self, generation: Generation | None = None) -> None:
        """Stores the setting.

        Args:
            generation: How a token is computed: dynamic, with a key-value cache that grows; static, with one of fixed
                shapes; or compiled, by torch.compile for such shapes. It rounds otherwise. Null is compiled on a GPU
                where 200,000 tokens may be written and the model allows it, and dynamic elsewhere.
        """
        self.generation = generation
        self.model: Any = None
        self.tokenizer: Any = None
        self._keeps_ids = False
        self._decoder: StaticDecoder | None = None

    def keep_ids(self, stop: Sequence[str]) -> None:
        """Keeps them."""
        refuse_stops(stop)
        self._keeps_ids = True

    def check(self, source: Source, longest: int, highest_id: int) -> None:
        """Refuses what cannot be loaded, and prompts that may leave the context."""
        what = "data.encoding.max_length + model.max_new_tokens"
        check_model(source.teacher, source.revision, source.keep_layers, longest, what, highest_id)

    def load(self, source: Source, tokenizer: PreTrainedTokenizerBase | None) -> nn.Module | None:
        """Loads the model."""
        if self.model is None:
            self.tokenizer, self.weights_id = tokenizer, identify_weights(source.teacher, source.revision)
            self.model = load_causal_lm(*source[:4], attention=source.attention).eval().requires_grad_(False)
        loaded: nn.Module = self.model
        return loaded

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[Request, Completion]]:
        """Generates the requests as one batch."""
        self._decoder = self._decoder or choose_decoder(self.model, self.generation, self.num_tokens)
        samples: list[Sample] | None = [] if self._keeps_ids else None
        completions = generate_completions(
            self.model,
            [request.prompt_ids for request in requests],
            find_end_tokens(self.tokenizer),
            decoding.max_new_tokens,
            decoding.temperature,
            [request.derive_seed(decoding.seed) for request in requests],
            watch_stops(self.tokenizer, decoding.stop),
            decoding.top_p,
            samples,
            self._decoder,
        )
        drawn = [None] * len(requests) if samples is None else samples
        for request, (ids, finish_reason), sample in zip(requests, completions, drawn, strict=True):
            text = decode_completion(self.tokenizer, ids)
            cut = find_stop(text, decoding.stop)
            has_end_token = finish_reason == "stop" and cut is None
            yield (
                request,
                Completion(
                    text=text[:cut],
                    token_ids=ids,
                    finish_reason=finish_reason,
                    num_prompt_tokens=len(request.prompt_ids),
                    num_completion_tokens=len(ids) + has_end_token,
                    revision=self.weights_id,
                    sample=sample,
                ),
            )
