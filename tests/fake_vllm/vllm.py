"""Answers to vLLM's calls with transformers, where vLLM itself cannot run: put this folder on the path.

What each engine was started with goes to a line of the file that FAKE_VLLM_LOG names. A real engine computes in
processes of its own; this one has one, which does nothing, and without which it answers no more.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

__version__ = "0.0"


class SamplingParams(dict):
    # vLLM has had it since 0.11.1.
    flat_logprobs = False


TokensPrompt = dict


class LLM:
    """An engine that generates greedily, one prompt after the other."""

    def __init__(self, model: str, **options: Any):
        assert options["trust_remote_code"] is False and options["generation_config"] == "vllm"
        if log := os.environ.get("FAKE_VLLM_LOG"):
            line = json.dumps({"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "model": model, **options})
            with open(log, "a") as file:
                file.write(line + "\n")
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.core = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, start_new_session=False
        )

    def generate(self, prompts: list[dict], sampling: Any, use_tqdm: bool) -> list[SimpleNamespace]:
        each = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
        answers = [self._answer(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, each, strict=True)]
        if self.core.poll() is not None:
            raise RuntimeError("EngineDeadError: EngineCore encountered an issue")
        return answers

    @torch.no_grad()
    def _answer(self, prompt: list[int], sampling: dict) -> SimpleNamespace:
        if "prompt_logprobs" in sampling:
            return SimpleNamespace(prompt_logprobs=self._score(prompt, sampling["prompt_logprobs"]))
        assert sampling["temperature"] == 0
        written = self.model.generate(
            torch.tensor([prompt]),
            max_new_tokens=sampling["max_tokens"],
            do_sample=False,
            eos_token_id=sampling["stop_token_ids"],
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        reason = "stop" if written[-1] in sampling["stop_token_ids"] else "length"
        log_probs = None
        if "logprobs" in sampling:
            log_p = self.model(input_ids=torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1]
            log_probs = [
                {
                    token_id: SimpleNamespace(logprob=row[token_id].item())
                    for token_id in [own, *row.topk(sampling["logprobs"]).indices.tolist()]
                }
                for own, row in zip(written, log_p.log_softmax(-1), strict=True)
            ]
        answer = SimpleNamespace(token_ids=written, text="", finish_reason=reason, logprobs=log_probs)
        return SimpleNamespace(request_id="0", prompt_token_ids=prompt, outputs=[answer])

    def _score(self, ids: list[int], number: int) -> SimpleNamespace:
        """As vLLM's `FlatLogprobs`."""
        log_p = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)[:-1]
        best = log_p.topk(number)
        own = torch.tensor(ids[1:])[:, None]
        token_ids, log_probs = (
            torch.cat(parts, 1).flatten().tolist()
            for parts in ((own, best.indices), (log_p.gather(1, own), best.values))
        )
        ends = [0, *range(number + 1, len(token_ids) + 1, number + 1)]
        flat = FlatLogprobs()
        flat.start_indices, flat.end_indices = [0, *ends[:-1]], ends
        flat.token_ids, flat.logprobs = token_ids, log_probs
        return flat


class FlatLogprobs(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.start_indices)
