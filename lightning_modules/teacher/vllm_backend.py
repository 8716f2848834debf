"""A teacher in vLLM, in this process."""

from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import decode_completion, find_end_tokens
from lightning_modules.model.pretrained import check_model, identify_weights, read_end_ids
from lightning_modules.run.stop_signal import is_stopping
from lightning_modules.teacher.backends import Backend, Completion, Decoding, Request, Source, find_stop


def import_vllm() -> Any:
    """Returns the module.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import vllm
    except ModuleNotFoundError:
        raise ValueError('VLLMBackend needs vLLM, in an environment of its own: pip install "kindred[vllm]"') from None
    return vllm


def make_sampling(
    vllm: Any, request: Request, decoding: Decoding, end_ids: Sequence[int], num_log_probs: int | None = None
) -> Any:
    """Returns a request's `SamplingParams`; each of the end tokens ends it."""
    kept = {} if num_log_probs is None else {"logprobs": num_log_probs}
    return vllm.SamplingParams(
        temperature=decoding.temperature,
        max_tokens=decoding.max_new_tokens,
        stop=list(decoding.stop),
        stop_token_ids=list(end_ids),
        seed=request.derive_seed(decoding.seed),
        **kept,
    )


def read_output(output: Any, revision: str, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Completion:
    """Returns what a `RequestOutput` holds; its text is decoded anew, since vLLM's lacks the marks around thinking.

    Raises:
        ValueError: vLLM gave the request up.
    """
    [answer] = output.outputs
    if answer.finish_reason not in ("stop", "length"):
        raise ValueError(f"vLLM ended request {output.request_id} with {answer.finish_reason!r}; run the command again")
    ids = list(answer.token_ids)
    text = decode_completion(tokenizer, ids)
    return Completion(
        text=text[: find_stop(text, stop)],
        token_ids=ids,
        finish_reason=answer.finish_reason,
        num_prompt_tokens=len(output.prompt_token_ids),
        num_completion_tokens=len(ids),
        revision=revision,
    )


class VLLMBackend(Backend):
    """Generates with vLLM, which batches by itself and spreads a model over GPUs; no trainer takes part."""

    def __init__(
        self,
        tensor_parallel_size: PositiveInt = 1,
        gpu_memory_utilization: ClosedUnitInterval = 0.9,
        requests_per_call: PositiveInt = 512,
    ):
        """Stores the settings.

        Args:
            tensor_parallel_size: GPUs that share the model.
            gpu_memory_utilization: Share of each GPU's memory that vLLM takes.
            requests_per_call: Completions that a kill may lose; vLLM's own batches are as large as memory allows.
        """
        self.tensor_parallel_size, self.gpu_memory_utilization = tensor_parallel_size, gpu_memory_utilization
        self.requests_per_call = requests_per_call
        self.longest = 0
        self.engine: Any = None
        self.tokenizer: Any = None
        self._model_end_ids: list[int] = []
        self._engine_options: dict[str, Any] = {}

    def keep_log_probs(self, number: int) -> None:
        """Makes the engine, when it is loaded, able to return so many of each token's log-probabilities."""
        self._engine_options = {"max_logprobs": number, "logprobs_mode": "raw_logprobs"}

    def check(self, source: Source, longest: int, highest_id: int) -> None:
        """Refuses what cannot be loaded, and prompts that may leave the context."""
        import_vllm()
        if source.keep_layers is not None:
            raise ValueError("model.keep_layers: vLLM loads whole models; use TransformersBackend, or leave it")
        what = "data.encoding.max_length + model.max_new_tokens"
        check_model(source.teacher, source.revision, None, longest, what, highest_id)
        self.longest = longest

    def load(self, source: Source, tokenizer: PreTrainedTokenizerBase | None) -> nn.Module | None:
        """Starts the engine."""
        if self.engine is None:
            self.weights_id = identify_weights(source.teacher, source.revision)
            self.tokenizer = tokenizer
            self._model_end_ids = read_end_ids(source.teacher, source.revision)
            self.engine = import_vllm().LLM(
                model=source.teacher,
                revision=source.revision,
                dtype=source.dtype,
                max_model_len=self.longest,
                tensor_parallel_size=self.tensor_parallel_size,
                gpu_memory_utilization=self.gpu_memory_utilization,
                trust_remote_code=False,
                # A model's own sampling settings play no part.
                generation_config="vllm",
                **self._engine_options,
            )
        return None

    def score(self, sequences: Sequence[Sequence[int]], number: int) -> list[list]:
        """Returns, for each sequence of token ids, vLLM's `prompt_logprobs` with the most probable tokens."""
        vllm = import_vllm()
        sampling = vllm.SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=number, detokenize=False)
        prompts = [vllm.TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        return [output.prompt_logprobs for output in self.engine.generate(prompts, sampling, use_tqdm=False)]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[Request, Completion]]:
        """Generates some requests at a time."""
        vllm, end_ids = import_vllm(), [*find_end_tokens(self.tokenizer), *self._model_end_ids]
        for start in range(0, len(requests), self.requests_per_call):
            some = requests[start : start + self.requests_per_call]
            prompts = [vllm.TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in some]
            sampling = [make_sampling(vllm, request, decoding, end_ids) for request in some]
            if is_stopping():
                return
            try:
                outputs = self.engine.generate(prompts, sampling, use_tqdm=False)
            except Exception:
                # A scheduler signals the engine's own processes, too.
                if is_stopping():
                    return
                raise
            for request, output in zip(some, outputs, strict=True):
                yield request, read_output(output, self.weights_id, self.tokenizer, decoding.stop)
