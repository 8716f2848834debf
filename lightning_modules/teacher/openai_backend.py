"""A teacher behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, `transformers serve`."""

import asyncio
import json
import os
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlsplit

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules.tasks.prompts import TemplateOptions
from datamodules.text.plain_text import describe_error
from lightning_modules.run.stop_signal import is_stopping
from lightning_modules.teacher.backends import Backend, Completion, Decoding, FinishReason, Request, Source
from lightning_modules.teacher.reply_tokens import MOST_OF_ENDPOINTS, NoLogProbsError, read_reply_tokens

OPENAI = "api.openai.com"
# What a chat template may add to a message, in tokens.
TEMPLATE_TOKENS = 256
LONGEST_WAIT = 60.0
GOES_ON = "what was answered is kept, and the same command asks for the rest"


def import_openai() -> Any:
    """Returns the module of the official client.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import openai
    except ModuleNotFoundError:
        raise ValueError('OpenAIBackend needs the official client: pip install "kindred[openai]"') from None
    return openai


@dataclass
class Spending:
    """What was sent and paid for so far; tokens that running requests may take at most are `reserved`."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported_tokens: int = 0
    reserved_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens paid for, or perhaps to be."""
        return self.prompt_tokens + self.completion_tokens + self.unreported_tokens + self.reserved_tokens


def read_reply(body: str) -> tuple[str, str, FinishReason, int | None, int | None, str]:
    """Returns text, thinking, finish reason, prompt and completion tokens (None if not reported), and who answered.

    Raises:
        ValueError: The body is no chat completion.
    """
    try:
        reply = json.loads(body)
        choice = reply["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        text = message.get("content") or ""
        # DeepSeek's and older vLLM's name, and that of newer vLLM, Ollama and OpenRouter.
        thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        usage = reply.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        revision = " ".join(filter(None, (reply.get("model"), reply.get("system_fingerprint"))))
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"a malformed reply: {body[:100]!r}") from None
    if not isinstance(text, str) or not isinstance(thinking, str) or reason not in get_args(FinishReason):
        raise ValueError(f"a reply with finish_reason {reason!r}")
    return text, thinking, reason, *counts, revision or "unknown"


class OpenAIBackend(Backend):
    """Asks an endpoint's chat completions, several at a time, and again where that may help.

    The endpoint applies the chat template. Draws are seeded with each completion's own seed; whether an endpoint heeds
    it is its own affair.
    """

    takes_text = True

    def __init__(
        self,
        base_url: str = f"https://{OPENAI}/v1",
        key_variable: str | None = None,
        max_concurrent: PositiveInt = 16,
        timeout: PositiveFloat = 120.0,
        max_retries: NonNegativeInt = 6,
        retry_delay: PositiveFloat = 1.0,
        max_requests: PositiveInt | None = None,
        max_tokens_total: PositiveInt | None = None,
        prompt_price: NonNegativeFloat | None = None,
        completion_price: NonNegativeFloat | None = None,
    ):
        """Stores the settings. Each cap holds for one run of the command.

        Args:
            base_url: Up to `/v1`.
            key_variable: The environment variable that holds the key, which is kept nowhere else. Null is
                OPENAI_API_KEY at OpenAI's own endpoint, and no key at another.
            max_concurrent: Requests that run at a time.
            timeout: Of one request, in seconds.
            max_retries: Of one completion, after too many requests (429), a server's error, a timeout, a lost
                connection or a malformed reply.
            retry_delay: Before the first, in seconds; it doubles each time up to a minute, less a random share. A
                server that says how long to wait is heeded.
            max_requests: Most requests, retries included.
            max_tokens_total: Most tokens, prompts included. A request is sent only if its longest possible completion
                fits, too; a prompt's bytes bound its tokens before the server has counted them.
            prompt_price: Dollars for a million prompt tokens, for the summary.
            completion_price: Likewise of completions.
        """
        self.base_url, self.key_variable = base_url, key_variable
        self.max_concurrent, self.timeout = max_concurrent, timeout
        self.max_retries, self.retry_delay = max_retries, retry_delay
        self.max_requests, self.max_tokens_total = max_requests, max_tokens_total
        self.prompt_price, self.completion_price = prompt_price, completion_price
        self.is_openai = urlsplit(base_url).hostname == OPENAI
        if self.is_openai and key_variable is None:
            self.key_variable = "OPENAI_API_KEY"
        self.spending = Spending()
        self._failure: ValueError | None = None
        self._log_probs: dict[str, Any] = {}

    def keep_log_probs(self, number: int) -> None:
        """Asks for log-probabilities: as the server gives them, OpenAI's own of at most 20 tokens a place."""
        if number > MOST_OF_ENDPOINTS:
            raise ValueError(
                f"model.top_log_probs is {number}, but an endpoint returns {MOST_OF_ENDPOINTS} at most; lower it"
            )
        self._log_probs = {"logprobs": True} | ({"top_logprobs": number} if number else {})

    def _read_key(self) -> str:
        # The client insists on a key.
        return os.environ[self.key_variable] if self.key_variable else "none"

    def check(self, source: Source, longest: int, highest_id: int) -> None:
        """Refuses a missing client or key, a URL with a password, and settings that an endpoint cannot heed."""
        openai, address = import_openai(), urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"model.backend.base_url: expected http(s)://HOST/v1, not {self.base_url}")
        try:
            _ = address.port  # which is checked when it is asked for
            openai.AsyncOpenAI(api_key="none", base_url=self.base_url)
        except Exception as error:  # its HTTP client's own, of which there are several
            raise ValueError(f"model.backend.base_url: {self.base_url}: {describe_error(error)}") from None
        if "@" in urlsplit(self.base_url).netloc:
            raise ValueError("model.backend.base_url holds a password; name a variable with key_variable instead")
        if self.key_variable and not os.environ.get(self.key_variable):
            raise ValueError(f"{self.base_url}: set the environment variable {self.key_variable} to its key")
        if source.keep_layers is not None or source.revision is not None or source.attention is not None:
            raise ValueError(
                f"model.revision, model.keep_layers and model.attention: {self.base_url} serves what it serves; leave "
                "them"
            )

    def load(self, source: Source, tokenizer: PreTrainedTokenizerBase | None) -> nn.Module | None:
        """Remembers the served model's name."""
        self.teacher = source.teacher
        return None

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[Request, Completion]]:
        """Yields completions as they arrive.

        Raises:
            ValueError: The endpoint refuses, does not answer, or a cap is reached; after all that did arrive.
        """
        waiting, running = deque(requests), dict[asyncio.Task[Completion | None], Request]()
        self._failure = None
        loop = asyncio.new_event_loop()
        # Retries are this class's own, since the caps count them.
        client = import_openai().AsyncOpenAI(
            api_key=self._read_key(), base_url=self.base_url, timeout=self.timeout, max_retries=0
        )
        try:
            while True:
                while waiting and len(running) < self.max_concurrent and self._may_send(waiting[0], decoding):
                    request = waiting.popleft()
                    self._reserve(request, decoding)
                    running[loop.create_task(self._answer(client, request, decoding))] = request
                if not running:
                    break
                done, _ = loop.run_until_complete(asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
                for task in done:
                    request, completion = running.pop(task), task.result()
                    if completion is not None:
                        yield request, completion
            if self._failure:
                raise self._failure
            if waiting and not is_stopping():
                raise ValueError(f"{self._name_cap()} reached, {len(waiting)} of {len(requests)} not asked; {GOES_ON}")
        finally:
            loop.run_until_complete(self._end(client, running))
            loop.close()

    @staticmethod
    async def _end(client: Any, running: Iterable[asyncio.Task[Completion | None]]) -> None:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await client.close()

    def _bound_tokens(self, request: Request, decoding: Decoding) -> int:
        return len(request.text.encode()) + TEMPLATE_TOKENS + decoding.max_new_tokens

    def _may_send(self, request: Request, decoding: Decoding) -> bool:
        """Whether there was no failure, this process is to go on, and the caps have room."""
        if (
            self._failure
            or is_stopping()
            or (self.max_requests is not None and self.spending.requests >= self.max_requests)
        ):
            return False
        bound = self._bound_tokens(request, decoding)
        return self.max_tokens_total is None or self.spending.tokens + bound <= self.max_tokens_total

    def _reserve(self, request: Request, decoding: Decoding) -> None:
        self.spending.requests += 1
        self.spending.reserved_tokens += self._bound_tokens(request, decoding)

    def _name_cap(self) -> str:
        if self.max_requests is not None and self.spending.requests >= self.max_requests:
            return f"max_requests={self.max_requests}"
        return f"max_tokens_total={self.max_tokens_total}"

    async def _answer(self, client: Any, request: Request, decoding: Decoding) -> Completion | None:
        """Asks until there is an answer; None after a failure, which is remembered, so that nothing else is sent."""
        bound = self._bound_tokens(request, decoding)
        for attempt in range(self.max_retries + 1):
            if attempt:
                if is_stopping():
                    return None
                if not self._may_send(request, decoding):
                    self._fail(f"{self._name_cap()} reached; {GOES_ON}")
                    return None
                self.spending.retries += 1
                self._reserve(request, decoding)
            outcome = await self._ask_once(client, request, decoding)
            self.spending.reserved_tokens -= bound
            if isinstance(outcome, Completion):
                used = (outcome.num_prompt_tokens, outcome.num_completion_tokens)
                if None in used:
                    self.spending.unreported_tokens += bound
                else:
                    self.spending.prompt_tokens += used[0] or 0
                    self.spending.completion_tokens += used[1] or 0
                return outcome
            reason, wait, may_cost = outcome
            self.spending.unreported_tokens += bound if may_cost else 0
            if wait is None:
                self._fail(f"{self.base_url}: {request.question_id}: {reason}")
                return None
            if self._failure:
                return None
            if attempt < self.max_retries:
                delay = min(self.retry_delay * 2**attempt, LONGEST_WAIT) * random.uniform(0.5, 1)
                await self._pause(max(wait, delay))
        self._fail(
            f"{self.base_url}: {request.question_id}: no answer in {self.max_retries + 1} attempts, {reason}; {GOES_ON}"
        )
        return None

    @staticmethod
    async def _pause(seconds: float) -> None:
        """Waits, but not on once this process is to stop."""
        until = time.monotonic() + seconds
        while not is_stopping() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))

    def _fail(self, message: str) -> None:
        """Remembers the first failure, without the key, which a server's message may repeat."""
        key = self._read_key()
        self._failure = self._failure or ValueError(message.replace(key, "***") if self.key_variable else message)

    async def _ask_once(
        self, client: Any, request: Request, decoding: Decoding
    ) -> Completion | tuple[str, float | None, bool]:
        """Returns the completion; or what went wrong, how long to wait (None: for ever), and whether it may cost."""
        openai = import_openai()
        # OpenAI's newer models refuse the older name, which other servers may know alone.
        length = {"max_completion_tokens" if self.is_openai else "max_tokens": decoding.max_new_tokens}
        seed = {"seed": request.derive_seed(decoding.seed)} if decoding.temperature else {}
        stop = {"stop": list(decoding.stop)} if decoding.stop else {}
        top_p = {"top_p": decoding.top_p} if decoding.top_p < 1 else {}
        options = self._send_options(request.template_options)
        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.teacher,
                messages=[{"role": "user", "content": request.text}],
                temperature=decoding.temperature,
                **length,
                **seed,
                **stop,
                **top_p,
                **options,
                **self._log_probs,
            )
            body = raw.http_response.text
            text, thinking, reason, num_prompt, num_completion, revision = read_reply(body)
            has_best = "top_logprobs" in self._log_probs
            tokens = read_reply_tokens(body, text, has_best) if self._log_probs and text.strip() else []
        except openai.APITimeoutError:
            return f"timeout of {self.timeout:g} s", 0.0, True
        except openai.APIConnectionError as error:
            return f"connection lost ({error.__cause__ or error})", 0.0, True
        except openai.APIStatusError as error:
            status = error.status_code
            if status in (401, 403):
                return f"HTTP {status}, the key in {self.key_variable or 'no variable'} is refused", None, False
            said = f"HTTP {status}, {error.message[:200]}"
            if status in (408, 409, 429) or status >= 500:
                return said, self._read_wait(error.response.headers), False
            return said, None, False
        except NoLogProbsError as error:
            return str(error), None, True
        except ValueError as error:
            return str(error), 0.0, True
        return Completion(text, None, reason, num_prompt, num_completion, revision, thinking, tokens)

    def _send_options(self, options: TemplateOptions) -> dict[str, Any]:
        """Returns what tells a server the template's options; OpenAI has parameters (`reasoning_effort`) instead."""
        body = options if self.is_openai else {"chat_template_kwargs": options}
        return {"extra_body": body} if options else {}

    @staticmethod
    def _read_wait(headers: Any) -> float:
        try:
            return min(float(headers.get("retry-after", 0)), LONGEST_WAIT)
        except ValueError:
            return 0.0  # a date

    def summarize(self) -> str:
        """Returns requests, tokens, and dollars where prices are given."""
        spent = self.spending
        line = (
            f"{self.base_url}: {spent.requests} requests ({spent.retries} retries), {spent.prompt_tokens} prompt and "
            f"{spent.completion_tokens} completion tokens"
        )
        if spent.unreported_tokens:
            line += f", and {spent.unreported_tokens} at most that the server did not report"
        if self.prompt_price is not None and self.completion_price is not None:
            dollars = spent.prompt_tokens * self.prompt_price + spent.completion_tokens * self.completion_price
            line += f", ${dollars / 1e6:.4f}"
        return line
