"""A teacher in vLLM, in this process."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import decode_completion, find_end_tokens
from datamodules.model_sources import resolve_model
from datamodules.text.token_bytes import read_vocabulary
from lightning_modules.model.adapters import find_base
from lightning_modules.model.generation import Sample
from lightning_modules.model.pretrained import check_model, identify_weights, read_end_ids
from lightning_modules.run.stop_signal import leaving_if_stopped, shielding_children
from lightning_modules.teacher.backends import Backend, Completion, Decoding, Request, Source, find_stop, refuse_stops
from lightning_modules.teacher.reply_tokens import read_output_tokens


def import_vllm() -> Any:
    """Returns the module.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import vllm
    except ModuleNotFoundError:
        raise ValueError('this needs vLLM, in an environment of its own: pip install "kindred[vllm]"') from None
    return vllm


def name_vllm() -> str:
    """Returns what predictions record: the library with its version.

    Raises:
        ValueError: It is not installed.
    """
    return f"vLLM {import_vllm().__version__}"


def make_sampling(
    vllm: Any, request: Request, decoding: Decoding, end_ids: Sequence[int], num_log_probs: int | None = None
) -> Any:
    """Returns a request's `SamplingParams`; each of the end tokens ends it."""
    kept = {} if num_log_probs is None else {"logprobs": num_log_probs}
    return vllm.SamplingParams(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
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


@dataclass(frozen=True)
class EngineOptions:
    """What vLLM's engine is started with; what is null is left to vLLM. None changes an answer, but for rounding.

    Attributes:
        pipeline_parallel_size: Parts of the model's layers; each takes `tensor_parallel_size` GPUs.
        distributed_executor_backend: What runs the GPUs of one engine: mp, within a node; ray, over several nodes.
        max_num_seqs: Most completions at a time.
        max_num_batched_tokens: Most tokens of one forward pass.
        cpu_offload_gb: Weights that each GPU keeps in the host's memory, in GiB.
        enforce_eager: No CUDA graphs: slower, in less memory.
    """

    pipeline_parallel_size: PositiveInt = 1
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    cpu_offload_gb: NonNegativeFloat | None = None
    enforce_eager: bool | None = None


def find_gpus() -> list[str]:
    """Returns the names of the GPUs that this process sees, without touching one."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = map(str, range(torch.cuda.device_count())) if given is None else given.split(",")
    return [number.strip() for number in numbers if number.strip()]


def choose_gpus(gpus: Sequence[str], rank: int, num_engines: int, size: int) -> list[str]:
    """Returns the GPUs of one of a node's engines.

    Args:
        gpus: Of the node.
        rank: Of the engine's process among the node's.
        num_engines: On the node.
        size: GPUs of an engine.

    Raises:
        ValueError: There are too few.
    """
    if num_engines * size > len(gpus):
        raise ValueError(
            f"{num_engines} engines of {size} GPUs on a node, but it has {len(gpus)}; lower trainer.devices (with "
            "SLURM, --ntasks-per-node), tensor_parallel_size or pipeline_parallel_size"
        )
    return list(gpus[rank * size : (rank + 1) * size])


class VLLMBackend(Backend):
    """Generates with vLLM, which batches by itself: an engine for each of the trainer's processes.

    With one process a node, its engine takes `tensor_parallel_size` GPUs. With several, each engine has as many GPUs of
    its own, and its share of what is asked. The trainer itself computes nothing.
    """

    is_local = True
    takes_gpus = True

    def __init__(
        self,
        tensor_parallel_size: PositiveInt = 1,
        gpu_memory_utilization: ClosedUnitInterval = 0.9,
        requests_per_call: PositiveInt = 512,
        engine: EngineOptions = EngineOptions(),
    ):
        """Stores the settings.

        Args:
            tensor_parallel_size: GPUs that share each layer of the model.
            gpu_memory_utilization: Share of each GPU's memory that vLLM takes.
            requests_per_call: Completions that a kill may lose; vLLM's own batches are as large as memory allows. A
                signal is heard between two calls: one should not take longer than SLURM's warning time.
            engine: More of vLLM's own.
        """
        self.tensor_parallel_size, self.gpu_memory_utilization = tensor_parallel_size, gpu_memory_utilization
        self.requests_per_call, self.options = requests_per_call, engine
        self.longest = 0
        self.engine: Any = None
        self.tokenizer: Any = None
        self._model_end_ids: list[int] = []
        self._log_probs: dict[str, Any] = {}
        self._num_kept: int | None = None
        self._keeps_ids = False

    def keep_log_probs(self, number: int) -> None:
        """Makes the engine, when it is loaded, able to return so many of each token's log-probabilities."""
        self._num_kept = number
        self._log_probs = {"max_logprobs": max(number, 1), "logprobs_mode": "raw_logprobs"}

    def keep_ids(self, stop: Sequence[str]) -> None:
        """Makes the engine return the log-probabilities of what it draws."""
        refuse_stops(stop)
        self._keeps_ids = True
        if self._num_kept is None:
            self.keep_log_probs(0)

    def place(self, trainer: L.Trainer) -> None:
        """Gives this process's engine GPUs of its own, where there are several on a node.

        Raises:
            ValueError: There are too few, or one engine over several nodes would be started several times.
        """
        if trainer.world_size > 1 and self.options.distributed_executor_backend == "ray":
            raise ValueError(
                f"an engine with distributed_executor_backend ray takes GPUs of all nodes, and {trainer.world_size} "
                "processes would each start one; start one process"
            )
        size, gpus = self.tensor_parallel_size * self.options.pipeline_parallel_size, find_gpus()
        if trainer.num_devices > 1 and gpus:
            own = choose_gpus(gpus, trainer.local_rank, trainer.num_devices, size)
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if (taken := trainer.num_devices * size) < len(gpus) and trainer.is_global_zero:
            warnings.warn(
                f"vLLM takes {taken} of the {len(gpus)} GPUs; trainer.devices engines of tensor_parallel_size GPUs "
                "each would take more",
                stacklevel=2,
            )

    def check(self, source: Source, longest: int, highest_id: int) -> None:
        """Refuses what cannot be loaded, and prompts that may leave the context."""
        import_vllm()
        if source.keep_layers is not None:
            raise ValueError("model.keep_layers: vLLM loads whole models; use TransformersBackend, or leave it")
        if source.attention is not None:
            raise ValueError("model.attention: vLLM chooses how it computes attention; leave it")
        if source.teacher.endswith((".gguf", ".ckpt")) or find_base(source.teacher):
            raise ValueError(
                f"{source.teacher}: vLLM loads a hub model or its folder, no GGUF file, checkpoint or adapter; use "
                "TransformersBackend, or a run's exported student"
            )
        what = "data.encoding.max_length + model.max_new_tokens"
        check_model(source.teacher, source.revision, None, longest, what, highest_id)
        self.longest = longest

    def load(self, source: Source, tokenizer: PreTrainedTokenizerBase | None) -> nn.Module | None:
        """Starts the engine."""
        if self.engine is None:
            self.weights_id = identify_weights(source.teacher, source.revision)
            self.tokenizer = tokenizer
            self._model_end_ids = read_end_ids(source.teacher, source.revision)
            name, revision = resolve_model(source.teacher, source.revision)
            options = {option: value for option, value in vars(self.options).items() if value is not None}
            # A fork of a process that has tokenized fails in its own ways.
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
            with shielding_children(), leaving_if_stopped("while vLLM was at work"):
                self.engine = import_vllm().LLM(
                    model=name,
                    revision=revision,
                    dtype=source.dtype,
                    max_model_len=self.longest,
                    tensor_parallel_size=self.tensor_parallel_size,
                    gpu_memory_utilization=self.gpu_memory_utilization,
                    trust_remote_code=False,
                    # A model's own sampling settings play no part.
                    generation_config="vllm",
                    **options,
                    **self._log_probs,
                )
        return None

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end a completion, once the engine is loaded."""
        return [*find_end_tokens(self.tokenizer), *self._model_end_ids]

    def _ask(self, prompts: Sequence[Any], sampling: Any) -> list[Any]:
        with leaving_if_stopped("while vLLM was at work"):
            outputs: list[Any] = self.engine.generate(prompts, sampling, use_tqdm=False)
            return outputs

    def score(self, sequences: Sequence[Sequence[int]], number: int) -> list[Any]:
        """Returns, for each sequence of token ids, vLLM's `prompt_logprobs` with the most probable tokens."""
        vllm = import_vllm()
        # Where vLLM has it, it makes no objects of its own of each number.
        flat = {"flat_logprobs": True} if hasattr(vllm.SamplingParams, "flat_logprobs") else {}
        sampling = vllm.SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=number, detokenize=False, **flat)
        prompts = [vllm.TokensPrompt(prompt_token_ids=list(sequence)) for sequence in sequences]
        return [output.prompt_logprobs for output in self._ask(prompts, sampling)]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[Request, Completion]]:
        """Generates the requests in one call."""
        vllm, end_ids = import_vllm(), self.end_ids
        prompts = [vllm.TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests]
        sampling = [make_sampling(vllm, request, decoding, end_ids, self._num_kept) for request in requests]
        vocabulary = (
            None if self._num_kept is None else read_vocabulary(self.tokenizer, find_end_tokens(self.tokenizer))
        )
        for request, output in zip(requests, self._ask(prompts, sampling), strict=True):
            completion = read_output(output, self.weights_id, self.tokenizer, decoding.stop)
            if vocabulary is not None and self._num_kept is not None:
                [answer] = output.outputs
                tokens = read_output_tokens(answer.token_ids, answer.logprobs, self._num_kept, vocabulary)
                completion = replace(completion, tokens=tokens)
                if self._keeps_ids:
                    rows = zip(answer.token_ids, answer.logprobs, strict=True)
                    log_probs = [float(entries[token].logprob) for token, entries in rows]
                    completion = replace(completion, sample=Sample(list(answer.token_ids), log_probs))
            yield request, completion
